"""A replay, on stores that the real functions filled: what is found out anew is stored in place of
what was, nothing is sent, and a reconciliation finds each text once."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from chalicelib import processing
from chalicelib.consent import event_in, events_of
from chalicelib.ledger import DAY
from chalicelib.lookups import LookUps
from chalicelib.messages import DeliveryReceipt, InboundMessage, MessageId, WebhookRequest
from chalicelib.providers.base import PayloadError
from chalicelib.providers.twilio import Twilio
from chalicelib.queues import PROCESSING, Envelope
from chalicelib.receiving import inbound
from chalicelib.sending import Sender
from chalicelib.table import Table
from spillway import cli
from spillway.operate import replay
from spillway.operate.erasure import OBJECT_SPAN, Erasure
from spillway.operate.reconciliation import Reconciliation
from spillway.operate.replay import Replay, Replayed
from spillway.problem import Problem
from spillway.stage import Stage
from tests.fakes import OURS, Context, FakeRuntime
from tests.operate.world import KEYS, PERSON, World
from tests.signing import telnyx_event, twilio_event

OTHER = "+14155550143"
HOUR = 3600.0
PARSE = Twilio.parse


class Died(BaseException):
    """The end of processing: nothing after it is run."""


@pytest.fixture(autouse=True)
def now(world: World, monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    """One clock for functions and command. It begins an hour ago: S3 has a clock of its own, and
    what it has written just now is left alone."""
    monkeypatch.setattr(Stage, "runtime", lambda self: world.runtime)
    world.runtime.clock = time.time() - HOUR
    return world.runtime


def stored(world: World, sid: str, theirs: str = PERSON) -> MessageId:
    account = "AC" + "0" * 32
    return MessageId(
        KEYS.conversation(OURS, theirs), KEYS.message("twilio", account, f"{sid}-{world.round}")
    )


def item(world: World, id_: MessageId, kind: str = "IN") -> dict[str, Any]:
    return world.items()[f"C#{id_.conversation}", f"{kind}#{id_.message}"]


def lines(world: World) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for key, content in world.objects().items()
        if key.startswith("messages/")
        for line in content.splitlines()
    ]


def live(world: World) -> list[MessageId]:
    """Two answered texts in one object, and one in another."""
    world.text("the heron is awake", "SM-1")
    world.text("the heron is asleep", "SM-2", OTHER)
    world.work()
    world.text("leave the heron alone", "SM-3")
    world.work()
    world.runtime.clock += 2 * HOUR
    return [stored(world, "SM-1"), stored(world, "SM-2", OTHER), stored(world, "SM-3")]


def replayed(world: World, *ids: MessageId, rate: float = 1000.0) -> Replayed:
    """These, or all."""
    one = Replay(world.stage, rate=rate)
    if ids:
        one.messages(map(str, ids))
    else:
        one.since(world.runtime.clock - DAY, None)
    return one.done


def quarantined(world: World) -> Replayed:
    one = Replay(world.stage, rate=1000.0)
    one.quarantined()
    return one.done


def differences(world: World) -> dict[str, int]:
    world.runtime.clock += 2 * HOUR
    found = Reconciliation(world.stage, wait=0.1).run()
    return {kind: len(ids) for kind, ids in {**found.put_right, **found.open}.items() if ids}


def learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processing that has a look-up more than it had."""
    monkeypatch.setattr(LookUps, "ask", lambda self, id_, message, text: {"heron": len(text)})


# --- what is replayed ----------------------------------------------------------------------------


