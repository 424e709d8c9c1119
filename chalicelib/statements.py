"""What people say about our texts by other ways than a text: on the telephone, by mail, to another
system. Such a statement is an event of the list of consent like any STOP or START.

Everybody who hands one in has it read here: our clients (POST /consent), the processing queue, and
whoever works with `spillway consent`. Standard library only: the receiver imports this module.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from chalicelib.messages import Keys, MessageId, number_kind

FIELDS = ("number", "event", "at", "source", "note")
LONGEST_NOTE = 160  # characters; as many as the list keeps of a text
# Seconds by which a clock may be ahead of ours.
SKEW = 60.0
_EARLIEST = 694_224_000.0  # 1992-01-01: nobody had sent a text before
_SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?", re.ASCII)
_SOURCE = re.compile(r"[A-Za-z][A-Za-z0-9 _.:/-]{0,39}", re.ASCII)


class BadStatement(ValueError):
    """It cannot be read. The text names the field and shows no value."""


@dataclass(frozen=True, slots=True)
class Statement:
    """What somebody said, `at` when (unix seconds), in which way (`source`: telephone, mail, …),
    and whatever is to prove it (`note`)."""

    number: str
    event: Literal["stop", "start"]
    at: float
    source: str
    note: str = ""


def read(fields: Any, now: float) -> Statement:
    """A statement from its fields, as JSON has them. Raises BadStatement.

    `at` is in unix seconds or ISO 8601 with a time zone. A stop that does not say when is said now;
    a start must say: one that came twice would else be taken back by no stop in between.
    """
    if not isinstance(fields, dict) or set(fields) - set(FIELDS):
        raise BadStatement(f"it must be a JSON object that may have: {', '.join(FIELDS)}")
    number, event, source = fields.get("number"), fields.get("event"), fields.get("source")
    note = fields.get("note", "")
    if not isinstance(number, str) or number_kind(number) not in ("e164", "short_code"):
        raise BadStatement("number: must be a number such as +14155550100, or a short code")
    if event not in ("stop", "start"):
        raise BadStatement("event: must be stop or start")
    if not isinstance(source, str) or not _SOURCE.fullmatch(source):
        raise BadStatement(
            "source: must be the way in which they said it, such as telephone or mail: at most "
            "40 letters, digits and any of space _ . : / -, a letter first"
        )
    if not isinstance(note, str) or len(note) > LONGEST_NOTE:
        raise BadStatement(f"note: must be a string of at most {LONGEST_NOTE} characters")
    if fields.get("at") is None and event == "start":
        raise BadStatement("at: a start must say when they asked for our texts")
    return Statement(number, event, _time(fields.get("at", now), now), source, note)


def id_of(keys: Keys, said: Statement) -> MessageId:
    """Of whom it is, and of what: the same statement has the same id, whoever brings it again."""
    what = f"{said.event} {said.at!r} {said.note}"
    return MessageId(keys.number(said.number), keys.message("statement", said.source, what))


def _time(value: Any, now: float) -> float:
    at = math.nan
    if value is None:
        at = now
    elif isinstance(value, int | float) and not isinstance(value, bool):
        at = float(value) if abs(value) < 1e11 else math.inf
    elif isinstance(value, str) and _SECONDS.fullmatch(value):
        at = float(value)
    elif isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
            at = moment.timestamp() if moment.tzinfo else math.nan
        except (ValueError, OverflowError):
            at = math.nan
    if math.isnan(at):
        raise BadStatement(
            "at: must be in unix seconds, or in ISO 8601 with a time zone, such as "
            "2026-11-24T10:31:00Z"
        )
    if not _EARLIEST <= at <= now + SKEW:
        raise BadStatement("at: must not be in the future, nor before 1992")
    return min(at, now)
