"""What every provider in `chalicelib.providers.NAMES` must do. A new one adds a `Specimen` and a
file of vectors; without them this file does not even load, so that none can skip it."""

from __future__ import annotations

import json
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chalicelib.messages import (
    DeliveryReceipt,
    Headers,
    InboundMessage,
    Part,
    Response,
    WebhookRequest,
)
from chalicelib.providers import CARRIERS, NAMES, provider_named
from chalicelib.providers.base import (
    REASONS,
    OutcomeUnknown,
    PayloadError,
    Provider,
    Rejected,
    SendError,
    Sent,
    SignatureError,
    Throttled,
    Unavailable,
    UnknownProvider,
)

from .conftest import Answer, Connected

ROOT = Path(__file__).parents[2]

# Nothing of these may be seen in an error.
OURS, THEIRS, TEXT = "+14155550199", "+14155550142", "Nobody else may read this"
KEY = "c0ffee00c0ffee00c0ffee00c0ffee00"
REFERENCE = f"{'a' * 24}-{'b' * 24}-1"
CALLBACK = f"https://hooks.example.org/dev/webhooks/any/signed?reference={REFERENCE}"
PRIVATE = (OURS, THEIRS, TEXT, KEY, REFERENCE)

PART = Part(
    reference=REFERENCE,
    sender=OURS,
    recipient=THEIRS,
    text=TEXT,
    callback_url=CALLBACK,
    media=("https://media.example.org/1.png", "https://media.example.org/2.png"),
    started_at=1_790_000_000.0,
)
ACCOUNT = "AC00000000000000000000000000000007"


@dataclass(frozen=True)
class Specimen:
    """One provider, as the contract needs to know it."""

    # The provider's secrets, its webhooks being signed with one of these keys.
    secrets: Callable[[list[str]], dict[str, Any]]
    # A key of the right form that signed nothing.
    stranger: str
    signature_headers: tuple[str, ...]
    content_type: str


@dataclass(frozen=True)
class Carrier(Specimen):
    """One that reaches people, too."""

    # What the provider answers when it takes a part, and the id in it.
    accepted: Callable[[], httpx.Response]
    id: str
    # A refusal with the provider's code in it.
    refused: Callable[[int, str], httpx.Response]
    # By the provider's code in an answer of 400.
    codes: Mapping[str, type[SendError]]
    # The whole request that PART makes.
    url: str
    headers: Mapping[str, str]
    body: bytes


