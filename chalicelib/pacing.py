"""When a message of ours may leave: so many segments a second, and so many a day.

Carriers count segments, for each sending number or for a campaign with several. For each of these
the table has one item:

    next_at     until when every slot is given away, in microseconds, so that sums are exact
    ahead_at    likewise for answers, which go ahead of what `POST /messages` sends, and push it
                back: never later than next_at
    used_{day}  how many segments were given slots on that day (UTC), where there is a cap

A batch takes the slots that it will need for each number with one conditional write, before it
asks anybody anything, and gives back at its end what it did not use. A reply takes all its segments
at once. One whose slot is later is deferred until then, its slot stored with its words: nobody
sleeps. Whoever comes more than a few seconds late to its slot takes another one.

A death, or an answer that is lost, after a slot was taken: the slot stays empty. So the rate is
never exceeded for it, and nothing is sent twice for it, which is the ledger's part.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import Any, NamedTuple

from chalicelib.batches import Defer
from chalicelib.config import Pace
from chalicelib.ledger import DAY
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
    """As much as may be sent today has its slots already."""


class _Line(NamedTuple):
    """Who waits behind whom: of one pace, answers or not."""

    pace: Pace
    ahead: bool


def _line(pace: Pace, ahead: bool) -> _Line:
    """(Where there is no rate nobody waits, so nobody goes ahead.)"""
    return _Line(pace, ahead and pace.per_second > 0)


class Pacer:
    """The slots of a stage, on its table. `paces` by our numbers; `cap`: segments a day for all
    numbers together, 0 for none. Raises what the table raises."""

    def __init__(
        self, table: Table, runtime: Runtime, paces: Mapping[str, Pace], cap: int = 0
    ) -> None:
        self._table = table
        self._runtime = runtime
        self._paces = paces
        self._all = Pace(EVERY_NUMBER, per_day=cap) if cap else None
        # How each item was last seen, which says what to try first.
        self._seen: dict[str, Item] = {}
        # Segments of a reply, on average, by pace: what a batch takes before it knows.
        self._average: dict[str, float] = {}

    def of(self, ours: str) -> tuple[Pace, ...]:
        """What holds for one of our numbers; empty where nothing does."""
        found = (self._all, self._paces.get(ours))
        return tuple(pace for pace in found if pace is not None)

    def turns(self, expected: Iterable[tuple[str, bool]]) -> Turns:
        """The slots of one batch. `expected`: for each message that has none yet our number, and
        whether it goes ahead."""
        turns = Turns(self)
        messages = Counter(_line(pace, ahead) for ours, ahead in expected for pace in self.of(ours))
        for line, number in messages.items():
            try:
                turns.add(line, ceil(number * self._average.get(line.pace.name, 1.0)))
            except OverCap:
                pass  # it may do for some of them
            except Exception as error:
                # Whoever needs one waits for the table as well: it is not to be asked by each.
                turns.failed[line] = error
                log("WARNING", "no_slots_taken", error=error)
        return turns

    def learn(self, pace: Pace, segments: int) -> None:
        """What a reply took, so that the next batch takes as much as it will need."""
        average = self._average.get(pace.name, float(segments))
        self._average[pace.name] = average + 0.1 * (segments - average)

    def reserve(self, line: _Line, segments: int) -> list[int]:
        """Slots (microseconds) for so many segments, in order. Raises OverCap; Defer, where others
        keep coming between."""
        pace = line.pace
        if pace.per_day and segments > pace.per_day:
            raise OverCap
        for _ in range(_TRIES):
            now = int(self._runtime.now() * _SECOND)
            write = _reservation(line, segments, now, self._seen.get(pace.name, {}))
            try:
                item = self._update(pace, write, now)
            except Conflict as conflict:
                self._seen[pace.name] = there = conflict.item or {}
                if pace.per_day and there.get(_day(now), 0) + segments > pace.per_day:
                    raise OverCap from None
                continue
            self._seen[pace.name] = item
            if not pace.per_second:
                return [now] * segments
            end = item["ahead_at" if line.ahead else "next_at"]
            return [end - (segments - one) * pace.interval for one in range(segments)]
        raise NotYet("pacing: contended", after=1 + self._runtime.random())

    def give_back(self, line: _Line, slots: list[int]) -> None:
        """Slots that nobody used, in order: those of a rate only if nobody took others since."""
        pace, now = line.pace, int(self._runtime.now() * _SECOND)
        unused = {":unused": -len(slots)}
        there = self._seen.get(pace.name, {})
        if pace.per_second and there.get("next_at") == slots[-1] + pace.interval:
            moved = ["next_at = next_at - :back"]
            values = {":back": _tail(slots, pace), ":end": there["next_at"]}
            condition = "next_at = :end AND ahead_at = :ahead"
            values[":ahead"] = there["ahead_at"]
            if there["ahead_at"] > there["next_at"] - values[":back"]:
                moved.append("ahead_at = ahead_at - :back")
            write = _Write(moved, condition, values, unused)
        elif pace.per_day:
            # (Not without a condition: whoever gives back twice lets too many leave.)
            write = _Write([], "#today = :seen", {":seen": there.get(_day(now), 0)}, unused)
        else:
            return
        with suppress(Conflict):
            self._update(pace, write, now)

    def _update(self, pace: Pace, write: _Write, now: int) -> Item:
        moved, free, values, used = write
        conditions = [free] if free else []
        sets = [*moved, "expires_at = :expires"]
        values = {**values, ":expires": now // _SECOND + int(2 * DAY)}
        update = f"SET {', '.join(sets)}"
        names = None
        if pace.per_day:
            names = {"#today": _day(now), "#before": _day(now, before=2)}
            update += f" REMOVE #before ADD #today {next(iter(used))}"
            values |= used
            (number,) = used.values()
            if number > 0:
                conditions.append("(attribute_not_exists(#today) OR #today <= :most)")
                values[":most"] = pace.per_day - number
        return self._table.update(
            _key(pace), update, condition=" AND ".join(conditions), names=names, values=values
        )


class Turns:
    """What one batch has of slots. Threads take from it, and none locks it: taking one from a
    deque is one step."""

    def __init__(self, pacer: Pacer) -> None:
        self._pacer = pacer
        self._free: dict[_Line, deque[int]] = {}
        # Of whom no slots could be taken.
        self.failed: dict[_Line, Exception] = {}
        self._taken: dict[MessageId, list[tuple[_Line, list[int]]]] = {}
        # The replies that may leave, or have left: their other parts go with the first.
        self.passed: set[MessageId] = set()

    def add(self, line: _Line, segments: int) -> None:
        """Takes this many slots for whoever comes."""
        self._free[line] = deque(self._pacer.reserve(line, segments))

    def take(self, id_: MessageId, ours: str, segments: int, *, ahead: bool) -> float:
        """When this reply of so many segments may be sent, in unix seconds. Raises OverCap.

        What was taken is given back at the end, unless the reply has `passed` or is to `keep` it.
        """
        first = 0.0
        taken = self._taken[id_] = []
        for pace in self._pacer.of(ours):
            line = _line(pace, ahead)
            self._pacer.learn(pace, segments)
            if line in self.failed:
                raise self.failed[line]
            slots = self._some(line, segments)
            taken.append((line, slots))
            if len(slots) < segments:
                slots += self._pacer.reserve(line, segments - len(slots))
            first = max(first, slots[0] / _SECOND)
        return first

    def keep(self, id_: MessageId) -> None:
        """The slots that the reply took are written down, for later."""
        del self._taken[id_]

    def stays(self, id_: MessageId, segments: int) -> None:
        """The last so many segments of a reply that had passed do not leave after all; with those
        before them their slots are used up."""
        self.passed.discard(id_)
        self._taken[id_] = [(line, slots[-segments:]) for line, slots in self._taken.get(id_, [])]

    def finish(self) -> None:
        """Gives back what nobody used."""
        for id_, taken in self._taken.items():
            for line, unused in taken if id_ not in self.passed else ():
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


class _Write(NamedTuple):
    """A write to the item: what moves, if what holds, and what it adds to the day's use."""

    moved: list[str]
    condition: str
    values: dict[str, Any]
    used: dict[str, int]


