"""`spillway run --reload` follows edits of the adopter's code."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.e2e.stack import PROJECT, running, until


def test_an_edit_is_followed(tmp_path: Path) -> None:
    # GIVEN a clone of the project, run with its own replies
    project = tmp_path / "clone"
    for name in ("chalicelib", "spillway", "infra", ".chalice"):
        ignore = shutil.ignore_patterns("__pycache__", "deployed", "deployments")
        shutil.copytree(PROJECT / name, project / name, ignore=ignore)
    shutil.copy(PROJECT / "app.py", project)
    home = tmp_path / "home"
    with running(home, "--reload", variables={"REPLY_API_URL": ""}, project=project) as stack:
        assert stack.inbound("hello")["status"] == 200
        until(lambda: "You wrote: hello" in stack.answers(), 20)

        # WHEN they are edited
        replies = project / "chalicelib" / "yours" / "replies.py"
        pids = stack.local["pids"]
        replies.write_text(replies.read_text().replace("You wrote: ", "Thanks for: "))
        until(lambda: stack.local["pids"]["outbound"] != pids["outbound"], 20)

        # THEN the next answer is the new one, and the emulator has kept its data
        assert stack.local["pids"]["emulator"] == pids["emulator"]
        assert until(lambda: stack.inbound("again")["status"] == 200, 20)
        until(lambda: "Thanks for: again" in stack.answers(), 30)
