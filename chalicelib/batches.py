"""A batch of a queue: who is worked on when, and what becomes of each message of it.

Conversations side by side, the messages of one in order. Every message ends in exactly one way:

    done          deleted
    deferred      received again later; not counted against it
    unexpected    received again soon; counted, and after five of these dead-lettered
    dead-lettered a copy with its history is on the dead-letter queue, and it is deleted
    handed back   not started for want of time; received again at once, nothing written

A deferral hides a message and all its successors of the conversation in the batch for the same
time: a FIFO group stays locked while any message of it is in flight, so order is kept and none of
them comes back before the first does.
https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-errorhandling.html
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any, Protocol, TypeVar

from chalicelib.consent import event_in
from chalicelib.observing import count, log
from chalicelib.queues import Envelope, EnvelopeError, Kind, Queues
from chalicelib.runtime import Runtime, is_transient
from chalicelib.table import Table
from chalicelib.text import normalise

T = TypeVar("T")

MOST_STARTS = 5  # that never ended; then the message is dead-lettered
SUSPECT_STARTS = 3  # then it is worked on alone, after all others
LONGEST = 11 * 3600  # SQS hides a message for at most 12 hours after the receive
FIRST_BACKOFF = 1.0
# Seconds. SQS's own 1000 receives then last 17 hours: longer than any age at which we give up.
LONGEST_BACKOFF = 120.0
TAKING_BACK = 10.0  # seconds that this write may take
START_KEPT = 15 * 86_400  # seconds; the queues keep 14 days


class LambdaContext(Protocol):
    """What of Lambda's context is used here."""

    def get_remaining_time_in_millis(self) -> int: ...


class Defer(Exception):
    """This message later: in `after` seconds, or by backoff. `reason` is a word of ours."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after = after


class GiveUp(Exception):
    """This message never: to the dead-letter queue. `reason` is a word of ours."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class BatchFailed(Exception):
    """Raised where the mapping takes no report: what is done is deleted, the rest comes again."""


@dataclass(frozen=True, eq=False)
class Record:
    """One message of the batch. `envelope` is None where the body is none of ours."""

    id: str
    receipt_handle: str
    body: str
    receives: int
    sent_at: float
    group: str
    envelope: Envelope | None

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Record:
        """From a record of Lambda's SQS event."""
        attributes = record.get("attributes", {})
        envelope = None
        with suppress(EnvelopeError):
            envelope = Envelope.parse(record["body"])
        fallback = attributes.get("MessageGroupId") or record["messageId"]
        return cls(
            id=record["messageId"],
            receipt_handle=record["receiptHandle"],
            body=record["body"],
            receives=int(attributes.get("ApproximateReceiveCount", 1)),
            sent_at=int(attributes.get("SentTimestamp", 0)) / 1000,
            group=(envelope.conversation if envelope else "") or fallback,
            envelope=envelope,
        )


