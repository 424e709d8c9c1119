"""The whole way of a message through the three functions, in one process."""

from __future__ import annotations

import ast
import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest

from chalicelib.messages import DeliveryReceipt
from chalicelib.processing import Processing
from chalicelib.providers.twilio import Twilio
from chalicelib.receiving import Receiver
from chalicelib.sending import Sender
from tests.fakes import (
    NOW,
    OURS,
    THEIRS,
    Context,
    FakeRuntime,
    aws_error,
    delivered,
    events,
    inbound,
    logged,
    settings,
    sqs_event,
)
from tests.signing import api_event, twilio_event

PROJECT = Path(__file__).parent.parent


def test_a_text_is_acknowledged_stored_archived_and_answered(stores: None) -> None:
    # GIVEN a provider that takes everything, and the three functions
    def provider(request: httpx.Request) -> httpx.Response:
        return httpx.Response(201, json={"sid": "SM" + "1" * 32, "status": "queued"})

    runtime = FakeRuntime(provider)
    receiver = Receiver(runtime, settings("receiver"))
    processing = Processing(runtime, settings("processing"))
    sender = Sender(runtime, settings("sender"))

    # WHEN a signed webhook comes
    event = twilio_event({"Body": "hello", "MessageSid": "SM1"})
    response = receiver.webhook("twilio", event, signed_door=True)

    # THEN it is acknowledged in the provider's own format and on both queues
    assert (response.status, response.headers["Content-Type"]) == (200, "text/xml")
    assert "<Response/>" in response.body
    assert len(runtime.queues.sent["processing"]) == len(runtime.queues.sent["outbound.fifo"]) == 1

    # AND processing keeps it in both stores
    report = processing.handle(delivered(runtime, "processing"), Context())
    assert report == {"batchItemFailures": []}
    items = {item["sk"]["S"][:3]: item for item in scan()}
    assert items["IN#"]["text"]["S"] == "hello"
    lines = archived(items["IN#"]["archive_key"]["S"])
    assert [line["provider_id"] for line in lines] == ["SM1"]

    # AND the sender answers it, once
    for _ in range(2):
        report = sender.handle(delivered(runtime, "outbound.fifo"), Context())
        assert report == {"batchItemFailures": []}
    assert len(runtime.requests) == 1
    form = dict(httpx.QueryParams(runtime.requests[0].content.decode()))
    assert (form["To"], form["From"], form["Body"]) == (THEIRS, OURS, "You wrote: hello")
    assert form["StatusCallback"].startswith("https://sms.example.com/webhooks/twilio/signed?ref")

    # AND a receipt moves its status
    reference = form["StatusCallback"].partition("=")[2].partition("#")[0]
    receipt = twilio_event(
        {"MessageSid": "SM" + "1" * 32, "MessageStatus": "delivered"}, reference=reference
    )
    assert receiver.webhook("twilio", receipt, signed_door=True).status == 200
    processing.handle(delivered(runtime, "processing"), Context())
    answer = receiver.get_message(reference.rpartition("-")[0])
    assert json.loads(answer.body)["state"] == "delivered"


class Whole:
    """The three functions on empty stores, with a provider that takes everything but what goes to a
    number in `blocked`."""

    def __init__(self, **variables: str) -> None:
        self.blocked: set[str] = set()
        self.runtime = FakeRuntime(self._provider)
        self.receiver = Receiver(self.runtime, settings("receiver"))
        self.processing = Processing(self.runtime, settings("processing", **variables))
        self.sender = Sender(self.runtime, settings("sender", **variables))

    def _provider(self, request: httpx.Request) -> httpx.Response:
        form = dict(httpx.QueryParams(request.content.decode()))
        if form["To"] in self.blocked:
            return httpx.Response(400, json={"code": 21610, "status": 400})
        return httpx.Response(201, json={"sid": "SM" + "1" * 32, "status": "queued"})

    def text(self, body: str, sid: str) -> None:
        """A person's text comes in, and everybody does what there is to do."""
        event = twilio_event({"Body": body, "MessageSid": sid})
        assert self.receiver.webhook("twilio", event, signed_door=True).status == 200
        self.work()

    def post(self, text: str, key: str) -> str:
        """A client of ours asks for a text to the person; the id that it gets."""
        body = json.dumps({"to": THEIRS, "text": text})
        response = self.receiver.post_message(
            api_event("POST", "/messages", body, {"Idempotency-Key": key}, principal="api")
        )
        assert response.status == 202
        id_: str = json.loads(response.body)["id"]
        return id_

    def work(self) -> None:
        for queue, function in (("processing", self.processing), ("outbound.fifo", self.sender)):
            report = function.handle(delivered(self.runtime, queue), Context())
            assert report == {"batchItemFailures": []}

    def state(self, id_: str) -> str:
        """What GET /messages/{id} says."""
        state: str = json.loads(self.receiver.get_message(id_).body)["state"]
        return state

    @property
    def said(self) -> list[str]:
        forms = [dict(httpx.QueryParams(one.content.decode())) for one in self.runtime.requests]
        return [form["Body"] for form in forms]


