"""The HTTP service: the simulated providers, the handles by which they are made to act, and the
sample services.
"""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from spillway.simulator.behaviour import Service
from spillway.simulator.carrier import Carrier, Text, World
from spillway.simulator.samples import Samples
from spillway.simulator.telnyx import Telnyx
from spillway.simulator.twilio import Twilio
from spillway.simulator.web import BadInput, Json, json_object, only

_PAGE = """\
Spillway's simulated providers and sample services

GET  /provider/outbox                  what the providers accepted for sending, newest last
POST /provider/inbound                 a text from a person: {"provider", "from", "to", "text",
                                       "media": [{"content_type", "content": in base64}]}
GET  /provider/behaviour/{provider}    how a provider treats sends; PUT sets it:
                                       {"delay": seconds, "fail": null | "throttled" |
                                       "server_error" | "down" | "rejected" | "failed_answer" |
                                       "lost_answer" | "no_answer", "receipts": true | false,
                                       "retry_after": seconds, "for": seconds, then as before}
     /provider/twilio/2010-04-01/...   simulated Twilio: send and list messages
     /provider/telnyx/v2/messages      simulated Telnyx: send messages
POST /sample/reply                     sample reply API: repeats the text
POST /sample/lookups/customer          sample look-up: {"known", "name"}
POST /sample/lookups/line              sample look-up: {"line_type", "country"}
GET  /sample/delay                     their delays; PUT sets them: {"reply", "customer", "line"}
GET  /sample/behaviour/{service}       how one of them behaves; PUT sets it: {"delay", "fail":
                                       null | "throttled" | "server_error" | "down",
                                       "retry_after", "for"}
GET  /health                           whether this answers, and how many receipts wait

Simulated here: """

_CARRIERS: dict[str, type[Carrier]] = {"twilio": Twilio, "telnyx": Telnyx}


def application(world: World) -> Starlette:
    """Serves what `world` describes, and closes its HTTP client in the end."""
    carriers = {name: _CARRIERS[name](world) for name in world.configuration.secrets}
    samples = Samples(world.gates)
    handles = _Handles(world, carriers, samples)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        for gate in world.gates.values():
            await gate.open()
        async with world.http, world.receipts.running():
            yield
        for gate in world.gates.values():
            gate.close()

    routes: list[BaseRoute] = [
        *handles.routes(),
        *(Mount(f"/provider/{name}", routes=one.routes()) for name, one in carriers.items()),
        *samples.routes(),
    ]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={BadInput: _bad_input})


async def _bad_input(_request: Request, error: Exception) -> Response:
    return Json({"error": str(error)}, 400)


class _Handles:
    """What people and tests use to make the providers act, and to see what they did."""

    def __init__(self, world: World, carriers: dict[str, Carrier], samples: Samples) -> None:
        self._world = world
        self._carriers = carriers
        self._samples = samples

    def routes(self) -> list[Route]:
        return [
            Route("/", self.page, methods=["GET"]),
            Route("/health", self.health, methods=["GET"]),
            Route("/provider/outbox", self.outbox, methods=["GET"]),
            Route("/provider/inbound", self.inbound, methods=["POST"]),
            *(
                Route(path, handle, methods=[method])
                for path in ("/provider/behaviour/{provider}", "/sample/behaviour/{sample}")
                for method, handle in (("GET", self.get_behaviour), ("PUT", self.put_behaviour))
            ),
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
        text = _text(payload, carrier, self._address(request, carrier))
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
        return Json(self._service(request.path_params).behaviour.as_dict())

    async def put_behaviour(self, request: Request) -> Response:
        behaviour = await self._service(request.path_params).told(await json_object(request))
        return Json(behaviour.as_dict())

    def _service(self, named: dict[str, Any]) -> Service:
        if "provider" in named:
            return self._carrier(named["provider"]).service
        if named["sample"] not in self._samples.services:
            raise BadInput(f"the sample services are: {', '.join(self._samples.services)}")
        return self._samples.services[named["sample"]]

    def _address(self, request: Request, carrier: Carrier) -> str:
        """Where a provider is for others: at its own port, if it has one."""
        gate = self._world.gates.get(carrier.name)
        base = f"http://127.0.0.1:{gate.port}/" if gate else str(request.base_url)
        return f"{base}provider/{carrier.name}"

    def _carrier(self, name: object) -> Carrier:
        if not isinstance(name, str) or name not in self._carriers:
            raise BadInput(f"provider is none of: {', '.join(self._carriers)}")
        return self._carriers[name]


def _text(payload: dict[str, Any], carrier: Carrier, address: str) -> Text:
    for name in ("from", "to", "text"):
        if not isinstance(payload.get(name), str):
            raise BadInput(f"{name} must be a text")
    media = payload.get("media") or []
    if not isinstance(media, list) or not all(_is_attachment(one) for one in media):
        raise BadInput('media must be a list of {"url" or "content", "content_type"}')
    id_ = payload.get("id") or carrier.new_id(media)
    if not isinstance(id_, str):
        raise BadInput("id must be a text")
    door = payload.get("door") or carrier.doors[0]
    if door not in carrier.doors:
        raise BadInput(f"{carrier.name} comes through the door: {', '.join(carrier.doors)}")
    hosted = [_hosted(one, carrier, address, id_, number) for number, one in enumerate(media)]
    return Text(id_, payload["from"], payload["to"], payload["text"], hosted, door)


def _is_attachment(value: object) -> bool:
    return (
        isinstance(value, dict)
        and len(value.keys() & {"url", "content"}) == 1
        and all(isinstance(one, str) for one in (*value.values(), value.get("content_type")))
    )


def _hosted(
    one: dict[str, str], carrier: Carrier, address: str, id_: str, number: int
) -> dict[str, str]:
    """An attachment with its address: what came as it is, is with the provider from now on."""
    if "content" not in one:
        return one
    try:
        content = base64.b64decode(one["content"], validate=True)
    except ValueError:
        raise BadInput("content must be in base64") from None
    path = carrier.keep(id_, number, one["content_type"], content)
    return {"url": address + path, "content_type": one["content_type"]}
