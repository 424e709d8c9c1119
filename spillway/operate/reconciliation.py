"""Table, archive and ledger held against each other: each message in both stores once, each saying
the same, each answered or with a reason.

Two passes, and neither holds more than an object or a conversation in memory. The table is read
once; of each text the archived object that it names, its id and a digest of what it says go into a
file that is gone with the process, as do the keys of its pictures, and replies are held against the
texts of their conversation on the way, as DynamoDB returns a conversation in one piece. Then that
file, in the order of the objects, and the archive's listing, which has the same order, are merged;
of pictures the listing is enough. Whatever does not match is only in doubt: the stores have moved
on meanwhile. It is read again by its keys, once the queues were seen empty or enough time has
passed, and judged by that.

Whoever puts right what a death or a lost message left behind changes nothing that a function may
still come back to:

    a line that no item names     taken out, where the item is there and names another object that
                                  has its line, or was erased: no item comes to name it any more
    no item for a line            the item that processing would have made, inserted where none is
    an item that names an object  named anew, if the item still names that object
    without its line
    an item of another copy       made to say what its line says, under the same condition
    stored, and never answered    put on the outbound queue once more: the ledger makes one of two,
                                  and what is too old is recorded so
    begun, and never ended        likewise; a reply that has words goes on with these

A death after any of them leaves the others for the next run, which finds them by itself; two runs
at once do the same things twice.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from hashlib import blake2b
from itertools import groupby, islice
from operator import itemgetter
from typing import TypeVar

from chalicelib.ledger import DAY, Reply, reply_of
from chalicelib.messages import InboundMessage, Media, MessageId, answerable
from chalicelib.processing import item_of
from chalicelib.queues import DEAD_LETTERS, OUTBOUND, PROCESSING, Envelope, EnvelopeError, Queues
from chalicelib.receiving import inbound
from chalicelib.table import Conflict, Item, Table, kept
from spillway.operate.erasure import TOGETHER, TRIES, wait_for_queues
from spillway.operate.progress import Tell
from spillway.stage import Stage

T = TypeVar("T")

# What was put right, and why that was needed.
PUT_RIGHT: Mapping[str, str] = {
    "surplus_line": "archived more than once, or of an erased text: the line that no item names is "
    "taken out",
    "not_in_table": "archived and not in the table: the item is made again from its line",
    "wrong_object": "its item named an object without its line: it names the one that has it",
    "other_copy": "its webhook came twice at the same moment, and its item has the time, the "
    "look-ups and the attachments of one copy, its line those of the other: the item says what the "
    "line says",
    "never_answered": "stored and never begun to be answered: put on the outbound queue",
    "never_ended": "its reply was begun and stood on no queue: put on the outbound queue",
}
# What is open, and what to do about it.
OPEN: Mapping[str, str] = {
    "not_archived": "in the table, and its line is nowhere in the archive. After an erasure that "
    "died: erase that person again. Else somebody deleted or changed the object: the table has all "
    "but the payload as it came; look for who may write to the bucket",
    "altered": "item and line say different things: spillway replay ID makes the item anew from "
    "what the provider sent, if the line is the right one",
    "not_stored": "in the ledger, and in neither table nor archive: spillway backfill asks the "
    "provider for the text",
    "picture_lost": "its item names a picture that is not in the archive: somebody deleted it; "
    "look for who may write there. A replay does not fetch what an item names: who finds it at the "
    "provider, by the address in the item, puts it back under the key there",
    "words_lost": "its reply was begun and stands on no queue, and what it was to answer or to say "
    "is nowhere: who posted it may post it again under another key",
    "dead_lettered": "on a dead-letter queue, or in a conversation with so many letters there that "
    "SQS does not show them all: mend the cause and put it back (docs/OPERATING.md#a-dead-letter)",
    "unreadable": "an object, line or item that is none of ours, by its key or id: somebody else "
    "writes there",
}

# What two copies of a text that are worked on at the same moment may differ in. Both have the same
# object, and the later one's line stays; the item is that of whoever came first.
_OF_A_COPY = ("received_at", "sent_at", "lookups", "media")
_NEVER = 1e11  # unix seconds, and days
# Seconds for which what came is left to whoever works on it, whatever the queues look like.
RECENT = 600.0
# The same while a queue was not seen empty: processing gives up after half a day, a conversation is
# held up for as long at most, and SQS hides a message for as long.
WAITING = DAY

# So many letters of a conversation SQS shows: the next stay locked until these are deleted.
AT_ONCE = 10

_SCHEMA = """
PRAGMA journal_mode = OFF;
PRAGMA cache_size = -8192;
CREATE TABLE stored (object TEXT, id TEXT, digest BLOB);
CREATE TABLE pictures (key TEXT, id TEXT);
CREATE TABLE doubtful (id TEXT, object TEXT);
BEGIN;
"""


@dataclass(slots=True)
class Reconciled:
    """What came of it. `put_right` and `open`: message ids by kind (for `unreadable` also keys of
    objects). `under_way`: messages that may still be worked on, and were not judged. `unseen`: by
    queue, how many messages may stand on it."""

    stage: str
    texts: int = 0
    replies: int = 0
    objects: int = 0
    lines: int = 0
    put_right: dict[str, list[str]] = field(
        default_factory=lambda: {kind: [] for kind in PUT_RIGHT}
    )
    open: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in OPEN})
    under_way: int = 0
    unseen: dict[str, int] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        return not any(self.open.values())


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of the archive about a message, with the object that has it, and what it says."""

    object: str
    raw: bytes
    said: Item


