"""What the simulated providers have in common: what they are given to carry, and how they call a
webhook. How each speaks and signs is in its own file.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Literal
from urllib.parse import urlsplit

import httpx
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from spillway.simulator.behaviour import PROVIDER_FAILURES, Behaviour, Service
from spillway.simulator.configuration import Configuration
from spillway.simulator.gates import Gate
from spillway.simulator.outbox import Outbox

_log = logging.getLogger(__name__)

Door = Literal["basic", "signed"]
Media = Sequence[Mapping[str, str]]

# The address of a webhook, its headers and its body.
Webhook = tuple[str, dict[str, str], bytes]

# A webhook that was not answered: there was no connection, or no (whole) answer in time.
Unanswered = Literal["not_connected", "not_read"]

# How many receipts are on their way at once: enough to keep up with a burst, few enough to leave
# the event loop to the sends.
_POSTMEN = 16


@dataclass(frozen=True, slots=True)
class Text:
    """A text from a person, on its way to Spillway. `media`: [{"url", "content_type"}]."""

    id: str
    sender: str
    recipient: str
    text: str
    media: Media
    door: Door


@dataclass(frozen=True, slots=True)
class Delivery:
    """How a webhook went: the last answer's status, None without one, and the HTTP requests it
    took (through the basic door two, where nothing fails)."""

    status: int | None
    requests: int

    @property
    def taken(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


# Posts the receipts of one send; false if the webhook refused one.
Job = Callable[[], Awaitable[bool]]


class Receipts:
    """Receipts are posted in the background, in the order of the sends, a few at a time."""

    def __init__(self) -> None:
        self._jobs: asyncio.Queue[Job] = asyncio.Queue()
        self.waiting = 0
        self.refused = 0

    def post(self, job: Job) -> None:
        self.waiting += 1
        self._jobs.put_nowait(job)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        postmen = [asyncio.create_task(self._work()) for _ in range(_POSTMEN)]
        try:
            yield
        finally:
            for postman in postmen:
                postman.cancel()
            await asyncio.gather(*postmen, return_exceptions=True)

    async def _work(self) -> None:
        while True:
            job = await self._jobs.get()
            taken = False
            try:
                taken = await job()
            except Exception as error:  # one bad receipt must not end the others
                _log.error("a receipt could not be posted: %s", type(error).__name__)
            self.waiting -= 1
            self.refused += not taken


@dataclass(frozen=True, slots=True)
class World:
    """What the simulated providers share. `now` gives unix seconds; `gates` are by service."""

    configuration: Configuration
    http: httpx.AsyncClient
    outbox: Outbox
    receipts: Receipts
    now: Callable[[], float] = time.time
    gates: Mapping[str, Gate] = field(default_factory=dict)


class Carrier(ABC):
    """One simulated provider. `doors`: those it can come through, the usual one first."""

    name: ClassVar[str]
    doors: ClassVar[tuple[Door, ...]]

    def __init__(self, world: World) -> None:
        self.world = world
        self.secrets = world.configuration.secrets[self.name]
        self.service = Service(PROVIDER_FAILURES, world.gates.get(self.name))
        # What people sent besides words, by the last part of its address: its type, and it.
        self._pictures: dict[str, tuple[str, bytes]] = {}

    @property
    def behaviour(self) -> Behaviour:
        """How it treats sends now."""
        return self.service.behaviour

    @abstractmethod
    def routes(self) -> list[Route]:
        """The provider's own API, below /provider/{name}."""

    @abstractmethod
    def new_id(self, media: Media) -> str:
        """An id for a text that was given none."""

    @abstractmethod
    def keep(self, text_id: str, number: int, content_type: str, content: bytes) -> str:
        """Keeps an attachment of a text for whoever fetches it; returns its path below
        /provider/{name}. Numbers count from 0."""

    async def show(self, request: Request) -> Response:
        """An attachment, to anybody who has its address."""
        await asyncio.sleep(self.behaviour.delay)
        if self.behaviour.fail in ("throttled", "server_error"):
            return Response(status_code=429 if self.behaviour.fail == "throttled" else 500)
        content_type, content = self._pictures.get(request.path_params["picture"], ("", b""))
        if not content_type:
            return Response(status_code=404)
        return Response(content, headers={"Content-Type": content_type})

    @abstractmethod
    async def deliver(self, text: Text) -> Delivery:
        """Takes a text from a person and posts it to the webhook, with the provider's retries.

        Raises BadInput where it cannot.
        """

    def accept(
        self,
        *,
        id: str,  # noqa: A002
        sender: str,
        recipient: str,
        text: str,
        media: list[str],
        callback: str,
    ) -> None:
        self.world.outbox.add(
            provider=self.name,
            id=id,
            sender=sender,
            recipient=recipient,
            text=text,
            media=media,
            callback=callback,
            at=self.world.now(),
        )


async def post(
    http: httpx.AsyncClient, webhook: Webhook, timeout: httpx.Timeout
) -> httpx.Response | Unanswered:
    """One request to a webhook; redirects are not followed."""
    url, headers, body = webhook
    try:
        return await http.post(url, headers=headers, content=body, timeout=timeout)
    except (httpx.ConnectError, httpx.ConnectTimeout):
        return "not_connected"
    except httpx.HTTPError:
        return "not_read"


def status(outcome: httpx.Response | Unanswered) -> int | None:
    return None if isinstance(outcome, str) else outcome.status_code


def is_web_address(text: str) -> bool:
    """Whether a provider can post to this."""
    try:
        parts = urlsplit(text)
        httpx.URL(text)
    except (ValueError, httpx.InvalidURL):
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)
