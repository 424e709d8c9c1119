"""What becomes of the slots that a batch takes: whoever leaves has one, what is written down for
later is not given back, and what nobody needs is not left empty."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
from botocore.exceptions import ClientError

from chalicelib.text import segments
from tests.simulation.runtime import Cloud, reference_of
from tests.simulation.world import Process, Task, Violation

Item = dict[str, Any]

_GOOD = 9.0  # seconds for which a slot is certainly good
_OLD = 40.0  # ... and after which it is certainly not the one that somebody claims with


@dataclass
class _Hand:
    """What one invocation has of the slots of one pace, in segments."""

    taken: list[float] = field(default_factory=list)
    given_back: int = 0
    unsure: bool = False  # whether one may have left with a slot of before, or with one of these
    needed: Counter[str] = field(default_factory=Counter)  # by reply: what leaves, or will later

    @property
    def left(self) -> int:
        return len(self.taken) - self.given_back - self.needed.total()


class Slots:
    """Watches one world. Whoever sees slots taken and given back tells it."""

    def __init__(self, cloud: Cloud, pace_of: Callable[[str], str]) -> None:
        """`pace_of`: by which name a number of ours is paced, "" where it is not."""
        self._cloud = cloud
        self._pace_of = pace_of
        self._hands: dict[Process, dict[str, _Hand]] = defaultdict(lambda: defaultdict(_Hand))
        self._last: dict[str, tuple[Process, float]] = {}  # who took slots last, and the last
        self._late: Counter[str] = Counter()  # slots that somebody took by a call that came late
        # Replies whose claim needs no slot of its own batch, by who claimed it.
        self._has_one: set[tuple[Process, str]] = set()
        self._claimer: dict[str, Process] = {}  # by reply, who handed it over last
        self._items: dict[str, Item] = {}
        self._conflicts: set[Process] = set()  # who found that somebody else had been faster
        cloud.watchers.append(self._on_call)
        cloud.http_watchers.append(self._on_request)
        cloud.stores["dynamodb"].observers.append(self._on_change)
        before = cloud.on_end

        def on_end(process: Process, began: float) -> None:
            before(process, began)
            self._on_end(process, began)

        cloud.on_end = on_end

    def take(self, process: Process, pace: str, slots: list[float], last: float) -> None:
        """Somebody has these now; `last` is the last slot that anybody has."""
        self._last[pace] = (process, last)
        if process is self._cloud.world.outside:
            # (It was asked for once more; and what gives that one back, repeated, gives back this.)
            self._late[pace] += len(slots)
        else:
            self._hands[process][pace].taken += slots

    def give_back(self, process: Process, pace: str, number: int) -> None:
        """Somebody does not need so many of its slots any more."""
        if process is self._cloud.world.outside:
            return  # (It comes late: nobody knows whose it was.)
        hand = self._hands[process][pace]
        hand.given_back += number
        if hand.left + self._late[pace] < 0:
            raise Violation("a slot that is needed is not given back", f"{pace}: {hand}")

    def _on_call(
        self, task: Task, service: str, operation: str, arguments: dict[str, Any], answer: Any
    ) -> None:
        key = arguments.get("Key", {}).get("sk", {}).get("S", "") if service == "dynamodb" else ""
        if (key == "PACE" or key.startswith("OUT#")) and isinstance(answer, ClientError):
            self._conflicts.add(task.process)

    def _on_change(self, key: tuple[str, str], old: Item | None, new: Item | None) -> None:
        pk, sk = key
        if not sk.startswith("OUT#") or new is None:
            return
        id_ = f"{pk.partition('#')[2]}-{sk.partition('#')[2]}"
        self._items[id_] = new
        process = self._cloud.world.current().process
        before, after = _states(old), _states(new)
        if "sending" in after.values() and "sending" not in before.values():
            self._has_one.discard((process, id_))
            if (old or {}).get("has_slot", {}).get("BOOL"):
                age = self._cloud.world.now - float((old or {})["not_before"]["N"])
                if age <= _OLD:
                    self._has_one.add((process, id_))
                    self._hand(process, new).unsure |= age > _GOOD
        claimer = owner = self._claimer.get(id_, process)
        if process not in (owner, self._cloud.world.outside):
            owner = process  # (Somebody else settled it.)
        for number, state in before.items():
            if state == "sending" and after[number] == "sent" and process is not claimer:
                # (By a receipt, perhaps of an attempt before: then this one may not have left.)
                hand = self._hand(claimer, new)
                hand.unsure = True
                hand.needed.pop(id_, None)
            if state in ("sending", "unknown") and after[number] == "waiting":
                # (It was put back.)
                needed = self._hand(owner, new).needed
                needed[id_] -= _segments(new, number)
                needed += Counter()  # (those of which nothing is left are none)
        waits = new.get("has_slot", {}).get("BOOL")
        if waits and new.get("not_before") != (old or {}).get("not_before"):
            left = [number for number, state in after.items() if state != "sent"]
            self._hand(process, new).needed[id_] = sum(_segments(new, n) for n in left)

    def _on_request(self, task: Task, request: httpx.Request) -> None:
        """A part leaves."""
        if request.method != "POST" or not task.process.name.startswith("sender"):
            return
        id_, _, number = reference_of(request).rpartition("-")
        item = self._items.get(id_)
        self._claimer[id_] = task.process
        if item is not None and (task.process, id_) not in self._has_one:
            self._hand(task.process, item).needed[id_] += _segments(item, number)

    def _hand(self, process: Process, item: Item) -> _Hand:
        return self._hands[process][self._pace_of(item.get("ours", {}).get("S", ""))]

    def _on_end(self, process: Process, began: float) -> None:
        """An invocation has ended, of itself."""
        for pace, hand in self._hands.pop(process, {}).items():
            who, last = self._last.get(pace, (None, 0.0))
            unused = hand.taken and not (hand.given_back or hand.needed or hand.unsure)
            if process.troubled_at >= began or process in self._conflicts:
                continue
            if unused and who is process and abs(max(hand.taken) - last) < 1e-3:
                raise Violation("a slot that nobody needs is given back", f"{pace}: {hand}")
        self._conflicts.discard(process)


def _states(item: Item | None) -> dict[str, str]:
    parts = (item or {}).get("parts", {}).get("M", {})
    return {number: part["M"]["state"]["S"] for number, part in parts.items()}


def _segments(item: Item, number: str) -> int:
    return segments(item["parts"]["M"][number]["M"]["text"]["S"])
