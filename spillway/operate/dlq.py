"""`spillway dlq`: the dead letters of a stage, looked at, put back, or dropped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from chalicelib.messages import MessageId, parse_reference
from chalicelib.queues import DEAD_LETTERS
from spillway.operate.dropping import Drop, Dropped
from spillway.operate.letters import BY_SQS, Letter, find
from spillway.operate.redriving import CAME_AGAIN, NOT_OURS, TOO_OLD, Redrive, Redriven
from spillway.operate.trace import of_reply, of_text
from spillway.operate.words import moment, printable, span
from spillway.problem import Problem
from spillway.stage import LOCAL, Stage, StageOption, stage_named

# So many letters of a queue are listed one by one, behind a summary.
MANY = 20

_LEFT = {
    NOT_OURS: "no message of ours: look at it (spillway dlq show), then drop it",
    CAME_AGAIN: "failed again, or came meanwhile: the cause is not mended",
    TOO_OLD: "older than what the ledger is certain to remember (MESSAGE_DAYS): the sender would "
    "not send it; drop it",
}

app = typer.Typer(
    no_args_is_help=True,
    help="Dead letters: messages that could not be worked on and were put aside.",
)


class Pipeline(StrEnum):
    """Whose dead letters."""

    processing = "processing"
    sending = "sending"


_QUEUES = dict(zip(Pipeline, DEAD_LETTERS.values(), strict=True))

QueueOption = Annotated[
    Pipeline | None,
    typer.Option(
        "--queue", help="Of processing (processing-dlq) or of sending (outbound-dlq.fifo) alone."
    ),
]
IdOption = Annotated[
    list[str] | None,
    typer.Option(
        "--id", metavar="ID", help="A letter's id, or that of its message. May be repeated."
    ),
]
ReasonOption = Annotated[
    str,
    typer.Option(
        "--reason",
        metavar="REASON",
        help="Those put aside for this; too_old is every too_old: …",
    ),
]
TextsOption = Annotated[
    bool, typer.Option("--texts", help="Show numbers and words, too: mind who is looking.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="The same as one JSON object.")]


@app.command(name="list")
def list_(
    stage: StageOption = LOCAL,
    queue: QueueOption = None,
    texts: TextsOption = False,
    as_json: JsonOption = False,
) -> None:
    """List the dead letters: what each is, when and why it was put aside.

    The reason is that of the function which put it aside (docs/OPERATING.md
    says what each means). max_receives: SQS itself did, after 1000 receives,
    or somebody by hand; then nothing else is known. receives: how often it had
    been received by then. age: since the message came to our door. SQS keeps a
    letter for 14 days. More than 20 of a queue: a summary, and the oldest 20;
    --json has all.

    A look hides the letters for a moment. Of a conversation SQS shows the ten
    oldest; how many are not shown is said.

    Exit code: 0; whether there are any is what spillway status checks.
    """
    with stage_named(stage) as found:
        read = {name: find(found, name) for name in _queues(queue)}
        now = found.runtime().now()
    if as_json:
        said = {
            "stage": stage,
            "letters": [
                letter.told(texts=texts) for letters, _ in read.values() for letter in letters
            ],
            "unseen": {name: unseen for name, (_, unseen) in read.items()},
        }
        print(json.dumps(said, indent=2))
        return
    # As wide as it gets: an id that is cut is of no use.
    console = Console(highlight=False, width=1000)
    for name, (letters, unseen) in read.items():
        console.print(Text(f"{name}: {len(letters):,}", "bold"))
        if len(letters) > MANY:
            _summarise(console, letters, now)
        _list(console, letters[:MANY], now, texts=texts)
        if len(letters) > MANY:
            console.print(f"... and {len(letters) - MANY:,} younger ones: --json has all")
        _say_unseen(console, unseen)
        if any(letter.reason == BY_SQS for letter in letters):
            console.print(f"{BY_SQS}: put aside by SQS, which writes no history")


@app.command()
def show(
    id_: Annotated[
        str, typer.Argument(metavar="ID", help="A letter's id, or that of its message.")
    ],
    stage: StageOption = LOCAL,
    texts: TextsOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show a dead letter: its history, and what table and ledger have of its message.

    A message may have a letter on both queues: then both are shown. What else
    happened to it: spillway trace.

    Exit code: 0 when there is such a letter, 1 when not.
    """
    with stage_named(stage) as found:
        every = [find(found, name)[0] for name in _queues(None)]
        letters = [letter for some in every for letter in some if letter.is_named([id_])]
        if not letters:
            raise Problem(f"No dead letter has this id, or SQS does not show it now. {_WHICH}")
        drop = Drop(found)
        told = [
            {
                **letter.told(texts=texts),
                "history": dict(letter.raw.history),
                "kept": _kept_of(found, letter),
                "lost_if_dropped": drop.lost_with(letter),
                "may_be_dropped": not drop.must_stay(letter),
            }
            for letter in letters
        ]
    if as_json:
        print(json.dumps({"stage": stage, "letters": told}, indent=2))
        return
    console = Console(highlight=False)
    for one in told:
        _show(console, one)


