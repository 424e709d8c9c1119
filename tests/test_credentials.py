"""Whose credentials a header presents, and which paths are theirs."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from chalicelib.credentials import hash_of, paths_of, principal_of

TWILIO = "twilio:a password of the tests"
OLD_TWILIO = "twilio:the password before it"
TELNYX = "telnyx:pässword"
TOKEN = "a-token.of~the+tests/=="
HASHES = {
    "twilio": [hash_of(TWILIO), hash_of(OLD_TWILIO)],
    "telnyx": (hash_of(TELNYX),),
    "api": [hash_of(TOKEN)],
    "bandwidth": [],
}


def basic(credentials: str | bytes) -> str:
    data = credentials.encode() if isinstance(credentials, str) else credentials
    return base64.b64encode(data).decode()


def test_the_hash_is_sha_256_in_small_hexadecimal_digits() -> None:
    assert hash_of("user:password") == hashlib.sha256(b"user:password").hexdigest()


@pytest.mark.parametrize(
    ("header", "principal"),
    [
        (f"Basic {basic(TWILIO)}", "twilio"),
        (f"Basic {basic(OLD_TWILIO)}", "twilio"),
        (f"Basic {basic(TELNYX)}", "telnyx"),
        (f"Bearer {TOKEN}", "api"),
        (f"basic {basic(TWILIO)}", "twilio"),
        (f"BASIC {basic(TWILIO)}", "twilio"),
        (f"bEARER {TOKEN}", "api"),
        (f"  Bearer   {TOKEN}  ", "api"),
        # Nobody: another scheme, or none.
        (TOKEN, None),
        (basic(TWILIO), None),
        (f"Digest {basic(TWILIO)}", None),
        (f"Bearer{TOKEN}", None),
        (f"Bearer\t{TOKEN}", None),
        # ... what is not theirs
        (f"Bearer {TOKEN[:-1]}", None),
        (f"Bearer {TOKEN}x", None),
        (f"Bearer {TOKEN.upper()}", None),
        (f"Bearer {TWILIO.upper()}", None),
        (f"Basic {basic('twilio:wrong')}", None),
        (f"Basic {basic(TWILIO.partition(':')[2])}", None),
        # ... the hash itself is no credential
        (f"Bearer {hash_of(TOKEN)}", None),
        # ... nothing at all
        ("", None),
        ("   ", None),
        ("Basic", None),
        ("Basic ", None),
        ("Bearer", None),
        ("Bearer  ", None),
        (f"Basic {basic('')}", None),
        # ... no base64, or not well
        (f"Basic {TWILIO}", None),
        (f"Basic {basic(TWILIO).rstrip('=')[:-1]}", None),
        (f"Basic {basic(TWILIO)[:8]} {basic(TWILIO)[8:]}", None),
        (f"Basic {basic(TWILIO)}!", None),
        ("Basic ====", None),
        # ... no UTF-8, no ASCII, nothing that any encoding has
        (f"Basic {basic(TELNYX.encode('latin-1'))}", None),
        ("Basic ünïcode", None),
        ("Bearer ünïcode", None),
        ("Bearer \ud800", None),
        ("Basic \ud800", None),
        ("Bearer \x00", None),
    ],
)
def test_whose_credentials(header: str, principal: str | None) -> None:
    assert principal_of(header, HASHES) == principal


@examples(deadline=None)
@given(st.text() | st.builds("{} {}".format, st.sampled_from(["Basic", "Bearer"]), st.text()))
def test_what_somebody_makes_up_is_nobodys_and_no_error(header: str) -> None:
    assert principal_of(header, HASHES) is None


@examples(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_user_and_password_can_be_presented(credentials: str) -> None:
    assert principal_of(f"Basic {basic(credentials)}", {"x": [hash_of(credentials)]}) == "x"


@pytest.mark.parametrize("header", ["", "Basic", "Bearer ", "Basic ====", "Digest x"])
def test_nothing_is_nobodys_even_where_its_hash_was_set_by_mistake(header: str) -> None:
    assert principal_of(header, {"api": [hash_of("")]}) is None


def test_there_is_nobody_where_there_are_no_hashes() -> None:
    assert principal_of(f"Bearer {TOKEN}", {}) is None
    assert principal_of(f"Bearer {TOKEN}", {"api": []}) is None


@pytest.mark.parametrize(
    ("principal", "paths"),
    [
        ("twilio", [("POST", "/webhooks/twilio")]),
        ("telnyx", [("POST", "/webhooks/telnyx")]),
        ("api", [("POST", "/messages"), ("GET", "/messages/*"), ("POST", "/consent")]),
    ],
)
def test_a_principals_paths_are_its_own_alone(principal: str, paths: list[tuple[str, str]]) -> None:
    assert paths_of(principal) == paths
