"""The sending function: what becomes of a message, whatever fails and whenever it dies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain, repeat
from typing import Any

import httpx
import pytest

from chalicelib.breaker import FAILURES, pause, resume_sending
from chalicelib.consent import ConsentList
from chalicelib.ledger import DAY, Ledger, PartEntry, Reply
from chalicelib.messages import ConsentEvent, DeliveryReceipt, Keys, Media, MessageId, Part
from chalicelib.providers.base import (
    CannotTell,
    Http,
    OutcomeUnknown,
    Provider,
    Rejected,
    Secrets,
    Sent,
    Throttled,
    Unavailable,
)
from chalicelib.queues import Envelope
from chalicelib.sending import Sender
from chalicelib.settling import CONFIRMATION_MAX_AGE
from chalicelib.table import Table
from tests.fakes import (
    HASH_KEY,
    NOW,
    OURS,
    SECRETS,
    TEXT,
    THEIRS,
    Context,
    FakeRuntime,
    Lost,
    aws_error,
    events,
    inbound,
    logged,
    no_answer,
    outgoing,
    settings,
    sqs_event,
    tapped,
)

pytestmark = pytest.mark.usefixtures("says_nothing")

API = "https://replies.example.com/v1"
STOPPED = "No more herons."
Turn = BaseException | Callable[[], object] | None
Build = Callable[..., "World"]


class Died(BaseException):
    """The end of a process: nothing after it is run."""


class Carrier(Provider):
    """A provider that takes what it is given, or does what `next` says, call by call."""

    name = "twilio"
    signed = True
    idempotent = False
    answers_stop = False
    max_length = 100
    default_api_url = "https://carrier.example.com"

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[Part] = []
        self.secrets: list[Secrets] = []
        self.next: Iterator[Turn] = iter(())

    def send(self, part: Part, secrets: Secrets, http: Http) -> Sent:
        self.parts.append(part)
        self.secrets.append(secrets)
        turn = next(self.next, None)
        if isinstance(turn, BaseException):
            raise turn
        if turn is not None:
            turn()
        return Sent(f"SM-{len(self.parts)}")

    def find_sent(self, part: Part, secrets: Secrets, http: Http) -> CannotTell:
        raise NotImplementedError

    def verify(self, request: object, secrets: object) -> None:
        raise NotImplementedError

    def parse(self, request: object) -> list[Any]:
        raise NotImplementedError

    def acknowledge(self) -> Any:
        raise NotImplementedError


class StopAnswering(Carrier):
    """A provider that confirms STOP, START and HELP itself."""

    answers_stop = True


class World:
    """The sending function with a provider and a reply API, and what can be seen of it."""

    def __init__(self, runtime: FakeRuntime, carrier: Carrier, variables: dict[str, str]) -> None:
        self.runtime = runtime
        self.carrier = carrier
        self.sender = Sender(
            runtime, settings("sender", **{"STOP_TEXT": STOPPED, "LOOP_LIMIT": "0", **variables})
        )
        self.ledger = Ledger(Table(runtime, "test"), runtime, keep_days=400)
        self.consent = ConsentList(Table(runtime, "test"), Keys(HASH_KEY), "default")

    def receive(self, *messages: Envelope, receives: int = 1, seconds: float = 60) -> list[str]:
        """One invocation; what it reports as not done."""
        event = sqs_event([message.body() for message in messages], receives=receives)
        report = self.sender.handle(event, Context(self.runtime, seconds))
        assert report is not None
        return [entry["itemIdentifier"] for entry in report["batchItemFailures"]]

    def reply(self, message: Envelope) -> Reply:
        id_ = MessageId.parse(message.id)
        assert id_ is not None
        reply = self.ledger.find(id_)
        assert reply is not None
        return reply

    def part(self, message: Envelope, number: int = 1) -> PartEntry:
        return (self.reply(message).parts or ())[number - 1]

    def receipt(self, message: Envelope, number: int = 1) -> str:
        reference = f"{message.id}-{number}"
        return self.ledger.receive(DeliveryReceipt("twilio", "SM-r", reference, "delivered")).result

    def say(self, event: ConsentEvent, at: float = NOW, number: str = THEIRS) -> None:
        """Somebody says so through another door."""
        self.consent.record(number, event, at, words="heron", source="test", id_="")

    def record(self, stop: Envelope) -> None:
        """Processing records this STOP."""
        message = stop.inbound()
        self.consent.record(
            message.sender,
            "stop",
            stop.received_at,
            words=message.text,
            source="twilio",
            id_=stop.id,
        )

    @property
    def said(self) -> list[str]:
        """The texts that the provider was asked to send."""
        return [part.text for part in self.carrier.parts]

    @property
    def asked(self) -> int:
        """How often anybody was asked what to say."""
        return len(self.runtime.requests)

    def settles(self) -> list[Any]:
        """What was put on the processing queue, as (kind, id, payload, seconds of delay)."""
        found = []
        for message in self.runtime.queues.sent["processing"]:
            envelope = Envelope.parse(message["MessageBody"])
            found.append(
                (envelope.kind, envelope.id, envelope.payload, message.get("DelaySeconds"))
            )
        return found

    @property
    def hidden(self) -> dict[str, int]:
        return self.runtime.queues.hidden

    def dead(self) -> list[str]:
        """Why messages are on the dead-letter queue."""
        copies = self.runtime.queues.sent["outbound-dlq.fifo"]
        return [copy["MessageAttributes"]["reason"]["StringValue"] for copy in copies]

    def assert_settled(self, message: Envelope) -> None:
        """However often the message comes again: it is done, and nobody is called."""
        before = self.said, len(self.runtime.requests), self.reply(message)
        for _ in range(2):
            self.runtime.clock += 40
            assert self.receive(message, receives=5) == []
        assert before == (self.said, len(self.runtime.requests), self.reply(message))


@pytest.fixture
def build(runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Makes the world. `answer`: what the adopter's own code returns, or does; `api`: what the
    reply API answers, call by call, where there is one."""

    def make(
        carrier: Carrier | None = None,
        *,
        answer: Any = None,
        api: Sequence[httpx.Response | Exception | Callable[[], httpx.Response]] = (),
        **variables: str,
    ) -> World:
        carrier = carrier or Carrier()
        monkeypatch.setattr("chalicelib.sending.provider_named", lambda name, url=None: carrier)
        if answer is not None:
            monkeypatch.setattr(
                "chalicelib.sending.own_reply",
                answer if callable(answer) else lambda message: answer,
            )
        if api:
            variables["REPLY_API_URL"] = API
            turns = iter(api)

            def respond(request: httpx.Request) -> httpx.Response:
                turn = next(turns)
                if isinstance(turn, Exception):
                    raise turn
                return turn() if callable(turn) else turn

            monkeypatch.setattr(runtime, "_answer", respond)
        return World(runtime, carrier, variables)

    return make


# --- one text, one answer ----------------------------------------------------------------------


def test_a_text_is_answered_once(build: Build) -> None:
    world, text = build(), inbound()
    assert world.receive(text) == []

    (part,) = world.carrier.parts
    reference = f"{text.id}-1"
    assert part == Part(
        reference=reference,
        sender=OURS,
        recipient=THEIRS,
        text=f"You wrote: {TEXT}",
        callback_url=f"https://sms.example.com/webhooks/twilio/signed?reference={reference}",
        started_at=NOW,
        validity=900,
    )
    assert world.carrier.secrets == [SECRETS["twilio"]]
    assert world.part(text).provider_id == "SM-1"
    assert world.reply(text).state == "sent"
    world.assert_settled(text)


def test_a_one_part_reply_costs_four_writes(build: Build) -> None:
    world = build(LOOP_LIMIT="30")
    world.receive(inbound())
    assert world.said
    assert tapped(world.runtime).writes() == ["put_item", *["update_item"] * 3]


@pytest.mark.parametrize(
    ("text", "age", "validity"),
    [
        (inbound(), 0, 900),
        (inbound(), 600.5, 299),
        (inbound(), 899.9, 1),
        (outgoing(), 600, 35_400),
        (inbound("STOP"), 100, 200),
    ],
    ids=["reply", "later", "at the last moment", "outgoing", "confirmation"],
)
def test_the_provider_is_told_how_long_it_is_wanted(
    build: Build, text: Envelope, age: float, validity: int
) -> None:
    world = build(answer="heron")
    world.runtime.clock += age
    assert world.receive(text) == []
    assert [part.validity for part in world.carrier.parts] == [validity]


def test_an_outgoing_text_is_sent_as_it_is(build: Build) -> None:
    world, text = build(api=[AssertionError("nobody is asked")]), outgoing("A heron for you")
    assert world.receive(text) == []
    assert world.said == ["A heron for you"]
    world.assert_settled(text)


def test_the_texts_of_a_conversation_are_answered_in_order(build: Build) -> None:
    # GIVEN a provider that takes nothing of the first for the time being
    world = build()
    texts = [inbound(f"heron {number}", id_=f"SM{number}") for number in range(3)]
    other = inbound("heron 9", id_="SM9", theirs=THEIRS[:-1] + "9")
    world.carrier.next = iter([Throttled("throttled", retry_after=30)])

    # THEN its successors wait as long, and another conversation does not
    assert world.receive(*texts, other) == ["m0", "m1", "m2"]
    assert world.hidden == {"h0": 30, "h1": 30, "h2": 30}

    world.runtime.clock += 30
    assert world.receive(*texts, receives=2) == []
    assert world.said == [f"You wrote: heron {n}" for n in (0, 9, 0, 1, 2)]


@pytest.mark.parametrize(
    ("envelope", "reason"),
    [
        (replace(inbound(), kind="receipt"), "unexpected_kind"),
        (replace(inbound(), kind="unreadable", id=""), "unexpected_kind"),
        (replace(inbound(), id=""), "unexpected_kind"),
    ],
    ids=["receipt", "unreadable", "no message id"],
)
def test_what_does_not_belong_here_is_dead_lettered(
    build: Build, envelope: Envelope, reason: str
) -> None:
    world = build()
    assert world.receive(envelope) == []
    assert (world.dead(), world.said) == ([reason], [])


def test_a_provider_that_is_not_configured_is_waited_for(build: Build) -> None:
    # GIVEN a number whose provider was taken out of PROVIDERS too early
    assert build(PROVIDERS="telnyx").receive(inbound()) == ["m0"]

    world = build()
    assert world.receive(inbound(), receives=9) == []
    assert len(world.said) == 1


def test_a_provider_that_is_gone_for_good_does_not_hold_up_its_conversations(build: Build) -> None:
    world, text = build(PROVIDERS="telnyx"), inbound()
    world.runtime.clock += 901
    assert world.receive(text) == []
    assert world.reply(text).state == "expired"