@pytest.mark.parametrize("words", ["STOP", "Please stop texting me"])
def test_an_outgoing_text_to_an_opted_out_number_is_refused_and_says_so(
    stores: None, words: str
) -> None:
    # GIVEN a person who opted out, with a text of ours still in the queue
    whole = Whole()
    queued = whole.post("Our herons are on sale", "k1")
    whole.text(words, "SM1")
    later = whole.post("Our herons are on sale again", "k2")
    whole.work()
    # (The first was in the queue before the STOP was, but processing was quicker.)
    assert [whole.state(id_) for id_ in (queued, later)] == ["refused: opted_out"] * 2
    assert whole.said == []

    # WHEN they say START
    whole.runtime.clock += 60
    whole.text("START", "SM2")
    # THEN they get what is sent from then on, and nothing of before
    last = whole.post("Welcome back, heron", "k3")
    whole.work()
    assert [whole.state(id_) for id_ in (queued, later, last)] == [
        "refused: opted_out",
        "refused: opted_out",
        "sent",
    ]
    assert whole.said == ["Welcome back, heron"]


def test_a_number_that_is_opted_out_at_the_provider_alone_is_asked_for_once(stores: None) -> None:
    # GIVEN a person who opted out where we did not see it
    whole = Whole()
    whole.blocked = {THEIRS}
    first = whole.post("A heron for you", "k1")
    whole.work()
    # THEN the first text is refused by the provider, and the next by us
    second = whole.post("A heron for you", "k2")
    whole.work()
    assert [whole.state(id_) for id_ in (first, second)] == [
        "failed: opted_out",
        "refused: opted_out",
    ]
    assert len(whole.said) == 1


# --- an answer that was lost -------------------------------------------------------------------


class LosingTwilio:
    """Takes every text, loses the answer to the first, and lists what it has."""

    def __init__(self) -> None:
        self.taken: list[dict[str, str]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"messages": self.taken, "next_page_uri": None})
        form = dict(httpx.QueryParams(request.content.decode()))
        self.taken.append(
            {
                "sid": f"SM-{len(self.taken) + 1}",
                "body": form["Body"],
                "from": form["From"],
                "to": form["To"],
                "direction": "outbound-api",
                "date_created": format_datetime(datetime.fromtimestamp(NOW, UTC)),
            }
        )
        if len(self.taken) == 1:
            raise httpx.ReadTimeout("lost")
        return httpx.Response(201, json={"sid": self.taken[-1]["sid"]})

    @property
    def texts(self) -> list[str]:
        return [one["body"] for one in self.taken]


class LosingTelnyx:
    """Takes every new key, loses the answer to the first request, and answers a repeated one as it
    did the first time, if its body is the same."""

    def __init__(self) -> None:
        self.taken: dict[str, tuple[bytes, str]] = {}
        self.requests = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        key = request.headers["Idempotency-Key"]
        body, id_ = self.taken.setdefault(key, (request.content, f"40a1-{len(self.taken) + 1}"))
        self.requests += 1
        if self.requests == 1:
            return httpx.Response(502)
        if body != request.content:
            return httpx.Response(422, json={"errors": [{"code": "10027"}]})
        return httpx.Response(200, json={"data": {"id": id_}})

    @property
    def texts(self) -> list[str]:
        return [json.loads(body)["text"] for body, _ in self.taken.values()]


