"""`spillway pause sending` and `spillway resume sending`: the brake of a stage.

    pause     one item; each environment of the sender reads it within a second
    resume    the item is deleted; what waits comes back within a quarter of an hour

Either may be said twice, and a death or a lost answer before it is heard leaves what was so before.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console

from chalicelib import breaker
from chalicelib.breaker import PAUSED_FOR
from chalicelib.table import Table
from spillway.stage import LOCAL, Stage, StageOption, stage_named


class What(StrEnum):
    """What can be held."""

    sending = "sending"


WhatArgument = Annotated[What, typer.Argument(metavar="sending", help="The word itself.")]
JsonOption = Annotated[bool, typer.Option("--json", help="The same as one JSON object.")]


def pause(
    what: WhatArgument,
    stage: StageOption = LOCAL,
    why: Annotated[
        str, typer.Option("--why", metavar="WORDS", help="For whoever finds it paused.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Hold all sending of a stage: within a second nobody is written to.

    Nothing is lost: texts are taken, stored and looked up as ever, and a STOP
    is recorded. What would be sent waits on its queue; what becomes too old
    there (REPLY_MAX_AGE, MESSAGE_MAX_AGE) is recorded as expired and counted.
    A call that is on its way to a provider ends. See also: spillway resume.
    """
    with stage_named(stage) as found:
        since = breaker.pause(Table(found.runtime(), found.name), time.time(), why)
        _tell(found, {"stage": found.name, "paused": True, "since": since}, as_json)


def resume(what: WhatArgument, stage: StageOption = LOCAL, as_json: JsonOption = False) -> None:
    """Let a stage that was paused send again.

    What waits comes back within 15 minutes. What is too old by then is recorded
    as expired and counted: nobody wants last night's answers.
    """
    with stage_named(stage) as found:
        table = Table(found.runtime(), found.name)
        there = breaker.paused(table)
        breaker.resume_sending(table)
        since = None if there is None else there["since"]
        _tell(found, {"stage": found.name, "paused": False, "since": since}, as_json)


def _tell(stage: Stage, said: dict[str, object], as_json: bool) -> None:
    if as_json:
        print(json.dumps(said, indent=2))
        return
    console = Console(highlight=False)
    since = said["since"]
    when = (
        "" if since is None else f"{datetime.fromtimestamp(float(str(since)), UTC):%d %B %H:%M} UTC"
    )
    if said["paused"]:
        sender = stage.settings("sender")
        console.print(f"Sending of stage {stage.name} is paused, since {when}.")
        console.print(
            f"An answer that waits longer than {sender.reply_max_age:.0f} s is not sent any more, "
            f"a message of POST /messages after {sender.message_max_age:.0f} s."
        )
    elif since is None:
        console.print(f"Sending of stage {stage.name} was not paused.")
    else:
        console.print(
            f"Sending of stage {stage.name} goes on, after a pause since {when}. "
            f"What waits comes back within {PAUSED_FOR / 60:.0f} minutes."
        )
