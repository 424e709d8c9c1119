"""`spillway consent` on a real table: what is shown, recorded, brought along and taken away."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from chalicelib.consent import ConsentList, events_of
from chalicelib.messages import Keys
from chalicelib.table import Table
from spillway import cli
from spillway.operate import consent
from spillway.problem import Problem
from spillway.stage import Stage
from tests.fakes import HASH_KEY, FakeRuntime
from tests.operate.world import NAME

KEYS = Keys(HASH_KEY)
THEIRS, OTHERS, THIRD = "+14155550142", "+14155550143", "+14155550144"
WHEN, AT = "2026-09-21T14:13:20Z", 1_790_000_000.0
NOW = AT + 86_400


class World:
    """A stage, its list, and a clock that only waiting moves."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.runtime = FakeRuntime()
        self.runtime.__dict__["dynamodb"] = stage.aws.client("dynamodb")
        self.list = ConsentList(Table(self.runtime, NAME), KEYS, "default")

    def say(self, number: str, event: Any, after: float, id_: str, words: str = "heron") -> None:
        self.list.record(number, event, AT + after, words=words, source="twilio", id_=id_)

    def told(self, number: str = THEIRS) -> list[tuple[str, float, str]]:
        """The events of a number: which, when, through whom."""
        events = events_of(self.list.find(number))
        return [(one["event"], one["at"], one["source"]) for one in events]

    def clear(self) -> None:
        client = self.stage.aws.client("dynamodb")
        for item in client.scan(TableName=f"spillway-{NAME}")["Items"]:
            key = {"pk": item["pk"], "sk": item["sk"]}
            client.delete_item(TableName=f"spillway-{NAME}", Key=key)


@pytest.fixture
def world(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(stage)
    made.runtime.clock = NOW

    @contextmanager
    def found(name: str) -> Iterator[Stage]:
        assert name == "local"
        yield stage

    monkeypatch.setattr(consent, "stage_named", found)
    monkeypatch.setattr(Stage, "runtime", lambda self: made.runtime)
    yield made
    made.clear()


def spillway(*arguments: object, typed: str = "", hidden: bool = True) -> Result:
    """`hidden`: whether nothing that it shows may have a number in it."""
    result = CliRunner().invoke(cli.app, ["consent", *map(str, arguments)], input=typed)
    assert not hidden or "415555" not in result.output
    if result.exception and not isinstance(result.exception, SystemExit | Problem):
        raise result.exception
    return result


# --- show ----------------------------------------------------------------------------------------


def test_of_somebody_who_never_said_anything_that_is_said(world: World) -> None:
    result = spillway("show", THEIRS)
    assert result.exit_code == 0
    assert "…42 in stage local never said STOP or START" in result.output
    told = json.loads(spillway("show", THEIRS, "--json").output)
    assert told == {
        "stage": "local",
        "number": "…42",
        "state": "nothing_said",
        "since": None,
        "events": [],
        "dropped": 0,
    }


def test_what_holds_is_shown_since_when_and_with_what_proves_it(world: World) -> None:
    world.say(THEIRS, "stop", 0, "A", words="please stop, heron")
    world.say(THEIRS, "start", 60, "S")
    world.say(THEIRS, "stop", 120, "B")
    world.say(THEIRS, "stop", 180, "C")
    result = spillway("show", THEIRS)
    assert "…42 in stage local is opted out since 2026-09-21 14:15:20 UTC" in result.output
    assert "please stop, heron" in result.output
    told = json.loads(spillway("show", THEIRS, "--json").output)
    assert (told["state"], told["since"]) == ("opted_out", AT + 120)
    assert [one["id"] for one in told["events"]] == ["A", "S", "B", "C"]
    # AND of somebody who came back
    world.say(THEIRS, "start", 240, "S2")
    assert "is opted in again since 2026-09-21 14:17:20 UTC" in spillway("show", THEIRS).output


@pytest.mark.parametrize("number", ["4155550142", "heron", "HERON"])
def test_what_is_no_number_is_said(world: World, number: str) -> None:
    result = spillway("show", number, hidden=False)
    assert isinstance(result.exception, Problem)
    assert number not in str(result.exception)


# --- stop and start ------------------------------------------------------------------------------


def test_a_stop_by_telephone_holds_at_once(world: World) -> None:
    result = spillway("stop", THEIRS, "--source", "telephone", "--note", "at 10:31, by Ann")
    assert result.exit_code == 0
    assert "…42 in stage local is opted out since 2026-09-22 14:13:20 UTC" in result.output
    assert world.list.opted_out(THEIRS)
    entry = world.list.find(THEIRS)
    assert entry is not None
    assert (entry["words"], entry["number"]) == ("at 10:31, by Ann", THEIRS)


def test_what_says_when_is_the_same_if_it_is_said_again(world: World) -> None:
    for _ in range(2):
        arguments = ("stop", THEIRS, "--source", "mail", "--at", WHEN, "--json")
        told = json.loads(spillway(*arguments).output)
    assert (told["state"], told["since"], len(told["events"])) == ("opted_out", AT, 1)


@pytest.mark.parametrize(
    ("before", "command", "code"),
    [
        pytest.param([("start", 60)], "stop", 1, id="a stop before a start"),
        pytest.param([("stop", 60)], "start", 1, id="a start before a stop"),
        pytest.param([("stop", 1)], "start", 1, id="a tie"),
        pytest.param([("stop", 60)], "stop", 0, id="a stop before a stop"),
        pytest.param([("stop", -60)], "start", 0, id="a start after a stop"),
        pytest.param([], "start", 0, id="a start"),
    ],
)
def test_the_command_fails_where_something_later_says_otherwise(
    world: World, before: list[tuple[str, float]], command: str, code: int
) -> None:
    for event, after in before:
        world.say(THEIRS, event, after, "A")
    result = spillway(command, THEIRS, "--source", "mail", "--at", AT, typed="y\n")
    assert result.exit_code == code
    assert (str(result.exception) if code else "").startswith(
        "Something that was said later counts" if code else ""
    )
    assert world.list.opted_out(THEIRS) is ((command == "stop") != bool(code))


def test_a_start_asks_for_proof(world: World) -> None:
    world.say(THEIRS, "stop", 0, "A")
    result = spillway("start", THEIRS, "--source", "counter", typed="n\n")
    assert result.exit_code == 1
    assert "Did …42 ask for our texts, and can you prove it?" in result.output
    assert world.list.opted_out(THEIRS)
    assert spillway("start", THEIRS, "--source", "counter", "--yes").exit_code == 0
    assert not world.list.opted_out(THEIRS)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((THEIRS, "--source", ""), "source: must be"),
        ((THEIRS, "--source", "mail", "--at", "yesterday"), "at: must be"),
        ((THEIRS, "--source", "mail", "--at", "2999-01-01T00:00:00Z"), "at: must not be in the"),
        ((THEIRS, "--source", "mail", "--note", "heron " * 40), "note: must be"),
        (("heron", "--source", "mail"), "number: must be"),
    ],
)
def test_what_cannot_be_recorded_is_said(
    world: World, arguments: tuple[str, ...], says: str
) -> None:
    result = spillway("stop", *arguments)
    assert isinstance(result.exception, Problem)
    assert str(result.exception).startswith(says)
    assert "heron" not in str(result.exception)
    assert world.told() == []


