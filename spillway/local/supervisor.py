"""The run: starts every process, says where everything is, keeps them up, ends them all."""

from __future__ import annotations

import http.client
import queue
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.text import Text

from spillway.local import emulator, stack
from spillway.local.children import Child, end
from spillway.local.environment import Environments
from spillway.local.folder import Folder, write_json, write_private
from spillway.problem import Problem

# Seconds that all children together have to answer at the start.
_START = 60.0
_TICK = 0.05

# Ends in a row after which it is said that there are several.
_SEVERAL = 3

_RELOADED = ("webhook", "processing", "outbound")


class Stopped(Exception):
    """The run was told to end."""


class Run:
    """One local run. Call `start`, then `watch`, and `stop` in any case."""

    def __init__(
        self, project: Path, folder: Folder, environments: Environments, console: Console
    ) -> None:
        self._project = project
        self._folder = folder
        self._environments = environments
        self._console = console
        self._stopping = threading.Event()
        self._changed: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._began = time.monotonic()
        self._children: dict[str, Child] = {}
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: self._stopping.set())

    def start(self) -> None:
        """Starts everything and returns when all of it answers.

        Raises Problem for a child that cannot, Stopped where the run was told to end.
        """
        write_private(self._folder.env, self._environments.shell_file())
        with self._console.status("starting: emulator, simulated providers"):
            self._start_emulator()
            self._start_simulator()
            self._wait_for("emulator")
        with self._console.status("starting: queues, table, archive, secrets"):
            stack.deploy(self._environments.aws, self._project / "infra" / "data.yaml")
            stack.put_secrets(self._environments.aws, self._environments.keys.stored())
        with self._console.status("starting: webhook, workers"):
            self._start_functions()
            self._wait_for("webhook", "processing", "outbound", "simulator")
        self._write_local()
        self._say_what_runs()

    def watch(self) -> None:
        """Keeps the processes up until the run is told to end (Stopped).

        Raises Problem when the emulator has ended: what it held is gone.
        """
        while True:
            self._pause()
            for child in self._children.values():
                if child.restart_at is not None:
                    self._restart_when_due(child)
                elif not child.alive:
                    self._ended(child)
            self._reload_if_changed()

    def stop(self) -> None:
        """Ends every process of the run, the emulator last: batches in hand still need it."""
        self._folder.local.unlink(missing_ok=True)
        end([child for name, child in self._children.items() if name != "emulator"])
        end([child for name, child in self._children.items() if name == "emulator"])

    def follow_edits(self) -> None:
        """Watches chalicelib/ and app.py from now on."""
        from watchfiles import PythonFilter, watch

        def follow(folder: Path, *, recursive: bool) -> None:
            changes = watch(
                folder,
                watch_filter=PythonFilter(),
                recursive=recursive,
                stop_event=self._stopping,
                raise_interrupt=False,
            )
            for found in changes:
                for _, path in found:
                    self._changed.put(str(Path(path).relative_to(self._project)))

        # app.py through its folder: an editor that writes by rename replaces the file itself.
        for folder, recursive in ((self._project / "chalicelib", True), (self._project, False)):
            threading.Thread(
                target=follow, args=(folder,), kwargs={"recursive": recursive}, daemon=True
            ).start()

    def _start_emulator(self) -> None:
        ports = self._environments.ports
        environment = emulator.environment(
            ports.aws, self._folder.emulator, self._environments.caller
        )
        health = self._environments.aws + emulator.HEALTH
        self._add("emulator", ["spillway.local.emulator"], environment, lambda: _answers(health))

    def _start_simulator(self) -> None:
        port = str(self._environments.ports.page)
        health = f"{self._environments.page}/health"
        self._add(
            "simulator",
            ["spillway.simulator", "--port", port],
            self._environments.simulator(),
            lambda: _answers(health),
        )

    def _start_functions(self) -> None:
        port = str(self._environments.ports.webhook)
        health = f"{self._environments.webhook}/health"
        environment = self._environments.function("webhook")
        self._add("webhook", ["spillway.local.server", port], environment, lambda: _answers(health))
        for name in ("processing", "outbound"):
            environment = self._environments.function(name)
            self._add(name, ["spillway.local.worker", name], environment)

    def _add(
        self,
        name: str,
        module: list[str],
        environment: dict[str, str],
        answers: Callable[[], bool] | None = None,
    ) -> None:
        command = [sys.executable, "-m", *module]
        log = self._folder.log(name)
        child = Child(name, command, environment, self._project, log, answers)
        self._children[name] = child
        child.start()

    def _wait_for(self, *names: str) -> None:
        deadline = time.monotonic() + _START
        missing = [self._children[name] for name in names]
        while missing:
            for child in self._children.values():
                if not child.alive:
                    raise Problem(
                        f"{child.name} did not start ({child.how_it_ended()}):\n{_words(child)}"
                    )
            missing = [child for child in missing if not child.ready]
            if missing and time.monotonic() > deadline:
                raise Problem(
                    f"{missing[0].name} did not answer within {_START:.0f} s:\n{_words(missing[0])}"
                )
            self._pause()

    def _pause(self) -> None:
        if self._stopping.wait(_TICK):
            raise Stopped

    def _write_local(self) -> None:
        pids = {name: child.pid for name, child in self._children.items()}
        write_json(self._folder.local, self._environments.local(pids))

    def _ended(self, child: Child) -> None:
        how = child.how_it_ended()
        if child.name == "emulator":
            raise Problem(
                f"The emulator ended ({how}), and with it the queues, the table and the archive, "
                f"so the run ends too.\n{_words(child)}"
            )
        pause = child.plan_restart()
        self._say(f"{child.name} ended ({how})", style="yellow")
        # An error says itself why, at once; a signal only where it comes again and again.
        failed = not how.startswith("signal")
        if child.quick_ends < 2 if failed else child.quick_ends == _SEVERAL:
            self._console.print(Text(_words(child)), soft_wrap=True)
        if child.quick_ends >= _SEVERAL:
            self._say(
                f"{child.name} has ended {child.quick_ends} times in a row; the next start is in "
                f"{pause:.1f} s",
                style="bold red",
            )

    def _restart_when_due(self, child: Child) -> None:
        if child.restart_at is not None and time.monotonic() >= child.restart_at:
            child.start()
            self._write_local()
            self._say(f"{child.name} started again as process {child.pid}")

    def _reload_if_changed(self) -> None:
        paths = set()
        while not self._changed.empty():
            paths.add(self._changed.get())
        paths = {path for path in paths if path == "app.py" or path.startswith("chalicelib/")}
        if not paths:
            return
        children = [self._children[name] for name in _RELOADED]
        end(children)
        for child in children:
            child.quick_ends = 0
            child.start()
        self._write_local()
        self._say(f"{', '.join(sorted(paths))} changed: {', '.join(_RELOADED)} restarted")

    def _say(self, line: str, style: str = "") -> None:
        now = datetime.now().strftime("%H:%M:%S")  # noqa: DTZ005 -- the reader's own clock
        self._console.print(Text.assemble((f"{now} ", "dim"), (line, style)), soft_wrap=True)

    def _say_what_runs(self) -> None:
        environments = self._environments
        rows = [
            ("webhook", environments.webhook, "POST /webhooks/{provider}, POST /messages"),
            ("outbox", f"{environments.page}/provider/outbox", "what the simulated providers sent"),
            ("page", f"{environments.page}/", "simulated providers, samples: what they offer"),
            ("AWS", environments.aws, "emulated, in memory"),
            ("workers", "processing, outbound", "a process for each queue"),
            ("logs", _near(self._folder.path / "logs"), "a file for each process"),
            ("secrets", _near(self._folder.secrets), "credentials and keys, kept for the next run"),
        ]
        print_ = self._console.print
        took = time.monotonic() - self._began
        print_(Text.assemble(("Spillway runs", "bold green"), f" (started in {took:.1f} s)"))
        for what, where, note in rows:
            line = Text.assemble((f"  {what:<12}", "cyan"), f"{where:<48}", (note, "dim"))
            print_(line, soft_wrap=True)
        if replaced := environments.replaced():
            print_(Text(f"  from your environment: {', '.join(replaced)}", "yellow"))
        command = _near(Path(sys.executable).with_name("spillway"))
        print_(Text.assemble("\nTry in another terminal:  ", (f'{command} text "hello"', "bold")))
        print_("Ctrl-C ends everything.\n")


# The environment's proxies must not be asked for what is on this machine.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _answers(url: str) -> bool:
    try:
        with _DIRECT.open(url, timeout=1) as response:
            ok: bool = response.status == 200
            return ok
    except (OSError, http.client.HTTPException):
        return False


def _words(child: Child) -> str:
    """What a child wrote before it ended, and where the rest is."""
    return "\n".join([*(f"  {line}" for line in child.last_words()), f"  log: {child.log}"])


def _near(path: Path) -> str:
    """The path as somebody in the current folder would type it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
