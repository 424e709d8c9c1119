"""The domain: what a number is, what can be answered, and the keys that all is kept under."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from chalicelib.messages import (
    STATUS_RANK,
    Headers,
    InboundMessage,
    Keys,
    MessageId,
    NumberKind,
    OutgoingMessage,
    Status,
    WebhookRequest,
    answerable,
    mask,
    number_kind,
    parse_reference,
)

quiet = examples(deadline=None)

# --- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        ("+14155550100", "e164"),
        ("+4915112345678", "e164"),
        ("+1234567", "e164"),
        ("+123456789012345", "e164"),
        ("+999999999999", "e164"),  # its form is right; whether it can be is asked in processing
        ("+123456", None),
        ("+1234567890123456", None),
        ("+04155550100", None),
        ("14155550100", None),
        ("0014155550100", None),
        ("+1 415 555 0100", None),
        ("+1-415-555-0100", None),
        ("+14155550100\n", None),
        (" +14155550100", None),
        ("++14155550100", None),
        ("+1415555010a", None),
        ("tel:+14155550100", None),
        ("whatsapp:+14155550100", None),
        ("+١٤١٥٥٥٥٠١٠٠", None),
        ("+１４１５５５５０１００", None),
        ("+1415555010٠", None),
        ("123", "short_code"),
        ("72345", "short_code"),
        ("012345", "short_code"),
        ("12345678", "short_code"),
        ("12", None),
        ("123456789", None),
        ("１２３４５", None),
        ("١٢٣", None),
        ("123²", None),
        ("12345\n", None),
        ("Heron", "alphanumeric"),
        ("H", "alphanumeric"),
        ("Heron & Co", "alphanumeric"),
        ("A.B_C-D+E 1", "alphanumeric"),
        ("1800HERON", "alphanumeric"),
        ("HeronBankNo1", None),
        ("Hérôn", None),
        ("Ηeron", None),  # a Greek capital
        ("Heron!", None),
        ("Heron\n", None),
        ("+", None),
        ("-", None),
        ("   ", None),
        ("", None),
        ("\x00", None),
        ("\ud800", None),
        ("a" * 100_000, None),
    ],
)
def test_number_kind(number: str, kind: NumberKind | None) -> None:
    assert number_kind(number) == kind


@quiet
@given(st.text())
def test_what_has_a_kind_is_ascii_and_short(text: str) -> None:
    if number_kind(text) is not None:
        assert text.isascii()
        assert len(text) <= 16


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        ("+14155550123", "…23"),
        ("72345", "…45"),
        ("1234", "…"),
        ("123", "…"),
        ("", "…"),
    ],
)
def test_mask(number: str, shown: str) -> None:
    assert mask(number) == shown


# --- messages ------------------------------------------------------------------------------------


def message(sender: str, recipient: str, *, group: bool = False) -> InboundMessage:
    return InboundMessage(
        "twilio", "AC1", "SM1", sender, recipient, "hello", 1_790_000_000.0, group=group
    )


@pytest.mark.parametrize(
    ("sender", "recipient", "group", "can"),
    [
        ("+14155550100", "+14155550123", False, True),
        ("72345", "+14155550123", False, True),
        ("+14155550100", "72345", False, True),
        ("+14155550100", "+14155550123", True, False),
        ("Heron", "+14155550123", False, False),
        ("+14155550100", "Heron", False, False),
        ("", "+14155550123", False, False),
        ("+14155550100", "", False, False),
        ("whatsapp:+14155550100", "whatsapp:+14155550123", False, False),
    ],
)
def test_answerable(sender: str, recipient: str, group: bool, can: bool) -> None:
    assert answerable(message(sender, recipient, group=group)) is can


def test_the_two_sides_of_a_conversation_are_the_same_both_ways() -> None:
    there = message("+14155550100", "+14155550123")
    back = OutgoingMessage("twilio", "+14155550123", "+14155550100", "hello")
    assert (there.ours, there.theirs) == (back.ours, back.theirs)


def test_every_status_has_its_rank_and_the_last_words_are_equal() -> None:
    order = ["queued", "sent", "unconfirmed", "delivered"]
    assert sorted(STATUS_RANK, key=lambda status: STATUS_RANK[status])[:3] == order[:3]
    assert STATUS_RANK["delivered"] == STATUS_RANK["undelivered"] == STATUS_RANK["failed"]
    assert STATUS_RANK["delivered"] > STATUS_RANK["unconfirmed"]
    assert set(STATUS_RANK) == set(get_args(Status))


# --- headers -------------------------------------------------------------------------------------

GIVEN: dict[str, Any] = {
    "Content-Type": "text/plain",
    "X-Signature": ["one", "two"],
    "x-SIGNATURE": "three",
    "X-Empty": "",
    "X-None": [],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Content-Type", "text/plain"),
        ("content-type", "text/plain"),
        ("CONTENT-TYPE", "text/plain"),
        ("X-Signature", "one, two, three"),
        ("x-signature", "one, two, three"),
        ("X-Empty", ""),
        ("X-None", ""),
        ("X-Absent", ""),
    ],
)
def test_headers_are_read_without_regard_to_case_and_joined(name: str, value: str) -> None:
    assert Headers(GIVEN).get(name) == value


def test_a_header_that_is_empty_is_there_and_one_that_is_absent_has_the_default() -> None:
    headers = Headers(GIVEN)
    assert "x-empty" in headers
    assert "X-EMPTY" in headers
    assert "X-Absent" not in headers
    assert headers.get("X-Empty", "default") == ""
    assert headers.get("X-Absent", "default") == "default"


def test_headers_never_show_their_values() -> None:
    shown = repr(Headers({"Authorization": "Basic heron"}))
    assert "heron" not in shown
    assert "authorization" in shown


@pytest.mark.parametrize(
    "headers", [{"X-A": "1"}, {"x-a": ["1"]}, Headers({"X-A": "1"})], ids=["plain", "many", "ours"]
)
def test_a_request_takes_plain_headers_too(headers: Any) -> None:
    request = WebhookRequest("POST", "https://sms.example.com/x", headers, b"", 1.0)
    assert isinstance(request.headers, Headers)
    assert request.headers.get("X-a") == "1"


# --- keys ----------------------------------------------------------------------------------------

KEYS = Keys("a hash key of the tests, long enough")
# Known answers: another one would make every stored item unfindable.
KNOWN: list[tuple[Callable[[Keys], str], str]] = [
    (lambda keys: keys.conversation("+14155550123", "+14155550100"), "a446864027fc86321edf3273"),
    (lambda keys: keys.message("twilio", "AC1", "SM1"), "f485363f67ec960efc24af86"),
    (lambda keys: keys.number("+14155550100"), "75486d0986ccb14151a130d9"),
    (lambda keys: keys.batch(["a", "b"]), "8e1c3070a22cbebceedfccc7"),
]


@pytest.mark.parametrize(
    ("function", "answer"), KNOWN, ids=["conversation", "message", "number", "batch"]
)
def test_keys_stay_the_same_and_are_of_one_form(
    function: Callable[[Keys], str], answer: str
) -> None:
    assert function(KEYS) == answer
    assert function(Keys("a hash key of the tests, long enough")) == answer
    assert function(Keys("another hash key of the tests, as long")) != answer


def test_keys_of_different_things_are_different() -> None:
    same = "ab", "c"
    found = [
        KEYS.conversation("ab", "c"),
        KEYS.conversation("a", "bc"),
        KEYS.conversation("c", "ab"),
        KEYS.conversation("abc", ""),
        KEYS.conversation("", "abc"),
        KEYS.conversation("ab1:", "c"),
        KEYS.message("ab", "c", ""),
        KEYS.message("ab", "", "c"),
        KEYS.message("", "ab", "c"),
        KEYS.number("abc"),
        KEYS.batch(["abc"]),
        KEYS.batch(same),
        KEYS.batch(["a", "bc"]),
        KEYS.batch([]),
    ]
    assert len(set(found)) == len(found)


def test_a_batch_is_the_same_in_any_order() -> None:
    assert KEYS.batch(["c", "a", "b"]) == KEYS.batch(["a", "b", "c"])
    assert KEYS.batch(dict.fromkeys("ba")) == KEYS.batch("ab")


anything = st.text(st.characters())


@quiet
@given(st.lists(anything, min_size=2, max_size=2), st.lists(anything, min_size=2, max_size=2))
def test_two_conversations_share_a_key_only_if_they_are_the_same(
    one: list[str], other: list[str]
) -> None:
    assert (KEYS.conversation(*one) == KEYS.conversation(*other)) is (one == other)


@pytest.mark.parametrize("odd", ["\ud800", "\x00", "é", "😀", "\ud83d\ude00"])
def test_no_character_stops_a_key(odd: str) -> None:
    for key in (
        KEYS.conversation(odd, odd),
        KEYS.message(odd, odd, odd),
        KEYS.number(odd),
        KEYS.batch([odd]),
    ):
        assert MessageId.parse(f"{key}-{key}") is not None


# --- message ids and references ------------------------------------------------------------------

A, B = "0123456789abcdef01234567", "fedcba9876543210fedcba98"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"{A}-{B}", MessageId(A, B)),
        (f"{A}-{A}", MessageId(A, A)),
        ("", None),
        (A, None),
        (f"{A}{B}", None),
        (f"{A}-{B}-1", None),
        (f"{A}_{B}", None),
        (f"{A.upper()}-{B}", None),
        (f"{A[:-1]}-{B}", None),
        (f"{A}0-{B}", None),
        (f"{A[:-1]}g-{B}", None),
        (f"{A[:-1]}٠-{B}", None),
        (f" {A}-{B}", None),
        (f"{A}-{B}\n", None),
        ("\ud800", None),
    ],
)
def test_a_message_id_is_read_back_or_is_none(text: str, found: MessageId | None) -> None:
    assert MessageId.parse(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"{A}-{B}-1", (MessageId(A, B), 1)),
        (f"{A}-{B}-9", (MessageId(A, B), 9)),
        (f"{A}-{B}-90", (MessageId(A, B), 90)),
        (f"{A}-{B}-0", None),
        (f"{A}-{B}-01", None),
        (f"{A}-{B}-100", None),
        (f"{A}-{B}--1", None),
        (f"{A}-{B}-", None),
        (f"{A}-{B}", None),
        (f"{A}-{B}-1-1", None),
        (f"{A}-{B}-²", None),
        (f"{A}-{B}-١", None),
        (f"{A}-{B}-1\n", None),
        (f"{A}-{B.upper()}-1", None),
        (f"x{A}-{B}-1", None),
        ("order 66 of a stranger", None),
        ("", None),
        ("\ud800", None),
    ],
)
def test_a_reference_is_read_back_or_is_a_strangers(
    text: str, found: tuple[MessageId, int] | None
) -> None:
    assert parse_reference(text) == found


hashes = st.text("0123456789abcdef", min_size=24, max_size=24)


@quiet
@given(hashes, hashes, st.integers(1, 99))
def test_what_is_written_is_read_back(conversation: str, message: str, number: int) -> None:
    id_ = MessageId(conversation, message)
    assert MessageId.parse(str(id_)) == id_
    assert parse_reference(id_.part(number)) == (id_, number)


@quiet
@given(st.text("0123456789abcdefABCDEF-\n ", max_size=60) | anything)
def test_what_is_read_is_what_was_written(text: str) -> None:
    id_ = MessageId.parse(text)
    assert id_ is None or str(id_) == text
    named = parse_reference(text)
    assert named is None or named[0].part(named[1]) == text
