"""The processing function: what is known about a message is found out and kept.

A batch goes through these steps, and a death after any of them repeats them without harm:

    read the table     what is stored already is done
    each message       STOP is recorded (START, too, where it is replayed), the text analysed,
                       external sources asked, attachments fetched and archived, all validated
    archive            one object for all of them; the same batch again is the same object
    store              one conditional item each, naming its object
    announce           what was stored, now or before, where the business's own systems are to hear
    publish            what was announced, by us or by the sender
    settle             sends of unknown outcome, last: providers are asked, which takes its time

Between archive and table a death leaves lines that no item names; nothing is lost by it.

A `replay` goes the same way for a text that is stored already: it gets a new line, and its item
says then what that says and names its object, if it still names the one that was read. The line of
before is one that no item names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import phonenumbers

from chalicelib import attachments, receipts, statements, text
from chalicelib.archive import Archive
from chalicelib.attachments import Attachments
from chalicelib.batches import Batch, Defer, GiveUp, LambdaContext, Record
from chalicelib.config import Settings, load
from chalicelib.consent import ConsentList, event_in
from chalicelib.events import PUBLISHING, Events, Publisher
from chalicelib.ledger import DAY, Busy, Ledger
from chalicelib.lookups import LookUps
from chalicelib.messages import ConsentEvent, InboundMessage, MessageId, number_kind
from chalicelib.observing import count, log
from chalicelib.queues import DEAD_LETTERS, OUTBOUND, PROCESSING, Envelope, Kind, Queues
from chalicelib.runtime import Runtime
from chalicelib.settling import Settling, resume
from chalicelib.table import Conflict, Item, Key, Table
from chalicelib.vault import Vault
from chalicelib.yours.lookups import LOOKUPS

Line = dict[str, Any]

# What has to wait for whatever reason is dead-lettered after this, well before the queue would drop
# it (14 days). Look-ups may have a shorter time of their own (LOOKUP_MAX_AGE).
GIVE_UP_AFTER = DAY / 2
# Seconds kept for archive and table, after the look-ups.
STORING = 20.0
# Seconds that one write may take, its repetitions included.
WRITING = 9.0
# Seconds that a look for an unknown send may take: a provider at its slowest, and the table. (Where
# a provider has three slow pages it may take longer; a death then only means another look.)
LOOKING = 30.0


class Processing:
    """Handles the batches of the processing queue."""

    def __init__(self, runtime: Runtime, settings: Settings) -> None:
        vault = Vault(runtime, settings.stage)
        keys = vault.keys()
        self._runtime = runtime
        self._settings = settings
        self._queues = Queues(runtime, settings.stage)
        self._queues.url(DEAD_LETTERS[PROCESSING])
        self._queues.url(OUTBOUND)
        self._table = Table(runtime, settings.stage)
        self._ledger = Ledger(self._table, runtime, keep_days=settings.message_days)
        self._events = Events(runtime, self._queues, settings)
        announce = self._events.consented if self._events.on else None
        self._consent = ConsentList(self._table, keys, settings.brand, announce)
        self._settling = Settling(
            runtime,
            settings,
            queues=self._queues,
            table=self._table,
            ledger=self._ledger,
            consent=self._consent,
            vault=vault,
            events=self._events,
        )
        self._publisher = Publisher(runtime, settings, vault)
        self._lookups = LookUps(runtime, LOOKUPS, settings.lookup_urls)
        self._archive = Archive(runtime, keys, stage=settings.stage, account=self._queues.account())
        self._attachments = Attachments(runtime, settings, vault=vault, archive=self._archive)

    def handle(self, event: Mapping[str, Any], context: LambdaContext) -> dict[str, Any] | None:
        """Lambda's SQS event in, the report of what is not done out."""
        batch = Batch(
            self._runtime,
            self._queues,
            self._table,
            PROCESSING,
            event,
            context,
            reporting=self._settings.report_batch_item_failures,
            give_up_after=GIVE_UP_AFTER,
            # These end by themselves, with what they are about listed.
            but_never=["settle"],
        )
        unknown = _of_kind(batch, "settle")
        announced = _of_kind(batch, "event")
        first = [one for one in batch.records if one not in unknown and one not in announced]
        texts = {
            record: _key(record.envelope.id)
            for record in batch.records
            if record.envelope is not None and _is_message(record.envelope)
        }
        stored = batch.all_or_none(lambda: self._table.get_many(list(texts.values())), list(texts))
        done = {
            record: (stored or {}).get(key)
            for record, key in texts.items()
            if stored is not None and record.envelope and _is_done(record.envelope, stored.get(key))
        }
        todo = [record for record in first if record not in done]
        asking = [self._lookups.longest, *(attachments.LONGEST for one in todo if _has_media(one))]
        results = batch.each(
            lambda envelope, record: self._work(
                envelope, record, stored.get(texts[record]) if stored and record in texts else None
            ),
            todo,
            needs=max(asking) + STORING,
        )
        for lines in _by_object(results):
            key = batch.all_or_none(partial(self._store_in_archive, lines), list(lines))
            if key is not None:
                kept = batch.each(partial(self._store, lines, key), list(lines), needs=WRITING)
                done |= {record: lines[record] for record in kept}
        if self._events.on:
            self._announce(batch, done)
        batch.each(
            lambda envelope, _: self._publisher.publish(envelope), announced, needs=PUBLISHING
        )
        batch.each(lambda envelope, _: self._settling.settle(envelope), unknown, needs=LOOKING)
        return batch.finish()

    def _announce(self, batch: Batch, done: Mapping[Record, Mapping[str, Any] | None]) -> None:
        """What was stored is news; what was stored before, too: whoever stored it may have died
        before this. Of what was erased nobody is told, and a replay is no news."""
        news = {
            record: line
            for record, line in done.items()
            if line and "from" in line and record.envelope and record.envelope.kind == "inbound"
        }
        if news:
            batch.all_or_none(lambda: self._events.received(news.values()), list(news))

    def _work(self, envelope: Envelope, record: Record, item: Item | None) -> Line | None:
        """One message as a line for the archive; None where there is nothing to keep."""
        if envelope.kind == "receipt":
            try:
                waiting = receipts.record(
                    self._ledger, self._consent, self._events, envelope.receipt()
                )
            except Busy:
                raise Defer("receipt_overtaken") from None
            if waiting is not None:
                # A death before this: the receipt comes again, says nothing new, and gets here.
                resume(self._runtime, self._queues, waiting)
            return None
        if envelope.kind == "consent":
            self._hear(envelope)
            return None
        if envelope.kind == "unreadable":
            self._archive.quarantine(envelope.payload, envelope.received_at)
            count("Quarantined", provider=str(envelope.payload["provider"]))
            log("ERROR", "quarantined", provider=str(envelope.payload["provider"]))
            return None
        if not _is_message(envelope):
            raise GiveUp("unexpected_kind")
        return self._examine(envelope, record, item)

    def _hear(self, envelope: Envelope) -> None:
        """Records what somebody said by another way than a text. Nobody confirms it: a text about
        it would be the first after their STOP."""
        try:
            said = statements.read(dict(envelope.payload), envelope.received_at)
        except statements.BadStatement:
            raise GiveUp("unreadable_statement") from None
        effective = self._consent.record_statement(said)
        count("ConsentEvents", reason=said.event, id=envelope.id)
        log(
            "INFO",
            f"consent_{said.event}",
            id=envelope.id,
            reason="effective" if effective else "",
        )

    def _examine(self, envelope: Envelope, record: Record, item: Item | None) -> Line:
        message = envelope.inbound()
        body = text.normalise(message.text)
        event = message.consent_hint or event_in(body)
        if event == "stop" or (event == "start" and envelope.kind == "replay"):
            self._record_consent(event, message, body, envelope)
        reasons = reasons_against(message, body)
        lookups: dict[str, Any] = {}
        media = [{"url": m.url, "content_type": m.content_type} for m in message.media]
        if not reasons and media:
            # Side by side: a source that is down must not outlive a picture's link.
            found = self._runtime.together(
                [
                    partial(self._keep, envelope, record, message, item),
                    partial(self._look_up, envelope, record, message, body),
                ]
            )
            media, lookups = found
        elif not reasons:
            lookups = self._look_up(envelope, record, message, body)
        return {
            "id": envelope.id,
            "conversation": envelope.conversation,
            "provider": message.provider,
            "account": message.account,
            "provider_id": message.id,
            "from": message.sender,
            "to": message.recipient,
            "text": body,
            "media": media,
            "group": message.group,
            "sent_at": message.sent_at,
            "received_at": envelope.received_at,
            "encoding": text.encoding(body),
            "segments": message.segments or text.segments(body),
            "keyword": event,
            "valid": not reasons,
            "reasons": reasons,
            "lookups": lookups,
            "raw": message.raw,
        }

    def _record_consent(
        self, event: ConsentEvent, message: InboundMessage, body: str, envelope: Envelope
    ) -> None:
        """A STOP here too, and before the look-ups: a conversation that is held up on its way to an
        answer must not hold it up. A START where it is replayed, and comes to nobody else. (A YES
        of then is none: whether they knew themselves opted out nobody can say any more.)"""
        id_ = MessageId.parse(envelope.id)
        reply = self._ledger.find(id_) if id_ else None
        if event == "start" and reply is None:
            # The sender has it still before it, and knows which copy came first: this may be a
            # duplicate, stored before the first, and later than a STOP.
            return
        # This may be a duplicate that came hours later, and a START after the first must win.
        times = [envelope.received_at] + ([reply.received_at] if reply else [])
        self._consent.record(
            message.sender,
            event,
            message.said_at(min(times)),
            words=body,
            source=message.provider,
            id_=envelope.id,
        )

    def _look_up(
        self, envelope: Envelope, record: Record, message: InboundMessage, body: str
    ) -> Any:
        # A name, such as BANK, is nobody's number: a source that refuses it would hold the text up
        # for hours, and then have it dead-lettered.
        if number_kind(message.sender) == "alphanumeric":
            return {}
        try:
            return self._lookups.ask(envelope.id, message, body)
        except Defer as defer:
            if self._runtime.now() - record.sent_at <= self._settings.lookup_max_age:
                raise
            raise GiveUp(f"too_old: {defer.reason}") from None

    def _keep(
        self, envelope: Envelope, record: Record, message: InboundMessage, item: Item | None
    ) -> Any:
        id_ = MessageId.parse(envelope.id)
        assert id_ is not None
        kept = (item or {}).get("media") or ()
        known = {str(one["url"]): dict(one) for one in kept if "key" in one}
        return self._attachments.keep(id_, message, record.sent_at, known)

    def _store_in_archive(self, lines: Mapping[Record, Line]) -> str:
        # The same message may be in a batch twice; it is one line.
        return self._archive.store({line["id"]: line for line in lines.values()})

    def _store(
        self, lines: Mapping[Record, Line], archive_key: str, envelope: Envelope, record: Record
    ) -> None:
        line = lines[record]
        item = item_of(line, archive_key, self._settings.message_days)
        provider = str(line["provider"])
        if envelope.kind == "replay":
            done = self._store_again(item, str(envelope.payload["archived_in"]))
            log("INFO", "replayed", id=envelope.id, reason="" if done else "overtaken")
            return
        self._table.insert(item)
        reason = "" if line["valid"] else "invalid"
        count("Stored", provider=provider, reason=reason, id=envelope.id)
        log("INFO", "stored", id=envelope.id, provider=provider)

    def _store_again(self, item: Item, archived_in: str) -> bool:
        """Replaces what an item says, its life excepted; whether it was still as it was read."""
        kept = ("pk", "sk", "expires_at")
        said = {name: value for name, value in item.items() if name not in kept}
        names = {f"#{name}": name for name in said}
        sets = [name for name, value in said.items() if value is not None]
        removes = [name for name, value in said.items() if value is None]
        update = "SET " + ", ".join(f"#{name} = :{name}" for name in sets)
        if removes:
            update += " REMOVE " + ", ".join(f"#{name}" for name in removes)
        try:
            self._table.update(
                (item["pk"], item["sk"]),
                update,
                condition="#archive_key = :archived_in",
                names=names,
                values={":archived_in": archived_in} | {f":{name}": said[name] for name in sets},
            )
        except Conflict:
            return False
        return True


