"""A simulated Telnyx: its messaging API with idempotency keys, and webhooks with its signatures.

https://developers.telnyx.com/api-reference/messages/send-a-message for the API,
https://developers.telnyx.com/docs/development/api-fundamentals/idempotency.md for repeats,
https://developers.telnyx.com/docs/messaging/messages/receiving-webhooks for webhooks.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from spillway.simulator.carrier import (
    Carrier,
    Delivery,
    Door,
    Media,
    Text,
    Webhook,
    World,
    is_web_address,
    post,
    status,
)
from spillway.simulator.segments import segments
from spillway.simulator.web import BadInput, CutConnection, Json, NoAnswer

_TIMEOUT = httpx.Timeout(2.0, pool=None)
_ATTEMPTS = 3
_FIRST_PAUSE = 0.5

_REPLAYED_FOR = 24 * 3600.0
_KEY = re.compile(r"[A-Za-z0-9_:-]{1,255}", re.ASCII)
_MOST_SEGMENTS = 10

# https://developers.telnyx.com/docs/messaging/messages/error-codes
_ERRORS = {
    "10003": (400, "Invalid URL", "/webhook_url"),
    "10007": (500, "Unexpected error", ""),
    "10009": (401, "Authentication failed", ""),
    "10011": (429, "Too many requests", ""),
    "10015": (400, "Bad Request", ""),
    "10027": (422, "The idempotency key was used with another body", ""),
    "40300": (400, "Blocked due to STOP message", "/to"),
    "40302": (400, "Message too large", "/text"),
    "40305": (400, "Invalid 'from' address", "/from"),
    "40310": (400, "Invalid 'to' address", "/to"),
    "40316": (400, "No content provided", "/text"),
    "40322": (400, "Message blocked due to content", "/text"),
}

# REVOKE and OPTOUT are not among Telnyx's own.
_STOP = {"STOP", "STOPALL", "STOP ALL", "UNSUBSCRIBE", "CANCEL", "END", "QUIT"}
_START = {"START", "UNSTOP"}
_HELP = {"HELP"}

_E164 = re.compile(r"\+[1-9][0-9]{6,14}", re.ASCII)
_SHORT_CODE = re.compile(r"[0-9]{3,8}", re.ASCII)
_SENDER_ID = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9 ]{1,11}", re.ASCII)

_PROFILE = "740572b6-099c-44a1-89b9-6c92163bc68d"
_ORGANIZATION = "47a530f8-4362-4526-829b-bcee17fd9f7a"


def new_id() -> str:
    return str(uuid.uuid4())


def signature(private_key: str, timestamp: str, body: bytes) -> str:
    """telnyx-signature-ed25519: over "{timestamp}|{body}", by a seed in base64."""
    key = Ed25519PrivateKey.from_private_bytes(base64.b64decode(private_key))
    return base64.b64encode(key.sign(timestamp.encode() + b"|" + body)).decode()


def inbound(
    *,
    webhook: str,
    secrets: Mapping[str, Any],
    sender: str,
    recipient: str,
    text: str,
    id: str,  # noqa: A002
    now: float,
    media: Media = (),
    door: Door = "signed",
    attempt: int = 1,
) -> Webhook:
    """The webhook of a text from a person, signed at `now` (unix seconds).

    `webhook` is the base URL of Spillway. Telnyx sends no credentials: raises ValueError for the
    basic door. The event's id follows from the message's, so that a repeat is the same event.
    """
    if door != "signed":
        raise ValueError("Telnyx signs its webhooks and sends no credentials")
    url = f"{webhook}/webhooks/telnyx/signed"
    encoding, parts = segments(text)
    payload = {
        "completed_at": None,
        "cost": {"amount": "0.0000", "currency": "USD"},
        "direction": "inbound",
        "encoding": encoding,
        "errors": [],
        "from": {"carrier": "T-Mobile USA", "line_type": "long_code", "phone_number": sender},
        "id": id,
        "media": [
            {
                "url": one["url"],
                "content_type": one["content_type"],
                "size": 1024,
                "hash_sha256": hashlib.sha256(one["url"].encode("utf-8", "replace")).hexdigest(),
            }
            for one in media
        ],
        "messaging_profile_id": _PROFILE,
        "organization_id": _ORGANIZATION,
        "parts": parts,
        "received_at": _iso(now),
        "record_type": "message",
        "sent_at": None,
        "tags": [],
        "text": text,
        "to": [
            {
                "carrier": "Telnyx",
                "line_type": "Wireless",
                "phone_number": recipient,
                "status": "webhook_delivered",
            }
        ],
        "type": "MMS" if media else "SMS",
        "valid_until": None,
        "webhook_failover_url": None,
        "webhook_url": url,
    }
    if keyword := _keyword(text):
        payload["autoresponse_type"] = keyword
    return _signed(secrets, url, "message.received", payload, now, attempt)


def _signed(
    secrets: Mapping[str, Any],
    url: str,
    event_type: str,
    payload: Mapping[str, Any],
    now: float,
    attempt: int,
) -> Webhook:
    event = {
        "data": {
            "event_type": event_type,
            "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{event_type} {payload['id']!r}")),
            "occurred_at": _iso(now),
            "payload": payload,
            "record_type": "event",
        },
        "meta": {"attempt": attempt, "delivered_to": url},
    }
    text = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
    # What has no form in UTF-8 (a lone surrogate) is left as JSON's own escape of it.
    body = text.encode("utf-8", "backslashreplace")
    timestamp = str(int(now))
    headers = {
        "Content-Type": "application/json",
        "telnyx-signature-ed25519": signature(secrets["private_key"], timestamp, body),
        "telnyx-timestamp": timestamp,
        "User-Agent": "telnyx-webhooks",
    }
    return url, headers, body


@dataclass(frozen=True, slots=True)
class Replay:
    """A success that is given again to whoever repeats the request."""

    body_hash: bytes
    answer: Mapping[str, Any]
    at: float


class Telnyx(Carrier):
    """One messaging profile, whose opt-outs hold for all its numbers."""

    name = "telnyx"
    doors = ("signed",)

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._replays: dict[str, Replay] = {}
        self._opted_out: set[str] = set()

    def routes(self) -> list[Route]:
        return [
            Route("/v2/messages", self.send, methods=["POST"]),
            Route("/media/{picture}", self.show, methods=["GET"]),
        ]

    def new_id(self, media: Media) -> str:
        return new_id()

    def keep(self, text_id: str, number: int, content_type: str, content: bytes) -> str:
        """Whoever has a link needs nothing else.
        https://developers.telnyx.com/docs/messaging/messages/send-receive-mms"""
        name = f"{text_id}-{number}"
        self._pictures[name] = (content_type, content)
        return f"/media/{quote(name, safe='')}"

    # Texts from people

    async def deliver(self, text: Text) -> Delivery:
        if "private_key" not in self.secrets:
            raise BadInput("there is no private key to sign with: these are a real account's keys")
        if (keyword := _keyword(text.text)) == "STOP":
            self._opted_out.add(text.sender)
        elif keyword == "START":
            self._opted_out.discard(text.sender)
        return await self._post(
            lambda attempt: inbound(
                webhook=self.world.configuration.webhook,
                secrets=self.secrets,
                sender=text.sender,
                recipient=text.recipient,
                text=text.text,
                id=text.id,
                now=self.world.now(),
                media=text.media,
                attempt=attempt,
            )
        )

    async def _post(self, webhook: Callable[[int], Webhook]) -> Delivery:
        """Each attempt is another body, with a signature and a time of its own."""
        for attempt in range(1, _ATTEMPTS + 1):
            outcome = await post(self.world.http, webhook(attempt), _TIMEOUT)
            delivery = Delivery(status(outcome), attempt)
            if delivery.taken:
                break
            if attempt < _ATTEMPTS:
                await asyncio.sleep(_FIRST_PAUSE * 2 ** (attempt - 1))
        return delivery

    # The messaging API

    async def send(self, request: Request) -> Response:
        if request.headers.get("authorization", "") != f"Bearer {self.secrets['api_key']}":
            return _error("10009")
        behaviour = self.behaviour
        body = await request.body()
        # What is in is worked on, whether the client is still there by then or not.
        await asyncio.sleep(behaviour.delay)
        if behaviour.fail == "throttled":
            return _error("10011", behaviour.retry_after)
        if behaviour.fail == "server_error":
            return _error("10007")
        # From here to the end nothing waits: two requests with one key cannot both be new.
        key = request.headers.get("idempotency-key")
        if key is not None and not _KEY.fullmatch(key):
            return _error("10015")
        body_hash = hashlib.sha256(body).digest()
        replay = self._replay(key)
        if replay and replay.body_hash != body_hash:
            return _error("10027")
        if replay:
            answer = replay.answer
        else:
            try:
                message = json.loads(body)
            except ValueError:
                return _error("10015")
            if not isinstance(message, dict):
                return _error("10015")
            if behaviour.fail == "rejected":
                return _error("40322")
            if error := self._refusal(message):
                return _error(error)
            answer = self._accepted(message, receipts=behaviour.receipts)
            if key is not None:
                self._replays[key] = Replay(body_hash, answer, self.world.now())
        if behaviour.fail == "lost_answer":
            return CutConnection()
        if behaviour.fail == "no_answer":
            return NoAnswer()
        if behaviour.fail == "failed_answer":
            return _error("10007")
        return Json(answer)

    def _replay(self, key: str | None) -> Replay | None:
        replay = self._replays.get(key) if key is not None else None
        return replay if replay and self.world.now() - replay.at < _REPLAYED_FOR else None

    def _refusal(self, message: Mapping[str, Any]) -> str | None:
        """The error that Telnyx answers, or None where it accepts."""
        ours, theirs = message.get("from"), message.get("to")
        text, media = message.get("text") or "", message.get("media_urls") or []
        callback = message.get("webhook_url")
        if not isinstance(text, str) or not isinstance(media, list):
            return "10015"
        checks = (
            (not _matches(theirs, _E164, _SHORT_CODE), "40310"),
            (not _matches(ours, _E164, _SHORT_CODE, _SENDER_ID), "40305"),
            (not text and not media, "40316"),
            (segments(text)[1] > _MOST_SEGMENTS, "40302"),
            (not all(_is_address(one) for one in media), "10003"),
            (callback is not None and not _is_address(callback), "10003"),
            (str(theirs) in self._opted_out, "40300"),
        )
        return next((code for wrong, code in checks if wrong), None)

    def _accepted(self, message: Mapping[str, Any], *, receipts: bool) -> dict[str, Any]:
        """Takes the message, and returns the answer."""
        text, media = message.get("text") or "", message.get("media_urls") or []
        callback = message.get("webhook_url") or ""
        encoding, parts = segments(text)
        id_ = new_id()
        payload = {
            "completed_at": None,
            "cost": {"amount": "0.0051", "currency": "USD"},
            "direction": "outbound",
            "encoding": encoding,
            "errors": [],
            "from": {
                "carrier": "Telnyx",
                "line_type": "Wireless",
                "phone_number": message["from"],
            },
            "id": id_,
            "media": [
                {"url": url, "content_type": None, "size": None, "sha256": None} for url in media
            ],
            "messaging_profile_id": message.get("messaging_profile_id") or _PROFILE,
            "organization_id": _ORGANIZATION,
            "parts": parts,
            "received_at": _iso(self.world.now()),
            "record_type": "message",
            "sent_at": None,
            "tags": [],
            "text": text,
            "to": _recipient(message["to"], "queued"),
            "type": "MMS" if media else "SMS",
            "valid_until": None,
            "webhook_failover_url": message.get("webhook_failover_url"),
            "webhook_url": callback or None,
        }
        self.accept(
            id=id_,
            sender=message["from"],
            recipient=message["to"],
            text=text,
            media=media,
            callback=callback,
        )
        if callback and receipts and "private_key" in self.secrets:
            self.world.receipts.post(lambda: self._post_receipts(callback, payload))
        return {"data": payload}

    async def _post_receipts(self, callback: str, payload: Mapping[str, Any]) -> bool:
        taken = True
        number = payload["to"][0]["phone_number"]
        for event_type, word in (("message.sent", "sent"), ("message.finalized", "delivered")):
            now = _iso(self.world.now())
            news = {**payload, "to": _recipient(number, word), "sent_at": now}
            if word == "delivered":
                news["completed_at"] = now
            delivery = await self._post(self._event(callback, event_type, news))
            taken = taken and delivery.taken
        return taken

    def _event(
        self, url: str, event_type: str, payload: Mapping[str, Any]
    ) -> Callable[[int], Webhook]:
        return lambda attempt: _signed(
            self.secrets, url, event_type, payload, self.world.now(), attempt
        )


