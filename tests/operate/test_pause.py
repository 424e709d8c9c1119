"""The brake: what `spillway pause sending` writes is what the sender reads."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext

import pytest

from chalicelib.batches import Defer
from chalicelib.breaker import PAUSED_FOR, SPREAD, Breaker, paused
from chalicelib.table import Table
from spillway.operate import pause as command
from spillway.operate.pause import What
from spillway.operate.status import read_status
from spillway.stage import Stage
from tests.fakes import FakeRuntime


def waits(stage: Stage) -> float | None:
    """For how long a message would have to wait, in a new environment of the sender."""
    runtime = FakeRuntime()
    runtime.__dict__["dynamodb"] = stage.aws.client("dynamodb")
    try:
        Breaker(Table(runtime, stage.name), runtime, ["twilio"]).check("twilio")
    except Defer as defer:
        return defer.after if defer.reason == "paused" else None
    return None


@pytest.fixture
def at_hand(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """The stage, for a command."""
    monkeypatch.setattr(command, "stage_named", lambda name: nullcontext(stage))
    return stage


def test_a_pause_is_heard_and_its_end(at_hand: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    # GIVEN a stage that sends
    assert waits(at_hand) is None
    # WHEN somebody pauses it
    before = time.time()
    command.pause(What.sending, why="a campaign went wrong", as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert (said["stage"], said["paused"]) == (at_hand.name, True)
    assert before <= said["since"] <= time.time()
    # THEN nobody is sent to, and it says why
    wait = waits(at_hand)
    assert wait is not None
    assert PAUSED_FOR <= wait <= PAUSED_FOR + SPREAD
    there = paused(Table(at_hand.runtime(), at_hand.name))
    assert there is not None
    assert there["why"] == "a campaign went wrong"
    assert read_status(at_hand).paused_since == said["since"]
    # AND a second word changes nothing
    command.pause(What.sending, as_json=True)
    assert json.loads(capsys.readouterr().out)["since"] == said["since"]
    # WHEN it ends, THEN it sends again, and a second word changes nothing
    for since in (said["since"], None):
        command.resume(What.sending, as_json=True)
        assert json.loads(capsys.readouterr().out) == {
            "stage": at_hand.name,
            "paused": False,
            "since": since,
        }
        assert waits(at_hand) is None
    assert read_status(at_hand).paused_since is None


def test_the_commands_say_what_becomes_of_what_waits(
    at_hand: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    command.pause(What.sending)
    said = " ".join(capsys.readouterr().out.split())
    assert "An answer that waits longer than 900 s is not sent any more" in said
    assert "a message of POST /messages after 36000 s" in said
    command.resume(What.sending)
    assert "What waits comes back within 15 minutes." in " ".join(capsys.readouterr().out.split())
    command.resume(What.sending)
    assert "was not paused" in capsys.readouterr().out