def item_of(line: Mapping[str, Any], archive_key: str, keep_days: int) -> Item:
    """A line of the archive as an item of the table, which names the object that has it."""
    pk, sk = _key(str(line["id"]))
    # `raw` has the whole of a text that was too large; DynamoDB takes 400 KB an item.
    item: Item = {name: value for name, value in line.items() if name != "raw"}
    return item | {
        "pk": pk,
        "sk": sk,
        "archive_key": archive_key,
        "expires_at": int(line["received_at"] + keep_days * DAY),
    }


def reasons_against(message: InboundMessage, body: str) -> list[str]:
    """Why a message is not valid, in words of ours; empty where it is.

    Numbers are judged by possibility and length, not by today's number plan.
    """
    reasons = []
    for role, number in (("sender", message.sender), ("recipient", message.recipient)):
        kind = number_kind(number)
        if not number:
            reasons.append(f"no_{role}")
        elif kind is None or (kind == "e164" and not _possible(number)):
            reasons.append(f"{role}_not_a_number")
    if not body.strip() and not message.media:
        reasons.append("empty")
    if len(message.text) > text.LONGEST:
        reasons.append("text_too_large")
    return reasons


def _possible(number: str) -> bool:
    try:
        return phonenumbers.is_possible_number(phonenumbers.parse(number))
    except phonenumbers.NumberParseException:
        return False


