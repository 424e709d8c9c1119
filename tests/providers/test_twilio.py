"""Twilio's own: what its forms say, its second way of signing, and looking for a lost send."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, urlencode

import httpx
import pytest

from chalicelib.messages import (
    DeliveryReceipt,
    Headers,
    InboundMessage,
    Media,
    Part,
    WebhookRequest,
)
from chalicelib.providers.base import (
    CannotTell,
    NotSent,
    OutcomeUnknown,
    PayloadError,
    SendError,
    Sent,
    SignatureError,
    Throttled,
    Unavailable,
)
from chalicelib.providers.twilio import Twilio

from .conftest import Answer, Connected

OURS, THEIRS, TEXT = "+14155550199", "+14155550142", "Your table is ready"
ACCOUNT, TOKEN = "AC00000000000000000000000000000007", "token-of-the-tests"
SECRETS = {"account_sid": ACCOUNT, "auth_tokens": [TOKEN, "older"]}
URL = "https://hooks.example.org/dev/webhooks/twilio/signed"
FORM = "application/x-www-form-urlencoded"
NOW = 1_790_000_000.5

Fields = dict[str, str] | list[tuple[str, str]]


def webhook(
    body: Fields | bytes,
    url: str = URL,
    method: str = "POST",
    headers: dict[str, str] | None = None,
) -> WebhookRequest:
    raw = body if isinstance(body, bytes) else urlencode(body).encode()
    return WebhookRequest(method, url, Headers({"Content-Type": FORM, **(headers or {})}), raw, NOW)


def signature(key: str, signed: str, digest: str = "sha1") -> str:
    return base64.b64encode(hmac.digest(key.encode(), signed.encode(), digest)).decode()


# --- verify ---------------------------------------------------------------------------------

SHARED = {**SECRETS, "shared_keys": ["shared-old", "shared-new"]}
SETTINGS = "X-Twilio-Webhooks-Signature-Settings"


@pytest.mark.parametrize("key", ["shared-old", "shared-new", TOKEN, "older"])
def test_a_shared_key_or_a_token_signs_with_sha_256(key: str) -> None:
    headers = {
        SETTINGS: "key=webhooks_sharedkey_1, algorithm=HMAC_SHA256",
        "X-Twilio-Signature": signature(key, URL + "A1B2", "sha256"),
    }

    Twilio().verify(webhook({"B": "2", "A": "1"}, headers=headers), SHARED)


@pytest.mark.parametrize(
    ("settings", "key", "digest"),
    [
        (None, "shared-new", "sha1"),
        (None, TOKEN, "sha256"),
        ("key=k,algorithm=HMAC_SHA256", "shared-new", "sha1"),
        ("key=k,algorithm=HMAC_SHA512", "shared-new", "sha512"),
        ("key=k,algorithm=hmac_sha256", "shared-new", "sha256"),
        ("key=k", TOKEN, "sha1"),
        ("", TOKEN, "sha1"),
    ],
)
def test_another_key_or_digest_than_the_settings_name_is_refused(
    settings: str | None, key: str, digest: str
) -> None:
    headers = {"X-Twilio-Signature": signature(key, URL + "A1", digest)}
    if settings is not None:
        headers[SETTINGS] = settings

    with pytest.raises(SignatureError):
        Twilio().verify(webhook({"A": "1"}, headers=headers), SHARED)


def test_an_empty_token_signs_nothing() -> None:
    request = webhook({"A": "1"}, headers={"X-Twilio-Signature": signature("", URL + "A1")})

    for keys in ([""], [], "", None):
        with pytest.raises(SignatureError):
            Twilio().verify(request, {"account_sid": ACCOUNT, "auth_tokens": keys})


@pytest.mark.parametrize(
    ("requested", "signed"),
    [
        ("https://h.example:8443/w", "https://h.example:8443/w"),
        ("https://h.example:8443/w", "https://h.example/w"),
        ("https://h.example/w", "https://h.example:443/w"),
        ("http://h.example/w?reference=a-1", "http://h.example:80/w?reference=a-1"),
        ("https://user:pass@h.example/w", "https://h.example/w"),
        ("https://[2001:db8::1]:8443/w", "https://[2001:db8::1]/w"),
        ("https://h.example?a=1", "https://h.example:443?a=1"),
    ],
)
def test_the_port_may_be_signed_or_not(requested: str, signed: str) -> None:
    headers = {"X-Twilio-Signature": signature(TOKEN, signed + "A1")}

    Twilio().verify(webhook({"A": "1"}, requested, headers=headers), SECRETS)


@pytest.mark.parametrize(
    ("body", "signed"),
    [
        (b"b=&a=1&a=1&a=0", "a0a1b"),
        (b"a=1&b", "a1b"),
        (b"a=%C3%A9+x%20", "aé x "),
        ("a=é".encode(), "aé"),
        (b"", ""),
    ],
)
def test_each_name_and_value_counts_once_in_order_blank_ones_too(body: bytes, signed: str) -> None:
    headers = {"X-Twilio-Signature": signature(TOKEN, URL + signed)}

    Twilio().verify(webhook(body, headers=headers), SECRETS)


def test_bytes_that_are_no_utf_8_are_signed_as_they_are() -> None:
    mac = hmac.digest(TOKEN.encode(), URL.encode() + b"a\xff", "sha1")
    headers = {"X-Twilio-Signature": base64.b64encode(mac).decode()}

    Twilio().verify(webhook(b"a=%FF", headers=headers), SECRETS)


def hashed(body: bytes) -> str:
    return f"{URL}?bodySHA256={hashlib.sha256(body).hexdigest()}"


@pytest.mark.parametrize(
    ("url", "content_type", "body", "valid"),
    [
        (hashed(b'{"a":1}'), "application/json", b'{"a":1}', True),
        (hashed(b'{"a":1}'), "application/json", b'{"a":2}', False),
        # A body that no hash covers, let in by a signature over the URL alone ...
        (URL, "application/json", b'{"a":1}', False),
        (URL, "", b"Body=x", False),
        # ... or by calling it a form.
        (hashed(b'{"a":1}'), FORM, b"", False),
        (URL, FORM, b"Body=x", False),
    ],
)
def test_a_body_that_is_no_form_is_covered_by_its_hash(
    url: str, content_type: str, body: bytes, valid: bool
) -> None:
    headers = {"X-Twilio-Signature": signature(TOKEN, url), "Content-Type": content_type}
    request = webhook(body, url, headers=headers)
    if valid:
        Twilio().verify(request, SECRETS)
    else:
        with pytest.raises(SignatureError):
            Twilio().verify(request, SECRETS)


# --- parse ----------------------------------------------------------------------------------

INBOUND = {
    "MessageSid": "SM11",
    "SmsSid": "SM11",
    "AccountSid": ACCOUNT,
    "From": THEIRS,
    "To": OURS,
    "Body": "Is it open?",
    "NumMedia": "0",
    "NumSegments": "1",
    "SmsStatus": "received",
    "FromCity": "",
}
MESSAGE = InboundMessage(
    provider="twilio",
    account=ACCOUNT,
    id="SM11",
    sender=THEIRS,
    recipient=OURS,
    text="Is it open?",
    received_at=NOW,
    segments=1,
    raw=INBOUND,
)


def without(*names: str) -> dict[str, str]:
    return {k: v for k, v in INBOUND.items() if k not in names}


PICTURES = {
    "NumMedia": "2",
    "MediaUrl0": "https://api.twilio.com/M/0",
    "MediaContentType0": "image/png",
    "MediaUrl1": "https://api.twilio.com/M/1",
}
MEDIA = (
    Media("https://api.twilio.com/M/0", "image/png"),
    Media("https://api.twilio.com/M/1", ""),
)


LONG = "a text of several words, long enough to come as base64 now and then"


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        pytest.param(INBOUND, MESSAGE, id="text"),
        pytest.param({**INBOUND, "Body": ""}, replace(MESSAGE, text=""), id="empty text"),
        pytest.param(
            {**without("Body"), **PICTURES}, replace(MESSAGE, text="", media=MEDIA), id="media"
        ),
        pytest.param(
            {**INBOUND, **PICTURES, "NumMedia": "many"}, replace(MESSAGE, media=MEDIA), id="count"
        ),
        pytest.param(
            {**INBOUND, "Body": " olá 👋\r\n"}, replace(MESSAGE, text=" olá 👋\r\n"), id="unicode"
        ),
        pytest.param({**INBOUND, "Body": "a\x00b"}, replace(MESSAGE, text="a\x00b"), id="NUL"),
        pytest.param(
            {**INBOUND, "OptOutType": "STOP"}, replace(MESSAGE, consent_hint="stop"), id="stop"
        ),
        pytest.param(
            {**INBOUND, "OptOutType": "START"}, replace(MESSAGE, consent_hint="start"), id="start"
        ),
        pytest.param(
            {**INBOUND, "OptOutType": "HELP"}, replace(MESSAGE, consent_hint="help"), id="help"
        ),
        pytest.param({**INBOUND, "OptOutType": "NEW"}, MESSAGE, id="a hint of tomorrow"),
        pytest.param(without("NumSegments"), replace(MESSAGE, segments=None), id="no segments"),
        pytest.param(
            {**INBOUND, "NumSegments": "9" * 5000}, replace(MESSAGE, segments=None), id="segments"
        ),
        pytest.param(without("From"), replace(MESSAGE, sender=""), id="no sender"),
        pytest.param({**INBOUND, "From": "ACME"}, replace(MESSAGE, sender="ACME"), id="name"),
        pytest.param(
            {**INBOUND, "From": f"whatsapp:{THEIRS}"},
            replace(MESSAGE, sender=f"whatsapp:{THEIRS}"),
            id="another channel",
        ),
        pytest.param(without("AccountSid"), replace(MESSAGE, account=""), id="no account"),
        pytest.param(
            {**INBOUND, "Body": base64.b64encode(LONG.encode()).decode()},
            replace(MESSAGE, text=LONG),
            id="base64, as long texts sometimes come",
        ),
        pytest.param(
            {**INBOUND, "MessageStatus": "received"}, MESSAGE, id="its status is received"
        ),
    ],
)
def test_a_text_is_read(form: dict[str, str], expected: InboundMessage) -> None:
    assert Twilio().parse(webhook(form)) == [replace(expected, raw=form)]


def test_a_text_may_come_by_get_and_the_body_is_not_read_then() -> None:
    request = webhook(b"Body=forged", f"{URL}?{urlencode(INBOUND)}", "GET")

    assert Twilio().parse(request) == [MESSAGE]


def test_of_a_repeated_field_the_first_value_counts_and_all_are_kept() -> None:
    form = [*INBOUND.items(), ("Body", "Another"), ("From", OURS)]

    raw = {**INBOUND, "Body": ["Is it open?", "Another"], "From": [THEIRS, OURS]}
    assert Twilio().parse(webhook(form)) == [replace(MESSAGE, raw=raw)]


def test_bytes_that_are_no_utf_8_do_not_lose_a_text() -> None:
    body = urlencode(without("Body")).encode() + b"&Body=caf%E9+%ED%A0%BD"
    (message,) = Twilio().parse(webhook(body))

    assert isinstance(message, InboundMessage)
    assert message.text.startswith("caf\ufffd \ufffd")


STATUS = {
    "MessageSid": "SM22",
    "AccountSid": ACCOUNT,
    "From": OURS,
    "To": THEIRS,
    "SmsStatus": "sent",
    "ApiVersion": "2010-04-01",
}
RECEIPT = DeliveryReceipt("twilio", "SM22", "a-b-1", "sent")


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("accepted", "queued"),
        ("scheduled", "queued"),
        ("queued", "queued"),
        ("sending", "queued"),
        ("sent", "sent"),
        ("delivered", "delivered"),
        ("read", "delivered"),
        ("undelivered", "undelivered"),
        ("failed", "failed"),
        ("canceled", "failed"),
        # What we have no word for is no receipt, and no error either.
        ("partially_delivered", None),
        ("teleported", None),
        ("", None),
    ],
)
def test_a_receipt_is_read(status: str, expected: Any) -> None:
    request = webhook({**STATUS, "MessageStatus": status}, f"{URL}?reference=a-b-1")

    events = Twilio().parse(request)

    assert events == ([replace(RECEIPT, status=expected)] if expected else [])


@pytest.mark.parametrize(
    ("query", "code", "expected"),
    [
        ("?reference=a-b-1", "30007", replace(RECEIPT, error="30007")),
        ("?other=1&reference=a-b-1#part", "", RECEIPT),
        ("", "", replace(RECEIPT, reference="")),
        ("?reference=", "", replace(RECEIPT, reference="")),
    ],
)
def test_a_receipt_has_our_reference_and_their_code(
    query: str, code: str, expected: DeliveryReceipt
) -> None:
    form = {**STATUS, "MessageStatus": "sent"} | ({"ErrorCode": code} if code else {})

    assert Twilio().parse(webhook(form, URL + query)) == [expected]


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(webhook(without("MessageSid")), id="no id"),
        pytest.param(webhook({**INBOUND, "MessageSid": ""}), id="blank id"),
        pytest.param(webhook({"MessageStatus": "sent"}), id="a status of nothing"),
        pytest.param(webhook(without("Body", "NumMedia")), id="neither text nor status"),
        pytest.param(webhook({"CallSid": "CA1", "From": THEIRS}), id="a telephone call"),
        pytest.param(webhook(b'{"MessageSid":"SM1","Body":"x"}'), id="JSON called a form"),
        pytest.param(webhook(INBOUND, headers={"Content-Type": "text/plain"}), id="not a form"),
    ],
)
def test_what_is_neither_text_nor_receipt_is_a_payload_error(request_: WebhookRequest) -> None:
    with pytest.raises(PayloadError) as raised:
        Twilio().parse(request_)

    assert THEIRS not in repr(raised.value)


def test_the_acknowledgement_is_an_empty_answer_in_twiml() -> None:
    response = Twilio().acknowledge()

    assert response.headers == {"Content-Type": "text/xml"}
    assert response.body == '<?xml version="1.0" encoding="UTF-8"?><Response/>'


# --- send -----------------------------------------------------------------------------------

STARTED = 1_790_000_000.0  # Mon, 21 Sep 2026 14:13:20 GMT
PART = Part(
    reference="r-1",
    sender=OURS,
    recipient=THEIRS,
    text=TEXT,
    callback_url=f"{URL}?reference=r-1",
    started_at=STARTED,
    known_ids=frozenset({"SM-known"}),
)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (21610, "opted_out"),
        (21211, "invalid_number"),
        (21614, "invalid_number"),
        (30006, "landline"),
        (30007, "filtered"),
        (30034, "unregistered"),
        (21408, "not_permitted"),
        (21608, "not_permitted"),
        (21617, "too_long"),
        (21602, "invalid_request"),
        (21611, "throttled"),
        (30001, "throttled"),
        (20429, "throttled"),
        (12345, "rejected"),
    ],
)
def test_a_code_has_a_reason(
    code: int, reason: str, api_answering: Callable[..., Connected]
) -> None:
    connected = api_answering(httpx.Response(400, json={"code": code, "message": "..."}))

    with pytest.raises(SendError, match=f"^{reason}$"):
        Twilio().send(PART, SECRETS, connected.http)


def test_a_full_queue_says_when_to_come_back_if_it_does(
    api_answering: Callable[..., Connected],
) -> None:
    answer = httpx.Response(400, json={"code": 21611}, headers={"Retry-After": "60"})

    with pytest.raises(Throttled) as raised:
        Twilio().send(PART, SECRETS, api_answering(answer).http)

    assert raised.value.retry_after == 60.0


@pytest.mark.parametrize(
    ("validity", "said"),
    [(None, None), (900, "900"), (0, "1"), (-5, "1"), (36_000, "36000"), (36_001, "36000")],
)
def test_how_long_it_is_wanted_is_said_within_twilios_bounds(
    validity: int | None, said: str | None, api_answering: Callable[..., Connected]
) -> None:
    connected = api_answering(httpx.Response(201, json={"sid": "SM1"}))
    Twilio().send(replace(PART, validity=validity), SECRETS, connected.http)
    form = dict(parse_qsl(connected.requests[0].content.decode()))
    assert form.get("ValidityPeriod") == said


# --- find_sent ------------------------------------------------------------------------------


def listed(sid: Any = "SM-1", **changes: Any) -> dict[str, Any]:
    return {
        "sid": sid,
        "body": TEXT,
        "from": OURS,
        "to": THEIRS,
        "direction": "outbound-api",
        "date_created": "Mon, 21 Sep 2026 14:13:22 +0000",
        # As it is while the message waits in Twilio's queue.
        "date_sent": None,
        "status": "queued",
    } | changes


def page(*messages: Any, next_page_uri: Any = None) -> httpx.Response:
    return httpx.Response(
        200, json={"messages": list(messages), "next_page_uri": next_page_uri, "page": 0}
    )


BEFORE = "Mon, 21 Sep 2026 14:13:10 +0000"
A_MOMENT_BEFORE = "Mon, 21 Sep 2026 14:13:17 +0000"


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        pytest.param([], NotSent(), id="none"),
        pytest.param([listed()], Sent("SM-1"), id="this one"),
        pytest.param(
            [listed(date_created=A_MOMENT_BEFORE)], Sent("SM-1"), id="their clock is behind"
        ),
        pytest.param([listed(status="failed")], Sent("SM-1"), id="taken, and failed later"),
        pytest.param([listed(date_created=BEFORE)], NotSent(), id="before the attempt"),
        pytest.param([listed("SM-known")], NotSent(), id="accounted for"),
        pytest.param([listed("SM-known"), listed("SM-2")], Sent("SM-2"), id="the other one"),
        pytest.param([listed(direction="inbound")], NotSent(), id="theirs"),
        pytest.param([listed(direction="outbound-reply")], NotSent(), id="not by us"),
        pytest.param([listed(to="+14155550100")], NotSent(), id="to somebody else"),
        pytest.param([listed(**{"from": "+14155550100"})], NotSent(), id="from another number"),
        pytest.param([listed("SM-1"), listed("SM-2")], CannotTell(), id="two of them"),
        pytest.param(
            [listed(body=f"Sent from your trial account - {TEXT}")], CannotTell(), id="changed"
        ),
        pytest.param([listed(body="")], CannotTell(), id="redacted"),
        pytest.param([listed(), listed("SM-2", body="Hi")], Sent("SM-1"), id="and another text"),
    ],
)
def test_a_lost_send_is_looked_for(
    messages: list[dict[str, Any]], expected: object, api_answering: Callable[..., Connected]
) -> None:
    connected = api_answering(page(*messages))

    assert Twilio().find_sent(PART, SECRETS, connected.http) == expected


def test_the_question_names_both_numbers_and_no_date_of_sending(
    api_answering: Callable[..., Connected],
) -> None:
    connected = api_answering(page())
    Twilio("http://127.0.0.1:8080/provider/twilio").find_sent(PART, SECRETS, connected.http)

    (request,) = connected.requests
    assert request.method == "GET"
    assert request.url.path == f"/provider/twilio/2010-04-01/Accounts/{ACCOUNT}/Messages.json"
    assert dict(request.url.params) == {"To": THEIRS, "From": OURS, "PageSize": "1000"}
    user = base64.b64encode(f"{ACCOUNT}:{TOKEN}".encode()).decode()
    assert request.headers["Authorization"] == f"Basic {user}"


NEXT = f"/2010-04-01/Accounts/{ACCOUNT}/Messages.json?Page=1&PageToken=PASM1"


def test_all_pages_are_read_before_it_is_said(api_answering: Callable[..., Connected]) -> None:
    connected = api_answering(page(listed(), next_page_uri=NEXT), page(listed("SM-2")))

    assert Twilio().find_sent(PART, SECRETS, connected.http) == CannotTell()
    assert str(connected.requests[1].url) == f"https://api.twilio.com{NEXT}"


def test_a_list_without_end_cannot_tell(api_answering: Callable[..., Connected]) -> None:
    connected = api_answering(*[page(next_page_uri=NEXT) for _ in range(9)])

    assert Twilio().find_sent(PART, SECRETS, connected.http) == CannotTell()
    assert len(connected.requests) == 3


def test_without_the_start_of_the_attempt_nothing_is_asked(
    api_answering: Callable[..., Connected],
) -> None:
    part = replace(PART, started_at=None)

    assert Twilio().find_sent(part, SECRETS, api_answering().http) == CannotTell()


@pytest.mark.parametrize(
    ("answer", "error", "reason"),
    [
        (httpx.ConnectError("no"), Unavailable, "no_connection"),
        (httpx.ReadTimeout(f"no {THEIRS}"), Unavailable, "no_connection"),
        (httpx.Response(401), Unavailable, "credentials"),
        (httpx.Response(429, headers={"Retry-After": "3"}), Throttled, "throttled"),
        (httpx.Response(404), OutcomeUnknown, "unexpected_answer"),
        (httpx.Response(503), OutcomeUnknown, "unexpected_answer"),
        (httpx.Response(200, text="<html>"), OutcomeUnknown, "unreadable_answer"),
        (httpx.Response(200, json={"messages": None}), OutcomeUnknown, "unreadable_answer"),
        (page("x"), OutcomeUnknown, "unreadable_answer"),
        (page(listed(sid=None)), OutcomeUnknown, "unreadable_answer"),
        (page(listed(date_created=None)), OutcomeUnknown, "unreadable_answer"),
        (page(listed(date_created="now")), OutcomeUnknown, "unreadable_answer"),
        (
            page(listed(date_created="Mon, 21 Sep 2026 14:13:22 +99999999999999999999")),
            OutcomeUnknown,
            "unreadable_answer",
        ),
        (page(next_page_uri=7), OutcomeUnknown, "unreadable_answer"),
        # Credentials go along: nobody else may get them.
        (page(next_page_uri="@elsewhere.example.org/"), OutcomeUnknown, "unreadable_answer"),
        (page(next_page_uri=f"{NEXT}\n"), Unavailable, "no_connection"),
        (
            httpx.Response(
                200, text=json.dumps({"messages": [], "next_page_uri": f"{NEXT}\ud800"})
            ),
            Unavailable,
            "no_connection",
        ),
    ],
)
def test_a_question_that_fails_is_no_answer(
    answer: Answer,
    error: type[SendError],
    reason: str,
    api_answering: Callable[..., Connected],
) -> None:
    connected = api_answering(answer)

    with pytest.raises(SendError) as raised:
        Twilio().find_sent(PART, SECRETS, connected.http)

    assert type(raised.value) is error
    assert raised.value.reason == reason
    assert raised.value.__cause__ is None
    assert len(connected.requests) == 1


# --- the texts that it received ---------------------------------------------------------------

ASKED = 1_790_000_000.0  # 14:13:20
THEN = "Mon, 21 Sep 2026 14:13:22 +0000"
MARGIN_BEFORE = "Sun, 20 Sep 2026 14:13:25 +0000"
DAY_BEFORE = "Sun, 20 Sep 2026 14:13:10 +0000"


def received(sid: Any = "SM-1", **changes: Any) -> dict[str, Any]:
    return {
        "sid": sid,
        "account_sid": ACCOUNT,
        "body": TEXT,
        "from": THEIRS,
        "to": OURS,
        "direction": "inbound",
        "date_created": THEN,
        "date_sent": None,
        "num_media": "0",
        "num_segments": "1",
        "status": "received",
    } | changes


def texts(connected: Connected) -> list[InboundMessage]:
    return list(Twilio().texts(OURS, ASKED, SECRETS, connected.http))


def test_a_listed_text_is_what_its_webhook_would_have_said(
    api_answering: Callable[..., Connected],
) -> None:
    one = received()
    connected = api_answering(page(one))
    (found,) = texts(connected)
    form = {
        "MessageSid": "SM-1",
        "AccountSid": ACCOUNT,
        "Body": TEXT,
        "From": THEIRS,
        "To": OURS,
        "NumMedia": "0",
        "NumSegments": "1",
    }
    (said,) = Twilio().parse(webhook(form))
    assert isinstance(said, InboundMessage)
    assert found == replace(said, received_at=ASKED + 2, sent_at=ASKED + 2, raw=one)
    assert dict(connected.requests[0].url.params) == {"To": OURS, "PageSize": "1000"}


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, True),
        ({"direction": "outbound-api"}, False),
        ({"date_created": "Mon, 21 Sep 2026 14:13:20 +0000"}, True),
        ({"date_created": "Mon, 21 Sep 2026 14:13:19 +0000"}, False),
        # Its webhook never came: it may have no such date.
        ({"date_sent": None}, True),
        ({"body": None, "num_segments": None}, True),
        ({"status": "receiving"}, True),
    ],
)
def test_which_texts_are_listed(
    changes: dict[str, Any], kept: bool, api_answering: Callable[..., Connected]
) -> None:
    assert len(texts(api_answering(page(received(**changes))))) == kept


@pytest.mark.parametrize(
    ("dates", "pages"),
    [
        # One page that is older as a whole, by a day: the list has its own order.
        ([[THEN], [MARGIN_BEFORE], [THEN], [DAY_BEFORE, DAY_BEFORE], [THEN]], 4),
        ([[THEN], [DAY_BEFORE, THEN], [], [DAY_BEFORE], [THEN]], 4),
        ([[THEN]] * 9, 9),
    ],
)
def test_pages_are_read_until_one_is_older(
    dates: list[list[str]], pages: int, api_answering: Callable[..., Connected]
) -> None:
    connected = api_answering(
        *(
            page(
                *(received(date_created=date) for date in some),
                next_page_uri=NEXT if number < len(dates) else None,
            )
            for number, some in enumerate(dates, start=1)
        )
    )
    texts(connected)
    assert len(connected.requests) == pages


def test_attachments_are_asked_for_where_there_are_some(
    api_answering: Callable[..., Connected],
) -> None:
    media = [{"sid": "ME-1", "content_type": "image/png"}, {"sid": "ME-2"}]
    connected = api_answering(
        page(received(num_media="0")),
        page(received("MM-1", num_media="2")),
        httpx.Response(200, json={"media_list": media}),
    )
    (without,), (message,) = texts(connected), texts(connected)
    assert Twilio().with_media(without, SECRETS, connected.http) == without
    found = Twilio().with_media(message, SECRETS, connected.http)
    base = f"https://api.twilio.com/2010-04-01/Accounts/{ACCOUNT}/Messages/MM-1/Media"
    assert found.media == (Media(f"{base}/ME-1", "image/png"), Media(f"{base}/ME-2", ""))
    assert found.raw["media_list"] == media
    assert str(connected.requests[2].url) == f"{base}.json"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (httpx.Response(401), "credentials"),
        (httpx.Response(503), "unexpected_answer"),
        (page(received(body=7)), "unreadable_answer"),
        (page(received(**{"from": ["+1"]})), "unreadable_answer"),
        (page(received(date_created=None)), "unreadable_answer"),
    ],
)
def test_a_list_that_cannot_be_read_is_told(
    answer: Answer, reason: str, api_answering: Callable[..., Connected]
) -> None:
    with pytest.raises(SendError) as raised:
        texts(api_answering(answer))
    assert raised.value.reason == reason


def test_attachments_that_cannot_be_read_are_told(api_answering: Callable[..., Connected]) -> None:
    connected = api_answering(page(received(num_media="1")), httpx.Response(200, json={}))
    (message,) = texts(connected)
    with pytest.raises(OutcomeUnknown):
        Twilio().with_media(message, SECRETS, connected.http)


@pytest.fixture
def east_of_greenwich(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as environment:
        environment.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


def test_a_date_without_a_zone_is_in_gmt(
    api_answering: Callable[..., Connected],
    east_of_greenwich: None,
) -> None:
    message = listed(date_created="Mon, 21 Sep 2026 14:13:22 -0000")

    found = Twilio().find_sent(PART, SECRETS, api_answering(page(message)).http)

    assert found == Sent("SM-1")
