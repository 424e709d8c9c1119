"""Fixtures for all tests: no network outside this machine, a table and an archive in process."""

from __future__ import annotations

import gc
import ipaddress
import os
import socket
from collections.abc import Iterator
from typing import Any

import boto3
import pytest

from tests.fakes import FakeRuntime, logged, on_empty_table, one_table

# As tests/simulation/run.py does, and why; here it is the simulation's seeds that gain by it.
gc.set_threshold(50_000, 20, 100)

# `import app` in a test is what Chalice's command line does: nothing is made ready.
os.environ["AWS_CHALICE_CLI_MODE"] = "true"
os.environ["SPILLWAY_STAGE"] = "test"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--stage",
        default="",
        metavar="NAME",
        help="tests/deployed: prove this stage in the AWS account of your environment, for real",
    )


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Refuses every connection that would leave this machine, unless AWS itself is to be asked."""
    if request.config.getoption("--stage"):
        return
    connect = socket.socket.connect

    def checked(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and not ipaddress.ip_address(address[0]).is_loopback:
            raise AssertionError("a test tried to reach beyond this machine")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", checked)


@pytest.fixture(autouse=True)
def _aws_environment(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--stage"):
        return
    for name in list(os.environ):
        if name.startswith("AWS_") and name != "AWS_CHALICE_CLI_MODE":
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.fixture(scope="module")
def dynamodb() -> Iterator[Any]:
    """A client of the table of stage `test`, in process."""
    with one_table() as client:
        yield client


@pytest.fixture
def runtime(dynamodb: Any) -> FakeRuntime:
    """A runtime on that table, emptied."""
    return on_empty_table(dynamodb)


@pytest.fixture
def stores() -> Iterator[None]:
    """The table and the bucket of stage `test`, in process, for whoever makes a runtime itself."""
    with one_table():
        boto3.client("s3").create_bucket(Bucket="spillway-test-archive-123456789012-us-east-1")
        yield


@pytest.fixture
def says_nothing(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Fails a test that left a number, a text or a secret on standard output."""
    yield
    logged(capsys)
