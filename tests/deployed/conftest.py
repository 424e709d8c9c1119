"""The stage that is proven, and the file that says what was seen of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from spillway.project import PROJECT
from tests import emulated
from tests.deployed.target import OURS, TWILIOS, Target
from tests.e2e.stack import free_port

EVIDENCE = PROJECT / "build"

_seen: list[dict[str, Any]] = []


@pytest.fixture(scope="session")
def target(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Target]:
    """A stage that is not deployed yet. In a real account it is destroyed afterwards."""
    stage = request.config.getoption("--stage")
    project = tmp_path_factory.mktemp("project")
    with ExitStack() as stack:
        emulator = ""
        if not stage:
            emulator = stack.enter_context(emulated.ministack(tmp_path_factory.mktemp("aws")))
        one = Target(project, stage or "e2e", emulator)
        stack.callback(one.close)
        one.set(
            SEND_ONLY_TO="*",
            PROVIDERS="sandbox,twilio" if emulator else "sandbox",
            NUMBERS=f"{OURS}=sandbox" + (f",{TWILIOS}=twilio" if emulator else ""),
        )
        try:
            yield one
        finally:
            if not emulator:
                one.spillway("destroy", "--yes", "--data", "--confirm", one.stage, good=False)
                _write_evidence(one)


@pytest.fixture(scope="session")
def simulator(target: Target) -> Iterator[str]:
    """Twilio, simulated on this machine: its page. Only an emulated account can call it."""
    if not target.emulator:
        pytest.skip("a simulated provider on this machine cannot be called from AWS")
    secrets = {"twilio": {"account_sid": "AC" + "0" * 32, "auth_tokens": ["f" * 32]}}
    config = {
        "webhook": target.api.public,
        "credentials": {"twilio": target.credentials["twilio"]},
        "secrets": secrets,
    }
    port = free_port()
    with running(port, {"SIMULATOR": json.dumps(config), "PYTHONPATH": str(PROJECT)}):
        page = f"http://127.0.0.1:{port}"
        target.spillway("secret", "set", "twilio", typed=json.dumps(secrets["twilio"]))
        yield page


@contextmanager
def running(port: int, variables: dict[str, str]) -> Iterator[None]:
    with subprocess.Popen(
        [sys.executable, "-m", "spillway.simulator", "--port", str(port)],
        env={**variables, "SPILLWAY_PARENT_PIPE": "1"},
        stdin=subprocess.PIPE,
        cwd=PROJECT,
    ) as process:
        try:
            yield
        finally:
            process.terminate()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome: Any = yield
    report = outcome.get_result()
    if report.when == "call" and Path(str(item.fspath)).parent == Path(__file__).parent:
        _seen.append(
            {"test": item.name, "outcome": report.outcome, "seconds": round(report.duration, 2)}
        )


def _write_evidence(target: Target) -> None:
    """What was proven, of which commit, when and where: without the account's number."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    evidence = {
        "commit": commit.stdout.strip(),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "region": target.aws.region,
        "stage": target.stage,
        "deployments": {name: round(seconds, 1) for name, seconds in target.took.items()},
        "tests": _seen,
    }
    EVIDENCE.mkdir(exist_ok=True)
    path = EVIDENCE / f"proof-{target.stage}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps(evidence, indent=2) + "\n")
    print(f"\nevidence: {path.relative_to(PROJECT)}")
