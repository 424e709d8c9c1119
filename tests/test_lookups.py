"""Look-ups: who is asked what, side by side, and what becomes of a source that fails."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import date
from typing import Any, Literal

import httpx
import pytest
from pydantic import BaseModel

from chalicelib.batches import Defer
from chalicelib.config import SettingError
from chalicelib.lookups import LookUp, LookUps
from chalicelib.messages import InboundMessage
from chalicelib.runtime import Runtime, at_most
from chalicelib.yours.lookups import LOOKUPS
from tests.fakes import NOW, OURS, THEIRS, FakeRuntime, logged

ID = "0" * 24 + "-" + "1" * 24
MESSAGE = InboundMessage("telnyx", "an account", "an id", THEIRS, OURS, "as it came: heron", NOW)
TEXT = "as it was normalised: heron"


class Line(BaseModel):
    line_type: Literal["mobile", "landline"]
    since: date | None = None


def source(name: str = "line", *, required: bool = False, timeout: float = 3.0) -> LookUp:
    return LookUp(name, Line, timeout=timeout, required=required)


def url(name: str) -> str:
    return f"https://lookups.example.com/{name}"


Answer = Callable[[httpx.Request], httpx.Response]


def ask(answer: Answer, *sources: LookUp) -> tuple[dict[str, Any], FakeRuntime]:
    """What these sources say, each with an address of its own."""
    runtime = FakeRuntime(answer)
    lookups = LookUps(runtime, sources, {one.name: url(one.name) for one in sources})
    return lookups.ask(ID, MESSAGE, TEXT), runtime


def test_a_source_is_asked_about_the_message_in_json() -> None:
    answers, runtime = ask(lambda _: httpx.Response(200, json={"line_type": "mobile"}), source())
    assert answers == {"line": {"line_type": "mobile", "since": None}}
    (request,) = runtime.requests
    assert (request.method, str(request.url)) == ("POST", url("line"))
    assert request.headers["content-type"] == "application/json"
    assert json.loads(request.content) == {
        "id": ID,
        "provider": "telnyx",
        "from": THEIRS,
        "to": OURS,
        "text": TEXT,
        "received_at": NOW,
    }


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ('{"line_type": "mobile"}', {"line_type": "mobile", "since": None}),
        # What the model does not name is not kept; what it names is plain data.
        ('{"line_type": "mobile", "owner": "heron"}', {"line_type": "mobile", "since": None}),
        (
            '{"line_type": "landline", "since": "2020-02-29"}',
            {"line_type": "landline", "since": "2020-02-29"},
        ),
    ],
)
def test_an_answer_is_what_the_model_makes_of_it(body: str, answer: dict[str, Any]) -> None:
    answers, _ = ask(lambda _: httpx.Response(200, text=body), source(required=True))
    assert answers == {"line": answer}


@pytest.mark.parametrize("status", [204, 404])
@pytest.mark.parametrize("required", [True, False])
def test_a_source_may_know_nothing(status: int, required: bool) -> None:
    answers, _ = ask(lambda _: httpx.Response(status, text="heron"), source(required=required))
    assert answers == {"line": None}


def raising(error: type[httpx.HTTPError]) -> Answer:
    def answer(request: httpx.Request) -> httpx.Response:
        raise error(f"heron {THEIRS}")

    return answer


def saying(status: int, text: str = "", **headers: str) -> Answer:
    return lambda _: httpx.Response(status, text=text, headers=headers)


# What a source does, how the failure is called, and in how many seconds it wants us back.
FAILURES: list[tuple[Answer, str, float | None]] = [
    (raising(httpx.ConnectError), "ConnectError", None),
    (raising(httpx.ConnectTimeout), "ConnectTimeout", None),
    (raising(httpx.ReadTimeout), "ReadTimeout", None),
    (raising(httpx.WriteError), "WriteError", None),
    (raising(httpx.PoolTimeout), "PoolTimeout", None),
    (raising(httpx.RemoteProtocolError), "RemoteProtocolError", None),
    (saying(500), "500", None),
    (saying(502, "<html>heron</html>"), "502", None),
    (saying(503, **{"Retry-After": "90"}), "503", 90.0),
    (saying(429, **{"Retry-After": "7"}), "429", 7.0),
    (saying(429), "429", None),
    (saying(429, **{"Retry-After": "Sun, 01 Mar 2026 00:00:00 GMT"}), "429", None),
    (saying(400), "400", None),
    (saying(401), "401", None),
    (saying(301, Location="https://heron.example.com"), "301", None),
    (saying(201, '{"line_type": "mobile"}'), "201", None),
    (saying(200), "invalid_answer", None),
    (saying(200, "heron"), "invalid_answer", None),
    (saying(200, "null"), "invalid_answer", None),
    (saying(200, "[]"), "invalid_answer", None),
    (saying(200, "{}"), "invalid_answer", None),
    (saying(200, '{"line_type": "heron"}'), "invalid_answer", None),
    (saying(200, '{"line_type": "mobile", "since": "heron"}'), "invalid_answer", None),
    (saying(200, '{"line_type": "\\ud800"}'), "invalid_answer", None),
    (saying(200, "[" * 100_000), "invalid_answer", None),
]


@pytest.mark.parametrize(("answer", "why", "_after"), FAILURES)
def test_a_message_does_without_a_source_that_is_optional(
    answer: Answer, why: str, _after: float | None, capsys: pytest.CaptureFixture[str]
) -> None:
    answers, _ = ask(answer, source())
    assert answers == {"line": {"error": why}}
    metric, line = logged(capsys)
    assert (metric["LookUpFailures"], metric["reason"]) == (1, "line")
    assert (line["event"], line["id"], line["code"]) == ("lookup_failed", ID, why)


@pytest.mark.parametrize(("answer", "why", "after"), FAILURES)
def test_a_message_waits_for_a_source_that_is_required(
    answer: Answer, why: str, after: float | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Defer) as caught:
        ask(answer, source(required=True))
    assert (caught.value.reason, caught.value.after) == ("lookup: line", after)
    assert logged(capsys)[1]["code"] == why


def test_every_source_is_asked_whatever_another_says() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        known = {"line_type": "mobile"}
        return {
            "/a": httpx.Response(500),
            "/b": httpx.Response(200, json=known),
            "/c": httpx.Response(404),
            "/d": httpx.Response(200, text="heron"),
        }[request.url.path]

    answers, runtime = ask(answer, *(source(name) for name in "abcd"))
    assert list(answers.items()) == [
        ("a", {"error": "500"}),
        ("b", {"line_type": "mobile", "since": None}),
        ("c", None),
        ("d", {"error": "invalid_answer"}),
    ]
    assert len(runtime.requests) == 4


def test_each_source_has_its_own_time_out() -> None:
    _, runtime = ask(saying(404), source("a", timeout=0.5), source("b", timeout=8))
    times = {request.url.path: request.extensions["timeout"] for request in runtime.requests}
    assert times == {
        "/a": dict.fromkeys(("connect", "read", "write", "pool"), 0.5),
        "/b": {"connect": 3.0, "read": 8, "write": 8, "pool": 3.0},
    }


@pytest.mark.parametrize(
    ("configured", "asked", "longest"),
    [
        ([], [], 0.0),
        (["a"], ["/a"], at_most(2.0)),
        (["b"], ["/b"], at_most(8.0)),
        (["b", "a"], ["/a", "/b"], at_most(8.0)),
    ],
)
def test_only_a_source_with_an_address_is_asked(
    configured: list[str], asked: list[str], longest: float
) -> None:
    sources = [source("a", timeout=2.0, required=True), source("b", timeout=8.0)]
    runtime = FakeRuntime(saying(204))
    lookups = LookUps(runtime, sources, {name: url(name) for name in configured})
    assert lookups.longest == longest
    answers = lookups.ask(ID, MESSAGE, TEXT)
    assert [f"/{name}" for name in answers] == asked
    assert [request.url.path for request in runtime.requests] == asked


def on_threads(answer: Answer) -> Runtime:
    """The real runtime, on a network of the test's."""
    runtime = Runtime()
    runtime.__dict__["http"] = httpx.Client(transport=httpx.MockTransport(answer))
    return runtime


