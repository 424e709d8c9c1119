"""A provider that reaches nobody, with which a deployment is proven from end to end: its webhooks
are signed with a key of ours, and its sends end here.

A webhook is a JSON object with one or more `events`, each a text or a receipt:

    {"events": [{"id": "…", "from": "+1…", "to": "+1…", "text": "…", "sent_at": 1790000000.5},
                {"id": "…", "reference": "…", "status": "delivered"}]}

`Sandbox-Signature` is `{unix seconds}.{HMAC-SHA256 in hexadecimal}`, over those seconds, a dot and
the raw body.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar, get_args

from chalicelib.messages import (
    DeliveryReceipt,
    Headers,
    InboundMessage,
    Part,
    Response,
    Status,
    WebhookRequest,
)
from chalicelib.providers.base import (
    CannotTell,
    Http,
    NotSent,
    PayloadError,
    Provider,
    Secrets,
    Sent,
    SignatureError,
)

_TOLERANCE = 300  # seconds, either way
_SIGNATURE = re.compile(r"([0-9]{1,12})\.([0-9a-f]{64})", re.ASCII)


class Sandbox(Provider):
    """Secrets: `keys`, the newest first."""

    name: ClassVar[str] = "sandbox"
    signed: ClassVar[bool] = True
    idempotent: ClassVar[bool] = True
    answers_stop: ClassVar[bool] = False
    max_length: ClassVar[int] = 1600
    reasons: ClassVar[Mapping[str, str]] = {}
    default_api_url: ClassVar[str] = ""

    def verify(self, request: WebhookRequest, secrets: Secrets) -> None:
        found = _SIGNATURE.fullmatch(request.headers.get("Sandbox-Signature"))
        if not found:
            raise SignatureError("no signature")
        if abs(request.received_at - int(found[1])) > _TOLERANCE:
            raise SignatureError("the timestamp is too far from now")
        good = False
        for key in _keys(secrets):
            good |= hmac.compare_digest(signature(key, int(found[1]), request.body), found[2])
        if not good:
            raise SignatureError("the signature does not match")

    def can_verify(self, secrets: Secrets) -> bool:
        return bool(_keys(secrets))

    def parse(self, request: WebhookRequest) -> list[InboundMessage | DeliveryReceipt]:
        try:
            body = json.loads(request.body)
            events = body["events"]
            return [_event(event, request.received_at) for event in events]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise PayloadError("not events of the sandbox") from None

    def webhook_of(self, raw: Mapping[str, Any], received_at: float) -> WebhookRequest:
        body = json.dumps({"events": [raw]}).encode()
        return WebhookRequest("POST", "", Headers({}), body, received_at)

    def acknowledge(self) -> Response:
        return Response(200, {"Content-Type": "application/json"}, "{}")

    def request(self, part: Part) -> str:
        """Something: what is asked again is asked by its request."""
        return part.reference

    def send(self, part: Part, secrets: Secrets, http: Http) -> Sent:
        """Nothing leaves; the same part has the same id."""
        return Sent(f"sandbox-{part.reference}")

    def find_sent(self, part: Part, secrets: Secrets, http: Http) -> Sent | NotSent | CannotTell:
        """No send is ever unknown but by a death, and then sending again is the answer."""
        return CannotTell()


def signature(key: str, at: int, body: bytes) -> str:
    """What signs a body at a time (unix seconds), in hexadecimal."""
    secret = key.encode("utf-8", "surrogatepass")
    return hmac.new(secret, f"{at}.".encode() + body, hashlib.sha256).hexdigest()


def _keys(secrets: Secrets) -> list[str]:
    keys = secrets.get("keys")
    return [key for key in keys if isinstance(key, str) and key] if isinstance(keys, list) else []


def _event(event: Any, received_at: float) -> InboundMessage | DeliveryReceipt:
    """Raises TypeError, KeyError or ValueError for what is no event."""
    if not isinstance(event, dict):
        raise TypeError
    if "status" in event:
        if event["status"] not in get_args(Status):
            raise ValueError
        return DeliveryReceipt(
            provider=Sandbox.name,
            id=_text(event["id"]),
            reference=_text(event["reference"]),
            status=event["status"],
        )
    sent_at = event.get("sent_at")
    if not (sent_at is None or (isinstance(sent_at, int | float) and 0 <= sent_at < 1e11)):
        raise ValueError
    return InboundMessage(
        provider=Sandbox.name,
        account=Sandbox.name,
        id=_text(event["id"]),
        sender=_text(event["from"]),
        recipient=_text(event["to"]),
        text=_text(event["text"]),
        received_at=received_at,
        sent_at=sent_at,
        raw=event,
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


PROVIDER = Sandbox
