"""`spillway credential`: what callers present at the door behind the authorizer.

We make them, with more entropy than anybody can guess, show them once and keep their SHA-256 in
`.chalice/config.json`, which may be committed: the authorizer holds no secret. Several of a
principal are good at the same time, so that they can be changed without a pause.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from chalicelib.credentials import hash_of
from chalicelib.providers import NAMES
from spillway.problem import Problem
from spillway.project import PROJECT, UNFILLED, config, config_file, variables
from spillway.stage import StageOption

app = typer.Typer(no_args_is_help=True, help="Credentials of callers: new, retire.")

PRINCIPALS = ("api", *NAMES)
VARIABLE = "CREDENTIAL_HASHES"

PrincipalArgument = Annotated[
    str,
    typer.Argument(
        metavar="PRINCIPAL", help=f"Who presents it: {', '.join(PRINCIPALS)}. api: our own clients."
    ),
]


@app.command()
def new(
    principal: PrincipalArgument,
    stage: StageOption,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Make a credential, show it once, and keep its hash in .chalice/config.json.

    The older ones of the principal stay good, until spillway credential retire.
    It counts from the next spillway deploy on.
    """
    _known(principal)
    token = secrets.token_urlsafe(32)
    # A provider presents a user and a password, our own clients a bearer token.
    credential = token if principal == "api" else f"spillway:{token}"
    hashes = read(PROJECT, stage)
    hashes[principal] = [hash_of(credential), *hashes.get(principal, [])]
    write(PROJECT, stage, hashes)
    if as_json:
        print(json.dumps({"principal": principal, "credential": credential}))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(credential, markup=False)
    Console(highlight=False, stderr=True).print(
        f"Shown this once; its hash is in .chalice/config.json. Next: "
        f"spillway deploy --stage {stage}"
    )


@app.command()
def retire(principal: PrincipalArgument, stage: StageOption) -> None:
    """Take back all credentials of a principal but the newest, from the next deploy on.

    The authorizer's answers are kept for 5 minutes: so long an old one may
    still pass after that.
    """
    _known(principal)
    hashes = read(PROJECT, stage)
    if len(hashes.get(principal, [])) < 2:
        raise Problem(f"{principal} has no older credential in stage {stage}.")
    hashes[principal] = hashes[principal][:1]
    write(PROJECT, stage, hashes)
    Console(highlight=False).print(
        f"Only the newest credential of {principal} is left. Next: spillway deploy --stage {stage}"
    )


def read(project: Path, stage: str) -> dict[str, list[str]]:
    """The hashes of a stage by principal, the newest first. Raises Problem."""
    text = variables(project, stage, "authorize").get(VARIABLE, "{}")
    if text.startswith(UNFILLED):
        return {}
    try:
        found = json.loads(text)
        return {
            principal: [entries] if isinstance(entries, str) else list(entries)
            for principal, entries in found.items()
        }
    except (ValueError, TypeError, AttributeError):
        raise Problem(
            f"{config_file(project)}, stage {stage}, authorize: {VARIABLE} is not a JSON object."
        ) from None


def write(project: Path, stage: str, hashes: dict[str, list[str]]) -> None:
    """Puts them into the file, and leaves the rest of it as it is."""
    settings = config(project)
    function = (
        settings["stages"][stage].setdefault("lambda_functions", {}).setdefault("authorize", {})
    )
    function.setdefault("environment_variables", {})[VARIABLE] = json.dumps(hashes)
    path = config_file(project)
    made = path.with_name(f"{path.name}.new")
    made.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
    made.replace(path)


def _known(principal: str) -> None:
    if principal not in PRINCIPALS:
        raise Problem(f"PRINCIPAL must be one of {', '.join(PRINCIPALS)}.")
