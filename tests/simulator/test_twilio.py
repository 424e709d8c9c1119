"""The simulated Twilio signs as Twilio's own vectors do, and answers as its API does."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl

import httpx
import pytest

from spillway.simulator import twilio
from tests.simulator.conftest import ACCOUNT, OURS, THEIRS, Simulator

pytestmark = pytest.mark.anyio

_VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "twilio.json").read_text())
_NO_PORT = {"sdk-test-port-removed-https", "sdk-test-port-443-added", "sdk-test-http-port-80-added"}
_BASIC = "Basic " + base64.b64encode(b"hook:pass:word").decode()
_LIST = f"/provider/twilio/2010-04-01/Accounts/{ACCOUNT}/Messages.json"


def _fields(request: httpx.Request) -> dict[str, str]:
    return dict(parse_qsl(request.content.decode(), keep_blank_values=True))


def _is_signed(request: httpx.Request, token: str = "newest") -> bool:
    fields = parse_qsl(request.content.decode(), keep_blank_values=True, errors="strict")
    return request.headers["X-Twilio-Signature"] == twilio.signature(
        token, str(request.url), fields
    )


@pytest.mark.parametrize(
    "vector",
    [
        pytest.param(one, id=one["name"])
        for one in _VECTORS
        # Posted forms under SHA-1, which is what is simulated. In three vectors the port signed is
        # not the port of the URL: what a verifier must try, no signer does.
        if one["algorithm"] == "HMAC-SHA1"
        and one["method"] == "POST"
        and one["name"] not in _NO_PORT
    ],
)
def test_signature_is_that_of_the_vectors(vector: dict[str, Any]) -> None:
    fields = parse_qsl(vector["body"], keep_blank_values=True)
    address = twilio.Address.parse(vector["url"])
    made = twilio.signature(vector["secret"], address.url, fields)
    assert (made == vector["headers"].get("X-Twilio-Signature")) is vector["valid"]


def test_enough_vectors_are_looked_at() -> None:
    used = [one for one in _VECTORS if one["algorithm"] == "HMAC-SHA1" and one["method"] == "POST"]
    assert len([one for one in used if one["valid"]]) >= 12
    assert len([one for one in used if not one["valid"]]) >= 12


@pytest.mark.parametrize(
    ("configured", "url", "credentials", "retries", "policies"),
    [
        ("https://a.example/x", "https://a.example/x", "", 1, {"ct"}),
        ("https://u:p%40@a.example:8443/x?y=1", "https://a.example:8443/x?y=1", "u:p@", 1, {"ct"}),
        (
            "https://a.example/x#rc=3&rp=5xx,ct,rt",
            "https://a.example/x",
            "",
            3,
            {"5xx", "ct", "rt"},
        ),
        ("https://a.example/x#rc=9", "https://a.example/x", "", 5, {"ct"}),
        ("https://a.example/x#rc=no&rp=all", "https://a.example/x", "", 1, {"all"}),
    ],
)
def test_address(
    configured: str, url: str, credentials: str, retries: int, policies: set[str]
) -> None:
    expected = twilio.Address(url, credentials, retries, frozenset(policies))
    assert twilio.Address.parse(configured) == expected


async def test_a_text_comes_as_twilios_form(simulator: Simulator) -> None:
    media = [{"url": "https://api.twilio.com/m/1", "content_type": "image/jpeg"}]
    result = await simulator.text("twilio", "Olá 👋 \r\n", media=media, door="signed")
    (request,) = simulator.webhook.requests
    assert str(request.url) == "http://127.0.0.1:8000/webhooks/twilio/signed"
    assert request.headers["Content-Type"].startswith("application/x-www-form-urlencoded")
    assert _is_signed(request)
    assert (
        _fields(request).items()
        >= {
            "MessageSid": result["id"],
            "SmsSid": result["id"],
            "SmsMessageSid": result["id"],
            "AccountSid": ACCOUNT,
            "From": THEIRS,
            "To": OURS,
            "Body": "Olá 👋 \r\n",
            "NumMedia": "1",
            "MediaUrl0": "https://api.twilio.com/m/1",
            "MediaContentType0": "image/jpeg",
            "NumSegments": "1",
            "SmsStatus": "received",
            "ToCity": "",
            "ApiVersion": "2010-04-01",
        }.items()
    )
    assert result.items() >= {"door": "signed", "status": 200, "attempts": 1}.items()


async def test_a_lone_surrogate_becomes_a_question_mark(simulator: Simulator) -> None:
    content = json.dumps(
        {"provider": "twilio", "from": THEIRS, "to": OURS, "text": "a\ud800", "door": "signed"}
    )
    response = await simulator.http.post("/provider/inbound", content=content)
    assert response.json()["status"] == 200
    (request,) = simulator.webhook.requests
    assert _fields(request)["Body"] == "a?"
    assert _is_signed(request)


async def test_credentials_are_kept_back_until_the_server_asks(simulator: Simulator) -> None:
    simulator.webhook.challenge = 'Basic realm="webhooks"'
    result = await simulator.text("twilio")
    first, second = simulator.webhook.requests
    assert "authorization" not in first.headers
    assert second.headers["authorization"] == _BASIC
    assert first.content == second.content
    assert str(second.url) == "http://127.0.0.1:8000/webhooks/twilio"
    assert _is_signed(second)
    assert result.items() >= {"door": "basic", "status": 200, "attempts": 2}.items()


@pytest.mark.parametrize("challenge", ["Bearer", "Basic", 'Digest realm="webhooks"', ""])
async def test_no_credentials_without_a_basic_challenge_with_a_realm(
    simulator: Simulator, challenge: str
) -> None:
    simulator.webhook.challenge = challenge
    result = await simulator.text("twilio")
    assert result.items() >= {"status": 401, "attempts": 1}.items()


_REFUSED = httpx.ConnectError("refused")
_CUT = httpx.ReadError("cut")


@pytest.mark.parametrize(
    ("answers", "status", "attempts"),
    [
        ([503], 200, 2),
        ([_REFUSED, _CUT, 500], 200, 4),
        ([503, 503, 503, 503], 503, 4),
        ([_CUT, _CUT, _CUT, _CUT], None, 4),
        ([403], 403, 1),
    ],
)
async def test_a_webhook_is_tried_again(
    simulator: Simulator, answers: list[int | Exception], status: int | None, attempts: int
) -> None:
    simulator.webhook.answers = answers
    result = await simulator.text("twilio", door="signed")
    assert (result["status"], result["attempts"]) == (status, attempts)
    tokens = [r.headers.get("I-Twilio-Idempotency-Token") for r in simulator.webhook.requests]
    assert tokens[0] is None
    assert len(set(tokens[1:])) <= 1
    assert None not in tokens[1:]


async def test_an_accepted_send(simulator: Simulator) -> None:
    callback = "http://127.0.0.1:8000/webhooks/twilio/signed?reference=abc-def-1"
    response = await simulator.to_twilio(Body="hi 👋", StatusCallback=callback)
    assert response.status_code == 201
    answer = response.json()
    assert answer["sid"].startswith("SM")
    assert len(answer["sid"]) == 34
    assert (
        answer.items()
        >= {
            "account_sid": ACCOUNT,
            "status": "queued",
            "num_segments": "1",
            "direction": "outbound-api",
            "date_created": "Fri, 15 Jan 2027 08:00:00 +0000",
            "date_sent": None,
            "price": None,
            "error_code": None,
        }.items()
    )
    assert await simulator.outbox() == [
        {
            "to": THEIRS,
            "from": OURS,
            "text": "hi 👋",
            "reference": "abc-def-1",
            "at": simulator.now,
            "provider": "twilio",
            "id": answer["sid"],
            "media": [],
        }
    ]
    assert await simulator.receipts() == {"waiting": 0, "refused": 0}
    requests = simulator.webhook.requests
    assert [_fields(one)["MessageStatus"] for one in requests] == ["sent", "delivered"]
    for one in requests:
        assert str(one.url) == callback
        assert _is_signed(one)
        assert _fields(one)["MessageSid"] == answer["sid"]


@pytest.mark.parametrize(
    ("overrides", "answers", "requests", "refused"),
    [
        ("", [_REFUSED], 3, 0),
        ("", [503], 2, 1),
        ("", [_REFUSED, _REFUSED], 3, 1),
        ("#rc=2&rp=5xx", [503, 503], 4, 0),
    ],
)
async def test_a_receipt_is_tried_again_as_its_address_says(
    simulator: Simulator,
    overrides: str,
    answers: list[int | Exception],
    requests: int,
    refused: int,
) -> None:
    simulator.webhook.answers = answers
    await simulator.to_twilio(StatusCallback=f"http://127.0.0.1:8000/s?reference=a{overrides}")
    assert (await simulator.receipts())["refused"] == refused
    assert len(simulator.webhook.requests) == requests
    assert all(_is_signed(one) for one in simulator.webhook.requests)


@pytest.mark.parametrize(
    ("form", "code"),
    [
        ({"To": ""}, 21604),
        ({"To": "4155550100"}, 21211),
        ({"To": "+0155550100"}, 21211),
        ({"To": "Somebody"}, 21211),
        ({"From": ""}, 21603),
        ({"From": "+41"}, 21212),
        ({"From": "an address of a person"}, 21212),
        ({"Body": ""}, 21602),
        ({"Body": "a" * 1601}, 21617),
        ({"Body": "👋" * 801}, 21617),
        ({"MediaUrl": ["https://a.example/1"] * 11}, 21623),
        ({"MediaUrl": "file:///etc/passwd"}, 21620),
        ({"StatusCallback": "not an address"}, 21609),
    ],
)
async def test_a_refused_send(simulator: Simulator, form: dict[str, Any], code: int) -> None:
    response = await simulator.to_twilio(**form)
    assert response.status_code == 400
    assert response.json().items() >= {"code": code, "status": 400}.items()
    assert response.json()["more_info"].endswith(f"/errors/{code}")
    assert await simulator.outbox() == []


@pytest.mark.parametrize(
    "form",
    [
        {"Body": "a" * 1600},
        {"Body": "👋" * 800},
        {"Body": "", "MediaUrl": ["https://a.example/1", "https://a.example/2"]},
        {"From": "Spillway"},
        {"From": "72345", "To": "723456"},
    ],
)
async def test_what_just_passes(simulator: Simulator, form: dict[str, Any]) -> None:
    assert (await simulator.to_twilio(**form)).status_code == 201
    (entry,) = await simulator.outbox()
    assert entry["media"] == form.get("MediaUrl", [])


@pytest.mark.parametrize(
    ("account", "auth"),
    [
        (ACCOUNT, None),
        (ACCOUNT, (ACCOUNT, "wrong")),
        (ACCOUNT, ("AC1", "newest")),
        ("AC1", (ACCOUNT, "newest")),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_credentials_of_the_api(
    simulator: Simulator, method: str, account: str, auth: tuple[str, str] | None
) -> None:
    url = f"/provider/twilio/2010-04-01/Accounts/{account}/Messages.json"
    response = await simulator.http.request(method, url, auth=auth)
    assert response.status_code == 401
    assert response.json()["code"] == 20003
    assert response.headers["WWW-Authenticate"].startswith("Basic realm=")


async def test_the_older_auth_token_still_opens_the_api(simulator: Simulator) -> None:
    assert (await simulator.http.get(_LIST, auth=(ACCOUNT, "older"))).status_code == 200


@pytest.mark.parametrize(
    ("words", "blocked"),
    [
        (["STOP"], True),
        ([" stop\n"], True),
        (["OptOut"], True),
        (["stop please"], False),
        (["STOP", "START"], False),
        (["STOP", "hello"], True),
        (["unstop", "quit"], True),
    ],
)
async def test_opting_out(simulator: Simulator, words: list[str], blocked: bool) -> None:
    for word in words:
        await simulator.text("twilio", word)
    response = await simulator.to_twilio()
    assert response.json().get("code") == (21610 if blocked else None)
    # Twilio blocks for one number of ours, and one person.
    assert (await simulator.to_twilio(From="+14155550124")).status_code == 201
    assert (await simulator.to_twilio(To="+14155550101")).status_code == 201


@pytest.mark.parametrize(
    ("fail", "status", "code"),
    [("throttled", 429, 20429), ("server_error", 500, 20500), ("rejected", 400, 21612)],
)
async def test_told_to_fail(simulator: Simulator, fail: str, status: int, code: int) -> None:
    await simulator.behave("twilio", fail=fail)
    response = await simulator.to_twilio()
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert await simulator.outbox() == []
    await simulator.behave("twilio")
    assert (await simulator.to_twilio()).status_code == 201


async def test_receipts_can_be_lost(simulator: Simulator) -> None:
    await simulator.behave("twilio", receipts=False)
    await simulator.to_twilio(StatusCallback="http://127.0.0.1:8000/s?reference=a")
    await simulator.receipts()
    assert simulator.webhook.requests == []


async def _listed(simulator: Simulator, **query: str) -> dict[str, Any]:
    params = {name.replace("_after", ">").replace("_before", "<"): v for name, v in query.items()}
    response = await simulator.http.get(_LIST, params=params, auth=(ACCOUNT, "newest"))
    page: dict[str, Any] = response.json()
    return page


async def test_listing_shows_both_directions_newest_first(simulator: Simulator) -> None:
    # GIVEN a text, its repeat, an answer, and a text to somebody else
    text = await simulator.text("twilio", "question")
    await simulator.text("twilio", "question", id=text["id"])
    answer = (await simulator.to_twilio(Body="answer")).json()
    other = (await simulator.to_twilio(To="+14155550101")).json()
    # WHEN all is listed, THEN the repeat counts once
    page = await _listed(simulator)
    assert [one["sid"] for one in page["messages"]] == [other["sid"], answer["sid"], text["id"]]
    assert [one["direction"] for one in page["messages"]][1:] == ["outbound-api", "inbound"]
    assert [one["status"] for one in page["messages"]][1:] == ["delivered", "received"]
    assert page["messages"][1]["body"] == "answer"
    assert page["next_page_uri"] is None
    # AND the filters leave out the rest
    found = await _listed(simulator, To=THEIRS, From=OURS)
    assert [one["sid"] for one in found["messages"]] == [answer["sid"]]
    found = await _listed(simulator, From=THEIRS)
    assert [one["sid"] for one in found["messages"]] == [text["id"]]
    assert (await _listed(simulator, To="+14155550102"))["messages"] == []


async def test_texts_whose_webhook_was_refused_are_listed_with_their_media(
    simulator: Simulator,
) -> None:
    simulator.webhook.answers = [503] * 4
    media = [{"url": "https://media.example.com/1", "content_type": "image/png"}]
    text = await simulator.text("twilio", "question", media=media, door="signed")
    assert text["status"] == 503
    (one,) = (await _listed(simulator, To=OURS))["messages"]
    assert (one["sid"], one["num_media"]) == (text["id"], "1")
    path = f"/provider/twilio{one['subresource_uris']['media']}"
    found = (await simulator.http.get(path, auth=(ACCOUNT, "newest"))).json()["media_list"]
    assert [item["content_type"] for item in found] == ["image/png"]
    assert (await simulator.http.get(path)).status_code == 401
    other = path.replace(text["id"], "MM0")
    assert (await simulator.http.get(other, auth=(ACCOUNT, "newest"))).status_code == 404


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ({}, 3),
        ({"DateSent_after": "2027-01-15T08:00:00Z"}, 3),
        ({"DateSent_after": "2027-01-15T08:00:01Z"}, 2),
        ({"DateSent_before": "2027-01-15T08:00:00Z"}, 1),
        ({"DateSent_after": "2027-01-15T08:00:01Z", "DateSent_before": "2027-01-15T08:30:00Z"}, 1),
        ({"DateSent": "2027-01-15"}, 2),
        ({"DateSent": "2027-01-16"}, 1),
        ({"DateSent_after": "2027-01-16"}, 1),
        ({"DateSent": "2027-01-14"}, 0),
    ],
)
async def test_listing_by_date(simulator: Simulator, query: dict[str, str], count: int) -> None:
    began = simulator.now
    for later in (0.9, 61.0, 86_400.0):
        simulator.now = began + later
        await simulator.to_twilio()
    assert len((await _listed(simulator, **query))["messages"]) == count


async def test_pages_do_not_shift(simulator: Simulator) -> None:
    sids = [(await simulator.to_twilio()).json()["sid"] for _ in range(5)]
    page = await _listed(simulator, To=THEIRS, PageSize="2")
    seen = [one["sid"] for one in page["messages"]]
    while following := page["next_page_uri"]:
        assert parse_qs(following.partition("?")[2])["To"] == [THEIRS]
        await simulator.to_twilio()  # a newer one in between
        url = f"/provider/twilio{following}"
        page = (await simulator.http.get(url, auth=(ACCOUNT, "newest"))).json()
        seen += [one["sid"] for one in page["messages"]]
    assert seen == sids[::-1]


@pytest.mark.parametrize(
    "query", [{"PageSize": "x"}, {"PageSize": "-3"}, {"DateSent": "soon"}, {"DateSent_after": "1"}]
)
async def test_a_listing_that_makes_no_sense(simulator: Simulator, query: dict[str, str]) -> None:
    assert (await _listed(simulator, **query))["code"] == 20001


async def test_throttling_says_when_to_come_again(simulator: Simulator) -> None:
    await simulator.behave("twilio", fail="throttled", retry_after=5)
    answer = await simulator.to_twilio()
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "5")
    await simulator.behave("twilio", fail="throttled")
    assert "Retry-After" not in (await simulator.to_twilio()).headers
    assert await simulator.outbox() == []


async def test_a_picture_is_shown_to_whoever_has_credentials_after_a_redirect(
    simulator: Simulator,
) -> None:
    # GIVEN a text with a picture, of which the webhook has the address
    media = [{"content": base64.b64encode(b"a picture").decode(), "content_type": "image/png"}]
    text = await simulator.text("twilio", "look", media=media, door="signed")
    form = parse_qs(simulator.webhook.requests[0].content.decode())
    assert (form["NumMedia"], form["MediaContentType0"]) == (["1"], ["image/png"])
    (address,) = form["MediaUrl0"]
    assert address.startswith(f"http://simulator/provider/twilio/2010-04-01/Accounts/{ACCOUNT}/")
    # AND it is the one that the list of its attachments has
    listed = await simulator.http.get(
        f"/provider/twilio/2010-04-01/Accounts/{ACCOUNT}/Messages/{text['id']}/Media.json",
        auth=(ACCOUNT, "newest"),
    )
    (entry,) = listed.json()["media_list"]
    assert address.endswith(entry["uri"].removesuffix(".json"))
    # THEN only the account is shown where it is, and there everybody sees it
    assert (await simulator.http.get(address)).status_code == 401
    assert (await simulator.http.get(f"{address}x", auth=(ACCOUNT, "newest"))).status_code == 404
    redirect = await simulator.http.get(address, auth=(ACCOUNT, "newest"))
    assert redirect.status_code == 307
    shown = await simulator.http.get(redirect.headers["Location"])
    assert (shown.content, shown.headers["Content-Type"]) == (b"a picture", "image/png")
    assert (await simulator.http.get("/provider/twilio/cdn/heron")).status_code == 404
    await simulator.behave("twilio", fail="server_error")
    assert (await simulator.http.get(redirect.headers["Location"])).status_code == 500
