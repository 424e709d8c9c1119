"""The whole way of a message through the three functions, in one process."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import boto3
import httpx
import pytest

from chalicelib.processing import Processing
from chalicelib.receiving import Receiver
from chalicelib.sending import Sender
from tests.fakes import (
    NOW,
    OURS,
    THEIRS,
    Context,
    FakeRuntime,
    delivered,
    inbound,
    settings,
    sqs_event,
)
from tests.signing import twilio_event


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


def scan() -> list[dict[str, Any]]:
    return boto3.client("dynamodb").scan(TableName="spillway-test")["Items"]  # type: ignore


def archived(key: str) -> list[dict[str, Any]]:
    bucket = "spillway-test-archive-123456789012-us-east-1"
    body = boto3.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
    return [json.loads(line) for line in gzip.decompress(body).splitlines()]