class Reconciliation:
    """One run. `since`: of what was received since then (unix seconds). `wait`: for how many
    seconds at most it waits for the queues. `tell` is told how far it is."""

    def __init__(
        self,
        stage: Stage,
        *,
        since: float = 0.0,
        wait: float,
        tell: Tell = lambda what, done, total: None,
    ) -> None:
        self._stage = stage
        self._stores = stage.stores
        self._runtime = stage.runtime()
        self._since = since
        self._wait = wait
        self._tell = tell
        self._keep_days = stage.settings("processing").message_days
        self._table = Table(self._runtime, stage.name)
        self._queues = Queues(self._runtime, stage.name)
        self._found = Reconciled(stage.name)
        self._db = sqlite3.connect("", isolation_level=None)
        self._letters: dict[str, set[str]] = {}
        # Conversations of which the outbound queue may have more letters than SQS shows.
        self._unshown: set[str] = set()
        self._at_hand: dict[str, list[_Line]] = {}
        # Lines to be taken out, by object and id; with the one that stays there, if one does.
        self._surplus: dict[str, dict[str, bytes | None]] = {}

    def run(self) -> Reconciled:
        """Raises Problem where the stage is not to be reached, and what AWS raises."""
        self._started = self._runtime.now()
        self._db.executescript(_SCHEMA)
        try:
            self._read_table()
            self._read_pictures()
            self._read_archive(self._started)
            if self._db.execute("SELECT count(*) FROM doubtful").fetchone()[0]:
                self._found.unseen = wait_for_queues(self._stage, self._wait, self._tell)
                self._letters = {queue: self._ids_on(queue) for queue in DEAD_LETTERS}
                self._judge_all()
                for object_, lines in self._surplus.items():
                    self._take_out(object_, lines)
        finally:
            self._db.close()
        return self._found

    # -- what does not match ------------------------------------------------------------------

    def _read_table(self) -> None:
        about, _ = self._stores.size()
        number = 0
        for conversation, items in groupby(self._stores.items(), key=itemgetter("pk")):
            texts: dict[str, bool] = {}
            replies: dict[str, bool] = {}
            for item in items:
                number += 1
                if number % 1000 == 0:
                    self._tell("reading the table", number, about)
                if not self._is_since(item):
                    continue
                kind, _, message = item["sk"].partition("#")
                id_ = f"{conversation.partition('#')[2]}-{message}"
                if kind == "IN":
                    self._found.texts += 1
                    texts[id_] = self._note(id_, item)
                elif kind == "OUT":
                    self._found.replies += 1
                    reply = _reply(item)
                    if reply is None or not _has_ended(reply):
                        self._doubt(id_)
                    elif reply.kind == "inbound":
                        replies[id_] = True
            for id_ in replies.keys() - texts.keys():
                self._doubt(id_)
            for id_ in (one for one, wanted in texts.items() if wanted and one not in replies):
                self._doubt(id_)
        self._tell("reading the table", number, number)

    def _note(self, id_: str, item: Item) -> bool:
        """Notes what a text's item says, for when its object is read; whether a reply is due."""
        if "erased_at" in item:
            return False
        self._db.execute(
            "INSERT INTO stored VALUES (?, ?, ?)",
            (str(item.get("archive_key", "")), id_, _digest(_said_by(item))),
        )
        self._db.executemany(
            "INSERT INTO pictures VALUES (?, ?)", [(key, id_) for key in _pictures_of(item)]
        )
        message = _message(item)
        return message is not None and answerable(message)

    def _read_pictures(self) -> None:
        """(Each was written before the item that names it.)"""
        listed = self._stores.objects("media/")
        there: str | None = ""
        noted = self._db.execute("SELECT key, id FROM pictures ORDER BY key")
        for number, (key, id_) in enumerate(noted, start=1):
            while there is not None and there < key:
                there = next(listed, None)
            if there != key:
                self._doubt(id_)
            if number % 1000 == 0:
                self._tell("reading the list of pictures", number, 0)

    def _read_archive(self, until: float) -> None:
        """Objects that were written after the beginning are left to the next run: of a batch that
        is stored just now the table has not all items yet. (A day's grace: clocks differ.)"""
        noted = groupby(
            self._db.execute("SELECT object, id, digest FROM stored ORDER BY object"),
            key=itemgetter(0),
        )
        ahead = next(noted, None)
        keys = self._stores.objects("messages/", self._since - DAY, until - RECENT)
        for some in _some(keys):
            for key, (lines, whole) in zip(some, self._read_all(some), strict=True):
                if not whole:
                    self._open("unreadable", key)
                while ahead is not None and ahead[0] < key:
                    self._doubt_all(ahead[1])
                    ahead = next(noted, None)
                here: Mapping[str, bytes] = {}
                if ahead is not None and ahead[0] == key:
                    here = {id_: digest for _, id_, digest in ahead[1]}
                    ahead = next(noted, None)
                self._compare(key, lines, dict(here))
            self._found.objects += len(some)
            self._tell("reading the archive", self._found.objects, 0)
        while ahead is not None:
            self._doubt_all(ahead[1])
            ahead = next(noted, None)

    def _compare(self, key: str, lines: Sequence[_Line], here: dict[str, bytes]) -> None:
        for line in lines:
            id_ = line.said["id"]
            if id_ in here or self._is_since(line.said):
                self._found.lines += 1
                if here.pop(id_, None) != _digest(_said_on(line.said)):
                    self._doubt(id_, key)
        for id_ in here:
            self._doubt(id_, key)

    def _read(self, key: str) -> tuple[list[_Line], bool]:
        """The lines of an object, none of one that is gone; and whether all of it could be
        read."""
        try:
            found = self._stores.object(key)
            content = found[0].splitlines(keepends=True) if found else []
        except (OSError, EOFError, zlib.error):
            return [], False
        lines = [_Line(key, raw, said) for raw in content if (said := _said_in(raw)) is not None]
        return lines, len(lines) == len(content)

    def _read_all(self, keys: Sequence[str]) -> Sequence[tuple[list[_Line], bool]]:
        return self._runtime.together([partial(self._read, key) for key in keys], TOGETHER)

    def _is_since(self, said: Item) -> bool:
        at = said.get("received_at")
        return not isinstance(at, int | float) or at >= self._since

    def _doubt(self, id_: str, object_: str = "") -> None:
        self._db.execute("INSERT INTO doubtful VALUES (?, ?)", (id_, object_))

    def _doubt_all(self, noted: Iterator[tuple[str, str, bytes]]) -> None:
        for _, id_, _ in noted:
            self._doubt(id_)

    # -- what is wrong with it ----------------------------------------------------------------

    def _judge_all(self) -> None:
        doubtful = self._db.execute(
            "SELECT id, group_concat(DISTINCT object) FROM doubtful GROUP BY id"
            " ORDER BY max(object)"
        )
        judged = 0
        for some in _some(doubtful):
            ids = [MessageId.parse(id_) for id_, _ in some]
            found = self._runtime.together(
                [partial(self._stores.message, id_) for id_ in ids if id_], TOGETHER
            )
            read = iter(found)
            for (text, objects), id_ in zip(some, ids, strict=True):
                if id_ is None:
                    self._open("unreadable", text)
                else:
                    item, reply = next(read)
                    self._judge(id_, item, reply, set(filter(None, objects.split(","))))
            judged += len(some)
            self._tell("looking again at what is in doubt", judged, 0)

    def _judge(
        self, id_: MessageId, item: Item | None, replied: Item | None, objects: set[str]
    ) -> None:
        reply = None if replied is None else _reply(replied)
        if replied is not None and reply is None:
            self._open("unreadable", str(id_))
            return
        if item is not None and isinstance(item.get("archive_key"), str):
            objects.add(item["archive_key"])
        lines = [
            line
            for key in sorted(objects)
            for line in self._lines(key)
            if line.said["id"] == str(id_)
        ]
        if item is None:
            item = self._judge_missing(id_, replied, reply, lines)
        elif "erased_at" in item:
            self._take_out_later(id_, lines)
        else:
            self._judge_stored(id_, item, lines)
            self._judge_pictures(id_, item)
        self._judge_reply(id_, item, reply, replied or item or {})

    def _lines(self, key: str) -> list[_Line]:
        """The lines of an object, which the next message in doubt often wants, too."""
        if key not in self._at_hand:
            if len(self._at_hand) >= TOGETHER:
                self._at_hand.clear()
            self._at_hand[key], _ = self._read(key)
        return self._at_hand[key]

    def _judge_missing(
        self, id_: MessageId, replied: Item | None, reply: Reply | None, lines: Sequence[_Line]
    ) -> Item | None:
        """Of a text without an item; the item, if it is there now."""
        if replied is not None and "erased_at" in replied:
            self._take_out_later(id_, lines)
            return None
        if not lines and (reply is None or reply.kind != "inbound"):
            return None
        item = item_of(lines[0].said, lines[0].object, self._keep_days) if lines else {}
        at = _time(item) if lines or reply is None else reply.received_at
        if not self._is_to_judge(PROCESSING, id_, at, item or replied or {}):
            return None
        if not lines:
            if str(id_) in self._archived_lately:
                self._found.under_way += 1
            else:
                self._open("not_stored", str(id_))
            return None
        there = self._table.insert(item)
        if there is not None:
            return there  # processing was here meanwhile
        self._put_right("not_in_table", str(id_))
        self._take_out_later(id_, lines[1:])
        return item

    @cached_property
    def _archived_lately(self) -> set[str]:
        """The messages in the objects that `_read_archive` left to the next run."""
        keys = self._stores.objects("messages/", self._started - RECENT)
        read = (lines for some in _some(keys) for lines, _ in self._read_all(some))
        return {line.said["id"] for lines in read for line in lines}

    def _judge_stored(self, id_: MessageId, item: Item, lines: Sequence[_Line]) -> None:
        said = _digest(_said_by(item))
        there = [line for line in lines if line.object == item.get("archive_key")]
        if not there and lines:
            best = next((line for line in lines if _digest(_said_on(line.said)) == said), lines[0])
            if not self._change(item, {"archive_key": best.object}):
                return  # it has moved on meanwhile
            self._put_right("wrong_object", str(id_))
            there = [line for line in lines if line.object == best.object]
        if not there:
            if not self._is_archive_past(item):
                self._open("not_archived", str(id_))
            return
        stays = next((line for line in there if _digest(_said_on(line.said)) == said), None)
        if stays is None:
            same = _without_copy(_said_by(item))
            stays = next((one for one in there if _without_copy(_said_on(one.said)) == same), None)
            if stays is None:
                self._open("altered", str(id_))
                return
            anew = {name: stays.said.get(name) for name in _OF_A_COPY}
            if not self._change(item | {"archive_key": stays.object}, anew):
                return
            self._put_right("other_copy", str(id_))
        self._take_out_later(id_, lines, stays)

    def _judge_pictures(self, id_: MessageId, item: Item) -> None:
        if self._is_archive_past(item):
            return
        for key in _pictures_of(item):
            if key not in self._stores.objects(key):
                self._open("picture_lost", str(id_))

    def _judge_reply(
        self, id_: MessageId, item: Item | None, reply: Reply | None, kept_until: Item
    ) -> None:
        text = None if item is None else _message(item)
        if reply is None:
            if text is None or not answerable(text):
                return
            kind, at = "never_answered", text.received_at
        elif _has_ended(reply):
            return
        else:
            kind, at = "never_ended", _last_touched(reply)
        if not self._is_to_judge(OUTBOUND, id_, at, kept_until):
            return
        if reply is not None and reply.parts is not None:
            envelope = Envelope("resume", id_.conversation, str(id_), reply.received_at, {})
        elif text is not None:
            # (What was taken up from the provider's list was asked long before it came.)
            asked = replace(text, received_at=text.said_at(text.received_at))
            envelope = inbound(asked, id_, self._callback_url(text.provider), raw=False)
        elif str(id_) in self._letters[PROCESSING]:
            self._open("dead_lettered", str(id_))  # with the text
            return
        else:
            self._open("words_lost", str(id_))
            return
        self._queues.send(OUTBOUND, [(envelope, self._runtime.new_id())])
        self._put_right(kind, str(id_))

    def _is_to_judge(self, queue: str, id_: MessageId, at: float, item: Item) -> bool:
        """Whether a message, last touched then, will lack for good what this queue's function does
        with it. What is about to be forgotten (by this item) is not made up for."""
        now = self._runtime.now()
        if min(at + self._keep_days * DAY, item.get("expires_at", _NEVER)) - DAY <= now:
            return False
        unshown = queue == OUTBOUND and id_.conversation in self._unshown
        if str(id_) in self._letters[queue] or unshown:
            self._open("dead_lettered", str(id_))
            return False
        if now - at < (WAITING if self._found.unseen[queue] else RECENT):
            self._found.under_way += 1
            return False
        return True

    def _is_archive_past(self, item: Item) -> bool:
        """Whether the archive need not have a text any more."""
        end = min(_time(item) + self._archive_days * DAY, item.get("expires_at", _NEVER))
        return bool(end <= self._runtime.now())

    @cached_property
    def _archive_days(self) -> float:
        """For how many days the bucket keeps an object, as it is told.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetBucketLifecycleConfiguration.html
        """
        from botocore.exceptions import ClientError

        s3 = self._stage.aws.client("s3")
        try:
            rules = s3.get_bucket_lifecycle_configuration(Bucket=self._stores.bucket)["Rules"]
        except ClientError as error:
            if error.response["Error"]["Code"] != "NoSuchLifecycleConfiguration":
                raise
            rules = []
        expirations = [rule.get("Expiration", {}) for rule in rules if rule["Status"] == "Enabled"]
        return min((float(one["Days"]) for one in expirations if "Days" in one), default=_NEVER)

    def _ids_on(self, queue: str) -> set[str]:
        """The messages that a redrive of this queue's dead letters brings back. (One that only
        tells of a text, as an event does, brings back no text.)"""
        looked_at, ids = [], set()
        for letter in self._stores.dead_letters(DEAD_LETTERS[queue]):
            looked_at.append(replace(letter, body=""))
            with suppress(EnvelopeError):
                envelope = Envelope.parse(letter.body)
                if queue == OUTBOUND or envelope.kind == "inbound":
                    ids.add(envelope.id)
        self._stores.show(looked_at)
        groups = Counter(letter.group for letter in looked_at if letter.group)
        self._unshown.update(group for group, number in groups.items() if number >= AT_ONCE)
        return ids

    # -- putting right ------------------------------------------------------------------------

    def _change(self, item: Item, values: Item) -> bool:
        """Sets these of an item (None: takes it out), if it still names the object that it was
        read with."""
        named = item.get("archive_key")
        there = "archive_key = :named" if named is not None else "attribute_not_exists(archive_key)"
        removed = [name for name, value in values.items() if value is None]
        update = "SET " + ", ".join(f"{name} = :{name}" for name in values if name not in removed)
        try:
            self._table.update(
                (item["pk"], item["sk"]),
                f"{update} REMOVE {', '.join(removed)}" if removed else update,
                condition=f"attribute_exists(pk) AND attribute_not_exists(erased_at) AND {there}",
                values={f":{name}": value for name, value in values.items()} | {":named": named},
            )
        except Conflict:
            return False
        return True

    def _take_out_later(
        self, id_: MessageId, lines: Sequence[_Line], stays: _Line | None = None
    ) -> None:
        for line in lines:
            if line is not stays:
                stays_there = stays.raw if stays and stays.object == line.object else None
                self._surplus.setdefault(line.object, {})[str(id_)] = stays_there

    def _take_out(self, key: str, surplus: Mapping[str, bytes | None]) -> None:
        """Writes an object again without these lines; of those alike, the first stays."""
        for _ in range(TRIES):
            found = self._stores.object(key)
            if found is None:
                return
            stay = dict(surplus)
            left = []
            for raw in found[0].splitlines(keepends=True):
                said = _said_in(raw)
                if said is not None and said["id"] in stay:
                    if raw != stay[said["id"]]:
                        continue
                    stay[said["id"]] = None
                left.append(raw)
            if self._stores.replace(key, b"".join(left), found[1]):
                for id_ in surplus:
                    self._put_right("surplus_line", id_)
                return

    def _callback_url(self, provider: str) -> str:
        return f"{self._public_url}/webhooks/{provider}/signed"

    @cached_property
    def _public_url(self) -> str:
        return self._stage.api().public

    def _put_right(self, kind: str, id_: str) -> None:
        self._found.put_right[kind].append(id_)

    def _open(self, kind: str, what: str) -> None:
        # (Of one message its two functions may say the same.)
        if self._found.open[kind][-1:] != [what]:
            self._found.open[kind].append(what)


