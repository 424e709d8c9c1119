"""How sending is held back in a seed, and that it is: nobody leaves without a slot, none too many
in a day, nobody while sending is paused or at night, and nobody to whom it must not go."""

from __future__ import annotations

import json
from bisect import bisect_right, insort
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any

import httpx

from chalicelib.breaker import pause, resume_sending
from chalicelib.runtime import is_transient
from chalicelib.table import Table
from chalicelib.text import segments
from tests.simulation import outside
from tests.simulation.outside import NUMBERS, Accepted, Outside
from tests.simulation.runtime import Cloud, SimulatedRuntime, reference_of
from tests.simulation.slots import Slots
from tests.simulation.story import PEOPLE, HeldBack
from tests.simulation.world import Process, Task, Violation

_HELD_BACK = 0.5  # of the seeds of which chance decides it
_SKEW = 0.5  # seconds that a clock may be off
_SOON = 1.0  # seconds that a slot may be away
_DAY = 86_400
_MOST_SEGMENTS = 6  # of a reply


@dataclass(frozen=True)
class Rules:
    """What holds sending back. Times are unix seconds."""

    pacing: dict[str, dict[str, Any]] = field(default_factory=dict)
    cap: int = 0
    only_to: str = "*"
    countries: str = ""
    quiet: tuple[float, float] | None = None
    pauses: tuple[tuple[float, float], ...] = ()

    def settings(self, numbers: Collection[str]) -> dict[str, str]:
        """Of a function that has these numbers."""
        pacing = {
            name: {**one, **({"numbers": ours} if "numbers" in one else {})}
            for name, one in self.pacing.items()
            if (ours := [number for number in one.get("numbers", [name]) if number in numbers])
        }
        return {
            "PACING": json.dumps(pacing),
            "DAILY_SEND_CAP": str(self.cap),
            "SEND_ONLY_TO": self.only_to,
            "SEND_TO_COUNTRIES": self.countries,
        }

    def quiet_until(self, ours: str, theirs: str, now: datetime) -> datetime | None:
        """The adopter's own hook."""
        if self.quiet is None or not self.quiet[0] <= now.timestamp() < self.quiet[1]:
            return None
        return datetime.fromtimestamp(self.quiet[1], UTC)

    def pace_of(self, ours: str) -> str:
        """By which name this number of ours is paced; "" where it is not."""
        found = (name for name, one in self.pacing.items() if ours in one.get("numbers", [name]))
        return next(found, "")

    def causes(self, person: str) -> Iterator[str]:
        """The outcomes that may be for this person."""
        if self.cap or any("per_day" in one for one in self.pacing.values()):
            yield "refused: daily_cap"
        if not self._is_written_to(person):
            yield "refused: not_in_send_only_to"
        if "CA" in self.countries:
            yield "refused: country"

    def _is_written_to(self, person: str) -> bool:
        return self.only_to in ("*", person)


def rules(seed: int, start: float, end: float, held_back: HeldBack) -> Rules:
    """Those of a seed. (Drawn apart, so that no other seed is another story for them.)"""
    random = Random(f"{seed} holds back")
    paced = held_back == "paced"
    if not held_back or (random.random() > _HELD_BACK and not paced):
        return Rules()
    rate = random.choice((0.1, 0.5, 2.0) if paced else (0.02, 0.1, 0.5, 2.0))
    pacing: dict[str, dict[str, Any]] = random.choice(
        (
            *([] if paced else [{}]),
            {number: {"per_second": rate} for number in NUMBERS},
            {number: {"per_second": rate} for number in NUMBERS},
            {"spring": {"numbers": list(NUMBERS), "per_second": rate}},
            {next(iter(NUMBERS)): {"per_second": rate, "per_day": random.choice((3, 20))}},
        )
    )
    begins = start + (end - start) * random.random()
    length = random.choice((5.0, 60.0, 1000.0, 5000.0))
    return Rules(
        pacing=pacing,
        cap=random.choice((0, 0, 0, 10) if paced else (0, 0, 2, 10)),
        only_to="*" if paced else random.choice(("*", "*", "*", "*", PEOPLE[0])),
        countries="CA" if random.random() < 0.05 and not paced else "",
        quiet=(begins, begins + length) if random.random() < 0.3 else None,
        pauses=((begins, begins + length),) if random.random() < (0.1 if paced else 0.3) else (),
    )


