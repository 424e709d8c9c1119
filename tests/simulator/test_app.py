"""The handles, the sample services and the configuration of the simulator."""

from __future__ import annotations

import ast
import asyncio
import copy
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import spillway.simulator
from spillway.simulator.configuration import BadConfiguration, Configuration, parse
from tests.simulator.conftest import OURS, SETTINGS, THEIRS, Simulator

_FOLDER = Path(spillway.simulator.__file__).parent


def _imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not followed here"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_nothing_of_spillways_providers_is_imported() -> None:
    """The simulator speaks by itself, as do all modules of ours that it reaches."""
    root = _FOLDER.parents[1]
    waiting, seen = list(_FOLDER.rglob("*.py")), set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in _imported(path):
            assert name.split(".")[0] != "chalicelib", f"{path.name} imports {name}"
            one = root / name.replace(".", "/")
            waiting += [p for p in (one.with_suffix(".py"), one / "__init__.py") if p.exists()]
    assert {path.name for path in seen} >= {"twilio.py", "telnyx.py", "app.py", "parent.py"}


def test_nothing_of_spillways_providers_is_loaded() -> None:
    code = (
        "import sys, spillway.simulator.__main__\n"
        "print([name for name in sys.modules if name.startswith('chalice')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# --- handles -----------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_the_page_names_every_path(simulator: Simulator) -> None:
    page = (await simulator.http.get("/")).text
    for path in ("/provider/outbox", "/provider/inbound", "/provider/behaviour", "/sample/reply"):
        assert path in page
    assert "twilio, telnyx" in page


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"provider": "nobody"}, "provider"),
        ({"provider": None}, "provider"),
        ({"from": None}, "from"),
        ({"to": 5}, "to"),
        ({"text": None}, "text"),
        ({"media": [{"url": "https://a.example/1"}]}, "media"),
        ({"media": "https://a.example/1"}, "media"),
        ({"media": [{"content": "a", "url": "b", "content_type": "c"}]}, "media"),
        ({"media": [{"content": "a"}]}, "media"),
        ({"media": [{"content": "a", "content_type": "image/png"}]}, "content"),
        ({"id": 5}, "id"),
        ({"door": "back"}, "door"),
        ({"texts": []}, "texts"),
    ],
)
async def test_a_text_that_cannot_be_taken(
    simulator: Simulator, wrong: dict[str, Any], named: str
) -> None:
    given = {"provider": "twilio", "from": THEIRS, "to": OURS, "text": "secret", **wrong}
    response = await simulator.http.post("/provider/inbound", json=given)
    assert response.status_code == 400
    error = response.json()["error"]
    assert named in error
    assert THEIRS not in error
    assert "secret" not in error
    assert simulator.webhook.requests == []


@pytest.mark.anyio
async def test_behaviour_is_each_providers_own(simulator: Simulator) -> None:
    start = {"delay": 0.0, "fail": None, "receipts": True, "retry_after": None}
    url = "/provider/behaviour/telnyx"
    assert (await simulator.http.get(url)).json() == start
    changed = {"delay": 0.05, "fail": "lost_answer", "receipts": False, "retry_after": 7}
    assert (await simulator.http.put(url, json=changed)).json() == changed
    assert (await simulator.http.get(url)).json() == changed
    assert (await simulator.http.get("/provider/behaviour/twilio")).json() == start
    # What is not named is as at the start.
    assert (await simulator.http.put(url, json={})).json() == start


