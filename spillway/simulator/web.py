"""Reading requests and giving answers, for everything that the simulator serves."""

from __future__ import annotations

import json
import math
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send


class BadInput(Exception):
    """A request to the simulator itself cannot be used. The text names fields, never values."""


class Json(JSONResponse):
    """JSON in ASCII: a lone surrogate, which a text may hold, has an escape but no UTF-8 form."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, separators=(",", ":")).encode("ascii")


class CutConnection(Response):
    """Closes the connection without an answer, as a lost one looks to the client."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # ASGI knows no way to do this; uvicorn's `receive` is a method of what has the transport.
        receive.__self__.transport.close()  # type: ignore[attr-defined]
        while (await receive())["type"] != "http.disconnect":
            pass


class NoAnswer(Response):
    """Answers nothing until the client has gone."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass


async def json_object(request: Request) -> dict[str, Any]:
    """The request's body. Raises BadInput if it is not a JSON object."""
    try:
        payload = json.loads(await request.body())
    except ValueError:
        raise BadInput("the body is not JSON") from None
    if not isinstance(payload, dict):
        raise BadInput("the body is not a JSON object")
    return payload


def only(payload: dict[str, Any], *names: str) -> None:
    """Raises BadInput for a field that is none of these, so that a typing error shows."""
    if unknown := set(payload) - set(names):
        raise BadInput(f"unknown: {', '.join(sorted(unknown))}; there are: {', '.join(names)}")


def seconds(payload: dict[str, Any], name: str) -> float:
    """A field that holds a delay, 0 where it is absent. Raises BadInput."""
    value = payload.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadInput(f"{name} is not a number of seconds")
    if not math.isfinite(value) or value < 0:
        raise BadInput(f"{name} is not a number of seconds")
    return float(value)