class Batch:
    """One invocation's worth of a queue. Use: `each` (any number of times), then `finish`."""

    def __init__(
        self,
        runtime: Runtime,
        queues: Queues,
        table: Table,
        queue: str,
        event: Mapping[str, Any],
        context: LambdaContext,
        *,
        reporting: bool,
        give_up_after: float | None = None,
        but_never: Collection[Kind] = (),
    ) -> None:
        """`give_up_after`: the age, in seconds, at which a message that has to wait is
        dead-lettered instead, `but_never` one of these kinds."""
        self._runtime = runtime
        self._queues = queues
        self._table = table
        self._queue = queue
        self._reporting = reporting
        self._give_up_after = give_up_after
        self._but_never = but_never
        self.deadline = runtime.now() + context.get_remaining_time_in_millis() / 1000
        self.records = [Record.read(record) for record in event["Records"]]
        # When each record that is not done is to be received again, in unix seconds: a batch can
        # take a minute, and a wait begins when its reason does.
        self._hidden: dict[Record, float] = {}
        self._started: dict[Record, int] = {}
        self._suspected: dict[Record, bool] = {}
        self._begun = False

    def remaining(self) -> float:
        """Seconds until Lambda ends this invocation."""
        return self.deadline - self._runtime.now()

    def each(
        self,
        work: Callable[[Envelope, Record], T],
        records: Iterable[Record] | None = None,
        *,
        needs: float,
        ordered: bool = False,
    ) -> dict[Record, T]:
        """Works on these records (all of them, if none are given) but those that wait already;
        returns what was done, with its results: what a second step may go on with.

        `work` gets `needs` seconds: where less is left it is not begun. `ordered`: the records of
        a conversation one after the other, and none after one that has to wait.
        """
        open_records = [
            record
            for record in (self.records if records is None else records)
            if record not in self._hidden
        ]
        lanes: dict[str, list[Record]] = {}
        for record in open_records:
            lanes.setdefault(record.group if ordered else record.id, []).append(record)
        suspects = self._suspects(open_records)
        calm = [lane for lane in lanes.values() if not suspects.intersection(lane)]
        feared = [lane for lane in lanes.values() if suspects.intersection(lane)]
        results: dict[Record, T] = {}
        self._runtime.together([_task(self._lane, lane, work, needs, results) for lane in calm])
        # One of them at most: if it takes this invocation with it, no other is to be blamed, not
        # even one of its conversation that was done just before.
        for lane in feared[:1]:
            places = [place for place, record in enumerate(lane) if record in suspects]
            second = places[1] if len(places) > 1 else len(lane)
            self._wait(lane[second:], self._backoff(1))
            self._lane(lane[:second], work, needs, results)
        for lane in feared[1:]:
            self._wait(lane, self._backoff(1))
        return results

    def all_or_none(self, work: Callable[[], T], records: Sequence[Record]) -> T | None:
        """One step for several records; where it fails, each of them is deferred."""
        try:
            return work()
        except Exception as error:
            self._runtime.together(
                [partial(self._failed, record, [record], error) for record in records]
            )
            return None

    def finish(self) -> dict[str, Any] | None:
        """Hides what has to wait, and answers Lambda.

        Where the mapping takes reports (a setting says so): the list of what is not done. Where
        not, a returned list would be ignored and the whole batch deleted: so what is done is
        deleted here, and BatchFailed raised if anything is left.
        """
        now = self._runtime.now()
        # Not a second early: it would find nothing changed. (A float's last digits are no second.)
        waiting = [
            (record.receipt_handle, max(0, ceil(due - now - 0.001)))
            for record, due in self._hidden.items()
        ]
        if waiting:
            self._hide(waiting)
        if self._reporting:
            return {"batchItemFailures": [{"itemIdentifier": r.id} for r in self._hidden]}
        if not self._hidden:
            return None
        done = [record.receipt_handle for record in self.records if record not in self._hidden]
        self._delete(done)
        raise BatchFailed(f"{len(self._hidden)} of {len(self.records)} not done")

    def _delete(self, handles: Sequence[str]) -> None:
        try:
            refused = self._queues.delete(self._queue, handles)
        except Exception as error:
            # They come back, and are found done. The error's text must not leave the handler.
            log("WARNING", "not_deleted", count=len(handles), error=error)
        else:
            if refused:
                log("WARNING", "delete_refused", count=refused)

    def _lane(
        self,
        lane: Sequence[Record],
        work: Callable[[Envelope, Record], T],
        needs: float,
        results: dict[Record, T],
    ) -> None:
        for position, record in enumerate(lane):
            rest = lane[position:]
            if self.remaining() < needs:
                self._hand_back(rest, needs)
                return
            self._begun = True
            try:
                if record.envelope is None:
                    raise GiveUp("not_an_envelope")
                self._start(record)
                results[record] = work(record.envelope, record)
            except Exception as error:
                self._failed(record, rest, error)
                if record in self._hidden:
                    return

    def _hand_back(self, records: Sequence[Record], needs: float) -> None:
        """Unstarted, for another invocation; which has as little time if nothing was begun here."""
        ids = " ".join(filter(None, map(_id, records)))
        count("HandedBack", len(records), id=ids)
        if self._begun:
            self._wait(records, 0)
        else:
            log("ERROR", "time_out_too_short", id=ids, count=len(records), seconds=needs)
            self._wait(records, self._backoff(records[0].receives))

    def _failed(self, record: Record, rest: Sequence[Record], error: Exception) -> None:
        try:
            if isinstance(error, GiveUp):
                self._dead_letter(record, error.reason)
            elif isinstance(error, Defer):
                self._defer(record, rest, error)
            elif is_transient(error):
                self._defer(record, rest, Defer(f"transient: {type(error).__name__}"))
            else:
                count("UnexpectedErrors", id=_id(record))
                log(
                    "ERROR",
                    "unexpected_error",
                    id=_id(record),
                    error=error,
                    receives=record.receives,
                    starts=self._started.get(record),
                )
                self._wait(rest, self._backoff(min(record.receives, 3)))
        except Exception as second:
            # Not even that worked: it comes back when its visibility ends, or before.
            log("ERROR", "could_not_defer", id=_id(record), error=second)
            self._wait(rest, self._backoff(record.receives))

    def _defer(self, record: Record, rest: Sequence[Record], defer: Defer) -> None:
        if self._is_too_old(record):
            self._dead_letter(record, f"too_old: {defer.reason}")
            return
        after = defer.after if defer.after is not None else self._backoff(record.receives)
        log("INFO", "deferred", id=_id(record), reason=defer.reason, seconds=after)
        count("Deferrals", reason=defer.reason.partition(":")[0], id=_id(record))
        self._wait(rest, after)
        if record in self._started:
            self._take_back(record)

    def _is_too_old(self, record: Record) -> bool:
        envelope = record.envelope
        if self._give_up_after is None or (envelope and envelope.kind in self._but_never):
            return False
        since = max(record.sent_at, (envelope and envelope.redriven_at) or 0.0)
        return self._runtime.now() - since > self._give_up_after

    def _take_back(self, record: Record) -> None:
        """A deferral is not a start that never ended; and whoever could end once is no killer.

        All starts, not the last alone: one whose taking back failed, or whose write came late,
        must not add up over the deferrals of a long outage.
        """
        for attempt in range(3):
            if self.remaining() < TAKING_BACK:
                return
            try:
                self._table.update(_start_key(record), "REMOVE starts")
            except Exception as error:
                if attempt == 2 or not is_transient(error):
                    raise
                self._runtime.sleep(0.5 * 2**attempt)
            else:
                return

    def _dead_letter(self, record: Record, reason: str) -> None:
        self._queues.dead_letter(
            self._queue,
            record.body,
            group=record.group,
            source_id=record.id,
            history={
                "reason": reason,
                "receives": str(record.receives),
                "starts": str(self._started.get(record, 1)),
                "first_sent_at": str(int(record.sent_at)),
                "dead_lettered_at": str(int(self._runtime.now())),
            },
        )
        count("DeadLetters", reason=reason.partition(":")[0], id=_id(record))
        log("ERROR", "dead_lettered", id=_id(record), reason=reason, receives=record.receives)
        if _says_stop(record.envelope):
            # Alarmed at once: somebody may get texts against their will.
            count("StopsDeadLettered", id=_id(record))

    def _start(self, record: Record) -> None:
        """Counts a start, from the second receive on: nearly all messages are received once."""
        if record.receives < 2 or record in self._started:
            return
        # Also where the write fails: it may have been made, and is to be taken back.
        self._started[record] = 0
        item = self._table.update(
            _start_key(record),
            "ADD starts :this SET expires_at = :end",
            values={**_this(record), ":end": int(self._runtime.now() + START_KEPT)},
        )
        self._started[record] = len(item["starts"])
        if self._started[record] > MOST_STARTS:
            raise GiveUp("never_ended")

    def _suspects(self, records: Sequence[Record]) -> set[Record]:
        """Those that may have taken a whole invocation with them before.

        Each is judged once: its start in this invocation must not make it one at its second step.
        """
        unjudged = [
            record
            for record in records
            if record.receives > SUSPECT_STARTS and record not in self._suspected
        ]
        if unjudged:
            self._suspected.update(self._judged(unjudged))
        return {record for record in records if self._suspected.get(record)}

    def _judged(self, records: Sequence[Record]) -> dict[Record, bool]:
        try:
            found = self._table.get_many([_start_key(record) for record in records])
        except Exception as error:
            log("WARNING", "suspects_not_read", count=len(records), error=error)
            return dict.fromkeys(records, True)
        return {
            record: len(found.get(_start_key(record), {}).get("starts", ())) >= SUSPECT_STARTS
            for record in records
        }

    def _wait(self, records: Sequence[Record], seconds: float) -> None:
        due = self._runtime.now() + min(seconds, LONGEST)
        self._hidden.update(dict.fromkeys(records, due))

    def _hide(self, entries: Sequence[tuple[str, int]]) -> None:
        try:
            refused = self._queues.set_visibility(self._queue, entries)
        except Exception as error:
            # They come back all the same, when their visibility ends.
            log("WARNING", "visibility_not_set", count=len(entries), error=error)
        else:
            if refused:
                log("WARNING", "visibility_refused", count=refused)

    def _backoff(self, receives: int) -> float:
        """Full jitter: anything up to a ceiling that doubles with each receive."""
        ceiling = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2.0 ** min(receives, 10))
        return 1 + self._runtime.random() * ceiling


def _start_key(record: Record) -> tuple[str, str]:
    return f"S#{record.id}", "START"


def _this(record: Record) -> dict[str, Any]:
    """This start, in the set of those of its message: written twice, it is still one."""
    return {":this": {record.receives}}


def _id(record: Record) -> str:
    return record.envelope.log_id if record.envelope else ""


def _says_stop(envelope: Envelope | None) -> bool:
    """Whether somebody says STOP here, in a text or otherwise, as far as it can be read."""
    if envelope is not None and envelope.kind == "consent":
        return envelope.payload.get("event") == "stop"
    if envelope is None or envelope.kind != "inbound":
        return False
    words = envelope.payload.get("text")
    said = event_in(normalise(words)) if isinstance(words, str) else None
    return (envelope.payload.get("consent_hint") or said) == "stop"


def _task(
    lane: Callable[..., None],
    records: Sequence[Record],
    work: Callable[[Envelope, Record], T],
    needs: float,
    results: dict[Record, T],
) -> Callable[[], None]:
    return lambda: lane(records, work, needs, results)