@app.command()
def redrive(
    stage: StageOption = LOCAL,
    queue: QueueOption = None,
    ids: IdOption = None,
    reason: ReasonOption = "",
    rate: Annotated[int, typer.Option(metavar="N", min=1, help="How many a second, at most.")] = 10,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be put back; change nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Put dead letters back on their queues: all, or those of --queue, --id, --reason.

    Each is sent to its queue first and deleted then, so that nothing is lost
    wherever it ends: run it again. A message that is worked on twice is
    answered once. Processing comes first, and a conversation's letters go in
    their order.

    Their age counts from now: answers to old texts are sent then, however old
    the text is. Where nobody wants last night's answers, drop them. (AWS's own
    redrive leaves the age as it is: old answers expire.) When somebody said
    STOP is not changed by it.

    Left where they are: what is no message of ours; what fails again or is put
    aside meanwhile; what is too old for the ledger to know whether it was
    answered. Do not run it while spillway erase runs.

    Exit code: 0 when all that were meant are back on their queues, 1 when some
    are not, or SQS did not show them: run it again.
    """
    console = Console(highlight=False, stderr=as_json)
    progress = Progress(
        TextColumn("{task.description:<20}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    names = ids or []
    met: set[str] = set()

    def wanted(letter: Letter) -> bool:
        return _is_meant(letter, names, reason, met)

    with stage_named(stage) as found, progress:
        bars = {
            name: progress.add_task(name, total=found.stores.depth(name).total)
            for name in _queues(queue)
        }

        def tell(name: str, done: int, total: int) -> None:
            progress.update(bars[name], completed=done, total=max(done, total))

        moved = Redrive(found, list(bars), wanted, rate=rate, dry=dry_run, tell=tell).run()
    missing = [name for name in names if name not in met]
    # (Whoever names letters has no part in what else is not shown.)
    good = not moved.left and not missing and (bool(names) or not any(moved.unseen.values()))
    if as_json:
        print(json.dumps({**asdict(moved), "missing": missing, "good": good}, indent=2))
    else:
        _say_redriven(console, moved)
        for name in missing:
            console.print(f"[bold red]![/bold red] {name}: no such letter", soft_wrap=True)
    if not good:
        raise typer.Exit(1)


@app.command()
def drop(
    stage: StageOption = LOCAL,
    queue: QueueOption = None,
    ids: IdOption = None,
    reason: ReasonOption = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete dead letters for good, by --id or by --reason.

    Says what is lost with each, and asks. Before a letter is deleted it is
    written to the archive, under quarantine/dropped/, where spillway erase
    finds it; no command brings it back from there.

    A letter in which somebody says STOP, or a provider says it for them, is
    refused unless the opt-out is recorded: redrive it instead.

    Exit code: 0 when all that were meant are dropped, 1 when one was refused,
    is not there, or is not shown by SQS.
    """
    if not ids and not reason:
        raise Problem(f"Say which: --id or --reason. {_WHICH}")
    console = Console(highlight=False, stderr=as_json)
    names, met = ids or [], set[str]()
    with stage_named(stage) as found:
        work = Drop(found)
        meant: dict[str, list[Letter]] = {}
        lost: dict[str, str] = {}
        for name in _queues(queue):
            letters, unseen = find(found, name)
            meant[name] = [one for one in letters if _is_meant(one, names, reason, met)]
            _say_unseen(console, unseen)
        missing = [name for name in names if name not in met]
        for letter in [one for some in meant.values() for one in some]:
            lost[letter.id] = work.lost_with(letter)
            stop = "; it says STOP, which is not recorded" if work.must_stay(letter) else ""
            about = f"{letter.kind or '?'} {letter.message}".rstrip()
            console.print(Text(f"{letter.id}  {letter.queue}  {about}"), soft_wrap=True)
            console.print(
                Text(f"    {letter.reason}. Lost: {lost[letter.id]}{stop}"), soft_wrap=True
            )
        if lost and not yes:
            typer.confirm(f"Drop {len(lost):,} dead letters?", abort=True, err=True)
        dropped = Dropped(stage)
        for name, some in meant.items():
            done = work.run(name, {letter.id for letter in some}) if some else Dropped(stage)
            dropped.kept |= done.kept
            dropped.refused += done.refused
            dropped.unseen += done.unseen
    good = dropped.good and not missing
    if as_json:
        said = {**asdict(dropped), "lost": lost, "missing": missing, "good": good}
        print(json.dumps(said, indent=2))
    else:
        _say_dropped(console, dropped, missing)
    if not good:
        raise typer.Exit(1)


_WHICH = "spillway dlq list shows the ids."


def _queues(queue: Pipeline | None) -> list[str]:
    return list(_QUEUES.values()) if queue is None else [_QUEUES[queue]]


