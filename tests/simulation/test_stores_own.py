"""Spillway's own writes on the table of the simulation, step by step as on moto."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import pytest
from boto3.dynamodb.types import TypeDeserializer
from botocore.exceptions import ClientError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chalicelib.batches import Batch, Defer
from chalicelib.consent import ConsentList
from chalicelib.ledger import UNKNOWN_BUCKETS, Busy, Ledger, PartEntry, Reply, draft
from chalicelib.messages import STATUS_RANK, DeliveryReceipt, Keys, MessageId
from chalicelib.queues import OUTBOUND, Envelope, Queues
from chalicelib.table import Conflict, Table
from tests.fakes import (
    HASH_KEY,
    NOW,
    Context,
    FakeRuntime,
    Lost,
    Tapped,
    no_answer,
    on_empty_table,
    sqs_event,
)
from tests.simulation.contract import Clock
from tests.simulation.stores.dynamodb import DynamoDb

TABLE = "spillway-test"


KEYS = Keys(HASH_KEY)
CONVERSATION = KEYS.conversation("+14155550123", "+14155550100")
IDS = [MessageId(CONVERSATION, KEYS.message("twilio", "AC1", f"SM{n}")) for n in range(2)]


def on(client: Any) -> tuple[FakeRuntime, Table]:
    runtime = FakeRuntime()
    runtime.__dict__["dynamodb"] = client
    return runtime, Table(runtime, "test")


def opened(ledger: Ledger, id_: MessageId, received_at: float = NOW) -> Reply:
    return ledger.open(
        id_,
        kind="inbound",
        provider="twilio",
        ours="+14155550123",
        theirs="+14155550100",
        callback_url="https://sms.example.com",
        received_at=received_at,
    )


def listed(client: Any) -> list[str]:
    """The messages whose send is of unknown outcome."""
    return [
        item["sk"]["S"].partition("#")[2]
        for bucket in range(UNKNOWN_BUCKETS)
        for item in client.query(
            TableName=TABLE,
            IndexName="unknown",
            KeyConditionExpression="unknown_bucket = :bucket",
            ExpressionAttributeValues={":bucket": {"S": f"U#{bucket:02d}"}},
        )["Items"]
    ]


def test_the_ledger_works_on_it() -> None:
    runtime, table = on(Tapped(DynamoDb(Clock())))
    ledger = Ledger(table, runtime, keep_days=30)
    tap: Any = runtime.dynamodb

    # GIVEN a reply of two parts, of which the first is claimed
    reply = draft(opened(ledger, IDS[0]), [("one", []), ("two", ["https://x"])])
    assert reply.parts is not None
    one = ledger.claim(reply, reply.parts[0], owner="me", lease_until=NOW + 60.5)
    stored = ledger.find(IDS[0])
    assert stored is not None
    assert stored.parts is not None
    assert [part.text for part in stored.parts] == ["one", "two"]

    # THEN nobody else gets it
    with pytest.raises(Busy):
        ledger.claim(reply, reply.parts[0], owner="another", lease_until=NOW + 60)

    # WHEN its outcome is unknown, and the answer to that was lost
    tap.next["update_item"] = iter([Lost(no_answer())])
    with pytest.raises(type(no_answer())):
        ledger.unknown(reply, one, reason="timeout")
    # THEN the step recognises itself
    assert ledger.unknown(reply, one, reason="timeout").state == "unknown"
    assert listed(tap) == [IDS[0].message]

    # WHEN a receipt comes, THEN the part is sent, but what is left of the reply is still listed
    receipt = DeliveryReceipt("twilio", "SM9", IDS[0].part(1), "delivered", "", NOW)
    assert ledger.receive(receipt).result == "recorded"
    assert ledger.receive(receipt).result == "stale"
    found = ledger.find(IDS[0])
    assert found is not None
    assert found.parts is not None
    assert [part.state for part in found.parts] == ["sent", "waiting"]
    assert found.parts[0].provider_id == "SM9"
    assert found.parts[0].lease_until is None
    assert listed(tap) == [IDS[0].message]


def test_what_is_there_and_what_is_not_is_read_at_once() -> None:
    _, table = on(DynamoDb(Clock()))
    keys = [("P", str(number)) for number in range(250)]
    for pk, sk in keys[::2]:
        assert table.insert({"pk": pk, "sk": sk, "n": 0.5, "nothing": None}) is None
    found = table.get_many(keys)
    assert found == {one: {"pk": "P", "sk": one[1], "n": 0.5} for one in keys[::2]}
    with pytest.raises(Conflict) as caught:
        table.update(("P", "1"), "SET n = :v", condition="attribute_exists(pk)", values={":v": 1})
    assert caught.value.item is None


class Both:
    """Two clients of DynamoDB as one: every call goes to both, and they must say the same."""

    def __init__(self, ours: DynamoDb, theirs: Any) -> None:
        self._clients = (ours, theirs)
        self.exceptions = ours.exceptions
        self.calls = 0

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        def call(**arguments: Any) -> Any:
            self.calls += 1
            ours, theirs = (self._tried(one, operation, arguments) for one in self._clients)
            assert _plain(ours) == _plain(theirs), (operation, arguments)
            if isinstance(ours, ClientError):
                raise ours
            return ours

        return call

    @staticmethod
    def _tried(client: Any, operation: str, arguments: dict[str, Any]) -> Any:
        try:
            return getattr(client, operation)(**arguments)
        except ClientError as error:
            return error


def _plain(answer: Any) -> Any:
    """What was said, without how sets and numbers were spelt."""
    read = TypeDeserializer().deserialize
    if isinstance(answer, ClientError):
        found: Any = answer.response.get("Item")
        said = answer.response["Error"]["Code"]
        return said, found and {name: read(value) for name, value in found.items()}
    found = answer.get("Item", answer.get("Attributes"))
    return found and {name: read(value) for name, value in found.items()}


@dataclass
class Story:
    """Somebody's steps on the ledger, the consent list and the starts of a message."""

    runtime: FakeRuntime
    ledger: Ledger
    consent: ConsentList
    table: Table
    # What somebody read some time ago, and may act on.
    replies: list[Reply]
    parts: list[tuple[Reply, PartEntry]]

    def remember(self, reply: Reply) -> None:
        self.replies.append(reply)
        self.parts += [(reply, part) for part in reply.parts or ()]

    def step(self, name: str, which: int, detail: int) -> None:
        with suppress(Busy, Conflict):
            getattr(self, name)(which, detail)

    def open(self, which: int, detail: int) -> None:
        self.remember(opened(self.ledger, IDS[which % 2], NOW + detail / 4))

    def look(self, which: int, detail: int) -> None:
        if reply := self.ledger.find(IDS[which % 2]):
            self.remember(reply)

    def words(self, which: int, detail: int) -> None:
        """A draft, which a claim stores or, every other time, a step of its own."""
        if self.replies:
            words = [(f"part {n}", ["https://x"] * n) for n in range(1 + detail % 3)]
            reply = self.replies[which % len(self.replies)]
            drafted = draft(reply, words, confirmation=detail > 3)
            self.remember(drafted)
            if detail % 2 == 0:
                self.ledger.store_words(drafted)

    def close(self, which: int, detail: int) -> None:
        if self.replies:
            self.ledger.close(self.replies[which % len(self.replies)], f"refused: {detail}")

    def move(self, which: int, detail: int) -> None:
        if not self.parts:
            return
        reply, part = self.parts[-1 - which % len(self.parts)]
        ledger, until = self.ledger, self.runtime.now() + 60
        steps: list[Callable[[], PartEntry]] = [
            lambda: ledger.claim(reply, part, owner="me", lease_until=until),
            lambda: ledger.claim(reply, part, owner="you", lease_until=until - 0.5, request="{}"),
            lambda: ledger.sent(reply, part, "SM1"),
            lambda: ledger.failed(reply, part, reason="invalid_number", code="21211"),
            lambda: ledger.put_back(reply, part),
            lambda: ledger.unknown(reply, part, reason="timeout"),
        ]
        moved = steps[detail % len(steps)]()
        self.parts.append((replace(reply, drafted=False), moved))

    def settle(self, which: int, detail: int) -> None:
        """A look's or a person's word on a part."""
        if not self.parts:
            return
        reply, part = self.parts[-1 - which % len(self.parts)]
        ledger, now = self.ledger, self.runtime.now()
        steps: list[Callable[[], Reply]] = [
            lambda: ledger.found(reply, part, "SM2"),
            lambda: ledger.taken_for_sent(reply, part),
            lambda: ledger.not_sent(reply, part),
            lambda: ledger.resend(reply, part),
            lambda: ledger.resend(reply, part, redriven_at=now),
            lambda: ledger.refused(reply, part, reason="invalid_number", code="40310"),
            lambda: ledger.give_up(reply, part),
            lambda: ledger.note(reply, part, "repeat_refused"),
        ]
        self.remember(steps[detail % len(steps)]())

    def receipt(self, which: int, detail: int) -> None:
        status: Any = list(STATUS_RANK)[detail % len(STATUS_RANK)]
        reference = IDS[which % 2].part(1 + which % 3)
        self.ledger.receive(DeliveryReceipt("twilio", f"SM{which}", reference, status, "", NOW))

    def consents(self, which: int, detail: int) -> None:
        events: Any = ["stop", "start", "help"]
        self.consent.record(
            "+14155550100",
            events[which % 3],
            NOW + detail * 1.5,
            words="STOP",
            source="twilio",
            id_=str(IDS[0]),
        )

    def start(self, which: int, detail: int) -> None:
        """A batch with a message that comes for the so many-th time, and is deferred or not."""
        event = sqs_event(
            [Envelope("inbound", CONVERSATION, str(IDS[0]), NOW, {}).body()], receives=2 + which
        )
        batch = Batch(
            self.runtime,
            Queues(self.runtime, "test"),
            self.table,
            OUTBOUND,
            event,
            Context(self.runtime),
            reporting=True,
        )

        def work(*_: object) -> None:
            if detail % 2:
                raise Defer("later", after=5.0)

        batch.each(work, needs=1.0)

    def later(self, which: int, detail: int) -> None:
        self.runtime.clock += detail / 2


STEPS = st.tuples(
    st.sampled_from(
        [
            *("open", "look", "words", "close", *["move"] * 5),
            *("settle", "settle", "receipt", "consents", "start", "later"),
        ]
    ),
    st.integers(0, 5),
    st.integers(0, 7),
)


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=st.lists(STEPS, min_size=8, max_size=25))
def test_spillways_writes_come_out_as_on_moto(
    steps: list[tuple[str, int, int]], dynamodb: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    on_empty_table(dynamodb)
    ours = DynamoDb(Clock())
    both = Both(ours, dynamodb)
    runtime, table = on(both)
    story = Story(
        runtime,
        Ledger(table, runtime, keep_days=30),
        ConsentList(table, KEYS, "default"),
        table,
        [],
        [],
    )
    for step in [("open", 0, 0), ("words", 0, 2), ("open", 1, 0), ("words", 1, 4), *steps]:
        story.step(*step)
    assert both.calls >= 4
    mine, theirs = (
        sorted(
            (
                _plain({"Item": one})
                for one in client.scan(TableName=TABLE, ConsistentRead=True)["Items"]
            ),
            key=str,
        )
        for client in (ours, dynamodb)
    )
    assert mine == theirs
    capsys.readouterr()
