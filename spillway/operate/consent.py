"""`spillway consent`: the list of who wants our texts, shown, added to, brought along and taken
away.

Whatever is added is written as the functions write it, by the list's own rule: what was said later
counts, a STOP where two tie. So each of these can die anywhere and be run again:

    stop, start    nothing or all of it is done; again it is another statement of the same, unless
                   --at says when
    import         the lines before are done; done again they change nothing, since each has the
                   time at which it was said
    export         the file is as it was, until it is replaced by the whole
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table as Shown

from chalicelib.consent import ConsentList, events_of
from chalicelib.messages import mask, number_kind
from chalicelib.statements import BadStatement, Statement, read
from chalicelib.table import Item, Table
from spillway.operate.consent_file import ERASED, found_in, written
from spillway.problem import Problem
from spillway.stage import LOCAL, Stage, StageOption, stage_named

app = typer.Typer(
    no_args_is_help=True,
    help="Who wants our texts: show, stop, start, import, export.",
)

TOGETHER = 10  # lines recorded at a time: boto3 keeps as many connections
_STATES = {"stop": "opted_out", "start": "opted_in"}

NumberArgument = Annotated[
    str, typer.Argument(metavar="NUMBER", help="The person's number, such as +14155550100.")
]
SourceOption = Annotated[
    str, typer.Option(metavar="WORD", help="How they said it: telephone, mail, counter, …")
]
AtOption = Annotated[
    str, typer.Option(metavar="TIME", help="When: 2026-11-24T10:31:00Z, or unix seconds. Else now.")
]
NoteOption = Annotated[
    str, typer.Option(metavar="TEXT", help="What proves it, in at most 160 characters.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="The same as JSON.")]


@app.command()
def show(number: NumberArgument, stage: StageOption = LOCAL, as_json: JsonOption = False) -> None:
    """Show whether a number wants our texts, since when, and all that proves it.

    Each STOP and START that took effect, with when it was said, through whom,
    in which words and in which message (spillway trace tells of those in a
    text). The words of who was erased are gone, all else is there.
    """
    if number_kind(number) not in ("e164", "short_code"):
        raise Problem("NUMBER must be a number such as +14155550100.")
    with stage_named(stage) as found:
        entry = _list(found).find(number)
    _show(stage, number, entry, as_json)


@app.command()
def stop(
    number: NumberArgument,
    source: SourceOption,
    stage: StageOption = LOCAL,
    at: AtOption = "",
    note: NoteOption = "",
    as_json: JsonOption = False,
) -> None:
    """Opt a number out, as its owner said by another way than a text. At once.

    No text confirms it. What they said later, if anything, counts instead.

      spillway consent stop +14155550100 --source telephone --stage prod

    Exit code: 0 when the number is opted out now, 1 when something that was
    said later says otherwise.
    """
    _state(stage, number, "stop", at, source, note, as_json)


@app.command()
def start(
    number: NumberArgument,
    source: SourceOption,
    stage: StageOption = LOCAL,
    at: AtOption = "",
    note: NoteOption = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Opt a number in again, as its owner asked for. You need their consent.

    Whoever opted out gets no text until they have asked for them: asks whether
    you can prove that they did. At the provider they may be blocked all the
    same, until they text START.

    Exit code: 0 when the number is opted in now, 1 when something that was
    said later says otherwise.
    """
    if not yes:
        question = f"Did {mask(number)} ask for our texts, and can you prove it?"
        typer.confirm(question, abort=True, err=True)
    _state(stage, number, "start", at, source, note, as_json)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The list: CSV, or numbers.")],
    stage: StageOption = LOCAL,
    event: Annotated[
        str, typer.Option(metavar="stop|start", help="For the lines that do not say.")
    ] = "",
    source: Annotated[
        str, typer.Option(metavar="WORD", help="Likewise: where the list is from.")
    ] = "",
    at: Annotated[
        str, typer.Option(metavar="TIME", help="Likewise: when they said it, or the list was made.")
    ] = "",
    region: Annotated[
        str,
        typer.Option(metavar="CC", help="The country of numbers that name none, such as US."),
    ] = "",
    rate: Annotated[
        int, typer.Option(metavar="N", min=1, help="How many lines a second, at most.")
    ] = 100,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask about opt-ins.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring a list along: who opted out, or in, at another system.

    CSV with a header, of the columns number, event, at, source and note, or one
    number a line. All of it is checked before anything is recorded. Each line
    counts by its own time: what people have said here since is not overridden,
    and the same list can be imported again, or after an interruption.

      spillway consent import list.csv --stage prod
      spillway consent import numbers.txt --event stop --source old-system
         --at 2026-11-24T00:00:00Z --region US --stage prod

    Exit code: 0 when all lines are on the list, or something that was said
    later is; 1 when a line is wrong, and then nothing is recorded.
    """
    console = Console(highlight=False, stderr=as_json)
    if region and not re.fullmatch(r"[A-Z]{2}", region):
        raise Problem("--region: must be a country's two letters, such as US.")
    defaults = {n: v for n, v in (("event", event), ("source", source), ("at", at)) if v}
    with stage_named(stage) as one:
        found = found_in(_content(file), defaults, region, one.runtime().now())
        if found.wrong:
            _show_wrong(found.wrong, as_json, console)
            raise typer.Exit(1)
        starts = sum(said.event == "start" for said in found.said)
        if starts and not yes:
            typer.confirm(
                f"{starts:,} of the {len(found.said):,} lines opt people in. Did each of them ask "
                "for our texts, and can you prove it?",
                abort=True,
                err=True,
            )
        recorded = _record_all(one, found.said, rate, console)
    result = {
        "stage": stage,
        "lines": len(found.said),
        "recorded": recorded,
        "overtaken": len(found.said) - recorded,
        "erased": found.erased,
    }
    if as_json:
        print(json.dumps(result))
        return
    console.print(
        f"{recorded:,} of {len(found.said):,} lines are on the list of stage {stage}; of "
        f"{len(found.said) - recorded:,} something that was said later is",
        soft_wrap=True,
    )
    if found.erased:
        console.print(
            f"{found.erased:,} more were erased where the list was made: nobody can say who "
            "they are",
            soft_wrap=True,
        )


@app.command()
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE|-", help="- is the standard output.")],
    stage: StageOption = LOCAL,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="As JSON, with all that proves it, and those who came back."),
    ] = False,
) -> None:
    """Take the list away: everybody who is opted out, as import takes it.

    For another system, or an audit. Of those who were erased there is only the
    hash under which they are opted out here. All of the table is read. The file
    has numbers of people who want to be left alone: only you may read it, and
    it is yours to look after.
    """
    console = Console(highlight=False, stderr=True)
    with stage_named(stage) as one:
        items, size = one.stores.size()
        console.print(
            f"Stage {stage}: the table has {items:,} items, {size / 1e6:,.1f} MB, as AWS counted "
            "them last. All of it is read.",
            soft_wrap=True,
        )
        brand = one.settings("sender").brand
        entries: list[Item] = []
        with console.status("reading the table") as status:
            for entry in one.stores.consent(brand):
                entries.append(entry)
                if len(entries) % 100 == 0:
                    status.update(f"reading the table: {len(entries):,} on the list so far")
    entries.sort(key=lambda entry: (entry["at"], entry["pk"]))
    text = json.dumps(list(map(_told, entries)), indent=2) + "\n" if as_json else written(entries)
    if str(file) == "-":
        sys.stdout.write(text)
    else:
        _write(file, text)
    out = [entry for entry in entries if entry["event"] == "stop"]
    nameless = sum(not entry.get("number") for entry in out)
    console.print(f"{len(out):,} are opted out", soft_wrap=True)
    if nameless:
        console.print(
            f"{nameless:,} of them were erased, and are in the list as {ERASED}…: no other system "
            "can know them",
            soft_wrap=True,
        )


# -- the list -------------------------------------------------------------------------------------


def list_of(stage: Stage) -> ConsentList:
    """The list of consent of a stage, of whose changes your own systems hear."""
    events = stage.events()
    return _list(stage, events.consented if events.on else None)


def _list(stage: Stage, announce: Callable[..., None] | None = None) -> ConsentList:
    table = Table(stage.runtime(), stage.name)
    return ConsentList(table, stage.stores.keys, stage.settings("sender").brand, announce)


def _state(
    stage: str, number: str, event: str, at: str, source: str, note: str, as_json: bool
) -> None:
    with stage_named(stage) as found:
        now = found.runtime().now()
        fields = {"number": number, "event": event, "source": source, "note": note}
        try:
            said = read({**fields, "at": at or now}, now)
        except BadStatement as error:
            raise Problem(f"{error}.") from None
        consents = list_of(found)
        consents.record_statement(said)
        entry = consents.find(number)
    _show(stage, number, entry, as_json)
    if entry is None or entry["event"] != event:
        raise Problem("Something that was said later counts: see above. Nothing is changed.")


def _record_all(stage: Stage, said: list[Statement], rate: int, console: Console) -> int:
    """Records them, no faster than so many a second; returns how many hold."""
    runtime, consents = stage.runtime(), list_of(stage)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    began, recorded = runtime.now(), 0
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("recording", total=len(said))
        for begin in range(0, len(said), TOGETHER):
            some = said[begin : begin + TOGETHER]
            work = [partial(consents.record_statement, one) for one in some]
            recorded += sum(runtime.together(work, TOGETHER))
            progress.update(task, advance=len(some))
            early = began + (begin + len(some)) / rate - runtime.now()
            if early > 0:
                runtime.sleep(early)
    return recorded


# -- files and what is shown ----------------------------------------------------------------------


def _content(file: Path) -> str:
    try:
        # (Spreadsheets begin with a mark of the byte order.)
        with file.open(encoding="utf-8-sig", newline="") as one:
            return one.read()
    except OSError as error:
        raise Problem(f"{file}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise Problem(f"{file} is no text in UTF-8.") from None


def _write(file: Path, text: str) -> None:
    new = file.with_name(f"{file.name}.new")
    try:
        handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(handle, "w", encoding="utf-8", newline="") as one:
            one.write(text)
        new.replace(file)
    except OSError as error:
        raise Problem(f"{file}: {error.strerror}.") from None


def _told(entry: Item | None) -> dict[str, Any]:
    """All that is known of an entry."""
    events = events_of(entry)
    event = events[-1]["event"] if events else ""
    since = None
    for one in reversed(events):
        if one["event"] != event:
            break
        since = one["at"]
    told: dict[str, Any] = {
        "state": _STATES.get(event, "nothing_said"),
        "since": since,
        "events": events,
        "dropped": entry.get("dropped", 0) if entry else 0,
    }
    if entry is None:
        return told
    return {"number": entry.get("number", ""), "hash": entry["pk"].rpartition("#")[2], **told}


def _show(stage: str, number: str, entry: Item | None, as_json: bool) -> None:
    told = {**_told(entry), "stage": stage, "number": mask(number)}
    if as_json:
        print(json.dumps(told, indent=2))
        return
    console = Console(highlight=False)
    about = f"{mask(number)} in stage {stage}"
    if not told["events"]:
        console.print(f"{about} never said STOP or START: it is not opted out", soft_wrap=True)
        return
    state = "is opted out since" if told["state"] == "opted_out" else "is opted in again since"
    console.print(f"{about} {state} {_time(told['since'])}", style="bold", soft_wrap=True)
    shown = Shown(box=None)
    for column in ("when", "said", "through", "words", "message"):
        shown.add_column(column, justify="left", overflow="fold")
    for one in told["events"]:
        values = (_time(one["at"]), one["event"], one["source"], one["words"], one["id"])
        shown.add_row(*map(str, values))
    console.print(shown)
    if told["dropped"]:
        console.print(f"{told['dropped']:,} older ones are not kept", soft_wrap=True)


def _show_wrong(wrong: dict[int, str], as_json: bool, console: Console) -> None:
    if as_json:
        lines = [{"line": line, "error": error} for line, error in wrong.items()]
        print(json.dumps({"wrong": lines}))
        return
    for line, error in wrong.items():
        console.print(f"[bold red]![/bold red] line {line:,}: ", end="")
        console.print(error, markup=False, soft_wrap=True)
    console.print(f"{len(wrong):,} lines are wrong; nothing is recorded.", soft_wrap=True)


def _time(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"
