"""A MiniStack of its own for a test: a process on a free port, which ends with the block."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from spillway.aws import EMULATED_REGION
from spillway.local import emulator
from spillway.project import PROJECT

ACCOUNT = "000000000000"
START = 30.0  # seconds


def environment(url: str) -> dict[str, str]:
    """In which whoever speaks to AWS speaks to the emulator, and to nothing else."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": EMULATED_REGION,
        "AWS_REGION": EMULATED_REGION,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


@contextmanager
def ministack(folder: Path, variables: Mapping[str, str] | None = None) -> Iterator[str]:
    """Its endpoint. `variables`: more of its environment, which the Lambda functions that it runs
    see as theirs."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-m", "spillway.local.emulator"],
            env={
                **emulator.environment(port, folder, os.environ),
                **environment(url),
                "PYTHONPATH": str(PROJECT),
                **(variables or {}),
            },
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
        ) as process,
    ):
        try:
            end = time.monotonic() + START
            while not _answers(url + emulator.HEALTH):
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < end, f"nothing answers after {START} s"
                time.sleep(0.05)
            yield url
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()


def _answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
        return bool(answer.status == 200)
    return False
