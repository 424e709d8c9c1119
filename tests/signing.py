"""Signed webhooks as API Gateway's events, and the vectors of signatures. Signed without the code
under test."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.fakes import NOW, OURS, SECRETS, THEIRS

HOST = "sms.example.com"


class TelnyxKey:
    """A key pair of the tests."""

    private = Ed25519PrivateKey.from_private_bytes(b"s" * 32)
    public = base64.b64encode(private.public_key().public_bytes_raw()).decode()


def twilio_event(
    fields: Mapping[str, str],
    *,
    reference: str = "",
    token: str = SECRETS["twilio"]["auth_tokens"][0],
    door: str = "/signed",
    url: str = "",
) -> dict[str, Any]:
    """A webhook of Twilio's: an inbound text, or a receipt where the fields say so.

    `url` is the address that it signs, where that is not our usual one.
    """
    form = {"AccountSid": "AC" + "0" * 32, **fields}
    if "Body" in form and "MessageStatus" not in form:
        form = {"From": THEIRS, "To": OURS, "NumMedia": "0", "NumSegments": "1", **form}
    elif "MessageStatus" in form:
        form.pop("Body", None)
    path = f"/webhooks/twilio{door}"
    url = url or f"https://{HOST}{path}" + (f"?reference={reference}" if reference else "")
    signed = url + "".join(f"{name}{value}" for name, value in sorted(form.items()))
    digest = hmac.new(token.encode(), signed.encode(), hashlib.sha1).digest()
    return api_event(
        "POST",
        path,
        urlencode(form),
        {
            "Content-Type": "application/x-www-form-urlencoded; charset=UTF-8",
            "X-Twilio-Signature": base64.b64encode(digest).decode(),
        },
        resource=f"/webhooks/{{provider}}{door}",
        parameters={"provider": "twilio"},
        query={"reference": [reference]} if reference else None,
    )


def telnyx_event(
    *, text: str = "hello", to: Sequence[str] = (OURS,), body: bytes = b"", at: float = NOW
) -> dict[str, Any]:
    """A webhook of Telnyx's: an inbound text, or whatever `body` holds."""
    payload = {
        "id": "84cca175-0000-0000-0000-000000000001",
        "direction": "inbound",
        "from": {"phone_number": THEIRS},
        "to": [{"phone_number": number} for number in to],
        "text": text,
        "type": "SMS",
        "parts": 1,
        "media": [],
        "messaging_profile_id": "740572b6-0000-0000-0000-000000000001",
        "organization_id": "47a530f8-0000-0000-0000-000000000001",
        "record_type": "message",
        "received_at": "2026-09-21T14:13:20.000+00:00",
    }
    event = {"id": "e1", "event_type": "message.received", "payload": payload}
    body = body or json.dumps({"data": event, "meta": {"attempt": 1}}).encode()
    signature = TelnyxKey.private.sign(f"{int(at)}|".encode() + body)
    return api_event(
        "POST",
        "/webhooks/telnyx/signed",
        body,
        {
            "Content-Type": "application/json",
            "telnyx-signature-ed25519": base64.b64encode(signature).decode(),
            "telnyx-timestamp": str(int(at)),
        },
        resource="/webhooks/{provider}/signed",
        parameters={"provider": "telnyx"},
    )


def api_event(
    method: str,
    path: str,
    body: str | bytes | None,
    headers: Mapping[str, str],
    *,
    resource: str = "",
    parameters: Mapping[str, str] | None = None,
    query: Mapping[str, list[str]] | None = None,
    principal: str = "",
) -> dict[str, Any]:
    """A request as API Gateway hands it over (REST API, proxy integration)."""
    return {
        "requestContext": {
            "httpMethod": method,
            "resourcePath": resource or path,
            "path": path,
            "domainName": HOST,
            "authorizer": {"principalId": principal} if principal else {},
        },
        "headers": dict(headers),
        "multiValueHeaders": {name: [value] for name, value in headers.items()},
        "pathParameters": dict(parameters or {}),
        "multiValueQueryStringParameters": dict(query) if query else None,
        "stageVariables": None,
        "body": body,
        "isBase64Encoded": False,
    }


def vectors(provider: str) -> list[dict[str, Any]]:
    """The requests of tests/vectors, each with its `name` and whether it is `valid`."""
    path = Path(__file__).parent / "vectors" / f"{provider}.json"
    found: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))
    return found


def carried(vector: dict[str, Any]) -> str:
    """Why an API Gateway event cannot carry this request, or ""."""
    url = urlsplit(vector["url"])
    if vector["method"] != "POST":
        return "our doors take POST only"
    if url.scheme != "https":
        return "API Gateway speaks https only"
    query = "&".join(f"{n}={v}" for n, vs in parse_qs(url.query).items() for v in vs)
    if query != url.query:
        return "the event has the query decoded or in another order"
    return ""


def event_of(vector: dict[str, Any], provider: str) -> dict[str, Any]:
    """A vector's request, to the signed door."""
    url = urlsplit(vector["url"])
    event = api_event(
        "POST",
        url.path,
        vector["body"],
        vector["headers"],
        resource="/webhooks/{provider}/signed",
        parameters={"provider": provider},
        query=parse_qs(url.query) or None,
    )
    event["requestContext"]["domainName"] = url.netloc
    return event