SPECIMENS: dict[str, Specimen] = {
    "sandbox": Specimen(
        secrets=lambda keys: {"keys": keys},
        stranger="00000000000000000000000000000000",
        signature_headers=("Sandbox-Signature",),
        content_type="application/json",
    ),
    "twilio": Carrier(
        secrets=lambda keys: {"account_sid": ACCOUNT, "auth_tokens": keys},
        stranger="00000000000000000000000000000000",
        signature_headers=("X-Twilio-Signature",),
        content_type="application/x-www-form-urlencoded",
        accepted=lambda: httpx.Response(201, json={"sid": "SM77", "status": "queued"}),
        id="SM77",
        refused=lambda status, code: httpx.Response(
            status, json={"code": int(code), "message": f"{THEIRS}: {TEXT}", "status": status}
        ),
        codes={
            "21610": Rejected,
            "21211": Rejected,
            "21617": Rejected,
            "99999": Rejected,
            "20429": Throttled,
            "21611": Throttled,
            "30001": Throttled,
        },
        url=f"https://api.twilio.com/2010-04-01/Accounts/{ACCOUNT}/Messages.json",
        headers={
            "Authorization": "Basic QUMwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwNzpjMGZmZWUwMGMwZm"
            "ZlZTAwYzBmZmVlMDBjMGZmZWUwMA==",
            "Content-Type": "application/x-www-form-urlencoded",
        },
        body=b"To=%2B14155550142&From=%2B14155550199&Body=Nobody+else+may+read+this"
        b"&MediaUrl=https%3A%2F%2Fmedia.example.org%2F1.png"
        b"&MediaUrl=https%3A%2F%2Fmedia.example.org%2F2.png"
        b"&StatusCallback=https%3A%2F%2Fhooks.example.org%2Fdev%2Fwebhooks%2Fany%2Fsigned"
        b"%3Freference%3Daaaaaaaaaaaaaaaaaaaaaaaa-bbbbbbbbbbbbbbbbbbbbbbbb-1"
        b"%23rc%3D3%26rp%3D5xx%2Cct%2Crt",
    ),
    "telnyx": Carrier(
        secrets=lambda keys: {"api_key": KEY, "public_keys": keys},
        stranger="11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=",
        signature_headers=("telnyx-signature-ed25519", "telnyx-timestamp"),
        content_type="application/json",
        accepted=lambda: httpx.Response(200, json={"data": {"id": "40a1-77", "parts": 1}}),
        id="40a1-77",
        refused=lambda status, code: httpx.Response(
            status, json={"errors": [{"code": code, "title": TEXT, "detail": f"to {THEIRS}"}]}
        ),
        codes={
            "40300": Rejected,
            "40310": Rejected,
            "40302": Rejected,
            "99999": Rejected,
            "10011": Throttled,
            "40318": Throttled,
        },
        url="https://api.telnyx.com/v2/messages",
        headers={
            "Authorization": f"Bearer {KEY}",
            "Content-Type": "application/json",
            "Idempotency-Key": REFERENCE,
        },
        body=b'{"from":"+14155550199","media_urls":["https://media.example.org/1.png",'
        b'"https://media.example.org/2.png"],"text":"Nobody else may read this",'
        b'"to":"+14155550142","use_profile_webhooks":false,'
        b'"webhook_url":"https://hooks.example.org/dev/webhooks/any/signed'
        b'?reference=aaaaaaaaaaaaaaaaaaaaaaaa-bbbbbbbbbbbbbbbbbbbbbbbb-1"}',
    ),
}
VECTORS: dict[str, list[dict[str, Any]]] = {
    name: json.loads((ROOT / "tests" / "vectors" / f"{name}.json").read_text("utf-8"))
    for name in NAMES
}
every_provider = pytest.mark.parametrize("name", NAMES)
every_carrier = pytest.mark.parametrize("name", CARRIERS)


def carrier(name: str) -> Carrier:
    found = SPECIMENS[name]
    assert isinstance(found, Carrier)
    return found


def test_every_provider_has_its_specimen_and_vectors_of_both_kinds() -> None:
    assert set(SPECIMENS) == set(NAMES)
    for name in NAMES:
        assert {vector["valid"] for vector in VECTORS[name]} == {True, False}


def test_an_unknown_provider_is_refused() -> None:
    with pytest.raises(UnknownProvider):
        provider_named("carrier-pigeon")


@every_provider
def test_a_provider_says_what_it_is(name: str) -> None:
    provider = provider_named(name, "http://127.0.0.1:8080/provider/any/")

    assert provider.name == name
    assert provider.api_url == "http://127.0.0.1:8080/provider/any"
    assert provider_named(name).api_url == provider.default_api_url
    assert provider.default_api_url.startswith("https://") is (name in CARRIERS)
    assert provider.max_length > 160
    assert all(isinstance(x, bool) for x in (provider.signed, provider.idempotent))
    assert isinstance(provider.answers_stop, bool)