@pytest.mark.parametrize(("provider", "to"), [(LosingTwilio, OURS), (LosingTelnyx, "+14155550199")])
def test_a_lost_answer_is_found_again_and_the_rest_follows(
    stores: None, monkeypatch: pytest.MonkeyPatch, provider: type[Any], to: str
) -> None:
    # GIVEN a provider that loses the answer to the first part of two
    monkeypatch.setattr("chalicelib.sending.own_reply", lambda message: ["heron 1", "heron 2"])
    carrier = provider()
    runtime = FakeRuntime(carrier)
    processing = Processing(runtime, settings("processing"))
    sender = Sender(runtime, settings("sender"))
    text = inbound(provider="twilio" if to == OURS else "telnyx")
    text = replace(text, payload={**text.payload, "recipient": to})

    def work(function: Any, queue: str, *bodies: str) -> None:
        """Hands over what is on a queue, and takes it off."""
        waiting = [message["MessageBody"] for message in runtime.queues.sent[queue]]
        runtime.queues.sent[queue].clear()
        report = function.handle(sqs_event([*bodies, *waiting]), Context())
        assert report == {"batchItemFailures": []}

    # WHEN it is answered
    work(sender, "outbound.fifo", text.body())
    assert carrier.texts == ["heron 1"]

    # THEN processing finds out a minute later, and the sender goes on
    runtime.clock += 60
    work(processing, "processing")
    work(sender, "outbound.fifo")
    assert carrier.texts == ["heron 1", "heron 2"]
    (item,) = (item for item in scan() if item["sk"]["S"].startswith("OUT#"))
    parts = item["parts"]["M"]
    assert [parts[number]["M"]["state"]["S"] for number in "12"] == ["sent", "sent"]
    assert len({parts[number]["M"]["provider_id"]["S"] for number in "12"}) == 2
    assert "unknown_bucket" not in item

    # AND whatever comes again changes nothing
    work(sender, "outbound.fifo", text.body())
    assert carrier.texts == ["heron 1", "heron 2"]


# --- one id from webhook to receipt ------------------------------------------------------------


def taking(request: httpx.Request) -> httpx.Response:
    return httpx.Response(201, json={"sid": "SM-1"})


def full_at_first() -> Callable[[httpx.Request], httpx.Response]:
    answers = iter([httpx.Response(429)])
    return lambda request: next(answers, None) or taking(request)


def refusing(request: httpx.Request) -> httpx.Response:
    return httpx.Response(400, json={"code": 21610, "status": 400})


@pytest.mark.parametrize(
    ("words", "provider", "said"),
    [
        ("Is the heron awake?", lambda: taking, ["stored", "sent"]),
        ("STOP", lambda: taking, ["stored", "consent_stop", "closed"]),
        ("Is the heron awake?", full_at_first, ["stored", "deferred", "sent"]),
        ("Is the heron awake?", lambda: refusing, ["stored", "consent_stop", "rejected"]),
        ("Is the heron awake?", LosingTwilio, ["stored", "outcome_unknown", "settled"]),
    ],
    ids=["answered", "opted out", "deferred", "rejected", "lost"],
)
def test_every_line_about_a_message_has_its_id(
    stores: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    provider: Callable[[], Callable[[httpx.Request], httpx.Response]],
    said: list[str],
) -> None:
    # GIVEN a person's text
    runtime = FakeRuntime(provider())
    receiver = Receiver(runtime, settings("receiver"))
    consumers: dict[str, tuple[str, Processing | Sender]] = {
        "processing": ("processing", Processing(runtime, settings("processing"))),
        "sender": ("outbound.fifo", Sender(runtime, settings("sender"))),
    }

    def call(event: dict[str, Any]) -> None:
        monkeypatch.setenv("SPILLWAY_FUNCTION", "receiver")
        assert receiver.webhook("twilio", event, signed_door=True).status == 200

    def work() -> None:
        """Each function takes what is on its queue, and again what it deferred."""
        for name, (queue, function) in consumers.items():
            monkeypatch.setenv("SPILLWAY_FUNCTION", name)
            waiting = [message["MessageBody"] for message in runtime.queues.sent[queue]]
            runtime.queues.sent[queue].clear()
            while waiting:
                report = function.handle(sqs_event(waiting), Context())
                assert report is not None
                late = {one["itemIdentifier"] for one in report["batchItemFailures"]}
                waiting = [body for n, body in enumerate(waiting) if f"m{n}" in late]
                runtime.clock += 60 * len(waiting)

    # WHEN it goes all the way, and its answer's receipt comes
    call(twilio_event({"Body": words, "MessageSid": "SM1"}))
    (message,) = runtime.queues.sent["processing"]
    id_ = json.loads(message["MessageBody"])["id"]
    for _ in range(3):
        work()
    receipt = {"MessageSid": "SM-1", "MessageStatus": "delivered"}
    call(twilio_event(receipt, reference=f"{id_}-1"))
    work()

    # THEN whatever was said by whichever function can be found by the message's id
    lines = logged(capsys)
    assert [line for line in lines if line.get("id", "") not in (id_, f"{id_}-1")] == []
    assert {line["function"] for line in lines} == {"receiver", *consumers}
    found = events(lines)
    assert found[: len(said)] == said
    assert found[-1].startswith("receipt_")
    assert [line["id"] for line in lines if "Acknowledged" in line] == [id_, f"{id_}-1"]


