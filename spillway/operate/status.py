"""`spillway status`: how a stage stands, on one screen."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from chalicelib.queues import DEAD_LETTERS, OUTBOUND, PROCESSING
from spillway.operate.words import span
from spillway.stage import LOCAL, Stage, StageOption, stage_named
from spillway.stores import DROPPED, Depth

# Seconds after which the oldest message of a queue has waited for too long.
LATE: Mapping[str, float] = {OUTBOUND: 600.0, PROCESSING: 3600.0}


@dataclass(slots=True)
class Status:
    """`ages`: seconds that the oldest message of a queue has waited, None where nobody knows.
    `open_until`: by provider whose breaker is open, unix seconds. `paused_since`: likewise, None
    where sending is not paused. `alarms`: those that ring, None where there are none to ring.
    `attention`: a line for all that somebody has to see to."""

    stage: str
    depths: dict[str, Depth]
    ages: dict[str, float | None]
    unknown: int
    quarantined: int
    open_until: dict[str, float]
    paused_since: float | None
    alarms: list[str] | None
    attention: list[str] = field(default_factory=list)


def status(
    stage: StageOption = LOCAL,
    as_json: Annotated[bool, typer.Option("--json", help="The same as one JSON object.")] = False,
) -> None:
    """Show how a stage stands: queues, dead letters, unknown sends, alarms.

    Exit code: 0 when nobody has to do anything, 1 when something wants
    attention: a dead letter, an unknown send, a quarantined payload, messages
    that wait too long, a breaker that is open, a pause, an alarm that rings.
    """
    console = Console(highlight=False)
    with stage_named(stage) as found:
        read = read_status(found)
    if as_json:
        print(json.dumps(asdict(read), indent=2))
    else:
        _show(console, read)
    if read.attention:
        raise typer.Exit(1)


def read_status(stage: Stage) -> Status:
    """Raises Problem where the stage has no stores."""
    stores = stage.stores
    depths = stores.depths()
    now = time.time()
    found = Status(
        stage=stage.name,
        depths=depths,
        ages={queue: _age(stage, queue, depths[queue], now) for queue in (PROCESSING, OUTBOUND)},
        unknown=sum(1 for _ in stores.unknown()),
        quarantined=sum(not key.startswith(DROPPED) for key in stores.objects("quarantine/")),
        open_until={
            provider: float(until)
            for provider in stage.settings("sender").providers
            if (until := stores.breaker(provider).get("open_until", 0)) > now
        },
        paused_since=(stores.pause() or {}).get("since"),
        alarms=_alarms(stage),
    )
    found.attention = list(_attention(found))
    return found


def _age(stage: Stage, queue: str, depth: Depth, now: float) -> float | None:
    """SQS tells it to CloudWatch alone, a minute late; the emulator shows every message."""
    if depth.total == 0:
        return 0.0
    if stage.local is not None:
        return _local_age(stage, queue, now)
    points = (
        stage.aws.client("cloudwatch")
        .get_metric_statistics(
            Namespace="AWS/SQS",
            MetricName="ApproximateAgeOfOldestMessage",
            Dimensions=[{"Name": "QueueName", "Value": f"spillway-{stage.name}-{queue}"}],
            StartTime=now - 600,
            EndTime=now,
            Period=60,
            Statistics=["Maximum"],
        )
        .get("Datapoints", [])
    )
    newest = max(points, key=lambda point: point["Timestamp"], default=None)
    return None if newest is None else float(newest["Maximum"])


def _local_age(stage: Stage, queue: str, now: float) -> float | None:
    import httpx

    from spillway.local.emulator import MESSAGES

    answer = httpx.get(
        stage.aws.endpoint + MESSAGES,
        params={"QueueUrl": stage.stores.urls[queue]},
        trust_env=False,
        timeout=10,
    ).json()
    sent = [
        message["SentTimestamp"]
        for regions in answer["messages"].values()
        for queues in regions.values()
        for messages in queues.values()
        for message in messages
    ]
    return max(0.0, now - min(sent)) if sent else None


def _alarms(stage: Stage) -> list[str] | None:
    if stage.local is not None:
        return None
    pages = (
        stage.aws.client("cloudwatch")
        .get_paginator("describe_alarms")
        .paginate(AlarmNamePrefix=f"spillway-{stage.name}-", AlarmTypes=["MetricAlarm"])
    )
    every = [alarm for page in pages for alarm in page["MetricAlarms"]]
    if not every:
        return None
    return [alarm["AlarmName"] for alarm in every if alarm["StateValue"] == "ALARM"]


def _attention(found: Status) -> Any:
    for queue in DEAD_LETTERS.values():
        if number := found.depths[queue].total:
            yield f"{number} on {queue}: look at them, mend the cause, redrive them"
    for queue, age in found.ages.items():
        if age is not None and age > LATE[queue]:
            yield f"the oldest message on {queue} has waited {span(age)}"
    if found.unknown:
        yield f"{found.unknown} sends of unknown outcome, or replies that wait behind one"
    if found.quarantined:
        yield f"{found.quarantined} payloads in quarantine: the parser wants mending"
    for provider, until in found.open_until.items():
        yield f"{provider} fails: nobody is sent anything for {span(until - time.time())} more"
    if found.paused_since is not None:
        yield (
            f"sending is paused, for {span(time.time() - found.paused_since)} now: "
            "spillway resume sending"
        )
    for name in found.alarms or ():
        yield f"alarm {name} rings"


def _show(console: Console, found: Status) -> None:
    table = Table(title=f"Stage {found.stage}", title_justify="left", box=None, pad_edge=False)
    for heading in ("queue", "waiting", "in flight", "delayed", "oldest"):
        table.add_column(heading, justify="left" if heading == "queue" else "right")
    for queue, depth in found.depths.items():
        age = found.ages.get(queue, 0.0)
        oldest = "?" if age is None else span(age) if age else ""
        colour = "red" if queue in DEAD_LETTERS.values() and depth.total else ""
        numbers = (f"{n:,}" for n in (depth.waiting, depth.in_flight, depth.delayed))
        table.add_row(queue, *numbers, oldest, style=colour)
    console.print(table)
    console.print(f"unknown sends  {found.unknown:,}    quarantined  {found.quarantined:,}")
    if found.alarms is None:
        console.print("alarms         none here")
    else:
        console.print(f"alarms         {', '.join(found.alarms) or 'quiet'}")
    for line in found.attention:
        console.print(f"[bold red]![/bold red] {line}")
    if not found.attention:
        console.print("[green]Nothing wants attention.[/green]")