# --- import --------------------------------------------------------------------------------------

LIST = f"""number,event,at,source,note
{THEIRS},stop,{WHEN},mail,a letter
{OTHERS},stop,{WHEN},twilio,"STOP, heron"
erased:{"e" * 24},stop,{WHEN},twilio,
"""


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], Path]:
    def made(text: str) -> Path:
        path = tmp_path / "list.csv"
        path.write_text(text, newline="")
        return path

    return made


def test_a_list_is_brought_along_and_again_changes_nothing(
    world: World, file: Callable[[str], Path]
) -> None:
    # GIVEN somebody who has come back here since
    world.say(OTHERS, "start", 60, "S")
    for _ in range(2):
        result = spillway("import", file(LIST))
        assert result.exit_code == 0
        assert "1 of 2 lines are on the list of stage local; of 1 something" in result.output
        assert "1 more were erased where the list was made" in result.output
        assert world.told() == [("stop", AT, "mail")]
        assert world.told(OTHERS) == [("start", AT + 60, "twilio")]
    told = json.loads(spillway("import", file(LIST), "--json").stdout)
    assert told == {"stage": "local", "lines": 2, "recorded": 1, "overtaken": 1, "erased": 1}


def test_numbers_alone_are_brought_along_with_what_they_do_not_say(
    world: World, file: Callable[[str], Path]
) -> None:
    numbers = file("\ufeff(415) 555-0142\n415-555-0143\n")
    options = ("--event", "stop", "--source", "old-system", "--at", WHEN, "--region", "US")
    assert spillway("import", numbers, *options).exit_code == 0
    assert world.told() == world.told(OTHERS) == [("stop", AT, "old-system")]


def test_a_wrong_line_is_named_and_nothing_recorded(
    world: World, file: Callable[[str], Path]
) -> None:
    wrong = file(f"{LIST}{THIRD},halt,{WHEN},mail,\nheron,stop,{WHEN},mail,\n")
    result = spillway("import", wrong)
    assert result.exit_code == 1
    assert "! line 5: event: must be stop or start" in result.output
    assert "! line 6: number: is none" in result.output
    assert "2 lines are wrong; nothing is recorded." in result.output
    told = json.loads(spillway("import", wrong, "--json").stdout)
    assert [one["line"] for one in told["wrong"]] == [5, 6]
    assert [*world.told(), *world.told(OTHERS)] == []


def test_a_list_that_is_not_there_is_said(world: World, tmp_path: Path) -> None:
    result = spillway("import", tmp_path / "list.csv")
    assert str(result.exception).endswith("list.csv: No such file or directory.")