@every_provider
def test_the_receiver_pays_for_no_http_client(name: str) -> None:
    code = (
        "import sys\n"
        "before = set(sys.modules)\n"
        f"import chalicelib.providers.{name}\n"
        "new = {m.partition('.')[0] for m in set(sys.modules) - before}\n"
        "print(*sorted(new - set(sys.stdlib_module_names)))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )

    # The last two are the bindings that cryptography brings.
    assert set(run.stdout.split()) <= {"chalicelib", "cryptography", "_cffi_backend", "_openssl"}


# --- verify ---------------------------------------------------------------------------------


def request_of(vector: Mapping[str, Any], headers: Mapping[str, Any] | None = None) -> Any:
    return WebhookRequest(
        method=vector["method"],
        url=vector["url"],
        headers=Headers(vector["headers"] if headers is None else headers),
        body=vector["body"].encode(),
        received_at=float(vector.get("now", 0)),
    )


def key_of(vector: Mapping[str, Any]) -> str:
    return str(vector["secret"] if "secret" in vector else vector["public_key"])


def vectors(valid: bool) -> list[Any]:
    return [
        pytest.param(name, vector, id=f"{name}-{vector['name']}")
        for name in NAMES
        for vector in VECTORS[name]
        if vector["valid"] is valid
    ]


def refuses(name: str, request: WebhookRequest, secrets: Mapping[str, Any]) -> None:
    with pytest.raises(SignatureError):
        provider_named(name).verify(request, secrets)


@pytest.mark.parametrize(("name", "vector"), vectors(valid=True))
def test_what_the_provider_signed_is_let_in(name: str, vector: dict[str, Any]) -> None:
    secrets = SPECIMENS[name].secrets([key_of(vector)])

    provider_named(name).verify(request_of(vector), secrets)


@pytest.mark.parametrize(("name", "vector"), vectors(valid=False))
def test_what_it_did_not_sign_like_this_is_refused(name: str, vector: dict[str, Any]) -> None:
    refuses(name, request_of(vector), SPECIMENS[name].secrets([key_of(vector)]))


@pytest.mark.parametrize(("name", "vector"), vectors(valid=True))
def test_while_a_key_rotates_the_old_and_the_new_one_are_good(
    name: str, vector: dict[str, Any]
) -> None:
    provider, specimen = provider_named(name), SPECIMENS[name]
    right, request = key_of(vector), request_of(vector)

    provider.verify(request, specimen.secrets([specimen.stranger, right]))
    provider.verify(request, specimen.secrets([right, specimen.stranger]))
    refuses(name, request, specimen.secrets([specimen.stranger]))


@pytest.mark.parametrize(("name", "vector"), vectors(valid=True))
def test_without_its_signature_nothing_is_let_in(name: str, vector: dict[str, Any]) -> None:
    specimen = SPECIMENS[name]
    secrets = specimen.secrets([key_of(vector)])
    for header in specimen.signature_headers:
        others = {k: v for k, v in vector["headers"].items() if k.lower() != header.lower()}
        value = request_of(vector).headers.get(header)

        refuses(name, request_of(vector, others), secrets)
        refuses(name, request_of(vector, {**others, header: ""}), secrets)
        refuses(name, request_of(vector, {**others, header: [value, value]}), secrets)


@pytest.mark.parametrize(
    "keys", [[], [""], [None], [7], ["é"], "text", None, {}], ids=lambda keys: repr(keys)
)
@every_provider
def test_without_a_usable_key_nothing_is_let_in(name: str, keys: Any) -> None:
    vector = next(v for v in VECTORS[name] if v["valid"])

    refuses(name, request_of(vector), SPECIMENS[name].secrets(keys))


@every_provider
def test_without_any_secret_nothing_is_let_in(name: str) -> None:
    refuses(name, request_of(next(v for v in VECTORS[name] if v["valid"])), {})


@every_provider
def test_a_broken_key_does_not_stand_in_the_way_of_a_good_one(name: str) -> None:
    vector = next(v for v in VECTORS[name] if v["valid"])
    keys: list[Any] = ["", None, "!!!", "AAAA", key_of(vector)]

    provider_named(name).verify(request_of(vector), SPECIMENS[name].secrets(keys))


# Lone surrogates included: a header can hold whatever a client sent.
anything = st.text(st.characters(), max_size=40)
header_names = st.sampled_from(
    sorted(
        {h for s in SPECIMENS.values() for h in s.signature_headers}
        | {"Content-Type", "X-Twilio-Webhooks-Signature-Settings"}
    )
)
header_values = anything | st.sampled_from(
    [
        "application/json",
        "application/x-www-form-urlencoded",
        "key=k,algorithm=HMAC_SHA256",
        "1790000000",
        "A" * 86 + "==",
        "A" * 27 + "=",
    ]
)
requests = st.builds(
    WebhookRequest,
    method=st.sampled_from(["GET", "POST"]) | anything,
    url=st.sampled_from(["https://h.example/w", "http://h:1/?bodySHA256=0", "https://[::1", "?"])
    | anything,
    headers=st.dictionaries(header_names, header_values | st.lists(header_values)).map(Headers),
    body=st.binary(max_size=200),
    received_at=st.sampled_from([0.0, 1_790_000_000.0]),
)


@every_provider
@given(request=requests)
@settings(deadline=None)
def test_nothing_that_was_made_up_verifies_or_breaks(name: str, request: WebhookRequest) -> None:
    specimen = SPECIMENS[name]

    refuses(name, request, specimen.secrets([specimen.stranger]))


# --- parse, acknowledge ---------------------------------------------------------------------


@every_provider
@given(request=requests)
@settings(deadline=None)
def test_what_cannot_be_read_is_a_payload_error(name: str, request: WebhookRequest) -> None:
    with suppress(PayloadError):
        provider_named(name).parse(request)


@every_provider
def test_texts_and_receipts_are_read_and_what_is_neither_is_refused(name: str) -> None:
    provider = provider_named(name)
    events: list[InboundMessage | DeliveryReceipt] = []
    for vector in VECTORS[name]:
        # Some vectors are of telephone calls.
        with suppress(PayloadError):
            events += provider.parse(request_of(vector))

    assert {type(event) for event in events} == {InboundMessage, DeliveryReceipt}
    assert all(event.provider == name and event.id for event in events)


@pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"null", b"[]", b"{", b"[" * 100_000])
@every_provider
def test_a_body_that_says_nothing_is_a_payload_error(name: str, body: bytes) -> None:
    headers = Headers({"Content-Type": SPECIMENS[name].content_type})

    with pytest.raises(PayloadError):
        provider_named(name).parse(WebhookRequest("POST", CALLBACK, headers, body, 0.0))


