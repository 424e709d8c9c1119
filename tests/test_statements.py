"""What may be stated about somebody's consent, and what a statement is."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from chalicelib.messages import Keys
from chalicelib.statements import BadStatement, Statement, id_of, read
from tests.fakes import HASH_KEY, NOW, THEIRS

GOOD = {"number": THEIRS, "event": "stop", "at": NOW, "source": "telephone", "note": "a heron"}
SAID = Statement(THEIRS, "stop", NOW, "telephone", "a heron")


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in GOOD.items() if name not in names}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        pytest.param(GOOD, SAID, id="all of it"),
        pytest.param(without("note"), replace(SAID, note=""), id="no note"),
        pytest.param(without("at"), replace(SAID, at=NOW + 9), id="a stop is said now"),
        pytest.param({**GOOD, "at": None}, replace(SAID, at=NOW + 9), id="null is nothing"),
        pytest.param({**GOOD, "event": "start"}, replace(SAID, event="start"), id="start"),
        pytest.param({**GOOD, "number": "12345"}, replace(SAID, number="12345"), id="short code"),
        pytest.param({**GOOD, "at": 1_790_000_000}, SAID, id="whole seconds"),
        pytest.param({**GOOD, "at": "1790000000.0"}, SAID, id="seconds in a list"),
        pytest.param({**GOOD, "at": "2026-09-21T14:13:20Z"}, SAID, id="in UTC"),
        pytest.param({**GOOD, "at": "2026-09-21T16:13:20+02:00"}, SAID, id="in another zone"),
        # A clock that is ahead of ours says when by its own time.
        pytest.param({**GOOD, "at": NOW + 69}, replace(SAID, at=NOW + 9), id="a clock ahead"),
        pytest.param(
            {**GOOD, "source": "twilio: 21610"},
            replace(SAID, source="twilio: 21610"),
            id="as the list has it of a refusal",
        ),
    ],
)
def test_a_statement_is_read(fields: dict[str, Any], said: Statement) -> None:
    assert read(fields, NOW + 9) == said
    # AND as it is handed on it is read again
    assert read(asdict(said), NOW + 9) == said


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        (None, "may have: number, event, at, source, note"),
        ([GOOD], "may have"),
        ({**GOOD, "words": "x"}, "may have"),
        (without("number"), "number:"),
        ({**GOOD, "number": 14155550100}, "number:"),
        ({**GOOD, "number": "4155550100"}, "number:"),
        ({**GOOD, "number": f"{THEIRS} "}, "number:"),
        ({**GOOD, "number": "HERON"}, "number:"),
        (without("event"), "event:"),
        ({**GOOD, "event": "STOP"}, "event:"),
        ({**GOOD, "event": "help"}, "event:"),
        ({**GOOD, "event": ["stop"]}, "event:"),
        (without("source"), "source:"),
        ({**GOOD, "source": ""}, "source:"),
        ({**GOOD, "source": "x" * 41}, "source:"),
        ({**GOOD, "source": "mail\n"}, "source:"),
        ({**GOOD, "note": None}, "note:"),
        ({**GOOD, "note": "x" * 161}, "note:"),
        ({**without("at"), "event": "start"}, "at: a start must say when"),
        ({**GOOD, "at": "heron"}, "at:"),
        ({**GOOD, "at": True}, "at:"),
        ({**GOOD, "at": [NOW]}, "at:"),
        # Nobody knows whose midnight that was.
        ({**GOOD, "at": "2026-09-21"}, "time zone"),
        ({**GOOD, "at": "2026-09-21T14:13:20"}, "time zone"),
        ({**GOOD, "at": "0001-01-01T00:00:00+14:00"}, "at:"),
        ({**GOOD, "at": NOW + 61}, "at: must not be in the future"),
        ({**GOOD, "at": 1_790_000_000_000}, "at: must not be in the future"),
        ({**GOOD, "at": float("inf")}, "at: must not be in the future"),
        ({**GOOD, "at": 10**400}, "at: must not be in the future"),
        ({**GOOD, "at": float("nan")}, "at:"),
        # It would be beaten by whatever is on the list.
        ({**GOOD, "at": 20_260_921}, "nor before 1992"),
        ({**GOOD, "at": -NOW}, "nor before 1992"),
    ],
)
def test_what_is_no_statement_is_refused_by_the_name_of_the_field(fields: Any, names: str) -> None:
    with pytest.raises(BadStatement) as refused:
        read(fields, NOW)
    assert names in str(refused.value)
    for value in (THEIRS, "heron", "HERON"):
        assert value not in str(refused.value).replace("such as +14155550100", "")


@pytest.mark.parametrize(
    ("other", "same"),
    [
        pytest.param({}, True, id="the same again"),
        pytest.param({"number": "+14155550101"}, False, id="of another"),
        pytest.param({"event": "start"}, False, id="another event"),
        pytest.param({"at": NOW + 1}, False, id="another time"),
        pytest.param({"source": "mail"}, False, id="in another way"),
        pytest.param({"note": "another heron"}, False, id="with another note"),
    ],
)
def test_a_statement_is_what_it_says(other: dict[str, Any], same: bool) -> None:
    keys = Keys(HASH_KEY)
    assert (id_of(keys, SAID) == id_of(keys, replace(SAID, **other))) is same
