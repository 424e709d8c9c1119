"""Lambda and its event source mappings, simulated: environments that are kept, time-outs that kill,
polling, partial batch reports, and deliveries that SQS makes once more than it was asked to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from chalicelib.batches import BatchFailed
from tests.simulation.runtime import Cloud, SimulatedRuntime
from tests.simulation.stores.sqs import Sqs
from tests.simulation.world import Killed, Process, Task, Violation

_MOST_KILLS = 100  # in a row; some of them before anybody could count them
_MOST_TROUBLES = 3  # more deliveries at once would be taken for starts that never ended


@dataclass
class Environment:
    """One warm instance of a function."""

    process: Process
    runtime: SimulatedRuntime
    version: int
    handler: Any = None


@dataclass
class Invocation:
    """How one invocation ended. `died`: no answer, for whatever reason."""

    died: bool
    value: Any = None
    error: BaseException | None = None
    started: bool = True  # whether the function had come up when it ended
    poisoned: bool = False  # by a message that kills
    began: float = 0.0
    late: bool = False  # whether it took longer than Lambda gives it
    troubled_at: float = 0.0  # when a store last failed its process


class Context:
    """Lambda's context."""

    def __init__(self, runtime: SimulatedRuntime, deadline: float) -> None:
        self._runtime = runtime
        self._deadline = deadline

    def get_remaining_time_in_millis(self) -> int:
        return int((self._deadline - self._runtime.world.now) * 1000)


class Function:
    """One of the three functions. `build` makes the real handler on a runtime, as `start` does."""

    def __init__(
        self,
        cloud: Cloud,
        role: str,
        build: Callable[[SimulatedRuntime], Any],
        timeout: float,
        overtime: float = 0.0,
    ) -> None:
        # How long an invocation may go on after its time, before it is ended: a frozen one does
        # not know how late it is.
        self._overtime = overtime
        self._cloud = cloud
        self._role = role
        self._build = build
        self._timeout = timeout
        self._idle: list[Environment] = []
        self._made = 0
        self._version = 0
        self.surprises: list[BaseException] = []

    def invoke(
        self, work: Callable[[Any, Context], Any], on_task: Callable[[Task], None] | None = None
    ) -> Invocation:
        """Runs `work(handler, context)` in an environment, until it ends or its time does."""
        world = self._cloud.world
        environment = self._idle.pop() if self._idle else self._environment()
        deadline = world.now + self._timeout

        def run() -> Any:
            if environment.handler is None:
                environment.handler = self._build(environment.runtime)
            return work(environment.handler, Context(environment.runtime, deadline))

        task = world.spawn(run, environment.process)
        warm = environment.handler is not None
        task.notes.update(began=world.now, deadline=deadline, warm=warm)
        if on_task:
            on_task(task)
        grace = self._overtime * max(world.random.random(), world.random.random())
        clock = world.spawn(lambda: self._time_out(task, environment), after=self._timeout + grace)
        world.wait(task)
        world.wake(clock)
        if isinstance(task.error, Killed) or environment.process.dead:
            return Invocation(died=True, poisoned=environment.process.poisoned)
        if not world.chance(0.1) and environment.version == self._version:
            self._idle.append(environment)
        if environment.handler is not None:
            self._cloud.on_end(environment.process, deadline - self._timeout)
        if task.error is not None:
            started = environment.handler is not None
            return Invocation(
                died=True,
                error=task.error,
                started=started,
                began=deadline - self._timeout,
                troubled_at=environment.process.troubled_at,
            )
        return Invocation(
            died=False,
            value=task.result,
            began=deadline - self._timeout,
            late=world.now > deadline - 12,
            troubled_at=environment.process.troubled_at,
        )

    def renew(self) -> None:
        """Its settings have changed: what runs ends, and nothing old begins any more."""
        self._version += 1
        self._idle.clear()

    def _time_out(self, task: Task, environment: Environment) -> None:
        if not task.done:
            self._cloud.world.note(environment.process.name, "TIME-OUT")
            self._cloud.world.kill(environment.process)

    def _environment(self) -> Environment:
        self._made += 1
        process = Process(f"{self._role}-{self._made}")
        skew = self._cloud.world.random.uniform(-0.5, 0.5)
        runtime = SimulatedRuntime(self._cloud, process, self._role, skew)
        return Environment(process, runtime, self._version)


