"""The receiving function: verify, put on the queues, acknowledge. No database, no business logic.

A webhook's messages go on the processing queue first and then on the outbound queue: a death in
between leaves "stored, not answered", which can be repaired. A queue that refuses makes it a 503,
so that the provider tries again; a fault of ours is never a 4xx, for which some providers drop a
message for good.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any
from urllib.parse import urlencode, urlsplit

from chalicelib import statements
from chalicelib.config import Settings, load
from chalicelib.ledger import Ledger
from chalicelib.messages import (
    DeliveryReceipt,
    Headers,
    InboundMessage,
    MessageId,
    OutgoingMessage,
    Response,
    WebhookRequest,
    answerable,
    number_kind,
    parse_reference,
)
from chalicelib.observing import count, log
from chalicelib.providers import provider_named
from chalicelib.providers.base import PayloadError, Provider, SignatureError, UnknownProvider
from chalicelib.queues import LARGEST_BODY, OUTBOUND, PROCESSING, Envelope, Queues
from chalicelib.runtime import NotReady, Runtime, is_transient
from chalicelib.table import Table
from chalicelib.text import LONGEST
from chalicelib.vault import Vault

_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}", re.ASCII)
MOST_MEDIA = 10
# Messages on the outbound queue from which on POST /messages adds none. SQS looks for conversations
# that are free among the first 120,000 of a FIFO queue: beyond, a campaign would hide replies and
# STOPs. The rest is theirs, and for what is taken before it shows: the number may be a minute old.
# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/avoid-backlog-with-the-same-message-group-id.html
MOST_WAITING = 20_000
DEPTH_KEPT = 10.0  # seconds
# Seconds after which a refused client is to come again: longer than a depth is kept, which would
# only refuse it again, and so short that the queue is not empty by then, below 667 texts a second.
COME_AGAIN = 30


class Receiver:
    """Handles what comes in over HTTP."""

    def __init__(self, runtime: Runtime, settings: Settings) -> None:
        self._runtime = runtime
        self._settings = settings
        self._vault = Vault(runtime, settings.stage)
        self._queues = Queues(runtime, settings.stage)
        # All that the first webhook would have to wait for, side by side.
        waits: list[Callable[[], object]] = [
            self._vault.keys,
            partial(self._queues.url, PROCESSING),
            partial(self._queues.url, OUTBOUND),
            *(partial(self._fetch_secrets, name) for name in settings.providers),
        ]
        runtime.together(waits)
        self._keys = self._vault.keys()
        self._providers = {
            name: provider_named(name, settings.api_url(name)) for name in settings.providers
        }
        self._ledger = Ledger(
            Table(runtime, settings.stage), runtime, keep_days=settings.message_days
        )
        self._depth = 0
        self._depth_read_at = float("-inf")

    # -- webhooks -----------------------------------------------------------------------------

    def webhook(self, name: str, event: Mapping[str, Any], *, signed_door: bool) -> Response:
        """One webhook request, as API Gateway's event, of the provider called `name`."""
        try:
            provider = self._provider(name)
        except UnknownProvider:
            # Without its name, which anybody may have made up.
            _refused("unknown_provider")
            return _error(404, "unknown_provider")
        if signed_door and not provider.signed:
            _refused("unsigned_provider", name)
            return _error(403, "this provider does not sign: use its door behind the authorizer")
        request = request_of(event, self._settings.public_url, self._runtime.now())
        try:
            if provider.signed and not self._verified(provider, request):
                _refused("signature", name)
                return _error(403, "signature")
        except Exception as error:
            return _try_again(error, name)
        return self._accept(provider, request, event)

    def _fetch_secrets(self, name: str) -> None:
        try:
            self._vault.secrets(name)
        except Exception as error:
            # Asked for again when this provider calls; the others are not to wait for it.
            log("ERROR", "no_secrets", provider=name, error=error)

    def _provider(self, name: str) -> Provider:
        if name not in self._providers:
            raise UnknownProvider(name)
        return self._providers[name]

    def _verified(self, provider: Provider, request: WebhookRequest) -> bool:
        """Raises NotReady where there is nothing to verify with: that is our fault."""
        try:
            provider.verify(request, self._vault.secrets(provider.name))
        except SignatureError:
            # The secret may have been rotated since we last looked.
            fresh = self._vault.refreshed(provider.name)
            if not provider.can_verify(fresh or self._vault.secrets(provider.name)):
                raise NotReady("the provider's secret has no key to verify with") from None
            if fresh is None:
                return False
            try:
                provider.verify(request, fresh)
            except SignatureError:
                return False
        return True

    def _accept(
        self, provider: Provider, request: WebhookRequest, event: Mapping[str, Any]
    ) -> Response:
        """Puts what the request holds on the queues, and acknowledges it."""
        name, ids = provider.name, ""
        try:
            callback_url = public_url(event, self._settings.public_url, name)
            try:
                processing, outbound = self._envelopes(provider, request, callback_url)
                ids = " ".join(filter(None, (envelope.log_id for envelope, _ in processing)))
                self._send(PROCESSING, processing)
            except (PayloadError, RecursionError):
                # JSON can be read at depths at which it can no longer be written.
                log("ERROR", "payload_unreadable", id=ids, provider=name)
                self._send(PROCESSING, [(_unreadable(provider, request), "")])
            else:
                self._send(OUTBOUND, outbound)
        except TooLarge:
            _refused("too_large", name, ids)
            return _error(413, "too_large")
        except Exception as error:
            return _try_again(error, name, ids)
        count("Acknowledged", provider=name, id=ids)
        return provider.acknowledge()

    def _envelopes(
        self, provider: Provider, request: WebhookRequest, callback_url: str
    ) -> tuple[list[tuple[Envelope, str]], list[tuple[Envelope, str]]]:
        """For processing and for the sender, with their deduplication ids. Raises PayloadError."""
        processing: list[tuple[Envelope, str]] = []
        outbound: list[tuple[Envelope, str]] = []
        for one in provider.parse(request):
            if isinstance(one, DeliveryReceipt):
                processing.append((receipt(one, request.received_at), ""))
                continue
            id_ = self._keys.message_id(one)
            processing.append((inbound(one, id_, callback_url), ""))
            if answerable(one):
                # `raw` is for the archive; the sender has no use for it.
                envelope = inbound(one, id_, callback_url, raw=False)
                outbound.append((envelope, id_.message))
        return processing, outbound

    def _send(self, queue: str, envelopes: list[tuple[Envelope, str]]) -> None:
        if any(len(envelope.body()) > LARGEST_BODY for envelope, _ in envelopes):
            raise TooLarge
        self._queues.send(queue, envelopes)

    # -- our own clients ----------------------------------------------------------------------

    def post_message(self, event: Mapping[str, Any]) -> Response:
        """POST /messages: one outgoing text for the outbound queue."""
        provider, about = "", ""
        try:
            request = request_of(event, self._settings.public_url, self._runtime.now())
            key = request.headers.get("idempotency-key")
            if not _IDEMPOTENCY_KEY.fullmatch(key):
                raise BadRequest("the header Idempotency-Key must have 1 to 255 visible characters")
            message = self._outgoing(_json_in(request.body))
            provider = message.provider
            principal = event["requestContext"].get("authorizer", {}).get("principalId", "api")
            id_ = MessageId(
                self._keys.conversation(message.ours, message.theirs),
                self._keys.message("api", principal, key),
            )
            about = str(id_)
            envelope = Envelope(
                "outgoing",
                id_.conversation,
                about,
                request.received_at,
                asdict(message),
                public_url(event, self._settings.public_url, provider),
            )
            if self._is_full():
                _refused("queue_full", ids=about)
                return _json(429, {"error": "queue_full"}, {"Retry-After": str(COME_AGAIN)})
            self._send(OUTBOUND, [(envelope, id_.message)])
        except BadRequest as error:
            _refused("bad_request")
            return _error(400, str(error))
        except Exception as error:
            return _try_again(error, provider, about)
        count("Queued", provider=provider, id=about)
        return _json(202, {"id": about})

    def _is_full(self) -> bool:
        """Whether so much waits to be sent that our own clients are not to add to it. Webhooks are
        never refused for that."""
        now = self._runtime.now()
        if now - self._depth_read_at >= DEPTH_KEPT:
            self._depth, self._depth_read_at = 0, now
            try:
                self._depth = self._queues.depth(OUTBOUND)
            except Exception as error:
                # Not known is not full: SQS takes the message or refuses it by itself.
                log("WARNING", "depth_not_read", error=error)
        return self._depth >= MOST_WAITING

    def _outgoing(self, body: Any) -> OutgoingMessage:
        if not isinstance(body, dict):
            raise BadRequest("the body must be a JSON object")
        strange = set(body) - {"to", "from", "text", "media"}
        if strange:
            raise BadRequest("the body may have: to, from, text, media")
        theirs, words, media = body.get("to"), body.get("text", ""), body.get("media", [])
        if not isinstance(theirs, str) or number_kind(theirs) not in ("e164", "short_code"):
            raise BadRequest("to: must be a number such as +14155550100, or a short code")
        ours = body.get("from", next(iter(self._settings.numbers), ""))
        if not isinstance(ours, str) or ours not in self._settings.numbers:
            raise BadRequest("from: must be one of NUMBERS")
        if not isinstance(words, str) or len(words) > LONGEST:
            raise BadRequest(f"text: must be a string of at most {LONGEST} characters")
        if not _urls(media):
            raise BadRequest(f"media: must be a list of at most {MOST_MEDIA} http(s) addresses")
        if not words.strip() and not media:
            raise BadRequest("text: there is neither text nor media")
        return OutgoingMessage(self._settings.numbers[ours], ours, theirs, words, tuple(media))

    def post_consent(self, event: Mapping[str, Any]) -> Response:
        """POST /consent: what a person said by another way than a text, for processing."""
        about = ""
        try:
            request = request_of(event, self._settings.public_url, self._runtime.now())
            said = statements.read(_json_in(request.body), request.received_at)
            about = str(statements.id_of(self._keys, said))
            envelope = Envelope("consent", "", about, request.received_at, asdict(said))
            self._send(PROCESSING, [(envelope, "")])
        except (BadRequest, statements.BadStatement) as error:
            _refused("bad_request")
            return _error(400, str(error))
        except Exception as error:
            return _try_again(error, "", about)
        count("Queued", id=about)
        return _json(202, {"id": about})

    def get_message(self, id_text: str) -> Response:
        """GET /messages/{id}: what became of it. The one read that this function makes."""
        id_ = MessageId.parse(id_text)
        if id_ is None:
            return _error(404, "not_a_message_id")
        try:
            reply = self._ledger.find(id_)
        except Exception as error:
            return _try_again(error, "", str(id_))
        if reply is None:
            return _error(404, "not_seen_yet")
        return _json(
            200,
            {
                "id": str(id_),
                "state": reply.state,
                "parts": [
                    {"state": part.state, "status": part.status, "error": part.error}
                    for part in reply.parts or ()
                ],
            },
        )