def test_a_new_look_up_is_asked_about_all_that_came(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = live(world)
    for id_ in ids:
        # (As MESSAGE_DAYS was then.)
        key = (f"C#{id_.conversation}", f"IN#{id_.message}")
        world.table.update(key, "SET expires_at = expires_at - :day", values={":day": int(DAY)})
    before = world.items()
    sent = world.sent
    learns(monkeypatch)
    # WHEN all is replayed
    done = replayed(world)
    assert (done.texts, done.receipts, done.good) == (3, 0, True)
    world.work()
    # THEN each item says it too, and all else as before, its life included
    after = world.items()
    assert set(after) == set(before)
    for (pk, sk), one in after.items():
        if sk.startswith("IN#"):
            told = {"lookups": {"heron": len(one["text"])}, "archive_key": one["archive_key"]}
            assert one == before[pk, sk] | told
        else:
            assert one == before[pk, sk]
    # AND nothing was sent, nor put on the outbound queue
    assert world.sent == sent
    assert len(world.delivered["outbound.fifo"]) == 3
    # AND the lines of before go, so that each text is in both stores once
    assert differences(world) == {"surplus_line": 3}
    assert sorted(line["id"] for line in lines(world)) == sorted(map(str, ids))
    assert differences(world) == {}


def test_one_of_them_by_its_id(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = live(world)
    learns(monkeypatch)
    stranger = MessageId("0" * 24, "1" * 24)
    done = replayed(world, second, stranger)
    assert (done.texts, done.unknown, done.good) == (1, [str(stranger)], False)
    world.work()
    assert item(world, second)["lookups"] != {}
    assert item(world, first)["lookups"] == item(world, third)["lookups"] == {}
    assert differences(world) == {"surplus_line": 1}


def test_an_item_that_somebody_changed_is_made_anew(world: World) -> None:
    first, *_ = live(world)
    before = item(world, first)
    key = (f"C#{first.conversation}", f"IN#{first.message}")
    world.table.update(key, "SET encoding = :new REMOVE valid", values={":new": "morse"})
    assert differences(world) == {"altered": 1}
    replayed(world, first)
    world.work()
    assert item(world, first) == before | {"archive_key": item(world, first)["archive_key"]}
    assert set(differences(world)) <= {"surplus_line"}
    assert differences(world) == {}


def test_of_times_the_earlier_is_in_and_the_later_is_not(world: World) -> None:
    for number in range(3):
        world.text(f"heron {number}", f"SM-{number}")
        world.work()
        world.runtime.clock += 60
    start = world.runtime.clock - 180
    world.runtime.clock += 2 * HOUR
    for since, until, texts in ((0, 180, 3), (60, 180, 2), (0, 120, 2), (60, 120, 1), (61, 119, 0)):
        one = Replay(world.stage, rate=1000.0)
        one.since(start + since, start + until)
        assert one.done.texts == texts


def test_a_text_that_came_through_a_backfill_is_read_too(world: World) -> None:
    listed = {
        "sid": "SM-listed",
        "account_sid": "AC" + "0" * 32,
        "from": PERSON,
        "to": OURS,
        "body": "the heron is listed",
        "date_created": "Mon, 21 Sep 2026 14:13:22 +0000",
        "num_media": "1",
        "media_list": [{"sid": "ME1", "content_type": "image/png"}],
    }
    message = Twilio().read(listed, world.runtime.clock)
    id_ = KEYS.message_id(message)
    world.put_aside("processing", inbound(message, id_, ""))
    world.work()
    before = item(world, id_)
    assert before["media"][0]["content_type"] == "image/png"
    world.runtime.clock += 2 * HOUR
    assert replayed(world).texts == 1
    world.work()
    assert item(world, id_) == before | {"archive_key": item(world, id_)["archive_key"]}


@pytest.mark.parametrize(
    "event", [twilio_event({"Body": "x", "MessageSid": "SM-r"}), telnyx_event()]
)
def test_what_is_kept_is_read_as_it_was(world: World, event: Mapping[str, Any]) -> None:
    provider = event["pathParameters"]["provider"]
    world.receiver._verified = lambda provider, request: True  # type: ignore[method-assign]
    try:
        assert world.receiver.webhook(provider, event, signed_door=True).status == 200
    finally:
        del world.receiver._verified
    world.work()
    world.runtime.clock += 2 * HOUR
    before = world.items()
    done = replayed(world)
    assert (done.texts, done.good) == (1, True)
    world.work()
    after = world.items()
    for key, one in after.items():
        assert one | {"archive_key": ""} == before[key] | {"archive_key": ""}


# --- a bug that was mended -----------------------------------------------------------------------


def test_a_stop_that_was_not_seen_counts_from_when_it_was_said(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a STOP that a bug kept from being seen, and a START after it of another person
    ids = live(world)
    monkeypatch.setattr(
        processing, "event_in", lambda text: "stop" if "alone" in text else event_in(text)
    )
    said_at = item(world, ids[2])["received_at"]
    # WHEN it is replayed after the bug was mended
    replayed(world)
    world.work()
    # THEN it counts from then
    (entry,) = (one for (_, sk), one in world.items().items() if sk == "CONSENT")
    assert (entry["event"], entry["at"]) == ("stop", said_at)
    assert item(world, ids[2])["keyword"] == "stop"
    assert world.consent.opted_out(PERSON)
    # AND once more it changes nothing
    world.runtime.clock += 60
    world.text("start", "SM-9")
    world.work()
    world.runtime.clock += 2 * HOUR
    replayed(world)
    world.work()
    assert not world.consent.opted_out(PERSON)


@pytest.mark.parametrize(
    ("words", "hint", "stopped", "opted_out"),
    [
        ("START", {}, -60.0, False),
        # What was said later counts.
        ("START", {}, 60.0, True),
        ("heron", {"OptOutType": "START"}, -60.0, False),
        # It may have answered anything, while nobody had seen the STOP.
        ("YES", {}, -60.0, True),
    ],
)
def test_a_start_that_was_not_seen_counts_from_when_it_was_said(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    hint: dict[str, str],
    stopped: float,
    opted_out: bool,
) -> None:
    # GIVEN a text that a bug kept from being understood, and a STOP that is known by now
    said_at = world.runtime.clock
    with monkeypatch.context() as patch:
        patch.setattr(Sender, "_consent_event", lambda self, message: None)
        world.text(words, "SM-1", **hint)
        world.work()
    at = said_at + stopped
    world.consent.record(PERSON, "stop", at, words="", source="telephone", id_="x")
    world.runtime.clock += 2 * HOUR
    sent = world.sent
    # WHEN it is replayed, twice
    for _ in range(2):
        replayed(world)
        world.work()
        world.runtime.clock += 2 * HOUR
    # THEN it counts from when it was said, once, and nobody is sent anything
    assert world.consent.opted_out(PERSON) is opted_out
    events = [(one["event"], one["at"]) for one in events_of(world.consent.find(PERSON))]
    assert events == [("stop", at)] + ([] if opted_out else [("start", said_at)])
    assert world.sent == sent


def test_a_start_that_the_sender_has_still_before_it_is_the_senders_to_say(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a START, a STOP after it, and a late duplicate of the START that was stored first
    world.text("START", "SM-1")
    world.runtime.sqs.purge_queue(QueueUrl=world.url("processing"))
    world.runtime.clock += 60
    world.consent.record(PERSON, "stop", world.runtime.clock, words="", source="telephone", id_="x")
    world.runtime.clock += 60
    world.text("START", "SM-1")
    with monkeypatch.context() as patch:
        patch.setattr(world, "functions", [one for one in world.functions if one[0] == PROCESSING])
        world.work()
        # WHEN it is replayed before the sender has had either
        world.runtime.clock += 2 * HOUR
        replayed(world)
        world.work()
    # THEN it is not the duplicate that counts, neither now nor when the sender has had both
    assert world.consent.opted_out(PERSON)
    world.work()
    assert world.consent.opted_out(PERSON)


def test_what_was_found_before_and_is_not_any_more_goes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.text("help", "SM-1")
    world.work()
    world.runtime.clock += 2 * HOUR
    id_ = stored(world, "SM-1")
    assert item(world, id_)["keyword"] == "help"
    monkeypatch.setattr(processing, "event_in", lambda text: None)
    replayed(world)
    world.work()
    assert "keyword" not in item(world, id_)
    assert differences(world) == {}  # (It was alone in its object, which is that of before.)


@pytest.mark.parametrize("how", ["unreadable", "changed"])
def test_what_todays_parser_does_not_read_so_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    ids = live(world)

    def parse(self: Twilio, request: WebhookRequest) -> list[InboundMessage | DeliveryReceipt]:
        if b"SM-2" in request.body:
            if how == "unreadable":
                raise PayloadError("no")
            request = WebhookRequest(
                request.method,
                request.url,
                request.headers,
                request.body.replace(b"SM-2", b"SM-other"),
                request.received_at,
            )
        return PARSE(self, request)

    monkeypatch.setattr(Twilio, "parse", parse)
    done = replayed(world)
    assert (done.texts, done.good) == (2, False)
    assert getattr(done, how) == [str(ids[1])]


# --- the quarantine ------------------------------------------------------------------------------


def quarantine(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text, a receipt and nonsense, none of which the parser could read."""

    def cannot(self: Twilio, request: WebhookRequest) -> list[InboundMessage | DeliveryReceipt]:
        raise PayloadError("no")

    id_ = live(world)[0]
    with monkeypatch.context() as patch:
        patch.setattr(Twilio, "parse", cannot)
        for event in (
            twilio_event({"Body": "stop", "MessageSid": "SM-q", "From": PERSON}),
            twilio_event(
                {"MessageSid": "SM-out-1", "MessageStatus": "delivered"}, reference=f"{id_}-1"
            ),
            twilio_event({"SmsStatus": "heron"}),
        ):
            assert world.receiver.webhook("twilio", event, signed_door=True).status == 200
        world.work()
    assert sum(key.startswith("quarantine/") for key in world.objects()) == 3


def test_what_could_not_be_read_is_processed_and_not_answered(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    quarantine(world, monkeypatch)
    sent = world.sent
    # WHEN the parser was mended
    done = quarantined(world)
    # THEN the text is stored, the receipt heard, and the nonsense still there
    (left,) = (key for key in world.objects() if key.startswith("quarantine/"))
    assert (done.texts, done.receipts, done.unreadable) == (1, 1, [left])
    world.work()
    account = "AC" + "0" * 32
    id_ = MessageId(KEYS.conversation(OURS, PERSON), KEYS.message("twilio", account, "SM-q"))
    assert item(world, id_)["keyword"] == "stop"
    assert world.consent.opted_out(PERSON)
    first = world.ledger.find(stored(world, "SM-1"))
    assert first is not None
    assert first.state == "delivered"
    assert world.ledger.find(id_) is None
    assert world.sent == sent
    # AND a reconciliation has the sender record why it is not answered
    assert differences(world) == {"never_answered": 1}
    world.work()
    reply = world.ledger.find(id_)
    assert reply is not None
    assert reply.state == "no_reply: stop"
    assert world.sent == sent
    assert differences(world) == {}


# --- meanwhile -----------------------------------------------------------------------------------


def test_a_replay_that_comes_twice_is_done_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *_ = live(world)
    replayed(world, first)
    bodies = [one["Body"] for one in world.receive("processing", seconds=0)]
    world.work()
    after, objects = item(world, first), world.objects()
    # WHEN it is delivered once more, THEN it finds its line no more, and leaves none
    learns(monkeypatch)
    for body in bodies:
        world.put_aside("processing", body)
    world.work()
    assert item(world, first) == after
    assert world.objects() == objects


@pytest.mark.parametrize("served", [False, True])
def test_a_death_of_processing_is_made_good_by_the_next_delivery(
    world: World, monkeypatch: pytest.MonkeyPatch, served: bool
) -> None:
    # GIVEN processing that dies before or after the one write of a replay, with its line archived
    first, *_ = live(world)
    learns(monkeypatch)
    replayed(world, first)
    (one,) = world.receive("processing", seconds=0)
    record = {"messageId": "m", "receiptHandle": "h", "body": one["Body"]}
    update = Table.update

    def dying(self: Table, *arguments: Any, **more: Any) -> Any:
        if served:
            update(self, *arguments, **more)
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(Table, "update", dying)
        with pytest.raises(Died):
            world.processing.handle({"Records": [record]}, Context())
    # WHEN it is delivered again
    world.work()
    # THEN it is done, and the stores agree but for the line of before
    assert item(world, first)["lookups"] == {"heron": len("the heron is awake")}
    assert differences(world) == {"surplus_line": 1}
    assert differences(world) == {}


def test_who_is_erased_meanwhile_does_not_come_back(world: World) -> None:
    first, *_ = live(world)
    replayed(world, first)
    held = [one["Body"] for one in world.receive("processing", seconds=0)]
    world.runtime.sqs.purge_queue(QueueUrl=world.url("processing"))
    assert Erasure(world.stage, PERSON, wait=5).run().good
    before, objects = world.items(), world.objects()
    for body in held:
        world.put_aside("processing", body)
    world.work()
    assert (world.items(), world.objects()) == (before, objects)


def test_what_is_replayed_stands_in_objects_of_its_own_day(world: World) -> None:
    # GIVEN a text of long ago, which is replayed while others come
    world.runtime.clock -= 100 * DAY
    world.text("the old heron", "SM-old", OTHER)
    world.work()
    world.runtime.clock += 100 * DAY
    old, new = stored(world, "SM-old", OTHER), stored(world, "SM-new")
    replayed(world, old)
    world.text("the new heron", "SM-new")
    world.work()
    # THEN the others' lines stand where an erasure looks for them
    assert item(world, old)["archive_key"] < item(world, new)["archive_key"]
    assert world.runtime.clock - item(world, old)["received_at"] > OBJECT_SPAN
    world.runtime.clock += HOUR
    assert Erasure(world.stage, PERSON, wait=5).run().good
    assert [line["id"] for line in lines(world)].count(str(new)) == 0


def test_it_keeps_its_rate(world: World) -> None:
    for number in range(25):
        world.text(f"heron {number}", f"SM-{number}")
    world.work()
    world.runtime.clock += 2 * HOUR
    began = world.runtime.clock
    assert replayed(world, rate=5.0).texts == 25
    assert world.runtime.clock - began == pytest.approx(4.0)


def test_what_it_has_written_itself_is_not_read_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN processing that is quick, and texts in an object each
    for number in range(12):
        world.text(f"heron {number}", f"SM-{number}")
        world.work()
    world.runtime.clock = time.time()
    time.sleep(1.1)  # (S3 tells whole seconds.)
    learns(monkeypatch)
    monkeypatch.setattr(replay, "_AT_ONCE", 1)
    send = Replay._send_some

    def at_once(self: Replay, some: list[Envelope]) -> None:
        send(self, some)
        world.work()

    monkeypatch.setattr(Replay, "_send_some", at_once)
    one = Replay(world.stage, rate=1e6)
    world.runtime.clock = int(time.time())
    one.since(world.runtime.clock - DAY, None)
    assert one.done.texts == 12


# --- the command ---------------------------------------------------------------------------------


def spillway(world: World, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    @contextmanager
    def named(name: str) -> Iterator[Stage]:
        yield world.stage

    monkeypatch.setattr(replay, "stage_named", named)
    result = CliRunner().invoke(cli.app, ["replay", *arguments])
    assert "415555" not in result.output
    assert "heron" not in result.output
    return result


def test_the_command(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = live(world)
    world.runtime.clock = time.time() + 1
    result = spillway(world, monkeypatch, "--since", "1d")
    assert (result.exit_code, "3 texts and 0 receipts" in result.output) == (0, True)
    result = spillway(world, monkeypatch, str(ids[0]), "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "stage": "ops",
        "texts": 1,
        "receipts": 0,
        "unknown": [],
        "unreadable": [],
        "changed": [],
        "good": True,
    }
    quarantine(world, monkeypatch)
    result = spillway(world, monkeypatch, "--quarantine")
    assert result.exit_code == 1
    assert "cannot be read today, either" in result.output


@pytest.mark.parametrize(
    "arguments",
    [[], ["--until", "1d"], ["--since", "1d", "--quarantine"], ["x-y", "--since", "1d"], ["x-y"]],
)
def test_what_is_to_be_replayed_must_be_said_once(
    world: World, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    result = spillway(world, monkeypatch, *arguments)
    assert isinstance(result.exception, Problem)
    told = "ID: must be a message id" if arguments == ["x-y"] else "Say one of: ID ..."
    assert told in str(result.exception)
    assert world.receive("processing") == []


def test_a_replay_travels_with_the_object_that_it_was_read_from(world: World) -> None:
    first, *_ = live(world)
    replayed(world, first)
    (one,) = world.receive("processing", seconds=0)
    envelope = Envelope.parse(one["Body"])
    assert (envelope.kind, envelope.log_id) == ("replay", str(first))
    assert envelope.payload["archived_in"] == item(world, first)["archive_key"]
    assert envelope.inbound().text == "the heron is awake"


def test_a_look_up_that_fails_leaves_what_was_there(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *_ = live(world)
    before = world.items()

    def fails(self: LookUps, *_: object) -> dict[str, Any]:
        raise httpx.ReadTimeout("heron")

    monkeypatch.setattr(LookUps, "ask", fails)
    replayed(world, first)
    (one,) = world.receive("processing")
    record = {"messageId": "m", "receiptHandle": one["ReceiptHandle"], "body": one["Body"]}
    report = world.processing.handle({"Records": [record]}, Context())
    assert report == {"batchItemFailures": [{"itemIdentifier": "m"}]}
    assert world.items() == before
