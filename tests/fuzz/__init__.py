"""Property tests and fuzzing: whatever comes in, only what is documented comes out.

How long they search is said here and nowhere else. Each test names its share; FUZZ_EXAMPLES
multiplies all of them. Without it the examples are the same every time; with it they are new ones,
and a failure prints the line that brings it back.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from hypothesis import HealthCheck, settings

T = TypeVar("T")
E = TypeVar("E", bound=Exception)

FACTOR = int(os.environ.get("FUZZ_EXAMPLES", "1"))


def examples(number: int, *, steps: int = 50) -> settings:
    """How many examples a test tries, and how many steps each has where it has steps."""
    return settings(
        max_examples=number * FACTOR,
        stateful_step_count=steps,
        deadline=None,
        derandomize=FACTOR == 1,
        database=None,
        print_blob=True,
        # Slow machines are no failure; large examples are what some of these tests are about.
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def outcome(work: Callable[[], T], documented: type[E] | tuple[type[E], ...]) -> T | E:
    """What it returns, or the documented error that it raises; any other ends the test."""
    try:
        return work()
    except documented as error:
        return error
