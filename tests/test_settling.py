"""What becomes of an unknown send: by evidence, by policy, by a person; in every state of the
ledger and through every death."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import boto3
import pytest

from chalicelib.breaker import pause, paused, resume_sending
from chalicelib.consent import ConsentList
from chalicelib.ledger import Busy, Ledger, PartEntry, Reply, draft
from chalicelib.messages import DeliveryReceipt, Keys, MessageId, Part
from chalicelib.processing import LOOKING, STORING, Processing
from chalicelib.providers.base import (
    REPEATABLE,
    CannotTell,
    Http,
    NotSent,
    OutcomeUnknown,
    Provider,
    Rejected,
    Secrets,
    Sent,
    Throttled,
    Unavailable,
)
from chalicelib.queues import Envelope, Queues
from chalicelib.settling import LISTED_AFTER, LOOKS, MOST_RESENDS, Decision, decide
from chalicelib.table import Table
from tests.fakes import (
    HASH_KEY,
    NOBODY,
    NOW,
    OURS,
    SECRETS,
    THEIRS,
    Context,
    FakeRuntime,
    Lost,
    aws_error,
    events,
    logged,
    no_answer,
    one_table,
    settings,
    sqs_event,
    tapped,
)

pytestmark = pytest.mark.usefixtures("says_nothing")

CONVERSATION = "c" * 24
ID = MessageId(CONVERSATION, "0" * 23 + "7")
OTHER = MessageId(CONVERSATION, "0" * 23 + "8")
SETTLE = Envelope("settle", CONVERSATION, str(ID), NOW, {"part": 1, "attempt": 0})
Turn = BaseException | Sent | NotSent | CannotTell | Callable[[], Any]


class Died(BaseException):
    """The end of a process: nothing after it is run."""


class Carrier(Provider):
    """A provider that answers questions and sends as `next` says, and with `usual` afterwards."""

    name = "twilio"
    signed = True
    idempotent: ClassVar[bool] = False
    answers_stop = True
    max_length = 100
    default_api_url = "https://carrier.example.com"
    usual: Turn = CannotTell()

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Part] = []
        self.handed: list[Part] = []
        self.next: Iterator[Turn] = iter(())

    def find_sent(self, part: Part, secrets: Secrets, http: Http) -> Any:
        assert secrets == SECRETS["twilio"]
        self.asked.append(part)
        return self._answer()

    def send(self, part: Part, secrets: Secrets, http: Http) -> Any:
        assert secrets == SECRETS["twilio"]
        self.handed.append(part)
        return self._answer()

    def _answer(self) -> Any:
        turn = next(self.next, self.usual)
        if isinstance(turn, BaseException):
            raise turn
        return turn() if callable(turn) else turn

    def verify(self, request: object, secrets: object) -> None:
        raise NotImplementedError

    def parse(self, request: object) -> list[Any]:
        raise NotImplementedError

    def acknowledge(self) -> Any:
        raise NotImplementedError


class Repeatable(Carrier):
    """A provider that knows a repeated request by its key, and cannot be asked otherwise."""

    idempotent = True
    usual = Sent("SM-repeated")

    def find_sent(self, part: Part, secrets: Secrets, http: Http) -> Any:
        self.asked.append(part)
        return CannotTell()


@pytest.fixture(scope="module")
def dynamodb() -> Iterator[Any]:
    with one_table() as client:
        s3 = boto3.client("s3", region_name="us-east-1")
        s3.create_bucket(Bucket="spillway-test-archive-123456789012-us-east-1")
        yield client


class World:
    """Processing with a provider, a ledger with one reply, and what can be seen of them."""

    def __init__(self, runtime: FakeRuntime, carrier: Carrier, variables: dict[str, str]) -> None:
        self.runtime = runtime
        self.carrier = carrier
        self.processing = Processing(runtime, settings("processing", **variables))
        self.ledger = Ledger(Table(runtime, "test"), runtime, keep_days=400)
        self.queues = Queues(runtime, "test")
        self.consent = ConsentList(Table(runtime, "test"), Keys(HASH_KEY), "default")

    def claimed(
        self,
        *texts: str,
        id_: MessageId = ID,
        kind: str = "inbound",
        confirmation: bool = False,
        request: str = '{"heron": 1}',
    ) -> PartEntry:
        """A reply of these parts, the first of them claimed."""
        reply = self.ledger.open(
            id_,
            kind=kind,
            provider="twilio",
            ours=OURS,
            theirs=THEIRS,
            callback_url="https://sms.example.com/webhooks/twilio/signed",
            received_at=self.runtime.clock,
        )
        words = [(text, ()) for text in texts or ("heron",)]
        reply = draft(reply, words, confirmation=confirmation)
        return self.ledger.claim(
            reply,
            (reply.parts or ())[0],
            owner="me",
            lease_until=self.runtime.clock + 65,
            request=request,
        )

    def unknown(self, *texts: str, id_: MessageId = ID, **how: Any) -> PartEntry:
        """A reply of these parts, the first of them unknown."""
        part = self.claimed(*texts, id_=id_, **how)
        return self.ledger.unknown(self.reply(id_), part, reason="read_timeout")

    def settle(self, *, copies: int = 1, receives: int = 1, seconds: float = 60) -> list[int]:
        """One invocation with a settle message; in how many seconds each copy of it comes again."""
        return self.handle([SETTLE.body()] * copies, receives=receives, seconds=seconds)

    def handle(self, bodies: Sequence[str], *, receives: int = 1, seconds: float = 60) -> list[int]:
        self.runtime.queues.hidden.clear()
        report = self.processing.handle(
            sqs_event(bodies, receives=receives), Context(self.runtime, seconds)
        )
        assert report is not None
        hidden = self.runtime.queues.hidden
        assert len(report["batchItemFailures"]) == len(hidden)
        return list(hidden.values())

    def receipt(self, number: int = 1, status: Any = "delivered") -> list[int]:
        receipt = DeliveryReceipt("twilio", "SM-receipt", ID.part(number), status)
        return self.handle([Envelope("receipt", CONVERSATION, "", NOW, asdict(receipt)).body()])

    def reply(self, id_: MessageId = ID) -> Reply:
        reply = self.ledger.find(id_)
        assert reply is not None
        return reply

    def part(self, number: int = 1, id_: MessageId = ID) -> PartEntry:
        return (self.reply(id_).parts or ())[number - 1]

    def opt_out(self) -> None:
        self.consent.record(THEIRS, "stop", NOW, words="heron", source="test", id_=str(ID))

    def resumed(self) -> list[Envelope]:
        sent = self.runtime.queues.sent["outbound.fifo"]
        found = [Envelope.parse(message["MessageBody"]) for message in sent]
        assert {one.kind for one in found} <= {"resume"}
        assert {message["MessageGroupId"] for message in sent} <= {CONVERSATION}
        return found

    def dead(self) -> list[str]:
        copies = self.runtime.queues.sent["processing-dlq"]
        return [copy["MessageAttributes"]["reason"]["StringValue"] for copy in copies]


Build = Callable[..., World]


@pytest.fixture
def build(runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> Build:
    def make(carrier: Carrier | None = None, **variables: str) -> World:
        carrier = carrier or Carrier()
        monkeypatch.setattr("chalicelib.settling.provider_named", lambda name, url=None: carrier)
        return World(runtime, carrier, variables)

    return make


# --- one look ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "age", "state", "attempt", "again"),
    [
        (Sent("SM1"), 60, "sent", 0, []),
        (Sent("SM1"), 3600, "sent", 0, []),
        (NotSent(), 60, "unknown", 0, [120]),
        (NotSent(), LISTED_AFTER - 1, "unknown", 0, [181]),
        (NotSent(), LISTED_AFTER, "waiting", 1, []),
        (NotSent(), 3600, "waiting", 1, []),
        (CannotTell(), 60, "unknown", 0, [120]),
        (CannotTell(), 3600, "unknown", 0, []),
        (Unavailable("no_connection"), 60, "unknown", 0, [120]),
        (Unavailable("credentials", "401"), 60, "unknown", 0, [120]),
        (Throttled("throttled", retry_after=7), 60, "unknown", 0, [120]),
        (OutcomeUnknown("unreadable_answer"), 60, "unknown", 0, [120]),
        (OutcomeUnknown("unreadable_answer"), 3600, "unknown", 0, []),
    ],
    ids=str,
)
@pytest.mark.parametrize("texts", [("heron",), ("heron 1", "heron 2")], ids=["one part", "two"])
def test_what_becomes_of_a_look(
    build: Build,
    answer: Turn,
    age: float,
    state: str,
    attempt: int,
    again: list[int],
    texts: tuple[str, ...],
) -> None:
    world = build()
    world.unknown(*texts)
    world.carrier.next = iter([answer])
    world.runtime.clock += age

    assert world.settle() == again
    part = world.part()
    assert (part.state, part.attempt) == (state, attempt)
    assert part.provider_id == ("SM1" if state == "sent" else "")

    # AND the sender goes on where there is something to do
    waits = state == "waiting" or (state == "sent" and len(texts) > 1)
    assert [one.id for one in world.resumed()] == ([str(ID)] if waits else [])
    assert world.reply().listed == (state == "unknown" or waits)
    assert world.carrier.handed == []


def test_what_the_provider_is_asked(build: Build) -> None:
    # GIVEN a conversation in which another reply was sent meanwhile
    world = build()
    world.unknown("heron 1", "heron 2")
    other = world.claimed("heron 3", id_=OTHER)
    world.ledger.sent(world.reply(OTHER), other, "SM-other")
    world.runtime.clock += 60
    world.settle()
    reference = ID.part(1)
    assert world.carrier.asked == [
        Part(
            reference=reference,
            sender=OURS,
            recipient=THEIRS,
            text="heron 1",
            callback_url=f"https://sms.example.com/webhooks/twilio/signed?reference={reference}",
            started_at=NOW,
            known_ids=frozenset({"SM-other"}),
            request='{"heron": 1}',
        )
    ]


def test_looks_are_made_at_their_times_and_then_it_is_for_a_person(
    build: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    world = build()
    world.unknown()
    world.runtime.clock += LOOKS[0]
    waited = []
    for receives in range(1, 7):
        logged(capsys)
        again = world.settle(receives=receives)
        if not again:
            break
        waited += again
        world.runtime.clock += again[0]
    assert waited == [120, 300, 900, 900, 900]
    assert len(world.carrier.asked) == len(LOOKS)
    # THEN it is listed, counted and logged, and nothing else
    lines = logged(capsys)
    assert events(lines) == ["unknown_listed"]
    assert sum(line.get("UnknownListed", 0) for line in lines) == 1
    assert [line["level"] for line in lines if "event" in line] == ["ERROR"]
    assert (world.part().state, world.reply().listed, world.dead()) == ("unknown", True, [])


def test_a_late_copy_looks_once_more(build: Build) -> None:
    # GIVEN a duplicate of a webhook that met an unknown part 22 hours later
    world = build()
    world.unknown()
    world.runtime.clock += 22 * 3600
    assert world.settle() == []
    assert len(world.carrier.asked) == 1
    world.carrier.next = iter([Sent("SM1")])
    assert world.settle() == []
    assert world.part().state == "sent"


def test_a_look_that_is_due_in_a_moment_is_not_made_twice(build: Build) -> None:
    world = build()
    world.unknown()
    world.runtime.clock += LOOKS[1] - 0.5
    assert world.settle() == [301]


def test_it_is_not_dead_lettered_however_long_the_table_is_down(build: Build) -> None:
    world = build()
    world.unknown()
    world.runtime.clock += 13 * 3600
    tapped(world.runtime).next["get_item"] = iter([aws_error("InternalServerError")])
    assert len(world.settle()) == 1
    assert world.dead() == []


# --- by state ----------------------------------------------------------------------------------


@pytest.mark.parametrize("later", [0, 66])
def test_a_claim_is_left_to_the_message_that_it_was_made_for(build: Build, later: float) -> None:
    # GIVEN a part that somebody has claimed since, who may be dead by now
    world = build()
    world.claimed()
    world.runtime.clock += later
    # THEN nothing is done: the sender's queue has the message, which comes again
    assert world.settle() == []
    assert world.part().state == "sending"
    assert world.carrier.asked == []


def test_what_waits_is_resumed_whether_it_is_listed_or_not(build: Build) -> None:
    # GIVEN an owner that was taken for dead, and then put its claim back or sent it
    world = build()
    mine = world.unknown("heron 1", "heron 2")
    world.ledger.sent(world.reply(), mine, "SM1")
    second = world.ledger.claim(world.reply(), world.part(2), owner="me", lease_until=NOW + 65)
    world.ledger.put_back(world.reply(), second)
    assert not world.reply().listed
    assert world.settle() == []
    (resume,) = world.resumed()
    assert (resume.id, resume.received_at, resume.payload) == (str(ID), NOW, {})


def done_sent(world: World) -> None:
    mine = world.unknown()
    world.ledger.sent(world.reply(), mine, "SM1")


def done_failed(world: World) -> None:
    mine = world.unknown()
    world.ledger.failed(world.reply(), mine, reason="landline", code="1")


def done_closed(world: World) -> None:
    mine = world.unknown()
    world.ledger.not_sent(world.reply(), mine)
    world.ledger.close(world.reply(), "expired")


def done_erased(world: World) -> None:
    world.unknown("heron 1", "heron 2")
    world.ledger.erase(world.reply())


@pytest.mark.parametrize("given", [done_sent, done_failed, done_closed, done_erased])
def test_where_nothing_is_left_nothing_is_done(
    build: Build, given: Callable[[World], None]
) -> None:
    world = build()
    given(world)
    before = world.reply()
    assert world.settle() == []
    assert (world.reply(), world.resumed(), world.carrier.asked) == (before, [], [])


def test_a_reply_that_is_gone_is_done(build: Build) -> None:
    world = build()
    assert world.settle() == []
    assert world.dead() == []


@pytest.mark.parametrize("kind", ["settle", "resume"])
def test_what_is_about_no_message_is_dead_lettered(build: Build, kind: Any) -> None:
    world = build()
    assert world.handle([Envelope(kind, CONVERSATION, "", NOW, {}).body()]) == []
    assert world.dead() == ["unexpected_kind"]


def test_copies_at_once_do_no_harm(build: Build) -> None:
    world = build()
    world.unknown("heron 1", "heron 2")
    world.carrier.usual = Sent("SM1")
    world.runtime.clock += 60
    assert world.settle(copies=3) == []
    assert (world.part().state, world.part(2).state) == ("sent", "waiting")
    # The sender finds nothing to do for all but one.
    assert {one.id for one in world.resumed()} == {str(ID)}


@pytest.mark.parametrize(
    "meanwhile", ["a receipt", "a person", "another look", "the owner"], ids=str
)
def test_whoever_comes_between_is_right(build: Build, meanwhile: str) -> None:
    # GIVEN a look at the end of which somebody else has settled the part
    world = build()
    mine = world.unknown("heron 1", "heron 2")
    steps: dict[str, Callable[[], object]] = {
        "a receipt": lambda: world.ledger.receive(
            DeliveryReceipt("twilio", "SM-r", ID.part(1), "delivered")
        ),
        "a person": lambda: world.ledger.give_up(world.reply(), mine),
        "another look": lambda: world.ledger.found(world.reply(), mine, "SM-other-look"),
        "the owner": lambda: world.ledger.sent(world.reply(), mine, "SM-owner"),
    }

    def answer() -> NotSent:
        steps[meanwhile]()
        return NotSent()

    world.carrier.next = iter([answer])
    world.runtime.clock += LISTED_AFTER
    assert len(world.settle()) == 1
    # THEN that stands, and the next visit goes by it
    before = world.reply()
    assert before.state == ("failed: given_up" if meanwhile == "a person" else "sending")
    assert world.settle(receives=2) == []
    assert world.reply() == before
    assert len(world.resumed()) == (0 if meanwhile == "a person" else 1)


@pytest.mark.parametrize("landed", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("answer", "operation", "nth"),
    [
        (Sent("SM1"), "get_item", 1),
        (Sent("SM1"), "query", 1),
        (Sent("SM1"), "query", 2),
        (Sent("SM1"), "update_item", 1),
        (NotSent(), "query", 1),
        (NotSent(), "update_item", 1),
    ],
    ids=str,
)
def test_a_death_at_any_call_is_made_good_by_the_next_visit(
    build: Build, answer: Turn, operation: str, nth: int, landed: bool
) -> None:
    world = build()
    world.unknown("heron 1", "heron 2")
    world.carrier.usual = answer
    world.runtime.clock += LISTED_AFTER

    def die() -> None:
        raise Died

    turn = Lost(Died()) if landed else die
    tapped(world.runtime).next[operation] = iter([*[None] * (nth - 1), turn])
    with pytest.raises(Died):
        world.settle()
    assert world.settle(receives=2) == []
    assert world.part().state == ("sent" if answer == Sent("SM1") else "waiting")
    assert len(world.resumed()) == 1
    assert world.reply().listed


def test_a_death_before_the_resume_is_made_good_by_the_next_visit(build: Build) -> None:
    world = build()
    world.unknown("heron 1", "heron 2")
    world.carrier.usual = Sent("SM1")
    world.runtime.clock += 60
    world.runtime.queues.refuses["outbound.fifo"] = Died()  # type: ignore[assignment]
    with pytest.raises(Died):
        world.settle()
    world.runtime.queues.refuses.clear()
    assert world.settle(receives=2) == []
    assert (world.part().state, len(world.resumed())) == ("sent", 1)


@pytest.mark.parametrize("failure", [aws_error("InternalServerError"), Lost(no_answer())])
@pytest.mark.parametrize("operation", ["query", "update_item"])
def test_a_table_that_fails_is_asked_again_soon(
    build: Build, operation: str, failure: Exception | Lost
) -> None:
    world = build()
    world.unknown("heron 1", "heron 2")
    world.carrier.usual = Sent("SM1")
    world.runtime.clock += 60
    tapped(world.runtime).next[operation] = iter([failure])
    (again,) = world.settle()
    assert again <= 5
    assert world.settle(receives=2) == []
    assert (world.part().state, len(world.resumed())) == ("sent", 1)


def test_a_look_is_not_begun_without_the_time_for_it(build: Build) -> None:
    world = build()
    world.unknown()
    assert len(world.settle(seconds=LOOKING - 1)) == 1
    assert world.carrier.asked == []


def test_processing_has_the_time_for_a_look_after_its_look_ups() -> None:
    config = json.loads((Path(__file__).parent.parent / ".chalice" / "config.json").read_text())
    time_out = config["lambda_functions"]["process"]["lambda_timeout"]
    assert time_out >= LOOKING + STORING


@pytest.mark.parametrize("why", ["not configured", "no secret", "vault down"])
def test_a_provider_that_cannot_be_asked_says_nothing(build: Build, why: str) -> None:
    world = build(PROVIDERS="telnyx" if why == "not configured" else "twilio")
    world.unknown()
    if why == "no secret":
        del world.runtime.vault.held["twilio"]
    elif why == "vault down":
        world.runtime.vault.fails = aws_error("InternalServiceError", "GetSecretValue")
    world.runtime.clock += 60
    assert world.settle() == [120]
    assert (world.carrier.asked, world.part().state) == ([], "unknown")


def test_credentials_that_are_refused_are_looked_up_again(build: Build) -> None:
    world = build()
    world.unknown()
    world.carrier.next = iter([CannotTell(), Unavailable("credentials", "401")])
    world.runtime.clock += 60
    world.settle()
    world.runtime.clock += 120
    world.settle(receives=2)
    assert world.runtime.vault.reads["twilio"] == 2


# --- which part it is --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "become", "settled"),
    [
        ("heron", "sending", False),
        ("heron", "unknown", False),
        ("heron", "taken for sent", False),
        ("heron", "given up", False),
        ("heron", "repeated", False),
        ("heron", "sent", True),
        ("heron", "failed", True),
        ("heron", "put back", True),
        ("another heron", "sending", True),
        ("another heron", "unknown", True),
    ],
)
def test_one_text_that_two_parts_may_have_left_settles_neither(
    build: Build, text: str, become: str, settled: bool
) -> None:
    # GIVEN another reply of the conversation, soon after
    world = build()
    world.unknown("heron")
    world.runtime.clock += 10
    other = world.claimed(text, id_=OTHER)
    reply = world.reply(OTHER)
    steps: dict[str, Callable[[], object]] = {
        "sending": lambda: None,
        "unknown": lambda: world.ledger.unknown(reply, other, reason="x"),
        "taken for sent": lambda: world.ledger.taken_for_sent(
            reply, world.ledger.unknown(reply, other, reason="x")
        ),
        "given up": lambda: world.ledger.give_up(
            reply, world.ledger.unknown(reply, other, reason="x")
        ),
        "repeated": lambda: world.ledger.resend(
            reply, world.ledger.unknown(reply, other, reason="x")
        ),
        "sent": lambda: world.ledger.sent(reply, other, "SM-other"),
        "failed": lambda: world.ledger.failed(reply, other, reason="landline", code="1"),
        "put back": lambda: world.ledger.put_back(reply, other),
    }
    steps[become]()
    # WHEN the provider has one text of these words that nobody knows
    world.carrier.next = iter([Sent("SM1")])
    world.runtime.clock += 50
    world.settle()
    assert (world.part().state == "sent") is settled


def test_a_part_of_long_ago_is_not_in_the_way(build: Build) -> None:
    world = build()
    world.unknown("heron", id_=OTHER)
    world.runtime.clock += 2 * LISTED_AFTER
    world.unknown("heron")
    world.carrier.next = iter([Sent("SM1")])
    world.settle()
    assert world.part().state == "sent"


def test_what_was_recorded_while_we_asked_is_not_ours(build: Build) -> None:
    # GIVEN the next reply, of another text, which is on its way while the provider is asked
    world = build()
    world.unknown("heron")

    def answer() -> Sent:
        other = world.claimed("heron", id_=OTHER)
        world.ledger.sent(world.reply(OTHER), other, "SM-other")
        return Sent("SM-other")

    world.carrier.next = iter([answer])
    world.runtime.clock += 60
    world.settle()
    assert (world.part().state, world.part().provider_id) == ("unknown", "")


# --- providers that know a repeated request ----------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "state", "error"),
    [
        (Sent("SM1"), "sent", ""),
        (Throttled("throttled"), "unknown", "read_timeout"),
        (Unavailable("no_connection"), "unknown", "read_timeout"),
        (OutcomeUnknown("server_error"), "unknown", "read_timeout"),
        (OutcomeUnknown("idempotency_mismatch"), "unknown", "idempotency_mismatch"),
        # What the request says was said the first time, too.
        (Rejected("invalid_number", "40310"), "failed", "40310"),
        (Rejected("too_long", "40302"), "failed", "40302"),
        # Somebody may have opted out, and a number been blocked, since the first was taken.
        (Rejected("opted_out", "40300"), "unknown", "repeat_refused"),
        (Rejected("filtered", "40002"), "unknown", "repeat_refused"),
        (Rejected("not_permitted", "40301"), "unknown", "repeat_refused"),
        (Rejected("rejected", "404"), "unknown", "repeat_refused"),
    ],
    ids=repr,
)
def test_a_repeatable_request_is_repeated(
    build: Build, answer: Turn, state: str, error: str
) -> None:
    world = build(Repeatable())
    world.unknown()
    world.carrier.next = iter([answer])
    world.runtime.clock += 60
    again = world.settle()
    assert again == ([120] if state == "unknown" else [])
    (part,) = world.carrier.handed
    # THEN it is what it was the first time
    assert (part.reference, part.request) == (ID.part(1), '{"heron": 1}')
    assert (world.part().state, world.part().error) == (state, error)

    # AND it is repeated at the next look, but not where that would say nothing
    world.runtime.clock += 120
    if state == "unknown":
        world.settle(receives=2)
        assert len(world.carrier.handed) == (2 if error == "read_timeout" else 1)


def test_a_refused_repetition_ends_the_reply(build: Build) -> None:
    world = build(Repeatable())
    world.unknown("heron 1", "heron 2")
    world.carrier.next = iter([Rejected("landline", "40001")])
    world.runtime.clock += 60
    assert world.settle() == []
    assert world.reply().state == "failed: landline"
    assert (world.reply().listed, world.resumed()) == (False, [])


@pytest.mark.parametrize(
    ("how", "age", "variables", "repeated"),
    [
        ({}, 899, {}, True),
        ({}, 901, {}, False),
        ({}, 901, {"REPLY_MAX_AGE": "3600"}, True),
        ({"kind": "outgoing"}, 901, {}, True),
        ({"kind": "outgoing"}, 36_001, {}, False),
        ({"kind": "outgoing"}, REPEATABLE - 1, {"MESSAGE_MAX_AGE": "100000"}, True),
        ({"kind": "outgoing"}, REPEATABLE, {"MESSAGE_MAX_AGE": "100000"}, False),
        ({"confirmation": True}, 299, {}, True),
        ({"confirmation": True}, 301, {}, False),
        # As the first version left it.
        ({"request": ""}, 60, {}, False),
    ],
)
def test_it_is_repeated_only_where_it_would_be_sent(
    build: Build, how: dict[str, Any], age: float, variables: dict[str, str], repeated: bool
) -> None:
    world = build(Repeatable(), **variables)
    world.unknown(**how)
    if "confirmation" in how:
        world.opt_out()
    world.runtime.clock += age
    world.settle()
    assert len(world.carrier.handed) == repeated
    assert len(world.carrier.asked) == (not repeated)


def test_the_key_is_as_old_as_the_first_attempt(build: Build) -> None:
    # GIVEN a first attempt that the provider did not take, and one much later that is unknown
    world = build(Repeatable(), MESSAGE_MAX_AGE="200000")
    mine = world.claimed(kind="outgoing")
    world.ledger.put_back(world.reply(), mine)
    world.runtime.clock += REPEATABLE
    again = world.ledger.claim(
        world.reply(), world.part(), owner="me", lease_until=NOW + REPEATABLE + 65
    )
    world.ledger.unknown(world.reply(), again, reason="read_timeout")
    world.settle()
    assert world.carrier.handed == []


@pytest.mark.parametrize("confirmation", [False, True])
def test_who_opted_out_is_sent_nothing_by_a_repetition(build: Build, confirmation: bool) -> None:
    world = build(Repeatable())
    world.unknown(confirmation=confirmation)
    world.opt_out()
    world.runtime.clock += 60
    world.settle()
    assert len(world.carrier.handed) == confirmation


def test_who_has_said_start_since_is_not_told_that_they_get_no_more(build: Build) -> None:
    # GIVEN a confirmation of unknown outcome, and a START that came after it
    world = build(Repeatable())
    world.unknown(confirmation=True)
    world.opt_out()
    world.consent.record(THEIRS, "start", NOW + 30, words="START", source="test", id_="other")
    # WHEN it is looked for, THEN it is not repeated
    world.runtime.clock += 60
    world.settle()
    assert world.carrier.handed == []


def test_consent_is_what_is_asked_last_before_a_repetition(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a person who says STOP while it is asked whether sending is paused, which takes long
    world = build(Repeatable())
    world.unknown()

    def slowly(table: Table) -> dict[str, Any] | None:
        world.opt_out()
        return paused(table)

    monkeypatch.setattr("chalicelib.settling.paused", slowly)
    # WHEN it is looked for, THEN it is not repeated
    world.runtime.clock += 60
    world.settle()
    assert world.carrier.handed == []


def test_while_sending_is_paused_nothing_is_repeated(build: Build) -> None:
    # GIVEN a send of unknown outcome, and a pause
    world = build(Repeatable())
    world.unknown()
    table = Table(world.runtime, "test")
    pause(table, NOW, "heron")
    # WHEN it is looked for, THEN the request that might be the one that sends is not made
    world.runtime.clock += 60
    world.settle()
    assert world.carrier.handed == []
    # ... until sending goes on
    resume_sending(table)
    world.runtime.clock += 60
    world.settle()
    assert len(world.carrier.handed) == 1


@pytest.mark.parametrize(
    ("lists", "repeated"),
    [
        ({"SEND_ONLY_TO": "+14155550101"}, False),
        ({"SEND_TO_COUNTRIES": "CA"}, False),
        ({"SEND_ONLY_TO": "+1415*", "SEND_TO_COUNTRIES": "US"}, True),
    ],
)
def test_to_whom_nothing_may_be_sent_nothing_is_repeated(
    build: Build, lists: dict[str, str], repeated: bool
) -> None:
    # GIVEN a send of unknown outcome, and lists that are newer than it
    world = build(Repeatable(), UNKNOWN_SENDS="resend", **lists)
    world.unknown()
    # WHEN it is looked for, THEN it is neither repeated nor handed to the sender again
    world.carrier.usual = CannotTell()
    world.runtime.clock += LISTED_AFTER
    world.settle()
    assert len(world.carrier.handed) == repeated
    assert world.resumed() == []


@pytest.mark.parametrize(
    ("kind", "until", "repeated"),
    [
        ("outgoing", NOW + 3600, False),
        ("outgoing", NOW, True),
        ("outgoing", None, True),
        # Who writes at night is awake.
        ("inbound", NOW + 3600, True),
    ],
)
def test_at_night_no_message_is_repeated(
    build: Build, kind: str, until: float | None, repeated: bool
) -> None:
    # GIVEN a send of unknown outcome, and a night that began after it
    world = build(Repeatable())
    world.unknown(kind=kind)

    def hook(ours: str, theirs: str, now: datetime) -> datetime | None:
        assert (ours, theirs, now.timestamp()) == (OURS, THEIRS, world.runtime.clock)
        return None if until is None else datetime.fromtimestamp(until, UTC)

    world.processing._settling._quiet_until = hook
    # WHEN it is looked for, THEN the request that might be the one that sends is not made
    world.runtime.clock += 60
    world.settle()
    assert len(world.carrier.handed) == repeated
    # ... until the morning
    world.runtime.clock = NOW + 3600
    world.settle()
    assert len(world.carrier.handed) == 1


def test_what_is_sent_again_at_night_waits_at_the_sender(build: Build) -> None:
    world = build(UNKNOWN_SENDS="resend")
    world.unknown(kind="outgoing")
    world.processing._settling._quiet_until = lambda ours, theirs, now: now + timedelta(hours=8)
    world.runtime.clock += LISTED_AFTER
    world.settle()
    assert (world.part().state, len(world.resumed())) == ("waiting", 1)


# --- UNKNOWN_SENDS=resend ----------------------------------------------------------------------


@pytest.mark.parametrize("answer", [CannotTell(), Unavailable("no_connection")], ids=repr)
@pytest.mark.parametrize(
    ("how", "age", "policy", "resent"),
    [
        ({}, LISTED_AFTER, "hold", False),
        ({}, LISTED_AFTER - 1, "resend", False),
        ({}, LISTED_AFTER, "resend", True),
        ({}, 899, "resend", True),
        ({}, 901, "resend", False),
        ({"confirmation": True}, LISTED_AFTER + 1, "resend", False),
    ],
)
def test_what_cannot_be_found_out_is_sent_again_where_that_is_wanted(
    build: Build, answer: Turn, how: dict[str, Any], age: float, policy: str, resent: bool
) -> None:
    world = build(UNKNOWN_SENDS=policy)
    world.unknown(**how)
    world.carrier.usual = answer
    world.runtime.clock += age
    world.settle()
    part = world.part()
    assert (part.state, part.attempt, part.lost) == (
        ("waiting", 1, 1) if resent else ("unknown", 0, 0)
    )
    assert len(world.resumed()) == resent


def test_who_opted_out_is_not_sent_it_again(build: Build) -> None:
    world = build(UNKNOWN_SENDS="resend")
    world.unknown()
    world.opt_out()
    world.runtime.clock += LISTED_AFTER
    world.settle()
    assert world.part().state == "unknown"


def test_it_is_not_sent_again_and_again(build: Build) -> None:
    # GIVEN a provider that takes everything and answers nothing
    world = build(UNKNOWN_SENDS="resend")
    world.unknown(kind="outgoing")
    for resent in range(1, MOST_RESENDS + 1):
        world.runtime.clock += LISTED_AFTER
        assert world.settle() == []
        assert len(world.resumed()) == resent
        again = world.ledger.claim(
            world.reply(), world.part(), owner="me", lease_until=world.runtime.clock + 65
        )
        world.ledger.unknown(world.reply(), again, reason="read_timeout")
    # THEN it is for a person after all
    world.runtime.clock += LISTED_AFTER
    world.settle()
    assert world.part().state == "unknown"


def test_what_was_sent_again_is_looked_for_from_its_first_attempt_on(build: Build) -> None:
    # GIVEN a part that was sent again blindly, and is unknown again
    world = build(UNKNOWN_SENDS="resend")
    world.unknown(kind="outgoing")
    world.runtime.clock += LISTED_AFTER
    world.settle()
    again = world.ledger.claim(
        world.reply(), world.part(), owner="me", lease_until=world.runtime.clock + 65
    )
    world.ledger.unknown(world.reply(), again, reason="read_timeout")
    # WHEN the provider has the first copy after all
    world.carrier.next = iter([Sent("SM-first")])
    world.runtime.clock += LISTED_AFTER
    world.settle()
    # THEN it is found, and goes out no third time
    assert [asked.started_at for asked in world.carrier.asked] == [NOW, NOW]
    assert (world.part().state, world.part().provider_id) == ("sent", "SM-first")


def test_evidence_comes_before_the_policy(build: Build) -> None:
    world = build(UNKNOWN_SENDS="resend")
    world.unknown()
    world.carrier.usual = Sent("SM1")
    world.runtime.clock += LISTED_AFTER
    world.settle()
    assert world.part().state == "sent"


# --- receipts ----------------------------------------------------------------------------------


def test_a_receipt_for_an_unknown_part_has_the_next_one_sent(build: Build) -> None:
    world = build()
    world.unknown("heron 1", "heron 2")
    assert world.receipt() == []
    assert [one.id for one in world.resumed()] == [str(ID)]
    # AND the settle message that still comes finds it settled
    assert world.settle() == []
    assert world.carrier.asked == []


def test_a_receipt_resumes_nothing_while_the_sender_is_at_it(build: Build) -> None:
    # GIVEN a sender between part 1 and part 2
    world = build()
    mine = world.claimed("heron 1", "heron 2")
    assert world.receipt(status="sent") == []
    world.ledger.sent(world.reply(), mine, "SM1")
    assert world.receipt() == []
    assert world.resumed() == []


def test_a_death_between_a_receipt_and_its_resume_is_made_good(build: Build) -> None:
    world = build()
    world.unknown("heron 1", "heron 2")
    world.runtime.queues.refuses["outbound.fifo"] = aws_error("ServiceUnavailable", "SendMessage")
    assert len(world.receipt()) == 1
    world.runtime.queues.refuses.clear()
    # THEN the receipt comes again and says nothing new, but something waits
    assert world.receipt() == []
    assert [one.id for one in world.resumed()] == [str(ID)]


# --- a person ----------------------------------------------------------------------------------


def decided(world: World, decision: Decision, attempt: int = 0, part: int = 1) -> Reply:
    return decide(
        world.runtime,
        world.ledger,
        world.queues,
        ID,
        part=part,
        attempt=attempt,
        decision=decision,
        events=NOBODY,
    )


@pytest.mark.parametrize(
    ("decision", "state", "attempt", "reply", "resumed"),
    [
        ("sent", "sent", 0, "sending", 1),
        ("resend", "waiting", 1, "waiting", 1),
        ("give_up", "failed", 0, "failed: given_up", 0),
    ],
)
def test_a_person_decides(
    build: Build, decision: Decision, state: str, attempt: int, reply: str, resumed: int
) -> None:
    world = build()
    world.unknown("heron 1", "heron 2")
    world.runtime.clock += 7200
    told = decided(world, decision)
    assert told == world.reply()
    part = world.part()
    assert (part.state, part.attempt, told.state) == (state, attempt, reply)
    assert part.lost == 1
    assert len(world.resumed()) == resumed
    assert told.listed == bool(resumed)
    # What a person wants sent is not too old; the rest of it is.
    assert told.redriven_at == (NOW + 7200 if decision == "resend" else None)

    # WHEN the answer was lost and the person says so again, THEN it is so already
    assert decided(world, decision) == told


@pytest.mark.parametrize(("decision", "resumed"), [("sent", 1), ("resend", 1), ("give_up", 0)])
def test_a_decision_that_is_written_twice_is_taken_for_made(
    build: Build, decision: Decision, resumed: int
) -> None:
    world = build()
    world.unknown("heron 1", "heron 2")
    reply, part = world.reply(), world.part()
    writes: dict[str, Callable[[], Reply]] = {
        "sent": lambda: world.ledger.taken_for_sent(reply, part),
        "resend": lambda: world.ledger.resend(reply, part, redriven_at=NOW),
        "give_up": lambda: world.ledger.give_up(reply, part),
    }
    # GIVEN a write of which the answer was lost, and which the client makes again by itself
    tapped(world.runtime).next["update_item"] = iter([writes[decision]])
    # THEN what follows from it is done all the same
    assert decided(world, decision) == world.reply()
    assert len(world.resumed()) == resumed


def test_the_last_part_leaves_nothing_to_resume(build: Build) -> None:
    world = build()
    world.unknown()
    assert decided(world, "sent").state == "sent"
    assert (world.reply().listed, world.resumed()) == (False, [])


@pytest.mark.parametrize("decision", ["sent", "resend", "give_up"])
@pytest.mark.parametrize(
    "given", ["settled", "erased", "another attempt", "claimed", "no such part", "none"]
)
def test_a_person_who_saw_something_else_decides_nothing(
    build: Build, decision: Decision, given: str
) -> None:
    world = build()
    if given == "settled":
        mine = world.unknown()
        world.ledger.refused(world.reply(), mine, reason="landline", code="1")
    elif given == "erased":
        done_erased(world)
    elif given == "claimed":
        world.claimed()
    elif given != "none":
        world.unknown()
    before = world.ledger.find(ID)
    with pytest.raises(Busy):
        decided(
            world,
            decision,
            attempt=1 if given == "another attempt" else 0,
            part=2 if given == "no such part" else 1,
        )
    assert (world.ledger.find(ID), world.resumed()) == (before, [])


@pytest.mark.parametrize("first", ["a receipt", "a person"])
def test_a_person_and_a_receipt_at_the_same_moment(build: Build, first: str) -> None:
    world = build()
    world.unknown("heron 1", "heron 2")
    if first == "a receipt":
        # GIVEN a receipt that lands between the person's read and write
        receipt = DeliveryReceipt("twilio", "SM-r", ID.part(1), "delivered")
        tapped(world.runtime).next["update_item"] = iter([lambda: world.ledger.receive(receipt)])
        with pytest.raises(Busy):
            decided(world, "resend")
        assert (world.part().state, world.part().attempt) == ("sent", 0)
    else:
        decided(world, "resend")
        assert world.receipt() == []
        # THEN what nobody has claimed again is not sent again
        assert (world.part().state, world.reply().to_be_resumed) == ("sent", True)


def test_a_decision_whose_resume_was_lost_is_finished_by_the_next(build: Build) -> None:
    world = build()
    world.unknown()
    world.runtime.queues.refuses["outbound.fifo"] = aws_error("ServiceUnavailable", "SendMessage")
    with pytest.raises(Exception, match="ServiceUnavailable"):
        decided(world, "resend")
    world.runtime.queues.refuses.clear()
    decided(world, "resend")
    assert len(world.resumed()) == 1
