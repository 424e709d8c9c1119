"""The life of a message, by whatever somebody knows of it."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest

from chalicelib.ledger import Ledger, draft
from chalicelib.messages import Keys, MessageId
from chalicelib.queues import Envelope
from chalicelib.table import Table
from spillway.operate import trace
from spillway.operate.trace import find, life
from spillway.problem import Problem
from spillway.stage import Stage
from tests.fakes import HASH_KEY, NOW, FakeRuntime

KEYS = Keys(HASH_KEY)
OURS, TELNYXS, THEIRS = "+14155550123", "+14155550199", "+14155550142"
TEXT, ANSWER = "is the heron awake?", "it is"


@pytest.fixture(autouse=True)
def _no_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "_local_lines", lambda id_: [])


class World:
    """A conversation at each of our numbers, written as the functions write it."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.runtime = FakeRuntime()
        self.runtime.__dict__["dynamodb"] = stage.aws.client("dynamodb")
        self.table = Table(self.runtime, stage.name)
        self.ledger = Ledger(self.table, self.runtime, keep_days=400)

    def message(
        self, name: str, ours: str = OURS, theirs: str = THEIRS, at: float = 0
    ) -> MessageId:
        """A text that was stored and answered."""
        self.runtime.clock = NOW + at
        provider = "twilio" if ours == OURS else "telnyx"
        id_ = MessageId(KEYS.conversation(ours, theirs), KEYS.message(provider, "a", name))
        self.table.insert(
            {
                "pk": f"C#{id_.conversation}",
                "sk": f"IN#{id_.message}",
                "provider": provider,
                "provider_id": name,
                "from": theirs,
                "to": ours,
                "text": TEXT,
                "segments": 1,
                "valid": True,
                "reasons": [],
                "keyword": None,
                "lookups": {"line": {}},
                "received_at": NOW + at,
                "archive_key": f"messages/{name}.jsonl.gz",
            }
        )
        reply = self.ledger.open(
            id_,
            kind="inbound",
            provider=provider,
            ours=ours,
            theirs=theirs,
            callback_url="https://h.example",
            received_at=NOW + at,
        )
        reply = draft(reply, [(ANSWER, ())])
        part = self.ledger.claim(
            reply, (reply.parts or ())[0], owner="me", lease_until=self.runtime.clock + 65
        )
        self.ledger.sent(reply, part, f"out-{name}")
        return id_


@pytest.fixture(scope="module")
def world(stage: Stage) -> World:
    return World(stage)


@pytest.fixture(scope="module")
def three(world: World) -> list[MessageId]:
    return [
        world.message("first", at=1),
        world.message("second", TELNYXS, at=2),
        world.message("third", at=3),
    ]


def test_it_is_found_by_whatever_is_known(stage: Stage, three: list[MessageId]) -> None:
    first, second, third = three
    assert find(stage, str(first), "", 3) == [first]
    assert find(stage, first.part(2), "", 3) == [first]
    assert find(stage, "second", THEIRS, 3) == [second]
    assert find(stage, "out-third", THEIRS, 3) == [third]
    # AND by a number, at all of ours, the newest last
    assert find(stage, THEIRS, "", 3) == three
    assert find(stage, THEIRS, "", 2) == [second, third]
    assert find(stage, "+14155550100", "", 3) == []
    assert find(stage, "fourth", THEIRS, 3) == []


@pytest.mark.parametrize("what", ["", "SM123", "heron", f"{'a' * 24}-{'b' * 23}"])
def test_what_names_no_message_says_what_does(stage: Stage, what: str) -> None:
    with pytest.raises(Problem, match="--number") as raised:
        find(stage, what, "", 3)
    assert "heron" not in str(raised.value)


