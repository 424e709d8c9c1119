"""Dead letters as commands see them: what each is, why it was put aside, what it says of consent.

A letter is a copy of a message. The function that put it aside wrote what had happened as message
attributes (chalicelib/batches.py). Where SQS did it, after `maxReceiveCount` receives, or somebody
by hand, there are none, and nobody knows more than that.
https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-dead-letter-queues.html

SQS shows a letter to one who looks at a time, and of a conversation on the FIFO queue ten at a
time, in their order, and no more while one of these is looked at. So a queue is walked through
again and again; what nobody could be shown is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from chalicelib import statements
from chalicelib.consent import ConsentList, event_in
from chalicelib.ledger import Ledger
from chalicelib.messages import ConsentEvent, MessageId, mask, parse_reference
from chalicelib.providers import provider_named
from chalicelib.providers.base import UnknownProvider
from chalicelib.queues import DEAD_LETTERS, Envelope, EnvelopeError
from chalicelib.text import normalise
from spillway.stage import Stage
from spillway.stores import DeadLetter

# The queue to which the letters of each dead-letter queue belong.
SOURCES: Mapping[str, str] = {dead: source for source, dead in DEAD_LETTERS.items()}
# The reason of what nobody gave a reason for.
BY_SQS = "max_receives"
# Seconds for which letters that are not shown are waited for: somebody who looks at them hides them
# for 30, and SQS's count of them is up to 60 old.
PATIENCE = 65.0
# ... by who only looks: SQS may show a few letters at a second asking alone.
PATIENCE_OF_A_LOOK = 4.0
BETWEEN, BETWEEN_LOCALLY = 2.0, 0.2  # seconds between two walks


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter. `id` is SQS's own.

    `envelope` is None, and `kind` "", where it is no message of ours. `message`: the id of the
    message that it is about, or the reference of a part; "" where there is none. `put_aside_at` and
    `received_at` (when our door had it) are unix seconds; `receives` and `starts` were counted
    until then, None where nobody wrote them down.
    """

    raw: DeadLetter
    envelope: Envelope | None
    kind: str
    message: str
    reason: str
    put_aside_at: float
    received_at: float
    receives: int | None
    starts: int | None

    @property
    def id(self) -> str:
        return self.raw.id

    @property
    def queue(self) -> str:
        return self.raw.queue

    def is_named(self, names: Collection[str]) -> bool:
        """Whether one of these is its id, or that of its message or of a part of it."""
        of_part = parse_reference(self.message)
        mine = {self.id, self.message, str(of_part[0]) if of_part else ""} - {""}
        return not mine.isdisjoint(names)

    def has_reason(self, reason: str) -> bool:
        """Whether it was put aside for this: too_old also stands for "too_old: lookup: line"."""
        return reason in (self.reason, self.reason.partition(":")[0])

    def numbers(self) -> tuple[str, str]:
        """Ours and theirs; "" where it does not say."""
        payload = self.envelope.payload if self.envelope else {}
        names = ("recipient", "sender") if self.kind == "inbound" else ("ours", "theirs")
        ours, theirs = (payload.get(name) for name in names)
        return (ours if isinstance(ours, str) else "", theirs if isinstance(theirs, str) else "")

    def text(self) -> str:
        """The words in it; the whole of it where it is no message of ours."""
        if self.envelope is None:
            return self.raw.body
        words = self.envelope.payload.get("text")
        return words if isinstance(words, str) else ""

    def told(self, *, texts: bool) -> dict[str, Any]:
        """All of it, for whoever reads JSON; numbers whole and words only with `texts`."""
        shown = (lambda value: value) if texts else mask
        ours, theirs = (shown(number) if number else "" for number in self.numbers())
        return {
            "id": self.id,
            "queue": self.queue,
            "kind": self.kind,
            "message": self.message,
            "reason": self.reason,
            "put_aside_at": self.put_aside_at,
            "received_at": self.received_at,
            "receives": self.receives,
            "starts": self.starts,
            "redriven_at": self.envelope.redriven_at if self.envelope else None,
            "ours": ours,
            "theirs": theirs,
            **({"text": self.text()} if texts else {}),
        }


