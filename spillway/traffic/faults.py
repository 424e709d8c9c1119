"""The plan of a fault run: what fails when, and for how long.

Every fault is one that the simulator can play for a while and then end by itself (behaviour.py
there). In one turn each service fails in each of its ways; in a second turn the other provider
does. A plan is drawn from its seed, so it can be repeated. What it meets cannot: a kill hits what a
worker does at that moment.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

# Messages a second for which a plan leaves room: little more than half of what two cores carry.
PACE = 20.0
SHORTEST = 120.0  # seconds
# From this length on there are two turns.
TWO_TURNS = 300.0
LONGEST_FAULT = 20.0

# In words, as they are printed: what the service does, and the simulator's behaviour for it.
_OF_A_PROVIDER: Mapping[str, Mapping[str, Any]] = {
    "slow (4 s)": {"delay": 4},
    "throttled (429, Retry-After 5)": {"fail": "throttled", "retry_after": 5},
    "failing (500, nothing taken)": {"fail": "server_error"},
    "failing after it took the text (500), its receipts lost": {
        "fail": "failed_answer",
        "receipts": False,
    },
    "silent after it took the text (time-out)": {"fail": "no_answer"},
    "cutting connections after it took the text, its receipts lost": {
        "fail": "lost_answer",
        "receipts": False,
    },
    "down (refuses connections)": {"fail": "down"},
}
_OF_A_LOOK_UP: Mapping[str, Mapping[str, Any]] = {
    "slow (5 s)": {"delay": 5},
    "throttled (429, Retry-After 5)": {"fail": "throttled", "retry_after": 5},
    "failing (500)": {"fail": "server_error"},
    "down (refuses connections)": {"fail": "down"},
}
_OF_THE_REPLY_API: Mapping[str, Mapping[str, Any]] = {
    "slow (3 s)": {"delay": 3},
    "throttled (429, Retry-After 5)": {"fail": "throttled", "retry_after": 5},
    "failing (500)": {"fail": "server_error"},
    "down (refuses connections)": {"fail": "down"},
}
_LOOK_UPS = ("line", "customer")
# Where a provider answers so, minutes pass until it is certain that it has nothing: early, then.
_EARLY = "failing (500, nothing taken)"
# Workers are killed while these are slow: then they have most in hand.
_BUSY = {"outbound": ("twilio", "telnyx", "reply"), "processing": _LOOK_UPS}


@dataclass(frozen=True, slots=True)
class Fault:
    """A service is `what` for so many seconds, from so many seconds after the start."""

    at: float
    seconds: float
    service: str
    what: str
    behaviour: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Kill:
    """A process is killed so many seconds after the start, or when it next has work in hand."""

    at: float
    worker: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The texts come in the first `seconds`, and so do all faults. `seed` is 0 for a plan that was
    not drawn."""

    seconds: float
    faults: Sequence[Fault]
    kills: Sequence[Kill]
    seed: int = 0


def draw(seed: int, messages: int, providers: Sequence[str]) -> Plan:
    """A plan for so many messages through these providers."""
    chance = random.Random(seed)
    length = max(SHORTEST, messages / PACE)
    ways = list(_OF_A_PROVIDER.items())
    chance.shuffle(ways)
    early = next(way for way in ways if way[0] == _EARLY)
    ways.remove(early)
    ways.insert(chance.randrange(3), early)
    others = [
        (services, *way)
        for services, table in ((_LOOK_UPS, _OF_A_LOOK_UP), (("reply",), _OF_THE_REPLY_API))
        for way in table.items()
    ]
    chance.shuffle(others)
    # A provider that failed is left alone for a while (breaker.py), and how it fails next nobody
    # sees. So the providers take turns, and another service is between them, or two.
    pairs = list(zip_longest([(providers, *way) for way in ways], others))
    steps = [
        (services[(turn + number) % len(services)], what, behaviour)
        for turn in range(2 if length >= TWO_TURNS else 1)
        for number, pair in enumerate(pairs)
        for services, what, behaviour in filter(None, pair)
    ]
    slot = length / len(steps)
    faults = [
        Fault(
            at=round((number + chance.uniform(0.05, 0.25)) * slot, 1),
            seconds=round(min(slot * chance.uniform(0.5, 0.7), LONGEST_FAULT), 1),
            service=service,
            what=what,
            behaviour=behaviour,
        )
        for number, (service, what, behaviour) in enumerate(steps)
    ]
    kills = [
        Kill(round(fault.at + fault.seconds * chance.uniform(0.2, 0.8), 1), worker)
        for fault in faults
        for worker, services in _BUSY.items()
        if fault.what.startswith("slow") and fault.service in services
    ]
    kills += [
        Kill(round(length * chance.uniform(low, low + 0.2), 1), "webhook") for low in (0.2, 0.6)
    ]
    return Plan(length, faults, sorted(kills, key=lambda kill: kill.at), seed)
