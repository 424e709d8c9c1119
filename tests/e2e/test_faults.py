"""Everything fails in turn, and workers are killed (kill -9) in the middle of their batches."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from spillway.traffic import burst, faultrun
from spillway.traffic.faults import Fault, Kill, Plan
from tests.e2e.stack import running

MESSAGES = 300
# Little more than the slowest call takes: what a killed worker held comes back soon. (Functions
# that work on for longer meet what they have, which is one thing more that must do no harm.)
VISIBILITY = "20"

PLAN = Plan(
    seconds=15.0,
    faults=[
        Fault(0.5, 1.5, "reply", "throttled", {"fail": "throttled", "retry_after": 2}),
        Fault(2.5, 1.5, "twilio", "slow", {"delay": 1}),
        Fault(4.5, 2, "twilio", "failing after it took the text", {"fail": "failed_answer"}),
        Fault(7, 2, "telnyx", "cutting connections", {"fail": "lost_answer"}),
        Fault(9.5, 2, "line", "down", {"fail": "down"}),
        Fault(12, 2, "line", "slow", {"delay": 2}),
    ],
    kills=[Kill(3, "outbound"), Kill(6, "webhook"), Kill(12.5, "processing")],
)


def test_what_fails_and_dies_loses_nothing_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPILLWAY_HOME", str(tmp_path))
    with running(tmp_path) as stack:
        for queue in ("processing", "outbound.fifo"):
            stack.stores.aws.client("sqs").set_queue_attributes(
                QueueUrl=stack.stores.urls[queue], Attributes={"VisibilityTimeout": VISIBILITY}
            )
        messages = burst.make(MESSAGES, 100, 0.1, ["twilio", "telnyx"])
        written = StringIO()

        # WHEN all of this goes wrong while texts come in
        report = faultrun.run(
            stack.local,
            messages,
            PLAN,
            within=90,
            console=Console(file=written, width=200),
        )
        print(written.getvalue())

        # THEN every text was acknowledged at last, nothing is lost, nothing is answered twice
        count = report.count
        assert (count.lost, count.answered_twice, count.stored_twice) == (0, 0, 0), count
        assert count.acknowledged == count.stored == count.archived == MESSAGES, count
        # AND each was answered: what became unknown was settled by evidence. (Where a kill cut off
        # a request on its way, it takes Twilio's list eight minutes to say so for certain.)
        assert count.answered + count.unknown == MESSAGES, count
        assert report.unsettled <= report.unknown.get("lease_ended", 0)
        assert report.good == report.done == (report.unsettled == 0)
        assert sum(report.unknown.values()) == sum(report.settled.values()) + report.unsettled > 0
        # AND it all took place: the faults were felt, and each killed worker came back
        assert [one.worker for one in report.killed] == [kill.worker for kill in PLAN.kills]
        assert all(one.in_hand and 0 < (one.back_after or 0) < 15 for one in report.killed)
        felt = {fault["service"] for fault in report.faults if fault["seen"]}
        assert felt == {"twilio", "telnyx", "reply", "line"}
        assert written.getvalue().count("killed with") == len(PLAN.kills)

        # AND nothing is left of it
        for url in ("provider/behaviour/twilio", "sample/behaviour/line"):
            now = stack.http.get(f"{stack.local['page']}/{url}").json()
            assert (now["fail"], now["delay"]) == (None, 0)
