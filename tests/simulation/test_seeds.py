"""Some hundreds of seeds in every run of the tests; `make simulate` plays as many as wanted."""

from __future__ import annotations

import pytest

from tests.simulation import trace
from tests.simulation.run import run_seed

SEEDS = 200
CHUNK = 20


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_no_seed_breaks_a_promise(first: int) -> None:
    for seed in range(first, first + CHUNK):
        outcome = run_seed(seed)
        for violation in outcome.violations:
            pytest.fail(f"seed {seed}: {violation}\n{trace.told(outcome, violation)}")


def test_a_seed_is_always_the_same_story() -> None:
    # What fails in one place must fail in every other.
    for seed in (*range(5), 0, 0):
        assert _told(seed) == _told(seed)


def _told(seed: int) -> str:
    outcome = run_seed(seed)
    assert outcome.world is not None
    calls = [call[:4] for call in outcome.world.calls]
    return repr((outcome.world.trace, calls, outcome.hits, outcome.steps))