class TooLarge(Exception):
    """More than a queue takes."""


class BadRequest(ValueError):
    """Our own client's mistake; the text is for its eyes and shows no value."""


def request_of(event: Mapping[str, Any], base: str, now: float) -> WebhookRequest:
    """The request as its caller made it, from API Gateway's event (REST API, proxy integration).

    The event carries the query decoded: our own URLs have at most one parameter, of characters
    that need no encoding, so for them it is the same. `base` replaces scheme, host and stage, for
    proxies and tunnels.
    https://docs.aws.amazon.com/apigateway/latest/developerguide/set-up-lambda-proxy-integrations.html
    """
    context = event["requestContext"]
    url = base + _own_path(event) if base else f"https://{context['domainName']}{context['path']}"
    query = event.get("multiValueQueryStringParameters")
    if query:
        url += "?" + urlencode(query, doseq=True)
    body = event.get("body") or b""
    if isinstance(body, str):
        body = base64.b64decode(body) if event.get("isBase64Encoded") else body.encode()
    elif event.get("isBase64Encoded"):
        body = base64.b64decode(body)
    return WebhookRequest(
        method=context["httpMethod"],
        url=url,
        headers=Headers(event.get("multiValueHeaders") or event.get("headers") or {}),
        body=body,
        received_at=now,
    )


