"""`spillway run` in real processes: it starts, keeps up, says what is wrong, and leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from spillway.aws import of_emulator
from spillway.local.folder import Folder
from spillway.project import PROJECT

# One at a time: each has seven processes.
pytestmark = pytest.mark.xdist_group("local run")

FREE = ("--webhook-port", "0", "--page-port", "0", "--aws-port", "0")
CHILDREN = {"emulator", "webhook", "processing", "outbound", "simulator"}


class LocalRun:
    """A `spillway run` in a folder of its own, with what it has written to the terminal."""

    def __init__(self, home: Path, *options: str, **caller: str) -> None:
        self.folder = Folder(home)
        self._output = home.with_suffix(".out")
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "spillway.cli", "run", *FREE, *options],
                cwd=PROJECT,
                env={**os.environ, "SPILLWAY_HOME": str(home), "COLUMNS": "200", **caller},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        return self._output.read_text()

    def local(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.folder.local.read_text())
        return found

    def pids(self) -> dict[str, int]:
        pids: dict[str, int] = self.local()["pids"]
        return pids

    def wait_until_up(self) -> LocalRun:
        until(self.folder.local.exists, 40, self)
        return self

    def clear(self) -> None:
        """Ends what a failed test has left."""
        left = self.pids().values() if self.folder.local.exists() else ()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(5)
        for pid in filter(exists, left):
            os.kill(pid, signal.SIGKILL)

    def end(self, with_signal: int = signal.SIGTERM) -> int:
        self.process.send_signal(with_signal)
        return self.process.wait(15)


def until(holds: Callable[[], bool], seconds: float, run: LocalRun) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, run.output
        assert run.process.poll() is None, run.output
        time.sleep(0.02)


def exists(pid: int) -> bool:
    try:
        # A process that has ended stays listed until somebody asks how: that is none.
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., LocalRun]]:
    """Starts runs, and leaves nothing of them whatever the test has done."""
    runs: list[LocalRun] = []

    def started(*options: str, **caller: str) -> LocalRun:
        runs.append(LocalRun(tmp_path / "home", *options, **caller))
        return runs[-1]

    yield started
    for run in runs:
        run.clear()


def test_from_start_to_end(start: Callable[..., LocalRun]) -> None:
    # GIVEN a shell with an AWS profile that does not exist, and a run that has said it is up
    run = start(AWS_PROFILE="nobody", AWS_ACCESS_KEY_ID="AKIAREAL", LOG_LEVEL="DEBUG")
    run.wait_until_up()
    local = run.local()
    assert stat.S_IMODE(run.folder.local.stat().st_mode) == 0o600
    assert set(local) == {
        "webhook",
        "page",
        "aws",
        "credentials",
        "secrets",
        "numbers",
        "public_url",
        "pids",
        "settings",
    }
    assert set(local["settings"]) == {"receiver", "processing", "sender"}
    assert local["settings"]["receiver"]["PROVIDERS"] == "twilio,telnyx"
    assert set(local["pids"]) == CHILDREN
    assert len(set(local["pids"].values())) == len(CHILDREN)
    # THEN everything answers where it says
    assert status(f"{local['webhook']}/health") == 200
    assert status(f"{local['page']}/health") == 200
    aws = of_emulator(local["aws"])
    names = aws.client("sqs").list_queues()["QueueUrls"]
    assert {name.rsplit("/", 1)[1] for name in names} == {
        "spillway-local-processing",
        "spillway-local-processing-dlq",
        "spillway-local-outbound.fifo",
        "spillway-local-outbound-dlq.fifo",
    }
    secret = aws.client("secretsmanager").get_secret_value(SecretId="spillway/local/keys")
    assert set(json.loads(secret["SecretString"])) == {"hash_key"}
    # AND the terminal says where, what came from the shell, and what to try
    until(lambda: "Ctrl-C" in run.output, 5, run)
    assert local["webhook"] in run.output
    assert "from your environment: LOG_LEVEL\n" in run.output
    assert 'spillway text "hello"' in run.output
    assert local["credentials"]["api"] not in run.output
    # WHEN a second one is started in the same folder, THEN it refuses and the first goes on
    second = start()
    assert second.process.wait(15) == 1
    assert "already runs" in second.output
    assert run.local() == local
    # WHEN it is told to end
    assert run.end(signal.SIGINT) == 0
    # THEN nothing is left but what the next run keeps
    assert not any(exists(pid) for pid in local["pids"].values())
    assert not run.folder.local.exists()
    assert run.folder.secrets.exists()


@pytest.mark.parametrize("name", ["processing", "outbound", "webhook", "simulator"])
def test_a_child_that_is_killed_is_back_within_two_seconds(running: LocalRun, name: str) -> None:
    before = running.pids()
    os.kill(before[name], signal.SIGKILL)
    until(lambda: running.pids()[name] != before[name], 2, running)
    after = running.pids()
    assert {**after, name: before[name]} == before
    assert exists(after[name])
    until(lambda: f"started again as process {after[name]}" in running.output, 2, running)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRun]:
    """One run for the tests that do not end it."""
    run = LocalRun(tmp_path_factory.mktemp("run") / "home")
    try:
        yield run.wait_until_up()
        run.end()
    finally:
        run.clear()


def test_the_end_of_the_emulator_ends_the_run(start: Callable[..., LocalRun]) -> None:
    run = start().wait_until_up()
    pids = run.pids()
    os.kill(pids["emulator"], signal.SIGKILL)
    assert run.process.wait(15) == 1
    assert "The emulator ended (signal 9)" in run.output
    assert "Traceback" not in run.output
    assert not any(exists(pid) for pid in pids.values())
    assert not run.folder.local.exists()


def test_no_child_outlives_a_run_that_was_killed(start: Callable[..., LocalRun]) -> None:
    run = start().wait_until_up()
    pids = run.pids()
    run.process.kill()
    run.process.wait(5)
    deadline = time.monotonic() + 5
    while any(exists(pid) for pid in pids.values()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(exists(pid) for pid in pids.values())


def test_a_broken_setting_is_named_and_ends_the_run(start: Callable[..., LocalRun]) -> None:
    run = start(MAX_PARTS="many")
    assert run.process.wait(40) == 1
    assert "error:" in run.output
    assert "MAX_PARTS: " in run.output
    assert "Traceback" not in run.output
    assert not run.folder.local.exists()


def test_a_taken_port_is_named_and_ends_the_run(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = str(server.getsockname()[1])
        ended = subprocess.run(
            [sys.executable, "-m", "spillway.cli", "run", "--webhook-port", taken],
            cwd=PROJECT,
            env={**os.environ, "SPILLWAY_HOME": str(tmp_path), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=20,
        )
    assert ended.returncode == 1
    assert f"Port {taken} is taken (--webhook-port)" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "local.json").exists()


def test_told_to_end_while_it_starts_it_ends(start: Callable[..., LocalRun]) -> None:
    run = start()
    until(lambda: run.folder.log("emulator").exists(), 10, run)
    assert run.end() == 0
    assert not run.folder.local.exists()