@pytest.mark.anyio
@pytest.mark.parametrize("provider", ["twilio", "telnyx"])
async def test_an_answer_can_be_delayed(simulator: Simulator, provider: str) -> None:
    await simulator.behave(provider, delay=0.2)
    began = time.monotonic()
    await (simulator.to_twilio() if provider == "twilio" else simulator.to_telnyx())
    assert time.monotonic() - began >= 0.2


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("url", "body"),
    [
        ("/provider/behaviour/nobody", "{}"),
        ("/provider/behaviour/twilio", "[]"),
        ("/provider/behaviour/twilio", "{"),
        ("/provider/behaviour/twilio", '{"fail": "sometimes"}'),
        ("/provider/behaviour/twilio", '{"fail": []}'),
        ("/provider/behaviour/twilio", '{"receipts": 1}'),
        ("/provider/behaviour/twilio", '{"delay": -1}'),
        ("/provider/behaviour/twilio", '{"delay": "1"}'),
        ("/provider/behaviour/twilio", '{"delay": true}'),
        ("/provider/behaviour/twilio", '{"delay": NaN}'),
        ("/provider/behaviour/twilio", '{"delays": 1}'),
        ("/provider/behaviour/twilio", '{"retry_after": 1.5}'),
        ("/provider/behaviour/twilio", '{"retry_after": -1}'),
        ("/provider/behaviour/twilio", '{"for": -1}'),
        # There is no port of its own here that could be closed.
        ("/provider/behaviour/twilio", '{"fail": "down"}'),
        ("/sample/behaviour/nobody", "{}"),
        ("/sample/behaviour/line", '{"fail": "lost_answer"}'),
        ("/sample/delay", '{"reply": Infinity}'),
        ("/sample/delay", '{"lookup": 1}'),
    ],
)
async def test_what_cannot_be_set(simulator: Simulator, url: str, body: str) -> None:
    response = await simulator.http.put(url, content=body)
    assert response.status_code == 400
    assert response.json()["error"]


@pytest.mark.anyio
async def test_the_outbox_keeps_the_order(simulator: Simulator) -> None:
    assert await simulator.outbox() == []
    for number in range(4):
        await (simulator.to_twilio if number % 2 else simulator.to_telnyx)()
    entries = await simulator.outbox()
    assert [entry["provider"] for entry in entries] == ["telnyx", "twilio"] * 2


# --- sample services ---------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ({"text": "hello"}, {"text": "hello"}),
        ({"text": "hello", "media": [{}]}, {"text": "hello"}),
        ({"text": "", "media": [{}, {}]}, {"text": "(2 media)"}),
        ({"text": "", "media": []}, {}),
    ],
)
async def test_the_sample_reply_repeats_the_text(
    simulator: Simulator, question: dict[str, Any], answer: dict[str, Any]
) -> None:
    assert (await simulator.http.post("/sample/reply", json=question)).json() == answer


@pytest.mark.anyio
async def test_look_ups_follow_from_the_number(simulator: Simulator) -> None:
    customers: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    for number in range(60):
        question = {"from": f"+141555501{number:02}"}
        for service, answers in (("customer", customers), ("line", lines)):
            url = f"/sample/lookups/{service}"
            one = (await simulator.http.post(url, json=question)).json()
            assert (await simulator.http.post(url, json=question)).json() == one
            answers.append(one)
    assert {one["known"] for one in customers} == {True, False}
    assert all((one["name"] is not None) is one["known"] for one in customers)
    assert {one["line_type"] for one in lines} == {"mobile", "landline", "voip"}
    assert {one["country"] for one in lines} == {"US"}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("url", "question"),
    [
        ("/sample/reply", {"text": None}),
        ("/sample/lookups/customer", {}),
        ("/sample/lookups/line", {"from": 5}),
    ],
)
async def test_a_question_without_what_it_needs(
    simulator: Simulator, url: str, question: dict[str, Any]
) -> None:
    assert (await simulator.http.post(url, json=question)).status_code == 400


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("service", "url"),
    [
        ("reply", "/sample/reply"),
        ("customer", "/sample/lookups/customer"),
        ("line", "/sample/lookups/line"),
    ],
)
async def test_delays_are_set_while_it_runs(simulator: Simulator, service: str, url: str) -> None:
    zero = {"reply": 0.0, "customer": 0.0, "line": 0.0}
    assert (await simulator.http.get("/sample/delay")).json() == zero
    answer = await simulator.http.put("/sample/delay", json={service: 0.2})
    assert answer.json() == {**zero, service: 0.2}
    began = time.monotonic()
    await simulator.http.post(url, json={"from": THEIRS, "text": "hello"})
    assert time.monotonic() - began >= 0.2


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("behaviour", "status", "retry_after"),
    [
        ({"fail": "server_error"}, 500, None),
        ({"fail": "throttled"}, 429, None),
        ({"fail": "throttled", "retry_after": 3}, 429, "3"),
    ],
)
@pytest.mark.parametrize(
    ("service", "url"),
    [("reply", "/sample/reply"), ("line", "/sample/lookups/line")],
)
async def test_a_sample_fails(
    simulator: Simulator,
    service: str,
    url: str,
    behaviour: dict[str, Any],
    status: int,
    retry_after: str | None,
) -> None:
    await simulator.http.put(f"/sample/behaviour/{service}", json=behaviour)
    answer = await simulator.http.post(url, json={"from": THEIRS, "text": "hello"})
    assert (answer.status_code, answer.headers.get("Retry-After")) == (status, retry_after)
    other = "/sample/lookups/customer"
    assert (await simulator.http.post(other, json={"from": THEIRS})).status_code == 200


