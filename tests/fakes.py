"""What stands in for the world in unit tests: a runtime whose clock, chance and network the test
holds, queues in memory, and moto for table and archive (moto's queues differ from SQS, so they are
not used)."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import boto3
import httpx

from chalicelib.config import Settings, load
from chalicelib.runtime import Runtime

T = TypeVar("T")

HASH_KEY = "a hash key of the tests, long enough"
OURS = "+14155550123"
THEIRS = "+14155550100"
NOW = 1_790_000_000.0
SECRETS: dict[str, Any] = {
    "keys": {"hash_key": HASH_KEY},
    "twilio": {"account_sid": "AC" + "0" * 32, "auth_tokens": ["a token of the tests"]},
    "telnyx": {"api_key": "KEY of the tests", "public_keys": []},
}


class FakeRuntime(Runtime):
    """A runtime for tests. `clock` stands still until a test or a sleep moves it; `answer` is what
    the network says to each request."""

    def __init__(self, answer: Callable[[httpx.Request], httpx.Response] | None = None) -> None:
        super().__init__()
        self.clock = NOW
        self.requests: list[httpx.Request] = []
        self.queues = FakeSqs()
        self.vault = FakeSecrets()
        self._answer = answer or (lambda request: httpx.Response(500))
        self.__dict__["sqs"] = self.queues
        self.__dict__["secretsmanager"] = self.vault
        self.__dict__["http"] = httpx.Client(transport=httpx.MockTransport(self._respond))
        self._ids = 0

    def now(self) -> float:
        return self.clock

    def sleep(self, seconds: float) -> None:
        self.clock += seconds

    def random(self) -> float:
        return 0.5

    def new_id(self) -> str:
        self._ids += 1
        return f"id-{self._ids}"

    def together(self, tasks: Sequence[Callable[[], T]], limit: int = 1) -> list[T]:
        return [task() for task in tasks]

    def _client(self, service: str) -> Any:
        return boto3.client(service, region_name="us-east-1")

    def _respond(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self._answer(request)


class FakeSecrets:
    """Secrets Manager: what `spillway/{stage}/{name}` holds. Counts how often each was read."""

    class exceptions:
        class ResourceNotFoundException(Exception):
            pass

    def __init__(self) -> None:
        self.held: dict[str, Any] = dict(SECRETS)
        self.reads: dict[str, int] = defaultdict(int)
        self.fails: Exception | None = None

    def get_secret_value(self, *, SecretId: str) -> dict[str, str]:
        name = SecretId.rpartition("/")[2]
        self.reads[name] += 1
        if self.fails:
            raise self.fails
        if name not in self.held:
            raise self.exceptions.ResourceNotFoundException
        held = self.held[name]
        return {"SecretString": held if isinstance(held, str) else json.dumps(held)}


class FakeSqs:
    """Queues in memory, as far as the functions use them: lists of what was sent, and what was
    said about receipt handles. `refuses` maps a queue's name to the error that sending raises."""

    URL = "https://sqs.us-east-1.amazonaws.com/123456789012/"

    def __init__(self) -> None:
        self.sent: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.hidden: dict[str, int] = {}
        self.deleted: list[str] = []
        self.refuses: dict[str, Exception] = {}
        self._deduplicated: set[tuple[str, str, str]] = set()

    def get_queue_url(self, *, QueueName: str) -> dict[str, str]:
        return {"QueueUrl": self.URL + QueueName}

    def send_message(self, *, QueueUrl: str, **message: Any) -> dict[str, Any]:
        queue = QueueUrl.rpartition("/")[2].partition("-")[2].partition("-")[2]
        if queue in self.refuses:
            raise self.refuses[queue]
        message["MessageBody"].encode("ascii")
        if queue.endswith(".fifo"):
            key = (queue, message["MessageGroupId"], message["MessageDeduplicationId"])
            if key in self._deduplicated:
                return {}
            self._deduplicated.add(key)
        self.sent[queue].append(message)
        return {}

    def send_message_batch(
        self,
        *,
        QueueUrl: str,
        Entries: list[dict[str, Any]],
    ) -> dict[str, Any]:
        assert len(Entries) <= 10
        for entry in Entries:
            self.send_message(QueueUrl=QueueUrl, **{k: v for k, v in entry.items() if k != "Id"})
        return {}

    def change_message_visibility_batch(
        self,
        *,
        QueueUrl: str,
        Entries: list[dict[str, Any]],
    ) -> dict[str, Any]:
        assert len(Entries) <= 10
        self.hidden |= {entry["ReceiptHandle"]: entry["VisibilityTimeout"] for entry in Entries}
        return {}

    def delete_message_batch(
        self,
        *,
        QueueUrl: str,
        Entries: list[dict[str, Any]],
    ) -> dict[str, Any]:
        assert len(Entries) <= 10
        self.deleted += [entry["ReceiptHandle"] for entry in Entries]
        return {}


class Context:
    """Lambda's context, with as much time left as the test says."""

    def __init__(self, runtime: FakeRuntime | None = None, seconds: float = 60.0) -> None:
        self._runtime = runtime
        self._end = (runtime.clock if runtime else 0.0) + seconds

    def get_remaining_time_in_millis(self) -> int:
        return int((self._end - (self._runtime.clock if self._runtime else 0.0)) * 1000)


def sqs_event(bodies: Sequence[str], *, receives: int = 1, group: str = "") -> dict[str, Any]:
    """Lambda's event for messages with these bodies. Message ids are m0, m1, …; handles h0, …"""
    return {
        "Records": [
            {
                "messageId": f"m{number}",
                "receiptHandle": f"h{number}",
                "body": body,
                "attributes": {
                    "ApproximateReceiveCount": str(receives),
                    "SentTimestamp": str(int(NOW * 1000)),
                    **({"MessageGroupId": group} if group else {}),
                },
                "messageAttributes": {},
                "eventSource": "aws:sqs",
                "eventSourceARN": "arn:aws:sqs:us-east-1:123456789012:spillway-test",
                "awsRegion": "us-east-1",
            }
            for number, body in enumerate(bodies)
        ]
    }


def delivered(runtime: FakeRuntime, queue: str) -> dict[str, Any]:
    """Everything that was sent to a queue so far, as the event of its handler."""
    return sqs_event([message["MessageBody"] for message in runtime.queues.sent[queue]])


def settings(function: str, **variables: str) -> Settings:
    """The settings of a function in stage `test`."""
    return load(
        {
            "SPILLWAY_FUNCTION": function,
            "SPILLWAY_STAGE": "test",
            "PROVIDERS": "twilio,telnyx",
            "NUMBERS": f"{OURS}=twilio,+14155550199=telnyx",
            "REPORT_BATCH_ITEM_FAILURES": "true",
            **variables,
        }
    )
