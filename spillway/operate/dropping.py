"""Dead letters that nobody wants redriven: kept under `quarantine/dropped/`, and then deleted.

Killed anywhere it loses nothing, and is run again. What each line leaves behind:

    ask the list    nothing; a STOP that is not recorded is refused: only redriving it records it
    keep            an object that the next run writes once more, under the same key
    delete          all is done

What is kept has the form of a payload that could not be read (chalicelib/archive.py), so that an
erasure finds in it whom it names. It is kept as long as those, and no command brings it back.
"""

from __future__ import annotations

import base64
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime

from chalicelib.consent import ConsentList
from chalicelib.ledger import Ledger, reply_of
from chalicelib.messages import MessageId, parse_reference
from chalicelib.queues import PROCESSING, Envelope
from chalicelib.table import Table
from spillway.operate.letters import PATIENCE, SOURCES, Letter, Said, said_in, work_through
from spillway.operate.words import printable
from spillway.stage import Stage
from spillway.stores import DROPPED


@dataclass(slots=True)
class Dropped:
    """`kept`: by the letter's id, the object that has it now. `refused`: the ids of those with a
    STOP that is recorded nowhere. `unseen`: the ids of those that SQS did not show."""

    stage: str
    kept: dict[str, str] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.refused and not self.unseen


class Drop:
    """Says what would be lost with a letter, and drops it."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        runtime = stage.runtime()
        settings = stage.settings("sender")
        table = Table(runtime, stage.name)
        self._ledger = Ledger(table, runtime, keep_days=settings.message_days)
        self._consent = ConsentList(table, stage.stores.keys, settings.brand)
        self._heard = bool(settings.event_bus or settings.events_url)

    def must_stay(self, letter: Letter) -> bool:
        """Whether somebody said STOP in it, or a provider for them, and the list does not know."""
        said = self._unrecorded(letter)
        return said is not None and said.event == "stop"

    def _unrecorded(self, letter: Letter) -> Said | None:
        said = said_in(letter.envelope, self._consent, self._ledger)
        if said is None or not said.number:
            return None
        known = self._consent.knows(said.number, said.event, said.at, said.id)
        return None if known else said

    def lost_with(self, letter: Letter) -> str:
        """What will not happen any more when the letter is gone."""
        if letter.envelope is None:
            return "nothing of ours"
        if letter.kind == "unreadable":
            return "a payload that could not be read"
        if letter.kind == "event":
            type_ = printable(str(letter.envelope.payload.get("type", "?")))
            return f"an event, which your systems have not heard: {type_}"
        if letter.kind == "consent":
            said = self._unrecorded(letter)
            if said is not None:
                return f"what somebody stated, and the list of consent does not have: {said.event}"
            if said_in(letter.envelope, self._consent, self._ledger) is None:
                return "what somebody stated, which cannot be read"
            return "nothing: the list of consent has it, or what was said later"
        if letter.kind == "replay":
            return "a replay: what is stored of the text stays as it is"
        # (Whoever works on it announces what came of it, once more if it was announced before.)
        event = "; and its event, if your systems have not heard it" if self._heard else ""
        return self._lost_of_a_message(letter, letter.envelope) + event

    def _lost_of_a_message(self, letter: Letter, envelope: Envelope) -> str:
        named = parse_reference(letter.message)
        id_ = named[0] if named else MessageId.parse(letter.message)
        stored, replied = self._stage.stores.message(id_) if id_ else (None, None)
        state = reply_of(replied).state if replied else ""
        if letter.kind == "receipt":
            status = envelope.payload.get("status", "?")
            return f"the provider's word that a part is {status}; the ledger says {state or '?'}"
        if letter.kind in ("settle", "resume"):
            return f"a reminder of a reply; the ledger says {state or 'nothing of it'}"
        if SOURCES[letter.queue] == PROCESSING:
            return "nothing: it is stored" if stored else "a text that is not in the table"
        if state in ("", "waiting"):
            return "the answer to it" if letter.kind == "inbound" else "a text that is not sent"
        return f"nothing more: the ledger says {state}"

    def run(self, queue: str, ids: Collection[str]) -> Dropped:
        """Drops these letters of a queue, by SQS's ids. Raises what AWS raises: then it is to be
        run again."""
        done = Dropped(self._stage.name)
        refused: dict[str, None] = {}

        def work(letter: Letter) -> bool:
            if letter.id not in ids:
                return False
            if self.must_stay(letter):
                refused[letter.id] = None
                return False
            key, content = kept(letter)
            self._stage.stores.keep(key, content)
            # (One whose deletion comes too late is met again by the next walk.)
            if self._stage.stores.delete(letter.raw):
                done.kept[letter.id] = key
            return True

        work_through(self._stage, queue, work, patience=PATIENCE)
        done.refused = list(refused)
        done.unseen = sorted(set(ids) - set(done.kept) - set(refused))
        return done


def kept(letter: Letter) -> tuple[str, dict[str, object]]:
    """A letter as an object of the archive: its key, and what it has."""
    content: dict[str, object]
    if letter.envelope is not None and _holds_a_payload(letter.envelope):
        content = dict(letter.envelope.payload)
    else:
        body = base64.b64encode(letter.raw.body.encode("utf-8", "surrogatepass")).decode()
        content = {"provider": "", "url": "", "content_type": "application/json", "body": body}
    content |= {"queue": letter.queue, "letter": letter.id, "history": dict(letter.raw.history)}
    day = datetime.fromtimestamp(letter.received_at, UTC).strftime("%Y/%m/%d")
    return f"{DROPPED}{day}/{letter.id}.json", content


def _holds_a_payload(envelope: Envelope) -> bool:
    """Whether it holds one that could not be read: packed once more, nobody would find in it whom
    it names."""
    try:
        base64.b64decode(envelope.payload["body"], validate=True)
    except (KeyError, TypeError, ValueError):
        return False
    return envelope.kind == "unreadable"
