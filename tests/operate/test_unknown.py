"""Sends of unknown outcome on a real table and real queues: what is listed, what is known, and what
becomes of a person's decision."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from chalicelib.ledger import Ledger, Reply, draft
from chalicelib.messages import DeliveryReceipt, Keys, MessageId
from chalicelib.queues import Envelope
from chalicelib.settling import LISTED_AFTER, LOOKS
from chalicelib.table import Table
from spillway import cli
from spillway.operate import unknown
from spillway.problem import Problem
from spillway.stage import Stage
from spillway.stores import QUEUES
from tests.fakes import HASH_KEY, OURS, SECRETS, FakeRuntime
from tests.operate.world import NAME

KEYS = Keys(HASH_KEY)
PERSON, TELNYXS = "+14155550142", "+14155550199"
WORDS = "the heron is awake"


class World:
    """A ledger with sends whose answers were lost, and a Twilio that lists what it is told to."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.runtime = FakeRuntime()
        self.runtime.__dict__["dynamodb"] = stage.aws.client("dynamodb")
        self.ledger = Ledger(Table(self.runtime, NAME), self.runtime, keep_days=400)
        self.listed: list[dict[str, str]] | httpx.Response = []

    def unknown(
        self,
        name: str = "1",
        *words: str,
        ago: float = 7200.0,
        provider: str = "twilio",
        reason: str = "read_timeout",
        attempts: int = 1,
    ) -> MessageId:
        """A reply whose first part became unknown so many seconds ago, perhaps more than once."""
        self.runtime.clock = time.time() - ago
        ours = OURS if provider == "twilio" else TELNYXS
        id_ = MessageId(KEYS.conversation(ours, PERSON), KEYS.message(provider, "a", name))
        reply = self.ledger.open(
            id_,
            kind="inbound",
            provider=provider,
            ours=ours,
            theirs=PERSON,
            callback_url="https://h.example",
            received_at=self.runtime.clock,
        )
        reply = draft(reply, [(one, ()) for one in words or (WORDS,)])
        for attempt in range(attempts):
            if attempt:
                reply = self.ledger.resend(reply, (reply.parts or ())[0])
            part = self.ledger.claim(
                reply,
                (reply.parts or ())[0],
                owner=f"me-{attempt}",
                lease_until=self.runtime.clock + 65,
                request="{}" if provider == "telnyx" else "",
            )
            self.ledger.unknown(reply, part, reason=reason)
            reply = self.reply(id_)
        return id_

    def sent(self, name: str, words: str, ago: float) -> MessageId:
        """Another reply of the conversation, of which the answer came."""
        id_ = self.unknown(name, words, ago=ago)
        reply = self.reply(id_)
        self.ledger.found(reply, (reply.parts or ())[0], f"SM-{name}")
        return id_

    def reply(self, id_: MessageId) -> Reply:
        found = self.ledger.find(id_)
        assert found is not None
        return found

    def receipt(self, id_: MessageId) -> None:
        self.ledger.receive(DeliveryReceipt("twilio", "SM-r", id_.part(1), "delivered"))

    def twilio(self, sid: str, words: str, at: float) -> dict[str, str]:
        created = format_datetime(datetime.fromtimestamp(at, UTC))
        return {
            "sid": sid,
            "body": words,
            "from": OURS,
            "to": PERSON,
            "direction": "outbound-api",
            "date_created": created,
        }

    def answer(self, request: httpx.Request) -> httpx.Response:
        assert request.method == "GET"
        if isinstance(self.listed, httpx.Response):
            return self.listed
        return httpx.Response(200, json={"messages": self.listed})

    def resumed(self) -> list[str]:
        """Of whom the sender is to go on; they are gone then."""
        url, found = self.stage.stores.urls["outbound.fifo"], []
        sqs = self.stage.aws.client("sqs")
        while some := sqs.receive_message(QueueUrl=url).get("Messages"):
            envelope = Envelope.parse(some[0]["Body"])
            assert envelope.kind == "resume"
            found.append(envelope.id)
            sqs.delete_message(QueueUrl=url, ReceiptHandle=some[0]["ReceiptHandle"])
        return found

    def clear(self) -> None:
        for item in self.stage.stores.items():
            self.runtime.dynamodb.delete_item(
                TableName=f"spillway-{NAME}",
                Key={"pk": {"S": item["pk"]}, "sk": {"S": item["sk"]}},
            )
        for queue in QUEUES:
            self.stage.aws.client("sqs").purge_queue(QueueUrl=self.stage.stores.urls[queue])
        self.listed = []


