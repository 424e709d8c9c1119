"""A person's erasure: their messages go from table, ledger, archive, quarantine and dead letters,
their attachments from the archive, and a second search shows that they are gone.

Of each message its keys (hashes), states and times stay, so that none is ever answered again; of an
opt-out all but number and words. docs/RETENTION.md says why, and what no command can reach.

It may die anywhere, and is then run again. What each step leaves behind:

    wait for the queues    nothing was done
    read the table         nothing was done
    archive, attachments,  items whose archived line is gone already; they are still found by their
    quarantine             number, and everything is read again
    replies, texts, words  each is one write. The table comes after the archive: its items say how
                           far back there is anything to look for, and a blanked one says nothing
    dead letters           what one says about consent is recorded first, then it is deleted;
                           recorded twice it is recorded once
    read everything again  all is done

The functions go on meanwhile, and so do the person and the providers:

    a text comes           it is new: the second search finds it, and the next run removes it
    a reply is recent      nothing that came or was begun in the last minutes is touched: decided,
                           claimed, sent or looked for, it is waited for
    a reply waits, or is   it ends as `erased`, which every claim is conditional on; what is not
    unknown since longer   known of an attempt is given up
    a claim comes late     refused, for the same reason
    settle, resume, a      they find a reply that has ended, and do nothing
    person's decision
    a receipt              moves its part's status; it brings back neither words nor ids
    a duplicate            finds its item, and is done with
    processing repeats a   its message was on a queue that was not seen empty; the object and the
    batch that died        items are whole again, and the next run finds them
    another person's       of two who rewrite one object the second is refused, and reads it again
    erasure
"""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

from chalicelib.consent import ConsentList, is_personal
from chalicelib.ledger import DAY, Busy, Ledger, Reply, reply_of
from chalicelib.messages import mask, number_kind
from chalicelib.queues import DEAD_LETTERS, OUTBOUND, PROCESSING, Envelope, EnvelopeError
from chalicelib.settling import LISTED_AFTER
from chalicelib.table import Conflict, Item, Key, Table
from spillway.operate.letters import said_in
from spillway.operate.progress import Tell
from spillway.problem import Problem
from spillway.stage import Stage
from spillway.stores import DeadLetter

# What there is of a person, by where it is.
KINDS = ("texts", "replies", "consent", "archive", "media", "quarantine", "dead_letters")

# Seconds for which nobody touches a reply after it came, or a part of it was begun. Until then a
# claim may be alive, and a lost send of the conversation be told from others by words and ids that
# would be gone; besides, clocks differ.
RECENT = LISTED_AFTER + 60.0
# An object's date is that of its earliest message. Others in it may have come so much later: on a
# queue for 14 days and on its dead-letter queue for another 14, and a day for time zones.
OBJECT_SPAN = 29 * DAY
# How often a queue must be seen empty, and how many seconds lie between two looks: what SQS says of
# it is up to a minute old.
# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_GetQueueAttributes.html
LOOKS = 3
BETWEEN, BETWEEN_LOCALLY = 25.0, 0.5
TOGETHER = 10  # objects read at a time: boto3 keeps as many connections
TRIES = 5  # for what others change at the same time

# What of a text's item says neither who wrote it nor what.
_KEPT = frozenset(
    (
        "pk",
        "sk",
        "id",
        "conversation",
        "provider",
        "received_at",
        "sent_at",
        "keyword",
        "valid",
        "expires_at",
        "erased_at",
    )
)


@dataclass(slots=True)
class Erased:
    """What came of it, counted by kind.

    `left`: what a second search still finds. `mentioned`: messages of others that have the number
    in them; they stay. `unseen`: by queue, how many messages may be on it that nobody could look
    into.
    """

    stage: str
    number: str
    removed: dict[str, int] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    mentioned: dict[str, int] = field(default_factory=dict)
    unseen: dict[str, int] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        return not any(self.left.values()) and not any(self.unseen.values())


@dataclass(slots=True)
class _InTable:
    """A person's items: texts, replies, and consent with number or words. `first`: when their first
    message came, None where there is none."""

    texts: list[Item] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    consent: list[Key] = field(default_factory=list)
    mentioned: int = 0
    first: float | None = None


@dataclass(slots=True)
class _Seen:
    """How many in a store are the person's, how many others mention them, and how many nobody could
    look into."""

    theirs: int = 0
    mentioned: int = 0
    unseen: int = 0


