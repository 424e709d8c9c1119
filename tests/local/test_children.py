"""Child processes: ended by SIGTERM or at last by SIGKILL, restarted with patience."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spillway.local import children
from spillway.local.children import Child, end
from spillway.project import PROJECT

READY = "print('polling', flush=True); "
FOREVER = "import time; time.sleep(60)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "


@pytest.fixture
def child(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Child]:
    command = [sys.executable, "-c", request.param]
    made = Child("processing", command, {"PYTHONPATH": str(PROJECT)}, tmp_path, tmp_path / "log")
    yield made
    end([made])


def wait_until_ready(child: Child) -> None:
    deadline = time.monotonic() + 10
    while not child.ready and time.monotonic() < deadline:
        time.sleep(0.02)
    assert child.ready, child.last_words()


def wait_until_ended(child: Child) -> None:
    deadline = time.monotonic() + 10
    while child.alive and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not child.alive


@pytest.mark.parametrize(
    ("child", "how"),
    [(READY + FOREVER, "signal 15"), (STUBBORN + READY + FOREVER, "signal 9")],
    indirect=["child"],
)
def test_it_is_ended_even_if_it_will_not(
    child: Child, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "PATIENCE", 0.5)
    child.start()
    wait_until_ready(child)
    end([child])
    assert not child.alive
    assert child.how_it_ended() == how


@pytest.mark.parametrize(
    "child",
    [
        "from spillway.local.parent import exit_with_parent; exit_with_parent(); "
        + STUBBORN
        + READY
        + FOREVER
    ],
    indirect=True,
)
def test_it_ends_with_its_parent(child: Child) -> None:
    child.start()
    wait_until_ready(child)
    # WHEN the parent's end of the pipe closes, as it does when the parent is killed
    assert child._process is not None
    assert child._process.stdin is not None
    child._process.stdin.close()
    # THEN
    assert child._process.wait(5) == 0


@pytest.mark.parametrize("child", ["raise SystemExit('MAX_PARTS: wrong')"], indirect=True)
def test_its_last_words_are_those_of_its_last_start(child: Child) -> None:
    for _ in range(2):
        child.start()
        wait_until_ended(child)
        assert child.how_it_ended() == "exit code 1"
        assert child.last_words() == ["MAX_PARTS: wrong"]
    assert child.log.read_text().count("MAX_PARTS") == 2


@pytest.mark.parametrize("child", [""], indirect=True)
def test_the_pauses_between_restarts_grow_while_it_ends_at_once(child: Child) -> None:
    pauses = []
    for _ in range(5):
        child.start()
        wait_until_ended(child)
        pauses.append(child.plan_restart())
    assert pauses == pytest.approx([0, 0.5, 1, 2, 4])
    # WHEN it has run for a while before it ends
    child.start()
    wait_until_ended(child)
    child._started -= 10
    # THEN it is started again at once
    assert child.plan_restart() == 0


def test_nothing_that_never_started_has_to_be_ended(tmp_path: Path) -> None:
    never = Child("webhook", ["false"], {}, tmp_path, tmp_path / "log")
    end([never])
    assert not never.alive
