"""What stands in for the world in unit tests: a runtime whose clock, chance and network the test
holds, queues in memory, and moto for table and archive (moto's queues differ from SQS, so they are
not used)."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import boto3
import httpx
import pytest
from botocore.exceptions import ClientError, ReadTimeoutError
from moto import mock_aws
from moto.dynamodb.models import dynamodb_backends

from chalicelib.config import Settings, load
from chalicelib.ledger import Ledger, Reply
from chalicelib.messages import InboundMessage, Keys, MessageId, OutgoingMessage
from chalicelib.queues import Envelope, Kind
from chalicelib.runtime import Runtime

T = TypeVar("T")

HASH_KEY = "a hash key of the tests, long enough"
OURS = "+14155550123"
THEIRS = "+14155550100"
TEXT = "Is the heron awake?"
NOW = 1_790_000_000.0
SECRETS: dict[str, Any] = {
    "keys": {"hash_key": HASH_KEY},
    "twilio": {"account_sid": "AC" + "0" * 32, "auth_tokens": ["a token of the tests"]},
    "telnyx": {"api_key": "KEY of the tests", "public_keys": []},
}


class _Nobody:
    """Events of which nobody is to hear."""

    on = False

    def _silent(self, *_: object, **__: object) -> None:
        """Nothing is said."""

    received = ended = told = consented = _silent


NOBODY: Any = _Nobody()


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
    said about receipt handles. `refuses` maps a queue's name to the error that sending raises;
    `depth` is what stands on a queue besides what was sent, or the error that asking raises."""

    URL = "https://sqs.us-east-1.amazonaws.com/123456789012/"

    def __init__(self) -> None:
        self.sent: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.hidden: dict[str, int] = {}
        self.deleted: list[str] = []
        self.refuses: dict[str, Exception] = {}
        self.depth: int | Exception = 0
        self.depth_reads = 0
        self._deduplicated: set[tuple[str, str, str]] = set()

    def get_queue_url(self, *, QueueName: str) -> dict[str, str]:
        return {"QueueUrl": self.URL + QueueName}

    def get_queue_attributes(
        self, *, QueueUrl: str, AttributeNames: Sequence[str]
    ) -> dict[str, dict[str, str]]:
        self.depth_reads += 1
        if isinstance(self.depth, Exception):
            raise self.depth
        counts = {
            "ApproximateNumberOfMessages": len(self.sent[_name_in(QueueUrl)]) + self.depth,
            "ApproximateNumberOfMessagesNotVisible": 0,
            "ApproximateNumberOfMessagesDelayed": 0,
        }
        return {"Attributes": {name: str(counts[name]) for name in AttributeNames}}

    def send_message(self, *, QueueUrl: str, **message: Any) -> dict[str, Any]:
        queue = _name_in(QueueUrl)
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


def _name_in(url: str) -> str:
    """A queue's name as chalicelib.queues has it."""
    return url.rpartition("/")[2].partition("-")[2].partition("-")[2]


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
            "SEND_ONLY_TO": "*",
            **variables,
        }
    )


# --- the table under a test's hand -------------------------------------------------------------


@contextmanager
def one_table() -> Iterator[Any]:
    """A client of the table of stage `test`, for a whole module of tests: making both is what takes
    time."""
    with mock_aws():
        client: Any = boto3.client("dynamodb", region_name="us-east-1")
        client.create_table(
            TableName="spillway-test",
            BillingMode="PAY_PER_REQUEST",
            KeySchema=[
                {"AttributeName": "pk", "KeyType": "HASH"},
                {"AttributeName": "sk", "KeyType": "RANGE"},
            ],
            AttributeDefinitions=[
                {"AttributeName": "pk", "AttributeType": "S"},
                {"AttributeName": "sk", "AttributeType": "S"},
            ],
        )
        yield client


def on_empty_table(client: Any) -> FakeRuntime:
    """A runtime on the table of `one_table`, emptied, with every call to it through a `Tapped`."""
    dynamodb_backends["123456789012"]["us-east-1"].tables["spillway-test"].items.clear()
    runtime = FakeRuntime()
    runtime.__dict__["dynamodb"] = Tapped(client)
    return runtime