class Mapping:
    """An event source mapping: polls a queue, invokes a function, deletes what was done."""

    def __init__(
        self,
        cloud: Cloud,
        sqs: Sqs,
        queue: str,
        function: Function,
        *,
        batch: int,
        most: int,
        reporting: bool,
        trouble: float,
        groups: bool,
        visibility: int,
        soon: float,
    ) -> None:
        # Seconds after which it does so, at most; and how often it did for each message.
        self._soon = soon
        self._troubles: dict[str, int] = {}
        self._kills: dict[str, int] = {}  # deaths in a row of those that had each message
        self._visibility = visibility
        # Not every event source passes the message group.
        self._groups = groups
        self._cloud = cloud
        self._sqs = sqs
        self._queue = queue
        self._url = sqs.get_queue_url(QueueName=queue)["QueueUrl"]
        self._function = function
        self._batch = batch
        self._most = most
        self._reporting = reporting
        # How likely SQS does one more than it was asked to, at each message.
        self._trouble = trouble
        self._running = 0
        # How often each message's work ended without its being deleted for it: what may have been
        # the message's fault, as far as anybody can tell.
        self.bad_ends: dict[str, int] = {}
        # ... and of these, how often it may have been another message of the batch.
        self.poisoned_ends: dict[str, int] = {}
        self.calm = False  # whether nothing goes wrong at all
        self.expected: Callable[[Invocation], bool] = lambda invocation: False
        self.surprises: list[BaseException] = []
        self.task = cloud.world.spawn(self._poll)

    def wake(self) -> None:
        self._cloud.world.wake(self.task)

    def _poll(self) -> None:
        world = self._cloud.world
        while True:
            at = self._sqs.next_visible(self._queue)
            if at is None or self._running >= self._most:
                world.park()
            elif at > world.now:
                world.wake(self.task, at)
                world.park()
            else:
                records = self._receive()
                if records:
                    self._running += 1
                    world.spawn(lambda records=records: self._work(records))  # type: ignore[misc]
                world.sleep(0.001)

    def _receive(self) -> list[dict[str, Any]]:
        records: list[dict[str, Any]] = []
        while len(records) < self._batch:
            answer = self._sqs.receive_message(
                QueueUrl=self._url,
                MaxNumberOfMessages=min(10, self._batch - len(records)),
                MessageSystemAttributeNames=["All"],
                MessageAttributeNames=["All"],
            )
            found = answer.get("Messages", [])
            if not found:
                break
            records += found
        return [
            {
                "messageId": one["MessageId"],
                "receiptHandle": one["ReceiptHandle"],
                "body": one["Body"],
                "attributes": {
                    name: value
                    for name, value in one["Attributes"].items()
                    if self._groups or name != "MessageGroupId"
                },
                "messageAttributes": one.get("MessageAttributes", {}),
            }
            for one in records
        ]

    def _work(self, records: list[dict[str, Any]]) -> None:
        world = self._cloud.world
        for record in records:
            id_ = record["messageId"]
            troubled = self._troubles.get(id_, 0) < _MOST_TROUBLES and world.chance(self._trouble)
            if not self._cloud.faults.calm and troubled:
                self._troubles[id_] = self._troubles.get(id_, 0) + 1
                again = self._sqs.expire if world.chance(0.5) else self._sqs.deliver_again
                world.spawn(
                    lambda id_=id_, again=again: self._once_more(again, id_),  # type: ignore[misc]
                    after=world.random.random() ** 2 * self._soon,
                )
        ids = [record["messageId"] for record in records]
        for record in records:
            # Until the end is seen to be good.
            self.bad_ends[record["body"]] = self.bad_ends.get(record["body"], 0) + 1
        invocation = self._function.invoke(
            lambda handler, context: handler.handle({"Records": records}, context),
            lambda task: task.notes.update(records=ids),
        )
        self._running -= 1
        if invocation.error is not None and not self.expected(invocation):
            self.surprises.append(invocation.error)
        if invocation.poisoned:
            for record in records:
                poisoned = self.poisoned_ends.get(record["body"], 0) + 1
                self.poisoned_ends[record["body"]] = poisoned
        for id_ in ids:
            # (What could be put off is taken for harmless again.)
            ends_badly = invocation.died and invocation.started
            self._kills[id_] = (self._kills.get(id_, 0) + ends_badly) * invocation.died
        if invocation.poisoned and max(self._kills[id_] for id_ in ids) > _MOST_KILLS:
            raise Violation("what kills is put aside", self._queue)
        self._nobody_waits(records, invocation)
        untroubled = invocation.began > invocation.troubled_at
        if not invocation.died and self._reporting and untroubled:
            self._come_back(records, self._left(invocation.value))
        if isinstance(invocation.error, BatchFailed) and untroubled:
            # What is done is deleted, and what is not was hidden.
            self._come_back(records, {record["messageId"] for record in records})
        if not invocation.died:
            done = [r for r in records if r["messageId"] not in self._left(invocation.value)]
            for record in records:
                # (What ends later than its time might as well have died of it.)
                if record not in done and not invocation.late:
                    self.bad_ends[record["body"]] -= 1
            self._delete(done)
        elif not self._reporting and invocation.error is not None:
            undeleted = self._undeleted(ids)
            for record in records:
                # (What is done and could not be deleted looks like what never ends.)
                self.bad_ends[record["body"]] -= record["messageId"] not in undeleted
        world.wake(self.task)

    def _nobody_waits(self, records: list[dict[str, Any]], invocation: Invocation) -> None:
        """In a calm world everything is done at once. (But for a picture that is not there yet.)"""
        left = self._left(invocation.value) or isinstance(invocation.error, BatchFailed)
        pictures = any('"media":[{' in record["body"] for record in records)
        if self.calm and left and not pictures:
            raise Violation("where nothing is wrong nobody waits", self._queue)

    def _come_back(self, records: list[dict[str, Any]], left: set[str]) -> None:
        """What a function defers is to be received when it said, and not when SQS's time is up."""
        receives = {
            record["messageId"]: int(record["attributes"]["ApproximateReceiveCount"])
            for record in records
            if record["messageId"] in left
        }
        for message in self._sqs.messages(self._queue):
            if message.receipt is None or receives.get(message.id) != message.receives:
                continue
            if self._cloud.world.now > message.visible_at:
                continue  # it took longer than its visibility: SQS refused what it said
            if message.visible_at == message.receipt.received_at + self._visibility:
                raise Violation("what is deferred comes back when it is due", message.id)

    def _undeleted(self, ids: list[str]) -> set[str]:
        """What is neither gone nor hidden anew after a batch without report."""
        return {
            message.id
            for message in self._sqs.messages(self._queue)
            if message.id in ids
            and message.receipt is not None
            and message.visible_at == message.receipt.received_at + self._visibility
        }

    def _left(self, value: Any) -> set[str]:
        if not self._reporting:
            return set()
        return {one["itemIdentifier"] for one in (value or {}).get("batchItemFailures", [])}

    def _delete(self, done: list[dict[str, Any]]) -> None:
        world = self._cloud.world
        for record in done:
            if not self._cloud.faults.calm and world.chance(self._trouble / 2):
                world.note(self._queue, "a deletion fails")
                continue
            handle = record["receiptHandle"]
            self._sqs.delete_message_batch(
                QueueUrl=self._url, Entries=[{"Id": "0", "ReceiptHandle": handle}]
            )

    def _once_more(self, again: Callable[[str, str], Any], id_: str) -> None:
        self._cloud.world.note(self._queue, f"{again.__name__} {id_[:8]}")
        again(self._queue, id_)
        self.wake()
