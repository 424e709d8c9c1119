"""Killing a process of the local run (kill -9), and nothing else.

A process id is only a number, which the system may have given to somebody else meanwhile. So the
file of the run is read anew, and the process must have the run for its parent and the command line
of what it is taken for; then it is killed at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from spillway.local.folder import Folder
from spillway.problem import Problem

# How the command line of each ends or, of the webhook, what comes before its port.
COMMANDS = {
    "webhook": "spillway.local.server ",
    "processing": "spillway.local.worker processing",
    "outbound": "spillway.local.worker outbound",
}
BACK = 60.0  # seconds that a killed process has to be at work again


@dataclass(frozen=True, slots=True)
class Killed:
    """`in_hand`: messages (of the webhook: requests) that were under way. `back_after` in seconds,
    None where it did not come back."""

    worker: str
    in_hand: int
    back_after: float | None


def kill(folder: Folder, worker: str, in_hand: int) -> Killed:
    """Kills it and waits until it is at work again. Raises Problem where it is not what local.json
    says."""
    log = folder.log(worker)
    written = log.stat().st_size
    pid = child(folder.running(), worker)
    os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    while time.monotonic() - began < BACK:
        local = folder.running()
        if local["pids"][worker] != pid and _works(local, worker, lambda: _since(log, written)):
            return Killed(worker, in_hand, round(time.monotonic() - began, 1))
        time.sleep(0.05)
    return Killed(worker, in_hand, None)


def child(local: Mapping[str, Any], worker: str) -> int:
    """The process id of a worker. Raises Problem where the process is not that child of the run."""
    pid: int = local["pids"][worker]
    parent, command = _process(pid)
    # The emulator lives as long as its run.
    run, _ = _process(local["pids"]["emulator"])
    if parent != run or COMMANDS[worker] not in f"{command} ":
        raise Problem(
            f"Process {pid} is not the {worker} of this run any more: nothing was killed."
        )
    return pid


def _process(pid: int) -> tuple[int, str]:
    """A process's parent and command line; (0, "") where there is none."""
    try:
        found = subprocess.run(
            ["ps", "-ww", "-o", "ppid=", "-o", "command=", "-p", str(pid)],
            capture_output=True,
            text=True,
            check=False,
        ).stdout
    except FileNotFoundError:
        raise Problem("The command ps is needed, to be certain of what is killed.") from None
    parent, _, command = found.strip().partition(" ")
    return int(parent or 0), command


def _works(local: Mapping[str, Any], worker: str, said: Callable[[], bytes]) -> bool:
    if worker != "webhook":
        return b"\npolling" in b"\n" + said()
    try:
        return httpx.get(f"{local['webhook']}/health", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _since(log: Path, position: int) -> bytes:
    with log.open("rb") as file:
        file.seek(position)
        return file.read()
