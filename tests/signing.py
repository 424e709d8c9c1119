"""Signed webhooks as API Gateway's events, for unit tests. Signed by the standard library alone."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from tests.fakes import OURS, SECRETS, THEIRS

HOST = "sms.example.com"


def twilio_event(
    fields: Mapping[str, str],
    *,
    reference: str = "",
    token: str = SECRETS["twilio"]["auth_tokens"][0],
    door: str = "/signed",
) -> dict[str, Any]:
    """A webhook of Twilio's: an inbound text, or a receipt where the fields say so."""
    form = {"AccountSid": "AC" + "0" * 32, **fields}
    if "MessageStatus" not in form:
        form = {"From": THEIRS, "To": OURS, "NumMedia": "0", "NumSegments": "1", **form}
    path = f"/webhooks/twilio{door}"
    url = f"https://{HOST}{path}" + (f"?reference={reference}" if reference else "")
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


def api_event(
    method: str,
    path: str,
    body: str | None,
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
