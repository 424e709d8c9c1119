"""A stage more in a project's settings, as somebody makes one: that of prod, renamed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spillway.project import config, config_file


def add(project: Path, stage: str, *, anywhere: bool = False) -> None:
    """`anywhere`: whether it has to run on this machine's architecture."""
    found = config(project)
    text = json.dumps(found["stages"]["prod"]).replace("-prod.json", f"-{stage}.json")
    made: dict[str, Any] = json.loads(text)
    made["environment_variables"]["SPILLWAY_STAGE"] = stage
    if anywhere:
        del made["lambda_architecture"]
    found["stages"][stage] = made
    write(project, found)
    for path in (project / "infra" / "policies").glob("*-prod.json"):
        policy = path.read_text().replace("spillway-prod", f"spillway-{stage}")
        policy = policy.replace("spillway/prod/", f"spillway/{stage}/")
        path.with_name(path.name.replace("-prod.", f"-{stage}.")).write_text(policy)


def set_variables(project: Path, stage: str, *functions: str, **variables: str) -> None:
    """Changes settings: of these functions, else wherever a function has them."""
    found = config(project)
    for name, function in found["stages"][stage]["lambda_functions"].items():
        there = function["environment_variables"]
        new = {key: one for key, one in variables.items() if name in functions or key in there}
        function["environment_variables"] = {**there, **new}
    write(project, found)


def let_read(project: Path, stage: str, provider: str) -> None:
    """Lets the functions read the secret of a provider more."""
    for path in (project / "infra" / "policies").glob(f"*-{stage}.json"):
        twilios = f"secret:spillway/{stage}/twilio-??????"
        new = f"secret:spillway/{stage}/{provider}-??????"
        text = path.read_text()
        path.write_text(
            text.replace(
                f'"arn:aws:secretsmanager:*:*:{twilios}"',
                f'"arn:aws:secretsmanager:*:*:{new}", "arn:aws:secretsmanager:*:*:{twilios}"',
            )
        )


def write(project: Path, found: dict[str, Any]) -> None:
    config_file(project).write_text(json.dumps(found, indent=2))