class Traffic:
    """Watches one world."""

    def __init__(self, cloud: Cloud, out: Outside, held: Rules) -> None:
        self._cloud = cloud
        self._out = out
        self._rules = held
        self._slots: dict[str, list[float]] = defaultdict(list)  # by pace, in order of time
        self._by_batch = Slots(cloud, held.pace_of)
        self._left: Counter[str] = Counter()  # segments by pace
        # By pace and reply, when the slots come of what left with its first segment.
        self._early: dict[str, dict[str, list[float]]] = defaultdict(dict)
        self._days: Counter[tuple[str, float]] = Counter()  # likewise, and by day
        self._confirmed: Counter[str] = Counter()  # segments that need not wait
        self._paused: tuple[float, float] | None = None  # since when and until when
        cloud.watchers.append(self._on_call)
        cloud.http_watchers.append(self._on_request)
        cloud.stores["dynamodb"].observers.append(self._on_change)
        before = out.on_accepted

        def on_accepted(task: Task, accepted: Accepted) -> None:
            before(task, accepted)
            self._on_accepted(accepted)

        out.on_accepted = on_accepted
        for begins, ends in held.pauses:
            cloud.world.spawn(self._pauses, after=begins - cloud.world.now)
            cloud.world.spawn(self._resumes, after=ends - cloud.world.now)

    # -- the person at the brake ------------------------------------------------------------------

    def _pauses(self) -> None:
        self._says(lambda table: pause(table, self._cloud.world.now, "heron"))
        self._paused = (self._cloud.world.now, float("inf"))

    def _resumes(self) -> None:
        while self._paused is None:
            self._cloud.world.sleep(1.0)
        self._paused = (self._paused[0], self._cloud.world.now)
        self._says(resume_sending)

    def _says(self, what: Any) -> None:
        """Until it was heard."""
        world, patience = self._cloud.world, 10.0
        while True:
            process = Process(f"person-{world.steps}")
            runtime = SimulatedRuntime(self._cloud, process, "person", 0.0)
            task = world.spawn(lambda runtime=runtime: what(Table(runtime, "test")), process)  # type: ignore[misc]
            task.notes["began"] = world.now
            world.wait(task)
            if not process.dead and task.error is None:
                return
            if task.error is not None and not process.dead and not is_transient(task.error):
                raise task.error
            world.sleep(patience * world.random.random())
            patience = min(2 * patience, 600.0)

    # -- what happens -----------------------------------------------------------------------------

    def _on_call(
        self, task: Task, service: str, operation: str, arguments: dict[str, Any], answer: Any
    ) -> None:
        """Somebody takes slots or gives some back."""
        key = arguments.get("Key", {}) if service == "dynamodb" else {}
        pk = key.get("pk", {}).get("S", "")
        if not pk.startswith("R#") or operation != "update_item" or isinstance(answer, Exception):
            return
        name = pk.removeprefix("R#")
        if name not in self._rules.pacing or answer is None:
            return
        values = {
            name: float(value["N"]) / 1e6
            for name, value in arguments["ExpressionAttributeValues"].items()
        }
        slots = self._slots[name]
        interval = 1 / self._rules.pacing[name]["per_second"]
        moved = arguments["UpdateExpression"]
        there = {n: float(answer["Attributes"][n]["N"]) / 1e6 for n in ("next_at", "ahead_at")}
        if ":back" in values:
            # (Just before the end that it had.)
            count = round(values[":back"] / interval)
            for number in range(count):
                found = bisect_right(slots, there["next_at"] + (number + 0.5) * interval) - 1
                del slots[found]
            self._by_batch.give_back(task.process, name, count)
            return
        cost = values.get(":cost", values.get(":end", 0.0) - values.get(":now", 0.0))
        ahead = "next_at = next_at + :cost" in moved and "ahead_at =" in moved
        end = there["ahead_at" if ahead else "next_at"]
        taken = [end - (number + 1) * interval for number in range(round(cost / interval))]
        for slot in taken:
            insort(slots, slot)
        if taken:
            self._by_batch.take(task.process, name, taken, there["next_at"] - interval)

    def _on_change(self, key: tuple[str, str], old: Any, new: Any) -> None:
        """Who is refused for a cap would have gone beyond it."""
        _, sk = key
        outcome = (new or {}).get("outcome", {}).get("S")
        if not sk.startswith("OUT#") or outcome != "refused: daily_cap" or "outcome" in (old or {}):
            return
        name, now = self._rules.pace_of(new["ours"]["S"]), self._cloud.world.now
        parts = new.get("parts", {}).get("M", {}).values()
        left = [part["M"]["text"]["S"] for part in parts if part["M"]["state"]["S"] != "sent"]
        # (Of a draft nobody knows the words any more.)
        most = sum(map(segments, left)) if left else _MOST_SEGMENTS
        # (Who stood still over midnight goes by the day before.)
        days = {f"{datetime.fromtimestamp(at, UTC):%Y%m%d}" for at in (now - 120, now + 1)}
        limits = {"*": self._rules.cap, name: self._rules.pacing.get(name, {}).get("per_day", 0)}
        for whose, limit in limits.items():
            item = self._cloud.stores["dynamodb"].get_item(
                TableName="spillway-test",
                Key={"pk": {"S": f"R#{whose}"}, "sk": {"S": "PACE"}},
                ConsistentRead=True,
            )
            used = [int(item.get("Item", {}).get(f"used_{day}", {"N": 0})["N"]) for day in days]
            if 0 < limit < max(used) + most:
                return
        raise Violation("reasons are true", f"daily_cap: {most} of {limits}")

    def _on_request(self, task: Task, request: httpx.Request) -> None:
        host, now = request.url.host, self._cloud.world.now
        if request.method != "POST" or not host.startswith("api."):
            return
        root = task
        while "parent" in root.notes:
            root = root.notes["parent"]
        began = root.notes.get("began", now)
        if task.process.troubled_at >= began - 1:
            return  # it is not to blame for how late it is
        if self._paused and self._paused[0] + 1 + 2 * _SKEW < began and now < self._paused[1]:
            raise Violation("nobody is written to while sending is paused", host)
        text = self._out.texts.get(reference_of(request).rpartition("-")[0])
        night = self._rules.quiet
        outgoing = text is not None and text.kind == outside.OUTGOING
        if not outgoing or not night:
            return
        if night[0] + 2 * _SKEW < began and now < night[1] - _SOON - 2 * _SKEW:
            raise Violation("the night is quiet", reference_of(request))

    def _parts(self, id_: str) -> dict[str, Any]:
        """The parts of a reply, by number."""
        conversation, _, message = id_.partition("-")
        key = {"pk": {"S": f"C#{conversation}"}, "sk": {"S": f"OUT#{message}"}}
        item = self._cloud.stores["dynamodb"].get_item(
            TableName="spillway-test", Key=key, ConsistentRead=True
        )["Item"]
        return {number: part["M"] for number, part in item["parts"]["M"].items()}

    def _on_accepted(self, accepted: Accepted) -> None:
        """A provider takes a part."""
        id_ = accepted.reference.rpartition("-")[0]
        text, now = self._out.texts[id_], self._cloud.world.now
        for refusal in self._rules.causes(text.person):
            if refusal != "refused: daily_cap":
                raise Violation("nobody is written to who must not be", f"{text.name}: {refusal}")
        number = segments(accepted.words)
        parts = self._parts(id_)
        name = self._rules.pace_of(text.ours)
        # (The day is that of the attempt, which a repetition does not change.)
        started_at = float(parts[accepted.reference.rpartition("-")[2]]["started_at"]["N"])
        day = started_at // _DAY
        # (Just after midnight it may have been counted for the day before.)
        counted = number if started_at % _DAY > 60 else 0
        limits = {"*": self._rules.cap, name: self._rules.pacing.get(name, {}).get("per_day", 0)}
        for whose, limit in limits.items():
            self._days[whose, day] += counted
            if 0 < limit < self._days[whose, day]:
                said = f"{self._days[whose, day]} segments"
                raise Violation("a day has its limit", said, (id_,))
        if not name:
            return
        self._left[name] += number
        if text.kind == outside.STOP:
            self._confirmed[name] += number
        # A reply leaves as a whole, in the first of its slots.
        others = sum(segments(part["text"]["S"]) for part in parts.values()) - 1
        interval = 1 / self._rules.pacing[name]["per_second"]
        later = others * interval
        come = bisect_right(self._slots[name], now + _SOON + 2 * _SKEW + later)
        # (And so did those before it, whose other slots may be yet to come.)
        early = self._early[name]
        early.setdefault(id_, [now + (number + 1) * interval for number in range(others)])
        come += sum(at > now for whose, times in early.items() if whose != id_ for at in times)
        if self._left[name] > come + self._confirmed[name]:
            said = f"{self._left[name]} segments, and {come} slots"
            raise Violation("nobody leaves without a slot", f"{text.name}: {said}", (id_,))