@pytest.mark.anyio
async def test_what_is_set_for_a_while_ends_by_itself(simulator: Simulator) -> None:
    url = "/sample/behaviour/line"
    # GIVEN a standing behaviour, and another for a while
    await simulator.http.put(url, json={"delay": 0.01})
    passing = await simulator.http.put(url, json={"fail": "throttled", "for": 0.2})
    assert (passing.json()["fail"], passing.json()["delay"]) == ("throttled", 0.0)
    # THEN it is as before after that
    deadline = time.monotonic() + 5
    while (now := (await simulator.http.get(url)).json())["fail"]:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    assert now["delay"] == 0.01
    # AND at once, where that is wanted
    await simulator.http.put(url, json={"fail": "throttled", "for": 60})
    assert (await simulator.http.put(url, json={"for": 0})).json()["delay"] == 0.01
    # AND what is set until further notice ends what was for a while
    await simulator.http.put(url, json={"fail": "throttled", "for": 60})
    assert (await simulator.http.put(url, json={})).json()["fail"] is None


# --- configuration -----------------------------------------------------------------------------


def test_a_configuration() -> None:
    assert parse(json.dumps(SETTINGS)) == Configuration(**SETTINGS)


def test_one_provider_is_enough() -> None:
    only_telnyx = {**SETTINGS, "secrets": {"telnyx": SETTINGS["secrets"]["telnyx"]}}
    del only_telnyx["credentials"]
    assert list(parse(json.dumps(only_telnyx)).secrets) == ["telnyx"]


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (["webhook"], None, "webhook"),
        (["webhook"], "127.0.0.1:8000", "webhook"),
        (["credentials"], [], "credentials"),
        (["credentials"], {}, "credentials.twilio"),
        (["credentials", "twilio"], "topsecret", "credentials.twilio"),
        (["gates"], {"twilio": "topsecret"}, "gates"),
        (["secrets"], {}, "secrets"),
        (["secrets"], None, "secrets"),
        (["secrets", "vonage"], {}, "twilio and telnyx"),
        (["secrets", "twilio", "account_sid"], "", "secrets.twilio.account_sid"),
        (["secrets", "twilio", "auth_tokens"], [], "secrets.twilio.auth_tokens"),
        (["secrets", "twilio", "auth_tokens"], "topsecret", "secrets.twilio.auth_tokens"),
        (["secrets", "telnyx", "api_key"], None, "secrets.telnyx.api_key"),
        (["secrets", "telnyx", "private_key"], "topsecret", "secrets.telnyx.private_key"),
        (["secrets", "telnyx", "private_key"], None, "secrets.telnyx.private_key"),
        (["secrets", "telnyx", "public_keys"], ["topsecret"], "secrets.telnyx.public_keys"),
    ],
)
def test_a_bad_configuration_is_named(path: list[str], value: Any, named: str) -> None:
    settings = copy.deepcopy(SETTINGS)
    inner: Any = settings
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    with pytest.raises(BadConfiguration, match=named) as caught:
        parse(json.dumps(settings))
    assert "topsecret" not in str(caught.value)


@pytest.mark.parametrize("text", [None, "", "{", "[]", "5"])
def test_a_configuration_that_is_none(text: str | None) -> None:
    with pytest.raises(BadConfiguration):
        parse(text)
