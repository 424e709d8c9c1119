"""Workers are killed (kill -9) in the middle of their batches."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path

from rich.console import Console

from spillway.traffic import burst
from tests.e2e.stack import Stack, running, until

MESSAGES = 400


def test_a_killed_worker_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    with running(tmp_path) as stack:
        # GIVEN look-ups and answers slow enough that batches are always under way
        stack.delay(customer=0.3, line=0.3, reply=0.2)
        messages = burst.make(MESSAGES, 40, 0.05, ["twilio", "telnyx"])
        with ThreadPoolExecutor(1) as pool:
            counting = pool.submit(
                burst.run, stack.local, messages, console=Console(file=StringIO())
            )
            # WHEN each worker is killed while it works
            until(lambda: len(stack.answers()) > 20, 60)
            for worker in ("outbound", "processing"):
                kill(stack, worker)
            time.sleep(3)
            kill(stack, "outbound")
            count = counting.result(timeout=400)

        # THEN nothing that was acknowledged is lost, nothing is answered twice
        assert (count.lost, count.answered_twice) == (0, 0), count
        assert count.acknowledged == count.stored == count.archived == MESSAGES, count
        # AND what may have been sent as its worker died is listed, not repeated
        assert count.answered + count.unknown == MESSAGES, count


def kill(stack: Stack, worker: str) -> None:
    """Kills a worker; it must be back within 2 seconds, under another id."""
    pid = stack.local["pids"][worker]
    os.kill(pid, signal.SIGKILL)
    until(lambda: stack.local["pids"][worker] != pid, 2.5)
