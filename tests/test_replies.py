"""What is answered: by the reply API or by own code, and in which parts it is sent."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest

from chalicelib.batches import Defer
from chalicelib.messages import InboundMessage, Media
from chalicelib.providers import provider_named
from chalicelib.replies import Answer, Refused, Replies, words
from chalicelib.text import LONGEST, TooLong
from chalicelib.yours.replies import reply
from tests.fakes import NOW, OURS, THEIRS, FakeRuntime, logged

URL = "https://replies.example.com/v1/sms"
ID = "0" * 24 + "-" + "1" * 24
MEDIA = "https://media.example.com/heron.jpg"
MESSAGE = InboundMessage(
    "telnyx", "an account", "an id", THEIRS, OURS, "hello heron", NOW, media=(Media(MEDIA, ""),)
)


def never(message: InboundMessage) -> str:
    raise AssertionError("the adopter's own code was asked")


def ask(answer: Callable[[httpx.Request], httpx.Response]) -> tuple[Answer, FakeRuntime]:
    runtime = FakeRuntime(answer)
    replies = Replies(runtime, url=URL, timeout=7.0, own=never)
    return replies.ask(ID, MESSAGE), runtime


# --- the reply API -------------------------------------------------------------------------------


def test_the_reply_api_is_asked_about_the_message_in_json() -> None:
    answer, runtime = ask(lambda _: httpx.Response(200, json={"text": "hello"}))
    assert answer == Answer(text="hello")
    (request,) = runtime.requests
    assert (request.method, str(request.url)) == ("POST", URL)
    assert request.headers["Idempotency-Key"] == ID
    assert request.headers["Content-Type"] == "application/json"
    assert json.loads(request.content) == {
        "id": ID,
        "provider": "telnyx",
        "from": THEIRS,
        "to": OURS,
        "text": "hello heron",
        "media": [{"url": MEDIA, "content_type": ""}],
        "received_at": NOW,
    }
    assert request.extensions["timeout"] == {"connect": 3.0, "read": 7.0, "write": 7.0, "pool": 3.0}


@pytest.mark.parametrize(
    ("status", "body", "answer"),
    [
        (200, {"text": "hello"}, Answer(text="hello")),
        (200, {"text": ""}, Answer(text="")),
        (200, {"text": None}, Answer()),
        (200, {"texts": ["one", "two"]}, Answer(texts=["one", "two"])),
        (200, {"texts": []}, Answer()),
        (200, {"text": "zero", "texts": ["one"]}, Answer(text="zero", texts=["one"])),
        (200, {"media": [MEDIA]}, Answer.model_validate({"media": [MEDIA]})),
        (
            200,
            {"media": [MEDIA], "text": "look"},
            Answer.model_validate({"media": [MEDIA], "text": "look"}),
        ),
        (200, {}, Answer()),
        (200, {"confidence": 0.9, "text": "hello"}, Answer(text="hello")),
        (200, {"text": "x" * LONGEST}, Answer(text="x" * LONGEST)),
        (204, None, Answer()),
    ],
)
def test_what_the_reply_api_may_answer(
    status: int, body: dict[str, Any] | None, answer: Answer
) -> None:
    found, _ = ask(lambda _: httpx.Response(status, json=body))
    assert found == answer


@pytest.mark.parametrize(
    ("answer", "reason", "after"),
    [
        (httpx.Response(500), "reply_api: 500", None),
        (httpx.Response(502, text="heron"), "reply_api: 502", None),
        (httpx.Response(503, headers={"Retry-After": "30"}), "reply_api: 503", 30.0),
        (httpx.Response(429, headers={"Retry-After": "5"}), "reply_api: 429", 5.0),
        (httpx.Response(429), "reply_api: 429", None),
        (httpx.Response(401), "reply_api: 401", None),
        (httpx.Response(403), "reply_api: 403", None),
        (httpx.Response(408), "reply_api: 408", None),
        (httpx.Response(425), "reply_api: 425", None),
        (httpx.Response(301, headers={"Location": "https://heron"}), "reply_api: 301", None),
        (httpx.Response(202, json={"text": "later"}), "reply_api: 202", None),
        (httpx.ConnectError(f"heron {THEIRS}"), "reply_api: ConnectError", None),
        (httpx.ReadTimeout(f"heron {THEIRS}"), "reply_api: ReadTimeout", None),
        (httpx.PoolTimeout(f"heron {THEIRS}"), "reply_api: PoolTimeout", None),
        (httpx.RemoteProtocolError("heron"), "reply_api: RemoteProtocolError", None),
        (httpx.Response(200), "reply_api: invalid_answer", None),
        (httpx.Response(200, text="heron"), "reply_api: invalid_answer", None),
        (httpx.Response(200, text="null"), "reply_api: invalid_answer", None),
        (httpx.Response(200, json=["heron"]), "reply_api: invalid_answer", None),
        (httpx.Response(200, json="heron"), "reply_api: invalid_answer", None),
        (httpx.Response(200, json={"text": 5}), "reply_api: invalid_answer", None),
        (httpx.Response(200, json={"reply": "heron"}), "reply_api: invalid_answer", None),
        (httpx.Response(200, json={"text": ["heron"]}), "reply_api: invalid_answer", None),
        (httpx.Response(200, json={"texts": "heron"}), "reply_api: invalid_answer", None),
        (httpx.Response(200, json={"texts": [None]}), "reply_api: invalid_answer", None),
        (httpx.Response(200, json={"texts": ["x"] * 10}), "reply_api: invalid_answer", None),
        (httpx.Response(200, json={"media": ["heron"]}), "reply_api: invalid_answer", None),
        (httpx.Response(200, json={"media": [MEDIA] * 11}), "reply_api: invalid_answer", None),
        (httpx.Response(200, json={"media": "https://x"}), "reply_api: invalid_answer", None),
        (
            httpx.Response(200, json={"media": ["file:///etc/passwd"]}),
            "reply_api: invalid_answer",
            None,
        ),
        (httpx.Response(200, text='{"text": "\\ud800"}'), "reply_api: invalid_answer", None),
        (
            httpx.Response(200, json={"text": "x" * (LONGEST + 1)}),
            "reply_api: invalid_answer",
            None,
        ),
        (
            httpx.Response(200, json={"texts": ["x" * (LONGEST + 1)]}),
            "reply_api: invalid_answer",
            None,
        ),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_an_api_that_cannot_answer_now_is_asked_later(
    answer: httpx.Response | httpx.HTTPError,
    reason: str,
    after: float | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(Defer) as caught:
        ask(lambda _: given(answer))
    assert (caught.value.reason, caught.value.after) == (reason, after)
    assert logged(capsys) == []


@pytest.mark.parametrize("status", [400, 402, 404, 405, 409, 410, 413, 422, 451])
def test_an_api_may_refuse_a_message_for_good(status: int) -> None:
    with pytest.raises(Refused) as caught:
        ask(lambda _: httpx.Response(status, text=f"heron {THEIRS}"))
    assert caught.value.code == str(status)
    assert str(caught.value) == "refused"


def given(answer: httpx.Response | httpx.HTTPError) -> httpx.Response:
    if isinstance(answer, httpx.HTTPError):
        raise answer
    return answer


# --- the adopter's own code ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("returned", "answer"),
    [
        (None, Answer()),
        ("hello", Answer(text="hello")),
        ("", Answer(text="")),
        (["one", "two"], Answer(texts=["one", "two"])),
        (("one", "two"), Answer(texts=["one", "two"])),
        ([], Answer()),
        (Answer(text="hello"), Answer(text="hello")),
    ],
)
def test_own_code_answers_where_there_is_no_url(
    returned: Answer | str | Sequence[str] | None, answer: Answer
) -> None:
    runtime = FakeRuntime()
    asked = []

    def own(message: InboundMessage) -> Answer | str | Sequence[str] | None:
        asked.append(message)
        return returned

    assert Replies(runtime, url="", timeout=7.0, own=own).ask(ID, MESSAGE) == answer
    assert asked == [MESSAGE]
    assert runtime.requests == []


@pytest.mark.parametrize("returned", ["x" * (LONGEST + 1), ["one", "x" * (LONGEST + 1)]])
def test_own_code_that_says_too_much_is_refused(returned: str | list[str]) -> None:
    with pytest.raises(Refused) as refused:
        Replies(FakeRuntime(), url="", timeout=7.0, own=lambda _: returned).ask(ID, MESSAGE)
    assert refused.value.code == "too_long"


def test_what_own_code_raises_is_raised() -> None:
    with pytest.raises(AssertionError, match="own code"):
        Replies(FakeRuntime(), url="", timeout=7.0, own=never).ask(ID, MESSAGE)


def test_own_code_of_the_template_repeats_a_text_and_is_silent_about_none() -> None:
    assert reply(MESSAGE) == "You wrote: hello heron"
    assert reply(InboundMessage("twilio", "", "", THEIRS, OURS, "", NOW)) is None


# --- parts ---------------------------------------------------------------------------------------

TWILIO = provider_named("twilio")
LONG = "heron " * 500  # 3,000 characters; Twilio takes 1,600


@pytest.mark.parametrize(
    ("answer", "parts"),
    [
        ({}, []),
        ({"text": ""}, []),
        ({"text": " \n\t "}, []),
        ({"texts": ["", " "]}, []),
        ({"text": "hello"}, [("hello", ())]),
        ({"text": "  hello "}, [("  hello ", ())]),
        ({"texts": ["one", "", "two", "  "]}, [("one", ()), ("two", ())]),
        ({"text": "zero", "texts": ["one"]}, [("zero", ()), ("one", ())]),
        # What providers and stores refuse is gone, and what is left is one form of it.
        ({"text": "a\x00b\r\ncafe\u0301"}, [("ab\ncafé", ())]),
        ({"text": "\x00"}, []),
        ({"media": [MEDIA]}, [("", (MEDIA,))]),
        ({"text": "", "media": [MEDIA]}, [("", (MEDIA,))]),
        ({"text": " ", "media": [MEDIA]}, [("", (MEDIA,))]),
        ({"text": "look", "media": [MEDIA, MEDIA]}, [("look", (MEDIA, MEDIA))]),
        ({"texts": ["one", "two"], "media": [MEDIA]}, [("one", (MEDIA,)), ("two", ())]),
        ({"texts": ["", "two"], "media": [MEDIA]}, [("two", (MEDIA,))]),
    ],
)
def test_the_parts_of_an_answer(answer: dict[str, Any], parts: list[Any]) -> None:
    assert words(Answer.model_validate(answer), TWILIO, 3) == parts


def test_a_text_over_the_providers_limit_is_split_at_words() -> None:
    parts = words(Answer.model_validate({"text": LONG, "media": [MEDIA]}), TWILIO, 3)
    assert [len(text) for text, _ in parts] == [1595, 1403]
    assert all(text.split() == ["heron"] * len(text.split()) for text, _ in parts)
    assert " ".join(text for text, _ in parts).split() == LONG.split()
    assert [media for _, media in parts] == [(MEDIA,), ()]


@pytest.mark.parametrize(
    ("texts", "max_parts", "how_many"),
    [
        ([LONG], 2, 2),
        ([LONG], 1, None),
        ([LONG * 2], 3, None),
        ([LONG * 2], 4, 4),
        # The limit is of one text.
        ([LONG, "hello", LONG], 2, 5),
        (["hello", LONG], 1, None),
        (["hello"] * 9, 1, 9),
    ],
)
def test_a_text_that_needs_more_parts_than_are_allowed_is_too_long(
    texts: list[str], max_parts: int, how_many: int | None
) -> None:
    answer = Answer(texts=texts)
    if how_many is None:
        with pytest.raises(TooLong, match=r"^[a-z0-9 ]+$"):
            words(answer, TWILIO, max_parts)
    else:
        assert len(words(answer, TWILIO, max_parts)) == how_many