def public_url(event: Mapping[str, Any], base: str, provider: str) -> str:
    """Where this provider's receipts go: its signed door, under the address that we were called
    at."""
    if not base:
        context = event["requestContext"]
        # What stands before our own path: the stage, or a custom domain's base path.
        prefix = context["path"].removesuffix("/").removesuffix(_own_path(event))
        base = f"https://{context['domainName']}{prefix}"
    return f"{base}/webhooks/{provider}/signed"


def _own_path(event: Mapping[str, Any]) -> str:
    """The path without stage or base path: that of the route."""
    path: str = event["requestContext"]["resourcePath"]
    for name, value in (event.get("pathParameters") or {}).items():
        path = path.replace(f"{{{name}}}", value)
    return path


def inbound(
    message: InboundMessage, id_: MessageId, callback_url: str, *, raw: bool = True
) -> Envelope:
    """A text as it travels: with `raw` for processing, without it for the sender."""
    payload = asdict(message)
    if not raw:
        del payload["raw"]
    return Envelope(
        "inbound", id_.conversation, str(id_), message.received_at, payload, callback_url
    )


def receipt(one: DeliveryReceipt, received_at: float) -> Envelope:
    """A receipt as it travels, to processing."""
    named = parse_reference(one.reference)
    conversation = named[0].conversation if named else ""
    return Envelope("receipt", conversation, "", received_at, asdict(one))