def _some(values: Iterable[T]) -> Iterator[list[T]]:
    """As many at a time as are worked on at a time."""
    left = iter(values)
    while some := list(islice(left, TOGETHER)):
        yield some


def _said_in(raw: bytes) -> Item | None:
    """What a line says; None where it is no message's."""
    try:
        said = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict) or not isinstance(said.get("received_at"), int | float):
        return None
    return said if MessageId.parse(str(said.get("id"))) else None


def _said_by(item: Item) -> Item:
    """What of an item a line of the archive says, too."""
    own = ("pk", "sk", "archive_key", "expires_at")
    return {name: value for name, value in item.items() if name not in own}


def _said_on(line: Item) -> Item:
    """What of a line its item says, too: all but the payload as it came."""
    return kept({name: value for name, value in line.items() if name != "raw"})


def _pictures_of(item: Item) -> list[str]:
    """The keys that a text's item names."""
    media = item.get("media")
    some = media if isinstance(media, list) else []
    named = [one.get("key") for one in some if isinstance(one, dict)]
    return [key for key in named if isinstance(key, str)]


def _without_copy(said: Item) -> Item:
    return {name: value for name, value in said.items() if name not in _OF_A_COPY}


def _digest(said: Item) -> bytes:
    return blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=16).digest()


