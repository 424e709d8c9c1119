"""The count of a burst: each fate of a message is seen for what it is, in the stores alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest

from spillway.stores import Depth
from spillway.traffic.burst import Sent, deliveries, make, take

NOTHING = Depth(0, 0, 0)


class FakeStores:
    """What the local stack would hold."""

    def __init__(self) -> None:
        self.table: list[dict[str, Any]] = []
        self.lines: list[dict[str, Any]] = []
        self.sent: list[dict[str, Any]] = []
        self.dead = 0

    def items(self) -> Iterable[dict[str, Any]]:
        return self.table

    def archived(self, since: float) -> Iterable[dict[str, Any]]:
        return self.lines

    def outbox(self) -> list[dict[str, Any]]:
        return self.sent

    def depths(self) -> dict[str, Depth]:
        dead = Depth(self.dead, 0, 0)
        return {"processing": NOTHING, "outbound.fifo": NOTHING, "processing-dlq": dead}

    def keep(self, message: Sent, *, table: int = 1, lines: int = 1, answers: int = 1) -> None:
        for number in range(table):
            key = {"pk": f"C#{number or 'c'}", "sk": f"IN#{message.id}"}
            self.table.append({**key, "provider_id": message.id})
        self.lines += [{"provider_id": message.id}] * lines
        self.sent += [{"text": message.text, "at": 11.0}] * answers

    def decide(self, message: Sent, **ledger: Any) -> None:
        self.table.append({"pk": "C#c", "sk": f"OUT#{message.id}", **ledger})


def message(acknowledged_at: float | None = 10.0) -> Sent:
    return Sent("twilio", "SM1", "+16460000001", "burst 1", False, acknowledged_at, 0.02)


UNKNOWN = {"parts": {"1": {"state": "sent"}, "2": {"state": "unknown"}}}


@pytest.mark.parametrize(
    ("kept", "ledger", "counted", "good"),
    [
        pytest.param({}, None, {"answered": 1, "stored": 1, "archived": 1}, True, id="as it is"),
        pytest.param({"table": 0}, None, {"lost": 1, "stored": 0}, False, id="not stored"),
        pytest.param({"lines": 0}, None, {"lost": 1, "archived": 0}, False, id="not archived"),
        pytest.param({"answers": 0}, None, {"lost": 1, "answered": 0}, False, id="not answered"),
        pytest.param({"answers": 2}, None, {"answered_twice": 1}, False, id="answered twice"),
        pytest.param({"table": 2}, None, {"stored_twice": 1}, False, id="stored twice"),
        pytest.param({"lines": 2}, None, {"archived_twice": 1}, True, id="in two objects"),
        pytest.param(
            {"answers": 0},
            {"outcome": "expired"},
            {"unanswered_with_reason": 1, "lost": 0, "reasons": {"expired": 1}},
            True,
            id="with a reason",
        ),
        pytest.param({"answers": 0}, UNKNOWN, {"unknown": 1, "lost": 0}, True, id="unknown"),
        pytest.param(
            {"table": 0, "answers": 0}, {"outcome": "expired"}, {"lost": 1}, False, id="no item"
        ),
        pytest.param(
            {"answers": 0},
            {"parts": {"1": {"state": "waiting"}}},
            {"lost": 1},
            False,
            id="still waiting",
        ),
    ],
)
def test_what_became_of_a_message(
    kept: dict[str, Any], ledger: dict[str, Any] | None, counted: dict[str, Any], good: bool
) -> None:
    stores, one = FakeStores(), message()
    stores.keep(one, **kept)
    if ledger:
        stores.decide(one, **ledger)
    count = take(stores, [one], 0.0)  # type: ignore[arg-type]
    assert {name: getattr(count, name) for name in counted} == counted
    assert count.good == good


def test_what_the_door_refused_is_not_lost_and_not_good() -> None:
    count = take(FakeStores(), [message(None)], 0.0)  # type: ignore[arg-type]
    assert (count.acknowledged, count.refused, count.lost, count.good) == (0, 1, 0, False)


def test_dead_letters_and_times_are_counted() -> None:
    stores, one = FakeStores(), message()
    stores.keep(one)
    stores.dead = 3
    count = take(stores, [one], 0.0)  # type: ignore[arg-type]
    assert (count.dead_lettered, count.acknowledgement_p50, count.reply_p50) == (3, 0.02, 1.0)


def test_every_message_is_its_own() -> None:
    made = make(1000, 100, 0.3, ["twilio", "telnyx"])
    assert len({one.text for one in made}) == len({one.id for one in made}) == 1000
    assert len({one.sender for one in made}) == 100
    assert {one.provider for one in made} == {"twilio", "telnyx"}
    assert 200 < sum(one.duplicate for one in made) < 400
    # (a conversation stays with its provider)
    assert len({(one.sender, one.provider) for one in made}) == 100


def test_a_duplicate_comes_at_once_or_later() -> None:
    made = make(2000, 200, 0.2, ["twilio"])
    order = deliveries(made)
    # THEN each is delivered, in their order, and duplicates twice
    assert list(dict.fromkeys(one.id for one in order)) == [one.id for one in made]
    times = Counter(one.id for one in order)
    assert all(times[one.id] == 1 + one.duplicate for one in made)
    # AND the second time comes right after the first, or any time later
    at: dict[str, list[int]] = {}
    for number, one in enumerate(order):
        at.setdefault(one.id, []).append(number)
    apart = [numbers[1] - numbers[0] for numbers in at.values() if len(numbers) == 2]
    at_once = sum(number == 1 for number in apart)
    assert 0.3 < at_once / len(apart) < 0.7
    assert max(apart) > 1000
