"""What the log and the metrics say of a receipt; what the ledger does with it is in test_ledger."""

from __future__ import annotations

import pytest

from chalicelib import receipts
from chalicelib.ledger import Busy, Ledger, draft
from chalicelib.messages import DeliveryReceipt, MessageId, Status
from chalicelib.table import Conflict, Table
from tests.fakes import (
    NOW,
    OURS,
    THEIRS,
    FakeRuntime,
    aws_error,
    events,
    logged,
    tapped,
)

ID = MessageId("c" * 24, "d" * 24)


@pytest.fixture
def ledger(runtime: FakeRuntime) -> Ledger:
    """With one reply, of which the provider has the only part."""
    ledger = Ledger(Table(runtime, "test"), runtime, keep_days=400)
    reply = ledger.open(
        ID,
        kind="inbound",
        provider="twilio",
        ours=OURS,
        theirs=THEIRS,
        callback_url="https://sms.example.com/webhooks/twilio/signed",
        received_at=NOW,
    )
    reply = draft(reply, [("A heron", ())])
    (part,) = reply.parts or ()
    part = ledger.claim(reply, part, owner="me", lease_until=NOW + 65)
    ledger.sent(reply, part, "SM1")
    return ledger


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
            {"level": "WARNING", "reason": "no_such_part"},
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
    capsys: pytest.CaptureFixture[str],
    before: list[DeliveryReceipt],
    given: DeliveryReceipt,
    event: str,
    line: dict[str, str],
) -> None:
    for one in before:
        receipts.record(ledger, one)
    logged(capsys)

    receipts.record(ledger, given)

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


def test_a_receipt_that_could_not_be_written_is_not_counted(
    runtime: FakeRuntime, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    # GIVEN a table that is down for one write, THEN the receipt is still to come
    tapped(runtime).next["update_item"] = iter([aws_error("InternalServerError")])
    with pytest.raises(Exception, match="InternalServerError"):
        receipts.record(ledger, receipt("delivered"))
    assert logged(capsys) == []

    receipts.record(ledger, receipt("delivered"))
    assert events(logged(capsys)) == ["receipt_recorded"]


def test_a_reply_that_a_receipt_lets_go_on_is_for_the_caller(
    runtime: FakeRuntime, ledger: Ledger
) -> None:
    # (The one of the fixture is sent, and nothing waits for it.)
    assert receipts.record(ledger, receipt("sent")) is None
    assert receipts.record(ledger, receipt("sent", reference="heron")) is None

    # GIVEN a reply whose first part is unknown
    other = MessageId("c" * 24, "e" * 24)
    reply = ledger.open(
        other,
        kind="inbound",
        provider="twilio",
        ours=OURS,
        theirs=THEIRS,
        callback_url="https://sms.example.com/webhooks/twilio/signed",
        received_at=NOW,
    )
    reply = draft(reply, [("A heron", ()), ("Another", ())])
    part = ledger.claim(reply, (reply.parts or ())[0], owner="me", lease_until=NOW + 65)
    ledger.unknown(reply, part, reason="read_timeout")
    # THEN its receipt says what is to be resumed, however often it comes
    for _ in range(2):
        waiting = receipts.record(ledger, receipt("delivered", reference=other.part(1)))
        assert waiting == ledger.find(other)


def test_an_overtaken_receipt_is_for_the_caller(capsys: pytest.CaptureFixture[str]) -> None:
    class Restless:
        states = iter(["sending", "waiting", "unknown", "sending"])

        def update(self, *_: object, **__: object) -> None:
            raise Conflict({"parts": {"1": {"state": next(self.states), "attempt": 1}}})

    ledger = Ledger(Restless(), FakeRuntime(), keep_days=400)  # type: ignore[arg-type]
    with pytest.raises(Busy):
        receipts.record(ledger, receipt("delivered"))
    assert logged(capsys) == []
