"""The sample reply API and the sample look-ups: real HTTP services whose delay can be set while
they run. What they answer follows from what they are asked, so that tests can know it beforehand.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

from starlette.requests import Request
from starlette.routing import Route

from spillway.simulator.web import BadInput, Json, json_object, only, seconds

_SERVICES = ("reply", "customer", "line")
_NAMES = ("Ada", "Ben", "Chloe", "Dev", "Elif", "Femi", "Grace", "Hugo")
_LINE_TYPES = ("mobile", "mobile", "mobile", "voip", "landline")


class Samples:
    """`delays` is in seconds, for each of the three services."""

    def __init__(self) -> None:
        self.delays = dict.fromkeys(_SERVICES, 0.0)

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
        await asyncio.sleep(self.delays["reply"])
        if not text and media:
            text = f"({len(media)} media)"
        return Json({"text": text} if text else {})

    async def customer(self, request: Request) -> Json:
        """Three out of four numbers are known."""
        digest = _digest(await json_object(request))
        await asyncio.sleep(self.delays["customer"])
        known = digest[0] % 4 != 0
        return Json({"known": known, "name": _NAMES[digest[1] % len(_NAMES)] if known else None})

    async def line(self, request: Request) -> Json:
        digest = _digest(await json_object(request))
        await asyncio.sleep(self.delays["line"])
        return Json({"line_type": _LINE_TYPES[digest[2] % len(_LINE_TYPES)], "country": "US"})

    async def get_delay(self, _request: Request) -> Json:
        return Json(self.delays)

    async def put_delay(self, request: Request) -> Json:
        """Sets all three: what is not named is 0."""
        payload = await json_object(request)
        only(payload, *_SERVICES)
        self.delays = {service: seconds(payload, service) for service in _SERVICES}
        return Json(self.delays)


def _digest(question: dict[str, Any]) -> bytes:
    number = question.get("from")
    if not isinstance(number, str):
        raise BadInput("from must be a text")
    return hashlib.sha256(number.encode("utf-8", "replace")).digest()