def _reservation(line: _Line, segments: int, now: int, there: Item) -> _Write:
    """What takes slots, if the item still is as it was last seen, or as good as that."""
    used = {":segments": segments}
    if not line.pace.per_second:
        return _Write([], "", {}, used)
    values = {":now": now, ":cost": segments * line.pace.interval}
    if there.get("next_at", 0) <= now:
        # Nobody waits: from now on.
        values[":end"] = now + values.pop(":cost")
        free = "(attribute_not_exists(next_at) OR next_at <= :now)"
        return _Write(["next_at = :end", "ahead_at = :end"], free, values, used)
    if not line.ahead:
        return _Write(["next_at = next_at + :cost"], "next_at > :now", values, used)
    if there["ahead_at"] <= now:
        values[":end"] = now + values[":cost"]
        moved = ["next_at = next_at + :cost", "ahead_at = :end"]
        return _Write(moved, "next_at > :now AND ahead_at <= :now", values, used)
    moved = ["next_at = next_at + :cost", "ahead_at = ahead_at + :cost"]
    return _Write(moved, "ahead_at > :now", values, used)


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


def _day(now: int, before: int = 0) -> str:
    day = datetime.fromtimestamp(now // _SECOND, UTC) - timedelta(days=before)
    return f"used_{day:%Y%m%d}"
