"""Which words say stop, start or help, and which of two events counts."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import reduce
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chalicelib.consent import event_in, keyword, revokes, takes_effect
from chalicelib.messages import ConsentEvent
from chalicelib.text import LONGEST

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


# --- revocations in a person's own words ---------------------------------------------------------

REVOCATIONS = [
    "Please stop",
    "stop please",
    "STOP!!!! PLEASE",
    "Take me off your texting list please and thank you",
    "please discontinue texts",
    "Please remove me from your call list",
    "do not call or text me again",
    "Stop calling me and texting me",
    "I don’t want to receive text messages from you",
    "I no longer wish to receive text messages",
    "I’m opting out",
    "remove my name from your list",
    "Please take my name and number off your list",
    "Please remove my phone number from your list",
    "Stop texting this phone number",
    "Please cease all communication",
    "Stop texting me. " * 20,
    "stop " * 40,
    "stop stop stop",
    "Stop. Stop. Stop.",
    "STOP NOW",
    "Stop immediately, thank you",
    "ok stop",
    "just stop already",
    "please unsubscribe",
    "Unsubscribe, please",
    "unsubcribe",
    "UNSUSCRIBE me",
    "un-subscribe me",
    "please opt out",
    "Stop texting me",
    "stop texting me!!!",
    '"Stop texting me"',
    "STOP TXTING ME",
    "Stop texting",
    "Please stop texting me",
    "Stop texting me please.",
    "please just stop texting me",
    "hey stop texting me",
    "Hello, please stop texting me. Thanks",
    "Stop texting me, thank you",
    "Stop texting this number",
    "stop texting my phone",
    "stop texting us",
    "stop texting me right now",
    "Stop texting me immediately!",
    "stop texting me anymore",
    "stop texting me ever again",
    "stop messaging me",
    "stop contacting me",
    "stop bothering me",
    "quit texting me",
    "stop calling and texting me",
    "Can you please stop texting me?",
    "could u stop texting me",
    "Would you please stop sending me these messages?",
    "I want you to stop texting me",
    "I’d like you to stop texting me",
    "I said stop texting me",
    "I told you to stop texting me!",
    "I already asked you to stop texting me",
    "you need to stop texting me",
    "stop sending me messages",
    "stop sending me these texts",
    "Stop sending me any more text messages",
    "stop sending your texts",
    "Stop sending me text messages please",
    "stop the texts",
    "stop these messages",
    "STOP ALL MESSAGES",
    "stop sms",
    "stop the spam",
    "stop spamming me",
    "Remove me",
    "please remove me",
    "Please remove me from your list",
    "remove me from this list",
    "Remove me from your mailing list, please.",
    "remove my number",
    "please remove my number from your database",
    "take me off your list",
    "Take me off this list!",
    "can you take me off of your texting list",
    "please take my number off your list",
    "get me off this list",
    "delete my number",
    "lose my number",
    "unsubscribe me",
    "please unsubscribe me from this list",
    "opt me out",
    "Opt me out of these messages please",
    "Please opt me out of your texts",
    "I want to opt out",
    "I would like to unsubscribe",
    "I’d like to be removed from your list",
    "I want to be taken off your list",
    "I want to stop receiving these messages",
    "Don’t text me again",
    "dont text me",
    "do not text me anymore",
    "DO NOT CONTACT ME AGAIN",
    "never text me again",
    "Please don’t text this number again",
    "don't send me any more messages",
    "Don’t send me these texts anymore",
    "Please do not send any further messages",
    "I don’t want these messages",
    "I don’t want any more texts",
    "I dont want to receive your messages anymore",
    "I no longer want to receive these texts",
    "I do not wish to be contacted",
    "i don't want you to text me",
    "No more messages please",
    "no more texts",
    "no more texting",
    "NO MORE TEXTS FROM YOU, THANKS",
    "leave me alone",
    "Cease and desist",
    "cease and desist all communications",
    "Stop texting me and remove me from your list",
    "Remove me and don’t text me again",
    "STOP. I don’t want these messages.",
    "Not interested. Please remove me from your list.",
    "Wrong number, stop texting me",
    "You have the wrong number. Please stop texting me.",
    "Who is this? Stop texting me.",
    "I never signed up for this. Remove me.",
    "Yes, unsubscribe me",
    "No, stop texting me",
    "ok. please take me off your list. sorry",
    "no más mensajes",
    "No mas mensajes por favor",
    "Dejen de enviarme mensajes",
    "ya no quiero recibir mensajes",
    "No me manden más mensajes, por favor",
    "quítenme de su lista",
    "Arrêtez de m’envoyer des messages",
    "Arretez de m'ecrire svp",
    "Ne m’envoyez plus de messages, s’il vous plaît",
    "Je ne veux plus recevoir de messages",
    "Désabonnez-moi",
    "Stop texts",
    "No thanks. Stop.",
    "Stop! Not interested",
    "Stop. Who is this?",
    "wrong number stop texting me",
    "not interested please remove me",
    "Stop texting me I'm not interested",
    "opt out of these texts",
    "unsubscribe from this list",
]

# Questions, negations, conditions, times, subjects, somebody else, what somebody said, and what
# only sounds alike.
NO_REVOCATIONS = [
    "stop by tomorrow",
    "Stop by the store please",
    "Stop sending texts to my landline",
    "remove me from the texts about billing",
    "Please take me off the text list for the Tuesday class",
    "stop text reminders",
    "don’t text me unless it’s urgent",
    "unsubscribe me and sign up my brother",
    "Can I stop getting these texts?",
    "Are you going to stop texting me",
    "would you stop texting me if I pay",
    "I need you to stop texting me and just deliver it",
    "stop texting and driving",
    "stop all texts except delivery",
    "my friend wants you to stop texting him",
    "I don’t want any texts but emails are fine",
    "there are no more messages",
    "it says no more messages",
    "don’t call me, text me",
    "don’t call me or text my wife",
    "I’m opting out of the insurance",
    "Please stop by",
    "please don’t stop",
    "don’t stop texting me",
    "do not stop texting me",
    "never stop texting me",
    "please don’t ever stop",
    "can you stop by at 5?",
    "when will you stop texting me",
    "why did you stop texting me",
    "Did you stop texting me?",
    "You stopped texting me",
    "have you stopped sending me messages",
    "how do I stop these messages",
    "How can I unsubscribe?",
    "How do I opt out",
    "can I opt out later?",
    "What happens if I stop?",
    "should I text stop",
    "Do I have to text STOP to stop texting",
    "if you don’t stop texting me I will call the police",
    "If I want you to stop texting me, what do I do?",
    "stop texting me if you have nothing to say",
    "unless you stop texting me I will sue",
    "I told them to stop texting me",
    "I told her to stop texting me",
    "she said stop texting me",
    "He told me: stop texting me",
    "my wife said “stop texting me”",
    "Liked “Stop texting me”",
    "Laughed at “please remove me from your list”",
    "My boss asked you to stop texting me about work",
    "They should stop texting me",
    "I wish they would stop texting me",
    "Tell him to stop texting me",
    "please tell Bob to leave me alone",
    "stop texting my wife",
    "stop texting my husband please",
    "Stop texting her",
    "stop texting him",
    "Stop texting my son he is at work",
    "stop texting my old number",
    "stop texting everyone",
    "remove my wife from your list",
    "take him off your list",
    "Please take my daughter off the list",
    "remove us both from the reservation",
    "stop texting me so late",
    "stop texting me at night",
    "stop texting me after 9pm",
    "stop texting me on Sundays",
    "stop texting me today",
    "stop texting me until Monday",
    "stop texting me for now",
    "stop for now",
    "stop texting me twice",
    "stop texting me so much",
    "stop texting me every day",
    "stop texting me in Spanish",
    "Stop texting me about the couch",
    "stop texting me, email me instead",
    "don’t text me, call me",
    "Don’t text me now",
    "don't text me right now",
    "don’t text me today",
    "Don't text me before 10",
    "don’t text me back",
    "don't text me while I’m driving",
    "I don’t want any texts right now",
    "I don’t want to get texts at night",
    "I don’t want more than one text a day",
    "I don't want these messages to stop",
    "I don’t want you to stop texting me",
    "I don't want to miss any messages",
    "I don't want to stop getting texts",
    "I don't want to unsubscribe",
    "I do not want to opt out",
    "do not remove me from your list",
    "don’t remove me",
    "please don’t take me off the list",
    "Don’t unsubscribe me",
    "No, more messages please",
    "No. More messages please.",
    "No – more texts please",
    "no more messages until next week",
    "no more messages about shoes",
    "no more texts today, thanks",
    "no messages",
    "no texts yet",
    "No more questions",
    "no more pickles please",
    "can you remove the pickles",
    "remove the onions please",
    "please remove me from the 5pm class",
    "remove me from the waitlist",
    "take me off the schedule",
    "Take me off hold",
    "take me off",
    "take it off",
    "remove my number from the order",
    "Remove my card",
    "please cancel",
    "cancel my appointment",
    "please cancel my order",
    "cancel my subscription",
    "end of the month",
    "the end",
    "I quit my job",
    "quit smoking text line",
    "I want to quit",
    "I want out",
    "please quit",
    "stop sending the invoice to my old address",
    "stop sending me the wrong size",
    "Stop sending invoices",
    "stop the delivery",
    "stop the order",
    "stop the car",
    "stop my newspaper",
    "please stop the payment",
    "stop payment",
    "stop it",
    "stop that lol",
    "Stop!! You’re hilarious",
    "omg stop",
    "stop hahaha",
    "bus stop",
    "which stop do I get off",
    "the next stop please",
    "yes, stop",
    "No, stop",
    "yes stop here",
    "unsubscribe me from the newsletter",
    "unsubscribe me from emails",
    "unsubscribed",
    "opt me out of the insurance",
    "I want to opt out of overtime",
    "opt in",
    "revoke my access card",
    "START texting me",
    "text me",
    "Text me again please",
    "please text me",
    "You can stop texting me when I arrive",
    "feel free to stop texting me",
    "It’s ok to stop texting me",
    "I never said stop texting me",
    "I didn’t say remove me",
    "I was going to say stop texting me but I like these",
    "Not interested",
    "wrong number",
    "who is this",
    "no thanks",
    "Thanks",
    "leave me alone with the menu for a minute",
    "leave it alone",
    "I was left alone",
    "Delete my number and send me the new one",
    "please lose my number 5 shirt",
    "did you delete my number",
    "Stop texting me. Just kidding",
    "Stop texting me. Can you call instead?",
    "stop texting me lol jk",
    "Please stop texting me and call me tomorrow",
    "remove me from your list and add my wife",
    "Stop! Texting me is fine",
    "Don’t! Text me.",
    "Never. Text me.",
    "the last message said stop texting me or something, what did you mean by that?",
    "deja de llorar",
    "no quiero más tacos",
    "más mensajes por favor",
    "no, más mensajes por favor",
    "plus de messages",
    "arrête de rire",
    "td bank",
    "s t o p",
    "stopp",
    "ЅТОР texting me",
    "I don't want texts... no wait",
    "Can you opt out of these texts?",
    "could you unsubscribe from this list?",
    "Can you stop spam?",
    "can you stop messages from showing up twice",
    "Stop sending the message to the wrong person",
    "don't send the text yet",
    "Don't send the texts",
    "I don't want this text to go out",
    "I don't want all the messages, only the first",
    "I don't want any other texts than yours",
    "Should I tell you to stop texting me",
    "Please stop texting me. Actually never mind",
    "stop texting me mom",
    "quit playing",
    "I wish to have more messages",
    "text STOP to unsubscribe",
    "Reply STOP to stop texting me",
    "Do not text and drive",
    "don't text and drive",
    "no more spam calls from the bank thanks to you",
    "remove me from the meeting",
    "unsubscribe my ex",
    "Stop texting me? Why would I want that?",
    "Stop texting me 😂 what a line from that movie",
    "Stop texting me. " + "I mean it. " * 20,
]


@pytest.mark.parametrize("text", REVOCATIONS)
def test_a_revocation_in_other_words_is_a_stop(text: str) -> None:
    assert event_in(text) == event_in(text, opted_out=True) == "stop"
    assert revokes(text)


@pytest.mark.parametrize("text", NO_REVOCATIONS)
def test_what_says_more_or_something_else_is_no_revocation(text: str) -> None:
    assert event_in(text) is None


@pytest.mark.parametrize(("word", "event"), KEYWORDS)
def test_a_keyword_is_what_it_is(word: str, event: ConsentEvent) -> None:
    assert event_in(word) == event


def test_what_asks_for_our_texts_is_read_so_only_where_somebody_gets_none() -> None:
    assert event_in("Yes", opted_out=True) == "start"
    assert event_in("Yes") is None


# (An apostrophe or a quotation mark may be of any kind, and nothing in front of a text or after it
# counts.)
apostrophes = st.sampled_from("'’‘ʼ`")


@quiet
@given(
    st.sampled_from(REVOCATIONS),
    around,
    around,
    apostrophes,
    st.sampled_from(dresses),
    st.sampled_from(forms),
)
def test_every_revocation_in_every_dress(
    text: str,
    before: str,
    after: str,
    apostrophe: str,
    dress: Callable[[str], str],
    form: Literal["NFC", "NFD"],
) -> None:
    dressed = dress(unicodedata.normalize(form, text).replace("’", "'")).replace("'", apostrophe)
    assert revokes(before + dressed + after)


letters = st.text(st.characters(categories=("Lu", "Ll", "Lo")), min_size=1, max_size=12)


@quiet
@given(st.sampled_from(REVOCATIONS), letters, st.booleans())
def test_a_revocation_with_an_unrelated_sentence_is_none(text: str, word: str, first: bool) -> None:
    sentence = f"{word} heron."
    assert not revokes(f"{sentence} {text}" if first else f"{text}. {sentence}")


@quiet
@given(
    st.sampled_from(REVOCATIONS),
    st.sampled_from(["if", "unless", "until", "when", "about", "because", "heron"]),
    letters,
)
def test_a_revocation_under_a_condition_is_none(text: str, word: str, more: str) -> None:
    assert not revokes(f"{text} {word} {more} heron")
    assert not revokes(f"{word} {more} heron {text}")


@quiet
@given(st.text(st.characters()))
def test_reading_refuses_no_input(text: str) -> None:
    assert revokes(text) in (True, False)
    assert event_in(text) in (None, "stop", "start", "help")


@pytest.mark.parametrize(
    "text",
    ["please ", "stop ", "again ", "not interested ", "and ", " - ", "-", ". ", "a.", "no more "],
)
def test_the_longest_text_is_read_in_no_time(text: str) -> None:
    # (A pattern that backtracks would not end within the life of a test.)
    long = (text * LONGEST)[: LONGEST - 1]
    assert not revokes(f"stop texting me {long} heron")


@quiet
@given(
    st.lists(
        st.sampled_from(sorted({one for text in REVOCATIONS for one in text.lower().split()})),
        max_size=40,
    )
)
def test_reading_ends_whatever_the_order_of_its_own_words(words: list[str]) -> None:
    assert revokes(" ".join(words)) in (True, False)


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
