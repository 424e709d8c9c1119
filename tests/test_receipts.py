"""What the log and the metrics say of a receipt, and which of them are opt-outs; what the ledger
does with one is in test_ledger."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ReadTimeoutError

from chalicelib import receipts
from chalicelib.consent import ConsentList
from chalicelib.events import Events
from chalicelib.ledger import Busy, Ledger, draft
from chalicelib.messages import DeliveryReceipt, Keys, MessageId, Status
from chalicelib.queues import PROCESSING, Envelope, Queues
from chalicelib.table import Conflict, Table
from tests.fakes import (
    HASH_KEY,
    NOBODY,
    NOW,
    THEIRS,
    FakeRuntime,
    Lost,
    aws_error,
    begun,
    events,
    logged,
    no_answer,
    settings,
    tapped,
)

ID = MessageId("c" * 24, "d" * 24)


@pytest.fixture
def ledger(runtime: FakeRuntime) -> Ledger:
    """With one reply, of which the provider has the only part."""
    ledger = Ledger(Table(runtime, "test"), runtime, keep_days=400)
    reply = begun(ledger, ID)
    reply = draft(reply, [("A heron", ())])
    (part,) = reply.parts or ()
    part = ledger.claim(reply, part, owner="me", lease_until=NOW + 65)
    ledger.sent(reply, part, "SM1")
    return ledger


@pytest.fixture
def consent(runtime: FakeRuntime) -> ConsentList:
    return ConsentList(Table(runtime, "test"), Keys(HASH_KEY), "default")


def receipt(
    status: Status, *, reference: str = ID.part(1), error: str = "", provider: str = "twilio"
) -> DeliveryReceipt:
    return DeliveryReceipt(provider, "SM1", reference, status, error)


@pytest.mark.parametrize(
    ("before", "given", "event", "line"),
    [
        pytest.param(
            [],
            receipt("undelivered", error="30003"),
            "receipt_recorded",
            {"level": "INFO", "id": ID.part(1), "reason": "undelivered", "code": "30003"},
            id="recorded",
        ),
        pytest.param(
            [receipt("delivered")],
            receipt("sent"),
            "receipt_stale",
            {"level": "INFO", "id": ID.part(1), "reason": "sent"},
            id="stale",
        ),
        pytest.param(
            [],
            receipt("delivered", reference=ID.part(2)),
            "receipt_of_unknown_message",
            {"level": "WARNING", "id": ID.part(2), "reason": "no_such_part"},
            id="a stranger's",
        ),
        pytest.param(
            [],
            # Anybody who knows the provider's secret may have put anything there.
            receipt("delivered", reference=f"heron {THEIRS}", provider="telnyx"),
            "receipt_of_unknown_message",
            {"level": "WARNING", "reason": "no_such_part", "provider": "telnyx"},
            id="a stranger's with a number for a reference",
        ),
    ],
)
def test_a_receipt_is_counted_and_logged(
    ledger: Ledger,
    consent: ConsentList,
    capsys: pytest.CaptureFixture[str],
    before: list[DeliveryReceipt],
    given: DeliveryReceipt,
    event: str,
    line: dict[str, str],
) -> None:
    for one in before:
        receipts.record(ledger, consent, NOBODY, one)
    logged(capsys)

    receipts.record(ledger, consent, NOBODY, given)

    lines = logged(capsys)
    assert events(lines) == [event]
    (said,) = [one for one in lines if "event" in one]
    assert said.items() >= {"provider": "twilio", **line}.items()
    assert ("id" in said) == ("id" in line)
    metrics = {
        name: one for one in lines for name in ("Receipts", "StrangeReceipts") if name in one
    }
    assert metrics["Receipts"].items() >= {"Receipts": 1, "reason": given.status}.items()
    assert ("StrangeReceipts" in metrics) == (event == "receipt_of_unknown_message")
    assert {metric.get("id") for metric in metrics.values()} == {line.get("id")}


def test_a_receipt_that_could_not_be_written_is_not_counted(
    runtime: FakeRuntime,
    ledger: Ledger,
    consent: ConsentList,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # GIVEN a table that is down for one write, THEN the receipt is still to come
    tapped(runtime).next["update_item"] = iter([aws_error("InternalServerError")])
    with pytest.raises(Exception, match="InternalServerError"):
        receipts.record(ledger, consent, NOBODY, receipt("delivered"))
    assert logged(capsys) == []

    receipts.record(ledger, consent, NOBODY, receipt("delivered"))
    assert events(logged(capsys)) == ["receipt_recorded"]


def test_a_reply_that_a_receipt_lets_go_on_is_for_the_caller(
    runtime: FakeRuntime, ledger: Ledger, consent: ConsentList
) -> None:
    # (The one of the fixture is sent, and nothing waits for it.)
    assert receipts.record(ledger, consent, NOBODY, receipt("sent")) is None
    assert receipts.record(ledger, consent, NOBODY, receipt("sent", reference="heron")) is None

    # GIVEN a reply whose first part is unknown
    other = MessageId("c" * 24, "e" * 24)
    reply = begun(ledger, other)
    reply = draft(reply, [("A heron", ()), ("Another", ())])
    part = ledger.claim(reply, (reply.parts or ())[0], owner="me", lease_until=NOW + 65)
    ledger.unknown(reply, part, reason="read_timeout")
    # THEN its receipt says what is to be resumed, however often it comes
    for _ in range(2):
        waiting = receipts.record(
            ledger, consent, NOBODY, receipt("delivered", reference=other.part(1))
        )
        assert waiting == ledger.find(other)


def test_an_overtaken_receipt_is_for_the_caller(
    consent: ConsentList, capsys: pytest.CaptureFixture[str]
) -> None:
    class Restless:
        states = iter(["sending", "waiting", "unknown", "sending"])

        def update(self, *_: object, **__: object) -> None:
            raise Conflict({"parts": {"1": {"state": next(self.states), "attempt": 1}}})

    ledger = Ledger(Restless(), FakeRuntime(), keep_days=400)  # type: ignore[arg-type]
    with pytest.raises(Busy):
        receipts.record(ledger, consent, NOBODY, receipt("delivered"))
    assert logged(capsys) == []


# --- the end of a reply --------------------------------------------------------------------------


def announced(runtime: FakeRuntime) -> list[str]:
    """What was announced since the last call, by its type."""
    sent = runtime.queues.sent[PROCESSING]
    types = [Envelope.parse(one["MessageBody"]).payload["type"] for one in sent]
    sent.clear()
    return types


@pytest.fixture
def heard(runtime: FakeRuntime) -> Events:
    variables = {"EVENTS_URL": "https://events.example.com"}
    return Events(runtime, Queues(runtime, "test"), settings("processing", **variables))


@pytest.mark.parametrize("dies", [False, True], ids=["at once", "after a death"])
def test_a_receipt_that_settles_the_last_part_announces_the_end(
    runtime: FakeRuntime, ledger: Ledger, consent: ConsentList, heard: Events, dies: bool
) -> None:
    # GIVEN a reply whose first part is sent, and of whose second nobody found out what became
    other = MessageId("c" * 24, "e" * 24)
    reply = begun(ledger, other)
    reply = draft(reply, [("A heron", ()), ("Another", ())])
    first, second = reply.parts or ()
    ledger.sent(reply, ledger.claim(reply, first, owner="me", lease_until=NOW + 65), "SM1")
    reply = reply.with_sent(first)
    ledger.unknown(
        reply,
        ledger.claim(reply, second, owner="me", lease_until=NOW + 65),
        reason="read_timeout",
    )
    # WHEN a receipt of the first comes, THEN that is no end
    receipts.record(ledger, consent, heard, receipt("delivered", reference=other.part(1)))
    assert announced(runtime) == ["receipt.received"]

    # WHEN one of the second comes, an hour later and perhaps to somebody who dies
    runtime.clock += 3600
    given = receipt("delivered", reference=other.part(2))
    if dies:
        runtime.queues.refuses[PROCESSING] = no_answer()
        with pytest.raises(ReadTimeoutError):
            receipts.record(ledger, consent, heard, given)
        runtime.queues.refuses.clear()
    # THEN the end is announced
    receipts.record(ledger, consent, heard, given)
    assert announced(runtime) == ["receipt.received", "reply.ended"]


def test_a_receipt_of_what_was_sent_announces_no_end(
    runtime: FakeRuntime, ledger: Ledger, consent: ConsentList, heard: Events
) -> None:
    receipts.record(ledger, consent, heard, receipt("delivered"))
    assert announced(runtime) == ["receipt.received"]


# --- opt-outs ------------------------------------------------------------------------------------

OPTED_OUT = receipt("failed", error="21610")


def entry(runtime: FakeRuntime) -> dict[str, Any] | None:
    return Table(runtime, "test").get((f"P#default#{Keys(HASH_KEY).number(THEIRS)}", "CONSENT"))


@pytest.mark.parametrize(
    ("provider", "code"), [("twilio", "21610"), ("telnyx", "40300")], ids=["twilio", "telnyx"]
)
@pytest.mark.parametrize("status", ["failed", "undelivered"])
def test_a_receipt_that_says_opted_out_is_an_opt_out(
    runtime: FakeRuntime,
    ledger: Ledger,
    consent: ConsentList,
    capsys: pytest.CaptureFixture[str],
    provider: str,
    code: str,
    status: Status,
) -> None:
    runtime.clock += 3600
    receipts.record(ledger, consent, NOBODY, receipt(status, error=code, provider=provider))

    # THEN it is in the list, by the time of the attempt, with its evidence
    assert consent.opted_out(THEIRS)
    found = entry(runtime)
    assert found is not None
    evidence = {name: found[name] for name in ("event", "at", "words", "source", "id")}
    assert evidence == {
        "event": "stop",
        "at": NOW,
        "words": "",
        "source": f"{provider}: {code}",
        "id": str(ID),
    }
    lines = logged(capsys)
    assert events(lines) == ["consent_stop", "receipt_recorded"]
    assert sum(line.get("ConsentEvents", 0) for line in lines) == 1


def test_an_opt_out_of_somebody_who_was_erased_is_nobodys(
    runtime: FakeRuntime, ledger: Ledger, consent: ConsentList
) -> None:
    reply = ledger.find(ID)
    assert reply is not None
    ledger.erase(reply)
    receipts.record(ledger, consent, NOBODY, OPTED_OUT)
    assert [
        item["sk"]["S"][:4] for item in runtime.dynamodb.scan(TableName="spillway-test")["Items"]
    ] == ["OUT#"]
    reply = ledger.find(ID)
    assert reply is not None
    assert reply.state == "failed"


@pytest.mark.parametrize(
    "given",
    [
        receipt("failed", error="30003"),
        receipt("undelivered", error="40300"),  # Telnyx's code, from Twilio
        receipt("delivered"),
        receipt("failed", error="21610", reference=""),
        receipt("failed", error="21610", reference=f"heron {THEIRS}"),
        receipt("failed", error="21610", reference=ID.part(2)),
        receipt("failed", error="21610", reference=MessageId("c" * 24, "0" * 24).part(1)),
    ],
    ids=["unreachable", "strange", "none", "unnamed", "odd", "no such part", "no such reply"],
)
def test_any_other_receipt_is_no_opt_out(
    runtime: FakeRuntime, ledger: Ledger, consent: ConsentList, given: DeliveryReceipt
) -> None:
    receipts.record(ledger, consent, NOBODY, given)
    assert entry(runtime) is None


def test_a_receipt_for_a_part_that_was_never_handed_over_is_no_opt_out(
    runtime: FakeRuntime, ledger: Ledger, consent: ConsentList
) -> None:
    other = MessageId("c" * 24, "e" * 24)
    reply = begun(ledger, other)
    ledger.store_words(draft(reply, [("A heron", ())]))
    receipts.record(
        ledger, consent, NOBODY, receipt("failed", error="21610", reference=other.part(1))
    )
    assert entry(runtime) is None


@pytest.mark.parametrize(
    ("said_at", "opted_out"),
    [(NOW - 60, True), (NOW + 1, True), (NOW + 60, False)],
    ids=["before", "a tie", "after"],
)
@pytest.mark.parametrize("first", ["start", "receipt"])
def test_a_start_that_was_said_after_the_attempt_wins(
    ledger: Ledger, consent: ConsentList, said_at: float, opted_out: bool, first: str
) -> None:
    def start() -> None:
        consent.record(THEIRS, "start", said_at, words="START", source="twilio", id_="s")

    def refused() -> None:
        receipts.record(ledger, consent, NOBODY, OPTED_OUT)

    for step in (start, refused) if first == "start" else (refused, start):
        step()
    assert consent.opted_out(THEIRS) is opted_out


@pytest.mark.parametrize(
    ("operation", "nth"),
    [("get_item", 0), ("get_item", 1), ("update_item", 0), ("update_item", 1)],
    ids=["ledger read", "consent read", "consent written", "ledger written"],
)
@pytest.mark.parametrize("lost", [False, True], ids=["no effect", "answer lost"])
def test_an_opt_out_is_recorded_whenever_the_process_dies(
    runtime: FakeRuntime,
    ledger: Ledger,
    consent: ConsentList,
    operation: str,
    nth: int,
    lost: bool,
) -> None:
    # GIVEN a receipt at one call of which the process ends, with or without its effect
    turn = Lost(no_answer()) if lost else no_answer()
    tapped(runtime).next[operation] = iter([*([None] * nth), turn])
    with pytest.raises(ReadTimeoutError):
        receipts.record(ledger, consent, NOBODY, OPTED_OUT)

    # WHEN it comes again
    receipts.record(ledger, consent, NOBODY, OPTED_OUT)

    # THEN both have it, once
    assert consent.opted_out_by(THEIRS, str(ID))
    reply = ledger.find(ID)
    assert reply is not None
    assert reply.state == "failed"


def test_an_opt_out_is_recorded_even_where_the_ledger_had_the_receipt(
    ledger: Ledger, consent: ConsentList, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger.receive(OPTED_OUT)
    receipts.record(ledger, consent, NOBODY, OPTED_OUT)
    assert consent.opted_out(THEIRS)
    assert events(logged(capsys)) == ["consent_stop", "receipt_stale"]
