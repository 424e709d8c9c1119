"""How a burst delivers its webhooks: duplicates, repeats, and the address that is signed."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import httpx
import pytest

from spillway.traffic import burst
from spillway.traffic.burst import Sent

CLIENT = httpx.AsyncClient
LOCAL: dict[str, Any] = {
    "webhook": "http://127.0.0.1:8000",
    "public_url": "https://tunnel.example.com/base",
    "credentials": {"twilio": "user:password"},
    "secrets": {"twilio": {"account_sid": "AC1", "auth_tokens": ["token"]}},
    "numbers": {"twilio": "+14155550123"},
}


def deliver(
    answers: list[int], monkeypatch: pytest.MonkeyPatch, *, duplicate: bool = False
) -> tuple[Sent, list[httpx.Request]]:
    """Sends one message to a door that answers so, one after the other, and then 200."""
    requests: list[httpx.Request] = []
    statuses = iter(answers)

    def door(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(next(statuses, 200))

    async def at_once(_: float) -> None:
        pass

    monkeypatch.setattr(
        httpx, "AsyncClient", lambda **_: CLIENT(transport=httpx.MockTransport(door))
    )
    monkeypatch.setattr(asyncio, "sleep", at_once)
    one = Sent("twilio", "SM1", "+16460000001", "burst 1", duplicate)
    traffic = burst.Traffic()
    asyncio.run(burst.send_all(LOCAL, [one], traffic))
    assert traffic.requests == len(requests)
    return one, requests


@pytest.mark.parametrize(
    ("answers", "acknowledged", "tries"),
    [
        ([200], True, 1),
        ([503, 503, 200], True, 3),
        ([503] * 9, False, burst.TRIES),
        ([403], False, 1),
    ],
)
def test_a_webhook_is_repeated_as_providers_do(
    answers: list[int], acknowledged: bool, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, requests = deliver(answers, monkeypatch)
    assert (one.acknowledged_at is not None, len(requests)) == (acknowledged, tries)


def test_a_duplicate_is_the_same_webhook_again(monkeypatch: pytest.MonkeyPatch) -> None:
    _, requests = deliver([], monkeypatch, duplicate=True)
    bodies = Counter(request.content for request in requests)
    assert list(bodies.values()) == [2]


def test_what_is_signed_is_the_public_address_and_it_is_delivered_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, [here] = deliver([], monkeypatch)
    assert str(here.url) == "http://127.0.0.1:8000/webhooks/twilio"
    signature = here.headers["X-Twilio-Signature"]
    monkeypatch.setitem(LOCAL, "public_url", LOCAL["webhook"])
    _, [elsewhere] = deliver([], monkeypatch)
    assert elsewhere.headers["X-Twilio-Signature"] != signature


def test_webhooks_are_spread_over_the_time_and_stop_when_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at: list[float] = []
    traffic = burst.Traffic()

    def door(_: httpx.Request) -> httpx.Response:
        at.append(time.monotonic())
        traffic.stopped = len(at) == 6
        return httpx.Response(200)

    monkeypatch.setattr(
        httpx, "AsyncClient", lambda **_: CLIENT(transport=httpx.MockTransport(door))
    )
    messages = [Sent("twilio", f"SM{n}", "+16460000001", f"burst {n}", False) for n in range(100)]
    began = time.monotonic()
    asyncio.run(burst.send_all(LOCAL, messages, traffic, spread=10.0))
    # THEN one comes every tenth of a second, and none after the word, which no client sleeps over
    assert len(at) == traffic.delivered == 6
    assert at[5] - began >= 0.5
    assert time.monotonic() - began < 2
