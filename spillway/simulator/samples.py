"""The sample reply API and the sample look-ups: real HTTP services that are told to be slow, to
fail or to be down while they run. What they answer follows from what they are asked, so that tests
can know it beforehand.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.routing import Route

from spillway.simulator.behaviour import SAMPLE_FAILURES, Behaviour, Service
from spillway.simulator.gates import Gate
from spillway.simulator.web import BadInput, Json, json_object, only, seconds

_SERVICES = ("reply", "customer", "line")
_NAMES = ("Ada", "Ben", "Chloe", "Dev", "Elif", "Femi", "Grace", "Hugo")
_LINE_TYPES = ("mobile", "mobile", "mobile", "voip", "landline")


class Samples:
    """`services`: how each of the three behaves."""

    def __init__(self, gates: Mapping[str, Gate]) -> None:
        self.services = {name: Service(SAMPLE_FAILURES, gates.get(name)) for name in _SERVICES}

    def routes(self) -> list[Route]:
        return [
            Route("/sample/reply", self.reply, methods=["POST"]),
            Route("/sample/lookups/customer", self.customer, methods=["POST"]),
            Route("/sample/lookups/line", self.line, methods=["POST"]),
            Route("/sample/delay", self.get_delay, methods=["GET"]),
            Route("/sample/delay", self.put_delay, methods=["PUT"]),
        ]

    async def reply(self, request: Request) -> Json:
        """Repeats the text; a picture without words is answered by how many there were."""
        question = await json_object(request)
        text, media = question.get("text"), question.get("media", [])
        if not isinstance(text, str) or not isinstance(media, list):
            raise BadInput("text must be a text, and media a list")
        if not text and media:
            text = f"({len(media)} media)"
        return await self._answer("reply", {"text": text} if text else {})

    async def customer(self, request: Request) -> Json:
        """Three out of four numbers are known."""
        digest = _digest(await json_object(request))
        known = digest[0] % 4 != 0
        name = _NAMES[digest[1] % len(_NAMES)] if known else None
        return await self._answer("customer", {"known": known, "name": name})

    async def line(self, request: Request) -> Json:
        digest = _digest(await json_object(request))
        line_type = _LINE_TYPES[digest[2] % len(_LINE_TYPES)]
        return await self._answer("line", {"line_type": line_type, "country": "US"})

    async def _answer(self, service: str, answer: dict[str, Any]) -> Json:
        """The answer, or what the service's behaviour makes of it."""
        behaviour = self.services[service].behaviour
        await asyncio.sleep(behaviour.delay)
        if behaviour.fail == "server_error":
            return Json({"error": "server_error"}, 500)
        if behaviour.fail == "throttled":
            throttled = Json({"error": "throttled"}, 429)
            if behaviour.retry_after is not None:
                throttled.headers["Retry-After"] = str(behaviour.retry_after)
            return throttled
        return Json(answer)

    async def get_delay(self, _request: Request) -> Json:
        return Json({name: one.behaviour.delay for name, one in self.services.items()})

    async def put_delay(self, request: Request) -> Json:
        """Sets all three: what is not named is 0."""
        payload = await json_object(request)
        only(payload, *_SERVICES)
        delays = {name: seconds(payload, name) for name in _SERVICES}
        for name, delay in delays.items():
            await self.services[name].behave(Behaviour(delay))
        return Json(delays)


def _digest(question: dict[str, Any]) -> bytes:
    number = question.get("from")
    if not isinstance(number, str):
        raise BadInput("from must be a text")
    return hashlib.sha256(number.encode("utf-8", "replace")).digest()
