"""The whole way of a message through the three functions, in one process."""

from __future__ import annotations

import gzip
import json
from typing import Any

import boto3
import httpx

from chalicelib.processing import Processing
from chalicelib.receiving import Receiver
from chalicelib.sending import Sender
from tests.fakes import OURS, THEIRS, Context, FakeRuntime, delivered, settings
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


def scan() -> list[dict[str, Any]]:
    return boto3.client("dynamodb").scan(TableName="spillway-test")["Items"]  # type: ignore


def archived(key: str) -> list[dict[str, Any]]:
    bucket = "spillway-test-archive-123456789012-us-east-1"
    body = boto3.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
    return [json.loads(line) for line in gzip.decompress(body).splitlines()]