@every_provider
def test_an_acknowledgement_is_a_success_with_a_content_type(name: str) -> None:
    response = provider_named(name).acknowledge()

    assert isinstance(response, Response)
    assert response.status == 200
    assert isinstance(response.body, str)
    assert set(response.headers) == {"Content-Type"}


# --- send -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """An answer, and the error that it must become."""

    answer: Callable[[], Answer]
    error: type[SendError]
    reason: str
    code: str = ""
    retry_after: float | None = None


def broken(error: type[Exception]) -> Callable[[], Exception]:
    # The text of a library's error may hold what was sent.
    return lambda: error(f"{THEIRS} {TEXT} {KEY}")


def answers(status: int, body: str = "", **headers: str) -> Callable[[], httpx.Response]:
    return lambda: httpx.Response(status, headers=headers, text=body)


LEAK = f"<html>{THEIRS} {TEXT} {KEY}</html>"
COMMON_CASES = {
    "no connection": Case(broken(httpx.ConnectError), Unavailable, "no_connection"),
    "connect time-out": Case(broken(httpx.ConnectTimeout), Unavailable, "no_connection"),
    "pool time-out": Case(broken(httpx.PoolTimeout), Unavailable, "no_connection"),
    "read time-out": Case(broken(httpx.ReadTimeout), OutcomeUnknown, "read_timeout"),
    "write time-out": Case(broken(httpx.WriteTimeout), OutcomeUnknown, "write_timeout"),
    "read error": Case(broken(httpx.ReadError), OutcomeUnknown, "read_error"),
    "write error": Case(broken(httpx.WriteError), OutcomeUnknown, "write_error"),
    "cut off": Case(broken(httpx.RemoteProtocolError), OutcomeUnknown, "remote_protocol_error"),
    "429": Case(answers(429, LEAK), Throttled, "throttled"),
    "429, 7 s": Case(
        answers(429, LEAK, **{"Retry-After": "7"}), Throttled, "throttled", retry_after=7.0
    ),
    "429, at once": Case(
        answers(429, LEAK, **{"Retry-After": "0"}), Throttled, "throttled", retry_after=1.0
    ),
    "429, a date": Case(
        answers(429, LEAK, **{"Retry-After": "Fri, 20 Nov 2026 10:00:00 GMT"}),
        Throttled,
        "throttled",
    ),
    "401": Case(answers(401, LEAK), Unavailable, "credentials", "401"),
    "403": Case(answers(403, LEAK), Unavailable, "credentials", "403"),
    "a secret that is no header": Case(
        broken(httpx.LocalProtocolError), OutcomeUnknown, "local_protocol_error"
    ),
    "500": Case(answers(500, LEAK), OutcomeUnknown, "server_error", "500"),
    "503": Case(answers(503, LEAK), OutcomeUnknown, "server_error", "503"),
    "302": Case(
        answers(302, LEAK, Location="https://elsewhere.example.org/"),
        OutcomeUnknown,
        "unexpected_answer",
        "302",
    ),
    "400 without a code": Case(answers(400, LEAK), Rejected, "rejected", "400"),
    "404": Case(answers(404, LEAK), Rejected, "rejected", "404"),
    "408": Case(answers(408, LEAK), OutcomeUnknown, "unexpected_answer", "408"),
    **{
        f"200 {body[:20]}": Case(answers(200, body), OutcomeUnknown, "unreadable_answer", "200")
        for body in (
            "",
            LEAK,
            "[]",
            "null",
            "{}",
            '{"sid":7,"data":7}',
            '{"sid":"","data":{"id":""}}',
            '{"sid":null,"data":{"id":null}}',
            "[" * 100_000,
        )
    },
    # A code that is no code must not be passed on: who knows what is in it.
    "400, strange codes": Case(
        answers(400, json.dumps({"code": THEIRS, "errors": [{"code": THEIRS}]})),
        Rejected,
        "rejected",
        "400",
    ),
    "400, strange errors": Case(
        answers(400, json.dumps({"code": {"to": THEIRS}, "errors": [THEIRS]})),
        Rejected,
        "rejected",
        "400",
    ),
}
common_cases = pytest.mark.parametrize("case", COMMON_CASES.values(), ids=list(COMMON_CASES))