def test_sources_are_asked_side_by_side() -> None:
    # GIVEN two sources of which neither answers before the other was asked
    both_asked = threading.Barrier(2, timeout=10)

    def answer(request: httpx.Request) -> httpx.Response:
        both_asked.wait()
        return httpx.Response(204)

    sources = [source("a", required=True), source("b", required=True)]
    lookups = LookUps(on_threads(answer), sources, {"a": url("a"), "b": url("b")})
    # THEN both answer
    assert lookups.ask(ID, MESSAGE, TEXT) == {"a": None, "b": None}


def test_answers_are_in_the_order_of_the_sources_whoever_is_first() -> None:
    # GIVEN a first source that waits until the second has answered
    second_done = threading.Event()

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/a":
            assert second_done.wait(10)
            return httpx.Response(200, json={"line_type": "mobile"})
        second_done.set()
        return httpx.Response(200, json={"line_type": "landline"})

    lookups = LookUps(
        on_threads(answer), [source("a"), source("b")], {"a": url("a"), "b": url("b")}
    )
    answers = lookups.ask(ID, MESSAGE, TEXT)
    assert [(name, one["line_type"]) for name, one in answers.items()] == [
        ("a", "mobile"),
        ("b", "landline"),
    ]


def test_a_source_is_asked_about_any_text() -> None:
    runtime = FakeRuntime(lambda _: httpx.Response(204))
    lookups = LookUps(runtime, [source()], {"line": url("line")})
    assert lookups.ask(ID, MESSAGE, "heron \ud800") == {"line": None}
    assert json.loads(runtime.requests[0].content)["text"] == "heron \ud800"


def test_the_look_ups_of_the_template() -> None:
    # They are what the sample services of the local run answer.
    customer, line = LOOKUPS
    assert (customer.name, customer.required) == ("customer", False)
    assert (line.name, line.required) == ("line", True)
    customer.answer.model_validate({"known": False, "name": None})
    line.answer.model_validate({"line_type": "voip", "country": "US"})


def test_an_address_for_no_source_is_a_mistake() -> None:
    with pytest.raises(SettingError, match=r"^LOOKUP_URLS: names 1 .* use the names") as raised:
        LookUps(FakeRuntime(), [source("customer")], {"costumer": url("costumer")})
    assert "costumer" not in str(raised.value)


@pytest.mark.parametrize("timeout", [0.0, -1.0, 30.5])
def test_a_time_out_leaves_the_function_time_for_the_rest(timeout: float) -> None:
    with pytest.raises(SettingError, match="time-out of customer"):
        source("customer", timeout=timeout)
