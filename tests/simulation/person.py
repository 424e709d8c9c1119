"""The person in charge: moves dead letters back or drops them, decides about unknown sends, erases
people, writes down what they say on the telephone, has texts processed again, and holds the stores
against each other."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from chalicelib.events import Events
from chalicelib.ledger import Busy, Ledger
from chalicelib.messages import MessageId
from chalicelib.queues import Queues
from chalicelib.runtime import is_transient
from chalicelib.settling import Decision, decide
from chalicelib.statements import Statement, id_of
from chalicelib.table import Table
from spillway.operate.consent import list_of
from spillway.operate.dropping import Drop
from spillway.operate.erasure import Erased, Erasure
from spillway.operate.letters import SOURCES, find
from spillway.operate.reconciliation import Reconciled, Reconciliation
from spillway.operate.redriving import Redrive, Redriven
from spillway.operate.replay import Replay, Replayed
from spillway.stage import Api
from spillway.stores import Stores
from tests.simulation.causes import consent_of, current_state
from tests.simulation.functions import Mapping as Source
from tests.simulation.outside import KEYS, OUTGOING, UNREADABLE, URL, Call, Outside
from tests.simulation.runtime import Cloud, SimulatedRuntime
from tests.simulation.stores import REGION
from tests.simulation.world import Process, Task, Violation

# Neither JSON, nor an envelope, nor of a kind that either queue may carry.
GARBAGE = (
    "heron",
    "{}",
    json.dumps(
        {
            "kind": "resume",
            "conversation": "heron",
            "id": "heron",
            "received_at": 1_790_000_000,
            "payload": {},
        }
    ),
)
_MOST_RUNS = 20


@dataclass
class Erasures:
    """How many runs erase somebody just now, and when the last ended."""

    running: int = 0
    until: float = 0.0


class SimulatedStage:
    """What a command asks of a stage, on the simulated stores."""

    local = None
    name = "test"

    def __init__(
        self, cloud: Cloud, process: Process, settings: Callable[[str], Any], role: str
    ) -> None:
        self.settings = settings
        self._runtime = SimulatedRuntime(cloud, process, role, 0.0)
        self.region = REGION
        self.stores = Stores(self, self.name)  # type: ignore[arg-type]

    @property
    def aws(self) -> SimulatedStage:
        return self

    def api(self) -> Api:
        return Api("", URL)

    def runtime(self) -> SimulatedRuntime:
        return self._runtime

    def events(self) -> Events:
        return Events(self._runtime, Queues(self._runtime, "test"), self.settings("processing"))

    def client(self, service: str) -> Any:
        return getattr(self._runtime, service)


class Operator:
    """Works on the same world, through the stores."""

    def __init__(
        self,
        cloud: Cloud,
        out: Outside,
        mappings: dict[str, Source],
        allow: Callable[[str], None],
        resumed: Mapping[str, float],
    ) -> None:
        self._allow = allow
        self._resumed = resumed  # when each message was last sent for
        self._cloud = cloud
        self._out = out
        self._mappings = mappings
        self._moved = 0
        self._moving = 0  # runs that have messages in their hands, where no erasure finds them
        self.dropped: list[tuple[str, str]] = []  # letters: their queue and their body
        self.littered = False
        self.says: tuple[Decision, ...] = ("sent", "resend", "give_up")
        self.settings: Callable[[str], Any] = lambda role: None
        self.erased: dict[str, Erasures] = {}  # by person
        # Called where a run says that all is gone: who, and when it began.
        self.on_good: Callable[[str, float], None] = lambda person, began: None
        self.on_lost: Callable[[str], None] = lambda id_: None
        # Called where there is nothing to be put right any more.
        self.on_reconciled: Callable[[Reconciled], None] = lambda result: None

    def redrive(self) -> None:
        """Dead letters go back to their queues: by our own command, which may die and is perhaps
        run again, or by AWS's."""
        world = self._cloud.world
        if world.chance(0.5):
            self._redrive_as_aws()
            return
        if self._is_erasing():
            return  # what is in its hand no erasure finds: docs/RETENTION.md
        self._moving += 1
        for _ in range(world.random.choice((1, 3))):
            stage, process = self._stage("redriver")
            task = world.spawn(partial(_redriven, stage, world.random.choice((1, 10))), process)
            world.wait(task)
            self._is_none_of_ours(task, "the redrive")
            world.note("operator", f"redrove: {task.result}")
            if task.result is not None and task.result.good:
                break
            world.sleep(60 * world.random.random())
        self._moving -= 1

    def _is_erasing(self) -> bool:
        return any(one.running for one in self.erased.values())

    def drop(self) -> None:
        """Dead letters that nobody wants any more are dropped, some or all; by a command that may
        die and is perhaps run again. What would take a STOP with it stays."""
        world, sqs = self._cloud.world, self._cloud.stores["sqs"]
        if self._is_erasing():
            return
        self._moving += 1
        share = world.random.choice((0.5, 1.0))
        for queue in SOURCES:
            letters = sqs.messages(f"spillway-test-{queue}")
            ids = [one.id for one in letters if one.body not in GARBAGE and world.chance(share)]
            if not ids:
                continue
            for _ in range(world.random.choice((1, 4, 8))):
                there = {one.id: one.body for one in sqs.messages(f"spillway-test-{queue}")}
                stage, process = self._stage("dropper")
                task = world.spawn(partial(_dropped, stage, queue, ids), process)
                world.wait(task)
                left = {one.id for one in sqs.messages(f"spillway-test-{queue}")}
                # (Or moved back by somebody else: then it is still what it was.)
                self.dropped += [
                    (queue, body) for id_, body in there.items() if id_ in ids and id_ not in left
                ]
                self._is_none_of_ours(task, "the dropping")
                world.note("operator", f"dropped: {task.result}")
                for id_ in task.result.refused if task.result is not None else ():
                    self._says_what_is_not_known(there[id_])
                if task.error is None and not process.dead:
                    break
                world.sleep(60 * world.random.random())
        self._moving -= 1

    def _says_what_is_not_known(self, body: str) -> None:
        """A letter stays where the list of consent does not have what it says."""
        text = self._out.texts.get(json.loads(body)["id"])
        known = consent_of(self._cloud, text.person) if text is not None else {}
        if text is not None and known.get("id") == {"S": str(text.id)}:
            raise Violation("what is known may be dropped", text.name, (str(text.id),))

    def replay(self, *, until_good: bool = False) -> float:
        """Texts are processed again: all of them, or some; by a command that may die and is
        perhaps run again. When the last run began (unix seconds)."""
        world = self._cloud.world
        if self._is_erasing():
            return world.now
        self._moving += 1
        never = (UNREADABLE, OUTGOING)
        texts = [text for text in self._out.texts.values() if text.kind not in never]
        ids: list[str] = []
        if texts and not until_good and world.chance(0.5):
            ids = [str(world.random.choice(texts).id) for _ in range(3)]
        result, began = None, world.now
        for _ in range(_MOST_RUNS if until_good else world.random.choice((1, 2))):
            began = world.now
            stage, process = self._stage("replayer")
            task = world.spawn(partial(_replayed, stage, ids), process)
            world.wait(task)
            self._is_none_of_ours(task, "the replay")
            result = task.result if task.error is None and not process.dead else None
            world.note("operator", f"replayed: {result}")
            if result is not None:
                break
            world.sleep(60 * world.random.random())
        self._moving -= 1
        if result is not None and (result.unreadable or result.changed):
            raise Violation("what is archived can be read", f"{result}")
        if until_good and result is None:
            raise Violation("what is archived can be read", f"not in {_MOST_RUNS} runs")
        return began

    def _stage(self, role: str) -> tuple[Any, Process]:
        process = Process(f"{role}-{self._cloud.world.steps}")
        return SimulatedStage(self._cloud, process, self.settings, role), process

    def _is_none_of_ours(self, task: Task, what: str) -> None:
        """A command may fail as a store does, and be killed, and no otherwise."""
        error = task.error
        if error is not None and not task.process.dead and not is_transient(error):
            raise Violation("no bug", f"{type(error).__name__} left {what}: {error!r}")

    def lose(self) -> None:
        """Somebody deletes a message from the outbound queue, by mistake."""
        sqs, queue = self._cloud.stores["sqs"], "spillway-test-outbound.fifo"
        bodies = {one.id: one.body for one in sqs.messages(queue) if one.body not in GARBAGE}
        envelopes = {id_: json.loads(body) for id_, body in bodies.items()}
        # (Whose words are nowhere else, that is lost for good.)
        ids = [id_ for id_, envelope in envelopes.items() if envelope["kind"] != "outgoing"]
        if ids:
            lost = self._cloud.world.random.choice(ids)
            self._cloud.world.note("somebody", f"deletes {bodies[lost][:80]}")
            self.on_lost(envelopes[lost]["id"])
            sqs.lose(queue, lost)

    def lose_item(self) -> None:
        """Somebody deletes a text from the table, by mistake: the archive has it still."""
        table, world = self._cloud.stores["dynamodb"], self._cloud.world
        items = table.scan(TableName="spillway-test", ConsistentRead=True)["Items"]
        keys = [{"pk": one["pk"], "sk": one["sk"]} for one in items if "archive_key" in one]
        if keys:
            lost = world.random.choice(keys)
            world.note("somebody", f"deletes {lost}")
            table.delete_item(TableName="spillway-test", Key=lost)

    def _redrive_as_aws(self) -> None:
        """From the console: the body stays as it is."""
        sqs = self._cloud.stores["sqs"]
        for dead, source in SOURCES.items():
            # (Whom somebody else looks at just now, stays.)
            while found := sqs.receive_message(
                QueueUrl=_url(sqs, dead), MessageSystemAttributeNames=["All"]
            ).get("Messages"):
                (letter,) = found
                self._cloud.world.note("AWS", f"redrives {letter['MessageId'][:8]} to {source}")
                self._moved += 1
                fifo: dict[str, Any] = {}
                if source.endswith(".fifo"):
                    fifo = {
                        "MessageGroupId": letter["Attributes"]["MessageGroupId"],
                        "MessageDeduplicationId": f"again-{self._moved}",
                    }
                sqs.send_message(QueueUrl=_url(sqs, source), MessageBody=letter["Body"], **fifo)
                sqs.delete_message(QueueUrl=_url(sqs, dead), ReceiptHandle=letter["ReceiptHandle"])
        for mapping in self._mappings.values():
            mapping.wake()

    def litter(self) -> None:
        """Something stands on the queues that is not ours, or belongs on another."""
        sqs = self._cloud.stores["sqs"]
        for number, body in enumerate(GARBAGE):
            for queue in SOURCES.values():
                fifo: dict[str, Any] = {}
                if queue.endswith(".fifo"):
                    fifo = {"MessageGroupId": "heron", "MessageDeduplicationId": f"litter-{number}"}
                sqs.send_message(QueueUrl=_url(sqs, queue), MessageBody=body, **fifo)
        self.littered = True
        for mapping in self._mappings.values():
            mapping.wake()

    def decide(self) -> None:
        """A person decides about each unknown send, on what the provider's pages show just now."""
        world = self._cloud.world
        for id_, part, attempt in self._unknown():
            taken = {one.reference for one in self._out.accepted}
            reference = id_.part(part)
            word: Decision = world.random.choice(self.says)
            if word == "sent" and reference not in taken:
                word = "resend"
            if world.chance(0.2):
                attempt += 7  # what this person saw is not so
            elif word == "resend":
                self._allow(reference)
            world.note("person", f"{id_}: {word} part {part}")
            while (heard := self._says(id_, part, attempt, word)) is None:
                # It failed, and whoever sees that says it again.
                world.sleep(30 * world.random.random())
            if heard and world.chance(0.3):
                # Once more, as somebody does who is not sure that it was heard.
                self._says(id_, part, attempt, word)

    def state(self, call: Call) -> None:
        """Writes down what somebody said, again until it is known to be written."""
        said = Statement(call.person, call.event, call.at, "telephone", call.name)
        call.ids.add(str(id_of(KEYS, said)))
        self._out.calls.append(call)
        world, patience = self._cloud.world, 30.0
        while True:
            stage, process = self._stage("clerk")
            task = world.spawn(partial(_stated, stage, said), process)
            task.notes["began"] = world.now
            world.wait(task)
            if task.error is None and not process.dead:
                break
            if not process.dead and not is_transient(task.error):  # type: ignore[arg-type]
                raise Violation("no bug", f"the list is not written: {task.error!r}")
            world.sleep(patience * world.random.random())
            patience = min(2 * patience, 600.0)
        world.note("clerk", f"{call.name} ({call.event} by {call.person}): {task.result}")
        call.acknowledged = True

    def erase(self, person: str, *, until_good: bool = False) -> None:
        """Erases somebody; again where the command died or failed, and until it is good where it
        is said that nobody comes between any more."""
        world = self._cloud.world
        erased = self.erased.setdefault(person, Erasures())
        result = None
        while self._moving:
            world.sleep(30)
        for _ in range(_MOST_RUNS):
            stage, process = self._stage("eraser")
            erased.running += 1
            task = world.spawn(partial(_erased, stage, person), process)
            began = task.notes["began"] = world.now
            world.wait(task)
            erased.running -= 1
            erased.until = world.now
            self._is_none_of_ours(task, "the erasure")
            result = task.result if task.error is None and not process.dead else None
            world.note("operator", f"erased {person}: {result}")
            if result is not None and result.good:
                self.on_good(person, began)
            if result is not None and (result.good or not until_good or self._crowded(result)):
                return
            world.sleep(60 * world.random.random())
        if until_good:
            raise Violation("what is erased is gone", f"not in {_MOST_RUNS} runs: {result}")

    def reconcile(self, *, until_good: bool = False) -> None:
        """Holds the stores against each other, and puts right what somebody's death left behind;
        again where the command died or failed, and until nothing is to be put right any more where
        it is said that nobody comes between."""
        world = self._cloud.world
        result = None
        for _ in range(_MOST_RUNS if until_good else world.random.choice((1, 3))):
            stage, process = self._stage("reconciler")
            task = world.spawn(partial(_reconciled, stage), process)
            task.notes["began"] = world.now
            world.wait(task)
            self._is_none_of_ours(task, "the reconciling")
            result = task.result if task.error is None and not process.dead else None
            world.note("operator", f"reconciled: {_told(result)}")
            if result is not None and not (until_good and _moved(result)):
                break
            world.sleep(60 * world.random.random())
        if until_good:
            if result is None or _moved(result):
                raise Violation("the stores agree", f"not in {_MOST_RUNS} runs: {_told(result)}")
            self.on_reconciled(result)

    def _crowded(self, result: Erased) -> bool:
        """Whether all that it says is that it could not see what stands behind ten letters of one
        group: SQS shows nobody more."""
        letters = self._cloud.stores["sqs"].messages("spillway-test-outbound-dlq.fifo")
        most = max(Counter(letter.group for letter in letters).values(), default=0)
        seen = replace(result, unseen={**result.unseen, "outbound-dlq.fifo": 0})
        return seen.good and most > 10

    def _says(self, id_: MessageId, part: int, attempt: int, word: Decision) -> bool | None:
        """One decision; whether it was taken, None where it failed. What comes of it is what was
        decided."""
        world = self._cloud.world
        began = world.now
        process = Process(f"person-{world.steps}")
        runtime = SimulatedRuntime(self._cloud, process, "person", 0.0)
        found = self._item(id_)
        before = self._is_done(found, part, attempt, word)
        # (What somebody else frees meanwhile is theirs to see to.)
        mine = self._is_left(found) or self._state(found, part) == ("unknown", attempt)
        task = world.spawn(
            lambda: decide(
                runtime,
                Ledger(Table(runtime, "test"), runtime, keep_days=400),
                Queues(runtime, "test"),
                id_,
                part=part,
                attempt=attempt,
                decision=word,
                events=Events(runtime, Queues(runtime, "test"), self.settings("processing")),
            ),
            process,
        )
        task.notes["began"] = began
        world.wait(task)
        error = task.error
        if process.dead or (error is not None and is_transient(error)):
            return None
        if error is not None and not isinstance(error, Busy):
            raise error
        item = self._item(id_)
        done = self._is_done(item, part, attempt, word)
        if error is not None:
            if (before and done) or self._state(item, part) == ("unknown", attempt):
                raise Violation("a person's word counts", f"{id_}: {word} was refused", (str(id_),))
            return False
        if not done:
            raise Violation("a person's word counts", f"{id_}: {word} was not done", (str(id_),))
        unseen = mine and self._is_left(item) and self._resumed.get(str(id_), 0) < began
        if word != "give_up" and unseen:
            raise Violation("a person's word counts", f"{id_}: nobody was sent for", (str(id_),))
        return True

    def _item(self, id_: MessageId) -> dict[str, Any]:
        key = {"pk": {"S": f"C#{id_.conversation}"}, "sk": {"S": f"OUT#{id_.message}"}}
        found: dict[str, Any] = self._cloud.stores["dynamodb"].get_item(
            TableName="spillway-test", Key=key, ConsistentRead=True
        )["Item"]
        return found

    def _state(self, item: dict[str, Any], part: int) -> tuple[str, int]:
        entry = item["parts"]["M"][str(part)]["M"]
        return entry["state"]["S"], int(entry["attempt"]["N"])

    def _is_done(self, item: dict[str, Any], part: int, attempt: int, word: Decision) -> bool:
        """Whether it is as somebody decided who saw this attempt."""
        state, now = self._state(item, part)
        if word == "resend":
            return now > attempt
        if word == "sent":
            return (state, now) == ("sent", attempt)
        return bool(item.get("outcome", {}).get("S") == "failed: given_up")

    def _is_left(self, item: dict[str, Any]) -> bool:
        """Whether a part waits, and the reply is listed still: nobody has seen to it."""
        listed = "outcome" not in item and "unknown_bucket" in item
        return listed and current_state(item) == "waiting"

    def _unknown(self) -> list[tuple[MessageId, int, int]]:
        """What `spillway unknown list` shows."""
        found = []
        for item in self._cloud.stores["dynamodb"].scan(
            TableName="spillway-test", ConsistentRead=True
        )["Items"]:
            for number, part in item.get("parts", {}).get("M", {}).items():
                if part["M"]["state"]["S"] == "unknown":
                    id_ = MessageId(
                        item["pk"]["S"].partition("#")[2], item["sk"]["S"].partition("#")[2]
                    )
                    found.append((id_, int(number), int(part["M"]["attempt"]["N"])))
        return found


