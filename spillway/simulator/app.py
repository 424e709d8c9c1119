"""The HTTP service: the simulated providers, the handles by which they are made to act, and the
sample services.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from spillway.simulator.carrier import Behaviour, Carrier, Text, World
from spillway.simulator.samples import Samples
from spillway.simulator.telnyx import Telnyx
from spillway.simulator.twilio import Twilio
from spillway.simulator.web import BadInput, Json, json_object, only

_PAGE = """\
Spillway's simulated providers and sample services

GET  /provider/outbox                  what the providers accepted for sending, newest last
POST /provider/inbound                 a text from a person: {"provider", "from", "to", "text"}
GET  /provider/behaviour/{provider}    how a provider treats sends; PUT sets it:
                                       {"delay": seconds, "fail": null | "throttled" |
                                       "server_error" | "rejected" | "lost_answer",
                                       "receipts": true | false}
     /provider/twilio/2010-04-01/...   simulated Twilio: send and list messages
     /provider/telnyx/v2/messages      simulated Telnyx: send messages
POST /sample/reply                     sample reply API: repeats the text
POST /sample/lookups/customer          sample look-up: {"known", "name"}
POST /sample/lookups/line              sample look-up: {"line_type", "country"}
GET  /sample/delay                     their delays; PUT sets them: {"reply", "customer", "line"}
GET  /health                           whether this answers, and how many receipts wait

Simulated here: """

_CARRIERS: dict[str, type[Carrier]] = {"twilio": Twilio, "telnyx": Telnyx}


def application(world: World) -> Starlette:
    """Serves what `world` describes, and closes its HTTP client in the end."""
    carriers = {name: _CARRIERS[name](world) for name in world.configuration.secrets}
    handles = _Handles(world, carriers)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with world.http, world.receipts.running():
            yield

    routes: list[BaseRoute] = [
        *handles.routes(),
        *(Mount(f"/provider/{name}", routes=one.routes()) for name, one in carriers.items()),
        *Samples().routes(),
    ]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={BadInput: _bad_input})


async def _bad_input(_request: Request, error: Exception) -> Response:
    return Json({"error": str(error)}, 400)


class _Handles:
    """What people and tests use to make the providers act, and to see what they did."""

    def __init__(self, world: World, carriers: dict[str, Carrier]) -> None:
        self._world = world
        self._carriers = carriers

    def routes(self) -> list[Route]:
        behaviour = "/provider/behaviour/{provider}"
        return [
            Route("/", self.page, methods=["GET"]),
            Route("/health", self.health, methods=["GET"]),
            Route("/provider/outbox", self.outbox, methods=["GET"]),
            Route("/provider/inbound", self.inbound, methods=["POST"]),
            Route(behaviour, self.get_behaviour, methods=["GET"]),
            Route(behaviour, self.put_behaviour, methods=["PUT"]),
        ]

    async def page(self, _request: Request) -> Response:
        return PlainTextResponse(_PAGE + ", ".join(self._carriers) + "\n")

    async def health(self, _request: Request) -> Response:
        """`refused` counts sends of which a receipt was not taken, after the provider's retries."""
        receipts = self._world.receipts
        counts = {"waiting": receipts.waiting, "refused": receipts.refused}
        return Json({"status": "ok", "receipts": counts})

    async def outbox(self, _request: Request) -> Response:
        return Response(self._world.outbox.as_json(), media_type="application/json")

    async def inbound(self, request: Request) -> Response:
        payload = await json_object(request)
        only(payload, "provider", "from", "to", "text", "media", "id", "door")
        carrier = self._carrier(payload.get("provider"))
        text = _text(payload, carrier)
        began = time.monotonic()
        delivery = await carrier.deliver(text)
        return Json(
            {
                "id": text.id,
                "door": text.door,
                "status": delivery.status,
                "seconds": round(time.monotonic() - began, 4),
                "attempts": delivery.requests,
            }
        )

    async def get_behaviour(self, request: Request) -> Response:
        return Json(self._carrier(request.path_params["provider"]).behaviour.as_dict())

    async def put_behaviour(self, request: Request) -> Response:
        carrier = self._carrier(request.path_params["provider"])
        carrier.behaviour = Behaviour.parse(await json_object(request))
        return Json(carrier.behaviour.as_dict())

    def _carrier(self, name: object) -> Carrier:
        if not isinstance(name, str) or name not in self._carriers:
            raise BadInput(f"provider is none of: {', '.join(self._carriers)}")
        return self._carriers[name]


def _text(payload: dict[str, Any], carrier: Carrier) -> Text:
    for name in ("from", "to", "text"):
        if not isinstance(payload.get(name), str):
            raise BadInput(f"{name} must be a text")
    media = payload.get("media") or []
    if not isinstance(media, list) or not all(_is_attachment(one) for one in media):
        raise BadInput('media must be a list of {"url", "content_type"}')
    id_ = payload.get("id") or carrier.new_id(media)
    if not isinstance(id_, str):
        raise BadInput("id must be a text")
    door = payload.get("door") or carrier.doors[0]
    if door not in carrier.doors:
        raise BadInput(f"{carrier.name} comes through the door: {', '.join(carrier.doors)}")
    return Text(id_, payload["from"], payload["to"], payload["text"], media, door)


def _is_attachment(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(name), str) for name in ("url", "content_type")
    )
