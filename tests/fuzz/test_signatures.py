"""Nothing is let in that was not signed, or presented, exactly like this.

Validly signed requests are changed in one place: a byte of the body, the address, the signature,
the time, how often a header comes, a parameter. Each change is refused, but for those that the
provider's scheme does not see; these are listed here (`WITHOUT_MEANING`), one by one, and each is
let in, so that the list says no more than is true.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes, urlencode

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from chalicelib.credentials import hash_of, principal_of
from chalicelib.messages import Headers, WebhookRequest
from chalicelib.providers import provider_named
from chalicelib.providers.base import SignatureError
from tests.fuzz import examples
from tests.fuzz.values import changed, texts

VECTORS = Path(__file__).parents[1] / "vectors"
FORM = "application/x-www-form-urlencoded"
TOKEN = "a token of the tests"
URL = "https://sms.example.com/prod/webhooks/twilio/signed?reference=abc"
FIELDS = {
    "AccountSid": "AC1",
    "Body": "See you at 5 & bye",
    "From": "+14155550100",
    "MessageSid": "1",
}


def request_of(vector: dict[str, Any], **other: Any) -> WebhookRequest:
    values = {
        "method": vector["method"],
        "url": vector["url"],
        "headers": vector["headers"],
        "body": vector["body"].encode(),
        "received_at": float(vector.get("now", 0)),
        **other,
    }
    return WebhookRequest(**{**values, "headers": Headers(values["headers"])})


def valid_vectors(name: str) -> list[dict[str, Any]]:
    return [one for one in json.loads((VECTORS / f"{name}.json").read_text()) if one["valid"]]


TWILIO, TELNYX = valid_vectors("twilio"), valid_vectors("telnyx")
EVERY = [("twilio", one) for one in TWILIO] + [("telnyx", one) for one in TELNYX]
every = st.sampled_from(EVERY)


def lets_in(name: str, vector: dict[str, Any], request: WebhookRequest) -> bool:
    """Whether it verifies; whatever else than a SignatureError comes, the test ends with."""
    keys = (
        {"public_keys": [vector["public_key"]]}
        if name == "telnyx"
        else {"auth_tokens": [vector["secret"]]}
    )
    try:
        provider_named(name).verify(request, keys)
    except SignatureError:
        return False
    return True


def header(vector: dict[str, Any], name: str) -> tuple[str, str]:
    """A header as the vector writes it, and its value."""
    return next((n, v) for n, v in vector["headers"].items() if n.lower() == name.lower())


# --- the body ------------------------------------------------------------------------------------


def said(body: bytes) -> bytes:
    """What a form says, as Twilio signs it: each name and value once, sorted, nothing between.

    Written anew from https://www.twilio.com/docs/usage/security, and not with the parser that the
    code under test uses.
    """
    pairs = set()
    for pair in body.split(b"&"):
        if pair:
            name, _, value = pair.replace(b"+", b" ").partition(b"=")
            pairs.add((unquote_to_bytes(name), unquote_to_bytes(value)))
    return b"".join(name + value for name, value in sorted(pairs))


@examples(300)
@given(data=st.data(), one=every)
def test_no_change_of_a_body(data: st.DataObject, one: tuple[str, dict[str, Any]]) -> None:
    name, vector = one
    body = vector["body"].encode()
    other = data.draw(changed(body))
    is_form = header(vector, "content-type")[1].startswith(FORM) if body else True

    if lets_in(name, vector, request_of(vector, body=other)):
        # Only where the scheme does not see it: see WITHOUT_MEANING.
        assert name == "twilio"
        assert vector["method"] == "GET" or (is_form and said(other) == said(body))


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
values = st.text(st.characters(codec="utf-8"), max_size=12)
forms = st.dictionaries(names, values, min_size=1, max_size=6)


def signature(key: str, text: str, digest: str = "sha1") -> str:
    return base64.b64encode(hmac.new(key.encode(), text.encode(), digest).digest()).decode()


def form_request(
    pairs: Sequence[tuple[str, str]] | bytes,
    signed: dict[str, str],
    *,
    url: str = URL,
    headers: dict[str, Any] | None = None,
    method: str = "POST",
) -> WebhookRequest:
    """A form that says `pairs`, with Twilio's signature over `signed` at URL."""
    text = URL + "".join(name + value for name, value in sorted(signed.items()))
    body = pairs if isinstance(pairs, bytes) else urlencode(pairs).encode()
    given_headers = {"Content-Type": FORM, "X-Twilio-Signature": signature(TOKEN, text)}
    return WebhookRequest(method, url, Headers({**given_headers, **(headers or {})}), body, 0.0)


def twilio_lets_in(request: WebhookRequest) -> bool:
    try:
        provider_named("twilio").verify(request, {"auth_tokens": [TOKEN]})
    except SignatureError:
        return False
    return True


