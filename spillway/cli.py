"""The `spillway` command: what `make run` starts and what operators type.

Every subcommand is a module with one function; this file only gathers them.
"""

from __future__ import annotations

import typer
from rich.console import Console

from spillway.deploy import credentials, secrets
from spillway.deploy.command import deploy, destroy
from spillway.local.command import run
from spillway.operate import consent, dlq, unknown
from spillway.operate.backfill import backfill
from spillway.operate.doctor import doctor
from spillway.operate.erase import erase
from spillway.operate.pause import pause, resume
from spillway.operate.reconcile import reconcile
from spillway.operate.replay import replay
from spillway.operate.status import status
from spillway.operate.trace import trace
from spillway.problem import Problem
from spillway.traffic.burst import burst
from spillway.traffic.text import text

app = typer.Typer(
    name="spillway",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.callback()
def spillway() -> None:
    """Two-way SMS on AWS: run it on this machine, try it, look after it.

    Begin with [bold]spillway run[/bold] (or [bold]make run[/bold]): the whole system on this
    machine, without an AWS account and without Docker.
    """


app.command()(run)
app.command()(text)
app.command()(burst)
app.command()(status)
app.command()(trace)
app.command()(doctor)
app.command()(erase)
app.command()(pause)
app.command()(resume)
app.add_typer(dlq.app, name="dlq")
app.add_typer(unknown.app, name="unknown")
app.command()(reconcile)
app.command()(backfill)
app.command()(replay)
app.add_typer(consent.app, name="consent")
app.command()(deploy)
app.add_typer(secrets.app, name="secret")
app.add_typer(credentials.app, name="credential")
app.command()(destroy)


def main() -> None:
    """The entry point: a Problem, and whatever AWS refuses, become one message and exit code 1."""
    try:
        app()
    except Problem as problem:
        _end(str(problem))
    except Exception as error:
        # Without importing botocore, for which every command would wait.
        if not type(error).__module__.startswith("botocore."):
            raise
        _end(f"AWS: {error}")


def _end(said: str) -> None:
    console = Console(stderr=True, highlight=False)
    console.print("error:", style="bold red", end=" ")
    console.print(said, markup=False, soft_wrap=True)
    raise SystemExit(1)


if __name__ == "__main__":
    main()
