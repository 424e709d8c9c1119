"""`.spillway`: who may read it, one run at a time, and what it says after a run that was killed."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from spillway.local.folder import Folder, write_json, write_private
from spillway.problem import Problem
from spillway.project import PROJECT


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "home")


def test_a_private_file_is_whole_and_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "local.json"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["local.json"]


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SPILLWAY_HOME", raising=False)
    assert Folder().path == PROJECT / ".spillway"
    monkeypatch.setenv("SPILLWAY_HOME", str(tmp_path))
    assert Folder().path == tmp_path


def test_a_second_run_is_refused_and_leaves_the_firsts_file(folder: Folder) -> None:
    with folder.claimed():
        write_json(folder.local, {"webhook": "here"})
        with pytest.raises(Problem, match="already runs"), Folder(folder.path).claimed():
            pass
        assert folder.running() == {"webhook": "here"}


def test_nothing_is_left_of_a_run_but_what_is_kept(folder: Folder) -> None:
    with folder.claimed():
        write_json(folder.local, {})
    assert not folder.local.exists()
    with pytest.raises(Problem, match="make run"):
        folder.running()


def test_before_the_first_run_nothing_runs(folder: Folder) -> None:
    with pytest.raises(Problem, match="make run"):
        folder.running()


def test_while_a_run_starts_nothing_answers_yet(folder: Folder) -> None:
    with folder.claimed(), pytest.raises(Problem, match="still starting"):
        folder.running()


def test_a_run_that_was_killed_is_not_taken_for_a_running_one(folder: Folder) -> None:
    # GIVEN a process that claimed the folder and was killed
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from spillway.local.folder import Folder, write_json\n"
        "folder = Folder(Path(sys.argv[1]))\n"
        "with folder.claimed():\n"
        "    write_json(folder.local, {})\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(folder.path)], cwd=PROJECT, timeout=20)
    assert json.loads(folder.local.read_text()) == {}
    # THEN what it left counts for nothing, and the next run can have the folder
    with pytest.raises(Problem, match="make run"):
        folder.running()
    with folder.claimed():
        assert not folder.local.exists()


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Problem, match="file"), Folder(tmp_path / "file" / "home").claimed():
        pass
