"""Dead letters on real queues: what is listed, what a redrive leaves wherever it dies, and what is
lost with a letter that is dropped."""

from __future__ import annotations

import base64
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from typer.testing import CliRunner

from chalicelib.batches import Batch
from chalicelib.consent import ConsentList
from chalicelib.ledger import DAY, Ledger, draft
from chalicelib.messages import DeliveryReceipt, Keys, MessageId
from chalicelib.queues import Envelope, Kind, Queues
from chalicelib.statements import Statement, id_of
from chalicelib.table import Table
from spillway import cli, stores
from spillway.operate import dlq, dropping, letters, redriving
from spillway.operate.dropping import Drop
from spillway.operate.erasure import Erasure
from spillway.operate.letters import BY_SQS, SOURCES, Letter, find
from spillway.operate.redriving import CAME_AGAIN, NOT_OURS, TOO_OLD, Redrive, Redriven
from spillway.operate.status import read_status
from spillway.problem import Problem
from spillway.stage import Stage
from tests.fakes import HASH_KEY, OURS, Context, FakeRuntime, inbound, outgoing, sqs_event
from tests.operate.world import NAME

KEYS = Keys(HASH_KEY)
PERSON, OTHER = "+14155550142", "+14155550143"
PROCESSING, SENDING = SOURCES
REASON = "too_old: lookup: line"


# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_DeleteMessage.html
EXPIRED = {
    "Error": {"Code": "InvalidParameterValue", "Message": "The receipt handle has expired"},
    "ResponseMetadata": {"HTTPStatusCode": 400},
}


class Died(BaseException):
    """The end of the command: nothing after it is run."""


class World:
    """A stage's real queues, with letters as the functions put them aside."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.runtime = FakeRuntime()
        for service in ("dynamodb", "s3", "sqs"):
            self.runtime.__dict__[service] = stage.aws.client(service)
        self.runtime.clock = time.time() - 60
        self.queues = Queues(self.runtime, NAME)
        self.table = Table(self.runtime, NAME)
        self.ledger = Ledger(self.table, self.runtime, keep_days=400)
        self.consent = ConsentList(self.table, KEYS, "default")

    @property
    def now(self) -> float:
        return self.runtime.clock

    def text(self, words: str, sid: str, theirs: str = PERSON, at: float = 0.0) -> Envelope:
        received_at = self.now - 100 + at
        return inbound(words, id_=sid, theirs=theirs, received_at=received_at)

    def put_aside(
        self, queue: str, *bodies: Envelope | str, reason: str = REASON, at: float = 0.0
    ) -> None:
        """As a function does, which had received each 7 times."""
        for body in bodies:
            text = body if isinstance(body, str) else body.body()
            group = ("" if isinstance(body, str) else body.conversation) or "heron"
            self.queues.dead_letter(
                SOURCES[queue],
                text,
                group=group,
                source_id=self.runtime.new_id(),
                history={
                    "reason": reason,
                    "receives": "7",
                    "starts": "2",
                    "first_sent_at": str(int(self.now - 100)),
                    "dead_lettered_at": str(int(self.now + at)),
                },
            )

    def send(self, queue: str, body: str) -> None:
        """As SQS itself puts a message aside, or somebody by hand."""
        self.stage.stores.send(queue, body, group="heron", id_=self.runtime.new_id())

    def letters(self, queue: str) -> list[Letter]:
        found, unseen = find(self.stage, queue)
        assert unseen == 0
        return found

    def bodies(self, queue: str) -> list[str]:
        """What stands on a queue, in its order; it is gone then."""
        found = []
        url = self.stage.stores.urls[queue]
        while some := self.runtime.sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get(
            "Messages"
        ):
            for one in some:
                found.append(one["Body"])
                self.runtime.sqs.delete_message(QueueUrl=url, ReceiptHandle=one["ReceiptHandle"])
        return found

    def envelopes(self, queue: str) -> list[Envelope]:
        return [Envelope.parse(body) for body in self.bodies(queue)]

    def dropped(self) -> list[str]:
        return list(self.stage.stores.objects("quarantine/"))

    def clear(self) -> None:
        for queue in stores.QUEUES:
            self.runtime.sqs.purge_queue(QueueUrl=self.stage.stores.urls[queue])
        for key in self.stage.stores.objects(""):
            self.runtime.s3.delete_object(Bucket=self.stage.stores.bucket, Key=key)
        for item in self.stage.stores.items():
            self.runtime.dynamodb.delete_item(
                TableName=f"spillway-{NAME}",
                Key={"pk": {"S": item["pk"]}, "sk": {"S": item["sk"]}},
            )
        self.runtime.clock = time.time() - 60


@pytest.fixture(scope="module")
def whole(stage: Stage) -> World:
    return World(stage)


@pytest.fixture
def world(whole: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    # (For what somebody who died was looking at.)
    monkeypatch.setattr(stores, "_LOOK", 2)
    monkeypatch.setattr(letters, "PATIENCE_OF_A_LOOK", 0.5)
    monkeypatch.setattr(redriving, "PATIENCE_OF_A_LOOK", 0.5)
    monkeypatch.setattr(redriving, "PATIENCE", 4.0)
    monkeypatch.setattr(dropping, "PATIENCE", 4.0)
    yield whole
    whole.clear()


@pytest.fixture
def run(world: World, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command on the stage: its exit code, and what it says as JSON."""

    @contextmanager
    def named(name: str) -> Iterator[Stage]:
        yield world.stage

    monkeypatch.setattr(dlq, "stage_named", named)

    def invoke(*arguments: str) -> tuple[int, Any]:
        result = CliRunner().invoke(cli.app, ["dlq", *arguments], catch_exceptions=False)
        said = json.loads(result.stdout) if "--json" in arguments else result.output
        return result.exit_code, said

    return invoke


