"""The functions on stores in memory that are as strict as AWS's: queues that deliver as SQS does, a
table, a bucket. Fast enough for thousands of examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import httpx

from chalicelib.batches import BatchFailed
from chalicelib.queues import DEAD_LETTERS, OUTBOUND, PROCESSING
from tests.fakes import Context, FakeRuntime, Tapped
from tests.signing import TelnyxKey
from tests.simulation.stores.dynamodb import DynamoDb
from tests.simulation.stores.s3 import S3
from tests.simulation.stores.sqs import Message, Sqs

DAY = 86_400.0
Answers = Callable[[httpx.Request], httpx.Response]
Handler = Callable[[Mapping[str, Any], Context], Mapping[str, Any] | None]


def runs_without_error(request: httpx.Request) -> httpx.Response:
    """A provider, a reply API and look-ups that all take what they are given."""
    return httpx.Response(
        200,
        json={
            "sid": "SM" + "1" * 32,
            "data": {"id": "40a1"},
            "text": "an answer",
            "known": True,
            "line_type": "mobile",
            "country": "US",
        },
    )


class Memory(FakeRuntime):
    """A runtime on stores in memory; every call to the table goes through a `Tapped`."""

    def __init__(self, answer: Answers = runs_without_error) -> None:
        super().__init__(answer)
        self.vault.held["telnyx"] = {"api_key": "KEY", "public_keys": [TelnyxKey.public]}
        self.table = DynamoDb(self.now)
        self.bucket = S3(self.now)
        self.messages = Sqs(self.now, Random(0))
        for name in (PROCESSING, OUTBOUND, *DEAD_LETTERS.values()):
            self.messages.add(
                f"spillway-test-{name}",
                fifo=name.endswith(".fifo"),
                visibility=360,
                retention=int(14 * DAY),
            )
        self.tap = Tapped(self.table)
        self.__dict__.update(dynamodb=self.tap, s3=self.bucket, sqs=self.messages)

    def on(self, queue: str) -> list[Message]:
        """What stands on a queue."""
        return self.messages.messages(f"spillway-test-{queue}")

    def put(self, queue: str, bodies: Sequence[str]) -> None:
        """Bodies on a queue, whoever wrote them."""
        for number, body in enumerate(bodies):
            fifo: dict[str, Any] = {}
            if queue.endswith(".fifo"):
                fifo = {"MessageGroupId": f"g{number % 2}", "MessageDeduplicationId": f"d{number}"}
            url = self.messages.get_queue_url(QueueName=f"spillway-test-{queue}")["QueueUrl"]
            self.messages.send_message(QueueUrl=url, MessageBody=body, **fifo)

    def poll(self, queue: str, handler: Handler) -> None:
        """What Lambda's poller does once: hands a batch over, and deletes what is not reported."""
        url = self.messages.get_queue_url(QueueName=f"spillway-test-{queue}")["QueueUrl"]
        found = self.messages.receive_message(
            QueueUrl=url, MaxNumberOfMessages=10, AttributeNames=["All"]
        ).get("Messages", [])
        if not found:
            return
        event = {
            "Records": [
                {
                    "messageId": one["MessageId"],
                    "receiptHandle": one["ReceiptHandle"],
                    "body": one["Body"],
                    "attributes": one["Attributes"],
                }
                for one in found
            ]
        }
        try:
            report = handler(event, Context(self, 360.0))
        except BatchFailed:
            return
        failures = (report or {"batchItemFailures": []})["batchItemFailures"]
        failed = [one["itemIdentifier"] for one in failures]
        assert set(failed) <= {one["MessageId"] for one in found}
        for one in found:
            if one["MessageId"] not in failed:
                self.messages.delete_message(QueueUrl=url, ReceiptHandle=one["ReceiptHandle"])

    def drain(self, queue: str, handler: Handler, most: int = 200) -> None:
        """Until nothing is on the queue; the clock jumps from one delivery to the next."""
        for _ in range(most):
            at = self.messages.next_visible(f"spillway-test-{queue}")
            if at is None:
                return
            self.clock = max(self.clock, at)
            self.poll(queue, handler)
        raise AssertionError(f"{len(self.on(queue))} messages never leave the queue")
