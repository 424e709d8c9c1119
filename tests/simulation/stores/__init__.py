"""AWS's stores in memory, as far as Spillway uses them, and faithful as far as that goes.

Each is shaped like a boto3 client and holds state only: no faults, no threads, no sleeping. What is
not supported raises NotImplementedError. One contract suite (test_stores.py) holds them to what
MiniStack and moto do, and to AWS's pages where those differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from botocore.exceptions import ClientError, ParamValidationError

ACCOUNT = "123456789012"
REGION = "us-east-1"


def refusal(
    operation: str, code: str, message: str, kind: type[ClientError] = ClientError, **more: Any
) -> ClientError:
    """The error that botocore makes of AWS's answer."""
    response: Any = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": 400},
        **more,
    }
    return kind(response, operation)


def nothing_else(operation: str, parameters: Mapping[str, Any]) -> None:
    """Refuses the parameters that a store does not know."""
    if parameters:
        raise NotImplementedError(f"{operation} with {', '.join(sorted(parameters))}")


def must_be(kind: type, name: str, value: object) -> None:
    """botocore's own check of a parameter, which comes before any call."""
    if type(value) is not kind:
        raise ParamValidationError(
            report=f"Invalid type for parameter {name}, type: {type(value)}, "
            f"valid types: <class '{kind.__name__}'>"
        )
