"""Events for the business's own systems: what was said to us, what became of our replies, what
carriers say of them, and whose consent changed. docs/EVENTS.md has their schema.

Whoever brings something about announces it on the processing queue before its own message is done
with; processing publishes it, with that queue's retries: on an EventBridge bus, or as a signed
call-back. Where neither is set nothing is announced.

    announce   a death before it: the message comes again, finds its work done, and announces it
    publish    a death after it: it is published again

So each is published at least once, and twice under the same id: an id is made of what the event is
about and never by chance.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import httpx

from chalicelib.batches import Defer, GiveUp
from chalicelib.config import Settings
from chalicelib.ledger import Reply
from chalicelib.messages import ConsentEvent, DeliveryReceipt, MessageId
from chalicelib.observing import count, log
from chalicelib.providers.base import retry_after
from chalicelib.queues import PROCESSING, Envelope, Queues
from chalicelib.runtime import Runtime, at_most, within
from chalicelib.vault import SecretError, Vault

Type = Literal["message.received", "reply.ended", "receipt.received", "consent.changed"]

# Seconds that a call-back may take. Standard Webhooks: 15 to 30; a queue's worker has others to do.
ANSWERING = 10.0
# Seconds that publishing may take, whichever way.
PUBLISHING = at_most(ANSWERING)
# After so many failures in a row this environment leaves who failed alone, for so many seconds.
FAILURES = 3
PATIENCE = 15.0
# What of a stored line an event has: all but what only we can use.
_OF_A_LINE = (
    *("id", "provider", "provider_id", "from", "to", "text", "media", "group", "segments"),
    *("keyword", "valid", "reasons", "lookups"),
)
# An id or a type, which goes into a header: ours are hashes and words.
_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}", re.ASCII)


class Events:
    """Announces what happened. `on`: whether anybody is to hear of it. Raises what the queue
    raises: then it has not happened yet, as far as the message is concerned that brought it about.
    """

    def __init__(self, runtime: Runtime, queues: Queues, settings: Settings) -> None:
        self._runtime = runtime
        self._queues = queues
        self.on = bool(settings.event_bus or settings.events_url)

    def received(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Messages were stored. `lines`: as the archive has them."""
        self._announce(
            [
                self._event(
                    "message.received",
                    line["id"],
                    line["received_at"],
                    {
                        # (The table keeps nothing of what is None.)
                        **{name: line.get(name) for name in _OF_A_LINE},
                        "sent_at": _iso(line.get("sent_at")),
                        "received_at": _iso(line["received_at"]),
                    },
                )
                for line in lines
            ]
        )

    def ended(self, reply: Reply | None) -> None:
        """A reply was sent as a whole, or will not be sent. (One that has not ended is no news; of
        one that was erased nobody is told.)"""
        if reply is None or not reply.ended or not reply.theirs:
            return
        self._announce(
            [
                self._event(
                    "reply.ended",
                    str(reply.id),
                    self._runtime.now(),
                    {
                        "id": str(reply.id),
                        "kind": "answer" if reply.kind == "inbound" else "message",
                        "provider": reply.provider,
                        "from": reply.ours,
                        "to": reply.theirs,
                        "outcome": reply.outcome or "sent",
                        "received_at": _iso(reply.received_at),
                        "parts": [
                            {
                                "reference": reply.id.part(part.number),
                                "text": part.text,
                                "media": list(part.media),
                                "state": part.state,
                                "provider_id": part.provider_id,
                            }
                            for part in reply.parts or ()
                        ],
                    },
                )
            ]
        )

    def told(self, receipt: DeliveryReceipt, reply: Reply) -> None:
        """A provider said what became of a part."""
        data = {
            "id": str(reply.id),
            "reference": receipt.reference,
            "provider": receipt.provider,
            "provider_id": receipt.id,
            "status": receipt.status,
            "error": receipt.error,
            "occurred_at": _iso(receipt.occurred_at),
        }
        at = receipt.occurred_at or self._runtime.now()
        about = f"{receipt.reference}.{receipt.status}"
        self._announce([self._event("receipt.received", about, at, data, id_=str(reply.id))])

    def consented(
        self, number: str, event: ConsentEvent, at: float, *, words: str, source: str, id_: str
    ) -> None:
        """What a number wants is another thing now."""
        data = {
            "number": number,
            "event": event,
            "at": _iso(at),
            "source": source,
            "words": words,
            "id": id_,
        }
        self._announce([self._event("consent.changed", f"{id_}.{event}", at, data, id_=id_)])

    def _event(
        self, type_: Type, about: str, at: float, data: Mapping[str, Any], id_: str = ""
    ) -> Envelope:
        payload = {"id": f"{type_}.{about}", "type": type_, "timestamp": _iso(at), "data": data}
        named = MessageId.parse(id_ or about)
        conversation = named.conversation if named else ""
        return Envelope("event", conversation, id_ or about, self._runtime.now(), payload)

    def _announce(self, events: list[Envelope]) -> None:
        if self.on and events:
            self._queues.send(PROCESSING, [(event, "") for event in events])


