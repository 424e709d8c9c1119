"""The person in charge: moves dead letters back, and decides about unknown sends."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from chalicelib.ledger import Busy, Ledger
from chalicelib.messages import MessageId
from chalicelib.queues import Queues
from chalicelib.runtime import is_transient
from chalicelib.settling import decide
from chalicelib.table import Table
from tests.simulation.functions import Mapping
from tests.simulation.outside import Outside
from tests.simulation.runtime import Cloud, SimulatedRuntime
from tests.simulation.world import Process

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
_SOURCES = {"processing-dlq": "processing", "outbound-dlq.fifo": "outbound.fifo"}


class Operator:
    """Works on the same world, through the stores."""

    def __init__(
        self,
        cloud: Cloud,
        out: Outside,
        mappings: dict[str, Mapping],
        allow: Callable[[str], None],
    ) -> None:
        self._allow = allow
        self._cloud = cloud
        self._out = out
        self._mappings = mappings
        self._moved = 0
        self.littered = False

    def redrive(self) -> None:
        """Every dead letter goes back to its queue. Sent first, then deleted: none is lost."""
        sqs = self._cloud.stores["sqs"]
        for dead, source in _SOURCES.items():
            for letter in list(sqs.messages(f"spillway-test-{dead}")):
                self._cloud.world.note("operator", f"redrives {letter.id[:8]} to {source}")
                self._moved += 1
                fifo: dict[str, Any] = {}
                if source.endswith(".fifo"):
                    fifo = {
                        "MessageGroupId": letter.group,
                        "MessageDeduplicationId": f"again-{self._moved}",
                    }
                body = letter.body
                if letter.body not in GARBAGE and self._cloud.world.chance(0.5):
                    # As our own redrive does; AWS's does not.
                    body = json.dumps({**json.loads(body), "redriven_at": self._cloud.world.now})
                sqs.send_message(QueueUrl=_url(sqs, source), MessageBody=body, **fifo)
                handle = sqs.receive_message(QueueUrl=_url(sqs, dead), MaxNumberOfMessages=1)[
                    "Messages"
                ][0]["ReceiptHandle"]
                sqs.delete_message_batch(
                    QueueUrl=_url(sqs, dead), Entries=[{"Id": "0", "ReceiptHandle": handle}]
                )
        for mapping in self._mappings.values():
            mapping.wake()

    def litter(self) -> None:
        """Something stands on the queues that is not ours, or belongs on another."""
        sqs = self._cloud.stores["sqs"]
        for number, body in enumerate(GARBAGE):
            for queue in _SOURCES.values():
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
        process = Process(f"person-{world.steps}")
        runtime = SimulatedRuntime(self._cloud, process, "person", 0.0)
        for id_, part, attempt in self._unknown():
            taken = {one.reference for one in self._out.accepted}
            reference = id_.part(part)
            word = world.random.choice(("sent", "resend", "give_up"))
            if word == "sent" and reference not in taken:
                word = "resend"
            if world.chance(0.2):
                attempt += 1  # what this person saw is not so any more
            elif word == "resend":
                self._allow(reference)
            world.note("person", f"{id_}: {word} part {part}")
            task = world.spawn(
                lambda id_=id_, part=part, attempt=attempt, word=word: decide(  # type: ignore[misc]
                    runtime,
                    Ledger(Table(runtime, "test"), runtime, keep_days=400),
                    Queues(runtime, "test"),
                    id_,
                    part=part,
                    attempt=attempt,
                    decision=word,
                ),
                process,
            )
            world.wait(task)
            if process.dead:
                return
            error = task.error
            if error is not None and not isinstance(error, Busy) and not is_transient(error):
                raise error

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


def _url(sqs: Any, queue: str) -> str:
    url: str = sqs.get_queue_url(QueueName=f"spillway-test-{queue}")["QueueUrl"]
    return url