def redriven(
    world: World, queues: Sequence[str] = (PROCESSING, SENDING), **options: Any
) -> Redriven:
    options = {"wanted": lambda letter: True, "rate": 1000, **options}
    return Redrive(world.stage, queues, **options).run()


# --- looking -------------------------------------------------------------------------------------


def test_a_letter_is_what_its_function_wrote(world: World) -> None:
    text = world.text("is the heron awake?", "SM1")
    world.put_aside(PROCESSING, text)
    (letter,) = world.letters(PROCESSING)
    assert (letter.kind, letter.message, letter.reason) == ("inbound", text.id, REASON)
    assert (letter.receives, letter.starts) == (7, 2)
    assert letter.put_aside_at == int(world.now)
    assert letter.received_at == text.received_at
    assert letter.numbers() == (OURS, PERSON)
    # AND it is shown to others again at once
    assert world.stage.stores.depth(PROCESSING).waiting == 1


def test_what_sqs_put_aside_has_no_history(world: World) -> None:
    world.send(PROCESSING, world.text("heron", "SM1").body())
    world.send(SENDING, "heron")
    (ours,) = world.letters(PROCESSING)
    (garbage,) = world.letters(SENDING)
    for letter in (ours, garbage):
        assert (letter.reason, letter.receives, letter.starts) == (BY_SQS, None, None)
        assert abs(letter.put_aside_at - time.time()) < 20
    assert (garbage.kind, garbage.message, garbage.envelope) == ("", "", None)


def test_what_the_functions_put_aside_can_be_read(world: World) -> None:
    # GIVEN a message that a batch really dead-letters
    record = {**sqs_event(["heron"])["Records"][0], "messageId": world.runtime.new_id()}
    batch = Batch(
        world.runtime,
        world.queues,
        world.table,
        SOURCES[SENDING],
        {"Records": [record]},
        Context(world.runtime),
        reporting=True,
    )
    batch.each(lambda envelope, record: None, needs=1)
    (letter,) = world.letters(SENDING)
    assert (letter.reason, letter.receives, letter.starts) == ("not_an_envelope", 1, 1)
    assert letter.put_aside_at == int(world.now)


def receipt(text: Envelope, status: Any = "delivered", error: str = "", part: int = 1) -> Envelope:
    told = DeliveryReceipt("twilio", "SM-1", f"{text.id}-{part}", status, error)
    return Envelope("receipt", text.conversation, "", text.received_at, asdict(told))


