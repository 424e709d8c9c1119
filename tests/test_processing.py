"""What processing makes of each message, and that no failure loses one or keeps it twice."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import boto3
import httpx
import pytest
from botocore.exceptions import EndpointConnectionError

from chalicelib import attachments
from chalicelib.batches import BatchFailed
from chalicelib.consent import events_of
from chalicelib.ledger import DAY, Ledger, draft
from chalicelib.messages import ConsentEvent, DeliveryReceipt, Keys, Media, MessageId
from chalicelib.processing import GIVE_UP_AFTER, STORING, Processing
from chalicelib.queues import Envelope
from chalicelib.runtime import at_most
from chalicelib.statements import BadStatement, id_of, read
from chalicelib.table import Item, Table
from chalicelib.text import LONGEST
from spillway.operate import probe
from tests.fakes import (
    HASH_KEY,
    NOW,
    OURS,
    TEXT,
    THEIRS,
    Context,
    FakeRuntime,
    Lost,
    Tapped,
    aws_error,
    begun,
    events,
    inbound,
    logged,
    no_answer,
    on_empty_table,
    one_table,
    outgoing,
    settings,
    sqs_event,
    tapped,
)

pytestmark = pytest.mark.usefixtures("says_nothing")

BUCKET = "spillway-test-archive-123456789012-us-east-1"
CUSTOMER, LINE = "https://crm.example.com/lookup", "https://lines.example.com/v1"
KNOWN = {
    "customer": {"known": True, "name": "Ardea"},
    "line": {"line_type": "mobile", "country": "US"},
}
PICTURE = "https://media.telnyx.com/heron"
LONGEST_LOOKUP = at_most(8.0)
SECOND = "+14155550177"
KEYS = Keys(HASH_KEY)


@pytest.fixture(scope="module")
def aws() -> Iterator[tuple[Any, Any]]:
    with one_table() as dynamodb:
        s3 = boto3.client("s3", region_name="us-east-1")
        s3.create_bucket(Bucket=BUCKET)
        yield dynamodb, s3


class World:
    """The function on empty stores. `answer` is what each look-up is told: by default, all is
    known."""

    def __init__(self, dynamodb: Any, s3: Any) -> None:
        self._s3 = s3
        for name in self.objects():
            s3.delete_object(Bucket=BUCKET, Key=name)
        self.runtime = on_empty_table(dynamodb)
        self.s3 = Tapped(s3)
        vars(self.s3)["meta"] = s3.meta
        self.runtime.__dict__["s3"] = self.s3
        self.runtime.__dict__["http"] = httpx.Client(transport=httpx.MockTransport(self._respond))
        self.asked: list[tuple[str, str]] = []
        self.answer: Callable[[str, str], httpx.Response] = self.all_known
        self.pictures: Callable[[], httpx.Response] = picture
        self.table = Table(self.runtime, "test")
        self.function = self.processing()

    def processing(self, **variables: str) -> Processing:
        urls = json.dumps({"customer": CUSTOMER, "line": LINE})
        return Processing(
            self.runtime, settings("processing", **{"LOOKUP_URLS": urls, **variables})
        )

    def handle(self, *envelopes: Envelope | str, seconds: float = 60.0) -> list[int]:
        """Has the function work on these; returns the positions of those that were not done."""
        bodies = [one if isinstance(one, str) else one.body() for one in envelopes]
        context = Context(self.runtime, seconds)
        report = self.function.handle(sqs_event(bodies), context)
        assert report is not None
        return [int(failure["itemIdentifier"][1:]) for failure in report["batchItemFailures"]]

    def all_known(self, name: str, id_: str) -> httpx.Response:
        return httpx.Response(200, json=KNOWN[name])

    def item(self, envelope: Envelope) -> Item | None:
        id_ = MessageId.parse(envelope.id)
        assert id_ is not None
        return self.table.get((f"C#{id_.conversation}", f"IN#{id_.message}"))

    def consent(self, number: str = THEIRS) -> Item | None:
        return self.table.get((f"P#default#{KEYS.number(number)}", "CONSENT"))

    def objects(self) -> list[str]:
        found = self._s3.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        return [one["Key"] for one in found]

    def content(self, key: str) -> bytes:
        body: bytes = self._s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return body

    def lines(self, key: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in gzip.decompress(self.content(key)).splitlines()]

    def dead_letters(self) -> list[tuple[str, str]]:
        """The dead letters so far, as (body, reason)."""
        return [
            (one["MessageBody"], one["MessageAttributes"]["reason"]["StringValue"])
            for one in self.runtime.queues.sent["processing-dlq"]
        ]

    def kept(self, envelope: Envelope) -> bool:
        """Whether a message is in both stores, its item naming an object that has its line."""
        item = self.item(envelope)
        if item is None:
            return False
        assert [one["id"] for one in self.lines(item["archive_key"])].count(envelope.id) == 1
        return True

    def _respond(self, request: httpx.Request) -> httpx.Response:
        if str(request.url) == PICTURE:
            return self.pictures()
        name = {CUSTOMER: "customer", LINE: "line"}[str(request.url)]
        id_ = json.loads(request.content)["id"]
        self.asked.append((name, id_))
        return self.answer(name, id_)


def picture() -> httpx.Response:
    return httpx.Response(200, content=b"heron", headers={"Content-Type": "image/png"})


@pytest.fixture
def world(aws: tuple[Any, Any]) -> World:
    return World(*aws)


def several(how_many: int) -> list[Envelope]:
    return [inbound(id_=f"SM{number}") for number in range(how_many)]


def down() -> Exception:
    return EndpointConnectionError(endpoint_url=f"https://heron.example.com/{THEIRS}")


# --- the path ------------------------------------------------------------------------------------

RAW = {"From": THEIRS, "Body": "He\u0301ron", "odd": ["\ud800", None, 1.5, {"a": True}]}


def test_a_message_is_archived_and_stored_with_all_that_is_known(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    # GIVEN a message with everything that a provider may say
    envelope = inbound(
        "He\u0301ron\x00 \U0001f426\r\n",
        provider="telnyx",
        media=(Media(PICTURE, "image/png"), Media("https://m.example.com/1", "")),
        segments=2,
        sent_at=NOW - 1.5,
        raw=RAW,
    )
    # WHEN it is worked on
    assert world.handle(envelope) == []

    # THEN the archive has one line with all of it
    line = {
        "id": envelope.id,
        "conversation": envelope.conversation,
        "provider": "telnyx",
        "account": "AC1",
        "provider_id": "SM1",
        "from": THEIRS,
        "to": OURS,
        "text": "Héron 🐦\n",
        "media": [
            {
                "url": PICTURE,
                "content_type": "image/png",
                "key": f"media/{envelope.id}-1",
                "bytes": 5,
                "sha256": hashlib.sha256(b"heron").hexdigest(),
            },
            {"url": "https://m.example.com/1", "content_type": "", "error": "refused_host"},
        ],
        "group": False,
        "sent_at": NOW - 1.5,
        "received_at": NOW,
        "encoding": "UCS-2",
        "segments": 2,
        "keyword": None,
        "valid": True,
        "reasons": [],
        "lookups": KNOWN,
        "raw": RAW,
    }
    medium, key = world.objects()
    assert world.lines(key) == [line]
    # AND the picture as it was sent
    assert (medium, world.content(medium)) == (f"media/{envelope.id}-1", b"heron")

    # AND the table the same, but for the payload as it came, and with where the rest is
    assert world.item(envelope) == {
        "pk": f"C#{envelope.conversation}",
        "sk": f"IN#{envelope.id.partition('-')[2]}",
        **{name: value for name, value in line.items() if name not in ("raw", "keyword")},
        "archive_key": key,
        "expires_at": int(NOW + 400 * DAY),
    }
    # AND the sources were asked about it
    assert world.asked == [("customer", envelope.id), ("line", envelope.id)]
    # AND one metric and one line say so, and as much of what could not be had
    _, lacking, metric, said = logged(capsys)
    assert (lacking["event"], lacking["reason"]) == ("media_not_kept", "refused_host")
    assert (metric["Stored"], metric["provider"]) == (1, "telnyx")
    assert (said["event"], said["id"]) == ("stored", envelope.id)


def test_the_table_keeps_a_message_for_as_long_as_is_set(world: World) -> None:
    world.function = world.processing(MESSAGE_DAYS="31")
    envelope = inbound()
    world.handle(envelope)
    item = world.item(envelope)
    assert item is not None
    assert item["expires_at"] == int(NOW + 31 * DAY)


@pytest.mark.parametrize(
    ("text", "stored", "encoding", "segments", "keyword"),
    [
        ("hello", "hello", "GSM-7", 1, None),
        ("", "", "GSM-7", 1, None),
        ("\x00a\x01", "a", "GSM-7", 1, None),
        ("a\ud800b", "a\ufffdb", "UCS-2", 1, None),
        ("\ud83d\ude00", "😀", "UCS-2", 1, None),
        ("cafe\u0301", "café", "GSM-7", 1, None),
        ("a\r\nb\rc", "a\nb\nc", "GSM-7", 1, None),
        ("\ufffe", "", "GSM-7", 1, None),
        ("x" * 160, "x" * 160, "GSM-7", 1, None),
        ("x" * 161, "x" * 161, "GSM-7", 2, None),
        ("€" * 81, "€" * 81, "GSM-7", 2, None),
        ("ы" * 71, "ы" * 71, "UCS-2", 2, None),
        ("😀" * 1600, "😀" * 1600, "UCS-2", 49, None),
        ("Stop!", "Stop!", "GSM-7", 1, "stop"),
        ("S\x00TOP", "STOP", "GSM-7", 1, "stop"),
        ("unstop", "unstop", "GSM-7", 1, "start"),
        (" help ", " help ", "GSM-7", 1, "help"),
        ("stop by tomorrow", "stop by tomorrow", "GSM-7", 1, None),
    ],
)
def test_a_text_is_normalised_measured_and_looked_at(
    text: str,
    stored: str,
    encoding: str,
    segments: int,
    keyword: str | None,
    world: World,
) -> None:
    envelope = inbound(text, media=(Media("https://m.example.com/1", ""),))
    assert world.handle(envelope) == []
    item = world.item(envelope)
    assert item is not None
    found = item["text"], item["encoding"], item["segments"], item.get("keyword")
    assert found == (stored, encoding, segments, keyword)
    (line,) = world.lines(item["archive_key"])
    assert (line["text"], line["keyword"]) == (stored, keyword)


def test_the_provider_knows_best_in_how_many_segments_it_came(world: World) -> None:
    envelopes = [inbound("x", id_="SM1", segments=3), inbound("x", id_="SM2", segments=None)]
    world.handle(*envelopes)
    assert [item["segments"] for one in envelopes if (item := world.item(one))] == [3, 1]


# --- validity ------------------------------------------------------------------------------------

MEDIA = (Media("https://m.example.com/1", "image/png"),)


@pytest.mark.parametrize(
    ("fields", "reasons"),
    [
        ({}, []),
        ({"text": "", "media": MEDIA}, []),
        ({"theirs": "72345"}, []),
        ({"theirs": "+447700900123"}, []),
        ({"theirs": "+8613800138000"}, []),
        ({"group": True}, []),
        ({"theirs": ""}, ["no_sender"]),
        ({"theirs": "whatsapp:+14155550100"}, ["sender_not_a_number"]),
        ({"theirs": "4155550100"}, ["sender_not_a_number"]),
        ({"theirs": "+1415555"}, ["sender_not_a_number"]),  # too short to be one
        ({"theirs": "+141555501001"}, ["sender_not_a_number"]),  # too long
        ({"theirs": "+999123456789"}, ["sender_not_a_number"]),  # no such country
        ({"theirs": "+١٤١٥٥٥٥٠١٠٠"}, ["sender_not_a_number"]),
        ({"theirs": "\ud800"}, ["sender_not_a_number"]),
        ({"media": (Media("https://m.example.com/\ud800", "\x00"),)}, []),
        ({"ours": ""}, ["no_recipient"]),
        ({"ours": "nobody that we know of"}, ["recipient_not_a_number"]),
        ({"text": ""}, ["empty"]),
        ({"text": " \n\t"}, ["empty"]),
        ({"text": "\x00\x01"}, ["empty"]),
        ({"text": "é" * LONGEST}, []),
        ({"text": "x" * (LONGEST + 1)}, ["text_too_large"]),
        (
            {"theirs": "", "ours": "+1", "text": " "},
            ["no_sender", "recipient_not_a_number", "empty"],
        ),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_an_invalid_message_is_kept_with_its_reasons_and_nobody_is_asked(
    fields: dict[str, Any], reasons: list[str], world: World
) -> None:
    fields = dict(fields)
    ours = fields.pop("ours", OURS)
    envelope = inbound(**fields)
    envelope = replace(envelope, payload={**envelope.payload, "recipient": ours})
    assert world.handle(envelope) == []
    item = world.item(envelope)
    assert item is not None
    assert world.kept(envelope)
    assert (item["valid"], item["reasons"]) == (not reasons, reasons)
    assert item["lookups"] == ({} if reasons else KNOWN)
    assert len(world.asked) == (0 if reasons else 2)


@pytest.mark.parametrize("media", [(), MEDIA])
def test_nobody_is_asked_about_a_sender_that_is_no_number(
    media: tuple[Media, ...], world: World
) -> None:
    # GIVEN look-ups that refuse what is no number
    world.answer = lambda name, id_: httpx.Response(422)
    envelope = inbound(theirs=probe.SENDER, media=media)
    # WHEN the probe of `spillway doctor` comes, THEN it waits for none of them
    assert world.handle(envelope) == []
    item = world.item(envelope)
    assert item is not None
    assert (item["valid"], item["lookups"], world.asked) == (True, {}, [])
    # AND a short code is a number
    assert world.handle(inbound(theirs="72345")) == [0]


def test_what_the_table_refuses_is_replaced_there_and_kept_in_the_archive(world: World) -> None:
    media = (Media("https://m.example.com/e\u0301\ud800", "a\x00"),)
    envelope = inbound(theirs="\udfff", media=media)
    assert world.handle(envelope) == []
    item = world.item(envelope)
    assert item is not None
    (line,) = world.lines(item["archive_key"])
    assert (item["from"], line["from"]) == ("\ufffd", "\udfff")
    assert item["media"] == [
        {"url": "https://m.example.com/e\u0301\ufffd", "content_type": "a\x00"}
    ]
    assert line["media"] == [
        {"url": "https://m.example.com/e\u0301\ud800", "content_type": "a\x00"}
    ]


def test_a_text_of_300_000_characters_is_archived_whole_and_stored_in_part(world: World) -> None:
    # Any character of the text may take 4 bytes.
    text = "🐦" * 300_000
    envelope = inbound(text, raw={"Body": text})
    envelope = replace(envelope, payload={**envelope.payload, "text": text})
    assert world.handle(envelope) == []
    item = world.item(envelope)
    assert item is not None
    assert len(json.dumps(item, ensure_ascii=False).encode()) < 100_000
    assert item["text"] == "🐦" * len(item["text"])
    assert len(item["text"]) == LONGEST
    assert item["reasons"] == ["text_too_large"]
    (line,) = world.lines(item["archive_key"])
    assert line["raw"] == {"Body": text}


# --- batches -------------------------------------------------------------------------------------


def test_a_batch_is_one_object_with_each_message_once(world: World) -> None:
    # GIVEN a batch that has a message twice
    one, two, three = several(3)
    # WHEN it is worked on
    assert world.handle(one, two, one, three) == []
    # THEN there is one object with a line for each, which each item names
    (key,) = world.objects()
    assert sorted(line["id"] for line in world.lines(key)) == sorted(
        envelope.id for envelope in (one, two, three)
    )
    for envelope in (one, two, three):
        item = world.item(envelope)
        assert item is not None
        assert item["archive_key"] == key


def test_what_is_stored_is_neither_archived_nor_asked_about_again(world: World) -> None:
    one, two, three = several(3)
    assert world.handle(one, two) == []
    (first,) = world.objects()
    items = world.item(one), world.item(two)
    world.asked.clear()

    # The same batch again: nothing.
    assert world.handle(one, two) == []
    assert world.objects() == [first]
    assert world.asked == []
    assert len(world.s3.calls) == 1

    # With something new: that alone.
    assert world.handle(two, three) == []
    assert (world.item(one), world.item(two)) == items
    (second,) = set(world.objects()) - {first}
    assert [line["id"] for line in world.lines(second)] == [three.id]
    assert {id_ for _, id_ in world.asked} == {three.id}


def test_a_batch_without_texts_writes_no_object(world: World) -> None:
    assert world.handle(receipt_for("nobody")) == []
    assert world.objects() == []
    assert world.handle() == []


# --- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        (httpx.Response(500), None),
        (httpx.Response(503, headers={"Retry-After": "90"}), 90),
        (httpx.Response(200, text="heron"), None),
        (httpx.ReadTimeout(f"heron {THEIRS}"), None),
    ],
    ids=["500", "retry_after", "invalid", "time_out"],
)
def test_without_a_required_look_up_that_message_alone_waits(
    answer: httpx.Response | httpx.HTTPError, seconds: int | None, world: World
) -> None:
    # GIVEN a required source that fails for one message of three
    one, two, three = several(3)

    def failing(name: str, id_: str) -> httpx.Response:
        if (name, id_) == ("line", two.id):
            if isinstance(answer, httpx.HTTPError):
                raise answer
            return answer
        return world.all_known(name, id_)

    world.answer = failing
    # THEN that one is deferred and the others are kept
    assert world.handle(one, two, three) == [1]
    assert (world.kept(one), world.kept(two), world.kept(three)) == (True, False, True)
    assert set(world.runtime.queues.hidden) == {"h1"}
    assert world.runtime.queues.hidden["h1"] == seconds or (
        seconds is None and 1 <= world.runtime.queues.hidden["h1"] <= 120
    )
    assert world.runtime.queues.sent["processing-dlq"] == []

    # AND kept when the source is back
    world.answer = world.all_known
    assert world.handle(two) == []
    assert world.kept(two)


def test_a_message_is_kept_without_an_optional_look_up(world: World) -> None:
    world.answer = lambda name, id_: (
        httpx.Response(500) if name == "customer" else world.all_known(name, id_)
    )
    envelope = inbound()
    assert world.handle(envelope) == []
    item = world.item(envelope)
    assert item is not None
    assert item["lookups"] == {"customer": {"error": "500"}, "line": KNOWN["line"]}


@pytest.mark.parametrize(
    "error",
    [
        down(),
        no_answer(),
        aws_error("SlowDown", "PutObject"),
        aws_error("AccessDenied", "PutObject"),
    ],
    ids=["no_connection", "time_out", "slow_down", "denied"],
)
def test_while_s3_is_down_the_whole_batch_waits_and_nothing_is_stored(
    error: Exception, world: World
) -> None:
    envelopes = several(3)
    world.s3.next["put_object"] = iter([error])
    assert world.handle(*envelopes) == [0, 1, 2]
    assert all(world.item(envelope) is None for envelope in envelopes)
    assert set(world.runtime.queues.hidden) == {"h0", "h1", "h2"}
    assert world.dead_letters() == []
    # AND all are kept when it is back
    assert world.handle(*envelopes) == []
    assert all(world.kept(envelope) for envelope in envelopes)
    assert len(world.objects()) == 1


def test_an_archive_whose_answer_was_lost_is_written_again_as_the_same_object(world: World) -> None:
    envelopes = several(2)
    world.s3.next["put_object"] = iter([Lost(no_answer())])
    assert world.handle(*envelopes) == [0, 1]
    assert len(world.objects()) == 1
    assert world.handle(*envelopes) == []
    assert len(world.objects()) == 1
    assert all(world.kept(envelope) for envelope in envelopes)


def test_an_archive_that_calls_the_batch_invalid_keeps_it_in_the_queue(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.s3.next["put_object"] = iter([aws_error("EntityTooLarge", "PutObject")])
    envelopes = several(2)
    assert world.handle(*envelopes) == [0, 1]
    assert all(world.item(envelope) is None for envelope in envelopes)
    assert events(logged(capsys)) == ["unexpected_error"] * 2


@pytest.mark.parametrize("error", [down(), aws_error("ThrottlingException", "BatchGetItem")])
def test_while_the_table_cannot_be_read_nobody_is_asked_and_nothing_archived(
    error: Exception, world: World
) -> None:
    envelopes = several(2)
    tapped(world.runtime).next["batch_get_item"] = iter([error])
    assert world.handle(*envelopes) == [0, 1]
    assert world.objects() == []
    assert world.asked == []
    assert world.handle(*envelopes) == []
    assert all(world.kept(envelope) for envelope in envelopes)


@pytest.mark.parametrize(
    ("turn", "stored_at_first"),
    [
        (down(), False),
        (no_answer(), False),
        (aws_error("ProvisionedThroughputExceededException", "PutItem"), False),
        (Lost(no_answer()), True),
    ],
    ids=["no_connection", "time_out", "throttled", "answer_lost"],
)
def test_a_write_that_fails_after_the_archive_ends_with_one_item_that_names_an_object(
    turn: Exception | Lost, stored_at_first: bool, world: World
) -> None:
    # GIVEN a table that takes the second of two messages and not the first
    one, two = several(2)
    tapped(world.runtime).next["put_item"] = iter([turn])
    assert world.handle(one, two) == [0]
    assert (world.kept(one), world.kept(two)) == (stored_at_first, True)
    assert set(world.runtime.queues.hidden) == {"h0"}
    # WHEN it comes again
    assert world.handle(one) == []
    # THEN each has its item, and each item an object with its line
    assert world.kept(one)
    assert world.kept(two)
    assert len(world.objects()) == (1 if stored_at_first else 2)


def test_two_at_once_end_with_one_item_that_names_an_object(world: World) -> None:
    # GIVEN that somebody else works on the same message, in another batch, and is the first to
    # store it
    one, two = several(2)

    def somebody_else() -> None:
        assert world.handle(one, two) == []

    tapped(world.runtime).next["put_item"] = iter([somebody_else])
    # WHEN we store ours
    assert world.handle(one) == []
    # THEN theirs stays
    item = world.item(one)
    assert item is not None
    assert [line["id"] for line in world.lines(item["archive_key"])] == sorted([one.id, two.id])


@pytest.mark.parametrize(("age", "dead"), [(GIVE_UP_AFTER - 60, False), (GIVE_UP_AFTER + 60, True)])
def test_a_message_that_cannot_be_completed_for_half_a_day_is_dead_lettered(
    age: float, dead: bool, world: World
) -> None:
    world.answer = lambda name, id_: httpx.Response(503, text=f"heron {THEIRS}")
    world.runtime.clock += age
    envelope = inbound()
    assert world.handle(envelope) == ([] if dead else [0])
    assert world.dead_letters() == ([(envelope.body(), "too_old: lookup: line")] if dead else [])
    assert world.item(envelope) is None


@pytest.mark.parametrize(("age", "dead"), [(3590, False), (3610, True)])
def test_look_ups_are_given_up_by_their_own_age(age: float, dead: bool, world: World) -> None:
    # GIVEN look-ups that may take an hour
    world.function = world.processing(LOOKUP_MAX_AGE="3600")
    world.answer = lambda name, id_: httpx.Response(503)
    world.runtime.clock += age
    assert world.handle(inbound()) == ([] if dead else [0])
    assert [reason for _, reason in world.dead_letters()] == (["too_old: lookup: line"] * dead)


def test_nothing_else_is_given_up_by_the_age_of_look_ups(world: World) -> None:
    # GIVEN a table that is down for longer than that
    world.function = world.processing(LOOKUP_MAX_AGE="3600")
    world.runtime.clock += 7200
    tapped(world.runtime).next["batch_get_item"] = iter([aws_error("InternalServerError")])
    assert world.handle(inbound()) == [0]
    assert world.dead_letters() == []


def test_what_cannot_be_begun_in_the_time_that_is_left_is_handed_back(world: World) -> None:
    envelopes = several(2)
    assert world.handle(*envelopes, seconds=LONGEST_LOOKUP + STORING - 1) == [0, 1]
    # (nothing was begun: at once, it would go round and round)
    assert world.runtime.queues.hidden == {"h0": 2, "h1": 2}
    assert world.asked == []
    assert world.objects() == []
    assert tapped(world.runtime).writes() == []
    assert world.handle(*envelopes, seconds=LONGEST_LOOKUP + STORING + 1) == []


def test_what_was_begun_in_time_is_kept_and_the_rest_handed_back(world: World) -> None:
    # GIVEN sources that take their time
    def slow(name: str, id_: str) -> httpx.Response:
        world.runtime.clock += 4.0
        return world.all_known(name, id_)

    world.answer = slow
    one, two, three = several(3)
    assert world.handle(one, two, three, seconds=LONGEST_LOOKUP + STORING + 10) == [2]
    assert (world.kept(one), world.kept(two), world.kept(three)) == (True, True, False)
    assert world.runtime.queues.hidden == {"h2": 0}


def test_without_reporting_what_is_done_is_deleted_and_the_rest_raised_for(world: World) -> None:
    world.function = world.processing(REPORT_BATCH_ITEM_FAILURES="false")
    one, two = several(2)
    world.answer = lambda name, id_: (
        httpx.Response(500) if id_ == two.id else world.all_known(name, id_)
    )
    event = sqs_event([one.body(), two.body()])
    with pytest.raises(BatchFailed, match=r"^1 of 2 not done$"):
        world.function.handle(event, Context(world.runtime))
    assert world.runtime.queues.deleted == ["h0"]
    assert world.kept(one)


# --- STOP ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "hint", "recorded"),
    [
        ("STOP", None, "STOP"),
        ("s\x00top.", None, "stop."),
        ("no more, please", "stop", "no more, please"),
        ("Please take me off your list.", None, "Please take me off your list."),
        ("START", None, None),
        ("HELP", None, None),
        ("stop by tomorrow", None, None),
        ("yes", None, None),
        # The provider knows its own keywords.
        ("STOP", "help", None),
    ],
)
def test_a_stop_is_recorded_before_the_look_ups_even_where_they_fail(
    text: str, hint: ConsentEvent | None, recorded: str | None, world: World
) -> None:
    # GIVEN sources that fail; and what was recorded when they were asked
    when_asked = []

    def failing(name: str, id_: str) -> httpx.Response:
        when_asked.append(world.consent())
        return httpx.Response(500)

    world.answer = failing
    # WHEN the text comes
    envelope = inbound(text, consent_hint=hint, sent_at=NOW - 2)
    assert world.handle(envelope) == [0]
    # THEN a STOP is there already, with its evidence
    entry = world.consent()
    assert when_asked == [entry, entry]
    if recorded is None:
        assert entry is None
    else:
        assert entry is not None
        found = {name: entry[name] for name in ("event", "at", "words", "source", "id")}
        assert found == {
            "event": "stop",
            "at": NOW - 2,
            "words": recorded,
            "source": "twilio",
            "id": envelope.id,
        }


def test_a_stop_without_a_time_of_the_providers_counts_from_its_receipt(world: World) -> None:
    assert world.handle(inbound("STOP", sent_at=None)) == []
    entry = world.consent()
    assert entry is not None
    assert entry["at"] == NOW


def test_a_stop_counts_from_its_first_receipt_not_from_a_duplicates(world: World) -> None:
    # GIVEN a STOP that the sender has begun to answer, and a START said two minutes after it
    opened(world, inbound("STOP"))
    key = (f"P#default#{KEYS.number(THEIRS)}", "CONSENT")
    world.table.insert({"pk": key[0], "sk": key[1], "event": "start", "at": NOW + 120})

    # WHEN the first that processing gets is a duplicate, which came to our door hours later
    assert world.handle(inbound("STOP", received_at=NOW + 7200)) == []

    # THEN the START counts
    entry = world.consent()
    assert entry is not None
    assert entry["event"] == "start"


def test_a_duplicate_of_a_stop_that_nobody_answered_yet_says_it_no_later(world: World) -> None:
    # GIVEN a STOP that is recorded and, for want of a look-up, not stored; the sender is held up
    world.answer = lambda name, id_: httpx.Response(500)
    assert world.handle(inbound("STOP")) == [0]
    # WHEN a duplicate comes hours later
    assert world.handle(inbound("STOP", received_at=NOW + 7200)) == [0]
    # THEN the record is that of the first
    entry = world.consent()
    assert entry is not None
    assert entry["at"] == NOW


@pytest.mark.parametrize("text", ["hello", "START", "HELP", "stop by tomorrow"])
def test_only_a_stop_is_looked_for_in_the_ledger(text: str, world: World) -> None:
    assert world.handle(inbound(text)) == []
    assert [name for name, _ in tapped(world.runtime).calls if name == "get_item"] == []


def test_a_stop_that_cannot_be_recorded_is_tried_again(world: World) -> None:
    one, two = inbound("STOP", id_="SM1"), inbound(id_="SM2", theirs=SECOND)
    tapped(world.runtime).next["update_item"] = iter([down()])
    assert world.handle(one, two) == [0]
    assert world.consent() is None
    assert (world.kept(one), world.kept(two)) == (False, True)
    assert one.id not in {id_ for _, id_ in world.asked}
    assert world.handle(one) == []
    assert world.consent() is not None
    assert world.kept(one)


def test_a_stop_that_came_late_does_not_override_a_later_start(world: World) -> None:
    key = (f"P#default#{KEYS.number(THEIRS)}", "CONSENT")
    world.table.insert({"pk": key[0], "sk": key[1], "event": "start", "at": NOW + 60})
    assert world.handle(inbound("STOP")) == []
    entry = world.consent()
    assert entry is not None
    assert entry["event"] == "start"


def opened(world: World, envelope: Envelope) -> None:
    """The sender has begun to answer this message."""
    id_ = MessageId.parse(envelope.id)
    assert id_ is not None
    Ledger(Table(world.runtime, "test"), world.runtime, keep_days=400).open(
        id_,
        kind="inbound",
        provider="twilio",
        ours=OURS,
        theirs=THEIRS,
        callback_url="",
        received_at=envelope.received_at,
    )


# --- what is said by another way than a text -----------------------------------------------------


def statement(**fields: Any) -> Envelope:
    said = {"number": THEIRS, "event": "stop", "at": NOW - 60, "source": "telephone", "note": TEXT}
    payload = {**said, **fields}
    try:
        id_ = str(id_of(KEYS, read(payload, NOW)))
    except BadStatement:
        id_ = f"{'c' * 24}-{'d' * 24}"
    return Envelope("consent", "", id_, NOW, payload)


def test_what_was_said_otherwise_is_recorded_with_its_evidence(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    envelope = statement()
    # THEN it is on the list, once, however often it is handed to us
    assert world.handle(envelope, envelope) == []
    entry = world.consent()
    assert entry is not None
    assert [
        {name: one[name] for name in ("event", "at", "words", "source", "id")}
        for one in events_of(entry)
    ] == [
        {"event": "stop", "at": NOW - 60, "words": TEXT, "source": "telephone", "id": envelope.id}
    ]
    # AND nothing is archived or asked about, and it is counted and logged without words and number
    assert not world.objects()
    assert not world.asked
    lines = logged(capsys)
    assert [line["ConsentEvents"] for line in lines if "ConsentEvents" in line] == [1, 1]
    assert [(line["event"], line["id"]) for line in lines if "event" in line] == [
        ("consent_stop", envelope.id)
    ] * 2


@pytest.mark.parametrize(
    ("said", "recorded"),
    [
        pytest.param({"event": "start", "at": NOW - 60}, "start", id="a start after it"),
        pytest.param({"event": "start", "at": NOW - 120}, "stop", id="a start before it"),
        pytest.param({"event": "start", "at": NOW - 98.5}, "stop", id="a start that ties"),
        pytest.param({"event": "stop", "at": NOW - 60}, "stop", id="another stop"),
    ],
)
def test_what_was_said_otherwise_counts_by_its_own_time(
    said: dict[str, Any], recorded: str, world: World
) -> None:
    assert world.handle(inbound("STOP", sent_at=NOW - 100)) == []
    assert world.handle(statement(**said)) == []
    entry = world.consent()
    assert entry is not None
    assert entry["event"] == recorded


def test_a_statement_that_cannot_be_recorded_is_tried_again(world: World) -> None:
    tapped(world.runtime).next["update_item"] = iter([down(), Lost(no_answer())])
    for _ in range(2):
        assert world.handle(statement()) == [0]
    assert world.handle(statement()) == []
    assert len(events_of(world.consent())) == 1


def test_a_stop_by_telephone_that_cannot_be_recorded_for_half_a_day_is_said_to_be_one(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.runtime.clock = NOW + GIVE_UP_AFTER + 1
    tapped(world.runtime).next["get_item"] = iter([down()])
    assert world.handle(statement()) == []
    assert world.dead_letters() == [
        (statement().body(), "too_old: transient: EndpointConnectionError")
    ]
    assert sum(line.get("StopsDeadLettered", 0) for line in logged(capsys)) == 1


@pytest.mark.parametrize(
    "fields",
    [{"number": "heron"}, {"event": "help"}, {"at": "soon"}, {"source": 5}, {"strange": 1}],
)
def test_a_statement_that_cannot_be_read_is_put_aside(fields: dict[str, Any], world: World) -> None:
    envelope = statement(**fields)
    assert world.handle(envelope, inbound(id_="SM2")) == []
    assert world.dead_letters() == [(envelope.body(), "unreadable_statement")]
    assert world.consent() is None


# --- receipts ------------------------------------------------------------------------------------

REPLY = MessageId("c" * 24, "0" * 24)


def receipt_for(reference: str, status: Any = "delivered", error: str = "") -> Envelope:
    receipt = DeliveryReceipt("twilio", "SM9", reference, status, error)
    return Envelope("receipt", "c" * 24, "", NOW, asdict(receipt))


def answered(runtime: FakeRuntime) -> Ledger:
    """A ledger that has one reply, of one part, sent."""
    ledger = Ledger(Table(runtime, "test"), runtime, keep_days=400)
    reply = begun(ledger, REPLY)
    reply = draft(reply, [(TEXT, [])])
    assert reply.parts is not None
    part = ledger.claim(reply, reply.parts[0], owner="me", lease_until=NOW + 60)
    ledger.sent(reply, part, "SM9")
    return ledger


def state(ledger: Ledger) -> str:
    reply = ledger.find(REPLY)
    assert reply is not None
    return reply.state


def test_receipts_move_the_ledger_forwards_and_never_back(world: World) -> None:
    ledger = answered(world.runtime)
    reference = REPLY.part(1)
    assert world.handle(receipt_for(reference, "delivered")) == []
    assert state(ledger) == "delivered"
    assert world.handle(receipt_for(reference, "sent"), receipt_for(reference, "queued")) == []
    assert state(ledger) == "delivered"
    assert world.objects() == []
    assert world.asked == []


def test_a_receipt_that_says_opted_out_feeds_the_list(world: World) -> None:
    ledger = answered(world.runtime)
    for _ in range(2):
        assert world.handle(receipt_for(REPLY.part(1), "failed", "21610")) == []
    assert state(ledger) == "failed"
    entry = world.consent()
    assert entry is not None
    assert (entry["event"], entry["source"], entry["id"]) == ("stop", "twilio: 21610", str(REPLY))


def test_an_opt_out_is_recorded_even_while_its_receipt_has_to_wait(world: World) -> None:
    answered(world.runtime)
    tapped(world.runtime).next["update_item"] = iter([None, down()])
    assert world.handle(receipt_for(REPLY.part(1), "failed", "21610")) == [0]
    assert world.consent() is not None


@pytest.mark.parametrize(
    "reference", ["", "heron", REPLY.part(2), MessageId("d" * 24, "0" * 24).part(1)]
)
def test_a_receipt_for_a_message_that_nobody_knows_is_done_with_and_counted(
    reference: str, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    answered(world.runtime)
    assert world.handle(receipt_for(reference)) == []
    lines = logged(capsys)
    assert events(lines) == ["receipt_of_unknown_message"]
    assert sum(line.get("StrangeReceipts", 0) for line in lines) == 1
    assert world.dead_letters() == []


def test_a_receipt_that_is_overtaken_again_and_again_comes_later(
    world: World, aws: tuple[Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    # GIVEN a part that is in another state whenever the receipt looks
    ledger = answered(world.runtime)

    def move(to: str) -> Callable[[], object]:
        return lambda: aws[0].update_item(
            TableName="spillway-test",
            Key={"pk": {"S": f"C#{REPLY.conversation}"}, "sk": {"S": f"OUT#{REPLY.message}"}},
            UpdateExpression="SET parts.#one.#state = :to, parts.#one.attempt = :again",
            ExpressionAttributeNames={"#one": "1", "#state": "state"},
            ExpressionAttributeValues={":to": {"S": to}, ":again": {"N": "1"}},
        )

    moves = [move("waiting"), move("sending")] * 2
    tapped(world.runtime).next["update_item"] = iter(moves)
    # THEN it is deferred, and recorded when it comes again
    envelope = receipt_for(REPLY.part(1))
    assert world.handle(envelope) == [0]
    assert events(logged(capsys)) == ["deferred"]
    assert world.handle(envelope) == []
    assert state(ledger) == "delivered"


def test_a_receipt_waits_while_the_table_is_down(world: World) -> None:
    ledger = answered(world.runtime)
    tapped(world.runtime).next["update_item"] = iter([down()])
    envelope = receipt_for(REPLY.part(1))
    assert world.handle(envelope) == [0]
    assert world.handle(envelope) == []
    assert state(ledger) == "delivered"


# --- what is no message --------------------------------------------------------------------------

UNREADABLE = {"provider": "twilio", "url": "https://sms.example.com/x", "body": "aGVyb24="}


def test_what_could_not_be_read_is_quarantined(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    envelope = Envelope("unreadable", "", "", NOW, UNREADABLE)
    assert world.handle(envelope, envelope) == []
    (key,) = world.objects()
    assert key.startswith("quarantine/")
    assert json.loads(world.content(key)) == UNREADABLE
    lines = logged(capsys)
    assert set(events(lines)) == {"quarantined"}
    assert {line["provider"] for line in lines} == {"twilio"}


def test_what_could_not_be_read_waits_while_s3_is_down(world: World) -> None:
    envelope = Envelope("unreadable", "", "", NOW, UNREADABLE)
    world.s3.next["put_object"] = iter([down()])
    assert world.handle(envelope) == [0]
    assert world.handle(envelope) == []
    assert len(world.objects()) == 1


def with_id(id_: str) -> str:
    return replace(inbound(id_="SM7"), id=id_).body()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("heron", "not_an_envelope"),
        ("{}", "not_an_envelope"),
        (inbound().body().replace('"inbound"', '"settled"'), "not_an_envelope"),
        (inbound().body().replace('"inbound"', "5"), "not_an_envelope"),
        (outgoing().body(), "unexpected_kind"),
        # Without an id there is no key to store it under.
        (with_id(""), "unexpected_kind"),
        (with_id("SM7"), "unexpected_kind"),
        (with_id("\ud800" * 3000), "unexpected_kind"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_no_message_of_ours_is_dead_lettered_and_the_rest_kept(
    body: str, reason: str, world: World
) -> None:
    good = inbound(id_="SM2")
    assert world.handle(body, good) == []
    assert world.dead_letters() == [(body, reason)]
    assert world.kept(good)


def with_payload(**fields: Any) -> Envelope:
    envelope = inbound(id_="SM7")
    return replace(envelope, payload={**envelope.payload, **fields})


@pytest.mark.parametrize(
    "envelope",
    [
        replace(inbound(id_="SM7"), payload={}),
        with_payload(stranger="heron"),
        with_payload(sender=None),
        with_payload(text=5),
        with_payload(text=None),
        with_payload(media="heron"),
        with_payload(media=[{"heron": 1}]),
        with_payload(received_at="soon"),
        with_payload(received_at=float("nan")),
        with_payload(received_at=None),
        with_payload(sent_at="heron", text="STOP"),
        with_payload(part={"heron": 1}),
        Envelope("receipt", "", "", NOW, {"heron": THEIRS}),
        Envelope(
            "receipt", "", "", NOW, asdict(DeliveryReceipt("x", "y", "", "sent")) | {"status": 5}
        ),
        Envelope("unreadable", "", "", NOW, {}),
    ],
    ids=lambda envelope: repr(envelope.payload)[-60:],
)
def test_a_message_that_is_not_what_it_says_stops_no_other(
    envelope: Envelope, world: World
) -> None:
    good = several(2)
    assert set(world.handle(good[0], envelope, good[1])) <= {1}
    assert all(world.kept(one) for one in good)


# --- what is said of it --------------------------------------------------------------------------

# Each of these errors has a number and a text in its words.
FAULTS: list[tuple[str, str, Exception, list[str]]] = [
    ("table", "batch_get_item", aws_error("ValidationException"), ["unexpected_error"]),
    ("table", "batch_get_item", aws_error("ThrottlingException"), ["deferred"]),
    ("table", "put_item", aws_error("ValidationException"), ["unexpected_error"]),
    ("table", "put_item", ValueError(f"{TEXT} {THEIRS}"), ["unexpected_error"]),
    ("table", "put_item", down(), ["deferred"]),
    ("s3", "put_object", aws_error("EntityTooLarge"), ["unexpected_error"]),
    ("s3", "put_object", down(), ["deferred"]),
    ("http", "", httpx.ReadTimeout(f"{TEXT} {THEIRS}"), ["lookup_failed"] * 2 + ["deferred"]),
    ("http", "", ValueError(f"{TEXT} {THEIRS}"), ["unexpected_error"]),
]


@pytest.mark.parametrize(("store", "operation", "error", "said"), FAULTS)
def test_a_failure_is_said_without_a_number_a_text_or_a_secret(
    store: str,
    operation: str,
    error: Exception,
    said: list[str],
    world: World,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def failing(name: str, id_: str) -> httpx.Response:
        raise error

    if store == "http":
        world.answer = failing
    else:
        client = tapped(world.runtime) if store == "table" else world.s3
        client.next[operation] = iter([error])
    assert world.handle(inbound()) == [0]
    # `logged` looks for what must not be in them.
    assert events(logged(capsys)) == said


# --- attachments ---------------------------------------------------------------------------------


def with_picture(text: str = TEXT, **fields: Any) -> Envelope:
    return inbound(text, provider="telnyx", media=(Media(PICTURE, "image/png"),), **fields)


def test_a_text_waits_for_its_picture_but_a_stop_does_not(world: World) -> None:
    world.pictures = lambda: httpx.Response(503)
    envelope = with_picture("STOP")
    assert world.handle(envelope) == [0]
    assert world.item(envelope) is None
    assert (world.consent() or {})["event"] == "stop"

    world.pictures = picture
    assert world.handle(envelope) == []
    item = world.item(envelope)
    assert item is not None
    assert item["media"][0]["key"] == f"media/{envelope.id}-1"


def test_a_text_is_stored_without_a_picture_that_does_not_come(world: World) -> None:
    # (LOOKUP_MAX_AGE is the look-ups' alone: it must not put aside whoever waits for a picture.)
    world.function = world.processing(LOOKUP_MAX_AGE="1")
    world.pictures = lambda: httpx.Response(503)
    envelope = with_picture()
    world.runtime.clock += attachments.WAITS - 1
    assert world.handle(envelope) == [0]
    world.runtime.clock += 1
    assert world.handle(envelope) == []
    item = world.item(envelope)
    assert item is not None
    assert item["media"][0]["error"] == "unavailable"
    assert world.dead_letters() == []


def test_a_picture_is_fetched_while_a_required_source_is_down(world: World) -> None:
    world.answer = lambda name, id_: httpx.Response(503)
    envelope = with_picture()
    assert world.handle(envelope) == [0]
    assert world.objects() == [f"media/{envelope.id}-1"]


def test_what_is_not_valid_has_nothing_fetched(world: World) -> None:
    envelope = with_picture(theirs="+1415555")
    assert world.handle(envelope) == []
    item = world.item(envelope)
    assert item is not None
    assert item["media"] == [{"url": PICTURE, "content_type": "image/png"}]
    assert not any(key.startswith("media/") for key in world.objects())


def test_a_replay_keeps_a_picture_that_the_provider_has_forgotten(world: World) -> None:
    # GIVEN a text with a picture, and a provider that has it no more
    envelope = with_picture()
    world.handle(envelope)
    item = world.item(envelope)
    assert item is not None
    world.pictures = lambda: httpx.Response(410)
    # WHEN it is worked on again
    again = replace(
        envelope,
        kind="replay",
        payload={**envelope.payload, "archived_in": item["archive_key"]},
        received_at=NOW,
    )
    assert world.handle(again) == []
    # THEN its item still names the object
    replayed = world.item(envelope)
    assert replayed is not None
    assert replayed["media"] == item["media"]


@pytest.mark.parametrize(
    "seconds", [attachments.LONGEST + STORING - 1, attachments.LONGEST + STORING]
)
def test_no_picture_is_begun_that_could_not_be_ended(world: World, seconds: float) -> None:
    with_media, without = with_picture(id_="SM1"), inbound(id_="SM2")
    enough = seconds >= attachments.LONGEST + STORING
    assert world.handle(with_media, seconds=seconds) == ([] if enough else [0])
    # What has none needs no such time.
    assert world.handle(without, seconds=seconds) == []