@pytest.fixture(scope="module")
def whole(stage: Stage) -> World:
    stage.aws.client("secretsmanager").create_secret(
        Name=f"spillway/{NAME}/twilio", SecretString=json.dumps(SECRETS["twilio"])
    )
    return World(stage)


@pytest.fixture
def world(whole: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    real = Stage.runtime

    def runtime(stage: Stage) -> Any:
        found = real(stage)
        found.__dict__["http"] = httpx.Client(transport=httpx.MockTransport(whole.answer))
        return found

    monkeypatch.setattr(Stage, "runtime", runtime)

    @contextmanager
    def named(name: str) -> Iterator[Stage]:
        yield whole.stage

    monkeypatch.setattr(unknown, "stage_named", named)
    yield whole
    whole.clear()


def run(*arguments: str, says: str = "") -> tuple[int, Any]:
    """The exit code, and what is said as JSON."""
    result = CliRunner().invoke(
        cli.app, ["unknown", *arguments, "--json"], input=says, catch_exceptions=False
    )
    # (What is typed in is repeated before it.)
    _, brace, said = result.stdout.partition("{")
    return result.exit_code, json.loads(brace + said)


def shown(*arguments: str) -> str:
    result = CliRunner().invoke(cli.app, ["unknown", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


# --- the list ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ago", "left", "next_"),
    [
        (5.0, 6, LOOKS[0]),
        (LOOKS[0] + 5, 5, LOOKS[1]),
        (LOOKS[-2] + 5, 1, LOOKS[-1]),
        (LOOKS[-1] + 5, 0, None),
    ],
)
def test_it_says_how_often_it_is_looked_for_yet(
    world: World, ago: float, left: int, next_: float | None
) -> None:
    world.unknown(ago=ago)
    code, said = run("list")
    (one,) = said["listed"]
    assert (code, one["looks_left"]) == (0, left)
    assert one["next_look_at"] == (None if next_ is None else one["since"] + next_)
    assert ("for you to decide" if not left else f"{left} look") in shown("list")


def test_all_are_listed_the_oldest_first_without_numbers_and_words(world: World) -> None:
    assert shown("list") == "Nothing is of unknown outcome.\n"
    young = world.unknown("young", ago=30)
    old = world.unknown("old", attempts=2, reason="lease_ended")
    waits = world.unknown("waits", f"{WORDS} 1", f"{WORDS} 2", ago=3600)
    world.receipt(waits)
    world.receipt(world.unknown("settled"))
    _, said = run("list")
    assert [
        (one["reference"], one["state"], one["attempt"], one["reason"]) for one in said["listed"]
    ] == [
        (old.part(1), "unknown", 2, "lease_ended"),
        (waits.part(2), "waiting", 1, ""),
        (young.part(1), "unknown", 1, "read_timeout"),
    ]
    table = shown("list")
    for one in said["listed"]:
        assert one["reference"] in table
    assert "waits behind a part that was settled" in table
    assert not [one for one in (PERSON, "heron") if one in table + json.dumps(said)]
    assert run("list", "--texts")[1]["listed"][0]["theirs"] == PERSON


# --- the evidence --------------------------------------------------------------------------------

NEW, OLD = LISTED_AFTER - 60, 7200.0


@pytest.mark.parametrize(
    ("ago", "listed", "answer", "said"),
    [
        (OLD, [(WORDS, 0)], "found", "it has this part, as SM-0: --sent is right"),
        (OLD, [(WORDS, -9000)], "not_sent", "certainly does not have it"),
        (OLD, [], "not_sent", "--resend sends it once"),
        (NEW, [], "not_listed", "proves nothing for 60 s yet"),
        (OLD, [(WORDS, 0), (WORDS, 1)], "cannot_tell", "look into its console"),
        (OLD, [("another heron", 0)], "cannot_tell", "look into its console"),
        (OLD, 503, "not_asked", "the question failed: unexpected_answer 503"),
        (OLD, 401, "not_asked", "the question failed: credentials 401"),
    ],
)
def test_the_provider_is_asked_what_it_has(
    world: World, ago: float, listed: Any, answer: str, said: str
) -> None:
    id_ = world.unknown(ago=ago)
    began = time.time() - ago
    if isinstance(listed, int):
        world.listed = httpx.Response(listed)
    else:
        world.listed = [
            world.twilio(f"SM-{n}", words, began + after) for n, (words, after) in enumerate(listed)
        ]
    before = world.reply(id_)
    code, told = run("show", str(id_))
    assert (code, told["provider_says"]["answer"]) == (0, answer)
    assert said in told["provider_says"]["said"]
    # AND nothing is changed by a question
    assert (world.reply(id_), world.resumed()) == (before, [])


def test_what_another_send_has_is_not_its_proof(world: World) -> None:
    # GIVEN two sends of the same words, one of them known by its id
    id_ = world.unknown()
    other = world.sent("2", WORDS, ago=7100)
    world.listed = [world.twilio("SM-2", WORDS, time.time() - 7100)]
    _, told = run("show", id_.part(1))
    assert told["provider_says"]["answer"] == "not_sent"
    (beside,) = told["neighbours"]
    assert (beside["reference"], beside["provider_id"]) == (other.part(1), "SM-2")
    assert beside["same_words"]
    # WHEN of a third nobody knows either, THEN the provider's may be either
    world.unknown("3", ago=7000)
    world.listed.append(world.twilio("SM-3", WORDS, time.time() - 7000))
    assert run("show", id_.part(1))[1]["provider_says"]["answer"] == "cannot_tell"


@pytest.mark.parametrize(
    ("ago", "reason", "said"),
    [
        (OLD, "read_timeout", "UTC --resend sends nothing twice"),
        (OLD, "idempotency_mismatch", "look into its console"),
        (24 * 3600.0, "read_timeout", "look into its console"),
    ],
)
def test_a_provider_that_knows_a_repetition(
    world: World, ago: float, reason: str, said: str
) -> None:
    client = world.stage.aws.client("secretsmanager")
    id_ = world.unknown(ago=ago, provider="telnyx", reason=reason)
    # GIVEN no secret, THEN that is said
    _, told = run("show", str(id_))
    assert told["provider_says"]["answer"] == "not_asked"
    assert f"spillway/{NAME}/telnyx: no such secret" in told["provider_says"]["said"]
    # WHEN there is one, THEN what may be done
    client.create_secret(Name=f"spillway/{NAME}/telnyx", SecretString=json.dumps(SECRETS["telnyx"]))
    try:
        _, told = run("show", str(id_))
    finally:
        client.delete_secret(SecretId=f"spillway/{NAME}/telnyx", ForceDeleteWithoutRecovery=True)
    assert told["provider_says"]["answer"] == "cannot_tell"
    assert said in told["provider_says"]["said"]


def test_the_evidence_is_shown(world: World) -> None:
    id_ = world.unknown("1", f"{WORDS} 1", f"{WORDS} 2", attempts=2)
    text = shown("show", str(id_), "--stage", NAME)
    for part in (
        "part 1      unknown, attempt 2, begun ",
        "read_timeout",
        "attempts given up without knowing: 1",
        "part 2      waiting, attempt 1",
        "none: it is for you to decide",
        f"spillway unknown settle {id_.part(1)} --attempt 2 --stage {NAME}",
        "…42",
    ):
        assert part in text
    assert not [one for one in (PERSON[1:], "heron") if one in text]
    text = shown("show", str(id_), "--texts")
    assert f"{WORDS} 2" in text
    assert PERSON in text
    # AND a receipt
    world.receipt(id_)
    assert "part 1      sent, attempt 2, begun " in (text := shown("show", str(id_)))
    assert "receipt: delivered" in text


@pytest.mark.parametrize("id_", ["heron", f"{'a' * 24}-{'b' * 24}"])
def test_what_names_no_reply_is_said(world: World, id_: str) -> None:
    for command in (["show", id_], ["settle", id_, "--sent"]):
        with pytest.raises(Problem, match="spillway unknown list"):
            run(*command)


# --- the decision --------------------------------------------------------------------------------

DECISIONS = [
    ("--sent", "sent", 0, "sending", True),
    ("--resend", "waiting", 1, "waiting", True),
    ("--give-up", "failed", 0, "failed: given_up", False),
]


@pytest.mark.parametrize(("option", "state", "attempt", "outcome", "resumed"), DECISIONS)
def test_a_person_decides(
    world: World, option: str, state: str, attempt: int, outcome: str, resumed: bool
) -> None:
    id_ = world.unknown("1", f"{WORDS} 1", f"{WORDS} 2")
    code, said = run("settle", id_.part(1), option, "--attempt", "1")
    assert code == 0
    assert (said["state"], said["resumed"], said["attempt"]) == (outcome, resumed, 1)
    part = (world.reply(id_).parts or ())[0]
    assert (part.state, part.attempt, world.reply(id_).state) == (state, attempt, outcome)
    assert world.resumed() == [str(id_)] * resumed
    # WHEN they say so again, THEN it is so, and who waits is sent for once more
    decided = world.reply(id_)
    assert run("settle", id_.part(1), option, "--attempt", "1")[0] == 0
    assert world.reply(id_) == decided
    assert world.resumed() == [str(id_)] * resumed


@pytest.mark.parametrize("option", [one[0] for one in DECISIONS])
def test_who_names_no_attempt_is_shown_it_and_asked(world: World, option: str) -> None:
    id_ = world.unknown(attempts=2)
    before = world.reply(id_)
    result = CliRunner().invoke(cli.app, ["unknown", "settle", str(id_), option], input="n\n")
    assert result.exit_code == 1
    assert "Part 1, attempt 2, begun 2" in result.output
    assert f"settle {id_.part(1)} {option} --attempt 2 --stage local" in result.output
    assert world.reply(id_) == before
    code, said = run("settle", str(id_), option, says="y\n")
    assert (code, said["attempt"]) == (0, 2)
    assert world.reply(id_) != before


@pytest.mark.parametrize("option", [one[0] for one in DECISIONS])
@pytest.mark.parametrize("meanwhile", ["a receipt", "sent again", "refused"])
def test_what_has_moved_on_is_not_decided(world: World, option: str, meanwhile: str) -> None:
    # GIVEN a person who saw the first attempt, of which the outcome shows before they decide
    id_ = world.unknown("1", f"{WORDS} 1", f"{WORDS} 2", attempts=2 if "again" in meanwhile else 1)
    if meanwhile == "a receipt":
        world.receipt(id_)
        reply = world.reply(id_)
        second = (reply.parts or ())[1]
        world.ledger.claim(reply, second, owner="me", lease_until=world.runtime.clock + 65)
    elif meanwhile == "refused":
        reply = world.reply(id_)
        world.ledger.refused(reply, (reply.parts or ())[0], reason="landline", code="1")
    before = world.reply(id_)
    arguments = ["settle", id_.part(1), option, "--attempt", "1"]
    if (option, meanwhile) in (("--sent", "a receipt"), ("--resend", "sent again")):
        # THEN it is as they wanted it
        assert run(*arguments)[0] == 0
    else:
        with pytest.raises(Problem, match=r"Nothing was changed\. Part 1 is \w+ now, in attempt"):
            run(*arguments)
    assert (world.reply(id_), world.resumed()) == (before, [])


def test_a_receipt_at_the_same_moment_wins(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    id_ = world.unknown()
    find, reads = Ledger.find, iter([1, 2])

    def found(ledger: Ledger, wanted: MessageId) -> Reply | None:
        reply = find(ledger, wanted)
        if next(reads, 0) == 2:
            # Between the decision's read and its write.
            world.receipt(id_)
        return reply

    monkeypatch.setattr(Ledger, "find", found)
    with pytest.raises(Problem, match="Part 1 is sent now, in attempt 1, and not unknown"):
        run("settle", str(id_), "--resend", "--attempt", "1")
    assert world.reply(id_).state == "delivered"
    assert world.resumed() == []


def test_a_part_that_waits_behind_a_settled_one_is_sent_for(world: World) -> None:
    # GIVEN a first part that a receipt settled, and nobody who sent for the second
    id_ = world.unknown("1", f"{WORDS} 1", f"{WORDS} 2")
    world.receipt(id_)
    assert run("settle", str(id_), "--resend")[0] == 0
    assert world.resumed() == [str(id_)]
    # (Nothing else is to be decided about it.)
    for option in ("--sent", "--give-up"):
        with pytest.raises(Problem, match="there is nothing to decide"):
            run("settle", str(id_), option)


@pytest.mark.parametrize("options", [[], ["--sent", "--give-up"]])
def test_one_decision_is_said(world: World, options: list[str]) -> None:
    id_ = world.unknown()
    with pytest.raises(Problem, match="Say one of"):
        run("settle", str(id_), *options)
    assert world.reply(id_).state == "unknown"


def test_what_the_functions_log_is_not_said(world: World) -> None:
    id_ = world.unknown()
    result = CliRunner().invoke(
        cli.app, ["unknown", "settle", str(id_), "--give-up", "--attempt", "1"]
    )
    assert result.exit_code == 0
    assert result.stdout == (f"Decided: the reply is failed: given_up. spillway trace {id_}\n")
