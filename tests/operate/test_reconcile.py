"""A reconciliation, of stores that the real functions filled and that somebody damaged then: each
difference is found by its name, what can be put right is right afterwards, and what is under way is
left alone."""

from __future__ import annotations

import gzip
import itertools
import json
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from botocore.client import BaseClient
from typer.testing import CliRunner

from chalicelib.ledger import DAY
from chalicelib.messages import MessageId
from chalicelib.processing import item_of
from chalicelib.queues import Envelope
from chalicelib.table import Table, kept
from spillway import cli
from spillway.operate import reconcile, reconciliation
from spillway.operate.erasure import Erasure
from spillway.operate.reconciliation import (
    AT_ONCE,
    OPEN,
    PUT_RIGHT,
    RECENT,
    WAITING,
    Reconciled,
    Reconciliation,
)
from spillway.problem import Problem
from spillway.stage import Stage
from spillway.stores import Stores
from tests.fakes import OURS, Context, FakeRuntime, inbound
from tests.operate.world import KEYS, NAME, PERSON, World
from tests.pages import DOCS

OTHER = "+14155550143"
HOUR = 3600.0
AGAIN = "messages/2026/11/20/again.jsonl.gz"
NOWHERE = "messages/2026/11/24/nowhere.jsonl.gz"


class Died(BaseException):
    """The end of the command: nothing after it is run."""


