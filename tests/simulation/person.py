"""The person in charge: moves dead letters back, and decides about unknown sends."""

from __future__ import annotations

from typing import Any

from tests.simulation.functions import Mapping
from tests.simulation.outside import Outside
from tests.simulation.runtime import Cloud

_SOURCES = {"processing-dlq": "processing", "outbound-dlq.fifo": "outbound.fifo"}


class Operator:
    """Works on the same world, through the stores."""

    def __init__(self, cloud: Cloud, out: Outside, mappings: dict[str, Mapping]) -> None:
        self._cloud = cloud
        self._out = out
        self._mappings = mappings
        self._moved = 0

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
                sqs.send_message(QueueUrl=_url(sqs, source), MessageBody=letter.body, **fifo)
                handle = sqs.receive_message(QueueUrl=_url(sqs, dead), MaxNumberOfMessages=1)[
                    "Messages"
                ][0]["ReceiptHandle"]
                sqs.delete_message_batch(
                    QueueUrl=_url(sqs, dead), Entries=[{"Id": "0", "ReceiptHandle": handle}]
                )
        for mapping in self._mappings.values():
            mapping.wake()


def _url(sqs: Any, queue: str) -> str:
    url: str = sqs.get_queue_url(QueueName=f"spillway-test-{queue}")["QueueUrl"]
    return url