@dataclass(frozen=True)
class Lost:
    """The call is made, and its answer is lost."""

    error: BaseException


class Tapped:
    """A client of boto3's, every call of which is written down, and goes wrong where `next` says.

    `next` has for an operation what its next calls do: None passes, an exception is raised instead
    of the call, `Lost` after it, a function is called before it (somebody else comes between).
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self.exceptions = client.exceptions
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.next: dict[str, Iterator[Exception | Lost | Callable[[], object] | None]] = {}

    def writes(self) -> list[str]:
        """The writing calls so far, by operation."""
        return [name for name, _ in self.calls if name in ("put_item", "update_item")]

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(**arguments: Any) -> Any:
            self.calls.append((name, arguments))
            turn = next(self.next.get(name, iter(())), None)
            if isinstance(turn, Exception):
                raise turn
            if callable(turn):
                turn()
            answer = getattr(self._client, name)(**arguments)
            if isinstance(turn, Lost):
                raise turn.error
            return answer

        return call


def tapped(runtime: FakeRuntime) -> Tapped:
    """The tap of a runtime made by `on_empty_table`."""
    client: Any = runtime.dynamodb
    assert isinstance(client, Tapped)
    return client


def no_answer() -> Exception:
    """What botocore raises where a call may or may not have been served."""
    return ReadTimeoutError(endpoint_url="https://dynamodb.example.com")


def aws_error(code: str, operation: str = "UpdateItem") -> ClientError:
    """A refusal of AWS. Its text repeats what was asked, as some do."""
    return ClientError({"Error": {"Code": code, "Message": f"{TEXT} {THEIRS}"}}, operation)


# --- messages, and what may be said of them ----------------------------------------------------


def inbound(
    text: str = TEXT, *, id_: str = "SM1", theirs: str = THEIRS, ours: str = OURS, **fields: Any
) -> Envelope:
    """A text of theirs to us, as the receiver puts it on the outbound queue."""
    values: dict[str, Any] = {"provider": "twilio", "account": "AC1", "received_at": NOW, **fields}
    message = InboundMessage(id=id_, sender=theirs, recipient=ours, text=text, **values)
    return _envelope("inbound", message, message.received_at, ("twilio", "AC1", id_))


def outgoing(
    text: str = TEXT, *, key: str = "k1", theirs: str = THEIRS, received_at: float = NOW
) -> Envelope:
    """A text that a client of ours asked us to send."""
    message = OutgoingMessage("twilio", OURS, theirs, text)
    return _envelope("outgoing", message, received_at, ("api", "api", key))


def _envelope(
    kind: Kind,
    message: InboundMessage | OutgoingMessage,
    received_at: float,
    source: tuple[str, str, str],
) -> Envelope:
    keys = Keys(HASH_KEY)
    conversation = keys.conversation(message.ours, message.theirs)
    return Envelope(
        kind,
        conversation,
        str(MessageId(conversation, keys.message(*source))),
        received_at,
        asdict(message),
        callback_url="https://sms.example.com/webhooks/twilio/signed",
    )


def begun(
    ledger: Ledger, id_: MessageId, *, theirs: str = THEIRS, received_at: float = NOW
) -> Reply:
    """An answer that was begun, and has no words yet."""
    return ledger.open(
        id_,
        kind="inbound",
        provider="twilio",
        ours=OURS,
        theirs=theirs,
        callback_url="https://sms.example.com/webhooks/twilio/signed",
        received_at=received_at,
    )


def logged(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The log lines since the last call, after a look that none says what must not be said.

    Every number of the tests begins with +1415555, and every text and error has the word heron.
    """
    output = "".join(capsys.readouterr())
    secrets = [HASH_KEY, *SECRETS["twilio"]["auth_tokens"], SECRETS["telnyx"]["api_key"]]
    for unsaid in ("415555", "heron", *secrets):
        assert unsaid.lower() not in output.lower()
    return [json.loads(line) for line in output.splitlines()]


def events(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the lines are about, without the metrics."""
    return [line["event"] for line in lines if "event" in line]