@pytest.mark.parametrize("later", [0, 901])
def test_consent_counts_whatever_becomes_of_its_provider(build: Build, later: float) -> None:
    # (A reply to it may expire; what the person wants does not.)
    world = build(PROVIDERS="telnyx")
    stop = inbound("STOP")
    world.runtime.clock += later
    world.receive(stop)
    assert world.consent.opted_out(THEIRS)


# --- every error of the provider contract ------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "hidden", "state", "entry"),
    [
        pytest.param(
            Rejected("landline", "30006"),
            None,
            "failed: landline",
            {"state": "failed", "error": "30006", "attempt": 0},
            id="rejected",
        ),
        pytest.param(
            Rejected("rejected"),
            None,
            "failed: rejected",
            {"state": "failed", "error": ""},
            id="rejected without a code",
        ),
        pytest.param(
            Throttled("throttled", "20429", retry_after=7.0),
            7,
            "waiting",
            {"state": "waiting", "attempt": 1, "owner": "", "lease_until": None},
            id="throttled, and told until when",
        ),
        pytest.param(
            Throttled("throttled"), 2, "waiting", {"state": "waiting", "attempt": 1}, id="throttled"
        ),
        pytest.param(
            Unavailable("no_connection"),
            2,
            "waiting",
            {"state": "waiting", "attempt": 1},
            id="no connection",
        ),
        pytest.param(
            Unavailable("credentials", "401"),
            2,
            "waiting",
            {"state": "waiting", "attempt": 1},
            id="credentials",
        ),
        pytest.param(
            OutcomeUnknown("read_timeout"),
            None,
            "unknown",
            {"state": "unknown", "error": "read_timeout", "attempt": 0},
            id="unknown",
        ),
        pytest.param(
            ValueError(f"heron {THEIRS}"),
            None,
            "unknown",
            {"state": "unknown", "error": "unexpected_error"},
            id="a bug around the call",
        ),
    ],
)
def test_what_becomes_of_an_error(
    build: Build, error: Exception, hidden: int | None, state: str, entry: dict[str, Any]
) -> None:
    # GIVEN a provider that fails once
    world, text = build(), inbound()
    world.carrier.next = iter([error])

    # THEN the ledger and the queue say so
    assert world.receive(text) == ([] if hidden is None else ["m0"])
    assert world.hidden == ({} if hidden is None else {"h0": hidden})
    assert world.reply(text).state == state
    found = world.part(text)
    assert {name: getattr(found, name) for name in entry} == entry

    # AND it is sent again only where it was certainly not taken
    if hidden is not None:
        world.runtime.clock += hidden
        assert world.receive(text, receives=2) == []
        assert len(world.said) == 2
        assert world.reply(text).state == "sent"
    world.assert_settled(text)


@pytest.mark.parametrize(
    ("answer", "hidden", "state"),
    [
        (httpx.Response(201, json={"sid": "SM1"}), None, "sent"),
        (httpx.Response(400, json={"code": 21610}), None, "failed: opted_out"),
        (httpx.Response(429, headers={"Retry-After": "7"}), 7, "waiting"),
        (httpx.Response(401, json={"code": 20003}), 2, "waiting"),
        (httpx.Response(500), None, "unknown"),
        (httpx.Response(201, text="heron"), None, "unknown"),
        (httpx.ConnectError("heron"), 2, "waiting"),
        (httpx.ConnectTimeout("heron"), 2, "waiting"),
        (httpx.PoolTimeout("heron"), 2, "waiting"),
        (httpx.ReadTimeout("heron"), None, "unknown"),
        (httpx.WriteTimeout("heron"), None, "unknown"),
        (httpx.RemoteProtocolError("heron"), None, "unknown"),
    ],
    ids=lambda one: (
        str(getattr(one, "status_code", None) or one)
        if isinstance(one, httpx.Response)
        else str(type(one).__name__ if isinstance(one, Exception) else one)
    ),
)
def test_twilios_answers_end_in_the_same_states(
    runtime: FakeRuntime,
    monkeypatch: pytest.MonkeyPatch,
    answer: httpx.Response | Exception,
    hidden: int | None,
    state: str,
) -> None:
    def respond(request: httpx.Request) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(runtime, "_answer", respond)
    world, text = World(runtime, Carrier(), {}), inbound()
    assert world.receive(text) == ([] if hidden is None else ["m0"])
    assert world.hidden == ({} if hidden is None else {"h0": hidden})
    assert world.reply(text).state == state
    assert len(runtime.requests) == 1


def test_credentials_that_are_refused_are_looked_up_again(build: Build) -> None:
    # GIVEN secrets that were read a while ago and have been rotated since
    world = build()
    world.receive(inbound(id_="SM0"))
    rotated = {**SECRETS["twilio"], "auth_tokens": ["a token of the tests, rotated"]}
    world.runtime.vault.held["twilio"] = rotated
    world.runtime.clock += 60

    # WHEN the old ones are refused
    text = inbound(id_="SM1")
    world.carrier.next = iter([Unavailable("credentials", "401")])
    assert world.receive(text) == ["m0"]

    # THEN the next attempt has the new ones
    assert world.receive(text, receives=2) == []
    assert world.carrier.secrets == [SECRETS["twilio"], SECRETS["twilio"], rotated]


@pytest.mark.parametrize("broken", ["missing", "down"])
def test_without_secrets_nothing_is_claimed(build: Build, broken: str) -> None:
    world, text = build(), inbound()
    if broken == "missing":
        del world.runtime.vault.held["twilio"]
    else:
        world.runtime.vault.fails = aws_error("InternalServiceError", "GetSecretValue")
    assert world.receive(text) == ["m0"]
    # THEN nobody was asked in vain, either
    assert (world.said, world.reply(text).parts, world.asked) == ([], None, 0)


# --- a provider that is ill --------------------------------------------------------------------


def several(number: int, first: int = 10, **fields: Any) -> list[Envelope]:
    """Texts of as many people."""
    return [
        inbound(f"heron {n}", id_=f"SM{n}", theirs=f"{THEIRS[:-2]}{n}", **fields)
        for n in range(first, first + number)
    ]


def ill(world: World, error: Exception | None = None) -> list[Envelope]:
    """Lets the provider fail until its breaker is open; the texts that failed."""
    failed = several(FAILURES)
    world.carrier.next = iter([error or Unavailable("no_connection")] * FAILURES)
    world.receive(*failed)
    assert len(world.said) == FAILURES
    world.hidden.clear()
    return failed


def test_a_provider_that_is_ill_is_left_alone(build: Build) -> None:
    world = build(api=[answered(text="heron")] * FAILURES)
    failed, text = ill(world), inbound()

    # WHEN more comes, new and old
    assert world.receive(text, *failed, receives=2) == [f"m{n}" for n in range(FAILURES + 1)]

    # THEN it waits until the breaker lets it, and neither provider nor reply API are asked
    assert len(world.said) == len(world.runtime.requests) == FAILURES
    assert world.reply(text).parts is None
    assert {world.part(one).attempt for one in failed} == {1}
    assert set(world.hidden.values()) == {22}


def test_one_text_finds_out_that_it_is_back_and_the_rest_follows(build: Build) -> None:
    world = build()
    failed = ill(world)
    world.runtime.clock += 22
    fails = Unavailable("no_connection")
    world.carrier.next = iter([fails])
    # GIVEN a first look that fails, and a second that does not
    assert len(world.receive(*failed, receives=2)) == FAILURES
    assert len(world.said) == FAILURES + 1
    world.runtime.clock += 40
    assert world.receive(*failed, receives=3) == []
    assert {world.reply(one).state for one in failed} == {"sent"}
    assert len(world.said) == 2 * FAILURES + 1


def test_while_one_looks_the_others_wait(build: Build) -> None:
    world = build()
    failed = ill(world)
    world.runtime.clock += 22
    second: list[list[str]] = []
    world.carrier.next = iter([lambda: second.append(world.receive(*failed[1:], receives=2))])
    assert world.receive(failed[0], receives=2) == []
    assert second == [[f"m{n}" for n in range(FAILURES - 1)]]
    assert len(world.said) == FAILURES + 1


def test_only_so_many_sends_become_unknown(build: Build) -> None:
    world = build()
    ill(world, OutcomeUnknown("read_timeout"))
    more = several(9, 30)
    world.carrier.next = repeat(OutcomeUnknown("read_timeout"))
    assert len(world.receive(*more)) == len(more)
    assert {world.reply(one).state for one in more} == {"waiting"}


def test_a_stop_counts_while_the_provider_is_ill(build: Build) -> None:
    world, stop = build(), inbound("STOP")
    ill(world)
    assert world.receive(stop) == ["m0"]
    assert world.consent.opted_out(THEIRS)
    assert world.reply(stop).parts is None


def test_nobody_waits_for_a_breaker_longer_than_the_reply_may_be_sent(build: Build) -> None:
    world = build()
    ill(world)
    text = inbound(received_at=NOW - 895)
    assert world.receive(text) == ["m0"]
    assert world.hidden == {"h0": 6}
    world.runtime.clock += 6
    assert world.receive(text, receives=2) == []
    assert world.reply(text).state == "expired"


def test_the_ledger_is_told_before_the_breaker(build: Build) -> None:
    world = build()
    ill(world)
    keys = [
        arguments["Key"]["sk"]["S"]
        for name, arguments in tapped(world.runtime).calls
        if name == "update_item"
    ]
    assert keys.count("BREAKER") == 1
    assert keys[-1] == "BREAKER"


@pytest.mark.parametrize("operation", ["batch_get_item", "update_item"])
def test_a_breaker_that_cannot_be_reached_holds_up_nobody(build: Build, operation: str) -> None:
    world, text = build(), inbound()
    ill(world)
    world.runtime.clock += 22
    # (the first update is that of the words)
    turns = [None] * (operation == "update_item") + [aws_error("InternalServerError")]
    tapped(world.runtime).next[operation] = iter(turns)
    assert world.receive(text) == []
    assert world.reply(text).state == "sent"


# --- loops -------------------------------------------------------------------------------------


