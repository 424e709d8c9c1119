"""Whatever a provider, a source, the reply API, a client or a deployment hands us, it is read, or
refused with the one error that is documented. (Ids and references: tests/test_messages.py; bodies
of queues: tests/test_queues.py, and here what becomes of them further on.)"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import quote_from_bytes

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from chalicelib.batches import Defer
from chalicelib.config import _TABLE, SettingError, load
from chalicelib.lookups import LookUp, LookUps
from chalicelib.messages import DeliveryReceipt, Headers, InboundMessage, Part, WebhookRequest
from chalicelib.processing import reasons_against
from chalicelib.providers import NAMES, provider_named
from chalicelib.providers.base import (
    CannotTell,
    NotSent,
    PayloadError,
    Rejected,
    SendError,
    Sent,
    Throttled,
)
from chalicelib.queues import Envelope
from chalicelib.receiving import public_url, request_of
from chalicelib.replies import Refused, Replies, words
from chalicelib.runtime import Runtime
from chalicelib.text import LONGEST, TooLong, normalise
from chalicelib.yours.lookups import LOOKUPS
from tests.fakes import NOW, OURS, THEIRS, FakeRuntime
from tests.fuzz import examples, outcome
from tests.fuzz.values import (
    BOTTOMLESS,
    DEEP,
    ODD_JSON,
    Written,
    changed,
    damaged,
    texts,
    values,
    written,
)
from tests.signing import HOST, api_event, telnyx_event, twilio_event

# Long examples are what some of these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")

INBOUND = json.loads(telnyx_event()["body"])
RECEIPT = {
    "data": {
        "event_type": "message.finalized",
        "occurred_at": "2026-09-21T14:13:20.000+00:00",
        "payload": {
            "id": "84cca175-0000-0000-0000-000000000001",
            "direction": "outbound",
            "to": [{"phone_number": THEIRS, "status": "delivered"}],
            "errors": [{"code": "40300", "title": "t", "detail": "d"}],
        },
    }
}
REFERENCE = f"{'a' * 24}-{'b' * 24}-1"
odd = st.sampled_from(ODD_JSON + DEEP + BOTTOMLESS)


# --- webhooks ------------------------------------------------------------------------------------


def is_read(name: str, request: WebhookRequest) -> None:
    """It is read, or a PayloadError; and what was read goes over the queue unharmed."""
    found = outcome(lambda: provider_named(name).parse(request), PayloadError)
    if isinstance(found, PayloadError):
        assert THEIRS not in str(found)
        assert found.__cause__ is None
        assert found.__suppress_context__ or found.__context__ is None
        return
    for one in found:
        assert isinstance(one, InboundMessage | DeliveryReceipt)
        assert one.provider == name
        assert one.id
        if isinstance(one, DeliveryReceipt):
            # What a log may hold.
            assert one.error == "" or (one.error.isdigit() and one.error.isascii())
            continue
        for text in (one.account, one.sender, one.recipient, one.text):
            assert isinstance(text, str)
        assert one.segments is None or 0 <= one.segments < 10_000
        assert isinstance(reasons_against(one, normalise(one.text)), list)


def telnyx_request(body: bytes) -> WebhookRequest:
    url = f"https://{HOST}/webhooks/telnyx/signed?reference={REFERENCE}"
    return WebhookRequest("POST", url, Headers({"Content-Type": "application/json"}), body, NOW)


@examples(500)
@given(
    damaged(INBOUND, odd) | damaged(RECEIPT, odd),
    st.sampled_from([*["utf-8"] * 8, "utf-16", "utf-32"]),
)
def test_telnyx_json_of_any_make(event: Any, encoding: str) -> None:
    is_read("telnyx", telnyx_request(written(event).encode(encoding, "surrogatepass")))


@examples(150)
@given(changed(json.dumps(INBOUND, ensure_ascii=False).encode()))
def test_telnyx_json_with_a_byte_changed(body: bytes) -> None:
    is_read("telnyx", telnyx_request(body))


def strictly(text: str) -> Any:
    """JSON as its standard has it (RFC 8259, section 6: no NaN, no Infinity)."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