@examples(100)
@given(form=forms, data=st.data())
def test_no_change_of_a_parameter(form: dict[str, str], data: st.DataObject) -> None:
    # GIVEN a form that is signed, in any order
    pairs = data.draw(st.permutations(list(form.items())))
    assert twilio_lets_in(form_request(pairs, form))

    # WHEN one parameter is another, or is gone, or there is one more
    at = data.draw(st.integers(0, len(pairs) - 1))
    name, value = pairs[at]
    another = data.draw(values.filter(lambda one: one != value))
    # (of a name that is there, too: which of two would count?)
    more = data.draw(
        st.tuples(st.sampled_from([name]) | names, values).filter(lambda one: one not in pairs)
    )
    where = data.draw(st.integers(0, len(pairs)))

    # THEN it is refused
    assert not twilio_lets_in(form_request([*pairs[:at], (name, another), *pairs[at + 1 :]], form))
    assert not twilio_lets_in(form_request(pairs[:at] + pairs[at + 1 :], form))
    assert not twilio_lets_in(form_request([*pairs[:where], more, *pairs[where:]], form))


# --- the address ---------------------------------------------------------------------------------


def without_port(url: str) -> str:
    """The address without port and user, which Twilio's own SDK tries with and without."""
    scheme, _, rest = url.partition("://")
    end = next((at for at, one in enumerate(rest) if one in "/?#"), len(rest))
    host = rest[:end].rpartition("@")[2]
    bare, _, port = host.rpartition(":")
    return f"{scheme}://{bare if port.isdigit() else host}{rest[end:]}"


@examples(200)
@given(data=st.data(), vector=st.sampled_from(TWILIO))
def test_no_change_of_the_address(data: st.DataObject, vector: dict[str, Any]) -> None:
    url = vector["url"]
    other = data.draw(
        changed(url.encode()).map(lambda one: one.decode("latin-1"))
        | texts
        | st.sampled_from([url + "#", url + "?", url + "/", url.upper(), url.replace("s:", ":")])
    )
    assume(other != url)

    if lets_in("twilio", vector, request_of(vector, url=other)):
        assert without_port(other) == without_port(url)


# --- signature and time --------------------------------------------------------------------------


def decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return None


SIGNATURES = {"twilio": "X-Twilio-Signature", "telnyx": "telnyx-signature-ed25519"}
base64_variants = st.sampled_from(
    [
        lambda one: one.rstrip("="),
        lambda one: one + "=",
        lambda one: one + "====",
        lambda one: one + "\n",
        lambda one: " " + one,
        lambda one: one[:20] + "\n" + one[20:],
        lambda one: one.replace("+", "-").replace("/", "_"),
        lambda one: one.swapcase(),
        lambda one: one + one,
        lambda one: f"{one}, {one}",
        lambda one: f'"{one}"',
        lambda one: base64.b64encode(one.encode()).decode(),
        lambda one: base64.b16encode(base64.b64decode(one)).decode(),
        lambda one: "",
    ]
)


@examples(200)
@given(data=st.data(), one=every)
def test_no_change_of_a_signature(data: st.DataObject, one: tuple[str, dict[str, Any]]) -> None:
    name, vector = one
    key, value = header(vector, SIGNATURES[name])
    other = data.draw(
        changed(value.encode()).map(lambda one: one.decode("latin-1"))
        | base64_variants.map(lambda change: change(value))
        | texts
    )
    assume(other != value)

    if lets_in(name, vector, request_of(vector, headers={**vector["headers"], key: other})):
        # Another spelling of the same bytes: see WITHOUT_MEANING.
        assert name == "telnyx"
        assert decoded(other) == decoded(value)


def test_no_second_signature_can_be_made_of_a_good_one() -> None:
    """Ed25519: S and S + L would both fit the equation; only S below L is a signature (RFC 8032,
    section 5.1.7)."""
    vector = TELNYX[0]
    key, value = header(vector, SIGNATURES["telnyx"])
    signed = base64.b64decode(value)
    order = 2**252 + 27742317777372353535851937790883648493
    s = int.from_bytes(signed[32:], "little") + order
    other = base64.b64encode(signed[:32] + s.to_bytes(32, "little")).decode()
    assert not lets_in(
        "telnyx", vector, request_of(vector, headers={**vector["headers"], key: other})
    )