def _is_meant(letter: Letter, names: Collection[str], reason: str, met: set[str]) -> bool:
    """Whether somebody means this letter; notes by which of the names."""
    named = [name for name in names if letter.is_named([name])]
    met.update(named)
    return bool(named or not names) and (not reason or letter.has_reason(reason))


def _kept_of(stage: Stage, letter: Letter) -> list[str]:
    """What table and ledger have of a letter's message."""
    named = parse_reference(letter.message)
    id_ = named[0] if named else MessageId.parse(letter.message)
    if id_ is None:
        return []
    stored, replied = stage.stores.message(id_)
    events = [*of_text(stored), *of_reply(replied)]
    said = [f"{event.where}: {event.what}" for event in events]
    return said or ["neither table nor ledger has anything of it"]


def _summarise(console: Console, letters: Sequence[Letter], now: float) -> None:
    table = _table("reason", "kind", ("letters", "right"), ("oldest", "right"))
    for (reason, kind), number in Counter((one.reason, one.kind) for one in letters).most_common():
        since = min(one.put_aside_at for one in letters if (one.reason, one.kind) == (reason, kind))
        table.add_row(reason, kind or "?", f"{number:,}", span(max(0.0, now - since)))
    console.print(table)


def _list(console: Console, letters: Sequence[Letter], now: float, *, texts: bool) -> None:
    if not letters:
        return
    table = _table(
        "id", "kind", "put aside (UTC)", "reason", ("receives", "right"), ("age", "right")
    )
    for heading in ("to", "from", *(["text"] if texts else [])):
        table.add_column(heading, no_wrap=True)
    for letter in letters:
        told = letter.told(texts=texts)
        outgoing = letter.kind == "outgoing"
        table.add_row(
            letter.id,
            letter.kind or "?",
            moment(letter.put_aside_at),
            letter.reason,
            "" if letter.receives is None else str(letter.receives),
            span(max(0.0, now - letter.received_at)),
            told["theirs" if outgoing else "ours"],
            told["ours" if outgoing else "theirs"],
            *([printable(told["text"])] if texts else []),
        )
    console.print(table)


def _show(console: Console, one: dict[str, Any]) -> None:
    def line(what: str, said: str) -> None:
        console.print(Text.assemble((f"  {what:<14}", "cyan"), printable(said)), soft_wrap=True)

    console.print(Text(f"{one['id']}  on {one['queue']}", "bold"), soft_wrap=True)
    line("message", f"{one['kind'] or 'none of ours'} {one['message']}".rstrip())
    if one["theirs"]:
        line("between", f"{one['ours']} (ours) and {one['theirs']}")
    line("came", f"{moment(one['received_at'])} UTC")
    line("put aside", f"{moment(one['put_aside_at'])} UTC, {one['reason']}")
    if one["reason"] == BY_SQS:
        line("", "by SQS, or by hand: nobody wrote a history")
    for name, value in one["history"].items():
        line(name, value)
    if one["redriven_at"]:
        line("redriven", f"{moment(one['redriven_at'])} UTC, and failed again")
    for said in one["kept"]:
        line("kept", said)
    line("if dropped", f"lost: {one['lost_if_dropped']}")
    if not one["may_be_dropped"]:
        line("", "it says STOP, which is not recorded: redrive it")
    if "text" in one:
        line("text", one["text"])


def _say_redriven(console: Console, moved: Redriven) -> None:
    for queue, number in moved.sent.items():
        said = "would be put back" if moved.dry else "put back"
        console.print(f"{queue}: {number:,} {said}")
    for reason, ids in moved.left.items():
        console.print(f"[bold red]![/bold red] {len(ids):,} left: {_LEFT[reason]}", soft_wrap=True)
        for id_ in ids[:MANY]:
            console.print(f"    {id_}")
    for queue, number in moved.unseen.items():
        _say_unseen(console, number, queue)


def _say_dropped(console: Console, dropped: Dropped, missing: Sequence[str]) -> None:
    for id_, key in dropped.kept.items():
        console.print(f"dropped {id_}, kept as {key}", soft_wrap=True)
    for ids, said in (
        (dropped.refused, "says STOP, which is not recorded: spillway dlq redrive --id {}"),
        (dropped.unseen, "is gone, or somebody else looks at it just now"),
        (missing, "no such letter"),
    ):
        for id_ in ids:
            console.print(f"[bold red]![/bold red] {id_}: {said.format(id_)}", soft_wrap=True)


def _say_unseen(console: Console, number: int, queue: str = "") -> None:
    if number:
        console.print(
            f"[bold red]![/bold red] {queue}{': ' if queue else ''}{number:,} more are not shown "
            "by SQS: somebody looks at them, they stand behind ten of their conversation, or the "
            "count is a minute old",
            soft_wrap=True,
        )


def _table(*headings: str | tuple[str, str]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        name, justify = (heading, "left") if isinstance(heading, str) else heading
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    return table