@pytest.mark.parametrize(
    ("name", "found"),
    [("id", 1), ("message", 2), ("reference", 1), ("d" * 24 + "-" + "e" * 24, 0), ("", 0)],
)
def test_a_letter_is_named_by_its_id_or_its_messages(world: World, name: str, found: int) -> None:
    text = world.text("heron", "SM1")
    world.put_aside(PROCESSING, text, receipt(text), world.text("heron", "SM2"), "heron")
    every = world.letters(PROCESSING)
    (first,) = (one for one in every if one.message == text.id)
    names = {"id": first.id, "message": text.id, "reference": f"{text.id}-1"}
    assert sum(one.is_named([names.get(name, name)]) for one in every) == found


def test_the_list_says_all_but_numbers_and_words(world: World, run: Any) -> None:
    text, sale = world.text("is the heron awake?", "SM1"), outgoing("heron sale", theirs=OTHER)
    world.put_aside(PROCESSING, text)
    world.put_aside(SENDING, sale, reason="never_ended", at=5)
    world.send(SENDING, f"heron {PERSON}")
    code, said = run("list", "--json")
    assert code == 0
    assert said["unseen"] == {PROCESSING: 0, SENDING: 0}
    assert [
        (one["queue"], one["kind"], one["message"], one["reason"], one["receives"], one["theirs"])
        for one in said["letters"]
    ] == [
        (PROCESSING, "inbound", text.id, REASON, 7, "…42"),
        (SENDING, "outgoing", sale.id, "never_ended", 7, "…43"),
        (SENDING, "", "", BY_SQS, None, ""),
    ]
    assert not [one for one in (PERSON, OTHER, OURS, "heron") if one in json.dumps(said)]
    # AND as a table
    code, shown = run("list")
    assert code == 0
    for one in said["letters"]:
        assert one["id"] in shown
        assert one["reason"] in shown
    assert "writes no history" in shown
    assert not [one for one in (PERSON[1:], OTHER[1:], "heron") if one in shown]
    # WHEN they are asked for
    _, said = run("list", "--json", "--texts", "--queue", "sending")
    assert [(one["theirs"], one["text"]) for one in said["letters"]] == [
        (OTHER, "heron sale"),
        ("", f"heron {PERSON}"),
    ]


def test_many_are_summarised_first(world: World, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dlq, "MANY", 3)
    world.put_aside(PROCESSING, *[world.text("heron", f"SM{n}") for n in range(4)])
    world.put_aside(PROCESSING, "heron", reason="not_an_envelope")
    _, shown = run("list", "--queue", "processing")
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert lines[0] == f"{PROCESSING}: 5"
    assert lines[2].startswith(f"{REASON} inbound 4 ")
    assert lines[3].startswith("not_an_envelope ? 1 ")
    assert "... and 2 younger ones: --json has all" in lines


def test_what_stands_behind_ten_is_counted(world: World, run: Any) -> None:
    world.put_aside(SENDING, *[world.text("heron", f"SM{n}") for n in range(12)])
    _, said = run("list", "--json")
    assert len(said["letters"]) == 10
    assert said["unseen"] == {PROCESSING: 0, SENDING: 2}


def test_a_letter_is_shown_with_what_is_kept_of_its_message(world: World, run: Any) -> None:
    # GIVEN a text that was answered, and put aside by processing alone
    text = world.text("is the heron awake?", "SM1")
    world.put_aside(PROCESSING, text)
    answer(world, text, "it is")
    code, said = run("show", text.id, "--json")
    assert code == 0
    (one,) = said["letters"]
    assert one["history"]["starts"] == "2"
    assert one["kept"] == [
        "ledger: part 1 claimed, attempt 1",
        "ledger: part 1 sent, the provider's id SM-out",
    ]
    assert one["lost_if_dropped"] == "a text that is not in the table"
    assert one["may_be_dropped"]
    code, shown = run("show", one["id"])
    assert code == 0
    for part in (REASON, "part 1 sent", "not in the table", "…42"):
        assert part in shown
    assert not [word for word in (PERSON, "heron") if word in shown]
    assert "is the heron awake?" in run("show", one["id"], "--texts")[1]
    with pytest.raises(Problem, match="spillway dlq list"):
        run("show", "heron")


