"""The simulated Telnyx signs as the vectors do, and answers as its API does."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from spillway.simulator import telnyx
from tests.simulator.conftest import OURS, PUBLIC_KEY, SETTINGS, THEIRS, Simulator

pytestmark = pytest.mark.anyio

_VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "telnyx.json").read_text())
# Ed25519 is deterministic, and the vectors say from which seed their key is.
_SEED = base64.b64encode(hashlib.sha256(b"telnyx-test-vectors").digest()).decode()
_REAL_ACCOUNT = {
    **SETTINGS,
    "secrets": {"telnyx": {"api_key": "KEY", "public_keys": [_VECTORS[0]["public_key"]]}},
}
_CALLBACK = "http://127.0.0.1:8000/webhooks/telnyx/signed?reference=abc-def-1"


def _check_signature(request: httpx.Request) -> None:
    signature = base64.b64decode(request.headers["telnyx-signature-ed25519"])
    signed = request.headers["telnyx-timestamp"].encode() + b"|" + request.content
    PUBLIC_KEY.verify(signature, signed)  # raises


@pytest.mark.parametrize(
    "vector", [pytest.param(one, id=one["name"]) for one in _VECTORS if one["valid"]]
)
def test_signature_is_that_of_the_vectors(vector: dict[str, Any]) -> None:
    headers = httpx.Headers(vector["headers"])
    made = telnyx.signature(_SEED, headers["telnyx-timestamp"], vector["body"].encode())
    assert made == headers["telnyx-signature-ed25519"]


def test_a_text_has_the_vectors_shape() -> None:
    (vector,) = [one for one in _VECTORS if one["name"] == "inbound-stop"]
    _, _, body = telnyx.inbound(
        webhook="http://127.0.0.1:8000",
        secrets=SETTINGS["secrets"]["telnyx"],
        sender=THEIRS,
        recipient=OURS,
        text="STOP",
        id="84cca175-9755-4859-b67f-4730d7f58aa3",
        now=1_800_000_000.0,
    )
    assert _shape(json.loads(body)) == _shape(json.loads(vector["body"]))


def _shape(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _shape(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_shape(one) for one in value]
    return type(value).__name__


async def test_a_text(simulator: Simulator) -> None:
    media = [{"url": "https://a.example/1", "content_type": "image/png"}]
    result = await simulator.text("telnyx", "Olá 👋", media=media)
    (request,) = simulator.webhook.requests
    assert str(request.url) == "http://127.0.0.1:8000/webhooks/telnyx/signed"
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["telnyx-timestamp"] == "1800000000"
    _check_signature(request)
    assert "Olá 👋".encode() in request.content
    event = json.loads(request.content)
    payload = event["data"]["payload"]
    assert event["data"]["event_type"] == "message.received"
    assert event["meta"] == {"attempt": 1, "delivered_to": str(request.url)}
    assert payload["id"] == result["id"]
    assert payload["from"]["phone_number"] == THEIRS
    assert payload["to"][0]["phone_number"] == OURS
    assert payload["type"] == "MMS"
    assert payload["media"][0].items() >= media[0].items()
    assert "autoresponse_type" not in payload
    assert result.items() >= {"door": "signed", "status": 200, "attempts": 1}.items()


async def test_a_lone_surrogate_travels_as_an_escape(simulator: Simulator) -> None:
    content = json.dumps({"provider": "telnyx", "from": THEIRS, "to": OURS, "text": "é\ud800"})
    assert (await simulator.http.post("/provider/inbound", content=content)).json()["status"] == 200
    (request,) = simulator.webhook.requests
    _check_signature(request)
    assert "é\\ud800".encode() in request.content
    assert json.loads(request.content)["data"]["payload"]["text"] == "é\ud800"


async def test_a_repeat_is_the_same_event(simulator: Simulator) -> None:
    for _ in range(2):
        await simulator.text("telnyx", id="one")
    first, second = (json.loads(r.content)["data"] for r in simulator.webhook.requests)
    assert first["id"] == second["id"]
    assert first["payload"]["id"] == second["payload"]["id"] == "one"


@pytest.mark.parametrize(
    ("answers", "status", "attempts"),
    [
        ([302], 200, 2),
        ([503, 403], 200, 3),
        ([httpx.ConnectError("no"), httpx.ReadTimeout("no")], 200, 3),
        ([500, 500, 500], 500, 3),
        ([500, 500, httpx.ReadTimeout("no")], None, 3),
    ],
)
async def test_three_attempts_each_signed_by_itself(
    simulator: Simulator, answers: list[int | Exception], status: int | None, attempts: int
) -> None:
    simulator.webhook.answers = answers
    result = await simulator.text("telnyx")
    assert (result["status"], result["attempts"]) == (status, attempts)
    events = [json.loads(request.content) for request in simulator.webhook.requests]
    assert [event["meta"]["attempt"] for event in events] == list(range(1, attempts + 1))
    assert len({event["data"]["id"] for event in events}) == 1
    for request in simulator.webhook.requests:
        _check_signature(request)


async def test_no_basic_door(simulator: Simulator) -> None:
    given = {"provider": "telnyx", "from": THEIRS, "to": OURS, "text": "hi", "door": "basic"}
    response = await simulator.http.post("/provider/inbound", json=given)
    assert response.status_code == 400
    assert "signed" in response.json()["error"]
    assert simulator.webhook.requests == []


async def test_an_accepted_send(simulator: Simulator) -> None:
    response = await simulator.to_telnyx(text="👋" * 36, webhook_url=_CALLBACK)
    assert response.status_code == 200
    data = response.json()["data"]
    assert data.items() >= {"parts": 2, "type": "SMS", "direction": "outbound"}.items()
    assert data["to"][0].items() >= {"phone_number": THEIRS, "status": "queued"}.items()
    (entry,) = await simulator.outbox()
    assert (
        entry.items()
        >= {
            "provider": "telnyx",
            "id": data["id"],
            "reference": "abc-def-1",
            "to": THEIRS,
            "from": OURS,
            "text": "👋" * 36,
        }.items()
    )
    assert await simulator.receipts() == {"waiting": 0, "refused": 0}
    events = [json.loads(request.content)["data"] for request in simulator.webhook.requests]
    assert [event["event_type"] for event in events] == ["message.sent", "message.finalized"]
    assert [event["payload"]["to"][0]["status"] for event in events] == ["sent", "delivered"]
    assert {event["payload"]["id"] for event in events} == {data["id"]}
    assert len({event["id"] for event in events}) == 2
    for request in simulator.webhook.requests:
        assert str(request.url) == _CALLBACK
        _check_signature(request)


async def test_a_receipt_is_tried_three_times(simulator: Simulator) -> None:
    simulator.webhook.answers = [503, 503, 503]
    await simulator.to_telnyx(webhook_url=_CALLBACK)
    assert (await simulator.receipts())["refused"] == 1
    words = [
        json.loads(request.content)["data"]["payload"]["to"][0]["status"]
        for request in simulator.webhook.requests
    ]
    assert words == ["sent", "sent", "sent", "delivered"]


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"to": None}, "40310"),
        ({"to": "4155550100"}, "40310"),
        ({"to": [THEIRS]}, "40310"),
        ({"from": None}, "40305"),
        ({"from": "an address of a person"}, "40305"),
        ({"text": ""}, "40316"),
        ({"text": None}, "40316"),
        ({"text": 5}, "10015"),
        ({"text": "a" * 1531}, "40302"),
        ({"text": "👋" * 331}, "40302"),
        ({"media_urls": "https://a.example/1"}, "10015"),
        ({"media_urls": ["file:///etc/passwd"]}, "10003"),
        ({"webhook_url": "not an address"}, "10003"),
    ],
)
async def test_a_refused_send(simulator: Simulator, message: dict[str, Any], code: str) -> None:
    response = await simulator.to_telnyx(**message)
    assert response.status_code == 400
    (error,) = response.json()["errors"]
    assert error["code"] == code
    assert error["title"]
    assert await simulator.outbox() == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff"])
async def test_a_send_that_is_no_json_object(simulator: Simulator, body: bytes) -> None:
    response = await simulator.http.post(
        "/provider/telnyx/v2/messages", content=body, headers={"Authorization": "Bearer KEY"}
    )
    assert (response.status_code, response.json()["errors"][0]["code"]) == (400, "10015")


@pytest.mark.parametrize(
    "message",
    [
        {"text": "a" * 1530},
        {"text": "👋" * 330},
        {"text": "", "media_urls": ["https://a.example/1"]},
        {"from": "Spillway"},
        {"from": "72345"},
    ],
)
async def test_what_just_passes(simulator: Simulator, message: dict[str, Any]) -> None:
    assert (await simulator.to_telnyx(**message)).status_code == 200
    assert len(await simulator.outbox()) == 1


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", "Basic KEY", "KEY"])
async def test_credentials_of_the_api(simulator: Simulator, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    response = await simulator.http.post("/provider/telnyx/v2/messages", json={}, headers=headers)
    assert (response.status_code, response.json()["errors"][0]["code"]) == (401, "10009")


@pytest.mark.parametrize(
    ("words", "blocked"),
    [
        (["STOP"], True),
        (["stop all"], True),
        (["revoke"], False),
        (["stop please"], False),
        (["STOP", "unstop"], False),
        (["START", "end"], True),
    ],
)
async def test_opting_out(simulator: Simulator, words: list[str], blocked: bool) -> None:
    for word in words:
        await simulator.text("telnyx", word)
    # The block holds for all numbers of the profile.
    for ours in (OURS, "+14155550124"):
        response = await simulator.to_telnyx(**{"from": ours})
        assert ("errors" in response.json()) is blocked
        if blocked:
            assert response.json()["errors"][0]["code"] == "40300"
    assert (await simulator.to_telnyx(to="+14155550101")).status_code == 200


@pytest.mark.parametrize(
    ("fail", "status", "code"),
    [("throttled", 429, "10011"), ("server_error", 500, "10007"), ("rejected", 400, "40322")],
)
async def test_told_to_fail(simulator: Simulator, fail: str, status: int, code: str) -> None:
    await simulator.behave("telnyx", fail=fail)
    response = await simulator.to_telnyx("key")
    assert (response.status_code, response.json()["errors"][0]["code"]) == (status, code)
    assert ("x-ratelimit-reset" in response.headers) is (status == 429)
    assert await simulator.outbox() == []
    # A failure is not replayed.
    await simulator.behave("telnyx")
    assert (await simulator.to_telnyx("key")).status_code == 200


async def test_a_key_sends_once(simulator: Simulator) -> None:
    answers = await asyncio.gather(*(simulator.to_telnyx("key") for _ in range(5)))
    assert {one.status_code for one in answers} == {200}
    assert len({one.content for one in answers}) == 1
    assert len(await simulator.outbox()) == 1
    # Another key, or none, sends again.
    await simulator.to_telnyx("other")
    await simulator.to_telnyx()
    await simulator.to_telnyx()
    assert len(await simulator.outbox()) == 4


async def test_a_key_with_another_body(simulator: Simulator) -> None:
    await simulator.to_telnyx("key")
    response = await simulator.to_telnyx("key", text="something else")
    assert response.status_code == 422
    assert len(await simulator.outbox()) == 1


async def test_a_key_is_kept_for_a_day(simulator: Simulator) -> None:
    began = simulator.now
    for later, sent in ((0.0, 1), (86_399.0, 1), (86_400.0, 2), (86_401.0, 2)):
        simulator.now = began + later
        await simulator.to_telnyx("key")
        assert len(await simulator.outbox()) == sent


@pytest.mark.parametrize("key", ["", "a b", "a" * 256])
async def test_a_key_that_is_none(simulator: Simulator, key: str) -> None:
    assert (await simulator.to_telnyx(key)).status_code == 400
    assert await simulator.outbox() == []


async def test_an_opt_out_does_not_take_back_what_was_accepted(simulator: Simulator) -> None:
    await simulator.to_telnyx("key")
    await simulator.text("telnyx", "STOP")
    assert (await simulator.to_telnyx("key")).status_code == 200
    assert len(await simulator.outbox()) == 1


@pytest.mark.parametrize("settings", [_REAL_ACCOUNT])
async def test_with_a_real_accounts_keys_it_takes_sends_and_calls_nobody(
    simulator: Simulator,
) -> None:
    assert (await simulator.to_telnyx(webhook_url=_CALLBACK)).status_code == 200
    given = {"provider": "telnyx", "from": THEIRS, "to": OURS, "text": "hi"}
    response = await simulator.http.post("/provider/inbound", json=given)
    assert response.status_code == 400
    assert "private key" in response.json()["error"]
    await simulator.receipts()
    assert simulator.webhook.requests == []
    assert len(await simulator.outbox()) == 1


async def test_throttling_says_when_to_come_again(simulator: Simulator) -> None:
    await simulator.behave("telnyx", fail="throttled", retry_after=5)
    answer = await simulator.to_telnyx()
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "5")
    await simulator.behave("telnyx", fail="throttled")
    assert "Retry-After" not in (await simulator.to_telnyx()).headers
    assert await simulator.outbox() == []


async def test_a_picture_is_shown_to_everybody_who_has_its_address(simulator: Simulator) -> None:
    media = [{"content": base64.b64encode(b"a picture").decode(), "content_type": "image/png"}]
    await simulator.text("telnyx", "look", media=media)
    payload = json.loads(simulator.webhook.requests[0].content)["data"]["payload"]
    (one,) = payload["media"]
    assert one["content_type"] == "image/png"
    assert one["url"].startswith("http://simulator/provider/telnyx/media/")
    shown = await simulator.http.get(one["url"])
    assert (shown.content, shown.headers["Content-Type"]) == (b"a picture", "image/png")
    await simulator.behave("telnyx", fail="throttled")
    assert (await simulator.http.get(one["url"])).status_code == 429
