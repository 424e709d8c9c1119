"""When a message of ours may leave: so many segments a second, and so many a day.

Carriers count segments, for each sending number or for a campaign with several. For each of these,
and for all numbers together, the table has one item:

    next_at     until when every slot is given away, in microseconds, so that sums are exact
    ahead_at    likewise for answers, which go ahead of what `POST /messages` sends, and push it
                back: never later than next_at
    used_{day}  how many segments have left on that day (UTC), where there is a cap

What `POST /messages` sends takes its slots by the batch, with one conditional write for each
number, and gives back at its end what it did not use. An answer takes its own, when there is one:
most of what was taken for texts that get none could not be given back, as others have taken later
ones by then. A reply takes all its segments at once. One whose slot is later is deferred until
then, its slot stored with its words: nobody sleeps. Whoever comes more than a few seconds late to
its slot takes another one.

A cap counts what leaves, immediately before the claim, and the claim writes down for which day: who
is refused by the provider and comes again on that day is counted once.

A death, or an answer that is lost, after a slot was taken: the slot stays empty. After something
was counted: it is counted, though it may not have left. So neither rate nor cap is ever exceeded
for it, and nothing is sent twice for it, which is the ledger's part.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from chalicelib.batches import Defer
from chalicelib.config import Pace
from chalicelib.ledger import DAY, Reply
from chalicelib.messages import MessageId
from chalicelib.observing import log
from chalicelib.runtime import Runtime
from chalicelib.table import Conflict, Item, Key, Table

# Seconds. A slot this near has come: a deferral is in whole seconds.
SOON = 1.0
# A slot is good for this long after it has come: what waits is received again a little later.
GOOD_FOR = 10.0
# Conditions that may fail in a row, each time because somebody else moved the item on.
_TRIES = 6
_SECOND = 1_000_000  # in microseconds
# The item of all numbers together, which has a cap and no rate.
EVERY_NUMBER = "*"


class NotYet(Defer):
    """Its turn comes later. Waiting for it is no age."""

    def __init__(self, reason: str, after: float) -> None:
        super().__init__(reason, after)


class OverCap(Exception):
    """As much as may be sent today was sent already."""


class _Line(NamedTuple):
    """Who waits behind whom: of one pace, answers or not."""

    pace: Pace
    ahead: bool


class Pacer:
    """The slots of a stage, on its table. `paces` by our numbers; `cap`: segments a day for all
    numbers together, 0 for none. Raises what the table raises."""

    def __init__(
        self, table: Table, runtime: Runtime, paces: Mapping[str, Pace], cap: int = 0
    ) -> None:
        self._table = table
        self._runtime = runtime
        self._paces = paces
        self._all = Pace(EVERY_NUMBER, 0.0, cap)
        # How each item was last seen, which says what to try first.
        self._seen: dict[str, Item] = {}

    def line(self, ours: str, ahead: bool) -> _Line | None:
        """Where a message from this number of ours waits; None where it does not."""
        pace = self._paces.get(ours)
        return _Line(pace, ahead) if pace is not None and pace.per_second else None

    def turns(self, messages: Iterable[tuple[str, int]]) -> Turns:
        """The slots of one batch. `messages`: of what `POST /messages` sends and has no slot yet,
        our number and the segments."""
        turns = Turns(self)
        expected: Counter[_Line] = Counter()
        for ours, segments in messages:
            if line := self.line(ours, ahead=False):
                expected[line] += segments
        for line, segments in expected.items():
            try:
                turns.add(line, segments)
            except Exception as error:
                # Whoever needs one waits for the table as well: it is not to be asked by each.
                turns.failed[line] = error
                log("WARNING", "no_slots_taken", error=error)
        return turns

    def reserve(self, line: _Line, segments: int) -> list[int]:
        """Slots (microseconds) for so many segments, in order. Raises Defer, where others keep
        coming between."""
        pace = line.pace
        for _ in range(_TRIES):
            now = int(self._runtime.now() * _SECOND)
            there = self._seen.get(pace.name, {})
            moved, condition, values = _reservation(line, segments, now, there)
            try:
                item = self._update(pace, moved, condition, values)
            except Conflict as conflict:
                self._seen[pace.name] = conflict.item or {}
                continue
            self._seen[pace.name] = item
            end = item["ahead_at" if line.ahead else "next_at"]
            return [end - (segments - one) * pace.interval for one in range(segments)]
        raise NotYet("pacing: contended", after=1 + self._runtime.random())

    def give_back(self, line: _Line, slots: list[int]) -> None:
        """Slots that nobody used, in order: only if nobody took others since."""
        pace, there = line.pace, self._seen.get(line.pace.name, {})
        if there.get("next_at") != slots[-1] + pace.interval:
            return
        back = _tail(slots, pace)
        moved = ["next_at = next_at - :back"]
        if there["ahead_at"] > there["next_at"] - back:
            moved.append("ahead_at = ahead_at - :back")
        values = {":back": back, ":end": there["next_at"], ":ahead": there["ahead_at"]}
        with suppress(Conflict):
            self._update(pace, moved, "next_at = :end AND ahead_at = :ahead", values)

    def count(self, reply: Reply, segments: int) -> Reply:
        """The reply as counted with so many segments that leave today. Raises OverCap."""
        pace = self._paces.get(reply.ours, self._all)
        # (The number's own first: where that is used up, the others' share is not to go for it.)
        caps = [one for one in dict.fromkeys((pace, self._all)) if one.per_day]
        today = _day(self._runtime.now())
        if not caps or reply.counted_on == today:
            return reply
        for cap in caps:
            if segments > cap.per_day:  # (Not even as the first of a day.)
                raise OverCap
            self._count(cap, today, segments)
        return replace(reply, counted_on=today)

    def _count(self, pace: Pace, today: str, segments: int) -> None:
        before = _day(self._runtime.now(), before=2)
        try:
            self._update(
                pace,
                [],
                "(attribute_not_exists(#today) OR #today <= :most)",
                {":most": pace.per_day - segments, ":segments": segments},
                names={"#today": f"used_{today}", "#before": f"used_{before}"},
            )
        except Conflict:
            raise OverCap from None

    def _update(
        self,
        pace: Pace,
        moved: Sequence[str],
        condition: str,
        values: Mapping[str, Any],
        names: Mapping[str, str] | None = None,
    ) -> Item:
        update = f"SET {', '.join([*moved, 'expires_at = :expires'])}"
        if names:
            update += " REMOVE #before ADD #today :segments"
        expires = int(self._runtime.now() + 2 * DAY)
        return self._table.update(
            _key(pace),
            update,
            condition=condition,
            names=names,
            values={**values, ":expires": expires},
        )


class Turns:
    """What one batch has of slots. Threads take from it, and none locks it: taking one from a
    deque is one step."""

    def __init__(self, pacer: Pacer) -> None:
        self._pacer = pacer
        self._free: dict[_Line, deque[int]] = {}
        # Of whom no slots could be taken.
        self.failed: dict[_Line, Exception] = {}
        self._taken: dict[MessageId, tuple[_Line, list[int]]] = {}
        # The replies that may leave, or have left: their other parts go with the first.
        self.passed: set[MessageId] = set()

    def add(self, line: _Line, segments: int) -> None:
        """Takes this many slots for whoever comes."""
        self._free[line] = deque(self._pacer.reserve(line, segments))

    def take(self, id_: MessageId, ours: str, segments: int, *, ahead: bool) -> float:
        """When this reply of so many segments may be sent, in unix seconds; 0 where it need not
        wait.

        What was taken is given back at the end, unless the reply has `passed` or is to `keep` it.
        """
        line = self._pacer.line(ours, ahead)
        if line is None:
            return 0.0
        if line in self.failed:
            raise self.failed[line]
        slots = self._some(line, segments)
        self._taken[id_] = (line, slots)
        if len(slots) < segments:
            slots += self._pacer.reserve(line, segments - len(slots))
        return slots[0] / _SECOND

    def keep(self, id_: MessageId) -> None:
        """The slots that the reply took are written down, for later."""
        self._taken.pop(id_, None)

    def stays(self, id_: MessageId, segments: int) -> None:
        """The last so many segments of a reply that had passed do not leave after all; with those
        before them their slots are used up."""
        self.passed.discard(id_)
        if id_ in self._taken:
            line, slots = self._taken[id_]
            self._taken[id_] = (line, slots[-segments:])

    def finish(self) -> None:
        """Gives back what nobody used."""
        for id_, (line, unused) in self._taken.items():
            if id_ not in self.passed:
                self._put_back(line, unused)
        for line, slots in self._free.items():
            if not slots:
                continue
            try:
                self._pacer.give_back(line, sorted(slots))
            except Exception as error:
                # They stay empty.
                log("WARNING", "slots_not_given_back", count=len(slots), error=error)

    def _some(self, line: _Line, segments: int) -> list[int]:
        """So many of the slots that were taken for whoever comes, or as many as are left."""
        free = self._free.get(line, deque())
        slots: list[int] = []
        with suppress(IndexError):
            while len(slots) < segments:
                slots.append(free.popleft())
        return slots

    def _put_back(self, line: _Line, slots: Iterable[int]) -> None:
        self._free.setdefault(line, deque()).extend(slots)


def _reservation(
    line: _Line, segments: int, now: int, there: Item
) -> tuple[list[str], str, dict[str, Any]]:
    """What takes slots, if the item still is as it was last seen, or as good as that: what moves,
    under which condition, and the values of both."""
    values = {":now": now, ":cost": segments * line.pace.interval}
    if there.get("next_at", 0) <= now:
        # Nobody waits: from now on.
        values[":end"] = now + values.pop(":cost")
        free = "(attribute_not_exists(next_at) OR next_at <= :now)"
        return ["next_at = :end", "ahead_at = :end"], free, values
    if not line.ahead:
        return ["next_at = next_at + :cost"], "next_at > :now", values
    if there["ahead_at"] <= now:
        values[":end"] = now + values[":cost"]
        moved = ["next_at = next_at + :cost", "ahead_at = :end"]
        return moved, "next_at > :now AND ahead_at <= :now", values
    moved = ["next_at = next_at + :cost", "ahead_at = ahead_at + :cost"]
    return moved, "ahead_at > :now", values


def _tail(slots: list[int], pace: Pace) -> int:
    """How long the last of these slots are that follow each other, in microseconds."""
    start = slots[-1]
    for slot in reversed(slots[:-1]):
        if slot != start - pace.interval:
            break
        start = slot
    return slots[-1] + pace.interval - start


def _key(pace: Pace) -> Key:
    return f"R#{pace.name}", "PACE"


def _day(now: float, before: int = 0) -> str:
    return f"{datetime.fromtimestamp(now, UTC) - timedelta(days=before):%Y%m%d}"