def answer(world: World, text: Envelope, words: str) -> None:
    id_ = MessageId.parse(text.id)
    assert id_ is not None
    reply = world.ledger.open(
        id_,
        kind="inbound",
        provider="twilio",
        ours=OURS,
        theirs=text.inbound().sender,
        callback_url="https://h.example",
        received_at=text.received_at,
    )
    reply = draft(reply, [(words, ())])
    part = world.ledger.claim(reply, (reply.parts or ())[0], owner="me", lease_until=world.now + 65)
    world.ledger.sent(reply, part, "SM-out")


# --- putting back --------------------------------------------------------------------------------


def test_letters_go_back_as_they_were_and_their_age_counts_from_now(world: World) -> None:
    text, sale = world.text("is the h\u00e9ron awake?\x00\ud800", "SM1"), outgoing("heron sale")
    # (With what another version of our code may have put in.)
    newer = json.dumps({**json.loads(text.body()), "added": {"heron": 1}})
    world.put_aside(PROCESSING, newer)
    world.put_aside(SENDING, sale)
    before = time.time()
    done = redriven(world)
    assert done.good
    assert done.sent == {PROCESSING: 1, SENDING: 1}
    (back,) = (json.loads(body) for body in world.bodies("processing"))
    assert before <= back.pop("redriven_at") <= time.time()
    assert back == {n: v for n, v in json.loads(newer).items() if n != "redriven_at"}
    (sent,) = world.envelopes("outbound.fifo")
    assert sent.redriven_at is not None
    assert Envelope(**{**asdict(sent), "redriven_at": None}).body() == sale.body()
    assert [world.letters(queue) for queue in SOURCES] == [[], []]


def test_a_conversation_keeps_its_order_however_many_it_has(world: World) -> None:
    # GIVEN more letters of two conversations than SQS shows at a time, and one that is not ours
    mine = [world.text("heron", f"SM{n}") for n in range(23)]
    others = [world.text("heron", f"SO{n}", OTHER) for n in range(12)]
    world.put_aside(SENDING, *[one for pair in zip(mine, others, strict=False) for one in pair])
    world.put_aside(SENDING, *mine[12:])
    world.send(SENDING, "heron")
    done = redriven(world)
    assert done.sent == {PROCESSING: 0, SENDING: 35}
    assert {reason: len(ids) for reason, ids in done.left.items()} == {NOT_OURS: 1}
    back = [envelope.id for envelope in world.envelopes("outbound.fifo")]
    assert [id_ for id_ in back if id_ in {one.id for one in mine}] == [one.id for one in mine]
    assert [id_ for id_ in back if id_ in {one.id for one in others}] == [o.id for o in others]


def test_the_same_letter_can_be_put_back_twice_within_minutes(world: World) -> None:
    text = world.text("heron", "SM1")
    for _ in range(2):
        world.put_aside(SENDING, text)
        assert redriven(world).sent[SENDING] == 1
        # (FIFO swallows an id that it saw in the last 5 minutes.)
        assert [one.id for one in world.envelopes("outbound.fifo")] == [text.id]


@contextmanager
def dying(stage: Stage, after: int, when: str) -> Iterator[list[str]]:
    """At the nth call that changes a queue the process dies, before it or after."""
    made: list[str] = []
    changing = ("SendMessage", "DeleteMessage")

    def count(model: Any, **_: object) -> None:
        if model.name in changing:
            made.append(model.name)
        if len(made) >= after:
            raise Died

    client = stage.aws.client("sqs")
    client.meta.events.register(when, count)
    try:
        yield made
    finally:
        client.meta.events.unregister(when, count)


