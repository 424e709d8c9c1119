"""Fixtures for all tests: no network outside this machine, a table and an archive in process."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from moto import mock_aws

from tests.fakes import FakeRuntime

# `import app` in a test is what Chalice's command line does: nothing is made ready.
os.environ["AWS_CHALICE_CLI_MODE"] = "true"
os.environ["SPILLWAY_STAGE"] = "test"


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuses every connection that would leave this machine."""
    connect = socket.socket.connect

    def checked(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and not ipaddress.ip_address(address[0]).is_loopback:
            raise AssertionError("a test tried to reach beyond this machine")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", checked)


@pytest.fixture(autouse=True)
def _aws_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_") and name != "AWS_CHALICE_CLI_MODE":
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.fixture
def stores() -> Iterator[None]:
    """The table and the bucket of stage `test`, in process."""
    with mock_aws():
        boto3.client("dynamodb").create_table(
            TableName="spillway-test",
            BillingMode="PAY_PER_REQUEST",
            KeySchema=[
                {"AttributeName": "pk", "KeyType": "HASH"},
                {"AttributeName": "sk", "KeyType": "RANGE"},
            ],
            AttributeDefinitions=[
                {"AttributeName": "pk", "AttributeType": "S"},
                {"AttributeName": "sk", "AttributeType": "S"},
            ],
        )
        boto3.client("s3").create_bucket(Bucket="spillway-test-archive-123456789012-us-east-1")
        yield


@pytest.fixture
def runtime(stores: None) -> FakeRuntime:
    return FakeRuntime()
