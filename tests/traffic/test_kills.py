"""What may be killed: the run's own child, as long as it is that, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spillway.local.folder import Folder
from spillway.problem import Problem
from spillway.traffic import kills

SLEEP = "import sys, time; print(flush=True); time.sleep(60)"
# One that starts another process with the same command line, and tells its id.
PARENT = (
    "import subprocess, sys, time;"
    f"child = subprocess.Popen([sys.executable, '-c', {SLEEP!r}, *sys.argv[1:]],"
    " stdout=subprocess.DEVNULL);"
    "print(child.pid, flush=True); time.sleep(60)"
)


class Processes:
    """Processes of this test, which stands for the run."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[str]] = []

    def start(self, code: str, *arguments: str) -> subprocess.Popen[str]:
        one = subprocess.Popen(
            [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True
        )
        self.started.append(one)
        return one

    def worker(self, name: str) -> subprocess.Popen[str]:
        one = self.start(SLEEP, "-m", "spillway.local.worker", name)
        assert one.stdout is not None
        one.stdout.readline()
        return one


@pytest.fixture
def processes() -> Iterator[Processes]:
    ours = Processes()
    yield ours
    for one in ours.started:
        one.kill()
        one.communicate()


@pytest.fixture
def emulator(processes: Processes) -> int:
    return processes.start(SLEEP).pid


def local(emulator: int, pid: int) -> dict[str, Any]:
    return {"pids": {"emulator": emulator, "outbound": pid}}


def test_the_runs_own_worker(processes: Processes, emulator: int) -> None:
    worker = processes.worker("outbound")
    assert kills.child(local(emulator, worker.pid), "outbound") == worker.pid


def test_a_process_of_another_name(processes: Processes, emulator: int) -> None:
    for other in (processes.worker("processing"), processes.start(SLEEP)):
        with pytest.raises(Problem, match="nothing was killed"):
            kills.child(local(emulator, other.pid), "outbound")


def test_a_process_that_is_gone(processes: Processes, emulator: int) -> None:
    gone = processes.worker("outbound")
    gone.kill()
    gone.wait()
    with pytest.raises(Problem, match="nothing was killed"):
        kills.child(local(emulator, gone.pid), "outbound")


def test_the_worker_of_another_run(processes: Processes, emulator: int) -> None:
    other = processes.start(PARENT, "-m", "spillway.local.worker", "outbound")
    assert other.stdout is not None
    theirs = int(other.stdout.readline())
    try:
        with pytest.raises(Problem, match="nothing was killed"):
            kills.child(local(emulator, theirs), "outbound")
    finally:
        subprocess.run(["kill", "-9", str(theirs)], check=True)


def test_what_is_not_the_worker_any_more_lives_on(
    processes: Processes, emulator: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a number in local.json that is somebody else's by now
    stranger = processes.start(SLEEP)
    folder = Folder(tmp_path)
    folder.log("outbound").parent.mkdir()
    folder.log("outbound").touch()
    monkeypatch.setattr(Folder, "running", lambda _: local(emulator, stranger.pid))
    # WHEN the worker is to be killed
    with pytest.raises(Problem, match="nothing was killed"):
        kills.kill(folder, "outbound", 1)
    # THEN nobody was
    with pytest.raises(subprocess.TimeoutExpired):
        stranger.wait(0.2)


def test_without_ps_nothing_is_killed(emulator: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Problem, match="ps"):
        kills.child(local(emulator, emulator), "outbound")