def _recipient(number: str, word: str) -> list[dict[str, str]]:
    carrier = "T-MOBILE USA, INC."
    return [
        {"carrier": carrier, "line_type": "Wireless", "phone_number": number, "status": word},
    ]


def _keyword(text: str) -> str | None:
    """What Telnyx itself makes of a text: STOP, START, HELP or nothing."""
    word = text.strip().upper()
    for keyword, words in (("STOP", _STOP), ("START", _START), ("HELP", _HELP)):
        if word in words:
            return keyword
    return None


def _matches(value: object, *patterns: re.Pattern[str]) -> bool:
    return isinstance(value, str) and any(pattern.fullmatch(value) for pattern in patterns)


def _is_address(value: object) -> bool:
    return isinstance(value, str) and is_web_address(value)


def _iso(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds")


def _error(code: str, retry_after: int | None = None) -> Json:
    http_status, title, pointer = _ERRORS[code]
    error: dict[str, Any] = {
        "code": code,
        "title": title,
        "detail": title,
        "meta": {"url": f"https://developers.telnyx.com/docs/overview/errors/{code}"},
    }
    if pointer:
        error["source"] = {"pointer": pointer}
    answer = Json({"errors": [error]}, http_status)
    if http_status == 429:
        answer.headers.update(
            {"x-ratelimit-limit": "50", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "1"}
        )
        if retry_after is not None:
            answer.headers["Retry-After"] = str(retry_after)
    return answer
