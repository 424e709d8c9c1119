"""Slots: who gets which, what is given back, and how many a day. (That many senders together keep
the pace: tests/simulation/test_pacing.py.)"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from chalicelib.config import Pace
from chalicelib.ledger import reply_of
from chalicelib.messages import MessageId
from chalicelib.pacing import NotYet, OverCap, Pacer, Turns
from chalicelib.runtime import is_transient
from chalicelib.table import Conflict, Item, Table
from tests.fakes import (
    NOW,
    OURS,
    FakeRuntime,
    aws_error,
    events,
    logged,
    on_empty_table,
    one_table,
    tapped,
)

OTHER = "+14155550199"
DAY = 86_400.0


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with one_table() as made:
        yield made


class Environment:
    """One environment of the sender, on the table of all."""

    def __init__(self, dynamodb: Any, paces: dict[str, Pace] | None = None, cap: int = 0) -> None:
        self.runtime = FakeRuntime()
        self.runtime.__dict__["dynamodb"] = dynamodb
        self.table = Table(self.runtime, "test")
        paces = {OURS: Pace(OURS, 2.0)} if paces is None else paces
        self.pacer = Pacer(self.table, self.runtime, paces, cap)
        self._ids = 0

    def turns(self, messages: int = 0) -> Turns:
        return self.pacer.turns([(OURS, 1)] * messages)

    def take(self, turns: Turns, segments: int = 1, *, ahead: bool = False) -> float:
        """How many seconds from the beginning of the test its slot is; it leaves."""
        self._ids += 1
        slot = turns.take(_id(self._ids), OURS, segments, ahead=ahead)
        turns.passed.add(_id(self._ids))
        return round(slot - NOW, 3)

    def count(self, segments: int = 1, ours: str = OURS, counted_on: str = "") -> str:
        """For which day it is counted."""
        item = {"pk": "C#c", "sk": "OUT#1", "kind": "inbound", "provider": "twilio", "ours": ours}
        reply = reply_of({**item, "received_at": NOW, "counted_on": counted_on})
        return self.pacer.count(reply, segments).counted_on

    def item(self, name: str = OURS) -> Item:
        return self.table.get((f"R#{name}", "PACE")) or {}


def _id(number: int) -> MessageId:
    return MessageId("c" * 24, f"{number:024d}")


@pytest.fixture
def make(client: Any) -> Any:
    dynamodb = on_empty_table(client).dynamodb
    return lambda *arguments, **named: Environment(dynamodb, *arguments, **named)


def test_a_batch_takes_its_slots_with_one_write(make: Any) -> None:
    one = make()
    turns = one.turns(messages=5)
    assert [one.take(turns) for _ in range(5)] == [0.0, 0.5, 1.0, 1.5, 2.0]
    turns.finish()
    assert len(tapped(one.runtime).calls) == 1
    assert one.item()["next_at"] == (NOW + 2.5) * 1e6


def test_two_batches_at_once_take_different_slots(make: Any) -> None:
    one, two = make(), make()
    first, second = one.turns(messages=2), two.turns(messages=2)
    assert [one.take(first), two.take(second), one.take(first), two.take(second)] == [
        *(0.0, 1.0),
        *(0.5, 1.5),
    ]


def test_what_nobody_used_is_given_back(make: Any) -> None:
    one = make()
    turns = one.turns(messages=4)
    one.take(turns)
    turns.finish()
    assert one.item()["next_at"] == one.item()["ahead_at"] == (NOW + 0.5) * 1e6
    # ... but not where somebody has taken later slots meanwhile,
    turns = one.turns(messages=3)
    other = make()
    assert other.take(other.turns()) == 2.0
    turns.finish()
    assert one.item()["next_at"] == (NOW + 2.5) * 1e6
    # nor what the reply keeps for later, and what left
    turns = one.turns()
    kept, left, refused = map(_id, (91, 92, 93))
    for id_ in (kept, left, refused):
        turns.take(id_, OURS, 1, ahead=False)
    turns.keep(kept)
    turns.passed.add(left)
    turns.finish()
    assert one.item()["next_at"] == (NOW + 3.5) * 1e6


@pytest.mark.parametrize("ahead", [True, False])
def test_what_has_left_has_used_its_slots_whatever_becomes_of_the_rest(
    make: Any, ahead: bool
) -> None:
    # GIVEN a reply of three segments, the first of which has left
    one = make()
    turns, id_ = one.turns(messages=not ahead), _id(1)
    turns.take(id_, OURS, 3, ahead=ahead)
    turns.passed.add(id_)
    # WHEN the others do not, THEN their two slots are given back
    turns.stays(id_, 2)
    turns.finish()
    assert one.item()["next_at"] == (NOW + 0.5) * 1e6
    # ... and of a reply whose slot was written down before, none
    turns = one.turns()
    turns.passed.add(id_)
    turns.stays(id_, 1)
    turns.finish()
    assert one.item()["next_at"] == (NOW + 0.5) * 1e6


def test_slots_in_the_middle_are_not_given_back(make: Any) -> None:
    one = make()
    turns = one.turns()
    ids = [_id(n) for n in range(4)]
    for id_ in ids:
        turns.take(id_, OURS, 1, ahead=True)
    turns.passed |= {ids[0], ids[2]}
    turns.finish()
    # The second is lost, the fourth is not.
    assert one.item()["next_at"] == (NOW + 1.5) * 1e6


def test_a_long_reply_takes_all_its_slots(make: Any) -> None:
    one = make()
    turns = one.turns(messages=1)
    assert one.take(turns, segments=4) == 0.0  # what was taken for it, and as much more
    turns.finish()
    assert one.take(one.turns()) == 2.0


def test_answers_go_ahead_of_messages_and_push_them_back(make: Any) -> None:
    one = make()
    campaign = one.turns(messages=10)
    assert [one.take(campaign) for _ in range(10)][-1] == 4.5
    # The first of the campaign left in the slot that an answer would have had,
    assert one.take(one.turns(), ahead=True) == 5.0
    one.runtime.clock += 6
    campaign = one.turns(messages=10)
    assert one.take(campaign) == 6.0
    one.runtime.clock += 2
    # ... later answers find it busy, and need not wait for it to end.
    answers = one.turns()
    assert [one.take(answers, ahead=True), one.take(answers, ahead=True)] == [11.0, 11.5]


def test_a_campaign_with_a_backlog_holds_up_no_answer(make: Any) -> None:
    one = make()
    one.turns(messages=2)
    one.turns(messages=100)
    one.runtime.clock += 2
    answers = one.turns()
    assert [one.take(answers, ahead=True), one.take(answers, ahead=True)] == [2.0, 2.5]
    # And again, behind these.
    assert one.take(one.turns(), ahead=True) == 3.0
    # The campaign goes on behind all of them.
    assert one.take(one.turns()) == 52.5


def test_numbers_of_a_campaign_share_its_slots(make: Any) -> None:
    pace = Pace("spring", 1.0)
    one = make({OURS: pace, OTHER: pace})
    ids = [_id(n) for n in range(2)]
    turns = one.pacer.turns([(OURS, 1), (OTHER, 1)])
    slots = [
        turns.take(id_, ours, 1, ahead=False) - NOW
        for id_, ours in zip(ids, (OURS, OTHER), strict=True)
    ]
    assert slots == [0.0, 1.0]
    assert one.item("spring")


def test_a_number_that_is_not_named_is_not_paced(make: Any) -> None:
    one = make({OTHER: Pace(OTHER, 1.0)})
    turns = one.turns(messages=5)
    assert one.take(turns) == -NOW
    turns.finish()
    assert one.count() == ""
    assert tapped(one.runtime).calls == []


@pytest.mark.parametrize(
    ("paces", "cap"),
    [({OURS: Pace(OURS, 1000.0, per_day=3)}, 0), ({OURS: Pace(OURS, 0.0, 3)}, 0), ({}, 3)],
)
def test_a_day_has_its_limit(make: Any, paces: dict[str, Pace], cap: int) -> None:
    one = make(paces, cap)
    # (Not even the first of a day may be more than that.)
    with pytest.raises(OverCap):
        one.count(4)
    # GIVEN two segments that leave
    today = one.count(2)
    # THEN one more may leave, and no two
    with pytest.raises(OverCap):
        one.count(2)
    one.count()
    with pytest.raises(OverCap):
        one.count()
    # ... but what is counted already comes again
    assert one.count(2, counted_on=today) == today
    # ... until the next day, for which it is counted anew; what was two days before is forgotten
    for _ in range(3):
        one.runtime.clock += DAY
        assert one.count(3, counted_on=today) != today
        with pytest.raises(OverCap):
            one.count()
    used = {name for name in one.item(OURS if paces else "*") if name.startswith("used_")}
    assert len(used) == 2


def test_a_cap_is_of_the_day_on_which_something_leaves(make: Any) -> None:
    # GIVEN a number whose slots of a minute before midnight reach into the next day
    one = make({OURS: Pace(OURS, 1.0, per_day=100)})
    midnight = NOW - NOW % DAY + DAY
    one.runtime.clock = midnight - 60
    turns = one.turns(messages=100)
    slots = [one.take(turns) + NOW for _ in range(100)]
    days = []
    # WHEN each leaves in its slot, and sixty more the next day
    for slot in (*slots, *(midnight + 100 + n for n in range(60))):
        one.runtime.clock = slot
        days.append(one.count())
    # THEN that day has had its hundred, and no more
    assert [days.count(day) for day in dict.fromkeys(days)] == [60, 100]
    with pytest.raises(OverCap):
        one.count()


def test_who_is_over_their_own_cap_takes_nothing_from_the_others(make: Any) -> None:
    one = make({OURS: Pace(OURS, 0.0, per_day=1)}, 3)
    one.count()
    for _ in range(9):
        with pytest.raises(OverCap):
            one.count()
    assert one.count(2, ours=OTHER)
    with pytest.raises(OverCap):
        one.count(1, ours=OTHER)


def test_what_is_given_back_twice_counts_once(make: Any) -> None:
    # GIVEN a batch that did not use two of its three, and gave them back without hearing of it
    one = make()
    turns = one.turns(messages=3)
    one.take(turns)
    ((line, free),) = turns._free.items()
    one.pacer.give_back(line, list(free))
    # WHEN it gives them back once more, THEN one is used still
    one.pacer.give_back(line, list(free))
    assert one.item()["next_at"] == (NOW + 0.5) * 1e6


def test_who_keeps_coming_too_late_waits(make: Any) -> None:
    # GIVEN an item that somebody else moves on before each of our writes
    one = make()

    def overtaken(*_: Any, **__: Any) -> Item:
        raise Conflict({"next_at": 0, "ahead_at": 0})

    one.table.update = overtaken
    # THEN it gives up after some tries, for now
    with pytest.raises(NotYet, match="contended"):
        one.take(Turns(one.pacer))


def test_a_table_that_fails_stops_no_batch_and_lets_nobody_leave(
    make: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    one = make()
    turns = one.turns(messages=1)
    fails = aws_error("ProvisionedThroughputExceededException", "UpdateItem")

    def failing(*_: Any, **__: Any) -> Item:
        raise fails

    one.table.update = failing
    turns.finish()
    turns = one.turns(messages=1)
    assert events(logged(capsys)) == ["slots_not_given_back", "no_slots_taken"]
    del one.table.update
    with pytest.raises(type(fails)) as raised:
        one.take(turns)
    assert is_transient(raised.value)
    # The next batch asks again.
    assert one.take(one.turns(messages=1)) == 0.5
