"""Lists of consent as files: what `spillway consent import` takes, and `export` writes.

A list is CSV with a header, or one number a line. It is read as a whole before anything of it is
recorded, and what is wrong with it is said by its lines' numbers: numbers of people are shown to
nobody.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import phonenumbers

from chalicelib.messages import number_kind
from chalicelib.statements import FIELDS, BadStatement, Statement, read
from chalicelib.table import Item
from spillway.problem import Problem

# What stands in the column of numbers for somebody who was erased: nobody knows theirs.
ERASED = "erased:"

_WRITTEN = re.compile(r"\+?[0-9\s().\-/]+")


@dataclass(slots=True)
class Found:
    """What a file holds. `wrong`: by line, what is wrong with it. `erased`: how many lines are of
    somebody whose number nobody knows any more."""

    said: list[Statement] = field(default_factory=list)
    wrong: dict[int, str] = field(default_factory=dict)
    erased: int = 0


def found_in(text: str, defaults: Mapping[str, str], region: str, now: float) -> Found:
    """Everything in a list. `defaults`: what its lines do not say. `region`: the country of numbers
    that name none (two letters), "" where each must. Raises Problem where it is no list."""
    found = Found()
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] | None = None
    try:
        for values in lines:
            if not any(value.strip() for value in values):
                continue
            if columns is None:
                columns = _columns(values)
                if columns is not None:
                    continue
                columns = ["number"]
            try:
                _read_line(columns, values, found, defaults, region, now)
            except BadStatement as error:
                found.wrong[lines.line_num] = str(error)
    except csv.Error as error:
        raise Problem(f"Line {lines.line_num}: {error}. The list must be CSV.") from None
    return found


def _columns(first: list[str]) -> list[str] | None:
    """The names in the first line, None where it is none of names. Raises Problem."""
    names = [name.strip().lower() for name in first]
    if "number" not in names:
        if len(names) > 1:
            raise Problem("The first line must name the columns: number, and any of the others.")
        return None
    strange = sorted(set(names) - set(FIELDS))
    if strange or len(set(names)) < len(names):
        raise Problem(f"The columns may be, each once: {', '.join(FIELDS)}.")
    return names


def _read_line(
    columns: list[str],
    values: list[str],
    found: Found,
    defaults: Mapping[str, str],
    region: str,
    now: float,
) -> None:
    if len(values) > len(columns):
        raise BadStatement("there are more values than columns")
    told = dict(zip(columns, values, strict=False))
    # (A note may be somebody's words, and is left as it is.)
    told |= {name: value.strip() for name, value in told.items() if name != "note"}
    fields = {**defaults, **{name: value for name, value in told.items() if value}}
    if fields.get("number", "").startswith(ERASED):
        found.erased += 1
        return
    fields["number"] = _number(fields.get("number", ""), region)
    if "at" not in fields:
        raise BadStatement("at: must say when; or give --at, for the lines that do not")
    found.said.append(read(fields, now))


def _number(text: str, region: str) -> str:
    """In E.164. Raises BadStatement."""
    try:
        if not _WRITTEN.fullmatch(text):
            raise BadStatement("number: is none")
        parsed = phonenumbers.parse(text, region or None)
    except phonenumbers.NumberParseException:
        raise BadStatement(
            "number: is none, or names no country: +1 415 555 0100, or give --region US"
        ) from None
    number = phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164)
    if not phonenumbers.is_possible_number(parsed) or number_kind(number) != "e164":
        raise BadStatement("number: is too long or too short for its country")
    return number


def written(entries: Iterable[Item]) -> str:
    """Everybody of these who is opted out, as a list that can be imported. Whom nobody can text
    (a short code, a name) is on none."""
    text = io.StringIO(newline="")
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(FIELDS)
    for entry in entries:
        number = entry.get("number") or f"{ERASED}{entry['pk'].rpartition('#')[2]}"
        if entry["event"] == "stop" and (
            number.startswith(ERASED) or number_kind(number) == "e164"
        ):
            at = datetime.fromtimestamp(entry["at"], UTC).isoformat()
            values = (number, "stop", at, entry.get("source", ""), entry.get("words", ""))
            lines.writerow(values)
    return text.getvalue()