def _of_kind(batch: Batch, kind: Kind) -> list[Record]:
    """(In the order of the batch, on which nothing hangs but that a simulated story is the same
    each time.)"""
    return [
        record
        for record in batch.records
        if record.envelope is not None and record.envelope.kind == kind
    ]


def _has_media(record: Record) -> bool:
    return record.envelope is not None and bool(record.envelope.payload.get("media"))


def _is_message(envelope: Envelope) -> bool:
    return envelope.kind in ("inbound", "replay") and MessageId.parse(envelope.id) is not None


def _is_done(envelope: Envelope, item: Item | None) -> bool:
    """Whether a text is stored; a replay, whether it is not any more as it was read."""
    if envelope.kind == "replay":
        named = None if item is None else item.get("archive_key")
        return named is None or named != envelope.payload.get("archived_in")
    return item is not None


def _by_object(results: Mapping[Record, Line | None]) -> list[dict[Record, Line]]:
    """The lines as they share an object. What is replayed stands by itself, a day in an object:
    an object's date is that of its earliest line, and says to an erasure how far back it goes."""
    groups: dict[float | None, dict[Record, Line]] = {}
    for record, line in results.items():
        if line is not None:
            replayed = record.envelope is not None and record.envelope.kind == "replay"
            day = line["received_at"] // DAY if replayed else None
            groups.setdefault(day, {})[record] = line
    return list(groups.values())


def _key(id_: str) -> Key:
    conversation, _, message = id_.partition("-")
    return f"C#{conversation}", f"IN#{message}"


def start() -> Processing:
    """Everything that can be made before the first batch: clients, queue URLs, secrets."""
    settings = load(os.environ)
    runtime = Runtime()
    runtime.warm("sqs", "dynamodb", "s3", "http")
    log("INFO", "started", code=runtime.boto3)
    return Processing(runtime, settings)