numbers = st.from_regex(
    r"-?(0|[1-9][0-9]{0,400})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,4})?", fullmatch=True
)


@examples(150)
@given(numbers | st.sampled_from(ODD_JSON))
def test_what_telnyx_says_is_json_in_the_archive(odd: str) -> None:
    # GIVEN it at a place that is only kept
    event = {**INBOUND, "meta": {"attempt": Written(odd)}}
    with suppress(PayloadError):
        [message] = provider_named("telnyx").parse(telnyx_request(written(event).encode()))
        assert isinstance(message, InboundMessage)
        strictly(json.dumps(message.raw))


FIELDS = [
    "MessageSid",
    "AccountSid",
    "From",
    "To",
    "Body",
    "NumMedia",
    "NumSegments",
    "MessageStatus",
]
field_names = st.sampled_from(
    [*FIELDS, "OptOutType", "ErrorCode", "MediaUrl0", "MediaUrl1", "MediaContentType0"]
)
field_values = (
    st.sampled_from(
        ["", "0", "1", "9" * 5_000, "received", "delivered", "sent", "STOP", "30007", "٣"]
    )
    | st.sampled_from(["VGhl" * 30, "x" * 30_000, "%", "%zz", "whatsapp:+14155550100"])
    | texts
)


def raw_form(pairs: list[tuple[str, str | bytes]]) -> bytes:
    """A form in which nothing is left as it is, or nothing is encoded, by turns."""
    out = []
    for number, (name, value) in enumerate(pairs):
        text = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
        written_ = quote_from_bytes(text, safe="") if number % 2 else text.decode("latin-1")
        out.append(f"{name}={written_}".encode("latin-1"))
    return b"&".join(out)


forms = st.lists(st.tuples(field_names, field_values | st.binary(max_size=20)), max_size=10)


@examples(250)
@given(forms, st.sampled_from(["POST", "GET"]), st.booleans())
def test_twilio_forms_of_any_make(
    pairs: list[tuple[str, str | bytes]], method: str, whole: bool
) -> None:
    body = raw_form([*([("MessageSid", "SM1"), ("Body", "hi")] if whole else []), *pairs])
    headers = Headers({"Content-Type": "application/x-www-form-urlencoded; charset=UTF-8"})
    url = f"https://{HOST}/webhooks/twilio?reference={REFERENCE}"
    if method == "GET":
        url += "&" + body.decode("latin-1")
    is_read("twilio", WebhookRequest(method, url, headers, body, NOW))


# --- API Gateway's events ------------------------------------------------------------------------

segments = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=8)
header_values = st.text(st.characters(codec="utf-8"), max_size=20)


@examples(150)
@given(
    body=st.binary(max_size=300),
    before=st.lists(segments, max_size=2),
    provider=st.sampled_from(NAMES),
    door=st.sampled_from(["", "/signed"]),
    reference=st.text("abcdef0123456789-_", max_size=30),
    headers=st.dictionaries(st.text("abcXYZ-", min_size=1), st.lists(header_values, max_size=3)),
    base=st.sampled_from(["", "https://tunnel.example.com", "https://example.com/sms/in"]),
)
def test_a_request_is_what_its_caller_made(
    body: bytes,
    before: list[str],
    provider: str,
    door: str,
    reference: str,
    headers: dict[str, list[str]],
    base: str,
) -> None:
    own = f"/webhooks/{provider}{door}"
    path = "".join(f"/{one}" for one in before) + own  # a stage, a base path
    event = api_event(
        "POST",
        path,
        base64.b64encode(body).decode(),
        {},
        resource=f"/webhooks/{{provider}}{door}",
        parameters={"provider": provider},
        query={"reference": [reference]} if reference else None,
    )
    event |= {"isBase64Encoded": True, "multiValueHeaders": headers}

    request = request_of(event, base, NOW)

    root = base or f"https://{HOST}{path.removesuffix(own)}"
    query = f"?reference={reference}" if reference else ""
    assert request.url == f"{root}{own}{query}"
    assert (request.method, request.body, request.received_at) == ("POST", body, NOW)
    for name in headers:
        every = [one for n, more in headers.items() if n.lower() == name.lower() for one in more]
        assert request.headers.get(name.swapcase()) == ", ".join(every)
    assert public_url(event, base, provider) == f"{root}/webhooks/{provider}/signed"


