"""Telnyx's own: what its events say, whatever their JSON is, and what a repeated key may mean."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from chalicelib.messages import (
    DeliveryReceipt,
    Headers,
    InboundMessage,
    Media,
    Part,
    WebhookRequest,
)
from chalicelib.providers.base import (
    CannotTell,
    OutcomeUnknown,
    PayloadError,
    Rejected,
    SendError,
    SignatureError,
    Throttled,
    Unavailable,
)
from chalicelib.providers.telnyx import Telnyx

from .conftest import Connected

OURS, THEIRS, TEXT = "+14155550199", "+14155550142", "Your table is ready"
URL = "https://hooks.example.org/dev/webhooks/telnyx/signed"
NOW = 1_790_000_000.5


def webhook(body: object, url: str = URL, headers: dict[str, str] | None = None) -> WebhookRequest:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return WebhookRequest("POST", url, Headers(headers or {}), raw, NOW)


# --- verify ---------------------------------------------------------------------------------

PRIVATE_KEY = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"tests").digest())
SECRETS = {
    "api_key": "KEY-of-the-tests",
    "public_keys": [base64.b64encode(PRIVATE_KEY.public_key().public_bytes_raw()).decode()],
}


def signed(body: bytes, timestamp: str, signed_timestamp: str | None = None) -> WebhookRequest:
    content = f"{signed_timestamp or timestamp}|".encode() + body
    signature = base64.b64encode(PRIVATE_KEY.sign(content)).decode()
    headers = {"telnyx-signature-ed25519": signature, "telnyx-timestamp": timestamp}
    return webhook(body, headers=headers)


@pytest.mark.parametrize("timestamp", ["1790000000", "1789999701", "1790000300"])
def test_five_minutes_either_way_are_let_in(timestamp: str) -> None:
    Telnyx().verify(signed(b"\xff any bytes", timestamp), SECRETS)


@pytest.mark.parametrize(
    ("timestamp", "signed_timestamp"),
    [
        ("1789999700", None),
        ("1790000301", None),
        ("1790000000", "1790000001"),
        ("1790000000.0", None),
        (" 1790000000", None),
        ("1790000000\n", None),
        ("+1790000000", None),
        ("１７９００００００００", None),
        ("9" * 5000, None),
        ("nan", None),
    ],
)
def test_another_time_is_refused_well_signed_or_not(
    timestamp: str, signed_timestamp: str | None
) -> None:
    with pytest.raises(SignatureError):
        Telnyx().verify(signed(b"{}", timestamp, signed_timestamp), SECRETS)


# --- parse ----------------------------------------------------------------------------------


def event(kind: str, payload: dict[str, Any]) -> dict[str, Any]:
    return {
        "data": {
            "event_type": kind,
            "id": "event-1",
            "occurred_at": "2026-09-21T14:13:25.250Z",
            "payload": payload,
            "record_type": "event",
        },
        "meta": {"attempt": 1, "delivered_to": URL},
    }


INBOUND: dict[str, Any] = {
    "id": "40a1-11",
    "direction": "inbound",
    "organization_id": "org-7",
    "messaging_profile_id": "profile-3",
    "from": {"phone_number": THEIRS, "carrier": "Any", "line_type": "Wireless"},
    "to": [{"phone_number": OURS, "status": "webhook_delivered"}],
    "cc": [],
    "text": "Is it open?",
    "media": [],
    "parts": 1,
    "received_at": "2026-09-21T14:13:20.500+00:00",
    "sent_at": None,
    "autoresponse_type": None,
    "type": "SMS",
}
MESSAGE = InboundMessage(
    provider="telnyx",
    account="org-7",
    id="40a1-11",
    sender=THEIRS,
    recipient=OURS,
    text="Is it open?",
    received_at=NOW,
    segments=1,
    sent_at=1_790_000_000.5,
    raw={},
)
OTHER = {"phone_number": "+14155550177"}
PICTURES = [
    {"url": "https://media.example.org/1", "content_type": "image/png", "size": 7},
    {"url": None},
    {"url": "https://media.example.org/2", "content_type": None},
]
MEDIA = (
    Media("https://media.example.org/1", "image/png"),
    Media("https://media.example.org/2", ""),
)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"text": None}, {"text": ""}),
        ({"text": "\ud800\x00"}, {"text": "\ud800\x00"}),
        ({"media": PICTURES, "type": "MMS"}, {"media": MEDIA}),
        ({"media": None, "cc": None}, {}),
        ({"to": [INBOUND["to"][0], OTHER]}, {"group": True}),
        ({"cc": [OTHER]}, {"group": True}),
        ({"to": []}, {"recipient": ""}),
        ({"from": None}, {"sender": ""}),
        ({"from": {"phone_number": None}}, {"sender": ""}),
        ({"from": {"phone_number": "ACME"}}, {"sender": "ACME"}),
        ({"parts": None}, {"segments": None}),
        ({"parts": 10**30}, {"segments": None}),
        ({"received_at": None}, {"sent_at": None}),
        ({"received_at": "yesterday"}, {"sent_at": None}),
        ({"received_at": "2026-09-21T14:13:20.500"}, {}),
        ({"received_at": "2026-09-21T16:13:20.500+02:00"}, {}),
        ({"received_at": "0001-01-01T00:00:00+14:00"}, {"sent_at": -62_135_647_200.0}),
        ({"organization_id": None}, {"account": ""}),
        ({"messaging_profile_id": "moved"}, {}),
        ({"autoresponse_type": "STOP"}, {"consent_hint": "stop"}),
        ({"autoresponse_type": "OPT_OUT"}, {"consent_hint": "stop"}),
        ({"autoresponse_type": "start"}, {"consent_hint": "start"}),
        ({"autoresponse_type": "OPT_IN"}, {"consent_hint": "start"}),
        ({"autoresponse_type": "HELP"}, {"consent_hint": "help"}),
        ({"autoresponse_type": "INFO"}, {"consent_hint": "help"}),
        ({"autoresponse_type": "NEW"}, {}),
    ],
    ids=repr,
)
def test_a_text_is_read(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    body = event("message.received", {**INBOUND, **changes})

    assert Telnyx().parse(webhook(body)) == [replace(MESSAGE, raw=body, **expected)]


OUTBOUND: dict[str, Any] = {
    "id": "40a1-22",
    "direction": "outbound",
    "organization_id": "org-7",
    "from": {"phone_number": OURS},
    "to": [{"phone_number": THEIRS, "status": "delivered"}],
    "errors": [],
    "text": TEXT,
}
RECEIPT = DeliveryReceipt("telnyx", "40a1-22", "a-b-1", "delivered", occurred_at=1_790_000_005.25)


def with_status(status: Any) -> dict[str, Any]:
    return {"to": [{"phone_number": THEIRS, "status": status}]}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        (with_status("queued"), {"status": "queued"}),
        (with_status("sending"), {"status": "queued"}),
        (with_status("sent"), {"status": "sent"}),
        (with_status("read"), {}),
        (with_status("delivery_failed"), {"status": "undelivered"}),
        (with_status("expired"), {"status": "undelivered"}),
        (with_status("sending_failed"), {"status": "failed"}),
        (with_status("delivery_unconfirmed"), {"status": "unconfirmed"}),
        ({"errors": [{"code": "40008"}, {"code": "40001"}]}, {"error": "40008"}),
        ({"errors": [{"code": 40008}]}, {"error": "40008"}),
        ({"errors": [{"title": "no code"}]}, {}),
        ({"errors": [{"code": f"not to {THEIRS}"}]}, {}),
        ({"errors": None}, {}),
        # What we have no word for is no receipt, and no error either.
        (with_status("teleported"), None),
        (with_status(None), None),
        ({"to": []}, None),
        ({"direction": "inbound"}, None),
    ],
    ids=repr,
)
@pytest.mark.parametrize("kind", ["message.sent", "message.finalized"])
def test_a_receipt_is_read(
    kind: str, changes: dict[str, Any], expected: dict[str, Any] | None
) -> None:
    body = event(kind, {**OUTBOUND, **changes})

    events = Telnyx().parse(webhook(body, f"{URL}?reference=a-b-1"))

    assert events == ([] if expected is None else [replace(RECEIPT, **expected)])


def test_a_receipt_at_another_url_has_no_reference() -> None:
    body = event("message.finalized", OUTBOUND)

    assert Telnyx().parse(webhook(body)) == [replace(RECEIPT, reference="")]


@pytest.mark.parametrize("kind", ["message.queued", "call.initiated", "10dlc.campaign.update"])
def test_another_kind_of_event_is_nothing_to_us(kind: str) -> None:
    assert Telnyx().parse(webhook({"data": {"event_type": kind}})) == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"data": None},
        {"data": []},
        {"data": {}},
        {"data": {"event_type": None}},
        {"data": {"event_type": ["message.received"]}},
        {"data": {"event_type": "message.received"}},
        {"data": {"event_type": "message.received", "payload": "x"}},
        event("message.received", {**INBOUND, "id": ""}),
        event("message.received", {**INBOUND, "id": None}),
        event("message.received", {**INBOUND, "id": 7}),
        event("message.received", {**INBOUND, "from": THEIRS}),
        event("message.received", {**INBOUND, "from": False}),
        event("message.received", {**INBOUND, "to": THEIRS}),
        event("message.received", {**INBOUND, "to": [THEIRS]}),
        event("message.received", {**INBOUND, "cc": {}}),
        event("message.received", {**INBOUND, "text": {"body": TEXT}}),
        event("message.received", {**INBOUND, "media": ["https://media.example.org/1"]}),
        event("message.received", {**INBOUND, "media": [{"url": 7}]}),
        event("message.received", {**INBOUND, "parts": "1"}),
        event("message.received", {**INBOUND, "parts": True}),
        event("message.received", {**INBOUND, "parts": 1.5}),
        event("message.received", {**INBOUND, "received_at": 1_790_000_000}),
        event("message.received", {**INBOUND, "autoresponse_type": {}}),
        event("message.received", {**INBOUND, "organization_id": 7}),
        event("message.finalized", {**OUTBOUND, "errors": "40008"}),
        event("message.finalized", {**OUTBOUND, "errors": ["40008"]}),
        event("message.finalized", {**OUTBOUND, "to": [{"status": []}]}),
        # Not JSON, though Python reads and writes them.
        event("message.received", {**INBOUND, "cost": float("nan")}),
        event("message.received", {**INBOUND, "cost": float("-inf")}),
        json.dumps(event("message.received", {**INBOUND, "cost": 7}))
        .replace('"cost": 7', '"cost": 1e999')
        .encode(),
        b'{"data": ' + b"9" * 5000 + b"}",
        b"MessageSid=SM1&Body=x",
        b"\xef\xbb\xbf{}",
    ],
    ids=lambda body: repr(body)[:60],
)
def test_what_is_not_of_its_type_is_a_payload_error(body: object) -> None:
    with pytest.raises(PayloadError) as raised:
        Telnyx().parse(webhook(body))

    assert THEIRS not in repr(raised.value)
    assert raised.value.__cause__ is None


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
any_json = st.recursive(
    scalars | st.sampled_from(["message.received", "message.finalized", "delivered", "outbound"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["data", "payload", "event_type", "id", "to"]), inner)
    ),
    max_leaves=12,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Each place in a JSON value, as the keys that lead to it."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, one in inner:
        if isinstance(one, dict | list):
            yield from places(one, (*path, key))
        else:
            yield (*path, key)


@st.composite
def damaged_events(draw: st.DrawFn) -> object:
    """A good event with any value in one place, or without it."""
    good = draw(
        st.sampled_from([event("message.received", INBOUND), event("message.finalized", OUTBOUND)])
    )
    body = copy.deepcopy(good)
    *path, last = draw(st.sampled_from(list(places(body))))
    parent: Any = body
    for key in path:
        parent = parent[key]
    if draw(st.booleans()):
        parent[last] = draw(any_json)
    else:
        del parent[last]
    return body


@given(body=any_json | damaged_events())
@settings(deadline=None, max_examples=300)
def test_any_json_is_read_or_a_payload_error(body: object) -> None:
    with suppress(PayloadError):
        for one in Telnyx().parse(webhook(body)):
            assert one.id


# --- send -----------------------------------------------------------------------------------

PART = Part(
    reference="r-1",
    sender=OURS,
    recipient=THEIRS,
    text=TEXT,
    callback_url=f"{URL}?reference=r-1",
    started_at=1_790_000_000.0,
)


def refusal(status: int, code: Any) -> httpx.Response:
    return httpx.Response(status, json={"errors": [{"code": code, "detail": f"to {THEIRS}"}]})


@pytest.mark.parametrize(
    ("answer", "error", "reason", "code"),
    [
        (refusal(400, "40300"), Rejected, "opted_out", "40300"),
        (refusal(400, "40310"), Rejected, "invalid_number", "40310"),
        (refusal(400, "40001"), Rejected, "landline", "40001"),
        (refusal(400, "40322"), Rejected, "filtered", "40322"),
        (refusal(400, "40010"), Rejected, "unregistered", "40010"),
        (refusal(400, "40305"), Rejected, "not_permitted", "40305"),
        (refusal(400, "40302"), Rejected, "too_long", "40302"),
        (refusal(400, "40316"), Rejected, "invalid_request", "40316"),
        (refusal(400, 40310), Rejected, "invalid_number", "40310"),
        (refusal(400, "10015"), Rejected, "rejected", "10015"),
        (refusal(400, "40318"), Throttled, "throttled", "40318"),
        # A code of its own says that it was refused; 422 alone may be a key used for another body.
        (refusal(422, "40310"), Rejected, "invalid_number", "40310"),
        (refusal(422, "10015"), OutcomeUnknown, "idempotency_mismatch", "10015"),
        (httpx.Response(422), OutcomeUnknown, "idempotency_mismatch", "422"),
        (httpx.Response(409), OutcomeUnknown, "unexpected_answer", "409"),
        # 403 speaks of our credentials, unless it says that somebody opted out.
        (refusal(403, "40300"), Rejected, "opted_out", "40300"),
        (refusal(403, "10010"), Unavailable, "credentials", "10010"),
    ],
)
def test_a_refusal_says_whether_it_may_have_been_sent(
    answer: httpx.Response,
    error: type[SendError],
    reason: str,
    code: str,
    api_answering: Callable[..., Connected],
) -> None:
    with pytest.raises(SendError) as raised:
        Telnyx().send(PART, SECRETS, api_answering(answer).http)

    assert type(raised.value) is error
    assert (raised.value.reason, raised.value.code) == (reason, code)


def test_a_lost_send_cannot_be_looked_for(api_answering: Callable[..., Connected]) -> None:
    connected = api_answering()

    assert Telnyx().find_sent(PART, SECRETS, connected.http) == CannotTell()
    assert connected.requests == []