class Erasure:
    """One person's. `wait`: for how many seconds each of its waits may last. `tell` is told what is
    done, of how many (0: not known) and how many of them."""

    def __init__(
        self,
        stage: Stage,
        number: str,
        *,
        wait: float,
        tell: Tell = lambda what, done, total: None,
    ) -> None:
        """Raises Problem where the number cannot be a person's."""
        if number_kind(number) != "e164":
            raise Problem("NUMBER must be a person's number, such as +14155550100.")
        ours = stage.settings("receiver").numbers
        if number in ours:
            raise Problem(f"{mask(number)} is one of our own numbers (NUMBERS).")
        self._stage = stage
        self._stores = stage.stores
        self._runtime = stage.runtime()
        self._number = number
        self._wait = wait
        self._tell = tell
        table = Table(self._runtime, stage.name)
        settings = stage.settings("sender")
        self._table = table
        self._remembered = settings.message_days * DAY
        self._ledger = Ledger(table, self._runtime, keep_days=settings.message_days)
        keys = stage.stores.keys
        self._consent = ConsentList(table, keys, settings.brand)
        self._consent_key = f"#{keys.number(number)}"
        # As providers write it: with a plus, with that encoded, without it. A longer number that
        # has these digits in it is another's.
        self._form = re.compile(rf"(?<![0-9]){number.removeprefix('+')}(?![0-9])")
        self._conversations = {keys.conversation(one, number) for one in ours}

    def run(self) -> Erased:
        """Raises Problem where the number turns out to be one of ours, and what AWS raises."""
        unseen = wait_for_queues(self._stage, self._wait, self._tell)
        found = self._read_table()
        objects = self._objects(found.first)
        removed = {
            "archive": self._archive(objects, erase=True).theirs,
            "media": self._media(erase=True),
            "quarantine": self._quarantine(erase=True).theirs,
            "replies": self._blank_replies(found.replies),
            "texts": sum(map(self._blank_text, found.texts)),
            "consent": sum(map(self._blank_consent, found.consent)),
            "dead_letters": sum(
                self._dead_letters(queue, erase=True).theirs for queue in DEAD_LETTERS.values()
            ),
        }
        erased = self._search(found.first)
        erased.removed = {kind: removed[kind] for kind in KINDS}
        erased.unseen = unseen | erased.unseen
        return erased

    def _search(self, first: float | None) -> Erased:
        """What there is of the person, what mentions them, and how many letters nobody saw."""
        table = self._read_table()
        archive = self._archive(self._objects(first), erase=False)
        media = self._media(erase=False)
        quarantine = self._quarantine(erase=False)
        letters = {queue: self._dead_letters(queue, erase=False) for queue in DEAD_LETTERS.values()}
        return Erased(
            self._stage.name,
            mask(self._number),
            left={
                "texts": len(table.texts),
                "replies": len(table.replies),
                "consent": len(table.consent),
                "archive": archive.theirs,
                "media": media,
                "quarantine": quarantine.theirs,
                "dead_letters": sum(found.theirs for found in letters.values()),
            },
            mentioned={
                "table": table.mentioned,
                "archive": archive.mentioned,
                "dead_letters": sum(found.mentioned for found in letters.values()),
            },
            unseen={queue: found.unseen for queue, found in letters.items()},
        )

    # -- the table ----------------------------------------------------------------------------

    def _read_table(self) -> _InTable:
        found = _InTable()
        about, _ = self._stores.size()
        for number, item in enumerate(self._stores.items(), start=1):
            if number % 100 == 0:
                self._tell("reading the table", number, about)
            self._sort(item, found)
        received = [float(item["received_at"]) for item in found.texts]
        received += [reply.received_at for reply in found.replies]
        found.first = min(received, default=None)
        return found

    def _sort(self, item: Item, found: _InTable) -> None:
        pk, sk = item["pk"], item["sk"]
        if any(self._is_theirs(item.get(name)) for name in ("to", "ours")):
            raise Problem(f"{mask(self._number)} is one of our own numbers: people wrote to it.")
        if sk == "CONSENT":
            if pk.endswith(self._consent_key) and is_personal(item):
                found.consent.append((pk, sk))
            return
        named = any(self._is_theirs(item.get(name)) for name in ("from", "theirs"))
        conversation = pk.partition("#")[2]
        if named:
            self._conversations.add(conversation)
        if not named and not self._form.search(json.dumps(item, default=str)):
            return
        if not named and conversation not in self._conversations:
            found.mentioned += 1
        elif sk.startswith("OUT#"):
            found.replies.append(reply_of(item))
        else:
            found.texts.append(item)

    def _blank_replies(self, replies: Sequence[Reply]) -> int:
        """How many are blanked. What stays recent for too long, or in motion, is left."""
        end = self._runtime.now() + self._wait
        return sum(self._blank_reply(reply, end) for reply in replies)

    def _blank_reply(self, reply: Reply, end: float) -> bool:
        tries = 0
        while tries < TRIES:
            begun = [part.started_at or 0.0 for part in reply.parts or ()]
            recent = max(reply.received_at, *begun, 0.0) + RECENT - self._runtime.now()
            if recent <= 0:
                try:
                    self._ledger.erase(reply)
                except Busy:
                    tries += 1
                else:
                    return True
            elif self._runtime.now() < end:
                self._tell("waiting for a reply that is under way", 0, 0)
                self._runtime.sleep(min(recent, 5.0))
            else:
                return False
            there = self._ledger.find(reply.id)
            if there is None or not there.theirs:
                # Its life ended; or the answer to our own write was lost.
                return there is not None
            reply = there
        return False

    def _blank_text(self, item: Item) -> bool:
        names = sorted(set(item) - _KEPT)
        try:
            self._table.update(
                (item["pk"], item["sk"]),
                f"SET erased_at = :now REMOVE {', '.join(f'#{n}' for n in range(len(names)))}",
                condition="attribute_exists(pk)",
                names={f"#{number}": name for number, name in enumerate(names)},
                values={":now": self._runtime.now()},
            )
        except Conflict:
            return False  # its life ended
        return True

    def _blank_consent(self, key: Key) -> bool:
        self._consent.erase(key)
        return True

    # -- the archive --------------------------------------------------------------------------

    def _objects(self, first: float | None) -> list[str]:
        """The objects that may have a line of the person: since their first message, and those from
        before the table's memory, for which it cannot speak. All, where it knows no message.

        (Objects that old are there where one was rewritten: S3 counts its life from then.)
        """
        if first is None:
            return list(self._stores.objects("messages/"))
        forgotten = _day(self._runtime.now() - self._remembered + DAY)
        oldest = _day(first - OBJECT_SPAN)
        return [
            key
            for key in self._stores.objects("messages/")
            if not forgotten <= key.removeprefix("messages/") < oldest
        ]

    def _archive(self, keys: Sequence[str], *, erase: bool) -> _Seen:
        return self._each("reading the archive", keys, lambda key: self._in_object(key, erase))

    def _in_object(self, key: str, erase: bool) -> _Seen:
        for _ in range(TRIES):
            there = self._stores.object(key)
            if there is None:
                break
            content, etag = there
            lines = content.splitlines(keepends=True)
            kept = [line for line in lines if not self._is_line_of_theirs(line.decode())]
            seen = _Seen(
                theirs=len(lines) - len(kept),
                mentioned=sum(self._is_theirs(line.decode()) for line in kept),
            )
            if not erase or not seen.theirs or self._stores.replace(key, b"".join(kept), etag):
                return seen
        return _Seen()

    def _is_line_of_theirs(self, line: str) -> bool:
        return self._is_theirs(line) and self._is_theirs(json.loads(line).get("from"))

    def _media(self, *, erase: bool) -> int:
        """How many attachments there are of the person's conversations, whose keys begin with
        them: also of what nobody names, since whoever fetched it died."""
        found = 0
        for number, conversation in enumerate(sorted(self._conversations), start=1):
            for key in list(self._stores.objects(f"media/{conversation}-")):
                found += 1
                if erase:
                    self._stores.remove(key)
            self._tell("looking for attachments", number, len(self._conversations))
        return found

    def _quarantine(self, *, erase: bool) -> _Seen:
        keys = list(self._stores.objects("quarantine/"))
        return self._each("reading the quarantine", keys, lambda key: self._in_payload(key, erase))

    def _in_payload(self, key: str, erase: bool) -> _Seen:
        """What could not be read cannot be taken apart either: it goes as a whole."""
        there = self._stores.object(key)
        if there is None or not self._is_in_unreadable(json.loads(there[0])):
            return _Seen()
        if erase:
            self._stores.replace(key, b"", there[1])
        return _Seen(theirs=1)

    def _is_in_unreadable(self, payload: Item) -> bool:
        body = base64.b64decode(str(payload.get("body"))).decode("latin-1")
        return self._is_theirs(body) or self._is_theirs(payload.get("url"))

    def _each(self, what: str, keys: Sequence[str], work: Callable[[str], _Seen]) -> _Seen:
        seen = _Seen()
        for start in range(0, len(keys), TOGETHER):
            some = keys[start : start + TOGETHER]
            for one in self._runtime.together([partial(work, key) for key in some], TOGETHER):
                seen.theirs += one.theirs
                seen.mentioned += one.mentioned
            self._tell(what, start + len(some), len(keys))
        return seen

    # -- dead letters -------------------------------------------------------------------------

    def _dead_letters(self, queue: str, *, erase: bool) -> _Seen:
        end = self._runtime.now() + self._wait
        total = _Seen()
        while True:
            standing = self._stores.depth(queue).total
            theirs, others = self._look_through(queue, erase)
            total.theirs = theirs + (total.theirs if erase else 0)
            total.mentioned = sum(self._is_theirs(letter.body) for letter in others)
            total.unseen = max(0, standing - theirs - len(others))
            if not total.unseen or self._runtime.now() >= end:
                return total
            # Somebody else looks at them just now; or what was deleted is still counted.
            self._tell("waiting for dead letters", 0, 0)
            self._runtime.sleep(BETWEEN if self._stage.local is None else BETWEEN_LOCALLY)

    def _look_through(self, queue: str, erase: bool) -> tuple[int, list[DeadLetter]]:
        """How many letters are about the person, and the others."""
        others, shown, theirs = [], [], 0
        try:
            for letter in self._stores.dead_letters(queue):
                if not self._is_about_them(letter):
                    others.append(letter)
                    continue
                if erase:
                    self._heed(letter)
                    theirs += self._stores.delete(letter)
                else:
                    theirs += 1
                    shown.append(letter)
        finally:
            self._stores.show([*others, *shown])
        return theirs, others

    def _is_about_them(self, letter: DeadLetter) -> bool:
        envelope = _envelope(letter)
        if envelope is None:
            return self._is_theirs(letter.body)
        if envelope.kind in ("inbound", "outgoing"):
            who = "sender" if envelope.kind == "inbound" else "theirs"
            return self._is_theirs(envelope.payload.get(who))
        if envelope.kind == "consent":
            return self._is_theirs(envelope.payload.get("number"))
        if envelope.kind == "unreadable":
            return self._is_in_unreadable(dict(envelope.payload))
        if envelope.kind == "event":
            data = envelope.payload.get("data")
            found = data.values() if isinstance(data, dict) else ()
            return any(map(self._is_theirs, found)) or self._is_in_theirs(envelope)
        return self._is_in_theirs(envelope)

    def _is_in_theirs(self, envelope: Envelope) -> bool:
        return envelope.conversation in self._conversations

    def _heed(self, letter: DeadLetter) -> None:
        """Records what a letter says of the person's consent, without number and words: once it is
        deleted nobody else will."""
        said = said_in(_envelope(letter), self._consent, self._ledger)
        if said is not None:
            # (Whose a reply was that is blanked by now, it does not say.)
            number = said.number or self._number
            self._consent.record(
                number, said.event, said.at, words="", source=said.source, id_=said.id
            )
            self._consent.erase(self._consent.key(number))

    def _is_theirs(self, text: object) -> bool:
        """Whether the number is in it."""
        return isinstance(text, str) and self._form.search(text) is not None


def wait_for_queues(stage: Stage, wait: float, tell: Tell) -> dict[str, int]:
    """Waits until both were seen empty often enough, for `wait` seconds at most; then what stood on
    them is in the stores. For each that was not, how many of its messages nobody could look
    into."""
    runtime = stage.runtime()
    end = runtime.now() + wait
    least = dict.fromkeys((PROCESSING, OUTBOUND), 0)
    empty: Counter[str] = Counter()
    first = True
    while True:
        for queue in least:
            total = stage.stores.depth(queue).total
            empty[queue] += total == 0
            # (Of those that stood there at first, no more can be left than the fewest since.)
            least[queue] = total if first else min(least[queue], total)
        first = False
        waiting = [queue for queue in least if empty[queue] < LOOKS]
        if not waiting or runtime.now() >= end:
            return {queue: max(1, least[queue]) if queue in waiting else 0 for queue in least}
        tell("waiting for the queues", 0, 0)
        runtime.sleep(BETWEEN if stage.local is None else BETWEEN_LOCALLY)


def _envelope(letter: DeadLetter) -> Envelope | None:
    try:
        return Envelope.parse(letter.body)
    except EnvelopeError:
        return None


def _day(at: float) -> str:
    """As the keys of the archive have it."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y/%m/%d")