# --- settings ------------------------------------------------------------------------------------

GOOD = {
    "SPILLWAY_STAGE": "prod",
    "CREDENTIAL_HASHES": json.dumps({"twilio": ["0" * 64], "api": ["1" * 64]}),
    "PROVIDERS": "twilio,telnyx",
    "NUMBERS": f"{OURS}=twilio,72345=telnyx",
    "PUBLIC_URL": "https://sms.example.com",
    "REPLY_API_URL": "https://replies.example.com/v1?key=value",
    "LOOKUP_URLS": '{"customer": "https://crm.example.com/x"}',
    "REPLY_TIMEOUT": "10",
    "MAX_PARTS": "3",
    "MESSAGE_DAYS": "400",
    "REPORT_BATCH_ITEM_FAILURES": "true",
    "LOG_LEVEL": "DEBUG",
}
VARIABLES = sorted({variable for variable, *_ in _TABLE.values()})
settings_values = (
    st.sampled_from(list(GOOD.values())).flatmap(
        lambda good: changed(good.encode()).map(lambda one: one.decode("latin-1"))
    )
    | texts
    | st.sampled_from([json.dumps({name: THEIRS}) for name in ("twilio", "api", THEIRS)])
    | st.sampled_from(
        ["nan", "inf", "-1", "0", "1e999", "9" * 5_000, "٣", "1_0", "true", "[]", "null"]
    )
    | st.sampled_from(
        ["http://", "http://[", "http://[::1]:x/", "https://a:0/", "//a", "a" * 70_000]
    )
    | st.sampled_from(
        ["https://example.com/a\x7fb", "https://exa\x00mple.com/", "https://xn--\xff.com/"]
    )
    # (4 KB are what Lambda's whole environment may have.)
    | st.sampled_from(["[" * 4_000, '{"a":' * 800])
    | damaged(
        json.loads(GOOD["CREDENTIAL_HASHES"]), st.sampled_from(ODD_JSON + DEEP + BOTTOMLESS)
    ).map(written)
)


@examples(300)
@given(
    st.sampled_from(["authorizer", "receiver", "processing", "sender"]),
    st.dictionaries(st.sampled_from(VARIABLES), settings_values, min_size=1, max_size=4),
)
def test_an_environment_is_settings_or_a_setting_error(
    function: str, wrong: dict[str, str]
) -> None:
    found = outcome(lambda: load({**GOOD, **wrong, "SPILLWAY_FUNCTION": function}), SettingError)
    if isinstance(found, SettingError):
        # Every line begins with the name of a variable, and none shows a value.
        for line in str(found).splitlines():
            assert line.partition(":")[0] in VARIABLES
        for value in wrong.values():
            assert len(value) < 12 or value not in str(found)
        return
    assert 0 < found.reply_timeout <= 30
    assert 1 <= found.max_parts <= 9
    assert set(found.numbers.values()) | set(found.providers) <= set(NAMES)
    # Every address that is taken can be asked.
    for url in (
        found.public_url,
        found.reply_api_url,
        found.twilio_api_url,
        found.telnyx_api_url,
        *found.lookup_urls.values(),
    ):
        httpx.URL(url)


# --- answers over HTTP ---------------------------------------------------------------------------

