"""How a stage stands, and what of it wants attention."""

from __future__ import annotations

import io
import json
import time
from dataclasses import replace

import pytest
from rich.console import Console

from chalicelib.queues import OUTBOUND, PROCESSING
from spillway.operate import status
from spillway.operate.status import LATE, Status, read_status
from spillway.operate.words import span
from spillway.stage import Stage
from spillway.stores import Depth

QUIET = Status(
    stage="prod",
    depths={
        "processing": Depth(0, 0, 0),
        "outbound.fifo": Depth(0, 0, 0),
        "processing-dlq": Depth(0, 0, 0),
        "outbound-dlq.fifo": Depth(0, 0, 0),
    },
    ages={PROCESSING: 0.0, OUTBOUND: 0.0},
    unknown=0,
    quarantined=0,
    open_until={},
    paused_since=None,
    alarms=[],
)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, []),
        ({"ages": {PROCESSING: None, OUTBOUND: None}}, []),
        ({"ages": {PROCESSING: LATE[PROCESSING], OUTBOUND: LATE[OUTBOUND]}}, []),
        ({"ages": {OUTBOUND: LATE[OUTBOUND] + 1}}, ["the oldest message on outbound.fifo has"]),
        ({"ages": {PROCESSING: 86_400 * 3}}, ["the oldest message on processing has waited 3 d"]),
        ({"unknown": 2}, ["2 sends of unknown outcome"]),
        ({"quarantined": 1}, ["1 payloads in quarantine"]),
        ({"alarms": None}, []),
        ({"alarms": ["spillway-prod-a", "spillway-prod-b"]}, ["alarm spillway-prod-a rings"] * 2),
        ({"depths": {**QUIET.depths, "outbound.fifo": Depth(9, 9, 9)}}, []),
        ({"depths": {**QUIET.depths, "outbound-dlq.fifo": Depth(0, 1, 0)}}, ["1 on outbound-dlq"]),
    ],
)
def test_what_wants_attention(change: dict[str, object], said: list[str]) -> None:
    lines = list(status._attention(replace(QUIET, **change)))  # type: ignore[arg-type]
    assert len(lines) == len(said)
    assert lines[:1] == [] or lines[0].startswith(said[0])


def test_an_open_breaker_is_told_with_its_time() -> None:
    found = replace(QUIET, open_until={"twilio": time.time() + 100})
    (line,) = status._attention(found)
    assert line.startswith("twilio fails: nobody is sent anything for 100 s more")


def test_a_pause_is_told_with_its_time_and_its_end() -> None:
    (line,) = status._attention(replace(QUIET, paused_since=time.time() - 100))
    assert line == "sending is paused, for 100 s now: spillway resume sending"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h"), (172800, "2 d")],
)
def test_a_time_is_said_as_somebody_says_it(seconds: float, said: str) -> None:
    assert span(seconds) == said


def test_everything_is_read_from_the_stores(stage: Stage) -> None:
    # GIVEN a stage in which nothing is
    found = read_status(stage)
    assert (found.attention, found.unknown, found.quarantined) == ([], 0, 0)
    # WHEN something of each kind comes about
    sqs, dynamodb = stage.aws.client("sqs"), stage.aws.client("dynamodb")
    sqs.send_message(QueueUrl=stage.stores.urls["processing"], MessageBody="heron")
    sqs.send_message(
        QueueUrl=stage.stores.urls["outbound-dlq.fifo"],
        MessageBody="heron",
        MessageGroupId="a",
        MessageDeduplicationId="a",
    )
    item = {
        "pk": {"S": "C#a"},
        "sk": {"S": "OUT#b"},
        "unknown_bucket": {"S": "U#07"},
        "unknown_since": {"N": "1790000000"},
    }
    dynamodb.put_item(TableName=f"spillway-{stage.name}", Item=item)
    until = time.time() + 60
    breaker = {"pk": {"S": "B#telnyx"}, "sk": {"S": "BREAKER"}, "open_until": {"N": str(until)}}
    dynamodb.put_item(TableName=f"spillway-{stage.name}", Item=breaker)
    stage.aws.client("s3").put_object(
        Bucket=stage.stores.bucket, Key="quarantine/2026/11/24/a.json", Body=b"{}"
    )
    # THEN it is all there
    found = read_status(stage)
    assert found.depths["processing"] == Depth(1, 0, 0)
    assert 0 <= (found.ages["processing"] or 0) < 30
    assert found.ages["outbound.fifo"] == 0.0
    assert (found.unknown, found.quarantined) == (1, 1)
    assert set(found.open_until) == {"telnyx"}
    assert len(found.attention) == 4
    # AND what is shown has it, too
    console = Console(file=io.StringIO(), width=100)
    status._show(console, found)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert all(line in shown.replace("\n", " ") for line in found.attention)
    assert json.dumps(found.attention)
