"""Telnyx Messaging, API v2: JSON both ways, Ed25519 signatures, and sends that can be repeated."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from chalicelib.messages import (
    ConsentEvent,
    DeliveryReceipt,
    InboundMessage,
    Media,
    Part,
    Response,
    Status,
    WebhookRequest,
)
from chalicelib.providers.base import (
    CannotTell,
    Http,
    NotSent,
    OutcomeUnknown,
    PayloadError,
    Provider,
    Rejected,
    Secrets,
    Sent,
    SignatureError,
    Throttled,
    Unavailable,
    answer_of,
    post,
    reference_in,
    retry_after,
)

if TYPE_CHECKING:
    import httpx

# https://developers.telnyx.com/docs/messaging/messages/receiving-webhooks (`payload.to[].status`)
# What is not here is no receipt.
STATUSES: Mapping[str, Status] = {
    "queued": "queued",
    "sending": "queued",
    "sent": "sent",
    "delivered": "delivered",
    "read": "delivered",
    "delivery_failed": "undelivered",
    "expired": "undelivered",
    "sending_failed": "failed",
    "delivery_unconfirmed": "unconfirmed",
}

# https://developers.telnyx.com/docs/messaging/messages/error-codes, and for 10xxx
# https://developers.telnyx.com/development/api-fundamentals/api-errors
REASON_OF_CODE: Mapping[str, str] = {
    "40300": "opted_out",
    "10002": "invalid_number",
    "10016": "invalid_number",
    "40012": "invalid_number",
    "40310": "invalid_number",
    "40001": "landline",
    "40002": "filtered",
    "40003": "filtered",
    "40015": "filtered",
    "40017": "filtered",
    "40322": "filtered",
    "40010": "unregistered",
    "40329": "unregistered",
    "40330": "unregistered",
    "40100": "not_permitted",
    "40301": "not_permitted",
    "40305": "not_permitted",
    "40306": "not_permitted",
    "40307": "not_permitted",
    "40308": "not_permitted",
    "40309": "not_permitted",
    "40312": "not_permitted",
    "40314": "not_permitted",
    "40315": "not_permitted",
    "40319": "not_permitted",
    "40320": "not_permitted",
    "40321": "not_permitted",
    "40331": "not_permitted",
    "40333": "not_permitted",
    "40302": "too_long",
    "40009": "invalid_request",
    "40304": "invalid_request",
    "40316": "invalid_request",
    "40317": "invalid_request",
}

# Too many requests, and a full queue: it was not taken.
THROTTLING_CODES = frozenset({"10011", "40318"})

# `autoresponse_type`, https://developers.telnyx.com/docs/messaging/messages/advanced-opt-in-out
CONSENT: Mapping[str, ConsentEvent] = {
    "STOP": "stop",
    "OPT_OUT": "stop",
    "START": "start",
    "OPT_IN": "start",
    "HELP": "help",
    "INFO": "help",
}

# Seconds, either way: what the SDK tolerates.
_TOLERANCE = 300
_TIMESTAMP = re.compile(r"[0-9]{1,12}", re.ASCII)
_CODE = re.compile(r"[0-9]{1,6}", re.ASCII)
# What fits a header: with a key that was pasted with its line end, nothing could have been sent.
_HEADER = re.compile(r"[!-~]([ -~]*[!-~])?")


class Telnyx(Provider):
    """https://developers.telnyx.com/docs/messaging"""

    name: ClassVar[str] = "telnyx"
    signed: ClassVar[bool] = True
    idempotent: ClassVar[bool] = True
    answers_stop: ClassVar[bool] = True
    # Ten segments: 1,530 GSM-7 or 670 UCS-2 characters (error 40302 beyond them).
    # https://developers.telnyx.com/docs/messaging/messages/sms-chunking.md
    max_length: ClassVar[int] = 1530
    max_segments: ClassVar[int | None] = 10
    reasons: ClassVar[Mapping[str, str]] = REASON_OF_CODE
    # Links that need no credentials, for 30 days. The pages show media.telnyx.com and promise no
    # name; the second is Telnyx's own storage.
    # https://developers.telnyx.com/docs/messaging/messages/send-receive-mms
    media_places: ClassVar[tuple[str, ...]] = (".telnyx.com/", ".telnyxcloudstorage.com/")
    default_api_url: ClassVar[str] = "https://api.telnyx.com"

    def verify(self, request: WebhookRequest, secrets: Secrets) -> None:
        """Ed25519 by one of `public_keys` over the timestamp and the raw body, within 5 minutes.

        https://developers.telnyx.com/docs/messaging/messages/receiving-webhooks
        """
        timestamp = request.headers.get("telnyx-timestamp")
        if not _TIMESTAMP.fullmatch(timestamp):
            raise SignatureError("no timestamp")
        if abs(request.received_at - int(timestamp)) > _TOLERANCE:
            raise SignatureError("the timestamp is too far from now")
        signature = _base64(request.headers.get("telnyx-signature-ed25519"))
        signed = timestamp.encode() + b"|" + request.body
        if not any(_verifies(key, signature, signed) for key in _public_keys(secrets)):
            raise SignatureError("the signature does not match")

    def can_verify(self, secrets: Secrets) -> bool:
        return any(True for _ in _public_keys(secrets))

    def parse(self, request: WebhookRequest) -> list[InboundMessage | DeliveryReceipt]:
        """One text, one receipt, or nothing for another kind of event.

        https://developers.telnyx.com/docs/messaging/messages/receiving-webhooks
        """
        raw = _read(request.body)
        event = _object(raw.get("data"), "data")
        kind = _text(event.get("event_type"), "event_type")
        if not kind:
            raise PayloadError("no event_type")
        if kind == "message.received":
            return [_message(_payload(event), raw, request)]
        if kind in ("message.sent", "message.finalized"):
            return _receipts(event, _payload(event), request)
        return []

    def acknowledge(self) -> Response:
        """Any 2xx will do; the body is ignored."""
        return Response(200, {"Content-Type": "application/json"}, "{}")

    def request(self, part: Part) -> str:
        """Telnyx answers a repeated key as it did the first time, for 24 hours, if the body is byte
        for byte the same; refusals are not kept, and other bytes are a 422. (There is no field for
        a validity period.)
        https://developers.telnyx.com/docs/development/api-fundamentals/idempotency.md
        """
        message: dict[str, object] = {
            "from": part.sender,
            "to": part.recipient,
            "webhook_url": part.callback_url,
            "use_profile_webhooks": False,
        }
        if part.text:
            message["text"] = part.text
        if part.media:
            message["media_urls"] = part.media
        return json.dumps(message, sort_keys=True, separators=(",", ":"))

    def send(self, part: Part, secrets: Secrets, http: Http) -> Sent:
        """https://developers.telnyx.com/api-reference/messages/send-a-message"""
        response = post(
            http,
            f"{self.api_url}/v2/messages",
            content=(part.request or self.request(part)).encode(),
            headers={
                "Authorization": f"Bearer {_api_key(secrets)}",
                "Content-Type": "application/json",
                "Idempotency-Key": part.reference,
            },
        )
        return _outcome(response)

    def find_sent(self, part: Part, secrets: Secrets, http: Http) -> Sent | NotSent | CannotTell:
        """Cannot be asked: messages are found by Telnyx's id alone. Sending again with the same
        key is the question, and its answer."""
        return CannotTell()


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise SignatureError("not base64") from None


