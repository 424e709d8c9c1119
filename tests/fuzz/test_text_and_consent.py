"""Texts and consent, where the tables of tests/test_text.py and tests/test_consent.py end: texts of
any make and length, limits of any size, and two writers of one list at once."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from botocore.exceptions import ReadTimeoutError
from hypothesis import given
from hypothesis import strategies as st

from chalicelib.consent import ConsentList, event_in
from chalicelib.messages import ConsentEvent, Keys
from chalicelib.table import Table
from chalicelib.text import (
    LONGEST,
    TooLong,
    decode_base64,
    encoding,
    normalise,
    segments,
    split,
    units,
)
from tests.fakes import HASH_KEY, NOW, THEIRS, Lost, no_answer
from tests.fuzz import examples, outcome
from tests.fuzz.memory import Memory
from tests.fuzz.values import texts

# Runs of one thing: what makes an algorithm slow, or a cut go wrong.
runs = st.builds(
    lambda what, times, end: what * times + end,
    st.sampled_from(
        ["a", "é", "e\u0301", "\U0001f468\u200d", "\U0001f1eb", "\u0301", "€", " ", "\ud83d"]
    )
    | texts,
    st.integers(0, 60),
    texts,
)
writing = st.lists(runs | texts, max_size=4).map(" ".join)


@examples(150)
@given(writing)
def test_what_is_stored_reads_the_same_everywhere(text: str) -> None:
    clean = normalise(text)
    # (json, SQS, DynamoDB and a provider's form all take it)
    clean.encode()
    assert len(clean) <= LONGEST
    # A pair of surrogates is one character, however it came.
    assert (
        normalise(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")) == clean
    )
    # Pieces that were normalised and are joined again need it once more, and no oftener.
    joined = normalise(normalise(text[:9]) + normalise(text[9:]))
    assert normalise(joined) == joined


@examples(200)
@given(writing, st.integers(1, 2000), st.none() | st.integers(1, 12), st.integers(1, 9))
def test_any_text_is_split_within_any_limits_or_too_long(
    text: str, max_length: int, max_segments: int | None, max_parts: int
) -> None:
    text = normalise(text)
    parts = outcome(lambda: split(text, max_length, max_segments, max_parts), TooLong)
    if isinstance(parts, TooLong):
        assert text not in str(parts)
        return
    assert len(parts) <= max_parts
    for part in parts:
        assert 0 < units(part) <= max_length
        assert max_segments is None or segments(part) <= max_segments
        # A part of a GSM-7 text is GSM-7: no part costs more than the whole did.
        assert encoding(text) == "UCS-2" or encoding(part) == "GSM-7"
        # (nothing that was no lone surrogate has become one)
        part.encode()


@examples(150)
@given(writing)
def test_segments_lie_between_their_bounds(text: str) -> None:
    count = segments(text)
    if encoding(text) == "GSM-7":
        assert max(1, -(-len(text) // 160)) <= count <= 1 + 2 * len(text) // 152
    else:
        assert max(1, -(-units(text) // 70)) <= count <= 1 + units(text) // 66


@examples(200)
@given(st.data(), st.text(st.characters(), min_size=20, max_size=80))
def test_base64_and_what_is_nearly_so(data: st.DataObject, text: str) -> None:
    good = base64.b64encode(text.encode("utf-8", "surrogatepass")).decode()
    at = data.draw(st.integers(0, len(good)))
    put = data.draw(st.sampled_from(["", "\r\n", "\n", " ", "=", "-", "A", "\x00", "é"]))
    nearly = good[:at] + put + good[at + data.draw(st.integers(0, 2)) :]
    found = decode_base64(nearly)
    if found is not None:
        # A wrong decoding replaces what a person wrote: it is all of it, and writing.
        content = base64.b64decode(nearly.replace("\r", "").replace("\n", ""), validate=True)
        assert content.startswith(found.encode())
        assert len(content) - len(found.encode()) < 4
        assert len(found.split()) > 1 or not found.isascii()


RUNS = [
    "a",
    " ",
    "\u0301",
    "\u0315\u0300",
    "\ufdfa",
    "\ud83d",
    "\u200d",
    "\U0001f1eb",
    "A=",
    "é ",
    ".",
]
REVOKING = [
    "stop ",
    "please ",
    "please stop texting me ",
    "please stop texting me. ",
    "i told you to stop sending me any more of these texts and ",
    "no more ",
    "hi hello hey ok okay ",
    "remove me from your list ",
    "por favor no me envíen más ",
]


@pytest.mark.parametrize(
    "work",
    [normalise, event_in, decode_base64, segments, lambda text: split(text, 1600, 10, 9)],
    ids=["normalise", "event_in", "decode_base64", "segments", "split"],
)
@pytest.mark.parametrize("what", [*RUNS, *REVOKING], ids=ascii)
def test_no_text_of_the_longest_kind_takes_long(work: Callable[[str], Any], what: str) -> None:
    """The receiver has 2 s in all; a signed text of any kind is none that it cannot afford."""
    text = (what * LONGEST)[:LONGEST]
    if work is not normalise:
        text = normalise(text)  # as every caller has it
    began = time.process_time()
    with suppress(TooLong):
        work(text)
    assert time.process_time() - began < 1.5


# Somebody's answer, as a telephone makes it.
dressing = st.text(st.sampled_from(" .!?\"'“”-–…\n\t\u200d\ufe0f🙂#*()[]"), max_size=6)
words = st.sampled_from(
    ["stop", "Opt-Out", "UNSUBSCRIBE", "start", "Help", "yes", "hello", "stop it", "no more texts"]
)


@examples(200)
@given(writing | st.builds("{}{}{}".format, dressing, words, dressing), st.booleans())
def test_a_keyword_is_one_before_and_after_storing(text: str, opted_out: bool) -> None:
    """Processing and the sender match the normalised text; whatever SQS would refuse apart, that
    finds the same."""
    clean = normalise(text)
    found = event_in(clean, opted_out)
    assert found in (None, "stop", "start", "help")
    assert event_in(normalise(clean), opted_out) == found
    assert event_in(f" {clean} ", opted_out) == found
    if found == "start" and not opted_out:
        assert event_in(clean, opted_out=True) == "start"


Said = tuple[ConsentEvent, float]
said: st.SearchStrategy[Said] = st.tuples(
    st.sampled_from(["stop", "start", "help"]),
    st.integers(0, 40).map(lambda quarters: NOW + quarters / 4),
)


def wants_none(events: list[Said]) -> bool:
    """Whether somebody who said all this wants no texts."""
    stops = [at for event, at in events if event == "stop"]
    starts = [at for event, at in events if event == "start"]
    return bool(stops) and (not starts or max(starts) <= max(stops) + 2)


@examples(100)
@given(data=st.data(), events=st.lists(said, min_size=1, max_size=6))
def test_the_list_says_the_same_however_events_come(
    data: st.DataObject, events: list[Said]
) -> None:
    # GIVEN events in any order, some twice, some while another is just being written, some of
    # which the answer of the table is lost
    runtime = Memory()
    consent = ConsentList(Table(runtime, "test"), Keys(HASH_KEY), "default")

    def say(event: Said) -> bool:
        # (A message says one thing, once.)
        return consent.record(THEIRS, *event, words="w", source="s", id_=f"{event}")

    arrivals = data.draw(st.permutations(events + data.draw(st.lists(st.sampled_from(events)))))
    for event in arrivals:
        between = data.draw(st.none() | st.sampled_from(events))
        turn = Lost(no_answer()) if between is None else (lambda one=between: say(one))
        runtime.tap.next = dict.fromkeys(["put_item", "update_item"], iter([turn]))
        try:
            say(event)
        except ReadTimeoutError:
            say(event)  # as the message that comes again does
        if between is not None:
            say(between)
    runtime.tap.next = {}

    # THEN only what was said, and when, decides
    assert consent.opted_out(THEIRS) is wants_none(events)
    # AND a START out of a dead-letter queue, from before the last STOP, changes nothing
    if wants_none(events):
        stop = max(at for event, at in events if event == "stop")
        assert not say(("start", stop + 2))
        assert consent.opted_out(THEIRS)
