"""What the contract suite of the stores is made of: kinds of stores, rows of cases, a clock."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from boto3.dynamodb.types import TypeSerializer
from botocore.exceptions import ClientError

from tests.fakes import NOW

Kind = Literal["memory", "moto", "ministack"]
Item = dict[str, Any]


class Clock:
    """Unix seconds that go on when a test says so."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def code(error: pytest.ExceptionInfo[ClientError]) -> str:
    """What AWS calls the error."""
    return str(error.value.response["Error"]["Code"])


def differs(kind: Kind, **reasons: str) -> None:
    """Skips the test for an emulator that is known to differ from AWS: kind=reason."""
    if kind in reasons:
        pytest.skip(f"{kind}: {reasons[kind]}")


def wire(value: Any) -> Item:
    """A plain value as it travels to DynamoDB; numbers that are not whole are Decimals."""
    found: Any = TypeSerializer().serialize(value)
    return {**found}


def case(*arguments: Any, moto: str = "", ministack: str = "", **values: Any) -> Any:
    """A row of a table: its arguments, the values by placeholder, and which emulators differ."""
    reasons = {"moto": moto, "ministack": ministack}
    return (
        *arguments,
        {f":{name}": wire(value) for name, value in values.items()},
        {kind: reason for kind, reason in reasons.items() if reason},
    )