def test_two_robots_are_parted(build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    # GIVEN a robot that answers each of our texts at once
    world = build(StopAnswering(), LOOP_LIMIT="30")
    texts = [inbound(id_=f"SM{n}", received_at=NOW + n) for n in range(35)]
    for text in texts:
        assert world.receive(text) == []
        world.runtime.clock += 1

    # THEN it gets as many answers as may be
    states = [world.reply(text).state for text in texts]
    assert states == ["sent"] * 30 + ["refused: loop"] * 5
    assert events(logged(capsys)).count("loop_held") == 5
    world.assert_settled(texts[-1])

    # AND what we are asked to send goes out, and a STOP counts
    ours = outgoing("A heron for you", received_at=NOW + 35)
    assert world.receive(ours, inbound("START", id_="SMs"), inbound("STOP", id_="SMt")) == []
    assert world.reply(ours).state == "sent"
    assert world.consent.opted_out(THEIRS)


def test_a_stop_is_confirmed_and_a_help_answered_in_a_loop(build: Build) -> None:
    world = build(LOOP_LIMIT="1", HELP_TEXT="Ask a heron")
    texts = [inbound(text, id_=f"SM{n}") for n, text in enumerate(["a", "b", "HELP", "STOP"])]
    assert world.receive(*texts) == []
    states = [world.reply(text).state for text in texts]
    assert states == ["sent", "refused: loop", "sent", "sent"]
    assert world.said[1:] == ["Ask a heron", STOPPED]


def test_a_text_that_gets_no_reply_is_none_of_a_loop(build: Build) -> None:
    silent = [httpx.Response(204)] * 5
    world = build(api=[*silent, answered(text="heron")], LOOP_LIMIT="1")
    texts = [inbound(id_=f"SM{n}") for n in range(6)]
    assert world.receive(*texts) == []
    assert world.reply(texts[-1]).state == "sent"


@pytest.mark.parametrize("landed", [False, True])
def test_a_death_at_the_count_of_a_reply_sends_it_once(build: Build, landed: bool) -> None:
    world, text = build(LOOP_LIMIT="1"), inbound()

    def die() -> None:
        raise Died

    turn = Lost(Died()) if landed else die
    tapped(world.runtime).next["update_item"] = iter([turn])
    with pytest.raises(Died):
        world.receive(text)
    assert world.receive(text, receives=2) == []
    assert (len(world.said), world.reply(text).state) == (1, "sent")
    world.assert_settled(text)


# --- deaths ------------------------------------------------------------------------------------


def test_a_claim_whose_owner_died_is_waited_for_and_then_unknown(build: Build) -> None:
    # GIVEN a process that dies while the provider has the request
    world, text = build(), inbound()
    world.carrier.next = iter([Died()])
    with pytest.raises(Died):
        world.receive(text, seconds=60)

    # THEN nobody else sends while it might live: until its deadline and a margin
    world.runtime.clock += 10
    assert world.receive(text, receives=2) == ["m0"]
    assert world.hidden == {"h0": 56}

    # AND afterwards it is for evidence or for a person
    world.runtime.clock += 56
    assert world.receive(text, receives=3) == []
    assert (world.reply(text).state, world.part(text).error) == ("unknown", "lease_ended")
    assert len(world.said) == 1
    world.assert_settled(text)


def test_an_old_reply_waits_for_a_claim_to_end_and_does_not_spin(build: Build) -> None:
    # GIVEN a claim whose owner died just before the reply was too old
    world, text = build(), inbound()
    world.runtime.clock += 899
    world.carrier.next = iter([Died()])
    with pytest.raises(Died):
        world.receive(text, seconds=60)
    # WHEN it comes again
    world.runtime.clock += 10
    assert world.receive(text, receives=2) == ["m0"]
    # THEN not before the claim has ended
    assert world.hidden == {"h0": 56}


@pytest.mark.parametrize(
    ("operation", "nth", "landed", "calls", "state"),
    [
        pytest.param("put_item", 1, False, 1, "sent", id="before it is opened"),
        pytest.param("put_item", 1, True, 1, "sent", id="after it is opened"),
        pytest.param("update_item", 1, False, 1, "sent", id="before the claim"),
        pytest.param("update_item", 1, True, 0, "unknown", id="after the claim"),
        pytest.param("update_item", 2, False, 1, "unknown", id="before the outcome"),
        pytest.param("update_item", 2, True, 1, "sent", id="after the outcome"),
    ],
)
def test_a_death_at_any_write_never_sends_twice(
    build: Build, operation: str, nth: int, landed: bool, calls: int, state: str
) -> None:
    # GIVEN a process that dies just before or just after one of its writes
    world, text = build(), inbound()

    def die() -> None:
        raise Died

    turn = Lost(Died()) if landed else die
    tapped(world.runtime).next[operation] = iter([*[None] * (nth - 1), turn])
    with pytest.raises(Died):
        world.receive(text)

    # WHEN it comes again, at once and when the claim has ended
    for receives in (2, 3):
        world.receive(text, receives=receives)
        world.runtime.clock += 70
    assert world.receive(text, receives=4) == []

    # THEN it was sent once, or nobody knows: never twice
    assert (len(world.said), world.reply(text).state) == (calls, state)
    world.assert_settled(text)


def test_two_deliveries_at_once_send_once(build: Build) -> None:
    # GIVEN the same message handed to a second worker while the first is calling the provider
    world, text = build(), inbound()
    second: list[list[str]] = []
    world.carrier.next = iter([lambda: second.append(world.receive(text, receives=2))])

    assert world.receive(text) == []

    # THEN the second waits for the first
    assert (second, len(world.said)) == ([["m0"]], 1)
    world.assert_settled(text)


@pytest.mark.parametrize("failure", [aws_error("InternalServerError"), Lost(no_answer())])
def test_an_outcome_is_written_as_soon_as_the_table_takes_it(
    build: Build, failure: Exception | Lost
) -> None:
    # GIVEN a table that fails twice when the outcome is written, or writes and does not answer
    world, text = build(), inbound()
    tapped(world.runtime).next["update_item"] = iter([None, failure, failure])
    assert world.receive(text) == []
    assert (world.reply(text).state, len(world.said)) == ("sent", 1)
    assert world.runtime.clock > NOW
    world.assert_settled(text)


@pytest.mark.parametrize("proven", [False, True], ids=["no receipt", "a receipt comes"])
def test_an_outcome_that_cannot_be_written_is_unknown_unless_proven(
    build: Build, proven: bool
) -> None:
    # GIVEN a table that takes no outcome until the invocation ends
    world, text = build(), inbound()
    down = aws_error("InternalServerError")
    tapped(world.runtime).next["update_item"] = chain([None], repeat(down))
    assert world.receive(text) == ["m0"]
    assert NOW + 30 < world.runtime.clock < NOW + 60
    tapped(world.runtime).next.clear()

    # WHEN the message comes again
    if proven:
        assert world.receipt(text) == "recorded"
    else:
        assert world.receive(text, receives=2) == ["m0"]
        world.runtime.clock = NOW + 66
    assert world.receive(text, receives=3) == []

    # THEN what is known is what is said
    assert world.reply(text).state == ("delivered" if proven else "unknown")
    world.assert_settled(text)
    assert len(world.said) == 1


OTHERS = [
    pytest.param(Rejected("landline"), "failed: landline", id="rejected"),
    pytest.param(Throttled("throttled", retry_after=1), "waiting", id="throttled"),
    pytest.param(OutcomeUnknown("read_timeout"), "unknown", id="unknown"),
]


@pytest.mark.parametrize("failure", [aws_error("InternalServerError"), Lost(no_answer())])
@pytest.mark.parametrize(("error", "state"), OTHERS)
def test_another_outcome_is_written_as_soon_as_the_table_takes_it(
    build: Build, error: Exception, state: str, failure: Exception | Lost
) -> None:
    # GIVEN a table that fails twice when the outcome is written, or writes and does not answer
    world, text = build(), inbound()
    world.carrier.next = iter([error])
    tapped(world.runtime).next["update_item"] = iter([None, failure, failure])
    world.receive(text)
    assert (world.reply(text).state, len(world.said)) == (state, 1)


@pytest.mark.parametrize("failure", [aws_error("InternalServerError"), Lost(no_answer())])
def test_a_claim_is_made_as_soon_as_the_table_takes_it(
    build: Build, failure: Exception | Lost
) -> None:
    # GIVEN a table that fails twice when the part is claimed, or writes and does not answer
    world, text = build(), inbound()
    tapped(world.runtime).next["update_item"] = iter([failure, failure])
    assert world.receive(text) == []
    assert (world.reply(text).state, len(world.said)) == ("sent", 1)
    world.assert_settled(text)


def test_a_claim_is_not_waited_for_until_there_is_no_time_to_send(build: Build) -> None:
    # GIVEN a table that takes the claim without an answer, and then nothing
    world, text = build(), inbound()
    down = aws_error("InternalServerError")
    tapped(world.runtime).next["update_item"] = chain([Lost(no_answer())], repeat(down))
    assert world.receive(text) == ["m0"]
    assert (world.said, world.part(text).state) == ([], "sending")
    assert NOW + 20 < world.runtime.clock < NOW + 37
    tapped(world.runtime).next.clear()
    # THEN nobody knows, when the claim has ended, that it was not sent
    world.runtime.clock = NOW + 66
    assert world.receive(text, receives=2) == []
    assert world.reply(text).state == "unknown"


@pytest.mark.parametrize(("error", "state"), OTHERS)
def test_an_outcome_other_than_sent_that_cannot_be_written_is_never_sent_again(
    build: Build, error: Exception, state: str
) -> None:
    # GIVEN a table that fails for as long as the invocation lasts
    world, text = build(), inbound()
    world.carrier.next = iter([error])
    down = aws_error("InternalServerError")
    tapped(world.runtime).next["update_item"] = chain([None], repeat(down))
    assert world.receive(text) == ["m0"]
    tapped(world.runtime).next.clear()
    world.runtime.clock += 70
    assert world.receive(text, receives=2) == []
    assert (world.reply(text).state, len(world.said)) == ("unknown", 1)


# --- what to say -------------------------------------------------------------------------------


def answered(status: int = 200, **body: Any) -> httpx.Response:
    return httpx.Response(status, json=body)


@pytest.mark.parametrize(
    ("answer", "parts"),
    [
        (answered(text="One heron"), [("One heron", ())]),
        (answered(texts=["One heron", "Two"]), [("One heron", ()), ("Two", ())]),
        (answered(text="One heron", texts=["Two"]), [("One heron", ()), ("Two", ())]),
        (answered(media=["https://a.example.com/1"]), [("", ("https://a.example.com/1",))]),
        (
            answered(text="One heron", media=["https://a.example.com/1"]),
            [("One heron", ("https://a.example.com/1",))],
        ),
        (
            answered(text="heron " * 30),
            [("heron " * 15 + "heron", ()), ("heron " * 13 + "heron", ())],
        ),
        (answered(text="One heron", mood="good"), [("One heron", ())]),
        (answered(text="One\r\nhe\x00ron"), [("One\nheron", ())]),
    ],
    ids=["text", "texts", "both", "media", "text and media", "split", "more fields", "normalised"],
)
def test_answers_of_the_reply_api(
    build: Build, answer: httpx.Response, parts: list[tuple[str, tuple[str, ...]]]
) -> None:
    world, text = build(api=[answer]), inbound()
    assert world.receive(text) == []
    assert [(part.text, part.media) for part in world.carrier.parts] == parts
    assert world.reply(text).state == "sent"
    world.assert_settled(text)


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (answered(), "no_reply"),
        (answered(text=None), "no_reply"),
        (answered(text=""), "no_reply"),
        (answered(text=" \n"), "no_reply"),
        (answered(texts=[]), "no_reply"),
        (httpx.Response(204), "no_reply"),
        (answered(400), "refused_by_reply_api: 400"),
        (answered(404), "refused_by_reply_api: 404"),
        (answered(422, text="heron"), "refused_by_reply_api: 422"),
        (answered(text="heron" * 61), "failed: too_long"),
    ],
)
def test_answers_that_end_in_silence(build: Build, answer: httpx.Response, outcome: str) -> None:
    world, text = build(api=[answer]), inbound()
    assert world.receive(text) == []
    assert world.reply(text).state == outcome
    assert world.said == []
    world.assert_settled(text)