def good_secrets(name: str) -> dict[str, Any]:
    return carrier(name).secrets([KEY])


def says_nothing_private(error: SendError) -> bool:
    shown = f"{error!r} {vars(error)} {''.join(traceback.format_exception(error))}"
    return not any(private in shown for private in PRIVATE)


@every_carrier
def test_a_part_is_handed_over_with_exactly_this_request(
    name: str, api_answering: Callable[..., Connected]
) -> None:
    specimen = carrier(name)
    connected = api_answering(specimen.accepted())

    sent = provider_named(name).send(PART, good_secrets(name), connected.http)

    assert sent == Sent(specimen.id)
    (request,) = connected.requests
    assert (request.method, str(request.url)) == ("POST", specimen.url)
    assert {k: request.headers[k] for k in specimen.headers} == specimen.headers
    assert request.content == specimen.body


@every_carrier
def test_the_local_run_is_spoken_to_where_it_is(
    name: str, api_answering: Callable[..., Connected]
) -> None:
    base = f"http://127.0.0.1:8080/provider/{name}"
    connected = api_answering(carrier(name).accepted())

    provider_named(name, base).send(PART, good_secrets(name), connected.http)

    path = carrier(name).url.removeprefix(provider_named(name).api_url)
    assert str(connected.requests[0].url) == base + path


@every_carrier
def test_the_same_part_makes_the_same_request(
    name: str, api_answering: Callable[..., Connected]
) -> None:
    specimen = carrier(name)
    connected = api_answering(specimen.accepted(), specimen.accepted())
    provider = provider_named(name)
    for part in (PART, replace(PART, started_at=None, known_ids=frozenset({"SM1"}))):
        provider.send(part, good_secrets(name), connected.http)

    first, second = connected.requests
    assert first.content == second.content
    assert first.headers == second.headers


@every_carrier
def test_a_request_that_was_kept_is_made_again_byte_for_byte(
    name: str, api_answering: Callable[..., Connected]
) -> None:
    specimen = carrier(name)
    connected = api_answering(specimen.accepted())
    provider = provider_named(name)
    kept = provider.request(PART)
    # Only where a repeated request is known as one do its bytes matter.
    assert (kept != "") is provider.idempotent
    assert kept.isascii()

    later = replace(PART, request=kept, text="Other words", validity=7, media=())
    provider.send(later, good_secrets(name), connected.http)
    assert (connected.requests[0].content == specimen.body) is provider.idempotent


@common_cases
@every_carrier
def test_every_answer_ends_as_what_it_means_for_sending_again(
    name: str, case: Case, api_answering: Callable[..., Connected]
) -> None:
    connected = api_answering(case.answer())

    with pytest.raises(SendError) as raised:
        provider_named(name).send(PART, good_secrets(name), connected.http)

    error = raised.value
    assert type(error) is case.error
    assert (error.reason, error.code) == (case.reason, case.code)
    assert getattr(error, "retry_after", None) == case.retry_after
    assert says_nothing_private(error)
    assert len(connected.requests) == 1


