"""The folder `.spillway`: what a local run leaves for other commands, for tests and for people.

local.json     where everything is, while it runs; written whole, by rename
secrets.json   credentials and keys, made at the first run and kept
env            the receiver's environment, for a shell
logs/          one file for each process, from its last run
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spillway.problem import Problem
from spillway.project import PROJECT


class Folder:
    """`.spillway` in the project, or the folder that SPILLWAY_HOME names."""

    def __init__(self, path: Path | None = None) -> None:
        named = os.environ.get("SPILLWAY_HOME")
        self.path = (path or (Path(named) if named else PROJECT / ".spillway")).absolute()

    @property
    def local(self) -> Path:
        return self.path / "local.json"

    @property
    def secrets(self) -> Path:
        return self.path / "secrets.json"

    @property
    def env(self) -> Path:
        return self.path / "env"

    @property
    def emulator(self) -> Path:
        """The emulator's temporary files."""
        return self.path / "emulator"

    def log(self, name: str) -> Path:
        return self.path / "logs" / f"{name}.log"

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """For one run at a time. The system frees the lock however the run ends.

        Raises Problem where another run has it.
        """
        try:
            for path in (self.path, self.path / "logs", self.emulator):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = (self.path / "lock").open("a+")
        except OSError as error:
            raise Problem(f"{self.path} cannot be used: {error.strerror}.") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise Problem(
                    f"Spillway already runs from {self.path}. End that one with Ctrl-C, or give "
                    "this one a folder and ports of its own:\n  SPILLWAY_HOME=/tmp/second "
                    "spillway run --webhook-port 0 --page-port 0"
                ) from None
            self.local.unlink(missing_ok=True)
            try:
                yield
            finally:
                self.local.unlink(missing_ok=True)

    def running(self) -> dict[str, Any]:
        """What local.json says. Raises Problem where nothing runs."""
        try:
            with (self.path / "lock").open("r+") as lock:
                # Whoever gets the lock shows that no run has it: local.json is of a run that died.
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            pass
        except OSError:
            try:
                found: dict[str, Any] = json.loads(self.local.read_text())
            except FileNotFoundError:
                raise Problem(
                    "Spillway is still starting. Try again when it says that it runs."
                ) from None
            return found
        raise Problem("Spillway does not run here. Start it in another terminal: make run")


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner may read, whole or not at all."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    new.replace(path)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_private(path, json.dumps(value, indent=2) + "\n")