def test_a_life_has_everything_that_is_kept(stage: Stage, three: list[MessageId]) -> None:
    told = life(stage, three[0])
    assert told is not None
    assert (told.id, told.provider, told.state) == (str(three[0]), "twilio", "sent")
    assert [(event.where, event.what) for event in told.events] == [
        ("table", "stored, valid, looked up: line; 1 segments received"),
        ("archive", "messages/first.jsonl.gz"),
        ("ledger", "part 1 claimed, attempt 1"),
        ("ledger", "part 1 sent, the provider's id out-first"),
    ]
    # AND neither numbers nor words, unless they are asked for
    assert not [one for one in (OURS, THEIRS, TEXT, ANSWER) if one in json.dumps(str(told))]
    shown = life(stage, three[0], texts=True)
    assert shown is not None
    assert (shown.ours, shown.theirs, shown.texts) == (OURS, THEIRS, [TEXT, ANSWER])


def test_what_is_put_aside_is_found_there(stage: Stage) -> None:
    id_ = MessageId("d" * 24, "e" * 24)
    assert life(stage, id_) is None
    stage.aws.client("sqs").send_message(
        QueueUrl=stage.stores.urls["processing-dlq"],
        MessageBody=json.dumps({"id": str(id_)}),
        MessageAttributes={
            "reason": {"DataType": "String", "StringValue": "never_ended"},
            "dead_lettered_at": {"DataType": "String", "StringValue": "1790000001"},
        },
    )
    told = life(stage, id_)
    assert told is not None
    assert told.state == "dead-lettered"
    assert [(event.at, event.where, event.what) for event in told.events] == [
        (1790000001.0, "processing-dlq", "put aside: never_ended")
    ]


@pytest.mark.parametrize("received_at", [NOW, 7.0, None])
def test_what_is_among_the_dead_letters_alone_is_told_with_its_log_lines(
    stage: Stage, received_at: float | None
) -> None:
    # GIVEN a deployed stage, a text that died before it was stored (or one of which nobody knows
    # when it came), and a log line about it
    deployed = Stage(stage.name, stage.aws, stage.stores, None)
    id_ = MessageId("c" * 24, Keys(HASH_KEY).message("twilio", "a", str(received_at)))
    envelope = Envelope("inbound", "c" * 24, str(id_), received_at or 0.0, {})
    body = envelope.body() if received_at else f"{id_}, by hand"
    sqs = stage.aws.client("sqs")
    url = stage.stores.urls["processing-dlq"]
    sqs.send_message(QueueUrl=url, MessageBody=body)
    letters = list(stage.stores.dead_letters("processing-dlq"))
    stage.stores.show(letters)
    (sent_at,) = [letter.sent_at for letter in letters if letter.body == body]
    began = received_at or sent_at
    logs = stage.aws.client("logs")
    where = {"logGroupName": "/aws/lambda/spillway-ops-process", "logStreamName": id_.message}
    with suppress(logs.exceptions.ResourceAlreadyExistsException):
        logs.create_log_group(logGroupName=where["logGroupName"])
    logs.create_log_stream(**where)
    line = json.dumps({"event": "Failed", "id": str(id_)})
    logs.put_log_events(**where, logEvents=[{"timestamp": int(began + 5) * 1000, "message": line}])
    # WHEN its life is asked for, THEN it began when it came, and the line is in it
    told = life(deployed, id_)
    assert told is not None
    assert (told.state, told.received_at) == ("dead-lettered", began)
    assert ("processing", "failed") in [(event.where, event.what) for event in told.events]


def test_an_unknown_send_is_told_with_its_reason(stage: Stage, world: World) -> None:
    id_ = world.message("unknown-before", theirs="+14155550143")
    reply = world.ledger.open(
        MessageId(id_.conversation, "f" * 24),
        kind="outgoing",
        provider="twilio",
        ours=OURS,
        theirs="+14155550143",
        callback_url="https://h.example",
        received_at=NOW,
    )
    reply = draft(reply, [(ANSWER, ())])
    part = world.ledger.claim(reply, (reply.parts or ())[0], owner="me", lease_until=NOW + 65)
    world.ledger.unknown(reply, part, reason="read_timeout")
    told = life(stage, reply.id)
    assert told is not None
    assert told.state == "unknown"
    assert "part 1 unknown, read_timeout" in [event.what for event in told.events]
    assert "listed: its outcome is unknown" in [event.what for event in told.events]
