"""Slots: who gets which, what is given back, and how many a day. (That many senders together keep
the pace: tests/simulation/test_pacing.py.)"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from chalicelib.config import Pace
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

    def turns(self, answers: int = 0, messages: int = 0) -> Turns:
        expected = [(OURS, True)] * answers + [(OURS, False)] * messages
        return self.pacer.turns(expected)

    def take(self, turns: Turns, segments: int = 1, *, ahead: bool = True) -> float:
        """How many seconds from the beginning of the test its slot is; it leaves."""
        self._ids += 1
        id_ = MessageId("c" * 24, f"{self._ids:024d}")
        slot = turns.take(id_, OURS, segments, ahead=ahead)
        turns.passed.add(id_)
        return round(slot - NOW, 3)

    def item(self, name: str = OURS) -> Item:
        return self.table.get((f"R#{name}", "PACE")) or {}


@pytest.fixture
def make(client: Any) -> Any:
    dynamodb = on_empty_table(client).dynamodb
    return lambda *arguments, **named: Environment(dynamodb, *arguments, **named)


def test_a_batch_takes_its_slots_with_one_write(make: Any) -> None:
    one = make()
    turns = one.turns(answers=5)
    assert [one.take(turns) for _ in range(5)] == [0.0, 0.5, 1.0, 1.5, 2.0]
    turns.finish()
    assert len(tapped(one.runtime).calls) == 1
    assert one.item()["next_at"] == (NOW + 2.5) * 1e6


def test_two_batches_at_once_take_different_slots(make: Any) -> None:
    one, two = make(), make()
    first, second = one.turns(answers=2), two.turns(answers=2)
    assert [one.take(first), two.take(second), one.take(first), two.take(second)] == [
        *(0.0, 1.0),
        *(0.5, 1.5),
    ]


def test_what_nobody_used_is_given_back(make: Any) -> None:
    one = make()
    turns = one.turns(answers=4)
    one.take(turns)
    turns.finish()
    assert one.item()["next_at"] == one.item()["ahead_at"] == (NOW + 0.5) * 1e6
    # ... but not where somebody has taken later slots meanwhile,
    turns = one.turns(answers=3)
    other = make()
    assert other.take(other.turns()) == 2.0
    turns.finish()
    assert one.item()["next_at"] == (NOW + 2.5) * 1e6
    # nor what the reply keeps for later, and what left
    turns = one.turns()
    kept, left, refused = (MessageId("c" * 24, f"{n:024d}") for n in (91, 92, 93))
    for id_ in (kept, left, refused):
        turns.take(id_, OURS, 1, ahead=True)
    turns.keep(kept)
    turns.passed.add(left)
    turns.finish()
    assert one.item()["next_at"] == (NOW + 3.5) * 1e6


def test_what_has_left_has_used_its_slots_whatever_becomes_of_the_rest(make: Any) -> None:
    # GIVEN a reply of three segments, the first of which has left
    one = make(cap=10)
    turns = one.turns(answers=1)
    id_ = MessageId("c" * 24, "1" * 24)
    turns.take(id_, OURS, 3, ahead=True)
    turns.passed.add(id_)
    # WHEN the others do not, THEN their two slots are given back, of the rate and of the cap
    turns.stays(id_, 2)
    turns.finish()
    assert one.item()["next_at"] == (NOW + 0.5) * 1e6
    assert one.item("*")["used_20260921"] == 1
    # ... and of a reply whose slot was written down before, none
    turns = one.turns()
    turns.passed.add(id_)
    turns.stays(id_, 1)
    turns.finish()
    assert one.item()["next_at"] == (NOW + 0.5) * 1e6


def test_slots_in_the_middle_are_not_given_back(make: Any) -> None:
    one = make()
    turns = one.turns()
    ids = [MessageId("c" * 24, f"{n:024d}") for n in range(4)]
    for id_ in ids:
        turns.take(id_, OURS, 1, ahead=True)
    turns.passed |= {ids[0], ids[2]}
    turns.finish()
    # The second is lost, the fourth is not.
    assert one.item()["next_at"] == (NOW + 1.5) * 1e6


def test_a_long_reply_takes_all_its_slots(make: Any) -> None:
    one = make()
    turns = one.turns(answers=1)
    assert one.take(turns, segments=4) == 0.0  # what was taken for it, and as much more
    turns.finish()
    following = one.turns()
    assert one.take(following) == 2.0
    # The next batch knows by then how long replies are.
    assert one.pacer._average[OURS] == pytest.approx(3.7)


def test_answers_go_ahead_of_messages_and_push_them_back(make: Any) -> None:
    one = make()
    campaign = one.turns(messages=10)
    assert [one.take(campaign, ahead=False) for _ in range(10)][-1] == 4.5
    # The first of the campaign left in the slot that an answer would have had,
    assert one.take(one.turns()) == 5.0
    one.runtime.clock += 6
    campaign = one.turns(messages=10)
    assert one.take(campaign, ahead=False) == 6.0
    one.runtime.clock += 2
    # ... later answers find it busy, and need not wait for it to end.
    answers = one.turns(answers=2)
    assert [one.take(answers), one.take(answers)] == [11.0, 11.5]


def test_a_campaign_with_a_backlog_holds_up_no_answer(make: Any) -> None:
    one = make()
    one.turns(messages=2)
    one.turns(messages=100)
    one.runtime.clock += 2
    answers = one.turns(answers=2)
    assert [one.take(answers), one.take(answers)] == [2.0, 2.5]
    # And again, behind these.
    assert one.take(one.turns()) == 3.0
    # The campaign goes on behind all of them.
    assert one.take(one.turns(), ahead=False) == 52.5


def test_numbers_of_a_campaign_share_its_slots(make: Any) -> None:
    pace = Pace("spring", 1.0)
    one = make({OURS: pace, OTHER: pace})
    turns = one.pacer.turns([(OURS, True), (OTHER, True)])
    ids = [MessageId("c" * 24, f"{n:024d}") for n in range(2)]
    slots = [
        turns.take(id_, ours, 1, ahead=True) - NOW
        for id_, ours in zip(ids, (OURS, OTHER), strict=True)
    ]
    assert slots == [0.0, 1.0]
    assert one.item("spring")


def test_a_number_that_is_not_named_is_not_paced(make: Any) -> None:
    one = make({OTHER: Pace(OTHER, 1.0)})
    turns = one.turns(answers=5)
    turns.finish()
    assert (one.pacer.of(OURS), tapped(one.runtime).calls) == ((), [])


@pytest.mark.parametrize(
    ("paces", "cap"),
    [({OURS: Pace(OURS, 1000.0, per_day=3)}, 0), ({OURS: Pace(OURS, 0.0, 3)}, 0), ({}, 3)],
)
def test_a_day_has_its_limit(make: Any, paces: dict[str, Pace], cap: int) -> None:
    one = make(paces, cap)
    # (Not even the first of a day may be more than that.)
    with pytest.raises(OverCap):
        one.take(one.turns(), segments=4)
    # GIVEN a batch of which two segments leave, and one that was taken for nothing
    turns = one.turns(answers=3)
    one.take(turns), one.take(turns)
    turns.finish()
    # THEN one more may leave, and no two
    turns = one.turns(answers=2)
    with pytest.raises(OverCap):
        one.take(turns, segments=2)
    turns.finish()
    turns = one.turns()
    one.take(turns)
    with pytest.raises(OverCap):
        one.take(turns)
    turns.finish()
    # ... until the next day, and what was used two days before is forgotten
    for _ in range(3):
        one.runtime.clock += DAY
        turns = one.turns(answers=3)
        assert [one.take(turns) for _ in range(3)]
    used = {name for name in one.item(OURS if paces else "*") if name.startswith("used_")}
    assert len(used) == 2


@pytest.mark.parametrize("paces", [{}, {OURS: Pace(OURS, 10.0, per_day=5)}])
def test_what_is_given_back_twice_counts_once(make: Any, paces: dict[str, Pace]) -> None:
    # GIVEN a batch that did not use two of its three, and gave them back without hearing of it
    one = make(paces, 0 if paces else 5)
    turns = one.turns(answers=3)
    one.take(turns)
    ((line, free),) = turns._free.items()
    one.pacer.give_back(line, list(free))
    # WHEN it gives them back once more
    one.pacer.give_back(line, list(free))
    # THEN one is used still
    used = [value for name, value in one.item(line.pace.name).items() if "used_" in name]
    assert used == [1]


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
    turns = one.turns(answers=1)
    fails = aws_error("ProvisionedThroughputExceededException", "UpdateItem")

    def failing(*_: Any, **__: Any) -> Item:
        raise fails

    one.table.update = failing
    turns.finish()
    turns = one.turns(answers=1)
    assert events(logged(capsys)) == ["slots_not_given_back", "no_slots_taken"]
    del one.table.update
    with pytest.raises(type(fails)) as raised:
        one.take(turns)
    assert is_transient(raised.value)
    # The next batch asks again.
    assert one.take(one.turns(answers=1)) == 0.5
