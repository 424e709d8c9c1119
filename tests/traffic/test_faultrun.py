"""The fault run: what it sets it takes back, what it reads in the logs, and its verdict."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console
from typer.testing import CliRunner

from spillway import cli
from spillway.local.folder import Folder
from spillway.problem import Problem
from spillway.stores import Depth
from spillway.traffic import burst, faultrun
from spillway.traffic.burst import Count, Sent, Traffic
from spillway.traffic.faultrun import Metrics, Report
from spillway.traffic.faults import Fault, Plan, draw
from spillway.traffic.kills import Killed
from tests.traffic.test_burst import FakeStores

LOCAL = {"page": "http://127.0.0.1:1", "aws": "", "webhook": ""}
PLAN = Plan(
    seconds=0.2,
    faults=[
        Fault(0.0, 0.1, "twilio", "down", {"fail": "down"}),
        Fault(0.1, 0.1, "line", "slow", {"delay": 1}),
    ],
    kills=[],
)


class QuietStores(FakeStores):
    """Nothing is under way, `left` unknown sends but for those that nothing looks for any more."""

    def __init__(self, waiting: int = 0) -> None:
        super().__init__()
        self.waiting = waiting
        self.http = httpx.Client(
            transport=httpx.MockTransport(
                lambda _: httpx.Response(200, json={"receipts": {"waiting": 0}})
            )
        )

    def depths(self) -> dict[str, Depth]:
        return {**super().depths(), "processing": Depth(self.waiting, 0, 0)}

    def unknown(self) -> list[Any]:
        return []

    def close(self) -> None:
        self.http.close()


class Simulator:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []

    def put(self, url: str, json: dict[str, Any], **_: Any) -> httpx.Response:
        self.told.append((url.removeprefix(LOCAL["page"]), json))
        return httpx.Response(200, json={})


@pytest.fixture
def simulator(monkeypatch: pytest.MonkeyPatch) -> Simulator:
    one = Simulator()
    monkeypatch.setattr(httpx, "put", one.put)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    return one


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setenv("SPILLWAY_HOME", str(tmp_path))
    one = Folder()
    (tmp_path / "logs").mkdir()
    for name in ("webhook", "processing", "outbound"):
        one.log(name).touch()
    return one


def run(
    stores: QuietStores,
    messages: list[Sent],
    monkeypatch: pytest.MonkeyPatch,
    *,
    fails: BaseException | None = None,
    within: float = 30.0,
) -> Report:
    """The run with these stores; all webhooks are taken at once, or the sending fails."""

    async def send_all(_: Any, sent: list[Sent], traffic: Traffic, *, spread: float) -> None:
        assert spread == PLAN.seconds
        if fails is not None:
            raise fails
        for one in sent:
            one.acknowledged_at = time.time()

    monkeypatch.setattr(faultrun, "LocalStores", lambda _: stores)
    monkeypatch.setattr(burst, "send_all", send_all)
    console = Console(file=StringIO())
    return faultrun.run(LOCAL, messages, PLAN, within=within, console=console)


ENDED = [("/provider/behaviour/twilio", {"for": 0}), ("/sample/behaviour/line", {"for": 0})]


def test_every_fault_ends_by_itself_and_is_ended(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = run(QuietStores(), [], monkeypatch)
    assert simulator.told[:2] == [
        ("/provider/behaviour/twilio", {"fail": "down", "for": 0.1}),
        ("/sample/behaviour/line", {"delay": 1, "for": 0.1}),
    ]
    assert sorted(simulator.told[2:]) == ENDED
    assert [one["what"] for one in report.faults] == ["down", "slow"]


@pytest.mark.parametrize("fails", [Problem("the run has ended"), KeyboardInterrupt()])
def test_what_ends_the_run_ends_the_faults(
    fails: BaseException, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(type(fails)):
        run(QuietStores(), [], monkeypatch, fails=fails)
    assert sorted(simulator.told[-2:]) == ENDED


@pytest.mark.usefixtures("simulator")
@pytest.mark.parametrize(
    ("kept", "counted", "good"),
    [
        ({}, {"answered": 1, "lost": 0}, True),
        ({"answers": 0}, {"answered": 0, "lost": 1}, False),
        ({"table": 0}, {"stored": 0, "lost": 1}, False),
        ({"lines": 0}, {"archived": 0, "lost": 1}, False),
        ({"answers": 2}, {"answered_twice": 1}, False),
        ({"table": 2}, {"stored_twice": 1}, False),
    ],
)
def test_the_verdict(
    kept: dict[str, int], counted: dict[str, int], good: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores, one = QuietStores(), Sent("twilio", "SM1", "+16460000001", "burst 1", False)
    stores.keep(one, **kept)
    report = run(stores, [one], monkeypatch)
    assert {name: getattr(report.count, name) for name in counted} == counted
    assert (report.done, report.good) == (True, good)
    assert report.as_dict()["good"] == good


@pytest.mark.usefixtures("simulator")
def test_what_is_under_way_when_time_is_up_is_not_good(monkeypatch: pytest.MonkeyPatch) -> None:
    report = run(QuietStores(waiting=1), [], monkeypatch, within=0.5)
    assert (report.done, report.count.good, report.good) == (False, True, False)


@pytest.mark.parametrize(
    "more",
    [
        {"done": False},
        {"unsettled": 1},
        {"killed": [Killed("outbound", 3, None)]},
        {"count": Count(1, 0, 1, refused=1)},
    ],
)
def test_what_is_not_good(more: dict[str, Any]) -> None:
    whole: dict[str, Any] = {"seed": 1, "count": Count(1, 0, 1), "requests": 1, "seconds": 1.0}
    whole |= {"done": True, "unsettled": 0, "killed": [Killed("outbound", 3, 0.2)]}
    assert Report(**whole).good
    assert not Report(**(whole | more)).good


# --- the command -------------------------------------------------------------------------------


def burst_with_faults(
    report: Report | None, monkeypatch: pytest.MonkeyPatch, *options: str
) -> tuple[Any, list[Plan]]:
    """`spillway burst --faults` with the run's report, and the plans that were carried out."""
    plans: list[Plan] = []

    def run(_: Any, messages: list[Sent], plan: Plan, **__: Any) -> Report | None:
        assert len(messages) == 300
        assert 0 < sum(one.duplicate for one in messages) < 60
        plans.append(plan)
        return report

    numbers = {"twilio": "+14155550123", "telnyx": "+14155550199"}
    monkeypatch.setattr(Folder, "running", lambda _: {**LOCAL, "numbers": numbers})
    monkeypatch.setattr(faultrun, "run", run)
    command = ["burst", "--faults", "--messages", "300", *options]
    return CliRunner().invoke(cli.app, command), plans


