"""A signed probe: a text that no person wrote, from a sender whom nobody can answer.

It goes through the signed door as a provider's would, so that an acknowledgement shows that API,
receiver, secrets and queues work together; processing stores it, and the sender never has it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from spillway.simulator import telnyx, twilio
from spillway.simulator.carrier import Webhook
from spillway.stage import Api

# An alphanumeric sender is stored, neither looked up nor answered (chalicelib.messages.answerable).
SENDER = "SPILLWAY"
TEXT = "A probe of spillway doctor: nobody wrote it, and nobody is to answer it."
_TIMEOUT = 29.0  # seconds; API Gateway gives up by then

# What nobody signed, by provider, as far as a validation before the receiver looks at it
# (docs/VALIDATION.md): that its signature is missed shows that signatures are looked at.
UNSIGNED: Mapping[str, tuple[str, bytes]] = {
    "sandbox": ("application/json", b'{"events": []}'),
    "telnyx": ("application/json", b'{"data": {"event_type": "probe"}}'),
    "twilio": ("application/x-www-form-urlencoded", b"MessageSid=SM0&Body="),
}

Make = Callable[[str, Mapping[str, Any], str, str], Webhook]


@dataclass(frozen=True, slots=True)
class Probed:
    """What came of a probe. `status`: HTTP's, 0 where nothing answered."""

    id: str
    status: int
    seconds: float


def signed(api: Api, provider: str, secret: Mapping[str, Any], recipient: str) -> Probed | None:
    """Posts a probe to one of our numbers; None where only the provider itself can sign."""
    if provider == "telnyx" and "private_key" not in secret:
        return None
    id_ = f"{'SM' if provider == 'twilio' else 'probe-'}{secrets.token_hex(16)}"
    return _post(api, id_, _MAKE[provider](api.public, secret, recipient, id_))


def unsigned(api: Api, provider: str) -> Probed:
    """Posts what no provider signed."""
    url = f"{api.public}/webhooks/{provider}/signed"
    content_type, body = UNSIGNED[provider]
    return _post(api, "", (url, {"Content-Type": content_type}, body))


def _post(api: Api, id_: str, webhook: Webhook) -> Probed:
    url, headers, body = webhook
    began = time.monotonic()
    try:
        answer = httpx.post(
            api.address + url.removeprefix(api.public),
            headers=headers,
            content=body,
            timeout=_TIMEOUT,
            trust_env=not api.address.startswith("http://127.0.0.1"),
        )
        status = answer.status_code
    except httpx.HTTPError:
        status = 0
    return Probed(id_, status, time.monotonic() - began)


def _carrier(inbound: Callable[..., Webhook]) -> Make:
    def make(base: str, secret: Mapping[str, Any], recipient: str, id_: str) -> Webhook:
        return inbound(
            webhook=base,
            secrets=secret,
            sender=SENDER,
            recipient=recipient,
            text=TEXT,
            id=id_,
            now=time.time(),
            door="signed",
        )

    return make


def _sandbox(base: str, secret: Mapping[str, Any], recipient: str, id_: str) -> Webhook:
    event = {"id": id_, "from": SENDER, "to": recipient, "text": TEXT}
    body = json.dumps({"events": [event]}).encode()
    at = int(time.time())
    key = secret["keys"][0].encode()
    digest = hmac.new(key, f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    headers = {"Content-Type": "application/json", "Sandbox-Signature": f"{at}.{digest}"}
    return f"{base}/webhooks/sandbox/signed", headers, body


_MAKE: Mapping[str, Make] = {
    "twilio": _carrier(twilio.inbound),
    "telnyx": _carrier(telnyx.inbound),
    "sandbox": _sandbox,
}
