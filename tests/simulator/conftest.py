"""The simulator in process, with a webhook that notes what it gets and answers as it is told."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from spillway.simulator import telnyx, twilio
from spillway.simulator.app import application
from spillway.simulator.carrier import Receipts, World
from spillway.simulator.configuration import Configuration
from spillway.simulator.outbox import Outbox

SEED = bytes(range(32))
PUBLIC_KEY = Ed25519PrivateKey.from_private_bytes(SEED).public_key()
ACCOUNT = "AC" + "0" * 32
OURS, THEIRS = "+14155550123", "+14155550100"
SETTINGS: dict[str, Any] = {
    "webhook": "http://127.0.0.1:8000",
    "credentials": {"twilio": "hook:pass:word"},
    "secrets": {
        "twilio": {"account_sid": ACCOUNT, "auth_tokens": ["newest", "older"]},
        "telnyx": {
            "api_key": "KEY",
            "public_keys": [base64.b64encode(PUBLIC_KEY.public_bytes_raw()).decode()],
            "private_key": base64.b64encode(SEED).decode(),
        },
    },
}


@dataclass
class Webhook:
    """Answers with what is next in `answers` (a status, or an exception to raise), then with 200;
    with `challenge` it asks for credentials first."""

    answers: list[int | Exception] = field(default_factory=list)
    challenge: str | None = None
    requests: list[httpx.Request] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self.challenge is not None and "authorization" not in request.headers:
            return httpx.Response(401, headers={"WWW-Authenticate": self.challenge})
        answer = self.answers.pop(0) if self.answers else 200
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer)


@dataclass
class Simulator:
    """`http` talks to the simulator; `now` is its clock."""

    http: httpx.AsyncClient
    webhook: Webhook
    now: float = 1_800_000_000.0

    async def to_twilio(self, **form: str | list[str]) -> httpx.Response:
        given = {"To": THEIRS, "From": OURS, "Body": "hi", **form}
        return await self.http.post(
            f"/provider/twilio/2010-04-01/Accounts/{ACCOUNT}/Messages.json",
            data={name: value for name, value in given.items() if value != ""},
            auth=(ACCOUNT, "newest"),
        )

    async def to_telnyx(self, key: str | None = None, **message: Any) -> httpx.Response:
        headers = {"Authorization": "Bearer KEY"}
        if key is not None:
            headers["Idempotency-Key"] = key
        given = {"to": THEIRS, "from": OURS, "text": "hi", **message}
        return await self.http.post("/provider/telnyx/v2/messages", json=given, headers=headers)

    async def text(self, provider: str, text: str = "hello", **more: Any) -> dict[str, Any]:
        """A text from a person; returns how it went."""
        given = {"provider": provider, "from": THEIRS, "to": OURS, "text": text, **more}
        response = await self.http.post("/provider/inbound", json=given)
        assert response.status_code == 200, response.text
        result: dict[str, Any] = response.json()
        return result

    async def behave(self, provider: str, **behaviour: Any) -> None:
        response = await self.http.put(f"/provider/behaviour/{provider}", json=behaviour)
        assert response.status_code == 200, response.text

    async def outbox(self) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = (await self.http.get("/provider/outbox")).json()
        return entries

    async def receipts(self) -> dict[str, int]:
        """Waits until no receipt is on its way, and returns the counts."""
        while True:
            counts: dict[str, int] = (await self.http.get("/health")).json()["receipts"]
            if not counts["waiting"]:
                return counts
            await asyncio.sleep(0.001)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def settings() -> dict[str, Any]:
    return SETTINGS


@pytest.fixture
async def simulator(
    anyio_backend: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Simulator]:
    monkeypatch.setattr(twilio, "_FIRST_PAUSE", 0.0)
    monkeypatch.setattr(telnyx, "_FIRST_PAUSE", 0.0)
    webhook = Webhook()
    world = World(
        Configuration(**settings),
        httpx.AsyncClient(transport=httpx.MockTransport(webhook)),
        Outbox(),
        Receipts(),
        now=lambda: one.now,
    )
    app = application(world)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://simulator") as http,
    ):
        one = Simulator(http, webhook)
        yield one
