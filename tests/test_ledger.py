"""What may happen to a reply and to its parts, in every order: one item, one claim, no way back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
from botocore.exceptions import ReadTimeoutError

from chalicelib.ledger import DAY, Busy, Ledger, PartEntry, Reply, State
from chalicelib.messages import DeliveryReceipt, MessageId, Status
from chalicelib.table import Conflict, Table
from tests.fakes import (
    NOW,
    OURS,
    THEIRS,
    FakeRuntime,
    Lost,
    no_answer,
    tapped,
)

pytestmark = pytest.mark.usefixtures("says_nothing")

ID = MessageId("c" * 24, "0" * 23 + "7")
LEASE = NOW + 65
# All that a step of a part needs of its reply is whose it is.
REPLY = Reply(ID, "inbound", "twilio", OURS, THEIRS, "", NOW, "", False, None)


@pytest.fixture
def ledger(runtime: FakeRuntime) -> Ledger:
    return Ledger(Table(runtime, "test"), runtime, keep_days=400)


def opened(ledger: Ledger, received_at: float = NOW) -> Reply:
    return ledger.open(
        ID,
        kind="inbound",
        provider="twilio",
        ours=OURS,
        theirs=THEIRS,
        callback_url="https://sms.example.com/webhooks/twilio/signed",
        received_at=received_at,
    )


def with_words(ledger: Ledger, *texts: str) -> Reply:
    words = [(text, ()) for text in texts or ("heron",)]
    return ledger.store_words(opened(ledger), words)


def found(ledger: Ledger) -> Reply:
    reply = ledger.find(ID)
    assert reply is not None
    return reply


def part(ledger: Ledger, number: int = 1) -> PartEntry:
    reply = found(ledger)
    assert reply.parts is not None
    return reply.parts[number - 1]


def claimed(ledger: Ledger, owner: str = "me", number: int = 1) -> PartEntry:
    return ledger.claim(REPLY, part(ledger, number), owner=owner, lease_until=LEASE)


def receipt(
    status: Status = "delivered", *, number: int = 1, reference: str | None = None, error: str = ""
) -> DeliveryReceipt:
    reference = ID.part(number) if reference is None else reference
    return DeliveryReceipt("twilio", "SM-receipt", reference, status, error)


def stored(runtime: FakeRuntime) -> dict[str, Any]:
    item = Table(runtime, "test").get((f"C#{ID.conversation}", f"OUT#{ID.message}"))
    assert item is not None
    return item


# --- the item ----------------------------------------------------------------------------------


def test_nothing_is_found_before_it_is_opened(ledger: Ledger) -> None:
    assert ledger.find(ID) is None


def test_a_reply_is_opened_once_and_keeps_the_first_receipts_time(
    runtime: FakeRuntime, ledger: Ledger
) -> None:
    first = opened(ledger, NOW)
    second = opened(ledger, NOW + 7200)  # a duplicate that came hours later
    assert first == second == found(ledger)
    assert second.received_at == NOW
    assert (second.state, second.parts, second.confirmation) == ("waiting", None, False)
    assert stored(runtime)["expires_at"] == NOW + 400 * DAY


def test_the_first_words_win(ledger: Ledger) -> None:
    reply = opened(ledger)
    mine = ledger.store_words(reply, [("heron one", ()), ("heron two", ("https://a/1",))])
    theirs = ledger.store_words(reply, [("other words", ())], confirmation=True)
    assert mine == theirs == found(ledger)
    assert [(one.number, one.text, one.media) for one in mine.parts or ()] == [
        (1, "heron one", ()),
        (2, "heron two", ("https://a/1",)),
    ]
    assert not mine.confirmation


def test_words_come_back_in_order_beyond_nine(ledger: Ledger) -> None:
    reply = with_words(ledger, *(f"heron {number}" for number in range(1, 13)))
    assert [one.number for one in reply.parts or ()] == list(range(1, 13))


def test_a_confirmation_stays_one(ledger: Ledger) -> None:
    ledger.store_words(opened(ledger), [("heron", ())], confirmation=True)
    assert opened(ledger).confirmation


def test_no_words_for_a_reply_that_has_ended(ledger: Ledger) -> None:
    reply = opened(ledger)
    ledger.close(reply, "no_reply")
    late = ledger.store_words(reply, [("heron", ())])
    assert (late.state, late.parts) == ("no_reply", None)


def test_a_reply_whose_item_is_gone_takes_nothing(ledger: Ledger) -> None:
    # GIVEN a reply that was read, and whose item was then removed by a person
    reply = replace(opened(ledger), id=MessageId("d" * 24, "d" * 24))
    entry = PartEntry(1, "", (), "sending", 0, "me", LEASE, NOW, "", "", "")
    steps: list[Callable[[], object]] = [
        lambda: ledger.store_words(reply, [("heron", ())]),
        lambda: ledger.close(reply, "expired"),
        lambda: ledger.claim(reply, entry, owner="me", lease_until=LEASE),
        lambda: ledger.sent(reply, entry, "SM1"),
    ]
    for step in steps:
        with pytest.raises(Busy):
            step()
    assert ledger.find(reply.id) is None


# --- closing -----------------------------------------------------------------------------------


def test_closing_without_words(ledger: Ledger) -> None:
    reply = opened(ledger)
    assert ledger.close(reply, "no_reply: stop").state == "no_reply: stop"


def test_the_first_outcome_stays(ledger: Ledger) -> None:
    reply = with_words(ledger)
    ledger.close(reply, "refused: opted_out")
    assert ledger.close(reply, "expired").state == found(ledger).state == "refused: opted_out"


def test_closing_ends_what_waits_and_nobody_claims_it(ledger: Ledger) -> None:
    reply = with_words(ledger)
    assert ledger.close(reply, "expired").state == "expired"
    with pytest.raises(Busy):
        ledger.claim(reply, part(ledger), owner="me", lease_until=LEASE)


def test_closing_after_part_1_was_sent(ledger: Ledger) -> None:
    with_words(ledger, "heron 1", "heron 2")
    ledger.sent(REPLY, claimed(ledger), "SM1")
    assert ledger.close(found(ledger), "refused: opted_out").outcome == "refused: opted_out"


@pytest.mark.parametrize("read", ["before the words", "before the claim"])
def test_closing_conflicts_with_a_claim(ledger: Ledger, read: str) -> None:
    # GIVEN somebody who read the reply, and somebody else who claims its part
    early = opened(ledger)
    reply = with_words(ledger)
    claimed(ledger)

    # THEN the first does not end what is being sent
    with pytest.raises(Busy):
        ledger.close(early if read == "before the words" else reply, "expired")
    assert found(ledger).outcome == ""


# --- claims ------------------------------------------------------------------------------------


def test_of_two_who_claim_alike_one_gets_it(runtime: FakeRuntime, ledger: Ledger) -> None:
    # GIVEN two who have read the same
    reply = with_words(ledger)
    waiting = part(ledger)

    runtime.clock += 3
    mine = ledger.claim(reply, waiting, owner="me", lease_until=LEASE)
    with pytest.raises(Busy):
        ledger.claim(reply, waiting, owner="other", lease_until=LEASE + 9)

    assert mine == part(ledger)
    assert (mine.state, mine.owner, mine.attempt) == ("sending", "me", 0)
    assert (mine.lease_until, mine.started_at) == (LEASE, NOW + 3)


def test_parts_are_claimed_each_for_itself(ledger: Ledger) -> None:
    with_words(ledger, "heron 1", "heron 2")
    claimed(ledger)
    assert part(ledger, 2).state == "waiting"


# --- every step in every state -----------------------------------------------------------------


def waiting_(ledger: Ledger) -> PartEntry:
    return replace(part(ledger), owner="me")


def sending_(ledger: Ledger) -> PartEntry:
    return claimed(ledger)


def put_back_(ledger: Ledger) -> PartEntry:
    mine = claimed(ledger)
    ledger.put_back(REPLY, mine)
    return mine


def taken_(ledger: Ledger) -> PartEntry:
    mine = put_back_(ledger)
    claimed(ledger, "other")
    return mine


def sent_(ledger: Ledger) -> PartEntry:
    mine = claimed(ledger)
    ledger.sent(REPLY, mine, "SM1")
    return mine


def proven_(ledger: Ledger) -> PartEntry:
    mine = claimed(ledger)
    assert ledger.receive(receipt("sent")) == "recorded"
    return mine


def failed_(ledger: Ledger) -> PartEntry:
    mine = claimed(ledger)
    ledger.failed(REPLY, mine, reason="landline", code="30006")
    return mine


def unknown_(ledger: Ledger) -> PartEntry:
    mine = claimed(ledger)
    ledger.unknown(REPLY, mine, reason="lease_ended")
    return mine


GIVEN: dict[str, Callable[[Ledger], PartEntry]] = {
    "waiting": waiting_,
    "my claim": sending_,
    "put back": put_back_,
    "put back, then other's claim": taken_,
    "sent": sent_,
    "my claim, then a receipt": proven_,
    "failed": failed_,
    "my claim, declared dead": unknown_,
}
STEPS: dict[str, Callable[[Ledger, PartEntry], object]] = {
    "claim again": lambda ledger, mine: ledger.claim(REPLY, mine, owner="me", lease_until=LEASE),
    "other claims": lambda ledger, mine: ledger.claim(
        REPLY, part(ledger), owner="another", lease_until=LEASE
    ),
    "sent": lambda ledger, mine: ledger.sent(REPLY, mine, "SM1"),
    "failed": lambda ledger, mine: ledger.failed(REPLY, mine, reason="landline", code="30006"),
    "put back": lambda ledger, mine: ledger.put_back(REPLY, mine),
    "unknown": lambda ledger, mine: ledger.unknown(REPLY, mine, reason="lease_ended"),
    "receipt": lambda ledger, mine: ledger.receive(receipt()),
}
# What becomes of the part at each step: its state then; "Busy", or a receipt's "stale" or
# "stranger" (for what was never handed over), where nothing changes;
# "=" where the step was taken already or is overtaken by proof, which changes nothing either.
TRANSITIONS: dict[str, tuple[str, ...]] = {
    # given         claim again, other claims, sent, failed, put back, unknown, receipt
    "waiting": ("sending", "sending", "Busy", "Busy", "Busy", "Busy", "stranger"),
    "my claim": ("=", "Busy", "sent", "failed", "waiting", "unknown", "sent"),
    "put back": ("Busy", "sending", "Busy", "Busy", "=", "Busy", "sent"),
    "put back, then other's claim": ("Busy", "Busy", "Busy", "Busy", "=", "Busy", "sent"),
    "sent": ("Busy", "Busy", "=", "=", "=", "=", "sent"),
    "my claim, then a receipt": ("Busy", "Busy", "sent", "=", "=", "=", "sent"),
    "failed": ("Busy", "Busy", "-", "=", "Busy", "Busy", "stale"),
    "my claim, declared dead": ("Busy", "Busy", "sent", "failed", "Busy", "=", "sent"),
}


@pytest.mark.parametrize(
    ("given", "step", "expected"),
    [
        pytest.param(given, step, expected, id=f"{given} | {step}")
        for given, row in TRANSITIONS.items()
        for step, expected in zip(STEPS, row, strict=True)
        if expected != "-"  # a provider's call ends once
    ],
)
def test_every_step_in_every_state(
    runtime: FakeRuntime, ledger: Ledger, given: str, step: str, expected: str
) -> None:
    # GIVEN a part that came so far, and what its first owner holds in hand
    with_words(ledger)
    mine = GIVEN[given](ledger)
    before = stored(runtime)

    # WHEN a step is taken
    if expected == "Busy":
        with pytest.raises(Busy):
            STEPS[step](ledger, mine)
    elif expected in ("stale", "stranger"):
        assert STEPS[step](ledger, mine) == expected
    else:
        STEPS[step](ledger, mine)

    # THEN the part is where the table says, and unknown parts and they alone are listed
    after = stored(runtime)
    if expected in ("Busy", "stale", "stranger", "="):
        assert after == before
    else:
        assert after["parts"]["1"]["state"] == expected
        assert after != before
    listed = after["parts"]["1"]["state"] == "unknown"
    assert ("unknown_bucket" in after) == ("unknown_since" in after) == listed


def test_put_back_raises_the_attempt_and_frees_the_part(ledger: Ledger) -> None:
    with_words(ledger)
    put_back_(ledger)
    again = part(ledger)
    assert (again.state, again.attempt, again.owner, again.lease_until) == ("waiting", 1, "", None)

    # AND the same owner's next claim is of the next attempt
    assert claimed(ledger, "me").attempt == 1


def test_sent_after_a_receipt_keeps_the_status_and_adds_the_id(ledger: Ledger) -> None:
    # GIVEN a receipt that was faster than the answer
    with_words(ledger)
    mine = claimed(ledger)
    ledger.receive(receipt("delivered"))

    ledger.sent(REPLY, mine, "SM-answer")

    now = part(ledger)
    assert (now.state, now.status, now.provider_id) == ("sent", "delivered", "SM-answer")
    assert now.lease_until is None


def test_sent_after_the_claim_was_taken_for_dead(runtime: FakeRuntime, ledger: Ledger) -> None:
    # GIVEN an owner that was slower than its lease, and somebody who declared its claim dead
    with_words(ledger)
    mine = claimed(ledger)
    ledger.unknown(REPLY, part(ledger), reason="lease_ended")
    assert (found(ledger).state, part(ledger).error) == ("unknown", "lease_ended")

    # WHEN the owner comes back with the answer, THEN it is sent, and no longer listed
    ledger.sent(REPLY, mine, "SM1")
    assert found(ledger).state == "sent"
    assert not {"unknown_bucket", "unknown_since"} & set(stored(runtime))


def test_an_unknown_part_is_listed_with_its_time(runtime: FakeRuntime, ledger: Ledger) -> None:
    with_words(ledger)
    mine = claimed(ledger)
    runtime.clock += 70
    ledger.unknown(REPLY, mine, reason="read_timeout")
    item = stored(runtime)
    assert (item["unknown_bucket"], item["unknown_since"]) == ("U#07", NOW + 70)
    assert "lease_until" not in item["parts"]["1"]


def test_a_failed_part_ends_the_reply(ledger: Ledger) -> None:
    with_words(ledger, "heron 1", "heron 2")
    failed_(ledger)
    assert found(ledger).state == "failed: landline"
    assert part(ledger).error == "30006"
    with pytest.raises(Busy):
        claimed(ledger, number=2)


# --- answers that were lost --------------------------------------------------------------------


@pytest.mark.parametrize("step", ["open", "words", "close", *STEPS])
def test_a_step_whose_answer_was_lost_is_taken_again_without_harm(
    runtime: FakeRuntime, ledger: Ledger, step: str
) -> None:
    # GIVEN a step that landed, but nobody heard of it
    reply = None if step == "open" else opened(ledger)
    if step in STEPS:
        with_words(ledger)
        before = part(ledger)
        mine = before if "claim" in step else claimed(ledger)
    take: Callable[[], object] = {
        "open": lambda: opened(ledger),
        "words": lambda: ledger.store_words(reply, [("heron", ())]),  # type: ignore[arg-type]
        "close": lambda: ledger.close(reply, "no_reply"),  # type: ignore[arg-type]
        "other claims": lambda: ledger.claim(REPLY, before, owner="another", lease_until=LEASE),
    }.get(step, lambda: STEPS[step](ledger, mine))
    tap = tapped(runtime)
    tap.next["put_item"] = tap.next["update_item"] = (
        # A receipt first asks whether the part is sent already.
        iter([None, Lost(no_answer())]) if step == "receipt" else iter([Lost(no_answer())])
    )
    with pytest.raises(ReadTimeoutError):
        take()
    landed = stored(runtime)

    # WHEN it is repeated, THEN it is recognised, and changes nothing
    take()
    assert stored(runtime) == landed


# --- receipts ----------------------------------------------------------------------------------

# Which status may follow each.
NEXT: dict[str, set[str]] = {
    "queued": {"sent", "unconfirmed", "delivered", "undelivered", "failed"},
    "sent": {"unconfirmed", "delivered", "undelivered", "failed"},
    "unconfirmed": {"delivered", "undelivered", "failed"},
    "delivered": set(),
    "undelivered": set(),
    "failed": set(),
}


@pytest.mark.parametrize("first", get_args(Status))
@pytest.mark.parametrize("second", get_args(Status))
def test_a_status_never_moves_backwards(ledger: Ledger, first: Status, second: Status) -> None:
    with_words(ledger)
    sent_(ledger)
    assert ledger.receive(receipt(first, error="1")) == "recorded"

    moves = second in NEXT[first]
    result = ledger.receive(receipt(second, error="2"))

    assert result == ("recorded" if moves else "stale")
    now = part(ledger)
    assert (now.status, now.error) == ((second, "2") if moves else (first, "1"))
    assert (now.state, now.provider_id) == ("sent", "SM1")


@pytest.mark.parametrize("given", [name for name in GIVEN if name not in ("waiting", "failed")])
def test_a_receipt_proves_that_the_provider_has_it(
    runtime: FakeRuntime, ledger: Ledger, given: str
) -> None:
    with_words(ledger)
    GIVEN[given](ledger)
    assert ledger.receive(receipt("delivered")) == "recorded"
    now = part(ledger)
    assert (now.state, now.status) == ("sent", "delivered")
    assert now.provider_id == ("SM1" if given == "sent" else "SM-receipt")
    assert "unknown_bucket" not in stored(runtime)

    # AND nobody sends it again
    with pytest.raises(Busy):
        claimed(ledger)


def test_a_reply_of_which_parts_are_left_stays_listed(runtime: FakeRuntime, ledger: Ledger) -> None:
    # GIVEN part 1 unknown, and its message therefore gone from the queue
    with_words(ledger, "heron 1", "heron 2")
    ledger.unknown(REPLY, claimed(ledger), reason="read_timeout")
    # WHEN a receipt proves part 1
    assert ledger.receive(receipt("delivered")) == "recorded"
    # THEN somebody can still see that part 2 was never sent
    assert part(ledger).state == "sent"
    assert "unknown_bucket" in stored(runtime)


def test_a_receipt_for_one_part_leaves_another_listed(runtime: FakeRuntime, ledger: Ledger) -> None:
    # GIVEN part 1 sent and part 2 unknown
    with_words(ledger, "heron 1", "heron 2")
    sent_(ledger)
    ledger.unknown(REPLY, claimed(ledger, number=2), reason="read_timeout")
    listed = stored(runtime)["unknown_bucket"]

    # WHEN part 1 is delivered, THEN part 2 is still for a person to settle
    assert ledger.receive(receipt("delivered", number=1)) == "recorded"
    assert stored(runtime).get("unknown_bucket") == listed
    assert found(ledger).state == "unknown"

    # AND part 2's own receipt settles it
    assert ledger.receive(receipt("delivered", number=2)) == "recorded"
    assert "unknown_bucket" not in stored(runtime)
    assert found(ledger).state == "delivered"


@pytest.mark.parametrize(
    "reference",
    [
        "",
        "hello",
        str(ID),
        ID.part(0),
        ID.part(100),
        f"{ID}-01",
        f"{ID}-1 ",
        ID.part(1).upper(),
        ID.part(2),  # no such part
        MessageId("d" * 24, "d" * 24).part(1),  # no such message
    ],
)
def test_a_receipt_of_a_stranger(runtime: FakeRuntime, ledger: Ledger, reference: str) -> None:
    with_words(ledger)
    before = stored(runtime)
    assert ledger.receive(receipt(reference=reference)) == "stranger"
    assert stored(runtime) == before


def test_a_receipt_for_a_reply_without_words_is_a_strangers(ledger: Ledger) -> None:
    opened(ledger)
    assert ledger.receive(receipt()) == "stranger"
    assert found(ledger).parts is None


def test_a_receipt_that_is_always_overtaken_comes_again() -> None:
    # GIVEN a part that is never where it was a moment ago
    class Restless:
        states = iter(["sending", "waiting", "unknown", "sending", "waiting"])

        def update(self, *_: object, **__: object) -> None:
            raise Conflict({"parts": {"1": {"state": next(self.states), "attempt": 1}}})

    ledger = Ledger(Restless(), FakeRuntime(), keep_days=400)  # type: ignore[arg-type]
    with pytest.raises(Busy):
        ledger.receive(receipt())


# --- what became of it -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "parts", "expected"),
    [
        ("", None, "waiting"),
        ("", [], "waiting"),
        ("no_reply", None, "no_reply"),
        ("expired", ["waiting"], "expired"),
        ("refused: opted_out", ["delivered", "waiting"], "refused: opted_out"),
        ("failed: landline", ["failed", "waiting"], "failed: landline"),
        ("", ["waiting", "waiting"], "waiting"),
        ("", ["sending", "waiting"], "sending"),
        ("", ["sent", "waiting"], "sending"),
        ("", ["delivered", "waiting"], "sending"),
        ("", ["delivered", "sending"], "sending"),
        ("", ["unknown", "waiting"], "unknown"),
        ("", ["delivered", "unknown"], "unknown"),
        ("", ["delivered", "failed"], "failed"),
        ("", ["sent"], "sent"),
        ("", ["sent:queued"], "sent"),
        ("", ["delivered"], "delivered"),
        ("", ["delivered", "delivered"], "delivered"),
        ("", ["delivered", "sent"], "sent"),
        ("", ["delivered", "sent:queued"], "sent"),
        ("", ["delivered", "sent:unconfirmed"], "unconfirmed"),
        ("", ["sent", "sent:unconfirmed"], "unconfirmed"),
        ("", ["delivered", "sent:undelivered"], "undelivered"),
        ("", ["sent:undelivered", "sent:failed"], "failed"),
    ],
)
def test_the_state_of_a_reply(outcome: str, parts: list[str] | None, expected: str) -> None:
    entries = None if parts is None else tuple(entry(one) for one in parts)
    reply = Reply(ID, "inbound", "twilio", OURS, THEIRS, "", NOW, outcome, False, entries)
    assert reply.state == expected


def entry(short: str) -> PartEntry:
    """Of `state`, `state:status`, or `delivered`, which is sent:delivered."""
    state, _, status = ("sent:delivered" if short == "delivered" else short).partition(":")
    assert state in get_args(State)
    return PartEntry(1, "", (), state, 0, "", None, None, "", status, "")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("age", "alive"), [(0, True), (399 * DAY - 1, True), (399 * DAY, False), (500 * DAY, False)]
)
def test_an_item_is_certain_to_be_there_until_a_day_before_its_end(
    runtime: FakeRuntime, ledger: Ledger, age: float, alive: bool
) -> None:
    runtime.clock = NOW + age
    assert ledger.alive(NOW) is alive