@pytest.mark.parametrize(
    ("answer", "hidden"),
    [
        (answered(500), 2),
        (answered(503), 2),
        (answered(401), 2),
        (answered(403), 2),
        (answered(408), 2),
        (answered(429), 2),
        (httpx.Response(429, headers={"Retry-After": "7"}), 7),
        (httpx.Response(503, headers={"Retry-After": "70"}), 70),
        (httpx.Response(302, headers={"Location": "https://a.example.com"}), 2),
        (httpx.ConnectError("heron"), 2),
        (httpx.ReadTimeout("heron"), 2),
        (httpx.RemoteProtocolError("heron"), 2),
        (httpx.Response(200, text="A heron"), 2),
        (httpx.Response(200, json=["A heron"]), 2),
        (answered(text=5), 2),
        (answered(media=["heron"]), 2),
        (answered(texts=["heron"] * 10), 2),
    ],
)
def test_answers_that_are_waited_for(
    build: Build, answer: httpx.Response | Exception, hidden: int
) -> None:
    # GIVEN a reply API that cannot answer now, THEN it is asked again later
    world, text = build(api=[answer, answered(text="One heron")]), inbound()
    assert world.receive(text) == ["m0"]
    assert world.hidden == {"h0": hidden}
    assert world.reply(text).state == "waiting"

    assert world.receive(text, receives=2) == []
    assert world.said == ["One heron"]


def test_what_the_reply_api_is_asked(build: Build) -> None:
    world = build(api=[answered()])
    # (as it is stored and matched, too)
    media = (Media("https://a.example.com/1", "image/png"),)
    text = inbound(f"{TEXT}\x00\r\ud800", media=media)
    world.receive(text)
    (request,) = world.runtime.requests
    assert (request.method, str(request.url)) == ("POST", API)
    assert request.headers["Idempotency-Key"] == text.id
    assert json.loads(request.content) == {
        "id": text.id,
        "provider": "twilio",
        "from": THEIRS,
        "to": OURS,
        "text": f"{TEXT}\n\ufffd",
        "media": [{"url": "https://a.example.com/1", "content_type": "image/png"}],
        "received_at": NOW,
    }


def test_words_that_were_stored_are_sent_and_nobody_is_asked_again(build: Build) -> None:
    # GIVEN a provider out of reach at first, and a reply API that would say something else later
    world = build(api=[answered(text="First heron"), answered(text="Second heron")])
    text = inbound()
    world.carrier.next = iter([Unavailable("no_connection")])
    assert world.receive(text) == ["m0"]
    assert world.part(text).text == "First heron"

    assert world.receive(text, receives=2) == []
    assert world.said == ["First heron", "First heron"]
    assert len(world.runtime.requests) == 1


def test_own_code_that_has_nothing_to_say(build: Build) -> None:
    world, text = build(answer=lambda message: None), inbound()
    assert world.receive(text) == []
    assert world.reply(text).state == "no_reply"


