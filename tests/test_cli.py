"""The `spillway` command as a whole: what a mistake looks like, and that help does not wait."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from spillway import cli
from spillway.problem import Problem


def spillway(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    nothing = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    return subprocess.run(
        [sys.executable, "-m", "spillway.cli", *arguments],
        env={**kept, **nothing, "AWS_EC2_METADATA_DISABLED": "true", **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


COMMANDS = (
    *("run", "text", "burst", "status", "trace", "doctor", "erase", "reconcile", "backfill"),
    *("replay", "deploy", "destroy"),
)


GROUPS = (
    *(("dlq", command) for command in ("list", "show", "redrive", "drop")),
    *(("unknown", command) for command in ("list", "show", "settle")),
)


@pytest.mark.parametrize("words", GROUPS, ids=" ".join)
def test_every_command_of_a_group_does_so(words: tuple[str, str]) -> None:
    done = spillway(*words, "--help")
    assert done.returncode == 0
    for said in ("Exit code", "--stage", "--json"):
        assert said in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_that_says_how_it_ends(command: str) -> None:
    done = spillway(command, "--help")
    assert done.returncode == 0
    assert command in ("text", "burst", "destroy") or "Exit code" in done.stdout


@pytest.mark.parametrize("command", ["status", "doctor", "deploy"])
@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, "error: No AWS region. Set AWS_REGION, e.g. AWS_REGION=eu-central-1"),
        ({"AWS_REGION": "eu-central-1"}, "error: No AWS credentials. Log in"),
        ({"AWS_PROFILE": "heron"}, "error: The AWS configuration cannot be used: "),
    ],
)
def test_without_an_account_it_says_what_is_missing(
    command: str, variables: dict[str, str], said: str
) -> None:
    done = spillway(command, "--stage", "prod", **variables)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(said)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Problem("do this"), "error: do this"),
        (
            ClientError(
                {"Error": {"Code": "AccessDenied", "Message": "not authorized"}}, "CreateStack"
            ),
            "error: AWS: An error occurred (AccessDenied) when calling the CreateStack operation",
        ),
        (EndpointConnectionError(endpoint_url="https://x"), "error: AWS: Could not connect"),
    ],
)
def test_what_is_wrong_is_one_message(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    said: str,
) -> None:
    def app() -> None:
        raise error

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith(said)


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def app() -> None:
        raise ValueError("heron")

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(ValueError, match="heron"):
        cli.main()
