"""MiniStack, for the contract suite of the stores."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from spillway.local import emulator


@pytest.fixture(scope="session")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """MiniStack's endpoint, for all tests of this process."""
    folder = tmp_path_factory.mktemp("ministack")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    environment = emulator.environment(port, folder, os.environ)
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-m", "spillway.local.emulator"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
        ) as process,
    ):
        try:
            end = time.monotonic() + 30
            while not _answers(endpoint + emulator.HEALTH):
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < end
                time.sleep(0.05)
            yield endpoint
        finally:
            process.kill()


def _answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
        return bool(answer.status == 200)
    return False