@pytest.mark.parametrize("when", ["before-call", "after-call"])
def test_a_death_at_any_call_loses_nothing(world: World, when: str) -> None:
    mine = [world.text("heron", f"SM{n}") for n in range(2)]
    for after in itertools.count(1):
        world.put_aside(PROCESSING, mine[0])
        world.put_aside(SENDING, *mine)
        # WHEN it dies
        try:
            with dying(world.stage, after, when):
                assert redriven(world).good
            break
        except Died:
            pass
        # THEN another run puts the rest back, and each is there, once or twice and in its order
        assert redriven(world).good
        back = [[one.id for one in world.envelopes(queue)] for queue in SOURCES.values()]
        assert set(back[0]) == {mine[0].id}
        assert list(dict.fromkeys(back[1])) == [one.id for one in mine]
        assert sum(map(len, back)) in (3, 4)
    assert after == 7


def test_what_fails_again_is_left(world: World) -> None:
    # GIVEN a function that puts the message aside again at once
    world.put_aside(PROCESSING, world.text("heron", "SM1"), world.text("heron", "SM2"))
    fails: list[str] = []

    def tell(queue: str, done: int, total: int) -> None:
        for body in world.bodies("processing"):
            fails.append(body)
            # (Its clock is slow: only the stamp says that this run has redriven it.)
            world.put_aside(PROCESSING, body, at=-60)

    done = redriven(world, tell=tell)
    # THEN each is redriven once, and said
    assert len(fails) == 2
    assert (done.sent[PROCESSING], done.good) == (2, False)
    assert sorted(done.left[CAME_AGAIN]) == sorted(one.id for one in world.letters(PROCESSING))
    # AND another run tries once more
    assert redriven(world).sent[PROCESSING] == 2


def test_what_is_put_aside_meanwhile_is_left_and_what_stands_behind_it(world: World) -> None:
    texts = [world.text("heron", f"SM{n}") for n in range(3)]
    world.put_aside(SENDING, texts[0])
    world.put_aside(SENDING, texts[1], at=120)
    world.put_aside(SENDING, texts[2])
    done = redriven(world)
    assert [one.id for one in world.envelopes("outbound.fifo")] == [texts[0].id]
    assert (done.sent[SENDING], len(done.left[CAME_AGAIN])) == (1, 2)


def test_what_the_sender_would_refuse_is_left(world: World) -> None:
    old = world.text("heron", "SM1", at=-399.5 * DAY)
    world.put_aside(PROCESSING, old)
    world.put_aside(SENDING, old)
    done = redriven(world)
    # (Processing stores it, however old it is.)
    assert done.sent == {PROCESSING: 1, SENDING: 0}
    assert list(done.left) == [TOO_OLD]


def test_a_letter_that_somebody_looks_at_is_waited_for(world: World) -> None:
    world.put_aside(PROCESSING, world.text("heron", "SM1"))
    url = world.stage.stores.urls[PROCESSING]
    assert world.runtime.sqs.receive_message(QueueUrl=url, VisibilityTimeout=2)["Messages"]
    assert redriven(world).sent[PROCESSING] == 1


def test_a_letter_that_is_not_shown_in_time_is_said(
    world: World, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redriving, "PATIENCE", 0.5)
    world.put_aside(PROCESSING, world.text("heron", "SM1"))
    url = world.stage.stores.urls[PROCESSING]
    (one,) = world.runtime.sqs.receive_message(QueueUrl=url, VisibilityTimeout=60)["Messages"]
    code, said = run("redrive", "--json")
    assert (code, said["unseen"][PROCESSING], said["good"]) == (1, 1, False)
    world.runtime.sqs.delete_message(QueueUrl=url, ReceiptHandle=one["ReceiptHandle"])


@contextmanager
def too_late(stage: Stage) -> Iterator[None]:
    """The first deletion is refused as AWS does on a FIFO queue, where a handle ends with its time
    (the emulator's does not)."""
    refusals = iter([(SimpleNamespace(status_code=400), EXPIRED)])
    client, event = stage.aws.client("sqs"), "before-call.sqs.DeleteMessage"

    def refuse(**_: object) -> object:
        return next(refusals, None)

    client.meta.events.register(event, refuse)
    try:
        yield
    finally:
        client.meta.events.unregister(event, refuse)
    assert next(refusals, None) is None


def test_a_letter_whose_deletion_came_too_late_is_not_sent_again(world: World) -> None:
    world.put_aside(SENDING, world.text("heron", "SM1"))
    with too_late(world.stage):
        done = redriven(world)
    assert (done.sent[SENDING], done.good, len(world.bodies("outbound.fifo"))) == (1, True, 1)
    assert world.letters(SENDING) == []


