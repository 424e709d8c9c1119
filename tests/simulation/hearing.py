"""The business's own system: what it hears is true and signed, and of all that happened it hears at
least once, under one id."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from random import Random
from typing import Any

import httpx

from tests.simulation.outside import Outside
from tests.simulation.runtime import Cloud
from tests.simulation.world import Violation

HOST = "events.example.com"
BUS = "spillway-test"
KEY = base64.b64encode(b"a signing key of the simulation.").decode()
SECRET = {"signing_secrets": [f"whsec_{KEY}"]}
_HEARD = 0.4  # of the seeds


def settings(seed: int) -> dict[str, str]:
    """How anybody is to hear, if anybody is. (Drawn apart, so that no other seed is another story
    for it.)"""
    random = Random(f"{seed} is heard")
    if random.random() > _HEARD:
        return {}
    return random.choice(({"EVENTS_URL": f"https://{HOST}/"}, {"EVENT_BUS": BUS}))


class Bus:
    """EventBridge, as far as it is used: it takes an event, or not."""

    def __init__(self, random: Random, fails: float) -> None:
        self._random, self._fails = random, fails
        self.hear: Callable[[dict[str, Any]], None] = lambda event: None

    def put_events(self, *, Entries: list[dict[str, Any]]) -> dict[str, Any]:
        (entry,) = Entries
        if self._random.random() < self._fails:
            return {"FailedEntryCount": 1, "Entries": [{"ErrorCode": "InternalFailure"}]}
        event = json.loads(entry["Detail"])
        if (entry["EventBusName"], entry["Source"]) != (BUS, "spillway.test"):
            raise Violation("what is heard is true", str(entry))
        if entry["DetailType"] != event["type"]:
            raise Violation("what is heard is true", str(entry))
        self.hear(event)
        return {"FailedEntryCount": 0, "Entries": [{"EventId": "1"}]}


class Hearing:
    """Who hears, and what was heard."""

    def __init__(self, cloud: Cloud, out: Outside) -> None:
        self._out = out
        cloud.stores["events"].hear = self._understand
        self._heard: dict[str, dict[str, Any]] = {}
        before = cloud.network

        def network(task: Any, request: httpx.Request) -> httpx.Response:
            if request.url.host == HOST:
                self._hear(request)
                return httpx.Response(204)
            return before(task, request)

        cloud.network = network

    def _hear(self, request: httpx.Request) -> None:
        id_, at = request.headers["webhook-id"], request.headers["webhook-timestamp"]
        signed = f"{id_}.{at}.".encode() + request.content
        digest = hmac.new(base64.b64decode(KEY), signed, hashlib.sha256).digest()
        if request.headers["webhook-signature"] != f"v1,{base64.b64encode(digest).decode()}":
            raise Violation("an event is signed", id_)
        event = json.loads(request.content)
        if event["id"] != id_:
            raise Violation("an event is signed", f"{id_}: it says {event['id']}")
        self._understand(event)

    def _understand(self, event: dict[str, Any]) -> None:
        id_ = event["id"]
        data = {name: value for name, value in event["data"].items() if name != "lookups"}
        there = self._heard.setdefault(id_, {"type": event["type"], "data": data})
        if not _alike(there["data"], data):
            raise Violation("an event says one thing", f"{id_}: {there['data']}, {data}")
        if event["type"] == "message.received":
            text = self._out.texts[data["id"]]
            if data["from"] != text.person or data["to"] != text.ours:
                raise Violation("what is heard is true", text.name, (data["id"],))

    def stored(self, id_: str) -> None:
        """This text is in the table."""
        self._must("message.received", id_, id_)

    def ended(self, id_: str, item: dict[str, Any]) -> None:
        """This reply has ended so."""
        event = self._must("reply.ended", id_, id_)
        outcome = item.get("outcome", "sent")
        if event["data"]["outcome"] != outcome:
            raise Violation(
                "what is heard is true", f"{event['data']['outcome']}: {outcome}", (id_,)
            )

    def goes_on(self, id_: str) -> None:
        """This reply has not ended."""
        if f"reply.ended.{id_}" in self._heard:
            raise Violation("what is heard is true", f"{id_} has not ended", (id_,))

    def told(self, reference: str, status: str) -> None:
        """A provider told of a part, and was acknowledged."""
        self._must("receipt.received", f"{reference}.{status}", reference.rpartition("-")[0])

    def consented(self, entry: dict[str, Any]) -> None:
        """The list has this event."""
        self._must("consent.changed", f"{entry['id']}.{entry['event']}", str(entry["id"]))

    def _must(self, type_: str, about: str, id_: str) -> dict[str, Any]:
        event = self._heard.get(f"{type_}.{about}")
        if event is None:
            name = self._out.texts[id_].name if id_ in self._out.texts else id_
            raise Violation("the business hears of it", f"{name}: {type_} {about}", (id_,))
        return event


def _alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two say the same, but for times: two copies of a text come at different ones, and
    what its provider calls it may have been learnt in between."""
    if set(one) != set(other):
        return False
    loose = ("received_at", "sent_at", "parts", "provider_id", "occurred_at", "at")
    return all(one[name] == other[name] for name in one if name not in loose)