def _unreadable(provider: Provider, request: WebhookRequest) -> Envelope:
    payload = {
        "provider": provider.name,
        "url": request.url,
        "content_type": request.headers.get("content-type"),
        "body": base64.b64encode(request.body).decode(),
    }
    return Envelope("unreadable", "", "", request.received_at, payload)


def _urls(media: Any) -> bool:
    return (
        isinstance(media, list)
        and len(media) <= MOST_MEDIA
        and all(isinstance(url, str) and _is_address(url) for url in media)
    )


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return (
            len(url) <= 2000
            and parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
            and url.isascii()
            and url.isprintable()
            and " " not in url
        )
    except ValueError:
        return False


def _try_again(error: Exception, provider: str, ids: str = "") -> Response:
    """For a fault of ours: the caller is to come again."""
    known = is_transient(error)
    count("Faults", provider=provider, reason="store" if known else "unexpected", id=ids)
    if not known:
        count("UnexpectedErrors", id=ids)
    log("ERROR", "not_taken", id=ids, provider=provider, error=error)
    return _json(503, {"error": "try_again"}, {"Retry-After": "5"})


def _json_in(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("the body must be a JSON object") from None


def _refused(reason: str, provider: str = "", ids: str = "") -> None:
    count("Refused", provider=provider, reason=reason, id=ids)
    log("WARNING", "refused", id=ids, provider=provider, reason=reason)


def _error(status: int, why: str) -> Response:
    return _json(status, {"error": why})


def _json(
    status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> Response:
    return Response(
        status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(body)
    )


def start() -> Receiver:
    """Everything that can be made before the first request: clients, queue URLs, secrets."""
    settings = load(os.environ)
    runtime = Runtime(hurry=True)
    runtime.warm("sqs", "secretsmanager")
    log("INFO", "started", code=runtime.boto3)
    return Receiver(runtime, settings)
