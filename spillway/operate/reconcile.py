"""`spillway reconcile`: the command around a reconciliation (reconciliation.py)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from spillway.operate.progress import bars
from spillway.operate.times import moment
from spillway.stage import LOCAL, StageOption, stage_named

if TYPE_CHECKING:
    from spillway.operate.reconciliation import Reconciled

# How many ids of a kind are shown; --json has all of them.
_SHOWN = 20


def reconcile(
    stage: StageOption = LOCAL,
    since: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="Only what came since then: 2026-11-24, 2026-11-24T06:30Z, 36h, 14d.",
        ),
    ] = "",
    wait: Annotated[
        int,
        typer.Option(
            metavar="SECONDS",
            min=0,
            help="How long to wait, at most, for the queues, if something does not match.",
        ),
    ] = 120,
    as_json: Annotated[bool, typer.Option("--json", help="The result as one JSON object.")] = False,
) -> None:
    """Prove that table, archive and ledger agree; put right what can be.

    Each text must be in the table and in the archive once, both must say the
    same, its pictures must be there, and it must be answered, or have a reason
    why not. What does not match is read again once the queues are empty (or,
    where they never are, when it is older than a day): what is under way is no
    difference.

    Put right: lines that no item names are taken out of the archive, an item
    that the table lost is made again from its line, and what was never begun to
    be answered is put on the outbound queue, where it is answered, or recorded
    as expired. The rest is listed by message id, with what to do about it. It
    never shows a number or a text, and may be interrupted and run again.

    All of the table and of the archive is read, once; of pictures their names.
    On disk (TMPDIR) it takes 0.3 GB for each million texts while it runs.

    Exit code: 0 when nothing is open, 1 when something is.
    """
    # (It works with code of the functions that takes a second to import.)
    from spillway.operate.reconciliation import Reconciliation

    console = Console(highlight=False, stderr=as_json)
    progress, tell = bars(console)
    start = moment("--since", since) if since else 0.0
    with stage_named(stage) as found, progress:
        reconciled = Reconciliation(found, since=start, wait=wait, tell=tell).run()
    if as_json:
        print(json.dumps({**asdict(reconciled), "good": reconciled.good}, indent=2))
    else:
        _show(console, reconciled)
    if not reconciled.good:
        raise typer.Exit(1)


def _show(console: Console, found: Reconciled) -> None:
    from spillway.operate.reconciliation import OPEN, PUT_RIGHT

    console.print(
        f"Stage {found.stage}: {found.texts:,} texts and {found.replies:,} replies in the table, "
        f"{found.lines:,} lines in {found.objects:,} objects of the archive (without the last ten "
        "minutes)",
        soft_wrap=True,
    )
    _list(console, "put right", PUT_RIGHT, found.put_right)
    _list(console, "[bold red]open[/bold red]", OPEN, found.open)
    if found.under_way:
        console.print(f"{found.under_way:,} under way, not judged: run it again later")
    for queue, number in found.unseen.items():
        if number:
            console.print(
                f"{queue} was not seen empty (about {number:,} messages): only what is older than "
                "a day was judged by it, and of that what somebody put back just now",
                soft_wrap=True,
            )
    if found.good:
        console.print("[green]Nothing is open.[/green]")


def _list(
    console: Console, head: str, said: Mapping[str, str], ids: Mapping[str, Sequence[str]]
) -> None:
    for kind, some in ids.items():
        if some:
            console.print(f"{head}  {kind}: {len(some):,}  ({said[kind]})", soft_wrap=True)
            for id_ in some[:_SHOWN]:
                console.print(f"  {id_}", soft_wrap=True, markup=False)
            if len(some) > _SHOWN:
                console.print(f"  and {len(some) - _SHOWN:,} more: --json has them")
