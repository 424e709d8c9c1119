"""Events: what is announced, under which id, how it is published, and how often."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import httpx
import pytest

from chalicelib.batches import Defer, GiveUp
from chalicelib.events import FAILURES, PATIENCE, Events, Publisher
from chalicelib.ledger import reply_of
from chalicelib.messages import DeliveryReceipt
from chalicelib.queues import PROCESSING, Envelope, Queues
from chalicelib.vault import SecretError, Vault
from spillway.aws import Aws, of_emulator
from tests import emulated
from tests.fakes import NOW, OURS, THEIRS, FakeRuntime, aws_error, settings

pytestmark = pytest.mark.usefixtures("says_nothing")

URL = "https://events.example.com/hook?key=1"
KEY = base64.b64encode(b"a signing key of the tests, 32 b.").decode()
OLD = base64.b64encode(b"an older key of the tests, 32 by.").decode()
CONVERSATION, MESSAGE = "c" * 24, "d" * 24
ID = f"{CONVERSATION}-{MESSAGE}"


def world(answer: Callable[[httpx.Request], httpx.Response] | None = None) -> FakeRuntime:
    runtime = FakeRuntime(answer or (lambda request: httpx.Response(204)))
    runtime.vault.held["events"] = {"signing_secrets": [f"whsec_{KEY}"]}
    return runtime


def publisher(runtime: FakeRuntime, **variables: str) -> Publisher:
    variables = variables or {"EVENTS_URL": URL}
    return Publisher(runtime, settings("processing", **variables), Vault(runtime, "test"))


def announced(runtime: FakeRuntime) -> list[Envelope]:
    return [Envelope.parse(m["MessageBody"]) for m in runtime.queues.sent[PROCESSING]]


def announcer(runtime: FakeRuntime, **variables: str) -> Events:
    variables = variables or {"EVENTS_URL": URL}
    return Events(runtime, Queues(runtime, "test"), settings("processing", **variables))


def reply(**fields: Any) -> Any:
    part = {
        "text": "Yes.",
        "media": [],
        "state": "sent",
        "attempt": 0,
        "provider_id": "SM9",
        "owner": "heron",
        "lease_until": NOW,
    }
    return reply_of(
        {
            "pk": f"C#{CONVERSATION}",
            "sk": f"OUT#{MESSAGE}",
            "kind": "inbound",
            "provider": "twilio",
            "ours": OURS,
            "theirs": THEIRS,
            "callback_url": "",
            "received_at": NOW,
            "parts": {"1": part},
            **fields,
        }
    )


LINE = {
    "id": ID,
    "conversation": CONVERSATION,
    "provider": "twilio",
    "account": "AC1",
    "provider_id": "SM1",
    "from": THEIRS,
    "to": OURS,
    "text": "Hello",
    "media": [],
    "group": False,
    "sent_at": None,
    "received_at": NOW,
    "encoding": "GSM-7",
    "segments": 1,
    "keyword": None,
    "valid": True,
    "reasons": [],
    "lookups": {"line": None},
    "raw": {"a": 1},
}
RECEIPT = DeliveryReceipt("twilio", "SM9", f"{ID}-1", "delivered", "", NOW + 5)

ANNOUNCED: list[tuple[Callable[[Events], None], dict[str, Any]]] = [
    (
        lambda events: events.received([LINE]),
        {
            "id": f"message.received.{ID}",
            "type": "message.received",
            "timestamp": "2026-09-21T14:13:20.000+00:00",
            "data": {
                "id": ID,
                "provider": "twilio",
                "provider_id": "SM1",
                "from": THEIRS,
                "to": OURS,
                "text": "Hello",
                "media": [],
                "group": False,
                "segments": 1,
                "keyword": None,
                "valid": True,
                "reasons": [],
                "lookups": {"line": None},
                "sent_at": None,
                "received_at": "2026-09-21T14:13:20.000+00:00",
            },
        },
    ),
    (
        lambda events: events.ended(reply()),
        {
            "id": f"reply.ended.{ID}",
            "type": "reply.ended",
            "timestamp": "2026-09-21T14:13:20.000+00:00",
            "data": {
                "id": ID,
                "kind": "answer",
                "provider": "twilio",
                "from": OURS,
                "to": THEIRS,
                "outcome": "sent",
                "received_at": "2026-09-21T14:13:20.000+00:00",
                "parts": [
                    {
                        "reference": f"{ID}-1",
                        "text": "Yes.",
                        "media": [],
                        "state": "sent",
                        "provider_id": "SM9",
                    }
                ],
            },
        },
    ),
    (
        lambda events: events.told(RECEIPT, reply()),
        {
            "id": f"receipt.received.{ID}-1.delivered",
            "type": "receipt.received",
            "timestamp": "2026-09-21T14:13:25.000+00:00",
            "data": {
                "id": ID,
                "reference": f"{ID}-1",
                "provider": "twilio",
                "provider_id": "SM9",
                "status": "delivered",
                "error": "",
                "occurred_at": "2026-09-21T14:13:25.000+00:00",
            },
        },
    ),
    (
        lambda events: events.consented(
            THEIRS, "stop", NOW, words="Stop!", source="twilio", id_=ID
        ),
        {
            "id": f"consent.changed.{ID}.stop",
            "type": "consent.changed",
            "timestamp": "2026-09-21T14:13:20.000+00:00",
            "data": {
                "number": THEIRS,
                "event": "stop",
                "at": "2026-09-21T14:13:20.000+00:00",
                "source": "twilio",
                "words": "Stop!",
                "id": ID,
            },
        },
    ),
]


@pytest.mark.parametrize(("announce", "event"), ANNOUNCED)
def test_what_is_announced(announce: Callable[[Events], None], event: dict[str, Any]) -> None:
    runtime = world()
    announce(announcer(runtime))
    # Said again, it is the same event.
    announce(announcer(runtime))
    first, again = announced(runtime)
    assert first.payload == event
    assert again.payload["id"] == event["id"]
    assert (first.kind, first.id, first.conversation) == ("event", ID, CONVERSATION)


@pytest.mark.parametrize(("announce", "_event"), ANNOUNCED)
def test_where_nobody_is_to_hear_of_it_nothing_is_announced(
    announce: Callable[[Events], None], _event: object
) -> None:
    runtime = world()
    announce(announcer(runtime, EVENTS_URL=""))
    assert announced(runtime) == []


@pytest.mark.parametrize(
    ("ended", "one"),
    [
        (True, reply()),
        (True, reply(outcome="refused: opted_out", parts=None)),
        (False, reply(parts=None)),
        (False, reply(parts={"1": {"text": "", "media": [], "state": "unknown", "attempt": 0}})),
        (False, reply(theirs="", outcome="erased")),
        (False, None),
    ],
)
def test_a_reply_is_news_when_it_has_ended(ended: bool, one: Any) -> None:
    runtime = world()
    announcer(runtime).ended(one)
    assert len(announced(runtime)) == ended


def event_of(runtime: FakeRuntime) -> Envelope:
    announcer(runtime).received([LINE])
    return announced(runtime)[-1]


# --- signed call-backs ---------------------------------------------------------------------------


def test_a_call_back_is_signed_as_the_standard_says() -> None:
    runtime = world()
    runtime.vault.held["events"] = {"signing_secrets": [f"whsec_{KEY}", f"whsec_{OLD}"]}
    event = event_of(runtime)
    publisher(runtime).publish(event)
    (request,) = runtime.requests
    assert str(request.url) == URL
    assert json.loads(request.content) == event.payload
    assert request.headers["content-type"] == "application/json"
    assert request.headers["webhook-id"] == event.payload["id"]
    assert request.headers["webhook-timestamp"] == str(int(NOW))
    content = f"{event.payload['id']}.{int(NOW)}.".encode() + request.content
    # With the newest key first, and with the old one as long as it is there.
    assert request.headers["webhook-signature"].split(" ") == [
        "v1," + base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
        for key in (base64.b64decode(KEY), base64.b64decode(OLD))
    ]


def test_the_signature_is_that_of_the_standards_own_example() -> None:
    # https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
    from chalicelib.events import _signature

    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    content = b'msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330.{"test": 2432232314}'
    assert _signature(key, content) == "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    ("answer", "why", "after"),
    [
        (httpx.Response(503), "events: 503", None),
        (httpx.Response(429, headers={"Retry-After": "40"}), "events: 429", 40.0),
        (httpx.Response(404), "events: 404", None),
        (
            httpx.Response(302, headers={"Location": "https://other.example.com"}),
            "events: 302",
            None,
        ),
        (httpx.ReadTimeout("slow"), "events: ReadTimeout", None),
        (httpx.ConnectError("down"), "events: ConnectError", None),
    ],
)
def test_what_is_not_taken_comes_again(
    answer: httpx.Response | Exception, why: str, after: float | None
) -> None:
    def respond(request: httpx.Request) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        return answer

    runtime = world(respond)
    event, one = event_of(runtime), publisher(runtime)
    for _ in range(FAILURES):
        with pytest.raises(Defer) as raised:
            one.publish(event)
        assert (raised.value.reason, raised.value.after) == (why, after)
    # Nobody else is sent after these, for a while.
    with pytest.raises(Defer, match="events: failing") as raised:
        one.publish(event)
    assert raised.value.after == PATIENCE * 1.5
    assert len(runtime.requests) == FAILURES
    runtime.clock += PATIENCE
    with pytest.raises(Defer, match=why):
        one.publish(event)


def test_one_that_is_refused_every_time_holds_up_nobody() -> None:
    answers = cycle((400, 204))
    runtime = world(lambda request: httpx.Response(next(answers)))
    event, one = event_of(runtime), publisher(runtime)
    for _ in range(2 * FAILURES):
        with pytest.raises(Defer, match="events: 400"):
            one.publish(event)
        one.publish(event)


@pytest.mark.parametrize(
    "held",
    [{}, {"signing_secrets": []}, {"signing_secrets": ["whsec_!"]}, {"signing_secrets": [1]}],
)
def test_without_a_key_nothing_is_published(held: dict[str, Any]) -> None:
    runtime = world()
    runtime.vault.held["events"] = held
    with pytest.raises(SecretError, match="spillway secret set events"):
        publisher(runtime).publish(event_of(runtime))
    assert runtime.requests == []


def test_what_is_no_event_is_given_up() -> None:
    runtime = world()
    with pytest.raises(GiveUp):
        publisher(runtime).publish(Envelope("event", "", "", NOW, {"id": 1}))


def test_where_nobody_is_to_hear_of_it_any_more_it_is_dropped() -> None:
    runtime = world()
    publisher(runtime, EVENTS_URL="").publish(event_of(runtime))
    assert runtime.requests == []


# --- a bus -------------------------------------------------------------------------------------


class Bus:
    """EventBridge, as far as it is used."""

    def __init__(self, *answers: Any) -> None:
        self.entries: list[dict[str, Any]] = []
        self._answers = list(answers)

    def put_events(self, *, Entries: list[dict[str, Any]]) -> dict[str, Any]:
        self.entries += Entries
        answer = self._answers.pop(0) if self._answers else {"FailedEntryCount": 0}
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)


def test_an_event_goes_on_the_bus() -> None:
    runtime = world()
    bus = runtime.__dict__["events"] = Bus()
    event = event_of(runtime)
    publisher(runtime, EVENT_BUS="spillway-test").publish(event)
    (entry,) = bus.entries
    assert json.loads(entry.pop("Detail")) == event.payload
    assert entry == {
        "EventBusName": "spillway-test",
        "Source": "spillway.test",
        "DetailType": "message.received",
    }


def test_what_the_bus_refuses_comes_again() -> None:
    runtime = world()
    runtime.__dict__["events"] = Bus(
        {"FailedEntryCount": 1, "Entries": [{"ErrorCode": "ThrottlingException"}]}
    )
    with pytest.raises(Defer, match="events: ThrottlingException"):
        publisher(runtime, EVENT_BUS="spillway-test").publish(event_of(runtime))


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    with emulated.ministack(tmp_path_factory.mktemp("ministack")) as endpoint:
        account = of_emulator(endpoint)
        yield account
        account.close()


def test_a_rule_of_the_bus_gets_what_was_put_there(aws: Aws) -> None:
    # GIVEN a bus, and a rule that sends what is received to a queue of the business's own
    bus, sqs = aws.client("events"), aws.client("sqs")
    bus.create_event_bus(Name="spillway-test")
    url = sqs.create_queue(QueueName="theirs")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]
    pattern = {"source": ["spillway.test"], "detail-type": ["message.received"]}
    rule = {"Rule": "texts", "EventBusName": "spillway-test"}
    bus.put_rule(Name="texts", EventBusName="spillway-test", EventPattern=json.dumps(pattern))
    bus.put_targets(**rule, Targets=[{"Id": "1", "Arn": arn["QueueArn"]}])
    # WHEN something is published
    runtime = world()
    runtime.__dict__["events"] = bus
    event = event_of(runtime)
    publisher(runtime, EVENT_BUS="spillway-test").publish(event)
    # THEN the queue has it
    (message,) = sqs.receive_message(QueueUrl=url, WaitTimeSeconds=5)["Messages"]
    assert json.loads(message["Body"])["detail"] == event.payload


def test_a_bus_that_fails_is_waited_for() -> None:
    from chalicelib.runtime import is_transient

    runtime = world()
    runtime.__dict__["events"] = Bus(aws_error("InternalException", "PutEvents"))
    with pytest.raises(Exception, match="InternalException") as raised:
        publisher(runtime, EVENT_BUS="spillway-test").publish(event_of(runtime))
    assert is_transient(raised.value)
