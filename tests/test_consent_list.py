"""The list of a brand on the table: who wants no texts of ours, and how we know."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ReadTimeoutError

from chalicelib.consent import KEPT, ConsentList, events_of, is_personal
from chalicelib.messages import ConsentEvent, Keys
from chalicelib.table import Table
from tests.fakes import (
    HASH_KEY,
    NOW,
    THEIRS,
    FakeRuntime,
    Lost,
    aws_error,
    no_answer,
    tapped,
)

pytestmark = pytest.mark.usefixtures("says_nothing")


def consent(runtime: FakeRuntime, brand: str = "default") -> ConsentList:
    return ConsentList(Table(runtime, "test"), Keys(HASH_KEY), brand)


def say(
    runtime: FakeRuntime, event: ConsentEvent, at: float = NOW, *, words: str = "Stop, heron"
) -> bool:
    return consent(runtime).record(
        THEIRS, event, at, words=words, source="twilio", id_=f"{event} at {at - NOW:g}"
    )


def entry(runtime: FakeRuntime) -> dict[str, Any]:
    (item,) = runtime.dynamodb.scan(TableName="spillway-test")["Items"]
    found = Table(runtime, "test").get((item["pk"]["S"], item["sk"]["S"]))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("said", "opted_out"),
    [
        pytest.param([], False, id="nothing"),
        pytest.param([("stop", 0)], True, id="stop"),
        pytest.param([("start", 0)], False, id="start"),
        pytest.param([("help", 0)], False, id="help"),
        pytest.param([("stop", 0), ("help", 9)], True, id="help changes nothing"),
        pytest.param([("stop", 0), ("start", 9)], False, id="start again"),
        pytest.param([("start", 0), ("stop", 9)], True, id="stop again"),
        pytest.param([("stop", 0), ("start", 2)], True, id="a tie: stop wins"),
        pytest.param([("start", 2), ("stop", 0)], True, id="a tie, in the other order"),
        pytest.param([("stop", 0), ("start", 2.5)], False, id="no tie any more"),
        pytest.param([("stop", 9), ("start", 0)], True, id="a start out of a dead-letter queue"),
        pytest.param([("start", 9), ("stop", 0)], False, id="a stop out of a dead-letter queue"),
        pytest.param([("stop", 0), ("stop", 9), ("start", 5)], True, id="a stop is moved on"),
    ],
)
def test_what_was_said_last_counts(
    runtime: FakeRuntime, said: list[tuple[ConsentEvent, float]], opted_out: bool
) -> None:
    for event, after in said:
        say(runtime, event, NOW + after)
    assert consent(runtime).opted_out(THEIRS) is opted_out


def test_an_event_says_whether_it_took_effect(runtime: FakeRuntime) -> None:
    assert say(runtime, "stop", NOW)
    assert say(runtime, "stop", NOW)  # the same once more: processing, then the sender
    assert not say(runtime, "start", NOW + 1)
    assert not say(runtime, "help", NOW + 9)
    assert say(runtime, "start", NOW + 9)


def test_evidence_is_kept_of_every_change_and_without_an_end(runtime: FakeRuntime) -> None:
    say(runtime, "start", NOW - 60)
    say(runtime, "stop", NOW + 0.5, words="Stop " + "heron " * 100)
    item = entry(runtime)
    assert item.pop("pk") == f"P#default#{Keys(HASH_KEY).number(THEIRS)}"
    assert item == {
        "sk": "CONSENT",
        "event": "stop",
        "at": NOW + 0.5,
        "words": ("Stop " + "heron " * 100)[:160],
        "source": "twilio",
        "id": "stop at 0.5",
        "since_id": "stop at 0.5",
        "number": THEIRS,
        "earlier": [
            {
                "event": "start",
                "at": NOW - 60,
                "words": "Stop, heron",
                "source": "twilio",
                "id": "start at -60",
            }
        ],
        "dropped": 0,
        "version": 2,
    }


def test_the_list_is_the_brands_and_the_numbers(runtime: FakeRuntime) -> None:
    say(runtime, "stop")
    assert not consent(runtime).opted_out(THEIRS[:-1] + "9")
    assert not consent(runtime, "other").opted_out(THEIRS)


@pytest.mark.parametrize(
    ("mine", "between", "opted_out"),
    [
        pytest.param(("start", 9), ("stop", 10), True, id="a later stop comes between"),
        pytest.param(("stop", 10), ("start", 9), True, id="an earlier start comes between"),
        pytest.param(("stop", 0), ("start", 9), False, id="a later start comes between"),
        pytest.param(("start", 9), ("stop", 8), True, id="a tie comes between"),
    ],
)
@pytest.mark.parametrize("before", [None, ("stop", -60), ("start", -60)])
def test_an_event_that_comes_between_read_and_write_is_not_lost(
    runtime: FakeRuntime,
    before: tuple[ConsentEvent, float] | None,
    mine: tuple[ConsentEvent, float],
    between: tuple[ConsentEvent, float],
    opted_out: bool,
) -> None:
    # GIVEN what was recorded long ago, or nothing
    if before is not None:
        say(runtime, before[0], NOW + before[1])

    # WHEN somebody else writes after I have read
    comes = [lambda: say(runtime, between[0], NOW + between[1])]
    tapped(runtime).next["update_item"] = iter(comes)
    say(runtime, mine[0], NOW + mine[1])

    # THEN the later of the two is there, a STOP where they tie
    assert consent(runtime).opted_out(THEIRS) is opted_out


def test_a_stop_is_not_lost_where_the_entry_is_deleted_meanwhile(runtime: FakeRuntime) -> None:
    # GIVEN an entry that somebody deletes by hand after it was read
    say(runtime, "start", NOW - 60)
    key = {"pk": {"S": entry(runtime)["pk"]}, "sk": {"S": "CONSENT"}}

    def erase() -> None:
        runtime.dynamodb.delete_item(TableName="spillway-test", Key=key)

    tapped(runtime).next["update_item"] = iter([erase])

    # THEN it is recorded all the same
    assert say(runtime, "stop")
    assert consent(runtime).opted_out(THEIRS)


@pytest.mark.parametrize("before", [False, True])
def test_an_event_whose_answer_was_lost_is_written_again(
    runtime: FakeRuntime, before: bool
) -> None:
    if before:
        say(runtime, "start", NOW - 60)
    tapped(runtime).next["update_item"] = iter([Lost(no_answer())])
    with pytest.raises(ReadTimeoutError):
        say(runtime, "stop")
    assert say(runtime, "stop")
    assert consent(runtime).opted_out(THEIRS)


@pytest.mark.parametrize("operation", ["get_item", "update_item"])
def test_a_table_that_is_down_is_no_consent(runtime: FakeRuntime, operation: str) -> None:
    down = aws_error("InternalServerError")
    tapped(runtime).next[operation] = iter([down, down])
    with pytest.raises(Exception, match="InternalServerError"):
        say(runtime, "stop")
    if operation == "get_item":
        with pytest.raises(Exception, match="InternalServerError"):
            consent(runtime).opted_out(THEIRS)


# --- what is kept of it --------------------------------------------------------------------------


def told(runtime: FakeRuntime) -> list[str]:
    """The ids of the events that are kept, the oldest first."""
    return [one["id"] for one in events_of(consent(runtime).find(THEIRS))]


def test_the_number_is_kept_for_as_long_as_it_is_opted_out(runtime: FakeRuntime) -> None:
    kept = []
    events: list[ConsentEvent] = ["start", "stop", "start", "stop"]
    for after, event in enumerate(events):
        say(runtime, event, NOW + 9 * after)
        kept.append(entry(runtime)["number"])
    assert kept == ["", THEIRS, "", THEIRS]


def test_what_took_no_effect_is_no_event(runtime: FakeRuntime) -> None:
    say(runtime, "stop", NOW)
    later: list[tuple[ConsentEvent, float]] = [("start", 1), ("stop", -5), ("help", 9)]
    for event, after in later:
        say(runtime, event, NOW + after)
    assert told(runtime) == ["stop at 0"]


def test_what_is_said_twice_is_one_event_whatever_else_is_said(runtime: FakeRuntime) -> None:
    # GIVEN two STOPs at once, each of which both functions record
    hear(runtime, ("stop", 0, "A"), ("stop", 0, "B"), ("stop", 0, "A"), ("stop", 0, "B"))
    assert told(runtime) == ["A", "B"]
    # AND after a START they would be heard, if they could be said later
    hear(runtime, ("start", 9, "S"), ("stop", 20, "A"))
    assert told(runtime) == ["A", "B", "S", "A"]


def test_of_somebody_who_never_ends_the_newest_are_kept(runtime: FakeRuntime) -> None:
    for number in range(KEPT + 5):
        hear(runtime, ("start" if number % 2 else "stop", 9.0 * number, f"e{number}"))
    assert told(runtime) == [f"e{number}" for number in range(5, KEPT + 5)]
    assert entry(runtime)["dropped"] == 5


def test_an_event_that_comes_between_is_evidence_too(runtime: FakeRuntime) -> None:
    # GIVEN an entry that looks after somebody's write as it did before it, but for what is kept
    hear(runtime, ("stop", 0, "A"))
    between = [lambda: hear(runtime, ("start", 9, "S"), ("stop", 18, "A"))]
    tapped(runtime).next["update_item"] = iter(between)
    hear(runtime, ("stop", 20, "B"))
    assert told(runtime) == ["A", "S", "A", "B"]


def test_a_message_that_says_something_again_leaves_what_it_said_once(
    runtime: FakeRuntime,
) -> None:
    hear(runtime, ("stop", 0, "A"), ("stop", 9, "B"), ("stop", 7200, "A"))
    assert told(runtime) == ["A", "B"]
    assert entry(runtime)["at"] == NOW + 9


def test_an_erased_entry_has_neither_number_nor_words_and_says_all_the_rest(
    runtime: FakeRuntime,
) -> None:
    # GIVEN somebody who said STOP, START and STOP
    hear(runtime, ("stop", 0, "A"), ("start", 9, "S"), ("stop", 18, "B"))
    before = entry(runtime)
    assert is_personal(before)
    # WHEN they are erased, twice
    for _ in range(2):
        consent(runtime).erase((before["pk"], before["sk"]))
    # THEN they are opted out, and it can be shown since when
    after = entry(runtime)
    assert not is_personal(after)
    assert consent(runtime).opted_out(THEIRS)
    assert told(runtime) == ["A", "S", "B"]
    assert [(one["at"], one["words"]) for one in events_of(after)] == [
        (NOW, ""),
        (NOW + 9, ""),
        (NOW + 18, ""),
    ]
    assert {n for n in before if before[n] != after[n]} == {
        "words",
        "number",
        "earlier",
        "version",
    }


def test_words_that_were_erased_do_not_come_back(runtime: FakeRuntime) -> None:
    # GIVEN an event that is read, before they are erased, and written after it
    hear(runtime, ("stop", 0, "A"))
    key = (entry(runtime)["pk"], "CONSENT")
    tapped(runtime).next["update_item"] = iter([lambda: consent(runtime).erase(key)])
    hear(runtime, ("start", 9, "S"))
    assert [one["words"] for one in events_of(entry(runtime))] == ["", "Stop, heron"]


def test_an_event_that_comes_while_they_are_erased_is_not_lost(runtime: FakeRuntime) -> None:
    hear(runtime, ("start", 0, "S"))
    key = (entry(runtime)["pk"], "CONSENT")
    tapped(runtime).next["update_item"] = iter([lambda: hear(runtime, ("stop", 9, "A"))])
    consent(runtime).erase(key)
    assert consent(runtime).opted_out(THEIRS)
    assert not is_personal(entry(runtime))


def test_an_entry_by_hand_is_changed_once_by_each(runtime: FakeRuntime) -> None:
    # GIVEN an entry without a version, and an event that comes between read and write
    key = (f"P#default#{Keys(HASH_KEY).number(THEIRS)}", "CONSENT")
    by_hand = {"event": "start", "at": NOW, "words": "", "source": "", "id": ""}
    Table(runtime, "test").insert({"pk": key[0], "sk": key[1], **by_hand})
    tapped(runtime).next["update_item"] = iter([lambda: hear(runtime, ("stop", 9, "A"))])
    hear(runtime, ("start", 20, "S"))
    assert told(runtime) == ["", "A", "S"]


# --- which message is confirmed ------------------------------------------------------------------

Said = tuple[ConsentEvent, float, str]


def hear(runtime: FakeRuntime, *said: Said) -> None:
    for event, after, id_ in said:
        consent(runtime).record(
            THEIRS, event, NOW + after, words="Stop, heron", source="twilio", id_=id_
        )


@pytest.mark.parametrize(
    ("said", "confirmed"),
    [
        pytest.param([], "", id="nothing"),
        pytest.param([("stop", 0, "A")], "A", id="stop"),
        pytest.param([("stop", 0, "A"), ("stop", 0, "A")], "A", id="the same stop, twice"),
        pytest.param([("stop", 0, "A"), ("stop", 9, "B")], "A", id="stop again"),
        pytest.param([("stop", 0, "A"), ("stop", 0, "B")], "A", id="two at once"),
        pytest.param(
            [("stop", 0, "A"), ("stop", 9, "B"), ("stop", 5, "C")], "A", id="and one between"
        ),
        pytest.param([("stop", 9, "B"), ("stop", 0, "A")], "B", id="stop again, recorded first"),
        pytest.param(
            [("stop", 0, "A"), ("stop", 9, "B"), ("stop", 0, "A")], "A", id="the first comes again"
        ),
        pytest.param([("start", 9, "S"), ("stop", 0, "A")], "", id="a stop without effect"),
        pytest.param([("stop", 0, "A"), ("start", 9, "S")], "", id="start"),
        pytest.param(
            [("stop", 0, "A"), ("start", 9, "S"), ("stop", 20, "B")], "B", id="stop, start, stop"
        ),
        pytest.param(
            [("stop", 0, "A"), ("start", 9, "S"), ("stop", 20, "B"), ("stop", 0, "A")],
            "B",
            id="stop, start, stop, and the first again",
        ),
        pytest.param(
            [("stop", 0, "A"), ("stop", 20, "B"), ("start", 9, "S")],
            "A",
            id="stop, start, stop, the start late",
        ),
        pytest.param([("stop", 0, "A"), ("start", 2, "S")], "A", id="a start that ties"),
        pytest.param([("start", 2, "S"), ("stop", 0, "A")], "A", id="a stop that ties"),
    ],
)
def test_one_message_is_the_one_that_opted_out(
    runtime: FakeRuntime, said: list[Said], confirmed: str
) -> None:
    hear(runtime, *said)
    by = [id_ for id_ in ("A", "B", "C", "S") if consent(runtime).opted_out_by(THEIRS, id_)]
    assert by == ([confirmed] if confirmed else [])


def test_who_says_stop_at_once_to_two_numbers_of_ours_opted_out_by_one(
    runtime: FakeRuntime,
) -> None:
    # GIVEN a second STOP that is recorded between our read and our write
    tapped(runtime).next["update_item"] = iter([lambda: hear(runtime, ("stop", 1, "B"))])
    hear(runtime, ("stop", 2, "A"))
    assert entry(runtime)["at"] == NOW + 2
    assert consent(runtime).opted_out_by(THEIRS, "B")
    assert not consent(runtime).opted_out_by(THEIRS, "A")


def test_a_duplicate_of_a_stop_says_it_no_later(runtime: FakeRuntime) -> None:
    # GIVEN a STOP, a START after it, and a duplicate webhook of the STOP that came hours later
    hear(runtime, ("stop", 0, "A"), ("stop", 7200, "A"))
    assert entry(runtime)["at"] == NOW
    hear(runtime, ("start", 60, "S"))
    assert not consent(runtime).opted_out(THEIRS)


def test_an_entry_by_hand_is_an_opt_out_that_no_message_brought_about(
    runtime: FakeRuntime,
) -> None:
    key = (f"P#default#{Keys(HASH_KEY).number(THEIRS)}", "CONSENT")
    by_hand = {"event": "stop", "at": NOW, "id": ""}
    Table(runtime, "test").insert({"pk": key[0], "sk": key[1], **by_hand})
    hear(runtime, ("stop", 9, "A"))
    assert consent(runtime).opted_out(THEIRS)
    assert not consent(runtime).opted_out_by(THEIRS, "A")
    assert told(runtime) == ["", "A"]


def test_a_stop_by_telephone_is_confirmed_by_no_text(runtime: FakeRuntime) -> None:
    # GIVEN a STOP by telephone, and one in a text after it
    hear(runtime, ("stop", 0, "by telephone"), ("stop", 9, "A"))
    assert not consent(runtime).opted_out_by(THEIRS, "A")
    # AND one in a text, which is confirmed, whatever is said by telephone then
    hear(runtime, ("start", 20, "S"), ("stop", 30, "B"), ("stop", 40, "by telephone again"))
    assert consent(runtime).opted_out_by(THEIRS, "B")


# --- refusals of a provider ----------------------------------------------------------------------


def refuse(runtime: FakeRuntime, after: float = 0, id_: str = "R") -> None:
    consent(runtime).record_refusal(THEIRS, NOW + after, provider="twilio", code="21610", id_=id_)


def test_a_refusal_is_an_opt_out_with_its_evidence(runtime: FakeRuntime) -> None:
    refuse(runtime)
    found = entry(runtime)
    assert {name: found[name] for name in ("event", "at", "words", "source", "id")} == {
        "event": "stop",
        "at": NOW,
        "words": "",
        "source": "twilio: 21610",
        "id": "R",
    }


def test_a_stop_after_a_refusal_is_not_the_one_that_opted_out(runtime: FakeRuntime) -> None:
    refuse(runtime)
    hear(runtime, ("stop", 9, "A"))
    assert not consent(runtime).opted_out_by(THEIRS, "A")


def test_a_confirmation_that_is_refused_leaves_the_words_of_the_stop(
    runtime: FakeRuntime,
) -> None:
    # GIVEN a network that blocks all texts to whoever says STOP, our confirmation included
    hear(runtime, ("stop", 0, "A"))
    refuse(runtime, 3, "A")
    found = entry(runtime)
    assert (found["words"], found["source"]) == ("Stop, heron", "twilio")