ANSWER = {
    "text": "hello",
    "texts": ["one", "two"],
    "media": ["https://media.example.org/1.png"],
    "known": True,
    "name": "A. Person",
    "line_type": "mobile",
    "country": "US",
    "sid": "SM1",
    "status": "queued",
    "code": 21610,
    "data": {"id": "40a1"},
    "errors": [{"code": "40300"}],
}
response_headers = st.dictionaries(
    st.sampled_from([b"Retry-After", b"Content-Type", b"Location", b"Content-Encoding"]),
    st.sampled_from(
        ["", "0", "7", "-1", "9" * 400, "٣", "Mon, 21 Sep 2026 14:13:20 GMT", "nan"]
    ).map(str.encode)
    | st.sampled_from(
        [b"x/y; charset=nonsense", b"http://[", b"//x", b"gzip", b"identity", b"\xff"]
    ),
    max_size=3,
)
bodies = (
    st.binary(max_size=60)
    | damaged(ANSWER, st.sampled_from(ODD_JSON + DEEP + BOTTOMLESS)).map(written).map(str.encode)
    | values.map(json.dumps).map(str.encode)
    | st.sampled_from([b"", b"null", b"[]", b'""', b"\xff\xfe[\x00]\x00", b"\xef\xbb\xbf{}"])
)
statuses = st.sampled_from(
    [200, 200, 200, 201, 201, 202, 204, 301, 307, 400, 401, 403, 404, 408, 409]
)
statuses |= st.sampled_from([422, 425, 429, 451, 500, 503, 599]) | st.integers(200, 599)
errors = st.sampled_from(
    [
        httpx.ConnectError,
        httpx.ConnectTimeout,
        httpx.PoolTimeout,
        httpx.ReadTimeout,
        httpx.ReadError,
        httpx.WriteError,
        httpx.RemoteProtocolError,
        httpx.LocalProtocolError,
        httpx.DecodingError,
        httpx.TooManyRedirects,
        httpx.UnsupportedProtocol,
        httpx.ProxyError,
    ]
)


@st.composite
def networks(draw: st.DrawFn) -> Callable[[httpx.Request], httpx.Response]:
    """What the other side says to whatever it is asked: an answer of any make, or an error."""
    if draw(st.integers(0, 5)) == 0:
        error = draw(errors)

        def fails(request: httpx.Request) -> httpx.Response:
            raise error(f"{THEIRS} at {request.url}", request=request)

        return fails
    status, headers, body = draw(statuses), draw(response_headers), draw(bodies)

    def answers(_: httpx.Request) -> httpx.Response:
        # (A stream, so that reading it is what may fail, as in earnest.)
        return httpx.Response(status, headers=list(headers.items()), stream=httpx.ByteStream(body))

    return answers


@pytest.mark.parametrize("cookie", ["session=1", "session=1; Path=/; Secure", "név=é"])
def test_the_client_keeps_nothing_that_an_answer_gives_it(cookie: str) -> None:
    request = httpx.Request("POST", "https://api.example.com/v2/messages")
    headers = [(b"Set-Cookie", cookie.encode())]
    with Runtime().http as client:
        client.cookies.extract_cookies(httpx.Response(200, headers=headers, request=request))
        assert "cookie" not in client.build_request("POST", request.url).headers


QUESTION = InboundMessage("twilio", "AC1", "SM1", THEIRS, OURS, "Is the heron awake?", NOW)


@examples(250)
@given(networks())
def test_a_reply_apis_answer_of_any_make(network: Any) -> None:
    runtime = FakeRuntime(network)
    replies = Replies(
        runtime, url="https://replies.example.com/v1", timeout=5.0, own=lambda message: None
    )
    answer = outcome(lambda: replies.ask("an id", QUESTION), (Defer, Refused))
    if isinstance(answer, Exception):
        assert THEIRS not in str(answer)
        if isinstance(answer, Defer):
            assert answer.after is None or 1 <= answer.after <= 43_200
        return
    for name in NAMES:
        with suppress(TooLong):
            for text, media in words(answer, provider_named(name), 3):
                assert len(text) <= LONGEST
                assert text.strip() or media
                text.encode()


