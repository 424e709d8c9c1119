"""`spillway doctor`: whether a stage is as it has to be, and what to do where it is not."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from spillway.operate import checks
from spillway.operate.checks import Finding
from spillway.stage import LOCAL, Stage, StageOption, stage_named

_MARKS = {"good": ("ok", "green"), "note": ("note", "yellow"), "bad": ("BAD", "bold red")}


def doctor(
    stage: StageOption = LOCAL,
    mend: Annotated[
        bool,
        typer.Option(
            "--mend", help="Do what can be done by API: a mapping's setting, the 401 challenge."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The findings as a JSON list.")] = False,
) -> None:
    """Check a stage from outside, and say for each finding how to mend it.

    Settings, functions, mappings (exactly one a queue), the challenge of the
    401, secrets, the bus for events, queues and table, alarms, quotas against
    what the API lets in, a signed probe to the first number of each provider
    (acknowledged, stored, not answered), and the boto3 of the runtime. A probe
    is a text from SPILLWAY: it stays in table and archive, no look-up is asked
    about it, and whoever hears events hears of it. On AWS only Telnyx can sign
    for Telnyx: there it is not probed, but that what is unsigned is refused.

    --mend is for stages that plain chalice deploy made: it sets partial batch
    reports on the mappings and the challenge, which Chalice cannot.

    Exit code: 0 when nothing is bad (notes do not count), 1 otherwise.
    """
    console = Console(highlight=False, stderr=as_json)
    with stage_named(stage) as found:
        findings = examine(found, console)
        if mend:
            for finding in findings:
                if finding.fix is not None:
                    console.print(Text(f"mending: {finding.said}", "bold"), soft_wrap=True)
                    finding.fix()
            if any(finding.fix for finding in findings):
                findings = examine(found, console)
    if as_json:
        print(json.dumps([_plain(finding) for finding in findings], indent=2))
    if any(finding.level == "bad" for finding in findings):
        raise typer.Exit(1)


def examine(stage: Stage, console: Console) -> list[Finding]:
    """Every check, its findings shown as they come."""
    findings = []
    for check in checks.ALL:
        for finding in check(stage):
            findings.append(finding)
            _show(console, finding)
    count = {level: sum(one.level == level for one in findings) for level in _MARKS}
    console.print(f"{count['good']} good, {count['note']} notes, {count['bad']} bad")
    return findings


def _show(console: Console, finding: Finding) -> None:
    mark, colour = _MARKS[finding.level]
    line = Text.assemble((f"{mark:<5}", colour), f"{finding.about:<10} {finding.said}")
    console.print(line, soft_wrap=True)
    if finding.mend:
        console.print(Text(f"                 mend: {finding.mend}", "dim"), soft_wrap=True)


def _plain(finding: Finding) -> dict[str, str]:
    return {name: str(value) for name, value in asdict(finding).items() if name != "fix"}
