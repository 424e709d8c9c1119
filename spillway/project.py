"""The project as its files describe it: the stages of `.chalice/config.json` and their settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chalice.config import Config

from chalicelib.config import SettingError, Settings, load
from spillway.problem import Problem

PROJECT = Path(__file__).resolve().parents[1]

# The functions as `.chalice/config.json` calls them.
FUNCTIONS = ("authorize", "api_handler", "process", "send")

# What marks a setting that nobody but its owner can know.
UNFILLED = "FILL IN"


def config_file(project: Path) -> Path:
    return project / ".chalice" / "config.json"


def config(project: Path) -> dict[str, Any]:
    """What `.chalice/config.json` says. Raises Problem."""
    path = config_file(project)
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise Problem(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise Problem(f"{path} is not JSON: {error}.") from None
    if not isinstance(found, dict):
        raise Problem(f"{path} is not a JSON object.")
    return found


def function_config(project: Path, stage: str, function: str) -> Config:
    """What `.chalice/config.json` says about one function of a stage. Raises Problem."""
    found = config(project)
    stages = found.get("stages", {})
    if stage not in stages:
        raise Problem(
            f"{config_file(project)} has no stage {stage}; it has {', '.join(stages) or 'none'}. "
            "A new stage: copy the entry of prod there and the files of prod in infra/policies, "
            "and replace the name."
        )
    return Config(chalice_stage=stage, function_name=function, config_from_disk=found)


def variables(project: Path, stage: str, function: str) -> dict[str, str]:
    """The environment that a function of a stage gets. Raises Problem."""
    configured = function_config(project, stage, function).environment_variables
    return {name: str(value) for name, value in configured.items()}


def policies(project: Path, stage: str) -> None:
    """Raises Problem where a function may not read the secret of a provider that it has to."""
    missing = []
    providers = settings(project, stage)["api_handler"].providers
    for function in ("api_handler", "process", "send"):
        named = function_config(project, stage, function).iam_policy_file or ""
        file = (config_file(project).parent / named).resolve()
        try:
            policy = file.read_text()
        except OSError as error:
            raise Problem(f"{file} cannot be read: {error.strerror}.") from None
        missing += [
            f"  {file}: arn:aws:secretsmanager:*:*:secret:spillway/{stage}/{provider}-??????"
            for provider in providers
            if f"secret:spillway/{stage}/{provider}-" not in policy
        ]
    if missing:
        raise Problem(
            "PROVIDERS names some whose secrets the functions may not read. Add to the statement "
            "Secrets of\n" + "\n".join(missing)
        )


def settings(project: Path, stage: str) -> Mapping[str, Settings]:
    """The settings of each function of a stage, read as the functions read them.

    Raises Problem with a line for every setting that is wrong or still to be filled in.
    """
    read: dict[str, Settings] = {}
    wrong: dict[str, str] = {}
    for function in FUNCTIONS:
        found = variables(project, stage, function)
        try:
            read[function] = load(found)
        except SettingError as error:
            for line in str(error).splitlines():
                name, _, rest = line.partition(": ")
                unfilled = found.get(name, "").startswith(UNFILLED)
                said = "still to be filled in" if unfilled else rest.partition("; it must be")[0]
                expected = rest.partition("; it must be ")[2]
                wrong[f"{function}: {name}"] = f"{said}; it must be {expected}"
    if wrong:
        lines = "\n".join(f"  {name}: {said}" for name, said in wrong.items())
        raise Problem(f"{config_file(project)}, stage {stage}:\n{lines}")
    return read