def _public_keys(secrets: Secrets) -> Iterator[Ed25519PublicKey]:
    """The usable keys; a broken one does not stand in the way of the others."""
    keys = secrets.get("public_keys")
    for key in keys if isinstance(keys, list) else ():
        try:
            yield Ed25519PublicKey.from_public_bytes(base64.b64decode(key))
        except (TypeError, ValueError):
            continue


def _verifies(key: Ed25519PublicKey, signature: bytes, signed: bytes) -> bool:
    try:
        key.verify(signature, signed)
    except InvalidSignature:
        return False
    return True


def _read(body: bytes) -> dict[str, Any]:
    try:
        payload = json.loads(body.decode(), parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError):
        raise PayloadError("not JSON") from None
    return _object(payload, "body")


def _no_constant(name: str) -> NoReturn:
    """NaN and Infinity are no JSON, and nobody who reads the archive could read them."""
    raise ValueError("not JSON")


def _finite(text: str) -> float:
    """1e999 is JSON, but would be Infinity in what we write."""
    number = float(text)
    if not isfinite(number):
        raise ValueError("not JSON")
    return number


def _object(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PayloadError(f"{name} is not an object")
    return value


def _objects(value: object, name: str) -> list[dict[str, Any]]:
    """A list of objects; empty where it is absent or null."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise PayloadError(f"{name} is not a list")
    return [_object(one, name) for one in value]


def _text(value: object, name: str) -> str:
    """A string; "" where it is absent or null."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise PayloadError(f"{name} is not a string")
    return value


def _segments(value: object) -> int | None:
    """A count; None where it is absent, or no count that a text can have."""
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise PayloadError("parts is not a whole number")
    return value if 0 <= value < 10_000 else None


def _time(value: object, name: str) -> float | None:
    """Unix seconds of an ISO 8601 time; None where it is absent or not to be read as one."""
    try:
        time = datetime.fromisoformat(_text(value, name))
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    except ValueError:
        return None


def _payload(event: Mapping[str, Any]) -> dict[str, Any]:
    payload = _object(event.get("payload"), "payload")
    if not _text(payload.get("id"), "id"):
        raise PayloadError("no id")
    return payload


def _message(
    payload: Mapping[str, Any], raw: Mapping[str, Any], request: WebhookRequest
) -> InboundMessage:
    recipients = _objects(payload.get("to"), "to")
    hint = _text(payload.get("autoresponse_type"), "autoresponse_type")
    return InboundMessage(
        provider=Telnyx.name,
        # Not the messaging profile: a number moves from one to another, and stays in its
        # organization.
        account=_text(payload.get("organization_id"), "organization_id"),
        id=payload["id"],
        sender=_number(payload.get("from"), "from"),
        recipient=_number(recipients[0] if recipients else None, "to"),
        text=_text(payload.get("text"), "text"),
        received_at=request.received_at,
        media=tuple(_media(payload)),
        segments=_segments(payload.get("parts")),
        # When Telnyx got it: its `sent_at` is that of outgoing messages, and null here.
        sent_at=_time(payload.get("received_at"), "received_at"),
        consent_hint=CONSENT.get(hint.upper()),
        group=len(recipients) > 1 or bool(_objects(payload.get("cc"), "cc")),
        raw=raw,
    )


def _number(party: object, name: str) -> str:
    """The number of a party, as it came; "" where there is none."""
    return "" if party is None else _text(_object(party, name).get("phone_number"), name)


def _media(payload: Mapping[str, Any]) -> Iterator[Media]:
    for one in _objects(payload.get("media"), "media"):
        if url := _text(one.get("url"), "url"):
            yield Media(url, _text(one.get("content_type"), "content_type"))


def _receipts(
    event: Mapping[str, Any], payload: Mapping[str, Any], request: WebhookRequest
) -> list[InboundMessage | DeliveryReceipt]:
    recipients = _objects(payload.get("to"), "to")
    status = _text(recipients[0].get("status"), "status") if recipients else ""
    if payload.get("direction") != "outbound" or status not in STATUSES:
        return []
    return [
        DeliveryReceipt(
            provider=Telnyx.name,
            id=payload["id"],
            reference=reference_in(request.url),
            status=STATUSES[status],
            error=_code(_objects(payload.get("errors"), "errors")),
            occurred_at=_time(event.get("occurred_at"), "occurred_at"),
        )
    ]


def _code(errors: object) -> str:
    """The code of the first of Telnyx's `errors`; "" for anything else, which may say more than a
    log may hold."""
    first = errors[0] if isinstance(errors, list) and errors else None
    code = first.get("code") if isinstance(first, dict) else None
    text = str(code) if isinstance(code, str | int) else ""
    return text if _CODE.fullmatch(text) else ""


def _api_key(secrets: Secrets) -> str:
    key = secrets.get("api_key")
    if not isinstance(key, str) or not _HEADER.fullmatch(key):
        raise Unavailable("credentials")
    return key


def _outcome(response: httpx.Response) -> Sent:
    answer = answer_of(response)
    status = str(response.status_code)
    if response.is_success:
        data = answer.get("data")
        id_ = data.get("id") if isinstance(data, dict) else None
        if isinstance(id_, str) and id_:
            return Sent(id_)
        raise OutcomeUnknown("unreadable_answer", status)
    code = _code(answer.get("errors"))
    if code in THROTTLING_CODES:
        raise Throttled("throttled", code, retry_after(response))
    if code in REASON_OF_CODE:
        raise Rejected(REASON_OF_CODE[code], code)
    if response.status_code == 403:
        raise Unavailable("credentials", code or status)
    if response.status_code == 422:
        # The key was used with another body, or the request is wrong in a way that Telnyx has no
        # own code for: the two look alike, and only one of them was not sent.
        raise OutcomeUnknown("idempotency_mismatch", code or status)
    if not response.is_client_error or response.status_code in (408, 409):
        raise OutcomeUnknown("unexpected_answer", code or status)
    raise Rejected("rejected", code or status)


PROVIDER = Telnyx