def _erased(stage: Any, person: str) -> Erased:
    return Erasure(stage, person, wait=600.0).run()


def _reconciled(stage: Any) -> Reconciled:
    return Reconciliation(stage, wait=600.0).run()


def _moved(result: Reconciled) -> bool:
    """Whether anything was put right, or may still be worked on."""
    return any(result.put_right.values()) or result.under_way > 0


def _told(result: Reconciled | None) -> str:
    if result is None:
        return "not to its end"
    kinds = {**result.put_right, **result.open}
    return str({kind: ids for kind, ids in kinds.items() if ids} | {"busy": result.under_way})


def _redriven(stage: Any, rate: float) -> Redriven:
    return Redrive(stage, list(SOURCES), lambda letter: True, rate=rate).run()


def _dropped(stage: Any, queue: str, ids: list[str]) -> Any:
    """As the command does it: first it says what would be lost."""
    drop = Drop(stage)
    letters, _ = find(stage, queue)
    for letter in letters:
        if letter.id in ids:
            drop.must_stay(letter)
            drop.lost_with(letter)
    return drop.run(queue, ids)


def _replayed(stage: Any, ids: list[str]) -> Replayed:
    replay = Replay(stage, rate=50)
    if ids:
        replay.messages(ids)
    else:
        replay.since(0.0, None)
    return replay.done


def _stated(stage: Any, said: Statement) -> bool:
    return list_of(stage).record_statement(said)


def _url(sqs: Any, queue: str) -> str:
    url: str = sqs.get_queue_url(QueueName=f"spillway-test-{queue}")["QueueUrl"]
    return url
