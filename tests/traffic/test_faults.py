"""The plan of a fault run: drawn from its seed, complete, and over in time."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from spillway.simulator.behaviour import PROVIDER_FAILURES, SAMPLE_FAILURES, Behaviour
from spillway.traffic.faults import PACE, SHORTEST, Fault, draw

BOTH = ["twilio", "telnyx"]
WAYS = {
    "provider": {"throttled", "server_error", "failed_answer", "lost_answer", "no_answer", "down"},
    "look-up": {"throttled", "server_error", "down"},
    "reply": {"throttled", "server_error", "down"},
}


def kind_of(service: str) -> str:
    return {"twilio": "provider", "telnyx": "provider", "reply": "reply"}.get(service, "look-up")


def test_a_plan_follows_from_its_seed() -> None:
    assert draw(7, 10_000, BOTH) == draw(7, 10_000, BOTH)
    assert draw(7, 10_000, BOTH) != draw(8, 10_000, BOTH)


@pytest.mark.parametrize("seed", range(1, 21))
@pytest.mark.parametrize("messages", [1, 3000, 10_000, 100_000])
@pytest.mark.parametrize("providers", [BOTH, ["twilio"]])
def test_a_plan_is_complete_and_ends(seed: int, messages: int, providers: list[str]) -> None:
    plan = draw(seed, messages, providers)
    # THEN the texts have time
    assert plan.seconds == max(SHORTEST, messages / PACE)
    # AND one fault is over before the next begins, the last one before the plan ends
    ends = [fault.at + fault.seconds for fault in plan.faults]
    begins = [fault.at for fault in plan.faults[1:]]
    assert all(end < begin for end, begin in zip(ends, [*begins, plan.seconds], strict=True))
    assert all(fault.at > 0 and fault.seconds > 0 for fault in plan.faults)
    assert all(0 < kill.at < plan.seconds for kill in plan.kills)
    # AND everything fails in every way, and is slow
    for kind, ways in WAYS.items():
        mine = [fault for fault in plan.faults if kind_of(fault.service) == kind]
        assert {fault.behaviour.get("fail", "slow") for fault in mine} == {*ways, "slow"}
    # AND each worker is killed
    assert {kill.worker for kill in plan.kills} == {"webhook", "processing", "outbound"}
    # AND no message can meet so many deaths that it is put aside for them (MOST_STARTS)
    assert max(Counter(kill.worker for kill in plan.kills).values()) < 5


def test_in_a_long_plan_each_provider_fails_in_each_way() -> None:
    plan = draw(3, 10_000, BOTH)
    for name in BOTH:
        mine = [fault for fault in plan.faults if fault.service == name]
        assert len({fault.what for fault in mine}) == len(mine) == 7
    # AND they take turns: what one does while it is left alone, nobody sees
    order = [fault.service for fault in plan.faults if fault.service in BOTH]
    assert sum(one == following for one, following in itertools.pairwise(order)) == 0
    # AND another service is between them
    both = itertools.pairwise(fault.service for fault in plan.faults)
    assert not any(one in BOTH and following in BOTH for one, following in both)


@pytest.mark.parametrize("fault", draw(1, 10_000, BOTH).faults, ids=lambda fault: fault.what[:30])
def test_the_simulator_can_play_it(fault: Fault) -> None:
    failures = PROVIDER_FAILURES if kind_of(fault.service) == "provider" else SAMPLE_FAILURES
    assert Behaviour.parse(dict(fault.behaviour), failures) != Behaviour()
