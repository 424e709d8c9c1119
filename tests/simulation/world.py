"""The kernel of the simulation: a virtual clock, and one baton that tasks hand to each other.

A task is a greenlet and belongs to a process. It runs until it sleeps or waits; then the earliest
of all that are due runs, drawn by the seed among those due at the same moment. So one seed is one
schedule, and nothing happens twice the same way but by the same seed. A killed process gets
`Killed` at every place where one of its tasks stands, and again at whatever it tries after that.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random
from typing import Any, TypeVar

from greenlet import getcurrent, greenlet

T = TypeVar("T")

# Unix seconds: when every simulated story begins, 400 s before midnight (UTC). What is counted or
# kept by the day is to meet its end.
START = 1_790_035_200.0 - 400
MOST_STEPS = 400_000


class Killed(BaseException):
    """The process of this task is dead. Not an Exception: no handler of ours may survive it."""


class Violation(BaseException):
    """A promise was broken. `about`: names that the trace is to be cut down to. Not an Exception:
    the code that broke it must not be able to catch it."""

    def __init__(self, invariant: str, text: str, about: tuple[str, ...] = ()) -> None:
        super().__init__(f"{invariant}: {text}")
        self.invariant = invariant
        self.text = text
        self.about = about


class NeverRests(Exception):
    """The system goes on for ever, or for longer than any story of ours may take."""


class Process:
    """What dies as a whole: a function's environment, or the outside world (which does not)."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False
        self.poisoned = False
        # When a store last failed it, or time stood still for it.
        self.troubled_at = float("-inf")
        self.tasks: dict[Task, None] = {}  # (a set has no order, and a seed must have one)


class Task:
    """One thread of a process."""

    def __init__(self, world: World, process: Process, work: Callable[[], object]) -> None:
        self.process = process
        self.done = False
        self.result: Any = None
        self.error: BaseException | None = None
        self.turn = 0  # a wake-up that was overtaken by another is passed over
        self.waiters: list[Task] = []
        self.notes: dict[str, Any] = {}  # what the invariants remember of a task
        self._world = world
        self._work = work
        self.greenlet = greenlet(self._run, world.hub)

    def _run(self) -> None:
        try:
            if not self.process.dead:
                self.result = self._work()
        except Killed as killed:
            self.error = killed
        except Exception as error:
            self.error = error
        self.done = True
        self.process.tasks.pop(self, None)
        for waiter in self.waiters:
            self._world.wake(waiter)


class World:
    """Clock, chance, tasks and what was seen (`trace`)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.now = START
        self.steps = 0
        self.trace: list[tuple[float, str, str]] = []
        # Each call that a store served: when, who, for what, operation, arguments, answer.
        self.calls: list[tuple[float, str, str, str, dict[str, Any], Any]] = []
        self.outside = Process("outside")
        self.hub = getcurrent()
        self._due: list[tuple[float, float, int, int, Task]] = []
        self._count = 0
        self._tasks: dict[greenlet, Task] = {}

    # -- for whoever runs the world ---------------------------------------------------------------

    def run(self, until: float) -> None:
        """Runs until nothing is due any more, or raises NeverRests."""
        while self._due:
            at, _, _, turn, task = heapq.heappop(self._due)
            if task.done or turn != task.turn:
                continue
            if at > until or self.steps > MOST_STEPS:
                raise NeverRests(f"{task.process.name} goes on")
            self.steps += 1
            self.now = max(self.now, at)
            task.turn += 1
            task.greenlet.switch()
            if task.done:
                del self._tasks[task.greenlet]
                if isinstance(task.error, Exception) and task.process is self.outside:
                    raise task.error  # the simulation's own, or a violation

    def close(self) -> None:
        """Ends every task that still stands somewhere, so that nothing of it is left."""
        for task in list(self._tasks.values()):
            task.process.dead = True
            while not task.greenlet.dead:
                task.greenlet.switch()

    # -- for tasks --------------------------------------------------------------------------------

    def spawn(
        self, work: Callable[[], object], process: Process | None = None, after: float = 0.0
    ) -> Task:
        """A new task, which begins `after` seconds from now."""
        task = Task(self, process or self.outside, work)
        task.process.tasks[task] = None
        self._tasks[task.greenlet] = task
        self._push(task, self.now + after)
        return task

    def sleep(self, seconds: float) -> None:
        """Hands the baton on, and takes it again after so many virtual seconds."""
        task = self.current()
        if not task.process.dead:
            self._push(task, self.now + seconds)
            self.hub.switch()
        if task.process.dead:
            raise Killed

    def wait(self, task: Task) -> None:
        """Returns when the other task has ended."""
        mine = self.current()
        while not task.done:
            task.waiters.append(mine)
            self.park()

    def park(self) -> None:
        """Until somebody wakes this task."""
        task = self.current()
        if not task.process.dead:
            self.hub.switch()
        if task.process.dead:
            raise Killed

    def wake(self, task: Task, at: float | None = None) -> None:
        if not task.done:
            task.turn += 1
            self._push(task, max(self.now, at or 0.0))

    def kill(self, process: Process) -> None:
        """Every task of the process gets Killed where it stands."""
        if not process.dead:
            process.dead = True
            self.note(process.name, "KILLED")
            for task in list(process.tasks):
                self.wake(task)

    def current(self) -> Task:
        return self._tasks[getcurrent()]

    def chance(self, probability: float) -> bool:
        return probability > 0 and self.random.random() < probability

    def note(self, who: str, what: str) -> None:
        self.trace.append((self.now - START, who, what))

    def _push(self, task: Task, at: float) -> None:
        self._count += 1
        heapq.heappush(self._due, (at, self.random.random(), self._count, task.turn, task))