class Anything(BaseModel):
    """An adopter's model that takes as much as a model can."""

    known: Any = None
    name: float | str | None = None
    texts: list[Any] | None = None


@examples(250)
@given(networks(), st.booleans())
def test_a_look_ups_answer_of_any_make(network: Any, required: bool) -> None:
    sources = [*LOOKUPS, LookUp("anything", Anything, required=required)]
    urls = {source.name: f"https://example.com/{source.name}" for source in sources}
    lookups = LookUps(FakeRuntime(network), sources, urls)
    found = outcome(lambda: lookups.ask("an id", QUESTION, QUESTION.text), Defer)
    if isinstance(found, Defer):
        assert found.after is None or 1 <= found.after <= 43_200
        return
    assert set(found) == set(urls)
    json.dumps(found)


PART = Part(
    reference=REFERENCE,
    sender=OURS,
    recipient=THEIRS,
    text="Is the heron awake?",
    callback_url=f"https://{HOST}/webhooks/any/signed?reference={REFERENCE}",
    started_at=NOW,
)
SECRETS = {"account_sid": "AC" + "0" * 32, "auth_tokens": ["token"], "api_key": "KEY"}


def fits_a_log(error: SendError) -> bool:
    return all(
        one == "" or (one.isascii() and one.replace("_", "").isalnum() and len(one) < 30)
        for one in (error.reason, error.code)
    )


@examples(300)
@given(networks(), st.sampled_from(NAMES))
def test_a_providers_answer_of_any_make(network: Any, name: str) -> None:
    http = FakeRuntime(network).http
    sent = outcome(lambda: provider_named(name).send(PART, SECRETS, http), SendError)
    if isinstance(sent, SendError):
        assert fits_a_log(sent)
        if isinstance(sent, Throttled):
            assert sent.retry_after is None or 1 <= sent.retry_after <= 43_200
        # Only what a provider says in so many words is for good.
        assert not isinstance(sent, Rejected) or sent.code
        return
    assert isinstance(sent.id, str)
    assert sent.id


LISTED = {
    "sid": "SM1",
    "to": THEIRS,
    "from": OURS,
    "body": PART.text,
    "direction": "outbound-api",
    "date_created": "Mon, 21 Sep 2026 14:13:20 +0000",
}
PAGE = {"messages": [LISTED], "next_page_uri": None}
NEXT = f"/2010-04-01/Accounts/{SECRETS['account_sid']}/Messages.json"
pages = damaged(
    PAGE,
    st.sampled_from(ODD_JSON)
    | st.sampled_from([NEXT, f"{NEXT}?Page=1", "https://evil.example.com" + NEXT, NEXT + "\ud800"])
    | st.sampled_from(
        ["Mon, 99 Sep 2026", "Fri, 31 Dec 9999 23:59:59 -2359", "1 Jan 0001 00:00:00"]
    ),
)


@examples(250)
@given(st.lists(pages.map(written), min_size=1, max_size=4), networks() | st.none())
def test_a_list_of_messages_of_any_make(found: list[str], network: Any) -> None:
    runtime = FakeRuntime()

    def answers(request: httpx.Request) -> httpx.Response:
        assert request.url.host == "api.twilio.com"  # credentials go nowhere else
        number = len(runtime.requests)
        if number > len(found):
            return network(request) if network else httpx.Response(200, text=found[-1])
        return httpx.Response(200, text=found[number - 1])

    runtime._answer = answers
    twilio = provider_named("twilio")
    told = outcome(lambda: twilio.find_sent(PART, SECRETS, runtime.http), SendError)
    assert isinstance(told, Sent | NotSent | CannotTell) or fits_a_log(told)
    assert len(runtime.requests) <= 3


