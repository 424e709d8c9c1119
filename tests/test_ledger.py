"""What may happen to a reply and to its parts, in every order: one item, one claim, no way back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
from botocore.exceptions import ReadTimeoutError

from chalicelib.ledger import DAY, Busy, Ledger, PartEntry, Reply, State, draft
from chalicelib.messages import DeliveryReceipt, MessageId, Status
from chalicelib.table import Conflict, Table
from tests.fakes import (
    NOW,
    OURS,
    THEIRS,
    FakeRuntime,
    Lost,
    begun,
    no_answer,
    tapped,
)

pytestmark = pytest.mark.usefixtures("says_nothing")

ID = MessageId("c" * 24, "0" * 23 + "7")
LEASE = NOW + 65
# All that a step of a part needs of its reply is whose it is, and how many there are: one.
ENTRY = PartEntry(1, "", (), "sending", 0, "me", LEASE, NOW, "", "", "")
REPLY = Reply(ID, "inbound", "twilio", OURS, THEIRS, "", NOW, "", False, (ENTRY,))


@pytest.fixture
def ledger(runtime: FakeRuntime) -> Ledger:
    return Ledger(Table(runtime, "test"), runtime, keep_days=400)


def opened(ledger: Ledger, received_at: float = NOW) -> Reply:
    return begun(ledger, ID, received_at=received_at)


def words(*texts: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(text, ()) for text in texts or ("heron",)]


def with_words(ledger: Ledger, *texts: str) -> Reply:
    """A reply of which no part was claimed yet. (The words of a real one come with a claim.)"""
    reply = draft(opened(ledger), words(*texts))
    ledger.claim(reply, (reply.parts or ())[0], owner="", lease_until=0)
    return unclaimed(ledger)


def unclaimed(ledger: Ledger) -> Reply:
    item = ledger._table.update(
        (f"C#{ID.conversation}", f"OUT#{ID.message}"),
        "SET parts.#one.#state = :waiting REMOVE parts.#one.#owner, parts.#one.lease_until,"
        " parts.#one.started_at, parts.#one.first_started_at",
        names={"#one": "1", "#state": "state", "#owner": "owner"},
        values={":waiting": "waiting"},
    )
    assert item["parts"]["1"]["attempt"] == 0
    return found(ledger)


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


def test_words_are_stored_with_the_first_claim(runtime: FakeRuntime, ledger: Ledger) -> None:
    reply = draft(
        opened(ledger), [("heron one", ()), ("heron two", ["https://a/1"])], confirmation=True
    )
    assert found(ledger).parts is None
    runtime.clock += 3
    mine = ledger.claim(reply, (reply.parts or ())[0], owner="me", lease_until=LEASE, request="{}")

    there = found(ledger)
    assert [(one.number, one.text, one.media, one.state) for one in there.parts or ()] == [
        (1, "heron one", (), "sending"),
        (2, "heron two", ("https://a/1",), "waiting"),
    ]
    assert mine == part(ledger)
    assert (mine.owner, mine.attempt, mine.lease_until, mine.request) == ("me", 0, LEASE, "{}")
    assert mine.started_at == mine.first_started_at == NOW + 3
    assert there.confirmation
    assert not there.drafted
    assert not there.listed


def test_the_first_words_win(ledger: Ledger) -> None:
    # GIVEN two who asked what to say, and were told different things
    one, two = (draft(opened(ledger), words(text)) for text in ("heron one", "heron two"))
    ledger.claim(one, (one.parts or ())[0], owner="me", lease_until=LEASE)
    # THEN the second says nothing
    with pytest.raises(Busy):
        ledger.claim(two, (two.parts or ())[0], owner="other", lease_until=LEASE)
    assert (part(ledger).text, part(ledger).owner) == ("heron one", "me")


def test_words_come_back_in_order_beyond_nine(ledger: Ledger) -> None:
    reply = with_words(ledger, *(f"heron {number}" for number in range(1, 13)))
    assert [one.number for one in reply.parts or ()] == list(range(1, 13))


def test_no_words_for_a_reply_that_has_ended(ledger: Ledger) -> None:
    reply = draft(opened(ledger), words())
    ledger.close(reply, "no_reply")
    with pytest.raises(Busy):
        ledger.claim(reply, (reply.parts or ())[0], owner="me", lease_until=LEASE)
    assert (found(ledger).state, found(ledger).parts) == ("no_reply", None)


def test_a_draft_is_closed_without_its_words(ledger: Ledger) -> None:
    reply = draft(opened(ledger), words("heron 1", "heron 2"))
    assert ledger.close(reply, "expired").outcome == "expired"
    assert found(ledger).parts is None


def test_a_reply_whose_item_is_gone_takes_nothing(ledger: Ledger) -> None:
    # GIVEN a reply that was read, and whose item was then removed by a person
    reply = replace(opened(ledger), id=MessageId("d" * 24, "d" * 24))
    steps: list[Callable[[], object]] = [
        lambda: ledger.close(reply, "expired"),
        lambda: ledger.claim(reply, ENTRY, owner="me", lease_until=LEASE),
        lambda: ledger.claim(draft(reply, words()), ENTRY, owner="me", lease_until=LEASE),
        lambda: ledger.sent(reply, ENTRY, "SM1"),
        lambda: ledger.found(reply, ENTRY, "SM1"),
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
    reply = with_words(ledger, "heron 1", "heron 2")
    ledger.sent(reply, claimed(ledger), "SM1")
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
    assert ledger.receive(receipt("sent")).result == "recorded"
    return mine


def failed_(ledger: Ledger) -> PartEntry:
    mine = claimed(ledger)
    ledger.failed(REPLY, mine, reason="landline", code="30006")
    return mine


def unknown_(ledger: Ledger) -> PartEntry:
    mine = claimed(ledger)
    ledger.unknown(REPLY, mine, reason="lease_ended")
    return mine


def given_up_(ledger: Ledger) -> PartEntry:
    mine = unknown_(ledger)
    ledger.give_up(REPLY, mine)
    return mine


def freed_(ledger: Ledger) -> PartEntry:
    mine = unknown_(ledger)
    ledger.not_sent(REPLY, mine)
    return mine


def unknown_again_(ledger: Ledger) -> PartEntry:
    mine = freed_(ledger)
    ledger.unknown(REPLY, claimed(ledger, "other"), reason="read_timeout")
    return mine


def then_erased(given: Callable[[Ledger], PartEntry]) -> Callable[[Ledger], PartEntry]:
    def erased(ledger: Ledger) -> PartEntry:
        mine = given(ledger)
        ledger.erase(found(ledger))
        return mine

    return erased


GIVEN: dict[str, Callable[[Ledger], PartEntry]] = {
    "waiting": waiting_,
    "my claim": sending_,
    "put back": put_back_,
    "put back, then other's claim": taken_,
    "sent": sent_,
    "my claim, then a receipt": proven_,
    "failed": failed_,
    "my claim, declared dead": unknown_,
    "dead, then given up": given_up_,
    "dead, then not sent": freed_,
    "dead, not sent, unknown again": unknown_again_,
    "my claim, then erased": then_erased(sending_),
    "dead, then erased": then_erased(unknown_),
    "put back, then erased": then_erased(put_back_),
    "sent, then erased": then_erased(sent_),
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
    "receipt": lambda ledger, mine: ledger.receive(receipt()).result,
    "found": lambda ledger, mine: ledger.found(REPLY, mine, "SM1"),
    "taken for sent": lambda ledger, mine: ledger.taken_for_sent(REPLY, mine),
    "not sent": lambda ledger, mine: ledger.not_sent(REPLY, mine),
    "resend": lambda ledger, mine: ledger.resend(REPLY, mine),
    "refused": lambda ledger, mine: ledger.refused(REPLY, mine, reason="landline", code="30006"),
    "give up": lambda ledger, mine: ledger.give_up(REPLY, mine),
}
# What each settling step makes of a part that is unknown in this very attempt; of any other, none.
SETTLING = ("sent", "sent", "waiting", "waiting", "failed", "failed")
NOTHING = ("Busy",) * len(SETTLING)
# What becomes of the part at each step: its state then; "Busy", or a receipt's "stale" or
# "stranger" (for what was never handed over), where nothing changes;
# "=" where the step was taken already or is overtaken by proof, which changes nothing either.
TRANSITIONS: dict[str, tuple[str, ...]] = {
    # given         claim again, other claims, sent, failed, put back, unknown, receipt
    "waiting": ("sending", "sending", "Busy", "Busy", "Busy", "Busy", "stranger", *NOTHING),
    "my claim": ("=", "Busy", "sent", "failed", "waiting", "unknown", "sent", *NOTHING),
    "put back": ("Busy", "sending", "Busy", "Busy", "=", "Busy", "sent", *NOTHING),
    "put back, then other's claim": (
        *("Busy", "Busy", "Busy", "Busy", "=", "Busy", "sent"),
        *NOTHING,
    ),
    "sent": ("Busy", "Busy", "=", "=", "=", "=", "sent", *NOTHING),
    "my claim, then a receipt": ("Busy", "Busy", "sent", "=", "=", "=", "sent", *NOTHING),
    "failed": ("Busy", "Busy", "-", "=", "Busy", "Busy", "stale", *NOTHING),
    "my claim, declared dead": (
        *("Busy", "Busy", "sent", "failed", "waiting", "=", "sent"),
        *SETTLING,
    ),
    "dead, then given up": ("Busy", "Busy", "=", "failed", "Busy", "Busy", "stale", *NOTHING),
    "dead, then not sent": ("Busy", "sending", "Busy", "Busy", "=", "Busy", "sent", *NOTHING),
    "dead, not sent, unknown again": (
        *("Busy", "Busy", "Busy", "Busy", "=", "=", "sent"),
        *NOTHING,
    ),
    "my claim, then erased": ("Busy", "Busy", "=", "=", "Busy", "Busy", "stale", *NOTHING),
    "dead, then erased": ("Busy", "Busy", "=", "=", "Busy", "Busy", "stale", *NOTHING),
    "put back, then erased": ("Busy", "Busy", "Busy", "Busy", "=", "Busy", "sent", *NOTHING),
    "sent, then erased": ("Busy", "Busy", "=", "=", "=", "=", "sent", *NOTHING),
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

    # THEN the part is where the table says, and what is unknown, or waits since it was, is listed
    after = stored(runtime)
    if expected in ("Busy", "stale", "stranger", "="):
        assert after == before
    else:
        assert after["parts"]["1"]["state"] == expected
        assert after != before
    state = after["parts"]["1"]["state"]
    listed = state == "unknown" or (state == "waiting" and "unknown_bucket" in before)
    assert ("unknown_bucket" in after) == ("unknown_since" in after) == listed
    assert found(ledger).to_be_resumed == (listed and state == "waiting")


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


def test_a_wait_whose_answer_was_lost_is_recognised(runtime: FakeRuntime, ledger: Ledger) -> None:
    drafted = draft(opened(ledger), words())
    for _ in range(2):
        ledger.wait(drafted, NOW + 50, slot=True)
    there = ledger.find(drafted.id)
    assert there is not None
    assert (there.not_before, there.has_slot, there.waited) == (NOW + 50, True, 50)
    # Another's is not ours,
    for until, slot in ((NOW + 60, True), (NOW + 50, False)):
        with pytest.raises(Busy):
            ledger.wait(drafted, until, slot=slot)
    # ... nor is anybody to wait whose reply has ended.
    ledger.close(there, "expired")
    with pytest.raises(Busy):
        ledger.wait(drafted, NOW + 50, slot=True)


ONCE = ("open", "words", "close", *tuple(STEPS)[: -len(SETTLING)])


@pytest.mark.parametrize("step", ONCE)
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
        "words": lambda: ledger.claim(
            draft(reply, words()),  # type: ignore[arg-type]
            ENTRY,
            owner="me",
            lease_until=LEASE,
        ),
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
    assert ledger.receive(receipt(first, error="1")).result == "recorded"

    moves = second in NEXT[first]
    result = ledger.receive(receipt(second, error="2")).result

    assert result == ("recorded" if moves else "stale")
    now = part(ledger)
    assert (now.status, now.error) == ((second, "2") if moves else (first, "1"))
    assert (now.state, now.provider_id) == ("sent", "SM1")


@pytest.mark.parametrize("given", [name for name, row in TRANSITIONS.items() if row[6] == "sent"])
def test_a_receipt_proves_that_the_provider_has_it(
    runtime: FakeRuntime, ledger: Ledger, given: str
) -> None:
    with_words(ledger)
    GIVEN[given](ledger)
    assert ledger.receive(receipt("delivered")).result == "recorded"
    now = part(ledger)
    assert (now.state, now.status) == ("sent", "delivered")
    id_ = "SM1" if given == "sent" else "SM-receipt"
    # (What was erased gets no id again.)
    assert now.provider_id == ("" if "erased" in given else id_)
    assert "unknown_bucket" not in stored(runtime)

    # AND nobody sends it again
    with pytest.raises(Busy):
        claimed(ledger)


def test_a_reply_of_which_parts_are_left_stays_listed_until_the_next_is_claimed(
    runtime: FakeRuntime, ledger: Ledger
) -> None:
    # GIVEN part 1 unknown, and its message therefore gone from the queue
    reply = with_words(ledger, "heron 1", "heron 2")
    ledger.unknown(reply, claimed(ledger), reason="read_timeout")
    # WHEN a receipt proves part 1, THEN somebody has to go on with part 2
    received = ledger.receive(receipt("sent"))
    assert received.reply == found(ledger)
    assert received.reply.to_be_resumed
    # AND a later one says so again, whether it says anything new or not
    for _ in range(2):
        received = ledger.receive(receipt("delivered"))
        assert received.reply is not None
        assert received.reply.to_be_resumed
    # WHEN the sender takes it up
    claimed(ledger, number=2)
    assert not {"unknown_bucket", "unknown_since"} & set(stored(runtime))
    assert not found(ledger).to_be_resumed


def test_what_waits_to_be_resumed_is_listed_until_it_is_closed(
    runtime: FakeRuntime, ledger: Ledger
) -> None:
    reply = with_words(ledger, "heron 1", "heron 2")
    ledger.found(reply, unknown_(ledger), "SM1")
    assert found(ledger).to_be_resumed
    ledger.close(found(ledger), "expired: after 1 of its parts")
    assert not {"unknown_bucket", "unknown_since"} & set(stored(runtime))


def test_a_reply_with_an_unknown_part_is_not_closed(ledger: Ledger) -> None:
    reply = with_words(ledger, "heron 1", "heron 2")
    ledger.unknown(reply, claimed(ledger), reason="read_timeout")
    with pytest.raises(Busy):
        ledger.close(found(ledger), "expired")


def test_an_owner_that_comes_back_leaves_the_rest_listed(ledger: Ledger) -> None:
    # GIVEN a claim of part 1 that was taken for dead, whose message has left the queue
    reply = with_words(ledger, "heron 1", "heron 2")
    mine = claimed(ledger)
    ledger.unknown(reply, mine, reason="lease_ended")
    # WHEN its owner says that it is sent, and dies, THEN part 2 is not forgotten
    ledger.sent(reply, mine, "SM1")
    assert found(ledger).to_be_resumed


def test_the_normal_case_is_never_to_be_resumed(ledger: Ledger) -> None:
    reply = with_words(ledger, "heron 1", "heron 2")
    mine = claimed(ledger)
    for news in (receipt("queued"), receipt("sent")):
        received = ledger.receive(news)
        assert received.reply is not None
        assert not received.reply.to_be_resumed
    ledger.sent(reply, mine, "SM1")
    assert not found(ledger).to_be_resumed


def test_the_first_request_is_that_of_every_attempt(runtime: FakeRuntime, ledger: Ledger) -> None:
    with_words(ledger)
    mine = ledger.claim(REPLY, part(ledger), owner="me", lease_until=LEASE, request="first")
    ledger.put_back(REPLY, mine)
    runtime.clock += 60
    again = ledger.claim(REPLY, part(ledger), owner="me", lease_until=LEASE, request="second")
    assert (again.request, again.attempt) == ("first", 1)
    assert (again.first_started_at, again.started_at) == (NOW, NOW + 60)


def test_what_was_given_up_without_knowing_is_counted(ledger: Ledger) -> None:
    with_words(ledger)
    freed = ledger.resend(REPLY, unknown_(ledger))
    assert [(one.attempt, one.lost) for one in freed.parts or ()] == [(1, 1)]
    again = claimed(ledger)
    ledger.unknown(REPLY, again, reason="read_timeout")
    assert ledger.taken_for_sent(REPLY, again).state == "sent"
    assert (part(ledger).lost, part(ledger).provider_id) == (2, "")


def test_a_reply_that_somebody_wants_sent_again_is_new(ledger: Ledger) -> None:
    with_words(ledger)
    assert ledger.resend(REPLY, unknown_(ledger), redriven_at=NOW + 5).redriven_at == NOW + 5
    assert found(ledger).received_at == NOW


@pytest.mark.parametrize("drafted", [True, False])
def test_a_claim_keeps_when_it_was_redriven(ledger: Ledger, drafted: bool) -> None:
    reply = draft(opened(ledger), words()) if drafted else with_words(ledger)
    reply = replace(reply, redriven_at=NOW + 7)
    ledger.claim(reply, (reply.parts or ())[0], owner="me", lease_until=LEASE)
    assert found(ledger).redriven_at == NOW + 7


@pytest.mark.parametrize("drafted", [True, False])
def test_a_claim_keeps_for_which_day_it_is_counted_and_a_resend_counts_again(
    ledger: Ledger, drafted: bool
) -> None:
    reply = draft(opened(ledger), words()) if drafted else with_words(ledger)
    reply = replace(reply, counted_on="20260921")
    mine = ledger.claim(reply, (reply.parts or ())[0], owner="me", lease_until=LEASE)
    ledger.put_back(reply, mine)
    assert found(ledger).counted_on == "20260921"
    again = ledger.claim(found(ledger), part(ledger), owner="me", lease_until=LEASE)
    ledger.unknown(reply, again, reason="read_timeout")
    assert ledger.resend(reply, again).counted_on == ""


def test_why_it_is_unknown_may_change(ledger: Ledger) -> None:
    with_words(ledger)
    ledger.note(REPLY, unknown_(ledger), "idempotency_mismatch")
    assert (part(ledger).state, part(ledger).error) == ("unknown", "idempotency_mismatch")


def test_all_parts_of_a_conversation_are_found(ledger: Ledger) -> None:
    with_words(ledger, "heron 1", "heron 2")
    other = MessageId(ID.conversation, "e" * 24)
    for id_ in (other, MessageId("d" * 24, "e" * 24)):
        reply = begun(ledger, id_)
        if id_ == other:
            reply = draft(reply, words("heron 3"))
            ledger.claim(reply, (reply.parts or ())[0], owner="me", lease_until=LEASE)
    assert [(id_, one.text) for id_, one in ledger.conversation(ID.conversation)] == [
        (ID, "heron 1"),
        (ID, "heron 2"),
        (other, "heron 3"),
    ]


def test_a_receipt_for_one_part_leaves_another_listed(runtime: FakeRuntime, ledger: Ledger) -> None:
    # GIVEN part 1 sent and part 2 unknown
    reply = with_words(ledger, "heron 1", "heron 2")
    ledger.sent(reply, claimed(ledger), "SM1")
    ledger.unknown(reply, claimed(ledger, number=2), reason="read_timeout")
    listed = stored(runtime)["unknown_bucket"]

    # WHEN part 1 is delivered, THEN part 2 is still for a person to settle
    assert ledger.receive(receipt("delivered", number=1)).result == "recorded"
    assert stored(runtime).get("unknown_bucket") == listed
    assert found(ledger).state == "unknown"

    # AND part 2's own receipt settles it
    assert ledger.receive(receipt("delivered", number=2)).result == "recorded"
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
    assert ledger.receive(receipt(reference=reference)).result == "stranger"
    assert stored(runtime) == before


def test_a_receipt_for_a_reply_without_words_is_a_strangers(ledger: Ledger) -> None:
    opened(ledger)
    assert ledger.receive(receipt()).result == "stranger"
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


# --- erasing -----------------------------------------------------------------------------------


def two_parts(ledger: Ledger) -> Reply:
    """With everything in it that a reply may have."""
    reply = draft(opened(ledger), [("heron 1", ["https://a/1"]), ("heron 2", ())])
    first = (reply.parts or ())[0]
    mine = ledger.claim(reply, first, owner="me", lease_until=LEASE, request=f"{THEIRS} heron")
    ledger.sent(found(ledger), mine, "SM1")
    ledger.claim(
        found(ledger), part(ledger, 2), owner="me", lease_until=LEASE, request=f"{THEIRS} heron"
    )
    return found(ledger)


def second(step: Callable[[Ledger, Reply, PartEntry], object]) -> Callable[[Ledger], object]:
    def given(ledger: Ledger) -> object:
        reply = two_parts(ledger)
        return step(ledger, reply, part(ledger, 2))

    return given


ERASED: dict[str, tuple[Callable[[Ledger], object], str, list[str]]] = {
    # given: what it was, its state when it is erased, and that of its parts
    "no words yet": (opened, "erased", []),
    "a draft": (lambda ledger: ledger.store_words(draft(opened(ledger), words())), "erased", ["w"]),
    "a claim": (two_parts, "erased", ["sent", "failed"]),
    "put back": (
        second(lambda ledger, reply, mine: ledger.put_back(reply, mine)),
        "erased",
        ["sent", "waiting"],
    ),
    "unknown": (
        second(lambda ledger, reply, mine: ledger.unknown(reply, mine, reason="lease_ended")),
        "erased",
        ["sent", "failed"],
    ),
    "sent": (
        second(lambda ledger, reply, mine: ledger.sent(reply, mine, "SM2")),
        "sent",
        ["sent", "sent"],
    ),
    "delivered": (
        second(
            lambda ledger, _, __: [ledger.receive(receipt("delivered", number=n)) for n in (1, 2)]
        ),
        "delivered",
        ["sent", "sent"],
    ),
    "refused by the provider": (
        second(lambda ledger, reply, mine: ledger.failed(reply, mine, reason="filtered", code="7")),
        "failed: filtered",
        ["sent", "failed"],
    ),
    "closed": (
        lambda ledger: ledger.close(opened(ledger), "refused: opted_out"),
        "refused: opted_out",
        [],
    ),
}


@pytest.mark.parametrize("given", ERASED)
def test_what_is_erased_says_what_became_of_it_and_no_more(
    runtime: FakeRuntime, ledger: Ledger, given: str
) -> None:
    make, state, parts = ERASED[given]
    make(ledger)
    before = stored(runtime)
    runtime.clock += 1000
    # WHEN it is erased, twice
    ledger.erase(found(ledger))
    there = ledger.erase(found(ledger))

    # THEN what became of it is there, with its times, and nothing else
    assert there == found(ledger)
    assert there.state == state
    assert [one.state for one in there.parts or ()] == ["waiting" if p == "w" else p for p in parts]
    after = stored(runtime)
    kept = {"pk", "sk", "kind", "provider", "received_at", "expires_at"}
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    said = {"parts", "outcome", "confirmation", "ended_by_receipt", "erased_at"}
    assert set(after) - kept <= said
    assert after["erased_at"] == NOW + 1000
    for number, one in after.get("parts", {}).items():
        was = before["parts"][number]
        assert (one.pop("text"), one.pop("media"), one.pop("provider_id")) == ("", [], "")
        told = {"attempt", "started_at", "first_started_at", "status", "rank", "error"}
        assert one == {"state": one["state"]} | {n: was[n] for n in told if n in was}
    # AND it is in nobody's list, and nobody resumes or decides it
    assert (there.listed, there.to_be_resumed) == (False, False)

    # WHEN its message comes again, THEN there is nothing to be done
    again = opened(ledger, NOW + 7200)
    assert again == there
    assert again.outcome or again.current is None
    draft_of = draft(replace(again, parts=None), words("heron again"))
    for claim in (draft_of, again):
        for one in claim.parts or ():
            with pytest.raises(Busy):
                ledger.claim(claim, one, owner="other", lease_until=LEASE)
    # AND a receipt brings nothing back
    ledger.receive(receipt("failed", error="30003"))
    assert "SM" not in str(stored(runtime))


@pytest.mark.parametrize(
    "meanwhile", ["words", "closed", "claimed", "sent", "unknown", "put back", "another's claim"]
)
def test_an_erasure_is_of_the_reply_as_it_was_read(
    runtime: FakeRuntime, ledger: Ledger, meanwhile: str
) -> None:
    # GIVEN a reply that moves on after it was read
    if meanwhile in ("words", "closed"):
        read = opened(ledger)
        if meanwhile == "words":
            ledger.store_words(draft(read, words()))
        else:
            ledger.close(read, "no_reply")
    elif meanwhile == "claimed":
        read = with_words(ledger)
        claimed(ledger)
    else:
        with_words(ledger)
        mine = claimed(ledger)
        read = found(ledger)
        if meanwhile == "sent":
            ledger.sent(REPLY, mine, "SM1")
        elif meanwhile == "unknown":
            ledger.unknown(REPLY, mine, reason="lease_ended")
        else:
            ledger.put_back(REPLY, mine)
        if meanwhile == "another's claim":
            claimed(ledger, "another")
    before = stored(runtime)
    with pytest.raises(Busy):
        ledger.erase(read)
    assert stored(runtime) == before


def test_an_erasure_makes_no_item(runtime: FakeRuntime, ledger: Ledger) -> None:
    # (The end of its life may have come in between.)
    with pytest.raises(Busy):
        ledger.erase(replace(REPLY, parts=None))
    assert ledger.find(ID) is None


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