@pytest.fixture
def now(world: World, monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    """One clock for functions and command. It begins an hour ago: S3 has a clock of its own, and
    what it has written just now is left alone."""
    monkeypatch.setattr(Stage, "runtime", lambda self: world.runtime)
    world.runtime.clock = time.time() - HOUR
    return world.runtime


def reconciled(world: World, *, after: float = 3 * HOUR, since: float = 0.0) -> Reconciled:
    """What is found `after` seconds."""
    world.runtime.clock += after
    return Reconciliation(world.stage, since=since, wait=0.1).run()


def found(one: Reconciled) -> dict[str, int]:
    """How many of each kind, put right or open."""
    every = {**one.put_right, **one.open}
    return {kind: len(ids) for kind, ids in every.items() if ids}


def live(world: World) -> None:
    """A day in the life of a stage: answered texts in two batches, a STOP and what it refuses, a
    group message, a text of a client, a lost answer, and what could not be read."""
    world.text("the heron is awake", "SM-1")
    world.text("the heron is asleep", "SM-2", OTHER)
    world.work()
    world.refused = "You wrote: where is the heron"
    world.text("where is the heron", "SM-3")
    world.post("heron sale", "k-1", OTHER)
    world.work()
    world.runtime.sqs.purge_queue(QueueUrl=world.url("processing"))  # (It would be looked for.)
    world.text("stop", "SM-4", OTHER)
    world.post("heron sale again", "k-2", OTHER)
    world.text("who are you", "SM-5", "HERON")  # (Stored, and never answered.)
    event: Any = {"SmsStatus": "heron"}
    world.text("2", "SM-6", **event)
    world.work()


def with_picture(world: World, sid: str = "SM-1", number: int = 1) -> None:
    """A text with pictures."""
    pictures = {"NumMedia": str(number)}
    for at in range(number):
        pictures[f"MediaUrl{at}"] = f"https://mms.twiliocdn.com/heron-{at}"
        pictures[f"MediaContentType{at}"] = "image/png"
    world.text("the heron itself", sid, **pictures)
    world.work()


def stored(world: World, sid: str = "SM-1", theirs: str = PERSON) -> MessageId:
    """The id of a text of `live`."""
    account = "AC" + "0" * 32
    return MessageId(
        KEYS.conversation(OURS, theirs), KEYS.message("twilio", account, f"{sid}-{world.round}")
    )


# --- what somebody did to the stores -------------------------------------------------------------


def key(kind: str, id_: MessageId) -> dict[str, Any]:
    return {"pk": {"S": f"C#{id_.conversation}"}, "sk": {"S": f"{kind}#{id_.message}"}}


def delete(world: World, kind: str, id_: MessageId | None = None) -> None:
    world.runtime.dynamodb.delete_item(
        TableName=f"spillway-{NAME}", Key=key(kind, id_ or stored(world))
    )


def update(world: World, kind: str, change: str, **values: Any) -> None:
    world.table.update(
        (key(kind, stored(world))["pk"]["S"], key(kind, stored(world))["sk"]["S"]),
        change,
        values={f":{name}": value for name, value in values.items()} or None,
    )


def object_of(world: World, id_: MessageId) -> str:
    return str(item(world, id_)["archive_key"])


def item(world: World, id_: MessageId) -> dict[str, Any]:
    return world.items()[f"C#{id_.conversation}", f"IN#{id_.message}"]


def put(world: World, key_: str, *lines: dict[str, Any] | str, packed: bool = True) -> None:
    text = "".join(one if isinstance(one, str) else json.dumps(one) + "\n" for one in lines)
    body = gzip.compress(text.encode()) if packed else text.encode()
    encoding: dict[str, Any] = {"ContentEncoding": "gzip"}
    world.stage.aws.client("s3").put_object(
        Bucket=world.stage.stores.bucket, Key=key_, Body=body, **encoding
    )


def lines(world: World, key_: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in world.objects()[key_].splitlines()]


def line(world: World, id_: MessageId) -> dict[str, Any]:
    (one,) = (one for one in lines(world, object_of(world, id_)) if one["id"] == str(id_))
    return one


def rewrite(world: World, change: Callable[[dict[str, Any]], list[dict[str, Any]]]) -> None:
    """The object that has the first text, with its line changed, and the others as they were."""
    id_ = stored(world)
    key_ = object_of(world, id_)
    changed = []
    for one in lines(world, key_):
        changed += change(one) if one["id"] == str(id_) else [one]
    put(world, key_, *changed)


def archive_again(world: World) -> None:
    """A second object with the first text's line, as a death between archive and table leaves."""
    put(world, AGAIN, line(world, stored(world)))


def archive_changed(world: World) -> None:
    put(world, f"{AGAIN}.2", {**line(world, stored(world)), "text": "another heron"})


def name_nowhere(world: World) -> None:
    update(world, "IN", "SET archive_key = :new", new=NOWHERE)


def lose_object(world: World) -> None:
    world.stage.aws.client("s3").delete_object(
        Bucket=world.stage.stores.bucket, Key=object_of(world, stored(world))
    )


def lose_a_picture(world: World) -> None:
    """The first of ten: its name is how that of the tenth begins."""
    with_picture(world, "SM-m", 10)
    with_picture(world, "SM-n")
    world.stage.aws.client("s3").delete_object(
        Bucket=world.stage.stores.bucket, Key=f"media/{stored(world, 'SM-m')}-1"
    )


def never_queue(world: World) -> None:
    """A receiver that dies between the two queues, of a text that nobody sends again."""
    world.text("is the heron lost", "SM-x")
    world.runtime.sqs.purge_queue(QueueUrl=world.url("outbound.fifo"))
    world.work()


def never_queue_among_letters(world: World) -> None:
    """... in a conversation with as many dead letters as SQS shows, which may be one of more."""
    never_queue(world)
    id_ = stored(world, "SM-x")
    for number in range(AT_ONCE):
        other = replace(id_, message=f"{number:024}")
        letter = Envelope("outgoing", id_.conversation, str(other), world.runtime.now(), {})
        world.put_aside("outbound-dlq.fifo", letter)


def lose_with_a_letter(world: World) -> None:
    """The table loses a text of which an event is put aside: that would not bring it back."""
    id_ = stored(world)
    world.put_aside(
        "processing-dlq", Envelope("event", id_.conversation, str(id_), world.runtime.now(), {})
    )
    delete(world, "IN")


def begin(world: World, change: str, **names: str) -> None:
    """A reply that was begun, and whose message is on no queue any more."""
    world.text("is the heron gone", "SM-x")
    world.work()
    id_ = stored(world, "SM-x")
    world.table.update(
        (f"C#{id_.conversation}", f"OUT#{id_.message}"),
        change,
        names=names or None,
        values={":waiting": "waiting"} if names else None,
    )


def lose_the_words(world: World) -> None:
    """A client's text of which only its begun reply is left."""
    id_ = MessageId.parse(world.post("heron news", "k-9"))
    world.work()
    assert id_ is not None
    key_ = f"C#{id_.conversation}", f"OUT#{id_.message}"
    world.table.update(key_, "REMOVE outcome, parts")


def put_aside(world: World, queue: str, dead: str) -> Envelope:
    """A text that one of the functions put aside, with what the other did with it."""
    world.text("a heron too many", "SM-x")
    (one,) = world.receive(queue)
    letter = Envelope.parse(one["Body"])
    world.put_aside(dead, letter)
    world.runtime.sqs.purge_queue(QueueUrl=world.url(queue))
    world.work()
    return letter


def erase(world: World, theirs: str = PERSON) -> None:
    world.runtime.clock += HOUR
    assert Erasure(world.stage, theirs, wait=5).run().good


def bring_back(world: World) -> None:
    """A line of somebody who was erased, as processing may write it once more."""
    one = line(world, stored(world))
    erase(world)
    put(world, AGAIN, one)


def each(*steps: Callable[[World], object]) -> Callable[[World], object]:
    return lambda world: [step(world) for step in steps]


def put_aside_and_forget_its_words(world: World) -> None:
    """... and what the sender had begun was lost as well."""
    letter = put_aside(world, "processing", "processing-dlq")
    message = letter.id.partition("-")[2]
    world.table.update((f"C#{letter.conversation}", f"OUT#{message}"), "REMOVE outcome, parts")


@dataclass(frozen=True)
class Damage:
    """Something that is done to the stores, what is found then, and what a second run still finds,
    when the functions have done their work."""

    name: str
    do: Callable[[World], object]
    found: dict[str, int]
    still: dict[str, int]


DAMAGES = [
    Damage("nothing", lambda w: None, {}, {}),
    # A text in the table.
    Damage("it is lost", lambda w: delete(w, "IN"), {"not_in_table": 1}, {}),
    Damage(
        "its text is changed",
        lambda w: update(w, "IN", "SET encoding = :new", new="morse"),
        {"altered": 1},
        {"altered": 1},
    ),
    Damage(
        "it loses a field",
        lambda w: update(w, "IN", "REMOVE valid"),
        {"altered": 1},
        {"altered": 1},
    ),
    Damage(
        "it loses when it came",
        lambda w: update(w, "IN", "REMOVE received_at"),
        {"other_copy": 1},
        {},
    ),
    Damage(
        "it was asked about otherwise, and names an object that is not there",
        each(lambda w: update(w, "IN", "SET lookups = :new", new={"heron": 1}), name_nowhere),
        {"wrong_object": 1, "other_copy": 1},
        {},
    ),
    Damage(
        "it names an object that is not there",
        name_nowhere,
        {"wrong_object": 1},
        {},
    ),
    Damage(
        "it names another's object",
        lambda w: update(w, "IN", "SET archive_key = :new", new=object_of(w, stored(w, "SM-3"))),
        {"wrong_object": 1},
        {},
    ),
    Damage(
        "it names none", lambda w: update(w, "IN", "REMOVE archive_key"), {"wrong_object": 1}, {}
    ),
    Damage(
        "somebody's item stands beside it",
        lambda w: w.table.insert({"pk": "C#heron", "sk": "IN#heron"}),
        {"unreadable": 1},
        {"unreadable": 1},
    ),
    # A text in the archive.
    Damage("its object is lost", lose_object, {"not_archived": 2}, {"not_archived": 2}),
    Damage(
        "its line is lost",
        lambda w: rewrite(w, lambda _: []),
        {"not_archived": 1},
        {"not_archived": 1},
    ),
    Damage(
        "its line is changed",
        lambda w: rewrite(w, lambda one: [{**one, "text": "another heron"}]),
        {"altered": 1},
        {"altered": 1},
    ),
    Damage(
        "its line stands twice in one object",
        lambda w: rewrite(w, lambda one: [one, one]),
        {"surplus_line": 1},
        {},
    ),
    Damage(
        "its line stands beside another of its id",
        lambda w: rewrite(w, lambda one: [{**one, "text": "another heron"}, one]),
        {"surplus_line": 1},
        {},
    ),
    Damage("its line stands in two objects", archive_again, {"surplus_line": 1}, {}),
    Damage(
        "its line stands in two objects, and it is lost by the table",
        each(archive_again, lambda w: delete(w, "IN")),
        {"not_in_table": 1, "surplus_line": 1},
        {},
    ),
    Damage(
        "its line stands in two objects, and it names one that is lost",
        each(archive_again, lose_object),
        {"wrong_object": 1, "not_archived": 1},
        {"not_archived": 1},
    ),
    Damage(
        "one of its lines is changed, and it names an object that is lost",
        each(archive_again, archive_changed, lambda w: rewrite(w, lambda _: []), name_nowhere),
        {"wrong_object": 1, "surplus_line": 1},
        {},
    ),
    Damage(
        "its object is no object of ours any more",
        lambda w: put(w, object_of(w, stored(w)), "heron", packed=False),
        {"unreadable": 1, "not_archived": 2},
        {"unreadable": 1, "not_archived": 2},
    ),
    Damage(
        "somebody's line stands beside it",
        lambda w: rewrite(w, lambda one: [one, {"id": "heron"}]),
        {"unreadable": 1},
        {"unreadable": 1},
    ),
    Damage(
        "table and archive lose it",
        each(lambda w: rewrite(w, lambda _: []), lambda w: delete(w, "IN")),
        {"not_stored": 1},
        {"not_stored": 1},
    ),
    Damage("its picture is lost", lose_a_picture, {"picture_lost": 1}, {"picture_lost": 1}),
    Damage(
        "what it names is no picture's key",
        lambda w: update(w, "IN", "SET media = :new", new=[{"key": 7}, "heron"]),
        {"other_copy": 1},
        {},
    ),
    # Its reply.
    Damage("it was never queued", never_queue, {"never_answered": 1}, {}),
    Damage("its reply is lost", lambda w: delete(w, "OUT"), {"never_answered": 1}, {}),
    Damage(
        "text and reply are lost by the table",
        each(lambda w: delete(w, "IN"), lambda w: delete(w, "OUT")),
        {"not_in_table": 1, "never_answered": 1},
        {},
    ),
    Damage(
        "its reply was only begun",
        lambda w: begin(w, "REMOVE outcome, parts"),
        {"never_ended": 1},
        {},
    ),
    Damage(
        "its reply has words, and nobody to send them",
        lambda w: begin(
            w,
            "SET parts.#1.#state = :waiting REMOVE parts.#1.provider_id",
            **{"#1": "1", "#state": "state"},
        ),
        {"never_ended": 1},
        {},
    ),
    Damage(
        "its reply is broken",
        lambda w: update(w, "OUT", "REMOVE kind"),
        {"unreadable": 1},
        {"unreadable": 1},
    ),
    Damage("a client's text is lost", lose_the_words, {"words_lost": 1}, {"words_lost": 1}),
    # What was put aside.
    Damage(
        "processing put it aside",
        lambda w: put_aside(w, "processing", "processing-dlq"),
        {"dead_lettered": 1},
        {"dead_lettered": 1},
    ),
    Damage(
        "processing put it aside, and the sender lost it",
        put_aside_and_forget_its_words,
        {"dead_lettered": 1},
        {"dead_lettered": 1},
    ),
    Damage(
        "the sender put it aside",
        lambda w: put_aside(w, "outbound.fifo", "outbound-dlq.fifo"),
        {"dead_lettered": 1},
        {"dead_lettered": 1},
    ),
    Damage(
        "... an event of a text that the table loses", lose_with_a_letter, {"not_in_table": 1}, {}
    ),
    Damage(
        "... more than is shown, and perhaps what is on no queue",
        never_queue_among_letters,
        {"dead_lettered": 1},
        {"dead_lettered": 1},
    ),
    # Who was erased.
    Damage("a person is erased", erase, {}, {}),
    Damage(
        "a line of theirs comes back, and there is only its reply",
        each(bring_back, lambda w: delete(w, "IN")),
        {"surplus_line": 1},
        {},
    ),
    Damage(
        "a line of theirs comes back",
        bring_back,
        {"surplus_line": 1},
        {},
    ),
]


@pytest.mark.usefixtures("now")
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_each_difference_is_found_by_its_name(world: World, damage: Damage) -> None:
    # GIVEN a stage that was damaged
    live(world)
    damage.do(world)
    # WHEN somebody looks, THEN that is found, and nothing else
    first = reconciled(world)
    assert found(first) == damage.found
    assert first.good == (not any(first.open.values()))
    assert first.under_way == 0
    # WHEN the functions have done what they were given, THEN only what is open is still found
    world.work()
    assert found(reconciled(world)) == damage.still


def test_every_kind_is_in_the_table() -> None:
    assert {kind for damage in DAMAGES for kind in damage.found} == {*PUT_RIGHT, *OPEN}


def test_what_is_put_right_is_as_it_was(world: World, now: FakeRuntime) -> None:
    # GIVEN a text that the table lost, with a second line of it
    live(world)
    items, objects = world.items(), world.objects()
    archive_again(world)
    delete(world, "IN")
    reconciled(world)
    # THEN the item is that of before, whichever object it names, and one line is left
    after = world.items()
    id_ = stored(world)
    pair = f"C#{id_.conversation}", f"IN#{id_.message}"
    assert {**after.pop(pair), "archive_key": ""} == {**items.pop(pair), "archive_key": ""}
    assert after == items
    said = [line for content in world.objects().values() for line in content.splitlines()]
    assert sorted(said) == sorted(
        line for content in objects.values() for line in content.splitlines()
    )


@pytest.mark.parametrize("copies", [lambda *two: two, lambda *two: reversed(two)])
def test_two_copies_that_were_worked_on_at_the_same_moment(
    world: World,
    now: FakeRuntime,
    monkeypatch: pytest.MonkeyPatch,
    copies: Callable[..., Iterator[Any]],
) -> None:
    # GIVEN a webhook that came twice, and two environments that both find it new
    world.text("the heron is here twice", "SM-x")
    (one,) = world.receive("processing", seconds=0)
    first = json.loads(one["Body"])
    second = {
        **first,
        "received_at": first["received_at"] + 7,
        "payload": {**first["payload"], "sent_at": first["received_at"] + 5},
    }
    with monkeypatch.context() as patch:
        patch.setattr(Table, "get_many", lambda self, keys: {})
        for body in copies(first, second):
            record = {"messageId": "m", "receiptHandle": "h", "body": json.dumps(body)}
            world.processing.handle({"Records": [record]}, Context())
    id_ = stored(world, "SM-x")
    assert line(world, id_)["received_at"] != item(world, id_)["received_at"]
    world.work()
    # WHEN they are held against each other, THEN they say the same
    life = item(world, id_)["expires_at"]
    assert found(reconciled(world)) == {"other_copy": 1}
    assert line(world, id_)["received_at"] == item(world, id_)["received_at"]
    assert line(world, id_)["sent_at"] == item(world, id_).get("sent_at")
    assert item(world, id_)["expires_at"] == life
    assert found(reconciled(world)) == {}


@pytest.mark.parametrize(("age", "states"), [(60.0, ["sent"]), (3600.0, ["expired"])])
def test_what_was_never_queued_is_answered_or_expires(
    world: World, now: FakeRuntime, monkeypatch: pytest.MonkeyPatch, age: float, states: list[str]
) -> None:
    # GIVEN a text that was stored and never queued
    monkeypatch.setattr(reconciliation, "RECENT", 30.0)
    never_queue(world)
    sent = world.sent
    assert found(reconciled(world, after=age)) == {"never_answered": 1}
    # WHEN the sender gets it, THEN it is answered, if it is not too old
    world.work()
    reply = world.ledger.find(stored(world, "SM-x"))
    assert reply is not None
    assert [reply.state] == states
    assert world.sent - sent == (states == ["sent"])


def test_a_stop_that_was_never_queued_counts_and_by_its_own_time(
    world: World, now: FakeRuntime
) -> None:
    world.text("stop", "SM-x")
    world.runtime.sqs.purge_queue(QueueUrl=world.url("outbound.fifo"))
    world.work()
    world.runtime.clock += HOUR
    world.text("start", "SM-y")
    world.work()
    assert found(reconciled(world)) == {"never_answered": 1}
    world.work()
    assert not world.consent.opted_out(PERSON)
    assert found(reconciled(world)) == {}


def test_what_the_provider_said_of_consent_is_not_lost(world: World, now: FakeRuntime) -> None:
    world.text("stop", "SM-x")
    world.work()
    world.runtime.clock += HOUR
    world.text("the heron may write", "SM-y", OptOutType="START")
    world.runtime.sqs.purge_queue(QueueUrl=world.url("outbound.fifo"))
    world.work()
    assert found(reconciled(world)) == {"never_answered": 1}
    world.work()
    assert not world.consent.opted_out(PERSON)


def test_what_was_put_on_the_queue_and_lost_again_is_put_there_again(
    world: World, now: FakeRuntime
) -> None:
    never_queue(world)
    for _ in range(2):
        assert found(reconciled(world)) == {"never_answered": 1}
        (one,) = world.receive("outbound.fifo", seconds=0)
        assert Envelope.parse(one["Body"]).id == str(stored(world, "SM-x"))
        world.runtime.sqs.purge_queue(QueueUrl=world.url("outbound.fifo"))


# --- what is under way ---------------------------------------------------------------------------


def test_a_picture_is_no_line_and_stays_with_its_text(world: World, now: FakeRuntime) -> None:
    with_picture(world)
    before, objects = item(world, stored(world)), world.objects()
    assert before["media"][0]["key"] in objects
    assert found(reconciled(world)) == {}

    delete(world, "IN")
    assert found(reconciled(world)) == {"not_in_table": 1}
    assert item(world, stored(world)) == before
    assert world.objects() == objects


@pytest.mark.usefixtures("now")
@pytest.mark.parametrize(
    ("queue", "age", "kinds"),
    [
        # Nothing is on the queues: what has come since is left alone.
        ("", RECENT - 1, {}),
        ("", RECENT + 1, {"never_answered": 1}),
        # Something is: it may be that.
        ("outbound.fifo", RECENT + 1, {}),
        ("outbound.fifo", WAITING - 1, {}),
        ("outbound.fifo", WAITING + 1, {"never_answered": 1}),
        ("processing", RECENT + 1, {"never_answered": 1}),
    ],
)
def test_what_may_be_under_way_is_no_difference(
    world: World, queue: str, age: float, kinds: dict[str, int]
) -> None:
    never_queue(world)
    if queue:
        world.put_aside(queue, inbound("heron", id_="SM-on-the-queue"))
    one = reconciled(world, after=age)
    assert (found(one), one.under_way) == (kinds, 0 if kinds else 1)
    assert one.good


@pytest.mark.usefixtures("now")
@pytest.mark.parametrize(
    ("age", "kinds"),
    [(RECENT - 1, {}), (WAITING - 1, {}), (WAITING + 1, {"not_in_table": 1})],
)
def test_a_batch_that_processing_may_come_back_to_is_left_to_it(
    world: World, monkeypatch: pytest.MonkeyPatch, age: float, kinds: dict[str, int]
) -> None:
    # GIVEN a batch of which processing died between archive and table, and which is still queued
    world.text("is the heron early", "SM-1")
    (one,) = world.receive("processing", seconds=0)
    record = {"messageId": "m", "receiptHandle": "h", "body": one["Body"]}

    def die(self: Table, item: object) -> None:
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(Table, "insert", die)
        with pytest.raises(Died):
            world.processing.handle({"Records": [record]}, Context())
    (body,) = world.receive("outbound.fifo", seconds=0)
    world.sender.handle({"Records": [record | {"body": body["Body"]}]}, Context())
    world.runtime.sqs.purge_queue(QueueUrl=world.url("outbound.fifo"))
    # (What was written a moment ago is not even read.)
    monkeypatch.setattr(Reconciliation, "_read_archive", at_any_age)
    assert found(reconciled(world, after=age)) == kinds
    # THEN it ends as one item and one line in either case
    world.work()
    assert found(reconciled(world)) == {}


READ_ARCHIVE = Reconciliation._read_archive


def at_any_age(self: Reconciliation, until: float) -> None:
    READ_ARCHIVE(self, until + HOUR + RECENT)


def test_an_object_that_was_written_just_now_is_left_alone(world: World, now: FakeRuntime) -> None:
    live(world)
    archive_again(world)
    world.runtime.clock = time.time()
    assert found(reconciled(world, after=RECENT - 60)) == {}
    assert found(reconciled(world, after=120)) == {"surplus_line": 1}


def test_what_was_archived_just_now_is_not_said_to_be_lost(world: World, now: FakeRuntime) -> None:
    # GIVEN a text that was stored an hour after it came, and that the table lost at once
    live(world)
    delete(world, "IN")
    world.runtime.clock = time.time()
    # THEN it is left to the run that reads its object
    one = reconciled(world, after=RECENT - 60)
    assert found(one) == {}
    assert one.under_way == 1
    assert found(reconciled(world, after=120)) == {"not_in_table": 1}


def test_what_settles_while_it_runs_is_no_difference(
    world: World, now: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN texts that are worked on between the reading of the table and of the archive
    live(world)

    def meanwhile(self: Reconciliation, until: float) -> None:
        world.text("is the heron quick", "SM-x")
        world.runtime.clock -= 2 * HOUR
        world.text("was the heron quick", "SM-y")
        world.runtime.clock += 2 * HOUR
        world.work()
        at_any_age(self, until)

    monkeypatch.setattr(Reconciliation, "_read_archive", meanwhile)
    one = reconciled(world)
    assert found(one) == {}
    assert one.lines > one.texts  # it did read them


def test_what_processing_stores_meanwhile_stays(
    world: World, now: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a text whose item comes between the look and the making of another
    live(world)
    there = item(world, stored(world))
    archive_again(world)
    delete(world, "IN")
    insert = Table.insert

    def overtaken(self: Table, one: dict[str, Any]) -> dict[str, Any] | None:
        insert(self, there)
        return insert(self, one)

    with monkeypatch.context() as patch:
        patch.setattr(Table, "insert", overtaken)
        assert found(reconciled(world)) == {}
    assert item(world, stored(world)) == there
    assert found(reconciled(world)) == {"surplus_line": 1}


# --- what is past --------------------------------------------------------------------------------


@pytest.mark.usefixtures("now")
@pytest.mark.parametrize(
    ("days", "do", "kinds"),
    [
        (398, lambda w: delete(w, "IN"), {"not_in_table": 1}),
        (399.5, lambda w: delete(w, "IN"), {}),
        (401, lambda w: delete(w, "IN"), {}),
        (398, lambda w: delete(w, "OUT"), {"never_answered": 1}),
        (399.5, lambda w: delete(w, "OUT"), {}),
        (399.9, lose_object, {"not_archived": 2}),
        (401, lose_object, {}),
        (399.9, lose_a_picture, {"picture_lost": 1}),
        (401, lose_a_picture, {}),
    ],
)
def test_what_has_reached_the_end_of_its_life_is_no_difference(
    world: World, days: float, do: Callable[[World], None], kinds: dict[str, int]
) -> None:
    live(world)
    do(world)
    assert found(reconciled(world, after=days * DAY)) == kinds


def test_an_archive_that_keeps_for_less_than_the_table(world: World, now: FakeRuntime) -> None:
    live(world)
    lose_object(world)
    s3, bucket = world.stage.aws.client("s3"), world.stage.stores.bucket
    rules = [{"ID": "x", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 90}}]
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": rules})
    try:
        assert found(reconciled(world, after=89 * DAY)) == {"not_archived": 2}
        assert found(reconciled(world, after=2 * DAY)) == {}
    finally:
        s3.delete_bucket_lifecycle(Bucket=bucket)


def test_since_looks_at_what_came_since(world: World, now: FakeRuntime) -> None:
    start = world.runtime.clock
    world.runtime.clock -= 10 * DAY
    live(world)
    delete(world, "IN")
    world.runtime.clock = start
    world.text("the heron of today", "SM-t")
    world.text("the other heron of today", "SM-u", OTHER)
    world.work()
    delete(world, "OUT", stored(world, "SM-t"))
    one = reconciled(world, since=start)
    assert (found(one), one.texts, one.lines) == ({"never_answered": 1}, 2, 2)
    world.work()
    assert found(reconciled(world, since=start - 11 * DAY)) == {"not_in_table": 1}


# --- a death, and another at the same time -------------------------------------------------------


def test_a_death_after_any_write_is_made_good_by_the_next_run(
    world: World, now: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN something of all that can be put right
    def damaged() -> None:
        live(world)
        never_queue(world)
        archive_again(world)
        delete(world, "IN", stored(world, "SM-3"))
        second = stored(world, "SM-2", OTHER)
        world.table.update(
            (f"C#{second.conversation}", f"IN#{second.message}"),
            "SET archive_key = :new",
            values={":new": NOWHERE},
        )

    client: Any = BaseClient
    call = client._make_api_call
    writes = ("PutItem", "UpdateItem", "PutObject", "DeleteObject", "SendMessage")
    deaths = 0
    for place in itertools.count():
        world.clear()
        world.runtime.clock = time.time() - HOUR
        damaged()
        left = [place]

        def dying(self: Any, operation: str, arguments: Any, left: list[int] = left) -> Any:
            answer = call(self, operation, arguments)
            if operation in writes:
                left[0] -= 1
                if left[0] < 0:
                    raise Died
            return answer

        # WHEN the command dies after one of its writes
        with monkeypatch.context() as patch:
            patch.setattr(client, "_make_api_call", dying)
            try:
                reconciled(world)
            except Died:
                deaths += 1
            else:
                break
        # THEN the next run does the rest, and a third finds nothing
        assert reconciled(world).good
        world.work()
        assert found(reconciled(world)) == {}
        assert world.ledger.find(stored(world, "SM-x")) is not None
    assert deaths == 4


def test_of_two_who_take_lines_out_of_one_object_neither_loses_one(
    world: World, now: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN an object with two lines that are surplus, and one that is not
    live(world)
    mine, theirs = line(world, stored(world)), line(world, stored(world, "SM-2", OTHER))
    other = line(world, stored(world, "SM-3"))
    key_ = object_of(world, stored(world, "SM-3"))
    put(world, key_, *lines(world, key_), mine, theirs)
    erased: list[bool] = []
    read = Stores.object

    def between(self: Stores, key: str) -> tuple[bytes, str] | None:
        found_ = read(self, key)
        if key == key_ and looks.pop():
            # An erasure of the other person writes it, too.
            rest = [one for one in lines(world, key_) if one["id"] != theirs["id"]]
            put(world, key_, *rest)
            erased.append(True)
        return found_

    # (It is read once to be compared, once to be judged, and then to be rewritten.)
    looks = [False, False, True, False, False]
    monkeypatch.setattr(Stores, "object", between)
    one = reconciled(world)
    monkeypatch.undo()
    assert erased
    assert one.put_right["surplus_line"]
    ids = [line["id"] for line in lines(world, key_)]
    assert other["id"] in ids
    assert not {mine["id"], theirs["id"]} & set(ids)


# --- the command ---------------------------------------------------------------------------------


def spillway(world: World, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    @contextmanager
    def named(name: str) -> Iterator[Stage]:
        yield world.stage

    monkeypatch.setattr(reconcile, "stage_named", named)
    result = CliRunner().invoke(cli.app, ["reconcile", "--wait", "0", *arguments])
    assert "415555" not in result.output
    assert "heron" not in result.output
    return result


def test_the_command_says_what_it_found_and_what_to_do(
    world: World, now: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    live(world)
    world.runtime.clock += 3 * HOUR
    result = spillway(world, monkeypatch)
    assert result.exit_code == 0, result.output
    assert "6 texts and 7 replies in the table, 6 lines in" in result.output
    assert "Nothing is open." in result.output

    archive_again(world)
    lose_object(world)
    result = spillway(world, monkeypatch)
    assert result.exit_code == 1
    assert f"put right  wrong_object: 1  ({PUT_RIGHT['wrong_object']})" in result.output
    assert f"open  not_archived: 1  ({OPEN['not_archived']})" in result.output
    assert f"  {stored(world, 'SM-2', OTHER)}\n" in result.output
    assert "Nothing is open." not in result.output


def test_the_command_as_json(
    world: World, now: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    live(world)
    lose_object(world)
    world.text("is the heron late", "SM-z")
    world.runtime.clock += HOUR
    result = spillway(world, monkeypatch, "--json")
    assert result.exit_code == 1
    read = json.loads(result.stdout)
    assert sorted(read["open"]["not_archived"]) == sorted(
        [str(stored(world)), str(stored(world, "SM-2", OTHER))]
    )
    assert (read["good"], read["texts"], read["unseen"]) == (
        False,
        6,
        {"processing": 1, "outbound.fifo": 1},
    )


@pytest.mark.parametrize(
    ("typed", "told"),
    [("yesterday", "--since: must be a date or time"), ("12", "--since: must be a date or time")],
)
def test_a_time_that_is_none_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch, typed: str, told: str
) -> None:
    result = spillway(world, monkeypatch, "--since", typed)
    assert isinstance(result.exception, Problem)
    assert told in str(result.exception)


# --- what it takes -------------------------------------------------------------------------------


class Many:
    """Stores of many texts that agree, made up as they are read."""

    bucket = ""
    LINES = 50

    def __init__(self, number: int, pictures: bool) -> None:
        self.number = number
        # (As S3 lists them.)
        self.pictures = sorted(map(self._picture, range(number))) if pictures else []

    def size(self) -> tuple[int, int]:
        return self.number, 0

    def items(self) -> Iterator[dict[str, Any]]:
        for at in range(self.number):
            one = item_of(self._line(at), self._key(at), 400)
            yield kept(one)
            yield {
                "pk": one["pk"],
                "sk": one["sk"].replace("IN", "OUT"),
                "kind": "inbound",
                "provider": "twilio",
                "received_at": one["received_at"],
                "outcome": "expired",
            }

    def objects(self, prefix: str, since: float = 0.0, until: float = 0.0) -> Iterator[str]:
        if prefix == "media/":
            return iter(self.pictures)
        return (self._key(at) for at in range(0, self.number, self.LINES))

    def object(self, key_: str) -> tuple[bytes, str]:
        first = int(key_.rpartition("/")[2].partition(".")[0], 16)
        some = range(first, min(first + self.LINES, self.number))
        return b"".join(json.dumps(self._line(at)).encode() + b"\n" for at in some), "etag"

    def _key(self, at: int) -> str:
        return f"messages/2026/11/24/{at - at % self.LINES:024x}.jsonl.gz"

    def _id(self, at: int) -> str:
        # (The table has them in the order of hashes, the archive by time.)
        return f"{at * 2654435761 % 2**32:024x}-{at:024x}"

    def _picture(self, at: int) -> str:
        return f"media/{self._id(at)}-1"

    def _line(self, at: int) -> dict[str, Any]:
        media = [{"url": "https://a.example", "content_type": "image/png"}]
        return {
            "id": self._id(at),
            "media": [{**one, "key": self._picture(at)} for one in media if self.pictures],
            "from": PERSON,
            "to": OURS,
            "text": "heron",
            "group": False,
            "received_at": float(at),
        }


def test_memory_does_not_grow_with_the_stores(
    world: World, now: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk = []

    def measured(self: Reconciliation, until: float) -> None:
        pages, size = (
            self._db.execute(f"PRAGMA {what}").fetchone()[0] for what in ("page_count", "page_size")
        )
        on_disk.append(pages * size)
        READ_ARCHIVE(self, until)

    monkeypatch.setattr(Reconciliation, "_read_archive", measured)

    def peak(number: int, pictures: bool = True) -> int:
        stage = replace(world.stage, stores=Many(number, pictures))  # type: ignore[arg-type]
        tracemalloc.start()
        one = Reconciliation(stage, wait=0).run()
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (one.texts, one.replies, one.lines) == (number, number, number)
        assert found(one) == {}
        return most

    peak(100)  # (What is imported and made once.)
    assert peak(4000) < 1.3 * peak(1000)
    peak(4000, pictures=False)
    peak(1000, pictures=False)
    # On disk the page says 0.3 GB for a million, of texts as of pictures: a row each, and once more
    # while they are sorted.
    _, many, few, many_texts, few_texts = on_disk
    of_texts = 2 * (many_texts - few_texts) / 3000
    assert of_texts < 300
    assert 2 * (many - few) / 3000 - of_texts < 300
    said = (DOCS / "OPERATING.md").read_text()
    assert "less than 0.3 GB for a million,\nand as much for a million pictures" in said