class Publisher:
    """What processing does with an announced event."""

    def __init__(self, runtime: Runtime, settings: Settings, vault: Vault) -> None:
        self._runtime = runtime
        self._vault = vault
        self._stage = settings.stage
        self._bus = settings.event_bus
        self._url = settings.events_url
        self._failures = 0
        self._not_before = 0.0

    def publish(self, envelope: Envelope) -> None:
        """Returns when somebody has it. Raises Defer."""
        event = envelope.payload
        names = (event.get("id"), event.get("type"))
        if not all(isinstance(name, str) and _NAME.fullmatch(name) for name in names):
            raise GiveUp("unexpected_kind")
        left = self._not_before - self._runtime.now()
        if left > 0:
            raise Defer("events: failing", left + PATIENCE * self._runtime.random())
        if self._bus:
            self._put(event)
        elif self._url:
            self._call(event)
        else:
            # The settings changed since: nobody is to hear of it any more.
            log("INFO", "event_dropped", id=envelope.log_id)
            return
        self._failures = 0
        count("Published", reason=event["type"], id=envelope.log_id)

    def _put(self, event: Mapping[str, Any]) -> None:
        """https://docs.aws.amazon.com/eventbridge/latest/APIReference/API_PutEvents.html"""
        answer = self._runtime.events.put_events(
            Entries=[
                {
                    "EventBusName": self._bus,
                    "Source": f"spillway.{self._stage}",
                    "DetailType": event["type"],
                    "Detail": json.dumps(event),
                }
            ]
        )
        if answer.get("FailedEntryCount"):
            self._failed(answer["Entries"][0].get("ErrorCode", "refused"), None)

    def _call(self, event: Mapping[str, Any]) -> None:
        """https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md"""
        body = json.dumps(event).encode()
        now = int(self._runtime.now())
        signed = b"%s.%d.%s" % (event["id"].encode(), now, body)
        signatures = [f"v1,{_signature(secret, signed)}" for secret in self._signing_secrets()]
        try:
            answer = self._runtime.http.post(
                self._url,
                content=body,
                headers={
                    "Content-Type": "application/json",
                    "webhook-id": event["id"],
                    "webhook-timestamp": str(now),
                    "webhook-signature": " ".join(signatures),
                },
                timeout=within(ANSWERING),
            )
        except httpx.HTTPError as error:
            self._failed(type(error).__name__, None)
        else:
            if not 200 <= answer.status_code < 300:
                self._failed(str(answer.status_code), retry_after(answer))

    def _failed(self, why: str, after: float | None) -> None:
        """It comes again; and so do the others, if they would fail as well. (One that is refused
        every time must not hold them up: whoever took another is well.)"""
        self._failures += 1
        if self._failures >= FAILURES:
            self._not_before = self._runtime.now() + PATIENCE
        raise Defer(f"events: {why}", after)

    def _signing_secrets(self) -> list[bytes]:
        """The keys to sign with: while they rotate, with each."""
        found = self._vault.secrets("events").get("signing_secrets")
        try:
            keys = [
                base64.b64decode(one.removeprefix("whsec_"), validate=True) for one in found or ()
            ]
        except (ValueError, AttributeError, TypeError):
            keys = []
        if not keys:
            raise SecretError(
                f"spillway/{self._stage}/events: must be a JSON object with `signing_secrets`, a "
                "list of keys such as whsec_…; spillway secret set events makes one"
            )
        return keys


def _signature(key: bytes, content: bytes) -> str:
    return base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()


def _iso(at: float | None) -> str | None:
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