secret_values = st.sampled_from(
    ["KEY", "AC1", "", "KEY\n", " KEY", "ключ", "\ud800", "a/../b", "a?b#c"]
)
secrets = st.fixed_dictionaries(
    {},
    optional={
        "account_sid": secret_values | values,
        "auth_tokens": st.lists(secret_values, max_size=2) | values,
        "api_key": secret_values | values,
    },
)


@examples(200)
@given(secrets, st.sampled_from(NAMES))
def test_secrets_of_any_make(held: dict[str, Any], name: str) -> None:
    """A secret that was pasted with too much is no reason to list each reply as unknown."""
    runtime = FakeRuntime(lambda request: httpx.Response(500))
    provider = provider_named(name)
    assert provider.can_verify(held) in (True, False)
    for ask in (provider.send, provider.find_sent):
        with suppress(SendError):
            ask(PART, held, runtime.http)
    for request in runtime.requests:
        assert str(request.url).startswith(provider.default_api_url)
        assert ".." not in request.url.path
        # What h11 would refuse to write (RFC 9110, section 5.5).
        authorization = request.headers["authorization"]
        assert authorization.isascii()
        assert authorization.isprintable()
        assert authorization == authorization.strip()


# --- what travels further ------------------------------------------------------------------------


def test_the_reply_api_is_asked_about_media_of_any_address() -> None:
    event = json.loads(telnyx_event()["body"])
    event["data"]["payload"]["media"] = [{"url": "https://media.example.org/\ud800"}]
    [message] = provider_named("telnyx").parse(telnyx_request(json.dumps(event).encode()))
    assert isinstance(message, InboundMessage)
    runtime = FakeRuntime(lambda request: httpx.Response(200, json={"text": "hello"}))
    url = "https://replies.example.com/v1"
    replies = Replies(runtime, url=url, timeout=5.0, own=lambda message: None)
    assert replies.ask("an id", message).text == "hello"


@examples(150)
@given(st.data(), st.sampled_from(["inbound", "outgoing", "receipt"]))
def test_a_payload_of_any_make_is_a_message_or_fails_alone(data: st.DataObject, kind: Any) -> None:
    """What is wrong with a payload is a TypeError, ValueError, KeyError or AttributeError of
    reading it: it meets its own message only (tests/fuzz/test_queue_bodies.py)."""
    good: dict[str, Any] = {
        "inbound": {
            "provider": "twilio",
            "account": "AC1",
            "id": "SM1",
            "sender": THEIRS,
            "recipient": OURS,
            "text": "hi",
            "received_at": NOW,
            "media": [{"url": "https://x", "content_type": ""}],
            "part": {"reference": "r", "index": 1, "total": 2},
            "raw": {"Body": ["hi"]},
        },
        "outgoing": {"provider": "twilio", "ours": OURS, "theirs": THEIRS, "text": "", "media": []},
        "receipt": {"provider": "twilio", "id": "SM1", "reference": REFERENCE, "status": "sent"},
    }
    payload = data.draw(damaged(good[kind]).map(lambda one: dict(one)))
    envelope = Envelope(kind, "c" * 24, "", NOW, payload)
    with suppress(TypeError, ValueError, KeyError, AttributeError):
        getattr(envelope, kind)()


def test_the_events_of_the_tests_are_read() -> None:
    """Else what is damaged above would be damaged before."""
    [message] = provider_named("telnyx").parse(telnyx_request(json.dumps(INBOUND).encode()))
    assert isinstance(message, InboundMessage)
    [receipt] = provider_named("telnyx").parse(telnyx_request(written(RECEIPT).encode()))
    assert receipt == DeliveryReceipt(
        "telnyx",
        "84cca175-0000-0000-0000-000000000001",
        REFERENCE,
        "delivered",
        "40300",
        NOW,
    )
    event = twilio_event({"Body": "hi", "MessageSid": "SM1"})
    assert provider_named("twilio").parse(request_of(event, "", NOW))
