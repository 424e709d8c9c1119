"""The sandbox: what it reads, and that it sends nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from chalicelib.messages import DeliveryReceipt, Headers, InboundMessage, Part, WebhookRequest
from chalicelib.providers import provider_named
from chalicelib.providers.base import PayloadError, Sent

from .conftest import Connected

REFERENCE = f"{'a' * 24}-{'b' * 24}-1"
TEXT = {"id": "s-1", "from": "+14155550142", "to": "+14155550123", "text": "Ça va? 👍"}
RECEIPT = {"id": "sandbox-1", "reference": REFERENCE, "status": "delivered"}


def parse(body: Any) -> list[InboundMessage | DeliveryReceipt]:
    request = WebhookRequest(
        "POST", "https://h.example/", Headers({}), json.dumps(body).encode(), 1_790_000_003.0
    )
    return provider_named("sandbox").parse(request)


def test_texts_and_receipts_are_read() -> None:
    text, timed, receipt = parse({"events": [TEXT, {**TEXT, "sent_at": 1_790_000_000.5}, RECEIPT]})
    assert text == InboundMessage(
        provider="sandbox",
        account="sandbox",
        id="s-1",
        sender="+14155550142",
        recipient="+14155550123",
        text="Ça va? 👍",
        received_at=1_790_000_003.0,
        raw=TEXT,
    )
    assert isinstance(timed, InboundMessage)
    assert timed.sent_at == 1_790_000_000.5
    assert receipt == DeliveryReceipt("sandbox", "sandbox-1", REFERENCE, "delivered")
    assert parse({"events": []}) == []


@pytest.mark.parametrize(
    "event",
    [
        None,
        [],
        {},
        {**TEXT, "text": None},
        {**TEXT, "from": 7},
        {name: value for name, value in TEXT.items() if name != "id"},
        {**TEXT, "sent_at": "now"},
        {**TEXT, "sent_at": -1},
        {**TEXT, "sent_at": 1e12},
        {**RECEIPT, "status": "lost"},
        {**RECEIPT, "status": ["delivered"]},
        {**RECEIPT, "reference": None},
    ],
    ids=repr,
)
def test_what_is_no_event_is_refused(event: Any) -> None:
    with pytest.raises(PayloadError):
        parse({"events": [TEXT, event]})


def test_nothing_is_sent(api_answering: Callable[..., Connected]) -> None:
    connected = api_answering()
    provider = provider_named("sandbox")
    part = Part(REFERENCE, "+14155550123", "+14155550142", "hello", "https://h.example/")
    sent = provider.send(part, {"keys": ["k"]}, connected.http)
    assert sent == Sent(f"sandbox-{REFERENCE}") == provider.send(part, {}, connected.http)
    assert connected.requests == []
