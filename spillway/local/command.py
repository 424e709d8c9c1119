"""`spillway run`: its options, and from them a run."""

from __future__ import annotations

import json
import os
from typing import Annotated

import typer
from rich.console import Console

from spillway.local import keys, ports
from spillway.local.environment import Environments
from spillway.local.folder import Folder
from spillway.project import PROJECT


def run(
    webhook_port: Annotated[
        int,
        typer.Option(
            min=0,
            max=65535,
            metavar="PORT",
            help="Where webhooks and POST /messages arrive. 0: any.",
        ),
    ] = 8000,
    page_port: Annotated[
        int,
        typer.Option(
            min=0,
            max=65535,
            metavar="PORT",
            help="Simulated providers, their outbox, sample reply API and look-ups. 0: any.",
        ),
    ] = 8080,
    aws_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            metavar="PORT",
            help="The AWS emulator. 0: any.",
            show_default="4566, or a free one",
        ),
    ] = None,
    reload: Annotated[
        bool,
        typer.Option(
            "--reload", help="Restart webhook and workers when chalicelib/ or app.py changes."
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Say where everything is as one JSON object, once it is.")
    ] = False,
) -> None:
    """Run the whole system on this machine: no AWS account, no Docker.

    It starts an AWS emulator, deploys infra/data.yaml into it, and runs the
    app: the webhook in Chalice's local server and a worker for each queue.
    Twilio and Telnyx are simulated, with real signatures; so are the internal
    reply API and the look-ups. Everything listens on 127.0.0.1. Ctrl-C ends
    it, and what the emulator holds is gone then.

    A setting in your environment replaces the one in .chalice/config.json and
    the generated one:

      REPLY_API_URL=http://127.0.0.1:5000/reply spillway run

    Your own AWS credentials are not used. The folder .spillway (or
    SPILLWAY_HOME) gets logs/, a file for each process; secrets.json, the
    credentials and keys, kept from run to run; local.json, where everything is
    while it runs; env, the receiver's environment for a shell.

    Exit code: 0 when you end it, 1 when something is wrong, which it says.
    """
    from spillway.local.supervisor import Run, Stopped

    folder = Folder()
    console = Console(highlight=False, stderr=as_json)
    with folder.claimed():
        environments = Environments(
            project=PROJECT,
            ports=ports.choose(webhook_port, page_port, aws_port),
            keys=keys.load(folder.secrets),
            caller=dict(os.environ),
        )
        this = Run(PROJECT, folder, environments, console)
        try:
            this.start()
            if as_json:
                print(json.dumps(environments.where()), flush=True)
            if reload:
                this.follow_edits()
            this.watch()
        except Stopped:
            console.print("Ending ...")
        finally:
            this.stop()
