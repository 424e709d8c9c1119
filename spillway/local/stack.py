"""What a local run puts into the emulator: the stack of `infra/data.yaml`, and the secrets."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spillway.aws import of_emulator
from spillway.local.environment import STAGE
from spillway.problem import Problem

STACK = f"spillway-{STAGE}-data"
# Thrown away with the emulator; and what a killed worker held comes back after little more than a
# function's time-out (60 s), not after the six that AWS asks for.
_PARAMETERS = {
    "Stage": STAGE,
    "DeletionProtection": "false",
    "ProcessingVisibility": "75",
    "OutboundVisibility": "75",
}
_TIMEOUT = 30.0


def deploy(endpoint: str, template: Path) -> None:
    """Creates the stack through CloudFormation, as on AWS. Raises Problem with what failed."""
    from botocore.exceptions import ClientError

    cloudformation = of_emulator(endpoint).client("cloudformation")
    try:
        cloudformation.create_stack(
            StackName=STACK,
            TemplateBody=template.read_text(),
            Parameters=[
                {"ParameterKey": name, "ParameterValue": value}
                for name, value in _PARAMETERS.items()
            ],
        )
    except OSError as error:
        raise Problem(f"{template} cannot be read: {error.strerror}.") from None
    except ClientError as error:
        raise Problem(f"{template} was refused: {error.response['Error']['Message']}") from None
    deadline = time.monotonic() + _TIMEOUT
    while (status := _status(cloudformation)) == "CREATE_IN_PROGRESS":
        if time.monotonic() > deadline:
            raise Problem(f"{template} was not deployed within {_TIMEOUT:.0f} s.")
        time.sleep(0.05)
    if status != "CREATE_COMPLETE":
        events = cloudformation.describe_stack_events(StackName=STACK)["StackEvents"]
        reasons = [
            f"  {event['LogicalResourceId']}: {event.get('ResourceStatusReason', '')}"
            for event in events
            if event["ResourceStatus"].endswith("FAILED")
        ]
        raise Problem("\n".join([f"{template} was not deployed ({status}):", *reasons]))


def _status(cloudformation: Any) -> str:
    status: str = cloudformation.describe_stacks(StackName=STACK)["Stacks"][0]["StackStatus"]
    return status


def put_secrets(endpoint: str, secrets: Mapping[str, Mapping[str, Any]]) -> None:
    """Puts each one into Secrets Manager as `spillway/{stage}/{name}`."""
    secretsmanager = of_emulator(endpoint).client("secretsmanager")
    for name, value in secrets.items():
        secretsmanager.create_secret(
            Name=f"spillway/{STAGE}/{name}", SecretString=json.dumps(value)
        )