def test_who_opts_people_in_is_asked_for_proof(world: World, file: Callable[[str], Path]) -> None:
    both = file(f"{LIST}{THIRD},start,{WHEN},counter,\n")
    result = spillway("import", both, typed="n\n")
    assert result.exit_code == 1
    assert "1 of the 3 lines opt people in." in result.output
    assert world.told(THIRD) == world.told() == []
    assert spillway("import", both, "--yes").exit_code == 0
    assert world.told(THIRD) == [("start", AT, "counter")]


def test_lines_are_recorded_no_faster_than_they_may_be(
    world: World, file: Callable[[str], Path]
) -> None:
    lines = "".join(f"+141555501{n:02d},stop,{WHEN},mail,\n" for n in range(40))
    assert spillway("import", file(f"{LIST}{lines}"), "--rate", 7).exit_code == 0
    assert world.runtime.clock - NOW == pytest.approx(42 / 7, abs=0.01)


def test_an_import_that_died_goes_on_where_it_is_run_again(
    world: World, file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN one that dies after 15 of 25 lines
    lines = "".join(f"+141555501{n:02d},stop,{WHEN},mail,\n" for n in range(25))
    record, done = ConsentList.record_statement, 0

    def dying(self: ConsentList, said: Any) -> bool:
        nonlocal done
        done += 1
        if done > 15:
            raise KeyboardInterrupt
        return record(self, said)

    numbers = file(f"number,event,at,source,note\n{lines}")
    with monkeypatch.context() as patch:
        patch.setattr(ConsentList, "record_statement", dying)
        spillway("import", numbers)
    assert sum(world.told(f"+141555501{n:02d}") != [] for n in range(25)) == 15
    # THEN all is on the list after the next, once
    assert spillway("import", numbers).exit_code == 0
    for n in range(25):
        assert world.told(f"+141555501{n:02d}") == [("stop", AT, "mail")]


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        (b"\xff\xfe\x00", (), "is no text in UTF-8"),
        (b"+14155550142,stop\n", (), "The first line must name the columns"),
        (b"+14155550142\n", ("--region", "us"), "--region: must be"),
    ],
)
def test_what_is_no_list_is_said(
    world: World, tmp_path: Path, content: bytes, options: tuple[str, ...], says: str
) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(content)
    result = spillway("import", path, *options)
    assert says in str(result.exception)


# --- export --------------------------------------------------------------------------------------


def test_what_is_taken_away_can_be_brought_along(world: World, tmp_path: Path) -> None:
    # GIVEN people who opted out in several ways, who came back, and who was erased
    world.say(THEIRS, "stop", 0.25, "A", words='Stop, "heron"\n')
    world.say(OTHERS, "stop", 0, "B")
    world.say(OTHERS, "start", 60, "S")
    spillway("stop", THIRD, "--source", "telephone", "--note", "at 10:31")
    world.say("+14155550145", "stop", 9, "C")
    world.list.erase(world.list.key("+14155550145"))
    # AND what is on the table besides
    world.list._table.insert({"pk": "C#c", "sk": "IN#1", "event": "stop", "at": AT})
    ConsentList(Table(world.runtime, NAME), KEYS, "other").record(
        OTHERS, "stop", AT, words="", source="x", id_="D"
    )

    # WHEN the list is taken away
    path = tmp_path / "away.csv"
    result = spillway("export", path)
    assert result.exit_code == 0
    assert "3 are opted out" in result.output
    assert "1 of them were erased" in result.output
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["away.csv"]
    away = path.read_text()
    assert away == spillway("export", "-", hidden=False).stdout

    # AND brought to where nobody is on the list
    world.clear()
    assert spillway("import", path).exit_code == 0

    # THEN the same people are opted out, since when and with what proved it
    assert world.told() == [("stop", AT + 0.25, "twilio")]
    assert world.told(THIRD) == [("stop", NOW, "telephone")]
    assert not world.list.opted_out(OTHERS)
    again = spillway("export", "-", hidden=False).stdout
    erased = f"erased:{KEYS.number('+14155550145')},stop,2026-09-21T14:13:29+00:00,twilio,\n"
    assert erased in away
    assert again == away.replace(erased, "")


def test_a_file_that_cannot_be_written_is_said(world: World, tmp_path: Path) -> None:
    result = spillway("export", tmp_path / "nowhere" / "list.csv")
    assert str(result.exception).endswith("list.csv: No such file or directory.")


def test_all_that_proves_it_is_taken_away_as_json(world: World, tmp_path: Path) -> None:
    world.say(THEIRS, "stop", 0, "A")
    world.say(OTHERS, "stop", 1, "B")
    world.say(OTHERS, "start", 60, "S")
    first, second = json.loads(spillway("export", "-", "--json", hidden=False).stdout)
    assert (first["number"], first["state"], first["since"]) == (THEIRS, "opted_out", AT)
    assert (second["number"], second["hash"]) == ("", KEYS.number(OTHERS))
    assert [one["id"] for one in second["events"]] == ["B", "S"]