def test_a_letter_whose_deletion_came_too_late_is_dropped_all_the_same(world: World) -> None:
    world.put_aside(SENDING, world.text("heron", "SM1"))
    (letter,) = world.letters(SENDING)
    with too_late(world.stage):
        done = Drop(world.stage).run(SENDING, {letter.id})
    assert (done.good, list(done.kept.values())) == (True, world.dropped())
    assert world.letters(SENDING) == []


def test_no_more_than_so_many_go_in_a_second(world: World) -> None:
    world.put_aside(PROCESSING, *[world.text("heron", f"SM{n}") for n in range(5)])
    began = time.monotonic()
    redriven(world, rate=5)
    assert 1.0 <= time.monotonic() - began < 5


def test_a_dry_run_changes_nothing(world: World, run: Any) -> None:
    texts = [world.text("heron", f"SM{n}") for n in range(3)]
    world.put_aside(PROCESSING, *texts)
    world.put_aside(SENDING, *texts, "heron")
    before = [[one.id for one in world.letters(queue)] for queue in SOURCES]
    code, said = run("redrive", "--dry-run", "--json")
    assert (code, said["sent"]) == (1, {PROCESSING: 3, SENDING: 3})
    assert list(said["left"]) == [NOT_OURS]
    assert [[one.id for one in world.letters(queue)] for queue in SOURCES] == before
    assert [world.bodies(queue) for queue in SOURCES.values()] == [[], []]
    code, shown = run("redrive", "--dry-run")
    assert "3 would be put back" in shown


@pytest.mark.parametrize(
    ("options", "moved"),
    [
        ((), "abcd"),
        (("--queue", "processing"), "ab"),
        (("--reason", "too_old"), "ac"),
        (("--reason", REASON, "--queue", "sending"), "c"),
        (("--reason", "never_ended"), "bd"),
        (("--reason", "never"), ""),
        (("--id", "a", "--id", "d"), "ad"),
        (("--id", "a", "--reason", "never_ended"), ""),
    ],
)
def test_only_those_that_are_meant_are_put_back(
    world: World, run: Any, options: Sequence[str], moved: str
) -> None:
    texts = {name: world.text("heron", name, f"+141555501{n}") for n, name in enumerate("abcd", 40)}
    for name, text in texts.items():
        reason = REASON if name in "ac" else "never_ended"
        world.put_aside(PROCESSING if name in "ab" else SENDING, text, reason=reason)
    named = [texts[one].id if one in texts else one for one in options]
    code, said = run("redrive", "--rate", "100", "--json", *named)
    assert (code, sum(said["sent"].values())) == (0, len(moved))
    back = {one.id for queue in SOURCES.values() for one in world.envelopes(queue)}
    assert back == {texts[name].id for name in moved}


def test_an_id_that_no_letter_has_is_said(world: World, run: Any) -> None:
    world.put_aside(PROCESSING, world.text("heron", "SM1"))
    code, said = run("redrive", "--id", "heron", "--json")
    assert (code, said["missing"], len(world.letters(PROCESSING))) == (1, ["heron"], 1)


# --- dropping ------------------------------------------------------------------------------------