def test_own_code_that_fails_is_counted_and_harms_nobody(
    build: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(message: object) -> None:
        raise KeyError(THEIRS)

    world, text = build(answer=fail), inbound()
    assert world.receive(text) == ["m0"]
    assert events(logged(capsys)) == ["unexpected_error"]
    assert world.reply(text).parts is None


def test_a_bug_around_the_call_is_counted_beside_the_unknown_send(
    build: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    world, text = build(), inbound()
    world.carrier.next = iter([ValueError(f"heron {THEIRS}")])
    assert world.receive(text) == []
    lines = logged(capsys)
    assert events(lines) == ["unexpected_error", "outcome_unknown"]
    for metric in ("UnexpectedErrors", "UnknownSends"):
        assert [line["id"] for line in lines if metric in line] == [f"{text.id}-1"]


# --- several parts -----------------------------------------------------------------------------


def test_parts_go_in_order_each_under_its_own_reference(build: Build) -> None:
    world, text = build(answer=["heron 1", "heron 2", "heron 3"]), inbound()
    assert world.receive(text) == []
    assert world.said == ["heron 1", "heron 2", "heron 3"]
    assert [part.reference for part in world.carrier.parts] == [f"{text.id}-{n}" for n in (1, 2, 3)]
    world.assert_settled(text)


@pytest.mark.parametrize(
    ("error", "state"),
    [(Rejected("landline"), "failed: landline"), (OutcomeUnknown("read_timeout"), "unknown")],
)
def test_what_follows_a_part_that_failed_or_is_unknown_is_not_sent(
    build: Build, error: Exception, state: str
) -> None:
    world, text = build(answer=["heron 1", "heron 2"]), inbound()
    world.carrier.next = iter([error])
    assert world.receive(text) == []
    assert world.said == ["heron 1"]
    assert world.reply(text).state == state
    assert world.part(text, 2).state == "waiting"
    world.assert_settled(text)


def test_a_later_part_is_taken_up_where_it_stopped(build: Build) -> None:
    world, text = build(answer=["heron 1", "heron 2", "heron 3"]), inbound()
    world.carrier.next = iter([None, Throttled("throttled")])
    assert world.receive(text) == ["m0"]
    assert world.reply(text).state == "sending"
    assert world.receive(text, receives=2) == []
    assert world.said == ["heron 1", "heron 2", "heron 2", "heron 3"]
    assert world.reply(text).state == "sent"


def test_a_receipt_that_overtakes_a_lost_answer_lets_the_next_part_go(build: Build) -> None:
    # GIVEN a provider that takes part 1 and confirms it, but whose answer is lost
    world, text = build(answer=["heron 1", "heron 2"]), inbound()

    def lost_answer() -> None:
        assert world.receipt(text) == "recorded"
        raise OutcomeUnknown("read_timeout")

    world.carrier.next = iter([lost_answer])

    # THEN part 1 is known to be sent, and part 2 is not forgotten
    assert world.receive(text) == []
    assert world.said == ["heron 1", "heron 2"]
    assert (world.part(text).status, world.reply(text).state) == ("delivered", "sent")


def test_a_receipt_that_overtakes_the_end_of_a_claim_lets_the_next_part_go(
    build: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    # GIVEN a claim whose owner died, and a receipt that comes just as it is declared dead
    world, text = build(answer=["heron 1", "heron 2"]), inbound()
    world.carrier.next = iter([Died()])
    with pytest.raises(Died):
        world.receive(text)
    world.runtime.clock += 70
    # The first update of this delivery counts its start.
    tapped(world.runtime).next["update_item"] = iter([None, lambda: world.receipt(text)])

    assert world.receive(text, receives=2) == []
    assert world.said == ["heron 1", "heron 2"]
    assert world.reply(text).state == "sent"
    assert "outcome_unknown" not in events(logged(capsys))


def test_a_part_is_not_begun_without_the_time_to_end_it(build: Build) -> None:
    # GIVEN a provider that takes 20 s for each part, and an invocation of 60
    world, text = build(answer=["heron 1", "heron 2", "heron 3"]), inbound()

    def slowly() -> None:
        world.runtime.clock += 20

    world.carrier.next = repeat(slowly)
    assert world.receive(text, seconds=60) == ["m0"]

    # THEN the third waits for the next invocation, which comes soon
    assert world.said == ["heron 1", "heron 2"]
    assert world.part(text, 3).state == "waiting"
    assert world.hidden["h0"] < 5
    assert world.receive(text, receives=2) == []
    assert world.said == ["heron 1", "heron 2", "heron 3"]


# --- settling ----------------------------------------------------------------------------------


def resume_of(text: Envelope, **fields: Any) -> Envelope:
    return replace(text, kind="resume", payload={}, **fields)


def test_an_unknown_part_is_looked_for_in_a_minute(build: Build) -> None:
    world, text = build(answer=["heron 1", "heron 2"]), inbound()
    world.carrier.next = iter([None, OutcomeUnknown("read_timeout")])
    assert world.receive(text) == []
    assert world.settles() == [("settle", text.id, {"part": 2, "attempt": 0}, 60)]


@pytest.mark.parametrize("dies", [False, True], ids=["refused", "dies"])
def test_a_message_stays_until_somebody_looks_for_its_unknown_part(
    build: Build, dies: bool
) -> None:
    # GIVEN a queue that takes nothing, or a death before it does
    world, text = build(), inbound()
    world.carrier.next = iter([OutcomeUnknown("read_timeout")])
    refusal = Died() if dies else aws_error("ServiceUnavailable", "SendMessage")
    world.runtime.queues.refuses["processing"] = refusal  # type: ignore[assignment]
    if dies:
        with pytest.raises(Died):
            world.receive(text)
    else:
        assert world.receive(text) == ["m0"]
    assert world.reply(text).state == "unknown"
    # WHEN it comes again
    world.runtime.queues.refuses.clear()
    assert world.receive(text, receives=2) == []
    assert world.settles() == [("settle", text.id, {"part": 1, "attempt": 0}, 60)]
    assert len(world.said) == 1


def test_a_claim_that_ended_is_looked_for(build: Build) -> None:
    world, text = build(), inbound()
    world.carrier.next = iter([Died()])
    with pytest.raises(Died):
        world.receive(text)
    world.runtime.clock += 70
    assert world.receive(text, receives=2) == []
    assert world.settles() == [("settle", text.id, {"part": 1, "attempt": 0}, 60)]


def test_an_unknown_part_is_looked_for_though_its_provider_is_gone(build: Build) -> None:
    # GIVEN an unknown part, and its provider taken out of PROVIDERS since
    world, text = build(answer=["heron 1", "heron 2"]), inbound()
    world.carrier.next = iter([OutcomeUnknown("read_timeout")])
    world.receive(text)
    world = build(PROVIDERS="telnyx")
    world.runtime.clock += 901
    # WHEN the message comes again, too old to be sent, THEN the reply is not closed over it
    assert world.receive(text, receives=2) == []
    assert (world.reply(text).outcome, len(world.settles())) == ("", 2)


def test_a_resume_goes_on_where_it_stopped(build: Build) -> None:
    # GIVEN part 1 of three unknown, and a receipt for it since
    world, text = build(answer=["heron 1", "heron 2", "heron 3"]), inbound()
    world.carrier.next = iter([OutcomeUnknown("read_timeout")])
    world.receive(text)
    world.receipt(text)
    assert world.reply(text).to_be_resumed
    # WHEN the sender is told, twice
    assert world.receive(resume_of(text), resume_of(text)) == []
    # THEN the rest follows, once
    assert world.said == ["heron 1", "heron 2", "heron 3"]
    assert not world.reply(text).listed
    world.assert_settled(text)


def test_a_resume_reads_consent_again(build: Build) -> None:
    world, text = build(answer=["heron 1", "heron 2"]), inbound()
    world.carrier.next = iter([OutcomeUnknown("read_timeout")])
    world.receive(text)
    world.receipt(text)
    world.say("stop")
    assert world.receive(resume_of(text)) == []
    assert (world.said, world.reply(text).state) == (["heron 1"], "refused: opted_out")
    assert not world.reply(text).listed


@pytest.mark.parametrize(
    "resume",
    [
        resume_of(inbound(id_="SM9")),
        resume_of(inbound(), received_at=NOW - 400 * DAY),
        resume_of(inbound(id_="SM8")),
    ],
    ids=["no such reply", "older than the ledger", "no words"],
)
def test_a_resume_of_nothing_is_done(build: Build, resume: Envelope) -> None:
    world = build(api=[answered(500)])
    world.receive(inbound(id_="SM8"))
    assert world.receive(resume) == []
    assert (world.said, world.dead(), world.asked) == ([], [], 1)


def test_a_resume_is_sent_for_as_long_as_its_reply_would_be(build: Build) -> None:
    # GIVEN an outgoing text, part 1 of which was unknown for longer than a reply lives
    world, text = build(), outgoing("heron " * 30)
    world.carrier.next = iter(
        [OutcomeUnknown("read_timeout"), Throttled("throttled", retry_after=1e5)]
    )
    world.receive(text)
    world.receipt(text)
    world.runtime.clock += 1800
    # WHEN it is resumed and the provider wants it later, THEN it waits for no longer than it lives
    assert world.receive(resume_of(text)) == ["m0"]
    assert world.hidden == {"h0": 36_000 - 1800 + 1}
    assert world.receive(resume_of(text), receives=2) == []
    assert (len(world.said), world.reply(text).state) == (3, "sent")


# --- redriven ----------------------------------------------------------------------------------


def test_age_counts_from_when_somebody_put_it_back(build: Build) -> None:
    world, text = build(answer="heron"), inbound()
    world.runtime.clock += 7200
    assert world.receive(replace(text, redriven_at=NOW + 7000)) == []
    assert (world.said, world.carrier.parts[0].validity) == (["heron"], 700)
    assert world.reply(text).redriven_at == NOW + 7000

    late = inbound(id_="SM2")
    assert world.receive(replace(late, redriven_at=NOW + 6000)) == []
    assert world.reply(late).state == "expired"


def test_a_redriven_stop_is_recorded_by_its_own_time_and_not_confirmed(build: Build) -> None:
    # GIVEN somebody who said STOP, then START, and the STOP redriven after it
    world, stop = build(), inbound("STOP")
    world.say("start", NOW + 100)
    world.runtime.clock += 7200
    assert world.receive(replace(stop, redriven_at=NOW + 7200)) == []
    assert (world.said, world.consent.opted_out(THEIRS)) == ([], False)
    assert world.reply(stop).state == "no_reply: stop"


def test_a_redrive_does_not_lengthen_the_ledgers_life(build: Build) -> None:
    world, text = build(), inbound()
    world.runtime.clock += 399 * DAY
    assert world.receive(replace(text, redriven_at=world.runtime.clock)) == []
    assert world.said == []


# --- age ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "age", "state"),
    [
        (inbound(), 899, "sent"),
        (inbound(), 901, "expired"),
        (outgoing(), 901, "sent"),
        (outgoing(), 35_999, "sent"),
        (outgoing(), 36_001, "expired"),
    ],
    ids=["reply", "old reply", "outgoing", "late outgoing", "old outgoing"],
)
def test_what_is_too_old_is_not_sent(build: Build, text: Envelope, age: float, state: str) -> None:
    world = build(answer="heron")
    world.runtime.clock += age
    assert world.receive(text) == []
    assert world.reply(text).state == state
    assert bool(world.said) == (state == "sent")
    world.assert_settled(text)


def test_nobody_is_asked_what_to_say_to_an_old_text(build: Build) -> None:
    world, text = build(api=[AssertionError("nobody is asked")]), inbound()
    world.runtime.clock += 901
    assert world.receive(text) == []
    assert world.runtime.requests == []


def test_a_reply_of_which_a_part_was_sent_says_so_when_it_expires(build: Build) -> None:
    world, text = build(answer=["heron 1", "heron 2"]), inbound()
    world.carrier.next = iter([None, Unavailable("no_connection")])
    assert world.receive(text) == ["m0"]
    world.runtime.clock += 901
    assert world.receive(text, receives=2) == []
    assert world.reply(text).state == "expired: after 1 of its parts"
    assert len(world.said) == 2


def test_nobody_waits_longer_than_the_reply_may_be_sent(build: Build) -> None:
    # GIVEN a reply API that wants to be asked again in twelve hours
    api = [httpx.Response(503, headers={"Retry-After": "43200"})]
    world = build(api=api)
    world.runtime.clock += 100
    assert world.receive(inbound(), inbound(id_="SM2")) == ["m0", "m1"]
    # THEN it comes back just when it is too old, and so does whoever is behind it
    assert world.runtime.queues.hidden == {"h0": 801, "h1": 801}


def test_no_part_is_claimed_that_there_is_no_time_to_send(build: Build) -> None:
    # GIVEN a table that is slow to say that nobody opted out
    world, text = build(api=[httpx.Response(200, json={"text": "A heron"})]), inbound()

    def slow() -> None:
        world.runtime.clock += 30

    tapped(world.runtime).next["get_item"] = iter([None, slow])
    assert world.receive(text) == ["m0"]
    # THEN its words are kept: a reply API that is slow is not asked again, and again too slow
    assert (world.said, world.part(text).state, world.part(text).attempt) == ([], "waiting", 0)
    assert world.runtime.queues.hidden == {"h0": 0}
    assert world.receive(text) == []
    assert (len(world.said), world.asked) == (1, 1)


def test_a_claim_that_took_too_long_is_given_back(build: Build) -> None:
    # GIVEN a table that is slow to take the claim
    world, text = build(), inbound()

    def slow() -> None:
        world.runtime.clock += 50

    tapped(world.runtime).next["update_item"] = iter([slow])
    assert world.receive(text) == ["m0"]
    assert (world.said, world.part(text).state) == ([], "waiting")
    assert world.receive(text, receives=2) == []
    assert len(world.said) == 1


@pytest.mark.parametrize(
    ("reply_timeout", "seconds", "begun"),
    [("10", 37, True), ("10", 35, False), ("30", 57, True), ("30", 55, False)],
)
def test_what_there_is_no_time_to_answer_is_handed_back(
    build: Build, reply_timeout: str, seconds: float, begun: bool
) -> None:
    world, text = build(REPLY_TIMEOUT=reply_timeout), inbound()
    assert world.receive(text, seconds=seconds) == ([] if begun else ["m0"])
    assert bool(world.said) is begun
    assert bool(tapped(world.runtime).writes()) is begun


@pytest.mark.parametrize(("took", "sent"), [(24, True), (35, False)])
def test_no_part_is_sent_whose_outcome_there_is_no_time_to_write(
    build: Build, took: float, sent: bool
) -> None:
    # GIVEN a table that is slow to take the claim, in an invocation of 60 s
    world, text = build(), inbound()

    def slow() -> None:
        world.runtime.clock += took

    tapped(world.runtime).next["update_item"] = iter([slow])
    assert world.receive(text) == ([] if sent else ["m0"])
    assert bool(world.said) is sent


def test_a_start_from_the_future_does_not_disable_stop(build: Build) -> None:
    # GIVEN a provider whose clock is a year ahead
    world = build(StopAnswering())
    ahead = inbound("START")
    ahead = replace(ahead, payload={**ahead.payload, "sent_at": NOW + 365 * DAY})
    assert world.receive(ahead) == []
    # WHEN the person says STOP later
    world.runtime.clock += 60
    stop = inbound("STOP", id_="SM2")
    assert world.receive(replace(stop, received_at=NOW + 60)) == []
    # THEN it counts
    assert world.consent.opted_out(THEIRS)


def test_a_reply_whose_words_waited_too_long_expires(build: Build) -> None:
    world, text = build(), inbound()
    world.carrier.next = iter([Unavailable("no_connection")])
    assert world.receive(text) == ["m0"]
    world.runtime.clock += 901
    assert world.receive(text, receives=9) == []
    assert (world.reply(text).state, len(world.said)) == ("expired", 1)


def test_age_counts_from_the_first_receipt(build: Build) -> None:
    # GIVEN a text that was held up, and a duplicate of it that came to our door much later
    world, text = build(api=[answered(500), answered(text="heron")]), inbound()
    assert world.receive(text) == ["m0"]
    world.runtime.clock += 901
    assert world.receive(replace(text, received_at=NOW + 900)) == []
    assert world.reply(text).state == "expired"


def test_nothing_is_sent_that_the_ledger_may_have_forgotten(
    build: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    world, text = build(), inbound()
    world.runtime.clock += 399 * DAY
    assert world.receive(text) == []
    assert world.said == []
    assert events(logged(capsys)) == ["older_than_ledger"]
    assert tapped(world.runtime).writes() == []


# --- consent -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("carrier", "text", "before", "said", "state", "opted_out"),
    [
        pytest.param(Carrier, "STOP", None, [STOPPED], "sent", True, id="stop"),
        pytest.param(Carrier, "Stop.", "start", [STOPPED], "sent", True, id="stop after start"),
        pytest.param(Carrier, "STOP", "stop", [], "no_reply: stop", True, id="stop again"),
        pytest.param(
            Carrier, "Please stop texting me!", None, [STOPPED], "sent", True, id="in other words"
        ),
        pytest.param(
            StopAnswering,
            "Please stop texting me!",
            None,
            [],
            "no_reply: stop",
            True,
            id="in words that the provider does not answer",
        ),
        pytest.param(
            Carrier, "stop by tomorrow", None, ["Hi, heron"], "sent", False, id="somebody's plan"
        ),
        pytest.param(Carrier, "START", "stop", ["Hi, heron"], "sent", False, id="start"),
        pytest.param(Carrier, "YES", "stop", ["Hi, heron"], "sent", False, id="yes, opted out"),
        pytest.param(Carrier, "YES", None, ["Hi, heron"], "sent", False, id="yes"),
        pytest.param(Carrier, "HELP", None, ["Ask a heron"], "sent", False, id="help"),
        pytest.param(Carrier, "HELP", "start", ["Ask a heron"], "sent", False, id="help, started"),
        pytest.param(Carrier, "HELP", "stop", [], "refused: opted_out", True, id="help, opted out"),
        pytest.param(
            StopAnswering, "STOP", None, [], "no_reply: stop", True, id="stop, answered for us"
        ),
        pytest.param(
            StopAnswering, "START", "stop", [], "no_reply: start", False, id="start, answered"
        ),
        pytest.param(
            StopAnswering, "YES", "stop", [], "no_reply: start", False, id="yes, answered"
        ),
        pytest.param(
            StopAnswering, "YES", None, ["Hi, heron"], "sent", False, id="yes, not opted out"
        ),
        pytest.param(StopAnswering, "HELP", None, [], "no_reply: help", False, id="help, answered"),
    ],
)
def test_keywords(
    build: Build,
    carrier: type[Carrier],
    text: str,
    before: ConsentEvent | None,
    said: list[str],
    state: str,
    opted_out: bool,
) -> None:
    # GIVEN a person who said something before, or nothing
    world, message = build(carrier(), answer="Hi, heron", HELP_TEXT="Ask a heron"), inbound(text)
    if before is not None:
        world.say(before, NOW - 60)

    assert world.receive(message) == []

    # THEN what they say now counts, and is answered once
    assert world.said == said
    assert world.reply(message).state == state
    assert world.consent.opted_out(THEIRS) is opted_out
    world.assert_settled(message)


def test_help_without_a_text_of_ours_is_a_text_like_any_other(build: Build) -> None:
    world = build(answer="Hi, heron")
    world.receive(inbound("HELP"))
    assert world.said == ["Hi, heron"]


@pytest.mark.parametrize("carrier", [Carrier, StopAnswering])
def test_the_providers_own_reading_counts(build: Build, carrier: type[Carrier]) -> None:
    world = build(carrier())
    world.receive(inbound("No herons any more", consent_hint="stop"))
    assert world.consent.opted_out(THEIRS)
    assert world.said == ([] if carrier.answers_stop else [STOPPED])


def entry(world: World) -> dict[str, Any]:
    found = Table(world.runtime, "test").get(
        (f"P#default#{Keys(HASH_KEY).number(THEIRS)}", "CONSENT")
    )
    assert found is not None
    return found


def test_consent_is_recorded_with_its_evidence(build: Build) -> None:
    world, message = build(), inbound(" Stop! ")
    world.receive(message)
    found = entry(world)
    evidence = {name: found[name] for name in ("event", "at", "words", "source", "id")}
    assert evidence == {
        "event": "stop",
        "at": NOW,
        "words": " Stop! ",
        "source": "twilio",
        "id": message.id,
    }


@pytest.mark.parametrize(("sent_at", "at"), [(None, NOW), (NOW - 3, NOW - 3)])
def test_the_time_of_consent_is_the_persons_not_a_duplicates(
    build: Build, sent_at: float | None, at: float
) -> None:
    # GIVEN a STOP whose first delivery ended when its ledger item was there
    world, message = build(), inbound("STOP", sent_at=sent_at)
    tapped(world.runtime).next["get_item"] = iter([aws_error("InternalServerError")])
    assert world.receive(message) == ["m0"]

    # WHEN a duplicate of it comes to our door an hour later
    world.runtime.clock += 3600
    late = inbound("STOP", sent_at=sent_at, received_at=NOW + 3600)
    assert world.receive(late) == []
    assert entry(world)["at"] == at


def test_who_opted_out_gets_nothing_more(build: Build) -> None:
    # GIVEN STOP, a text, START, and a text in one conversation, and outgoing texts
    world = build(answer="Hi, heron")
    stop, first = inbound("STOP", id_="SM1"), inbound("heron?", id_="SM2")
    start = inbound("START", id_="SM3", received_at=NOW + 10)
    second, ours = inbound("heron!", id_="SM4"), outgoing("A heron for you")
    other = outgoing("A heron for you too", key="k2", theirs=THEIRS[:-1] + "9")

    assert world.receive(stop, first, ours, other) == []
    assert [world.reply(one).state for one in (stop, first, ours)] == [
        "sent",
        "refused: opted_out",
        "refused: opted_out",
    ]
    assert world.receive(start, second) == []
    assert [world.reply(one).state for one in (start, second)] == ["sent", "sent"]
    assert sorted(world.said) == sorted([STOPPED, "A heron for you too", "Hi, heron", "Hi, heron"])
    world.assert_settled(first)
    world.assert_settled(ours)


def test_a_start_that_ties_with_a_stop_changes_nothing(build: Build) -> None:
    world = build(answer="Hi, heron")
    start = inbound("START", id_="SM2", received_at=NOW + 1)
    assert world.receive(inbound("STOP", id_="SM1"), start) == []
    assert world.consent.opted_out(THEIRS)
    assert (world.said, world.reply(start).state) == ([STOPPED], "refused: opted_out")


def test_a_start_out_of_a_dead_letter_queue_overrides_no_later_stop(build: Build) -> None:
    world = build(answer="Hi, heron")
    world.say("stop", NOW + 100)
    world.runtime.clock += 200
    start = inbound("START", received_at=NOW)
    assert world.receive(start) == []
    assert (world.said, world.reply(start).state) == ([], "refused: opted_out")


def test_a_stop_that_processing_recorded_meanwhile_counts(build: Build) -> None:
    # GIVEN a person who says STOP while the reply API thinks about their text
    def slow() -> httpx.Response:
        world.say("stop")
        return answered(text="Hi, heron")

    world, text = build(api=[slow]), inbound()
    assert world.receive(text) == []
    assert (world.said, world.reply(text).state) == ([], "refused: opted_out")


def test_a_stop_between_two_parts_counts(build: Build) -> None:
    world, text = build(answer=["heron 1", "heron 2"]), inbound()
    world.carrier.next = iter([lambda: world.say("stop")])
    # (At once: nobody has to come again for it.)
    assert world.receive(text) == []
    assert (world.said, world.reply(text).state) == (["heron 1"], "refused: opted_out")
    world.assert_settled(text)


def test_a_confirmation_comes_at_once_or_not_at_all(build: Build) -> None:
    # GIVEN a STOP that we get to only after the five minutes
    world, late = build(), inbound("STOP")
    world.runtime.clock += CONFIRMATION_MAX_AGE + 1
    assert world.receive(late) == []
    assert (world.said, world.reply(late).state) == ([], "no_reply: stop")
    assert world.consent.opted_out(THEIRS)


def test_a_confirmation_that_had_to_wait_is_not_sent_later(build: Build) -> None:
    # GIVEN a provider that takes no confirmation for more than five minutes
    world, stop = build(), inbound("STOP")
    world.carrier.next = iter([Throttled("throttled", retry_after=CONFIRMATION_MAX_AGE + 1)])
    assert world.receive(stop) == ["m0"]
    world.runtime.clock += CONFIRMATION_MAX_AGE + 1

    # THEN there is none: by now it would be a text that nobody wants
    assert world.receive(stop, receives=2) == []
    assert len(world.said) == 1
    assert world.reply(stop).state == "expired"
    world.assert_settled(stop)


def test_a_stop_is_recorded_however_old_it_is(build: Build) -> None:
    world = build(StopAnswering())
    world.runtime.clock += 10 * DAY
    world.receive(inbound("STOP"))
    assert world.consent.opted_out(THEIRS)


def test_an_opt_out_that_cannot_be_read_is_no_consent(build: Build) -> None:
    # GIVEN a table that fails when consent is read
    world, text = build(), inbound()
    for turns in ([None, aws_error("InternalServerError")], [aws_error("InternalServerError")]):
        tapped(world.runtime).next["get_item"] = iter(turns)
        assert world.receive(text) == ["m0"]
        assert (world.said, world.reply(text).state) == ([], "waiting")


# --- the one confirmation ------------------------------------------------------------------------


def stop(id_: str, after: float = 0, *, words: str = "STOP", to: str = OURS) -> Envelope:
    """A STOP that somebody sends then, to one of our numbers."""
    return inbound(words, id_=id_, ours=to, received_at=NOW + after)


SECOND = "+14155550199"


@pytest.mark.parametrize(
    ("said", "confirmed"),
    [
        pytest.param([stop("A"), stop("B", 9)], ["A"], id="stop again"),
        pytest.param([stop("A"), stop("B", 9, words="please stop")], ["A"], id="in other words"),
        pytest.param([stop("A"), stop("B", 1, to=SECOND)], ["A"], id="to two of our numbers"),
        pytest.param(
            [stop("A"), stop("S", 9, words="START"), stop("B", 18)], ["A", "B"], id="in between"
        ),
        pytest.param([stop("S", 9, words="START"), stop("A")], [], id="it takes no effect"),
        pytest.param([stop("S", 1, words="START"), stop("A")], ["A"], id="a tie"),
        pytest.param([stop("B", 9), stop("A")], ["B"], id="the earlier one late"),
    ],
)
@pytest.mark.parametrize("processing", ["later", "first"])
def test_whoever_opts_out_is_told_once(
    build: Build, said: list[Envelope], confirmed: list[str], processing: str
) -> None:
    # GIVEN texts, each STOP among which processing may have recorded before
    world = build(answer=[])
    for one in said:
        world.runtime.clock = max(world.runtime.clock, one.received_at)
        if processing == "first" and one.payload["text"] != "START":
            world.record(one)
        assert world.receive(one) == []
    # THEN only the one that began it is confirmed
    ids = {one.payload["id"]: one.id for one in said}
    assert [part.reference for part in world.carrier.parts] == [f"{ids[n]}-1" for n in confirmed]
    for one in said:
        world.assert_settled(one)


def test_processing_may_have_recorded_a_later_stop_already(build: Build) -> None:
    world = build()
    first, second = stop("A"), stop("B", 9)
    world.runtime.clock += 9
    world.record(second)
    assert world.receive(first, second) == []
    assert [part.reference for part in world.carrier.parts] == [f"{second.id}-1"]


@pytest.mark.parametrize("operation", ["get_item", "put_item", "update_item"])
@pytest.mark.parametrize("nth", range(5))
@pytest.mark.parametrize("landed", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("processing", ["later", "first"])
def test_a_death_at_any_call_confirms_a_stop_at_most_once(
    build: Build, operation: str, nth: int, landed: bool, processing: str
) -> None:
    # GIVEN a process that dies just before or just after one of its calls to the table
    world, message = build(), stop("A")
    if processing == "first":
        world.record(message)
    died, before_the_claim = False, True

    def die() -> None:
        raise Died

    turn = Lost(Died()) if landed else die
    tapped(world.runtime).next[operation] = iter([*[None] * nth, turn])
    try:
        world.receive(message)
    except Died:
        died = True
        found = world.ledger.find(MessageId(*message.id.split("-")))
        part = (found.parts or (None,))[0] if found else None
        before_the_claim = part is None or part.state == "waiting"

    # WHEN it comes again, at once and when the claim has ended
    tapped(world.runtime).next.clear()
    for receives in (2, 3, 4):
        world.receive(message, receives=receives)
        world.runtime.clock += 70

    # THEN the number is opted out, and told so unless that may have been done already
    assert world.consent.opted_out(THEIRS)
    assert len(world.said) == 1 or (died and not before_the_claim)
    assert set(world.said) <= {STOPPED}
    assert len(world.said) <= 1
    world.assert_settled(message)


def test_a_confirmation_that_waits_is_not_sent_after_a_start(build: Build) -> None:
    # GIVEN a confirmation that the provider takes only later
    world, message = build(), stop("A")
    world.carrier.next = iter([Throttled("throttled", retry_after=30)])
    assert world.receive(message) == ["m0"]
    # WHEN the person says START to another number of ours, and STOP again
    world.say("start", NOW + 10)
    world.runtime.clock += 30
    second = stop("B", 20, to=SECOND)
    assert world.receive(second) == []
    # THEN that STOP alone is confirmed
    assert world.receive(message, receives=2) == []
    assert [part.reference for part in world.carrier.parts[1:]] == [f"{second.id}-1"]
    assert world.reply(message).state == "no_reply: stop"


def test_nobody_who_opted_out_at_the_provider_is_texted_again_about_it(build: Build) -> None:
    # GIVEN a text that the provider refused, since the number opted out there
    world = build(answer="Hi, heron")
    world.carrier.next = iter([Rejected("opted_out", "4775")])
    world.receive(inbound())
    # WHEN the person writes STOP
    message = stop("A", 60)
    world.runtime.clock += 60
    assert world.receive(message) == []
    # THEN that changes nothing, and is not confirmed
    assert (len(world.said), world.reply(message).state) == (1, "no_reply: stop")


# --- opted out where we did not see it -----------------------------------------------------------

REFUSED = Rejected("opted_out", "21610")


@pytest.mark.parametrize("text", [inbound(), outgoing("A heron for you")])
def test_a_refusal_for_an_opt_out_feeds_the_list(
    build: Build, text: Envelope, capsys: pytest.CaptureFixture[str]
) -> None:
    # GIVEN a provider that refuses a text since the number opted out there
    world = build(answer="Hi, heron")
    world.runtime.clock += 5

    def refuse_slowly() -> None:
        world.runtime.clock += 8
        raise REFUSED

    world.carrier.next = iter([refuse_slowly])
    assert world.receive(text) == []
    assert world.reply(text).state == "failed: opted_out"
    assert events(logged(capsys)) == ["consent_stop", "rejected"]

    # THEN it is in the list, by the time of the attempt, with its evidence
    found = entry(world)
    assert {name: found[name] for name in ("event", "at", "words", "source", "id")} == {
        "event": "stop",
        "at": NOW + 5,
        "words": "",
        "source": "twilio: 21610",
        "id": text.id,
    }
    # AND nothing more is sent, to whichever number of ours they write
    another = inbound("heron?", id_="SM7", ours=SECOND)
    assert world.receive(another) == []
    assert (len(world.said), world.reply(another).state) == (1, "refused: opted_out")
    world.assert_settled(text)


@pytest.mark.parametrize("reason", ["landline", "filtered", "rejected"])
def test_any_other_refusal_is_no_opt_out(build: Build, reason: str) -> None:
    world = build()
    world.carrier.next = iter([Rejected(reason, "30006")])
    world.receive(inbound())
    assert not world.consent.opted_out(THEIRS)


@pytest.mark.parametrize(
    ("after", "opted_out"), [(-60, True), (1, True), (60, False)], ids=["before", "a tie", "after"]
)
def test_a_start_counts_that_was_said_after_the_refused_attempt(
    build: Build, after: float, opted_out: bool
) -> None:
    world = build()
    world.carrier.next = iter([REFUSED])
    world.receive(inbound())
    world.say("start", NOW + after)
    assert world.consent.opted_out(THEIRS) is opted_out


@pytest.mark.parametrize("landed", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("nth", [0, 1], ids=["consent", "outcome"])
def test_a_death_around_a_refusal_for_an_opt_out_sends_nothing_more(
    build: Build, nth: int, landed: bool
) -> None:
    # GIVEN a process that dies at one of the writes after the provider's refusal
    world, text = build(answer="Hi, heron"), inbound()

    def refuse() -> None:
        def die() -> None:
            raise Died

        turns = [None] * nth + [Lost(Died()) if landed else die]
        tapped(world.runtime).next["update_item"] = iter(turns)
        raise REFUSED

    world.carrier.next = iter([refuse, REFUSED])
    with pytest.raises(Died):
        world.receive(text)

    # WHEN it comes again, now and later
    for receives in (2, 3):
        world.receive(text, receives=receives)
        world.runtime.clock += 70
    assert world.receive(text, receives=4) == []

    # THEN it was said once; and where the list has it, nobody says anything more
    assert len(world.said) == 1
    recorded = nth == 1 or landed
    assert world.consent.opted_out(THEIRS) is recorded
    if recorded:
        assert world.receive(inbound("heron?", id_="SM7")) == []
        assert len(world.said) == 1
    assert world.reply(text).state == ("failed: opted_out" if nth == 1 and landed else "unknown")


# --- a person who is erased ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turns", "state"),
    [
        pytest.param([None], "sent", id="sent"),
        pytest.param([Rejected("filtered", "30007")], "failed: filtered", id="refused"),
        pytest.param([Unavailable("no_connection")], "erased", id="put back"),
        pytest.param([OutcomeUnknown("read_timeout")], "erased", id="unknown"),
        pytest.param([Died()], "erased", id="claimed"),
    ],
)
def test_what_was_erased_is_never_answered(build: Build, turns: list[Turn], state: str) -> None:
    # GIVEN a reply that came so far, and is erased
    world, text = build(), inbound()
    world.carrier.next = iter(turns)
    with suppress(Died):
        world.receive(text)
    world.ledger.erase(world.reply(text))
    # WHEN its message comes again, now and when any claim has ended
    assert world.reply(text).state == state
    world.assert_settled(text)
    world.runtime.clock += 400
    world.assert_settled(text)
    # THEN the provider was called once
    assert len(world.said) == 1


@pytest.mark.parametrize("when", ["asking", "claiming", "calling"])
def test_an_erasure_while_it_is_answered(build: Build, when: str) -> None:
    # GIVEN an erasure that comes between (no real one does: it waits for what is recent)
    text = inbound()

    def erase() -> None:
        world.ledger.erase(world.reply(text))

    def ask(message: object) -> str:
        if when == "asking":
            erase()
        return "heron"

    world = build(answer=ask)
    if when == "claiming":
        tapped(world.runtime).next["update_item"] = iter([erase])
    if when == "calling":
        world.carrier.next = iter([erase])
    # WHEN the claim after it is refused, THEN the message comes again and is done with
    assert world.receive(text) == ([] if when == "calling" else ["m0"])
    world.assert_settled(text)
    assert world.reply(text).state == "erased"
    assert len(world.said) == (when == "calling")


# --- held back ---------------------------------------------------------------------------------

SLOWLY = '{"+14155550123": {"per_second": 0.01}}'  # one in a hundred seconds


def others(world: World, count: int = 1, *, received_at: float = NOW) -> None:
    """So many people write to the same number first, each once."""
    names = [f"{received_at}-{number}" for number in range(count)]
    texts = [inbound(id_=name, theirs=f"+1415555011{name[-1]}") for name in names]
    world.receive(*(replace(text, received_at=received_at) for text in texts))
    world.carrier.parts.clear()


def test_a_reply_waits_for_its_slot_with_its_words(build: Build) -> None:
    # GIVEN a number whose slot is taken
    world, text = build(answer=["One.", "Two."], PACING=SLOWLY), inbound()
    others(world)
    # WHEN somebody writes to it, THEN the words are stored, and wait
    assert world.receive(text) == ["m0"]
    assert (world.said, world.hidden["h0"]) == ([], 200)
    reply = world.reply(text)
    assert [part.text for part in reply.parts or ()] == ["One.", "Two."]
    assert (reply.not_before, reply.has_slot, reply.waited) == (NOW + 200, True, 200)
    # ... for no longer and no shorter than for that slot,
    world.runtime.clock += 150
    assert world.receive(text, receives=2) == ["m0"]
    assert world.hidden["h0"] == 50
    writes = len(tapped(world.runtime).writes())
    # ... and leave together, without another slot.
    world.runtime.clock += 51
    assert world.receive(text, receives=3) == []
    assert world.said == ["One.", "Two."]
    assert len(tapped(world.runtime).writes()) == writes + 6  # item, start, and each part's two
    assert not world.reply(text).has_slot
    world.assert_settled(text)


def test_a_slot_that_may_be_written_down_is_not_given_back(build: Build) -> None:
    # GIVEN a reply whose slot is written down, and nobody hears of it
    world, text = build(PACING=SLOWLY), inbound()
    others(world)
    # (The batch's slot, then the wait.)
    tapped(world.runtime).next["update_item"] = iter([None, Lost(no_answer())])
    assert world.receive(text) == ["m0"]
    assert world.reply(text).not_before == NOW + 100
    # WHEN somebody else writes, THEN they get another slot
    other = inbound(id_="SM2", theirs="+14155550108")
    assert world.receive(other) == ["m0"]
    assert world.reply(other).not_before == NOW + 200


def test_who_comes_late_to_its_slot_takes_another(build: Build) -> None:
    world, text = build(PACING=SLOWLY), inbound()
    others(world, 2)
    world.receive(text)
    assert world.hidden["h0"] == 200
    world.runtime.clock += 211
    others(world, received_at=world.runtime.clock)
    assert world.receive(text, receives=2) == ["m0"]
    assert world.hidden["h0"] == 189
    assert world.reply(text).waited == 200 + 189
    world.runtime.clock += 189
    assert world.receive(text, receives=3) == []
    assert len(world.said) == 1


def test_waiting_for_a_slot_is_no_age(build: Build) -> None:
    world, text = build(PACING=SLOWLY, REPLY_MAX_AGE="30"), inbound()
    others(world)
    assert world.receive(text) == ["m0"]
    assert world.hidden["h0"] == 100
    # (It comes again when its slot has come, and not when its age would be over.)
    world.runtime.clock += 100
    world.carrier.next = iter([Unavailable("no_connection")])
    assert world.receive(text, receives=2) == ["m0"]
    # Waiting for the provider is age.
    world.runtime.clock += 31
    assert world.receive(text, receives=3) == []
    assert world.reply(text).state == "expired"


def test_a_redrive_forgets_what_was_waited_before(build: Build) -> None:
    world, text = build(PACING=SLOWLY, REPLY_MAX_AGE="30"), inbound()
    others(world)
    world.receive(text)
    world.runtime.clock += 5000
    redriven = replace(text, redriven_at=world.runtime.clock - 31)
    assert world.receive(redriven) == []
    assert world.reply(text).state == "expired"


def test_an_attempt_that_was_refused_takes_another_slot(build: Build) -> None:
    world, text = build(PACING=SLOWLY), inbound()
    world.carrier.next = iter([Throttled("rate", retry_after=5.0)])
    assert world.receive(text) == ["m0"]
    # (Nobody else came: what was not used was given back.)
    world.runtime.clock += 5
    assert world.receive(text, receives=2) == []
    assert len(world.said) == 2


def test_what_left_before_a_refusal_has_used_its_slots(build: Build) -> None:
    # GIVEN a reply in two parts, and a provider that takes the first alone
    world, text = build(answer=["One.", "Two."], PACING=SLOWLY), inbound()
    world.carrier.next = iter([None, Unavailable("no_connection")])
    assert world.receive(text) == ["m0"]
    # WHEN somebody else writes, THEN they wait until the first part's slot is over
    other = inbound(id_="SM2", theirs="+14155550108")
    assert world.receive(other) == ["m0"]
    assert world.hidden["h0"] == 100


def test_a_confirmation_waits_for_no_slot(build: Build) -> None:
    world = build(PACING=SLOWLY)
    others(world, 4)
    stop = inbound("STOP")
    assert world.receive(stop) == []
    assert world.said == [STOPPED]
    # But it counts.
    text = inbound(theirs="+14155550107", id_="SM9")
    assert world.receive(text) == ["m0"]
    assert world.hidden["h0"] == 500


@pytest.mark.parametrize(
    "variables",
    [
        {"DAILY_SEND_CAP": "2"},
        {"PACING": '{"+14155550123": {"per_second": 100, "per_day": 2}}'},
    ],
)
def test_what_is_over_a_days_limit_is_not_sent(build: Build, variables: dict[str, str]) -> None:
    world, text = build(answer=["One.", "Two."], **variables), inbound()
    world.receive(text)
    assert len(world.said) == 2
    more = inbound(id_="SM2")
    assert world.receive(more) == []
    assert world.reply(more).state == "refused: daily_cap"
    world.assert_settled(more)
    world.runtime.clock += DAY
    tomorrow = inbound(id_="SM3", received_at=world.runtime.clock)
    assert world.receive(tomorrow) == []
    assert len(world.said) == 4


def test_what_is_deferred_uses_up_no_day(build: Build) -> None:
    world, text = build(DAILY_SEND_CAP="1"), inbound()
    world.carrier.next = iter([Unavailable("no_connection")] * 3)
    for receives in (1, 2, 3):
        assert world.receive(text, receives=receives) == ["m0"]
        world.runtime.clock += 20
    assert world.receive(text, receives=4) == []
    assert world.reply(text).state == "sent"


def test_what_waits_past_midnight_counts_for_the_day_on_which_it_leaves(build: Build) -> None:
    # GIVEN a message that its provider did not take on the day for which it was counted
    world, text = build(DAILY_SEND_CAP="1"), outgoing()
    world.carrier.next = iter([Unavailable("no_connection")])
    assert world.receive(text) == ["m0"]
    counted = world.reply(text).counted_on
    # WHEN it leaves on the next, THEN that has no room for another
    world.runtime.clock += 36_000 - 1
    assert world.receive(text, receives=2) == []
    assert world.reply(text).counted_on > counted
    more = inbound(id_="SM2", received_at=world.runtime.clock)
    assert world.receive(more) == []
    assert world.reply(more).state == "refused: daily_cap"


@pytest.mark.parametrize("opted_out", [True, False])
def test_a_message_that_is_refused_takes_nothing_from_anybody(
    build: Build, opted_out: bool
) -> None:
    # GIVEN a message to somebody who must not get it
    world = build(DAILY_SEND_CAP="1", PACING=SLOWLY, SEND_TO_COUNTRIES="US")
    refused = outgoing(theirs=THEIRS if opted_out else "+447700900123")
    if opted_out:
        world.receive(inbound("STOP", id_="SM0"))
        world.runtime.clock += DAY
        refused = replace(refused, received_at=world.runtime.clock)
    assert world.receive(refused) == []
    assert world.reply(refused).state.startswith("refused: ")
    # THEN the next one finds slot and cap as they were
    text = inbound(id_="SM2", theirs="+14155550108", received_at=world.runtime.clock)
    assert world.receive(text) == []
    assert world.reply(text).state == "sent"


def test_whose_claim_is_not_made_gives_its_slot_back(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN an opt-out that is recorded between an answer's slot and its claim
    world, text = build(PACING=SLOWLY), inbound()
    monkeypatch.setattr("chalicelib.sending.refusal_of", lambda *_: "refused: opted_out")
    assert world.receive(text) == []
    monkeypatch.undo()
    # THEN whoever comes next has that slot
    other = inbound(id_="SM2", theirs="+14155550108")
    assert world.receive(other) == []
    assert world.reply(other).state == "sent"


def test_an_attempt_that_may_have_arrived_uses_up_the_day(build: Build) -> None:
    world, text = build(DAILY_SEND_CAP="1"), inbound()
    world.carrier.next = iter([OutcomeUnknown("timeout")])
    assert world.receive(text) == []
    more = inbound(id_="SM2")
    assert world.receive(more) == []
    assert world.reply(more).state == "refused: daily_cap"


def quiet(world: World, until: float) -> list[tuple[str, str]]:
    """Quiet hours until then; who was asked about."""
    asked = []

    def hook(ours: str, theirs: str, now: datetime) -> datetime | None:
        asked.append((ours, theirs))
        assert now == datetime.fromtimestamp(world.runtime.clock, UTC)
        return datetime.fromtimestamp(until, UTC) if now.timestamp() < until else None

    world.sender._quiet_until = hook
    return asked


def test_a_message_waits_for_the_end_of_the_night(build: Build) -> None:
    world, message = build(MESSAGE_MAX_AGE="3600"), outgoing()
    asked = quiet(world, NOW + 30_000)
    assert world.receive(message) == ["m0"]
    assert (world.said, world.hidden["h0"]) == ([], 30_000)
    assert asked == [(OURS, THEIRS)]
    # (It is no age.)
    world.runtime.clock += 29_000
    assert world.receive(message, receives=2) == ["m0"]
    assert world.hidden["h0"] == 1000
    world.runtime.clock += 1000
    assert world.receive(message, receives=3) == []
    assert world.said == [TEXT]
    assert len(asked) == 2


def test_after_the_night_a_message_takes_a_slot_like_any_other(build: Build) -> None:
    world, message = build(PACING=SLOWLY), outgoing()
    quiet(world, NOW + 3000)
    assert world.receive(message) == ["m0"]
    world.runtime.clock += 3000
    others(world, received_at=world.runtime.clock)
    assert world.receive(message, receives=2) == ["m0"]
    assert world.hidden["h0"] == 100


def test_who_writes_at_night_is_answered(build: Build) -> None:
    world, text = build(), inbound()
    asked = quiet(world, NOW + 3000)
    assert world.receive(text) == []
    assert (len(world.said), asked) == (1, [])


def test_while_sending_is_paused_nobody_is_asked_and_a_stop_counts(build: Build) -> None:
    # GIVEN a pause
    world, text, message = build(), inbound(), outgoing(theirs="+14155550102")
    table = Table(world.runtime, "test")
    pause(table, NOW, "heron")
    # WHEN a text, a message and a STOP come
    stop = inbound("STOP", id_="SM2", theirs="+14155550101")
    assert world.receive(text, message, stop) == ["m0", "m1", "m2"]
    # THEN all wait, for a quarter of an hour or until they are too old, and the STOP is recorded
    assert [world.hidden[f"h{n}"] for n in range(3)] == [901, 905, 901]
    assert (world.said, world.asked) == ([], 0)
    assert world.consent.opted_out("+14155550101")
    # WHEN the pause is over, THEN what is not too old is sent
    resume_sending(table)
    world.runtime.clock += 905
    assert world.receive(text, message, stop, receives=2) == []
    assert world.said == [TEXT]
    assert (world.reply(text).state, world.reply(message).state) == ("expired", "sent")


def test_a_pause_that_cannot_be_read_is_taken_for_what_it_was(build: Build) -> None:
    world, text = build(), inbound()
    table = Table(world.runtime, "test")
    pause(table, NOW, "")
    assert world.receive(text) == ["m0"]
    world.runtime.clock += 100
    tapped(world.runtime).next["batch_get_item"] = repeat(aws_error("InternalServerError"))
    assert world.receive(text, receives=2) == ["m0"]
    assert world.said == []


@pytest.mark.parametrize(
    ("variables", "state"),
    [
        ({"SEND_ONLY_TO": "+14155550101"}, "refused: not_in_send_only_to"),
        ({"SEND_TO_COUNTRIES": "CA"}, "refused: country"),
    ],
)
@pytest.mark.parametrize("text", [inbound(), outgoing(), inbound("STOP"), inbound("HELP")])
def test_whom_a_list_leaves_out_gets_nothing_and_is_heard(
    build: Build, variables: dict[str, str], state: str, text: Envelope
) -> None:
    world = build(HELP_TEXT="Ask.", **variables)
    assert world.receive(text) == []
    assert (world.said, world.asked) == ([], 0)
    assert world.reply(text).state == state
    assert world.consent.opted_out(THEIRS) == ("STOP" in str(text.payload.get("text")))
    world.assert_settled(text)


def test_a_list_is_read_again_before_each_claim(build: Build) -> None:
    # GIVEN a reply whose words are stored already
    world, text = build(PACING=SLOWLY), inbound()
    others(world)
    world.receive(text)
    # WHEN it comes to a sender that must not write to this number any more
    other = build(SEND_ONLY_TO="+14155550101")
    other.runtime.clock += 100
    # THEN it is not sent
    assert other.receive(text, receives=2) == []
    assert other.reply(text).state == "refused: not_in_send_only_to"
    assert other.said == []