def _message(item: Item) -> InboundMessage | None:
    """The text that an item or a line tells of; None of one that was erased or that somebody broke.

    What the provider said of consent is in `keyword`, with what we read in the text ourselves.
    """
    try:
        return InboundMessage(
            provider=item["provider"],
            account=item["account"],
            id=item["provider_id"],
            sender=item["from"],
            recipient=item["to"],
            text=item["text"],
            received_at=float(item["received_at"]),
            media=tuple(Media(one["url"], one["content_type"]) for one in item["media"]),
            segments=item["segments"],
            sent_at=item.get("sent_at"),
            consent_hint=item.get("keyword"),
            group=item["group"],
        )
    except (KeyError, TypeError, ValueError):
        return None


def _reply(item: Item) -> Reply | None:
    """The reply that an item is; None of one that somebody broke."""
    try:
        return reply_of(item)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _has_ended(reply: Reply) -> bool:
    """Whether nobody is to work on it any more; one with an unknown part is settled by looks, or
    listed for a person."""
    if reply.outcome or reply.parts is None:
        return bool(reply.outcome)
    return reply.current is None or reply.current.state in ("unknown", "failed")


def _last_touched(reply: Reply) -> float:
    parts = reply.parts or ()
    times = [reply.redriven_at, reply.unknown_since]
    times += [at for part in parts for at in (part.started_at, part.lease_until)]
    return max(reply.received_at, *(at or 0.0 for at in times))


def _time(item: Item) -> float:
    """When it was received; 0 where somebody broke it."""
    at = item.get("received_at")
    return float(at) if isinstance(at, int | float) else 0.0
