"""A local run of its own for a test: real processes, free ports, a folder that is thrown away."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from spillway.local.folder import Folder
from spillway.traffic.stores import LocalStores

T = TypeVar("T")
PROJECT = Path(__file__).parents[2]
START = 60.0  # seconds


class Stack:
    """A running local stack. `local` is what its local.json says."""

    def __init__(self, folder: Path, process: subprocess.Popen[str]) -> None:
        self.folder = folder
        self.process = process
        self.stores = LocalStores(self.local)
        self.http = self.stores.http

    def close(self) -> None:
        self.stores.close()

    @property
    def local(self) -> dict[str, Any]:
        return Folder(self.folder).running()

    def environment(self) -> dict[str, str]:
        """In which the `spillway` command finds this stack."""
        return environment(self.folder)

    def inbound(
        self, text: str, *, provider: str = "twilio", sender: str = "+14155550100", **more: Any
    ) -> dict[str, Any]:
        """A text from a person through a simulated provider; what the provider says of it."""
        request = {
            "provider": provider,
            "from": sender,
            "to": self.local["numbers"][provider],
            "text": text,
            **more,
        }
        answer = self.http.post(f"{self.local['page']}/provider/inbound", json=request)
        found: dict[str, Any] = answer.json()
        return found

    def answers(self) -> list[str]:
        """The texts that the simulated providers took from us, in order."""
        return [entry["text"] for entry in self.stores.outbox()]

    def delay(self, **seconds: float) -> None:
        """How long the samples take: reply, customer, line."""
        self.http.put(f"{self.local['page']}/sample/delay", json=seconds).raise_for_status()

    def log(self, name: str) -> str:
        return (self.folder / "logs" / f"{name}.log").read_text()


def environment(folder: Path) -> dict[str, str]:
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("AWS_", "SPILLWAY_"))}
    return {**kept, "SPILLWAY_HOME": str(folder)}


@contextmanager
def running(
    folder: Path,
    *options: str,
    variables: Mapping[str, str] | None = None,
    project: Path = PROJECT,
) -> Iterator[Stack]:
    """`spillway run`, until the block ends; then it must end by itself and leave no process."""
    command = [sys.executable, "-m", "spillway.cli", "run", *options]
    for port in ("--webhook-port", "--page-port", "--aws-port"):
        if port not in options:
            command += [port, "0"]
    process = subprocess.Popen(
        command,
        cwd=project,
        env={**environment(folder), "PYTHONPATH": str(project), **(variables or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        until(lambda: process.poll() is not None or (folder / "local.json").exists(), START)
        if process.poll() is not None:
            raise AssertionError(f"it did not start:\n{process.communicate()[0]}")
        stack = Stack(folder, process)
        with closing(stack):
            yield stack
            pids = [*stack.local["pids"].values()]
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 0, output
        assert not [pid for pid in pids if alive(pid)]
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=20)
            process.kill()
            process.communicate()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def until(found: Callable[[], T], seconds: float, every: float = 0.05) -> T:
    """What `found` returns once it is something. Fails after `seconds`."""
    end = time.monotonic() + seconds
    while not (result := found()):
        if time.monotonic() > end:
            raise AssertionError(f"not so after {seconds} s")
        time.sleep(every)
    return result


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


class Proxy:
    """Forwards TCP connections on loopback while it is up; refuses them while it is down."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self._target = target
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self.up()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def up(self) -> None:
        listener = socket.create_server(("127.0.0.1", self.port), backlog=512)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def down(self) -> None:
        """Closes the door, and cuts every connection that is open."""
        assert self._listener is not None
        # A blocked accept keeps a closed listener alive: shutdown wakes it.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._listener = None
        for one in list(self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            self._open |= {near, far}
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        # The other direction's thread ends by the shutdown; whoever is last closes both.
        if source in self._open:
            self._open -= {source, sink}
        else:
            source.close()
            sink.close()