@pytest.mark.parametrize(
    ("name", "code", "error"),
    [(name, code, error) for name in CARRIERS for code, error in carrier(name).codes.items()],
)
def test_a_refusal_is_told_in_our_words(
    name: str, code: str, error: type[SendError], api_answering: Callable[..., Connected]
) -> None:
    connected = api_answering(carrier(name).refused(400, code))

    with pytest.raises(error) as raised:
        provider_named(name).send(PART, good_secrets(name), connected.http)

    assert type(raised.value) is error
    assert raised.value.code == code
    assert raised.value.reason in REASONS | {"throttled"}
    assert says_nothing_private(raised.value)


@pytest.mark.parametrize(
    "secrets",
    [
        {},
        {"account_sid": ACCOUNT, "auth_tokens": [], "api_key": ""},
        {"account_sid": 7, "auth_tokens": [KEY], "api_key": 7},
        {"account_sid": ACCOUNT, "auth_tokens": KEY, "api_key": None},
        # Pasted with more than themselves: no request can carry them, so none was made.
        {"account_sid": f"{ACCOUNT}\n", "auth_tokens": [KEY], "api_key": f"{KEY}\n"},
        {"account_sid": f" {ACCOUNT}", "auth_tokens": [KEY], "api_key": f"{KEY}\u00a0"},
        {"account_sid": f"{ACCOUNT}/..", "auth_tokens": [KEY], "api_key": f"{KEY}é"},
        {"account_sid": "\ud800", "auth_tokens": [KEY], "api_key": "\ud800"},
        {"account_sid": ACCOUNT, "auth_tokens": ["\ud800"], "api_key": "\ud800"},
    ],
)
@every_carrier
def test_without_credentials_nothing_is_sent(
    name: str, secrets: dict[str, Any], api_answering: Callable[..., Connected]
) -> None:
    connected = api_answering()

    with pytest.raises(Unavailable, match="credentials") as raised:
        provider_named(name).send(PART, secrets, connected.http)

    assert connected.requests == []
    assert says_nothing_private(raised.value)


@every_carrier
def test_text_and_media_are_left_out_where_there_are_none(
    name: str, api_answering: Callable[..., Connected]
) -> None:
    specimen = carrier(name)
    connected = api_answering(specimen.accepted(), specimen.accepted())
    provider: Provider = provider_named(name)
    provider.send(replace(PART, text=""), good_secrets(name), connected.http)
    provider.send(replace(PART, media=()), good_secrets(name), connected.http)

    only_media, only_text = (request.content.lower() for request in connected.requests)
    assert b"media" in only_media
    assert b"text" not in only_media
    assert b"body" not in only_media
    assert b"media" not in only_text


@pytest.mark.parametrize("text", ["\ud800", "a\x00b", "é" * 400, "👍" * 400, "&=+%\r\n "])
@every_carrier
def test_no_text_breaks_a_send(
    name: str, text: str, api_answering: Callable[..., Connected]
) -> None:
    connected = api_answering(carrier(name).accepted())

    provider_named(name).send(replace(PART, text=text), good_secrets(name), connected.http)

    assert connected.requests[0].content.isascii()


@every_carrier
def test_every_reason_is_one_of_ours(name: str) -> None:
    module = sys.modules[type(provider_named(name)).__module__]

    assert set(module.REASON_OF_CODE.values()) <= REASONS
    assert not set(module.REASON_OF_CODE) & module.THROTTLING_CODES


@every_carrier
def test_a_code_that_says_opted_out_is_known_wherever_it_comes(
    name: str, api_answering: Callable[..., Connected]
) -> None:
    provider = provider_named(name)
    codes = [code for code in provider.reasons if provider.reason_of(code) == "opted_out"]
    assert codes
    for code in codes:
        connected = api_answering(carrier(name).refused(400, code))
        with pytest.raises(Rejected, match=r"^opted_out$"):
            provider.send(PART, good_secrets(name), connected.http)


@pytest.mark.parametrize("code", ["", "0", "99999", "opted_out"])
@every_carrier
def test_a_code_that_nobody_knows_is_a_refusal_without_a_reason(name: str, code: str) -> None:
    assert provider_named(name).reason_of(code) == "rejected"