@examples(150)
@given(data=st.data(), vector=st.sampled_from(TELNYX))
def test_no_change_of_the_time(data: st.DataObject, vector: dict[str, Any]) -> None:
    key, value = header(vector, "telnyx-timestamp")
    other = data.draw(
        st.integers(-400, 400).map(lambda seconds: str(int(value) + seconds))
        | texts
        | st.sampled_from(
            [
                f"0{value}",
                f"+{value}",
                f" {value}",
                f"{value} ",
                f"{value}.0",
                f"{value}\n",
                f"{value}|",
                value.translate(str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")),
                value + "0" * 20,
                "9" * 5_000,
                "-1",
                "",
            ]
        )
    )
    assume(other != value)
    assert not lets_in(
        "telnyx", vector, request_of(vector, headers={**vector["headers"], key: other})
    )


@examples(100)
@given(
    vector=st.sampled_from(TELNYX),
    # (A clock gives no NaN.)
    now=st.floats(allow_nan=False) | st.integers(-(10**15), 10**15).map(float),
)
def test_no_time_at_which_an_old_webhook_is_good_again(vector: dict[str, Any], now: float) -> None:
    at = float(header(vector, "telnyx-timestamp")[1])
    good = lets_in("telnyx", vector, request_of(vector, received_at=now))
    assert good == (abs(now - at) <= 300)


# --- how often a header comes --------------------------------------------------------------------


@examples(150)
@given(data=st.data(), one=every)
def test_no_header_of_a_signature_twice(
    data: st.DataObject, one: tuple[str, dict[str, Any]]
) -> None:
    name, vector = one
    signing = [SIGNATURES[name], *(["telnyx-timestamp"] if name == "telnyx" else [])]
    key, value = header(vector, data.draw(st.sampled_from(signing)))
    more = data.draw(st.sampled_from([value, "", "x"]) | texts)
    values = data.draw(st.permutations([value, more]))
    headers = data.draw(
        st.sampled_from(
            [
                # as one list, and as two headers that differ in case
                {**vector["headers"], key: values},
                {**vector["headers"], key: [values[0]], key.swapcase(): [values[1]]},
                {**vector["headers"], key: []},
                {n: v for n, v in vector["headers"].items() if n != key},
            ]
        )
    )
    assert not lets_in(name, vector, request_of(vector, headers=headers))


@examples(60)
@given(form=forms, told=texts | st.sampled_from(["algorithm=HMAC_SHA256", "algorithm=HMAC_SHA1"]))
def test_nobody_chooses_the_algorithm_after_signing(form: dict[str, str], told: str) -> None:
    header_ = {"X-Twilio-Webhooks-Signature-Settings": told}
    assert not twilio_lets_in(form_request(list(form.items()), form, headers=header_))


# --- what the schemes do not see -----------------------------------------------------------------


def twilio_form(change: Callable[[bytes], bytes]) -> WebhookRequest:
    """The form of FIELDS, signed, its body changed."""
    return form_request(change(urlencode(FIELDS).encode()), FIELDS)


def twilio_other(**other: Any) -> WebhookRequest:
    return form_request(list(FIELDS.items()), FIELDS, **other)


# Why, and such a request. A change that makes no difference to what is read is marked `same`.
WITHOUT_MEANING = [
    pytest.param(
        twilio_form(lambda _: urlencode(list(reversed(FIELDS.items()))).encode()),
        True,
        id="twilio: parameters are signed in the order of their names, however they come",
    ),
    pytest.param(
        twilio_form(lambda body: body + b"&" + body),
        True,
        id="twilio: the same name and value twice are signed once",
    ),
    pytest.param(
        twilio_form(lambda body: body.replace(b"%2B", b"%2b").replace(b"+at", b"%20at")),
        True,
        id="twilio: a form is signed decoded, however it was encoded",
    ),
    pytest.param(
        twilio_form(lambda body: b"&" + body.replace(b"&", b"&&") + b"&=&"),
        True,
        id="twilio: a pair of nothing adds nothing to what is signed",
    ),
    pytest.param(
        twilio_form(lambda body: body.replace(b"From=%2B", b"From%2B=")),
        False,
        id="twilio: between a name and its value nothing is signed",
    ),
    pytest.param(
        twilio_form(lambda body: body.replace(b"&From=", b"From")),
        False,
        id="twilio: between two parameters nothing is signed",
    ),
    pytest.param(
        twilio_other(headers={"Content-Type": f"{FORM.upper()} ; charset=utf-16"}),
        True,
        id="twilio: of the content type only the type counts; a form is UTF-8",
    ),
    pytest.param(
        twilio_other(headers={"X-Home-Region": "us1", "I-Twilio-Idempotency-Token": "x"}),
        True,
        id="twilio: other headers are not signed",
    ),
    pytest.param(
        twilio_other(url=URL.replace(".com/", ".com:8443/")),
        True,
        id="twilio: some requests are signed without their port",
    ),
    pytest.param(
        twilio_other(url=URL.replace("https://", "https://user:password@")),
        True,
        id="twilio: user and password of the address are not signed",
    ),
    pytest.param(
        twilio_other(method="PUT"),
        True,
        id="twilio: the method is not signed (our doors take POST alone)",
    ),
]


@pytest.mark.parametrize(("request_", "same"), WITHOUT_MEANING)
def test_what_twilios_scheme_does_not_see(request_: WebhookRequest, same: bool) -> None:
    assert twilio_lets_in(request_)
    [asked] = provider_named("twilio").parse(twilio_form(bytes))
    [found] = provider_named("twilio").parse(request_)
    told = [(one.id, one.sender, one.text) for one in (asked, found)]  # type: ignore[union-attr]
    assert (told[0] == told[1]) is same


def test_what_telnyxs_scheme_does_not_see() -> None:
    vector = TELNYX[0]
    key, value = header(vector, SIGNATURES["telnyx"])
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    # 64 bytes leave 4 bits of the last character unused: 16 spellings of one signature.
    stem = value.rstrip("=")[:-1]
    spellings = [f"{stem}{last}==" for last in alphabet]
    found = [
        one
        for one in spellings
        if lets_in("telnyx", vector, request_of(vector, headers={**vector["headers"], key: one}))
    ]
    assert len(found) == 16
    assert {decoded(one) for one in found} == {decoded(value)}
    # Address, method and other headers are not signed: a receipt's reference, which stands in the
    # address, is therefore no proof of which message it is for.
    assert lets_in("telnyx", vector, request_of(vector, url="https://elsewhere.example.com/?a=b"))
    assert lets_in("telnyx", vector, request_of(vector, method="PUT"))
    other = {**vector["headers"], "Content-Type": "text/plain", "User-Agent": "x"}
    assert lets_in("telnyx", vector, request_of(vector, headers=other))


@examples(60)
@given(
    body=st.binary(min_size=1, max_size=60),
    content_type=st.sampled_from(["application/json", "", "text/plain", f"{FORM}x", f"x;{FORM}"])
    | texts.filter(lambda text: FORM not in text.lower()),
)
def test_no_body_that_the_signature_does_not_cover(body: bytes, content_type: str) -> None:
    # GIVEN a good signature over the address alone
    request = form_request(body, {}, headers={"Content-Type": content_type})
    assert not twilio_lets_in(request)


def test_a_body_whose_hash_is_in_the_address_is_let_in_as_it_was_signed_alone() -> None:
    body = b'{"any": "body"}'
    url = f"{URL}&bodySHA256={hashlib.sha256(body).hexdigest()}"
    headers = Headers({"Content-Type": "x/y", "X-Twilio-Signature": signature(TOKEN, url)})
    assert twilio_lets_in(WebhookRequest("POST", url, headers, body, 0.0))
    for other in (body + b" ", body[:-1], b"", body.replace(b"any", b"ANY")):
        assert not twilio_lets_in(WebhookRequest("POST", url, headers, other, 0.0))


# --- the authorizer's credentials ----------------------------------------------------------------

HASHES = {"twilio": [hash_of("user:päss word")], "api": [hash_of("token-of~the.tests==")]}
BASIC = "Basic " + base64.b64encode("user:päss word".encode()).decode()
BEARER = "Bearer token-of~the.tests=="


def presented(authorization: str) -> object:
    """What such a header presents, read anew: scheme and white space do not count."""
    scheme, _, value = authorization.strip().partition(" ")
    value = value.strip()
    if scheme.lower() == "basic":
        return decoded(value)
    return value.encode("utf-8", "surrogatepass") if scheme.lower() == "bearer" else None


@examples(300)
@given(data=st.data(), good=st.sampled_from([BASIC, BEARER]))
def test_no_change_of_a_credential(data: st.DataObject, good: str) -> None:
    other = data.draw(
        changed(good.encode()).map(lambda one: one.decode("latin-1"))
        | st.sampled_from([f"{good}, {good}", good + "\x00", good[:-1], good.replace(" ", "\t")])
        | texts.map(lambda more: good + more)
    )
    principal = principal_of(good, HASHES)
    assert principal is not None
    assert principal_of(other, HASHES) in (
        (principal, None) if presented(other) == presented(good) else (None,)
    )


@pytest.mark.parametrize(
    "authorization",
    [
        pytest.param(BASIC.replace("Basic", "bAsIc"), id="the scheme's case (RFC 9110, 11.1)"),
        pytest.param(f"  {BASIC.replace(' ', '   ')} ", id="white space around it"),
        pytest.param("Bearer user:päss word", id="the hash is of the credentials, not the scheme"),
    ],
)
def test_what_does_not_count_in_a_credential(authorization: str) -> None:
    assert principal_of(authorization, HASHES) == "twilio"


def test_the_oracle_reads_forms_as_everybody_does() -> None:
    body = urlencode({**FIELDS, "é": "ü €"}).encode()
    pairs = sorted(parse_qsl(body.decode(), keep_blank_values=True))
    assert said(body) == "".join(name + value for name, value in pairs).encode()