def read(letter: DeadLetter) -> Letter:
    """What a message on a dead-letter queue is."""
    try:
        envelope = Envelope.parse(letter.body)
    except EnvelopeError:
        envelope = None
    history = letter.history
    return Letter(
        raw=letter,
        envelope=envelope,
        kind=envelope.kind if envelope else "",
        message=envelope.log_id if envelope else "",
        reason=history.get("reason") or BY_SQS,
        put_aside_at=_number(history, "dead_lettered_at") or letter.sent_at,
        received_at=envelope.received_at if envelope else letter.sent_at,
        receives=_number(history, "receives"),
        starts=_number(history, "starts"),
    )


def work_through(
    stage: Stage, queue: str, work: Callable[[Letter], bool], *, patience: float, hide: int = 0
) -> int:
    """Gives every letter of a queue to `work`, perhaps more than once, in the order of its
    conversation. `work` says whether there was anything to do with it; the others are shown again
    at the end of each walk.

    Walks until one finds nothing to do and sees all that there are, or `patience` seconds have
    passed in which there was nothing to do. Returns how many letters were not shown. `hide`: the
    seconds for which a letter is hidden from others, if not 30.
    """
    stores, runtime = stage.stores, stage.runtime()
    idle_since = runtime.now()
    while True:
        standing = stores.depth(queue).total
        left: list[DeadLetter] = []
        busy = False
        try:
            for letter in stores.dead_letters(queue, hide):
                if work(read(letter)):
                    busy = True
                else:
                    left.append(letter)
        finally:
            stores.show(left)
        if busy:
            idle_since = runtime.now()
        elif len(left) >= standing:
            return 0
        elif runtime.now() - idle_since >= patience:
            return standing - len(left)
        else:
            runtime.sleep(BETWEEN if stage.local is None else BETWEEN_LOCALLY)


def find(stage: Stage, queue: str) -> tuple[list[Letter], int]:
    """The letters of a queue, those first that were put aside first; and how many were not
    shown."""
    found: dict[str, Letter] = {}

    def note(letter: Letter) -> bool:
        found[letter.id] = letter
        return False

    hide = 30 + stage.stores.depth(queue).total // 50  # seconds in which all of them are read
    unseen = work_through(stage, queue, note, patience=PATIENCE_OF_A_LOOK, hide=hide)
    return sorted(found.values(), key=lambda one: one.put_aside_at), unseen


@dataclass(frozen=True, slots=True)
class Said:
    """What a letter says of somebody's consent, as the list has it (ConsentList.record). `number`
    is "" where it names a reply of which nobody knows any more whose it was."""

    number: str
    event: ConsentEvent
    at: float
    source: str
    id: str


def said_in(envelope: Envelope | None, consent: ConsentList, ledger: Ledger) -> Said | None:
    """What a text says, a statement, or a receipt which says that somebody opted out."""
    try:
        if envelope is not None and envelope.kind in ("inbound", "replay"):
            return _said_in_text(envelope, consent, ledger)
        if envelope is not None and envelope.kind == "receipt":
            return _said_in_receipt(envelope, ledger)
        if envelope is not None and envelope.kind == "consent":
            stated = statements.read(dict(envelope.payload), envelope.received_at)
            return Said(stated.number, stated.event, stated.at, stated.source, envelope.id)
    except (TypeError, UnknownProvider, statements.BadStatement):
        pass  # its payload is none of ours
    return None


def _said_in_text(envelope: Envelope, consent: ConsentList, ledger: Ledger) -> Said | None:
    message = envelope.inbound()
    opted_out = envelope.kind == "inbound" and consent.opted_out(message.sender)
    event = message.consent_hint or event_in(normalise(message.text), opted_out)
    if event is None:
        return None
    id_ = MessageId.parse(envelope.id)
    reply = ledger.find(id_) if id_ else None
    first = min([envelope.received_at] + ([reply.received_at] if reply else []))
    return Said(message.sender, event, message.said_at(first), message.provider, envelope.id)


def _said_in_receipt(envelope: Envelope, ledger: Ledger) -> Said | None:
    receipt = envelope.receipt()
    provider = provider_named(receipt.provider)
    named = parse_reference(receipt.reference)
    if named is None or not receipt.error or provider.reason_of(receipt.error) != "opted_out":
        return None
    reply = ledger.find(named[0])
    for part in (reply and reply.parts) or ():
        if reply is not None and part.number == named[1] and part.started_at is not None:
            source = f"{receipt.provider}: {receipt.error}"
            return Said(reply.theirs, "stop", part.started_at, source, str(named[0]))
    return None


def _number(history: Mapping[str, str], name: str) -> int | None:
    value = history.get(name, "")
    return int(value) if value.isascii() and value.isdigit() else None
