"""Which words say stop, start or help, and which of two events counts."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import reduce
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chalicelib.consent import keyword, takes_effect
from chalicelib.messages import ConsentEvent

quiet = settings(deadline=None)

STOP = [
    *("stop", "quit", "end", "revoke", "opt out", "cancel", "unsubscribe"),  # 47 CFR 64.1200(a)(10)
    *("optout", "opt-out", "stopall", "stop all", "remove", "arret", "arrêt", "td"),
]
START = ["start", "unstop"]
HELP = ["help", "info", "aide"]
START_AGAIN = ["yes", "resume", "go"]
KEYWORDS: list[tuple[str, ConsentEvent]] = [
    *((word, "stop") for word in STOP),
    *((word, "start") for word in START),
    *((word, "help") for word in HELP),
]


@pytest.mark.parametrize(("text", "event"), KEYWORDS)
@pytest.mark.parametrize("opted_out", [False, True])
def test_keywords_count_always(text: str, event: ConsentEvent, opted_out: bool) -> None:
    assert keyword(text, opted_out) == event


@pytest.mark.parametrize("text", [*START_AGAIN, "YES!", " Go. "])
def test_some_words_ask_for_our_texts_only_where_somebody_gets_none(text: str) -> None:
    assert keyword(text, opted_out=True) == "start"
    assert keyword(text) is None


@pytest.mark.parametrize(
    ("text", "event"),
    [
        ("STOP", "stop"),
        ("STOP.", "stop"),
        (" Stop! ", "stop"),
        ("\n\tstop\n", "stop"),
        ("ＳＴＯＰ", "stop"),
        ("ＳＴＯＰ！", "stop"),
        ("«Stop»", "stop"),
        ("“STOP”", "stop"),
        ("‘stop’", "stop"),
        ("'stop'", "stop"),
        ("*stop*", "stop"),
        ("_stop_", "stop"),
        ("stop…", "stop"),
        ("Stop 🛑", "stop"),
        ("STOP ❗\ufe0f", "stop"),
        ("\u200estop\u200f", "stop"),
        ("\ufeffstop", "stop"),
        ("stop\u00a0", "stop"),
        ("stop\ufffd", "stop"),
        ("STOP   ALL", "stop"),
        ("stop-all", "stop"),
        ("Opt—Out", "stop"),
        ("opt\u2010out", "stop"),
        ("opt\u2011out", "stop"),
        ("opt_out", "stop"),
        ("OPT OUT", "stop"),
        ("ARRÊT", "stop"),
        ("arre\u0302t", "stop"),
        ("Unsubscribe.", "stop"),
        ("UNSTOP", "start"),
        ("Start!", "start"),
        ("Help?", "help"),
        ("INFO", "help"),
        ("Aide !", "help"),
    ],
)
def test_form_does_not_count(text: str, event: ConsentEvent) -> None:
    assert keyword(text) == event


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "?!",
        "😀",
        "stop by tomorrow",
        "Please stop",
        "stop please",
        "don’t stop",
        "non-stop",
        "bus stop",
        "stop.start",
        "stop stop",
        "s t o p",
        "S.T.O.P.",
        "stopp",
        "stops",
        "stopped",
        "the end",
        "td bank",
        "opt in",
        "opt",
        "out",
        "cancelled",
        "help me",
        "information",
        "starting",
        "restart",
        "yes please",
        "stop1",
        "ЅТОР",  # Cyrillic
        "Liked “STOP to end these texts”",
        "\ud83d",
    ],
)
@pytest.mark.parametrize("opted_out", [False, True])
def test_what_only_contains_or_resembles_a_keyword_is_none(text: str, opted_out: bool) -> None:
    assert keyword(text, opted_out) is None


def wide(word: str) -> str:
    return "".join(chr(ord(one) + 0xFEE0) if "!" <= one <= "~" else one for one in word)


around = st.text(st.sampled_from(" .,!?…\"'“”’-–—*_()\n\t\u00a0😀❤"))
dresses: list[Callable[[str], str]] = [str.upper, str.title, str.lower, wide]
forms: list[Literal["NFC", "NFD"]] = ["NFC", "NFD"]


@quiet
@given(
    st.sampled_from(KEYWORDS),
    around,
    around,
    st.sampled_from(dresses),
    st.sampled_from(forms),
)
def test_every_keyword_in_every_dress(
    pair: tuple[str, ConsentEvent],
    before: str,
    after: str,
    dress: Callable[[str], str],
    form: Literal["NFC", "NFD"],
) -> None:
    word, event = pair
    assert keyword(before + unicodedata.normalize(form, dress(word)) + after) == event


@quiet
@given(st.sampled_from(KEYWORDS), st.text(st.characters(categories=("L", "N")), min_size=1))
def test_a_keyword_with_another_word_is_none(pair: tuple[str, ConsentEvent], other: str) -> None:
    # "stop" + "all" is a keyword itself.
    if other.casefold() not in ("all", "out"):
        assert keyword(f"{pair[0]} {other}") is None


@quiet
@given(st.text(st.characters()), st.booleans())
def test_matching_refuses_no_input(text: str, opted_out: bool) -> None:
    assert keyword(text, opted_out) in (None, "stop", "start", "help")


# --- takes_effect ------------------------------------------------------------------------------

T = 1_790_000_000.0


@pytest.mark.parametrize(
    ("event", "at", "recorded_event", "recorded_at", "expected"),
    [
        pytest.param("stop", T, None, None, True, id="first stop"),
        pytest.param("start", T, None, None, True, id="first start"),
        pytest.param("stop", T + 60, "start", T, True, id="stop later"),
        pytest.param("stop", T + 2, "start", T, True, id="stop later, a tie"),
        pytest.param("stop", T, "start", T, True, id="stop at once, a tie"),
        pytest.param("stop", T, "start", T + 2, True, id="stop earlier, a tie"),
        pytest.param("stop", T, "start", T + 2.001, False, id="stop earlier"),
        pytest.param("start", T + 60, "stop", T, True, id="start later"),
        pytest.param("start", T + 2.001, "stop", T, True, id="start just later"),
        pytest.param("start", T + 2, "stop", T, False, id="start later, a tie"),
        pytest.param("start", T, "stop", T, False, id="start at once, a tie"),
        pytest.param("start", T, "stop", T + 60, False, id="start out of a DLQ"),
        pytest.param("stop", T + 60, "stop", T, True, id="stop again: the record moves on"),
        pytest.param("stop", T, "stop", T, True, id="the same stop, written twice"),
        pytest.param("stop", T - 1, "stop", T, False, id="an older stop: no way back"),
        pytest.param("start", T + 1, "start", T, True, id="start again: the record moves on"),
        pytest.param("start", T, "start", T, True, id="the same start, written twice"),
        pytest.param("start", T - 1, "start", T, False, id="an older start: no way back"),
        pytest.param("help", T, None, None, False, id="help, nothing recorded"),
        pytest.param("help", T + 60, "stop", T, False, id="help after stop"),
    ],
)
def test_takes_effect(
    event: ConsentEvent,
    at: float,
    recorded_event: str | None,
    recorded_at: float | None,
    expected: bool,
) -> None:
    assert takes_effect(event, at, recorded_event, recorded_at) is expected


Event = tuple[ConsentEvent, float]
# Quarters are exact in binary: what is tested is the rule, not rounding.
times = st.integers(0, 40).map(lambda quarters: T + quarters / 4)
kinds: st.SearchStrategy[ConsentEvent] = st.sampled_from(["stop", "start"])


def record(recorded: Event | None, event: Event) -> Event | None:
    return event if takes_effect(*event, *(recorded or (None, None))) else recorded


@quiet
@given(st.data(), st.lists(st.tuples(kinds, times), min_size=1, max_size=8))
def test_the_outcome_does_not_depend_on_the_order_of_arrival(
    data: st.DataObject, events: list[Event]
) -> None:
    # GIVEN events that arrive in any order, some of them twice
    again = data.draw(st.lists(st.sampled_from(events), max_size=4))
    arrivals = data.draw(st.permutations(events + again))

    recorded = reduce(record, arrivals, None)

    # THEN they started again only if the last START is more than 2 s after the last STOP
    stops = [at for kind, at in events if kind == "stop"]
    starts = [at for kind, at in events if kind == "start"]
    if starts and (not stops or max(starts) > max(stops) + 2):
        assert recorded == ("start", max(starts))
    else:
        assert recorded == ("stop", max(stops))