def test_a_dropped_letter_is_kept_where_an_erasure_finds_it(
    world: World, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN letters of a person, with one that could not be read, and of another
    text, other = world.text("is the heron awake?", "SM1"), world.text("heron", "SM2", OTHER)
    payload = {
        "provider": "twilio",
        "url": "",
        "content_type": "",
        "body": base64.b64encode(f"From=%2B{PERSON[1:]}".encode()).decode(),
    }
    unreadable = Envelope("unreadable", "", "", world.now, payload)
    broken = Envelope("unreadable", "", "", world.now, {"body": f"heron {PERSON}!"})
    world.put_aside(PROCESSING, text, other, unreadable, broken)
    ids = {one.id for one in world.letters(PROCESSING)}
    # WHEN they are dropped
    code, said = run("drop", "--reason", "too_old", "--yes", "--json")
    assert (code, said["good"], set(said["kept"])) == (0, True, ids)
    assert set(said["lost"].values()) == {
        "a text that is not in the table",
        "a payload that could not be read",
    }
    # THEN they are gone, and kept; and it is nobody's alarm
    assert world.letters(PROCESSING) == []
    assert sorted(world.dropped()) == sorted(said["kept"].values())
    assert read_status(world.stage).quarantined == 0
    key = next(key for key in world.dropped() if one_in(world, key)["letter"] in ids)
    assert one_in(world, key)["history"]["reason"] == REASON
    # AND an erasure finds the person's, and leaves the other's
    monkeypatch.setattr("spillway.operate.erasure.BETWEEN_LOCALLY", 0.02)
    erased = Erasure(world.stage, PERSON, wait=5).run()
    assert (erased.good, erased.removed["quarantine"]) == (True, 3)
    (left,) = world.dropped()
    assert json.loads(base64.b64decode(one_in(world, left)["body"])) == json.loads(other.body())


def one_in(world: World, key: str) -> Any:
    found = world.stage.stores.object(key)
    assert found is not None
    return json.loads(found[0])


def test_a_death_at_any_call_of_a_drop_loses_nothing(world: World) -> None:
    world.put_aside(PROCESSING, world.text("heron", "SM1"))
    (letter,) = world.letters(PROCESSING)
    with pytest.raises(Died), dying(world.stage, 1, "before-call"):
        Drop(world.stage).run(PROCESSING, {letter.id})
    # THEN it is kept, and still there; and the next one finishes it
    assert world.stage.stores.depth(PROCESSING).total == 1
    (key,) = world.dropped()
    assert Drop(world.stage).run(PROCESSING, {letter.id}).good
    assert (world.letters(PROCESSING), world.dropped()) == ([], [key])


OPTED_OUT = "21610"


def statement(event: str, at: float) -> Envelope:
    """What a client of ours states of somebody's consent."""
    said = {"number": PERSON, "event": event, "at": at, "source": "telephone", "note": ""}
    id_ = id_of(KEYS, Statement(PERSON, event, at, "telephone"))  # type: ignore[arg-type]
    return Envelope("consent", "", str(id_), at, said)


def replayed(text: Envelope) -> Envelope:
    payload = {**text.payload, "archived_in": "messages/heron"}
    return Envelope("replay", text.conversation, text.id, text.received_at, payload)


@pytest.mark.parametrize(
    ("words", "recorded", "stays"),
    [
        ("STOP", [], True),
        ("please stop texting me", [], True),
        ("STOP", [("stop", 0.0, "its own")], False),
        ("STOP", [("stop", 50.0, "another")], False),
        # A START between the two would count.
        ("STOP", [("stop", -50.0, "another")], True),
        ("STOP", [("start", 50.0, "another")], False),
        ("STOP", [("start", -50.0, "another")], True),
        ("START", [], False),
        ("heron", [], False),
        ("a receipt", [], True),
        ("a receipt", [("stop", 50.0, "another")], False),
        ("a statement", [], True),
        ("a statement", [("stop", 0.0, "its own")], False),
        ("a statement", [("start", 50.0, "another")], False),
        ("a replay of STOP", [], True),
        ("a replay of STOP", [("stop", 50.0, "another")], False),
    ],
)
def test_a_stop_is_dropped_only_where_it_is_recorded(
    world: World, run: Any, words: str, recorded: list[tuple[Any, float, str]], stays: bool
) -> None:
    text = world.text(words, "SM1")
    letter = text
    if words == "a receipt":
        answer(world, text, "heron")
        letter = receipt(text, "undelivered", OPTED_OUT)
    elif words == "a statement":
        letter = text = statement("stop", text.received_at)
    elif words == "a replay of STOP":
        letter = replayed(world.text("STOP", "SM1"))
    for event, at, id_ in recorded:
        world.consent.record(
            PERSON,
            event,
            text.received_at + at + (100 if letter.kind == "receipt" else 0),
            words="",
            source="twilio",
            id_=text.id if id_ == "its own" else id_,
        )
    world.put_aside(PROCESSING, letter)
    (found,) = world.letters(PROCESSING)
    _, said = run("show", found.id, "--json")
    assert said["letters"][0]["may_be_dropped"] is not stays
    code, said = run("drop", "--id", found.id, "--yes", "--json")
    assert (code, said["refused"]) == ((1, [found.id]) if stays else (0, []))
    assert [one.id for one in world.letters(PROCESSING)] == ([found.id] if stays else [])
    assert bool(world.dropped()) is not stays


def test_it_asks_and_says_what_is_lost(
    world: World, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = world.text("is the heron awake?", "SM1")
    world.put_aside(SENDING, text, world.text("STOP", "SM2", OTHER))
    (first, second) = world.letters(SENDING)
    code, shown = run("drop", "--id", first.id, "--id", second.id)
    assert code == 1
    assert "Lost: the answer to it" in shown
    assert "it says STOP, which is not recorded" in shown
    assert "Drop 2 dead letters?" in shown
    assert len(world.letters(SENDING)) == 2
    with pytest.raises(Problem, match="--id or --reason"):
        run("drop")


LOST = [
    ("garbage", "nothing of ours"),
    ("unreadable", "a payload that could not be read"),
    ("receipt", "the provider's word that a part is delivered; the ledger says sent"),
    ("settle", "a reminder of a reply; the ledger says sent"),
    ("resume", "a reminder of a reply; the ledger says sent"),
    ("answered", "nothing more: the ledger says sent"),
    ("outgoing", "a text that is not sent"),
    ("event", "an event, which your systems have not heard: message.received"),
    ("replay", "a replay: what is stored of the text stays as it is"),
    ("stop", "what somebody stated, and the list of consent does not have: stop"),
    ("start", "what somebody stated, and the list of consent does not have: start"),
    ("recorded", "nothing: the list of consent has it, or what was said later"),
    ("illegible", "what somebody stated, which cannot be read"),
]


@pytest.mark.parametrize(("kind", "lost"), LOST)
def test_what_is_lost_with_a_letter(world: World, kind: str, lost: str) -> None:
    text = world.text("heron", "SM1")
    answer(world, text, "it is")
    # (It is stored: that says nothing of what else is about it.)
    world.table.insert(
        {"pk": f"C#{text.conversation}", "sk": f"IN#{text.id.partition('-')[2]}", "text": "heron"}
    )
    told = {"id": f"message.received.{text.id}", "type": "message.received", "data": {}}
    bodies: dict[str, Envelope | str] = {
        "garbage": "heron",
        "unreadable": Envelope("unreadable", "", "", world.now, {"provider": "twilio"}),
        "receipt": receipt(text),
        "settle": Envelope("settle", text.conversation, text.id, world.now, {"part": 1}),
        "resume": Envelope("resume", text.conversation, text.id, world.now, {}),
        "answered": text,
        "outgoing": outgoing("heron"),
        "event": Envelope("event", text.conversation, text.id, world.now, told),
        "replay": replayed(text),
        "stop": statement("stop", world.now),
        "start": statement("start", world.now),
        "recorded": statement("start", world.now - 50),
        "illegible": statement("perhaps", world.now),
    }
    kinds = {one.kind for one in bodies.values() if isinstance(one, Envelope)}
    assert kinds == set(get_args(Kind))
    if kind == "recorded":
        world.consent.record(PERSON, "stop", world.now, words="", source="twilio", id_="x")
    world.put_aside(SENDING, bodies[kind])
    (letter,) = world.letters(SENDING)
    assert Drop(world.stage).lost_with(letter) == lost


def test_where_somebody_hears_of_it_its_event_is_lost_too(world: World) -> None:
    assert world.stage.local is not None
    sender = {**world.stage.local["settings"]["sender"], "EVENT_BUS": "spillway-ops"}
    local = {"settings": {**world.stage.local["settings"], "sender": sender}}
    text = world.text("heron", "SM1")
    answer(world, text, "it is")
    world.put_aside(SENDING, text)
    (letter,) = world.letters(SENDING)
    lost = Drop(replace(world.stage, local=local)).lost_with(letter)
    assert lost == (
        "nothing more: the ledger says sent; and its event, if your systems have not heard it"
    )
