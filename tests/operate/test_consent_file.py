"""Lists of consent as files: what is read of them, what is wrong with them, and what is written."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from chalicelib.statements import Statement
from spillway.operate.consent_file import found_in, written
from spillway.problem import Problem
from tests.fakes import NOW

THEIRS, OTHERS = "+14155550142", "+14155550143"
WHEN, AT = "2026-09-21T14:13:20Z", 1_790_000_000.0
HEADER = "number,event,at,source,note\n"
DEFAULTS = {"event": "stop", "source": "old-system", "at": WHEN}
SAID = Statement(THEIRS, "stop", AT, "old-system")


@pytest.mark.parametrize(
    ("text", "defaults", "said"),
    [
        pytest.param(
            f'{HEADER}{THEIRS},stop,{WHEN},mail,"stop, heron"\n',
            {},
            [Statement(THEIRS, "stop", AT, "mail", "stop, heron")],
            id="all columns",
        ),
        pytest.param(
            f"Event, Number ,AT,source\r\nstart,{THEIRS},{AT:.0f},counter\r\n",
            {},
            [Statement(THEIRS, "start", AT, "counter")],
            id="in another order",
        ),
        pytest.param(f"{THEIRS}\n{OTHERS}\n", DEFAULTS, [SAID, SAID], id="numbers alone"),
        pytest.param(f"number\n{THEIRS}\n", DEFAULTS, [SAID], id="a column of numbers"),
        pytest.param(f"\n\n{THEIRS}\n , \n", DEFAULTS, [SAID], id="empty lines"),
        pytest.param(
            f"{HEADER}{THEIRS},,,,\n{THEIRS},start,{AT - 9},,by mail\n",
            DEFAULTS,
            [SAID, Statement(THEIRS, "start", AT - 9, "old-system", "by mail")],
            id="what a line says comes first",
        ),
        pytest.param(f'{HEADER}{THEIRS},stop,{WHEN},"x\ny"', DEFAULTS, None, id="a line in a cell"),
        pytest.param("", DEFAULTS, [], id="nothing"),
    ],
)
def test_a_list_is_read(text: str, defaults: dict[str, str], said: list[Statement] | None) -> None:
    found = found_in(text, defaults, "", NOW)
    if said is None:
        # (No source has two lines; what matters is which line is named: that on which it ends.)
        assert list(found.wrong) == [3]
        return
    assert not found.wrong
    assert [(one.event, one.at, one.source, one.note) for one in found.said] == [
        (one.event, one.at, one.source, one.note) for one in said
    ]
    assert {one.number for one in found.said} <= {THEIRS, OTHERS}


@pytest.mark.parametrize(
    ("text", "region", "number"),
    [
        (THEIRS, "", THEIRS),
        (" +1 (415) 555-0142 ", "", THEIRS),
        ("+1.415.555.0142", "DE", THEIRS),
        ("(415) 555-0142", "US", THEIRS),
        ("415/555\u00a00142", "US", THEIRS),
        ("001 415 555 0142", "DE", THEIRS),
        ("07700 900123", "GB", "+447700900123"),
        # Of eight digits are numbers in Norway, and short codes nowhere on this list.
        ("40 61 23 45", "NO", "+4740612345"),
        ("4155550142", "", "number: is none, or names no country"),
        ("40612345", "", "number: is none, or names no country"),
        ("12345", "", "number: is none, or names no country"),
        ("07700 900123", "US", "number: is too long or too short"),
        ("5550142", "DE", "+495550142"),
        ("+1415555", "", "number: is too long or too short"),
        ("+1 415 555 0142 0142", "", "number: is too long or too short"),
        # As a spreadsheet makes it.
        ("1.41556E+10", "US", "number: is none"),
        ("heron", "US", "number: is none"),
        ("1-800-HERONS", "US", "number: is none"),
        ("", "US", "number: is none"),
    ],
)
def test_a_number_is_read_as_people_write_it(text: str, region: str, number: str) -> None:
    found = found_in(f'number,note\n"{text}",x\n', DEFAULTS, region, NOW)
    if number.startswith("+"):
        assert [one.number for one in found.said] == [number]
    else:
        assert found.said == []
        assert found.wrong[2].startswith(number)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (f"{THEIRS},halt,{WHEN},mail,", "event:"),
        (f"{THEIRS},stop,2026-09-21,mail,", "at:"),
        (f"{THEIRS},stop,2999-01-01T00:00:00Z,mail,", "at: must not be in the future"),
        (f"{THEIRS},stop,,mail,", "at: must say when; or give --at"),
        (f"{THEIRS},stop,{WHEN},,", "source:"),
        (f"{THEIRS},stop,{WHEN},mail,{'heron ' * 40}", "note:"),
        (f"{THEIRS},stop,{WHEN},mail,a,heron", "more values than columns"),
        (f"{THEIRS}x,stop,{WHEN},mail,", "number: is none"),
    ],
)
def test_every_wrong_line_is_named_and_no_number_shown(line: str, says: str) -> None:
    good = f"{OTHERS},stop,{WHEN},mail,\n"
    found = found_in(f"{HEADER}{line}\n{good}{line}\n", {}, "", NOW)
    assert list(found.wrong) == [2, 4]
    assert found.wrong[2].startswith(says) or says in found.wrong[2]
    assert not any(word in str(found.wrong) for word in ("5550142", "heron", "halt", "2999"))
    assert len(found.said) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"{THEIRS},stop\n", "first line must name the columns"),
        ("number,number\n", "each once"),
        ("number,phone\n", "The columns may be"),
        (f'number\n"{THEIRS}\n', "Line 2"),
    ],
)
def test_what_is_no_list_is_said(text: str, says: str) -> None:
    with pytest.raises(Problem, match=says) as problem:
        found_in(text, DEFAULTS, "", NOW)
    assert "555" not in str(problem.value)


def entry(**fields: Any) -> dict[str, Any]:
    return {
        "pk": f"P#default#{'a' * 24}",
        "sk": "CONSENT",
        "event": "stop",
        "at": AT,
        "words": "",
        "source": "twilio",
        "id": "A",
        "number": THEIRS,
        **fields,
    }


def test_what_is_written_is_read_again() -> None:
    words = 'stop, "heron"\r\nnow'
    text = written(
        [
            entry(words=words),
            entry(number=OTHERS, at=AT + 0.25, source="twilio: 21610"),
            # Who came back, was erased, or is nobody that can be texted.
            entry(event="start", number=""),
            entry(number="", pk=f"P#default#{'b' * 24}"),
            entry(number="12345"),
            entry(number="HERON"),
        ]
    )
    found = found_in(text, {}, "", NOW + 9)
    assert found.said == [
        Statement(THEIRS, "stop", AT, "twilio", words),
        Statement(OTHERS, "stop", AT + 0.25, "twilio: 21610"),
    ]
    assert (found.wrong, found.erased) == ({}, 1)
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert rows[-1][0] == f"erased:{'b' * 24}"
    assert len(rows) == 4
