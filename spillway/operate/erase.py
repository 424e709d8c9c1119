"""`spillway erase`: the command around a person's erasure (erasure.py)."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from chalicelib.messages import mask
from spillway.operate.erasure import Erased, Erasure
from spillway.operate.progress import bars
from spillway.stage import LOCAL, StageOption, stage_named

_SAID = {
    "texts": "texts in the table",
    "replies": "replies in the ledger",
    "consent": "number and words of an opt-out",
    "archive": "lines of the archive",
    "media": "attachments in the archive",
    "quarantine": "payloads in quarantine",
    "dead_letters": "dead letters",
}


def erase(
    number: Annotated[
        str, typer.Argument(metavar="NUMBER", help="The person's number, such as +14155550100.")
    ],
    stage: StageOption = LOCAL,
    wait: Annotated[
        int,
        typer.Option(
            metavar="SECONDS", min=0, help="How long to wait, at most, for what is under way."
        ),
    ] = 600,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The result as one JSON object.")] = False,
) -> None:
    """Erase a person: their messages go, their opt-out stays, a search shows it.

    Texts and replies in table and ledger lose number and words, and keep what
    became of them; their lines go from the archive, and their payloads and
    letters from quarantine and dead-letter queues. All of the table and of the
    archive since their first message is read, twice. Safe to repeat and to
    interrupt. docs/RETENTION.md: what stays, and what this cannot reach.

    Exit code: 0 when nothing of theirs is left, 1 when something is, or when
    something could not be looked into: run it again.
    """
    console = Console(highlight=False, stderr=as_json)
    progress, tell = bars(console)
    with stage_named(stage) as found:
        erasure = Erasure(found, number, wait=wait, tell=tell)
        items, size = found.stores.size()
        console.print(
            f"Stage {stage}: the table has {items:,} items, {size / 1e6:,.1f} MB, as AWS counted "
            "them last. All of it is read twice, and so is the archive since their first message.",
            soft_wrap=True,
        )
        if not yes:
            typer.confirm(f"Erase {mask(number)} for good?", abort=True, err=True)
        with progress:
            erased = erasure.run()
    if as_json:
        print(json.dumps({**asdict(erased), "good": erased.good}, indent=2))
    else:
        _show(console, erased)
    if not erased.good:
        raise typer.Exit(1)


def _show(console: Console, erased: Erased) -> None:
    table = Table(title=f"{erased.number} in stage {erased.stage}", title_justify="left", box=None)
    table.add_column("")
    table.add_column("removed", justify="right")
    table.add_column("left", justify="right")
    for kind, said in _SAID.items():
        left = erased.left[kind]
        table.add_row(said, f"{erased.removed[kind]:,}", f"{left:,}", style="red" if left else "")
    console.print(table)
    for where, number in erased.mentioned.items():
        if number:
            console.print(
                f"{where}: {number:,} messages of others have the number in them; they stay"
            )
    for queue, number in erased.unseen.items():
        if number:
            console.print(
                f"[bold red]![/bold red] {queue}: {number:,} messages could not be looked into, "
                "which may be theirs",
                soft_wrap=True,
            )
    if any(erased.left.values()):
        console.print(
            "[bold red]![/bold red] Something is left: it came meanwhile, or is under way",
            soft_wrap=True,
        )
    if erased.good:
        console.print("[green]A second search finds nothing of theirs.[/green]")
    else:
        console.print("Run it again (docs/RETENTION.md says when).")