def test_a_webhook_with_several_messages_names_them_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # GIVEN a provider that puts several texts and a receipt into one request
    runtime = FakeRuntime()
    receiver = Receiver(runtime, settings("receiver"))
    texts = [inbound(id_=f"SM{number}").inbound() for number in range(2)]
    reference = f"{'a' * 24}-{'b' * 24}-1"
    strange = f"heron {THEIRS}"
    receipts = [DeliveryReceipt("twilio", "SM9", each, "sent") for each in (reference, strange)]
    monkeypatch.setattr(Twilio, "parse", lambda *_: [*texts, *receipts])
    # WHEN it is acknowledged, THEN its one line has the id of each of ours
    receiver.webhook("twilio", twilio_event({"MessageSid": "SM1"}), signed_door=True)
    (line,) = logged(capsys)
    assert line["Acknowledged"] == 1
    ids = [json.loads(one["MessageBody"])["id"] for one in runtime.queues.sent["outbound.fifo"]]
    assert line["id"].split(" ") == [*ids, reference]
    # AND so have those of a refusal by a queue, after which it comes again
    runtime.queues.refuses["processing"] = aws_error("AccessDenied", "SendMessage")
    receiver.webhook("twilio", twilio_event({"MessageSid": "SM1"}), signed_door=True)
    lines = logged(capsys)
    assert {one["id"] for one in lines} == {line["id"]}
    assert events(lines) == ["not_taken"]


# What is said of no message of ours: lines and metrics, by file.
ABOUT_NO_MESSAGE = {
    # refused before anything of it is believed
    "app.py": {"refused", "Refused"},
    # one call for a whole batch
    "batches.py": {
        *("not_deleted", "delete_refused", "suspects_not_read"),
        *("visibility_not_set", "visibility_refused"),
    },
    # a provider's account
    "breaker.py": {
        "Breaker",
        *("breaker_probe", "breaker_opened", "breaker_closed", "breaker_unreachable"),
    },
    # one call for a whole batch
    "pacing.py": {"no_slots_taken", "slots_not_given_back"},
    # signed, and cannot be read
    "processing.py": {"quarantined", "Quarantined", "started"},
    # refused before it is read; a provider's secret; how much stands on a queue
    "receiving.py": {
        *("unknown_provider", "unsigned_provider", "signature", "bad_request"),
        *("no_secrets", "depth_not_read", "started"),
    },
    "vault.py": {"secret_not_refreshed"},
    # a function that starts
    "sending.py": {"started"},
}


def test_no_other_line_is_written_without_an_id() -> None:
    without: dict[str, set[str]] = {}
    for source in (PROJECT / "app.py", *(PROJECT / "chalicelib").rglob("*.py")):
        for call in ast.walk(ast.parse(source.read_text())):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
                continue
            # Where its name stands. (`_refused` is both, and has the id in third place.)
            position = {"count": 0, "log": 1, "_refused": 0}.get(call.func.id)
            has_id = bool({"id", "ids"} & {keyword.arg for keyword in call.keywords})
            has_id = has_id or (call.func.id == "_refused" and len(call.args) > 2)
            if position is not None and not has_id:
                name = ast.literal_eval(call.args[position])
                without.setdefault(source.name, set()).add(name)
    assert without == ABOUT_NO_MESSAGE


def scan() -> list[dict[str, Any]]:
    return boto3.client("dynamodb").scan(TableName="spillway-test")["Items"]  # type: ignore


def archived(key: str) -> list[dict[str, Any]]:
    bucket = "spillway-test-archive-123456789012-us-east-1"
    body = boto3.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
    return [json.loads(line) for line in gzip.decompress(body).splitlines()]