@pytest.mark.parametrize(("lost", "code"), [(0, 0), (1, 1)])
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_the_command_ends_as_its_verdict_says(
    lost: int, code: int, form: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = Report(7, Count(300, 15, 30, lost=lost), 315, 700.0, done=True, unsettled=0)
    result, plans = burst_with_faults(report, monkeypatch, "--seed", "7", *form)
    assert result.exit_code == code
    assert plans == [draw(7, 300, ["twilio", "telnyx"])]
    if form:
        assert json.loads(result.stdout)["good"] == (lost == 0)
    else:
        assert "--seed 7" in result.stdout
        assert ("Nothing lost" in result.stdout) == (lost == 0)


def test_too_short_a_time_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    result, plans = burst_with_faults(None, monkeypatch, "--within", "5")
    assert isinstance(result.exception, Problem)
    assert "--within 5" in str(result.exception)
    assert "12 minutes" in str(result.exception)
    assert plans == []


# --- what is read in the logs -------------------------------------------------------------------


def line(metric: str, at: float, **more: Any) -> str:
    return json.dumps({"_aws": {"Timestamp": int(at * 1000)}, metric: 1, **more}) + "\n"


@pytest.fixture
def log(folder: Folder) -> Iterator[Any]:
    with folder.log("outbound").open("a", buffering=1) as file:
        file.write(line("Sent", 100.0, provider="twilio"))
        yield file


def test_metrics_are_read_from_now_on(folder: Folder, log: Any) -> None:
    metrics = Metrics(folder)
    assert metrics.sums("Sent", "provider") == {}
    # A line that a kill cut off takes the next one with it, and no other.
    log.write('{"_aws": {"Timest{"torn": 1}\npolling\n[]\n')
    log.write(line("Sent", 101.0, provider="twilio") + line("Sent", 102.0, provider="telnyx"))
    log.write(line("Sent", 103.0, provider="telnyx")[:20])
    log.flush()
    assert metrics.sums("Sent", "provider") == {"twilio": 1, "telnyx": 1}
    log.write(line("Sent", 103.0, provider="telnyx")[20:])
    assert metrics.sums("Sent", "provider") == {"twilio": 1, "telnyx": 2}
    assert metrics.sums("Sent", "provider", 102.0) == {"telnyx": 2}
    assert metrics.sums("Sent", "provider", provider="twilio") == {"twilio": 1}
    assert metrics.sums("UnknownSends", "reason") == {}


@pytest.mark.usefixtures("simulator")
def test_unknown_sends_are_told_by_cause_and_by_how_they_were_settled(
    log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = QuietStores()
    now = time.time() + 1

    def depths() -> dict[str, Depth]:
        if stores.waiting == 0:
            stores.waiting = -1
            for id_, reason in (("a", "read_timeout"), ("b", "server_error"), ("c", "lease_ended")):
                log.write(line("UnknownSends", now, id=id_, reason=reason, provider="twilio"))
            log.write(line("Settled", now, id="a", reason="found"))
            log.write(line("Settled", now, id="b", reason="not_sent"))
            log.write(line("Deferrals", now, reason="breaker"))
        return FakeStores.depths(stores)

    monkeypatch.setattr(stores, "depths", depths)
    report = run(stores, [], monkeypatch)
    assert report.unknown == {"read_timeout": 1, "server_error": 1, "lease_ended": 1}
    assert report.settled == {"found": 1, "not_sent": 1, "receipt": 1}
    assert report.deferrals == {"breaker": 1}
