"""How long each function takes to start on this machine: `.venv/bin/python -m bench.cold_start`.

Import of app.py with everything that INIT makes (clients, queue URLs, secrets, from a stub on
loopback), in a fresh process each time, after the interpreter itself is up. The functions take
turns, so that a machine that slows down slows all of them. Lambda's own times are others; the
ratios are what to look at.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

from tests.aws_stub import aws_stub, function_environment

FUNCTIONS = ("authorizer", "receiver", "processing", "sender")
ROUNDS = 11
START = """
import time
began = time.perf_counter()
import app
print((time.perf_counter() - began) * 1000)
"""


def main() -> None:
    times: dict[str, list[float]] = {function: [] for function in FUNCTIONS}
    with aws_stub() as endpoint:
        for _ in range(ROUNDS + 1):
            for function in FUNCTIONS:
                done = subprocess.run(
                    [sys.executable, "-c", START],
                    cwd=Path(__file__).parent.parent,
                    env=function_environment(function, endpoint) | {"PYTHONDONTWRITEBYTECODE": ""},
                    capture_output=True,
                    text=True,
                    check=True,
                )
                times[function].append(float(done.stdout.splitlines()[-1]))
    base = statistics.median(times["authorizer"][1:])
    print(f"{'function':<12}{'min':>8}{'median':>8}{'max':>8}   ms, {ROUNDS} starts; x authorizer")
    for function, all_times in times.items():
        counted = all_times[1:]  # the first fills the caches
        median = statistics.median(counted)
        print(
            f"{function:<12}{min(counted):8.0f}{median:8.0f}{max(counted):8.0f}   "
            f"{median / base:.1f}"
        )


if __name__ == "__main__":
    main()
