"""Child processes of a local run: started apart from the terminal, ended by their own id.

A child has a session of its own, so that the terminal's Ctrl-C reaches the run alone, and a pipe
as standard input, whose end tells it that the run was killed.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

# Seconds from SIGTERM to SIGKILL.
PATIENCE = 5.0

# A process that ends within so many seconds of its start has ended at once.
_AT_ONCE = 3.0
_LONGEST_PAUSE = 30.0


class Child:
    """One process of the run, through all its restarts."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        log: Path,
        answers: Callable[[], bool] | None = None,
    ) -> None:
        """`answers` says whether it is at work; without it, a line that starts with "polling" in
        its log does."""
        self.name = name
        self.log = log
        self._command = command
        self._environment = environment
        self._folder = folder
        self._answers = answers or (lambda: b"\npolling" in b"\n" + self._written())
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self._started = 0.0
        self.quick_ends = 0
        self.restart_at: float | None = None
        log.write_bytes(b"")

    def start(self) -> None:
        """Starts it, for the first time or after its end."""
        self._close()
        self._log_start = self.log.stat().st_size
        self._started = time.monotonic()
        self.restart_at = None
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=dict(self._environment),
                cwd=self._folder,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def ready(self) -> bool:
        return self.alive and self._answers()

    def plan_restart(self) -> float:
        """Decides when to start again after an end, and returns the pause in seconds: none the
        first time, then more and more for a process that ends at once."""
        now = time.monotonic()
        self.quick_ends = self.quick_ends + 1 if now - self._started < _AT_ONCE else 0
        pause = min(0.5 * 2 ** (self.quick_ends - 2), _LONGEST_PAUSE)
        self.restart_at = now + (pause if self.quick_ends > 1 else 0.0)
        return self.restart_at - now

    def how_it_ended(self) -> str:
        code = self._process.poll() if self._process else None
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"

    def last_words(self) -> list[str]:
        """The last lines that it wrote since its last start."""
        return self._written().decode(errors="replace").strip().splitlines()[-8:]

    def _written(self) -> bytes:
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read()

    def terminate(self) -> None:
        if self._process is not None:
            self._process.terminate()

    def wait_for_end(self, deadline: float) -> None:
        """Waits until `deadline` (monotonic seconds), then kills."""
        if self._process is None:
            return
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close()

    def _close(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()


def end(children: Sequence[Child]) -> None:
    """Ends all of them side by side, and returns when none is left."""
    deadline = time.monotonic() + PATIENCE
    for child in children:
        child.terminate()
    for child in children:
        child.wait_for_end(deadline)
