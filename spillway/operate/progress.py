"""How far a long command is: a bar for each thing that it does."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

# Is told what is done, how many of it are, and of how many (0: not known).
Tell = Callable[[str, int, int], None]


def bars(console: Console) -> tuple[Progress, Tell]:
    """A bar for each thing that is done, one after the other; a second time it begins anew."""
    progress = Progress(
        TextColumn("{task.description:<36}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=console,
    )
    known: dict[str, TaskID] = {}
    doing: list[str] = []

    def tell(what: str, done: int, total: int) -> None:
        if doing != [what]:
            for before in doing:
                progress.stop_task(known[before])
            if what in known:
                progress.reset(known[what], total=None)
            else:
                known[what] = progress.add_task(what, total=None)
            doing[:] = [what]
        # (What is said of the table's size is old.)
        progress.update(known[what], completed=done, total=max(done, total) or None)

    return progress, tell
