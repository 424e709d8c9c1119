"""The table of waiting in docs/DELIVERY.md: every figure, from the constants that decide it.

The page is there for people; here the figures are computed and compared, and what they must be to
each other is held.
"""

from __future__ import annotations

import json
from functools import cache
from itertools import count
from math import ceil
from typing import Any

import pytest
from cfnlint.decode import decode

from chalicelib import (
    attachments,
    batches,
    breaker,
    loops,
    processing,
    receiving,
    sending,
    settling,
)
from chalicelib.batches import Batch
from chalicelib.config import Settings
from chalicelib.ledger import DAY
from chalicelib.providers.base import REPEATABLE
from chalicelib.queues import OUTBOUND
from chalicelib.runtime import THREADS, at_most
from tests.fakes import Context, FakeRuntime, settings
from tests.pages import DOCS, ROOT, rows

TEMPLATE: dict[str, Any] = decode(str(ROOT / "infra" / "data.yaml"))[0]
DATA = {name: one.get("Default") for name, one in TEMPLATE["Parameters"].items()}
CONFIG = json.loads((ROOT / ".chalice" / "config.json").read_text())

TIME_OUT = CONFIG["lambda_functions"]["send"]["lambda_timeout"]
WINDOW = 1  # the batching window of the processing queue, in app.py
HOUR = 3600
SQS_LONGEST = 12 * HOUR
SQS_LOOKS_AT = 120_000  # messages of a FIFO queue
SQS_COUNTS_WITHIN = 60  # seconds
LONGEST_TIME_OUT = 30.0  # of the reply API and of a look-up, as their settings allow
OPEN = breaker.LONGEST_COOL_OFF * (1 + breaker.JITTER / 2)  # the longest, on average
COMING_BACK = breaker.SPREAD + 1  # a deferral is in whole seconds

DEFAULTS: Settings = settings("sender")
RETENTION = {
    resource["Properties"]["MessageRetentionPeriod"]
    for resource in TEMPLATE["Resources"].values()
    if resource["Type"] == "AWS::SQS::Queue"
}


def backoff(receives: int, chance: float = 0.5) -> float:
    """Seconds after so many receives, where chance (0 to 1) has it so."""
    runtime: Any = FakeRuntime()
    runtime.random = lambda: chance
    nothing: Any = None
    empty: dict[str, Any] = {"Records": []}
    batch = Batch(runtime, nothing, nothing, OUTBOUND, empty, Context(), reporting=True)
    return batch._backoff(receives)


def receives_by_backoff(outage: float) -> int:
    waited = 0.0
    for receives in count(1):
        waited += backoff(receives)
        if waited >= outage:
            return receives
    raise AssertionError


def receives_at_breaker(outage: float) -> int:
    return ceil(2 * outage / OPEN)


@cache
def lasts(receives: int) -> float:
    return sum(backoff(receive) for receive in range(1, receives))


def probes(within: float) -> list[int]:
    """When the breaker can be probed, in seconds since it opened first, at the earliest."""
    at = cool_off = breaker.FIRST_COOL_OFF
    times = []
    while at < within:
        times.append(int(at))
        cool_off = min(2 * cool_off, breaker.LONGEST_COOL_OFF)
        at += cool_off
    return times


def whole(seconds: float) -> str:
    return f"{ceil(seconds)}"


FIRST = probes(240)
SENDER_NEEDS = sending.CALLING + sending.WRITING
CLAIM_NEEDS = sending.CALLING + 2 * sending.WRITING
PROCESSING_NEEDS = at_most(LONGEST_TIME_OUT) + processing.STORING
PICTURE_NEEDS = attachments.LONGEST + processing.STORING
IN_MEMORY = THREADS * attachments.TOGETHER * attachments.LARGEST
MEMORY = CONFIG["lambda_functions"]["process"]["lambda_memory_size"]
DYING = batches.MOST_STARTS + 1
SEEN_WITHIN = SQS_COUNTS_WITHIN + receiving.DEPTH_KEPT
LOOKS = [f"{look / 60:.0f}" for look in settling.LOOKS]

FIGURES = {
    "First backoff": f"{backoff(1, 0):.0f} to {backoff(1, 1):.0f} s",
    "Longest backoff": f"{backoff(99, 0):.0f} to {backoff(99, 1):.0f} s,"
    f" {backoff(99):.0f} s on average",
    "Longest deferral": f"{batches.LONGEST // HOUR} h",
    "Receives that an outage of 1 h uses by backoff": f"{receives_by_backoff(HOUR)}",
    "Receives that an outage of 12 h uses by backoff": f"{receives_by_backoff(12 * HOUR)}",
    "Receives that an outage of 1 h uses at an open breaker": f"{receives_at_breaker(HOUR)}",
    "Receives that an outage of 12 h uses at an open breaker": f"{receives_at_breaker(12 * HOUR)}",
    "Receives before SQS itself dead-letters a message": f"{DATA['MaxReceiveCount']}, used up by"
    f" backoff in {lasts(DATA['MaxReceiveCount']) / HOUR:.0f} h",
    "Age at which a reply is not sent any more": f"{DEFAULTS.reply_max_age / 60:.0f} min",
    "Age at which a message of `POST /messages` is not sent any more": (
        f"{DEFAULTS.message_max_age / HOUR:.0f} h"
    ),
    "Age at which processing gives a message up": f"{processing.GIVE_UP_AFTER / HOUR:.0f} h",
    "Retention of every queue": f"{min(RETENTION) // HOUR} h ({min(RETENTION) / DAY:.0f} days)",
    "Visibility of the outbound queue": f"{DATA['OutboundVisibility']} s",
    "Visibility of the processing queue": f"{DATA['ProcessingVisibility']} s",
    "Time until a message that takes its function with it is out of the way": (
        f"{DYING * DATA['OutboundVisibility'] / 60:.0f} min"
    ),
    "Messages on the outbound queue from which on `POST /messages` is refused": (
        f"{receiving.MOST_WAITING:,}"
    ),
    "Time after which a client that was refused for it comes again": f"{receiving.COME_AGAIN} s",
    "Failures in a row after which an environment opens the breaker": f"{breaker.FAILURES}",
    "Time that a breaker stays open": f"{breaker.FIRST_COOL_OFF:.0f} to"
    f" {whole(breaker.FIRST_COOL_OFF * (1 + breaker.JITTER))} s, doubling to"
    f" {breaker.LONGEST_COOL_OFF:.0f} to"
    f" {whole(breaker.LONGEST_COOL_OFF * (1 + breaker.JITTER))} s",
    "Calls that a provider sees in the first four minutes of an outage": (
        f"{breaker.FAILURES} by each environment, and {len(FIRST)} probes"
    ),
    "Calls that a provider sees in a minute from then on": (
        f"1 at most, {60 / breaker.LONGEST_COOL_OFF:.1f} on average"
    ),
    "Time after an outage until it is noticed": (
        f"{whole(breaker.LONGEST_COOL_OFF * (1 + breaker.JITTER) + COMING_BACK)} s at most,"
        f" {OPEN / 2 / 60:.0f} min on average"
    ),
    "Time from then until the others are back": (
        f"{whole(breaker.PATIENCE + COMING_BACK)} s at most"
    ),
    "Time that a prober which died holds up the others": f"{breaker.PROBING:.0f} s at most",
    "Time that the sender keeps for a message": (
        f"{DEFAULTS.reply_timeout + SENDER_NEEDS:.0f} s of {TIME_OUT} s"
    ),
    "Time that the sender keeps for a claim": f"{CLAIM_NEEDS:.0f} s of {TIME_OUT} s",
    "Time that processing keeps for a message": (
        f"{PROCESSING_NEEDS:.0f} s of {TIME_OUT} s at most"
    ),
    "Time that processing keeps for a message with attachments": (
        f"{PICTURE_NEEDS:.0f} s of {TIME_OUT} s, or as much as for one without, where that is more"
    ),
    "Time for which a text waits for its attachments": f"{attachments.WAITS / HOUR:.0f} h",
    "Attachments in memory at once": f"{IN_MEMORY / 1e6:.0f} MB at most, of {MEMORY}",
    "Time for which a claim holds up other senders": (
        f"{TIME_OUT + sending.LEASE_MARGIN:.0f} s at most"
    ),
    "Looks for a send whose outcome is unknown": (
        f"{len(LOOKS)}: after {', '.join(LOOKS[:-1])} and {LOOKS[-1]} min"
    ),
    "Age from which *not on the provider's list* means *not sent*": (
        f"{settling.LISTED_AFTER / 60:.0f} min"
    ),
    "Time for which a request is repeated under its idempotency key": (
        f"{REPEATABLE / HOUR:.0f} h, and no longer than the reply may be sent"
    ),
    "Blind repetitions under `UNKNOWN_SENDS=resend`": (
        f"{settling.MOST_RESENDS} at most, each at a look that is"
        f" {settling.LISTED_AFTER / 60:.0f} min or more after the attempt"
    ),
    f"Automatic replies of a conversation in {loops.WINDOW / 60:.0f} min": (
        f"{DEFAULTS.loop_limit}"
    ),
}
# What the third column says in figures, too.
REASONS = {
    "Longest deferral": [f"at most {SQS_LONGEST // HOUR} h"],
    "Receives that an outage of 1 h uses by backoff": [
        f"{next(n for n in count(1) if backoff(n + 1) == backoff(n + 2))} to get to",
        f"one in {backoff(99):.0f} s",
    ],
    "Retention of every queue": [f"{min(RETENTION) / processing.GIVE_UP_AFTER:.0f} times"],
    "Visibility of the outbound queue": [f"6 time-outs of {TIME_OUT} s"],
    "Visibility of the processing queue": [f"6 time-outs of {TIME_OUT} s", f"window of {WINDOW} s"],
    "Time until a message that takes its function with it is out of the way": [f"{DYING} receives"],
    "Messages on the outbound queue from which on `POST /messages` is refused": [
        f"the first {SQS_LOOKS_AT:,}.",
        f"may be {SEEN_WITHIN:.0f} s old",
        f"which {int((SQS_LOOKS_AT - receiving.MOST_WAITING) / SEEN_WITHIN):,} texts a second",
    ],
    "Time after which a client that was refused for it comes again": [
        f"the {receiving.DEPTH_KEPT:.0f} s for which",
        f"at {receiving.MOST_WAITING / receiving.COME_AGAIN:.0f} texts a second",
    ],
    "Time that a breaker stays open": [f"up to {breaker.LONGEST_RETRY_AFTER / HOUR:.0f} h"],
    "Calls that a provider sees in the first four minutes of an outage": [
        f"{', '.join(map(str, FIRST[:-1]))} and {FIRST[-1]} s"
    ],
    "Time after an outage until it is noticed": [f"the {COMING_BACK:.0f} s over"],
    "Time from then until the others are back": [
        f"over {breaker.SPREAD:.0f} s",
        f"wait {breaker.PATIENCE:.0f} s more",
    ],
    "Time that the sender keeps for a message": [
        f"({LONGEST_TIME_OUT + SENDER_NEEDS:.0f} s with the longest, {LONGEST_TIME_OUT:.0f})",
        f"({sending.CALLING:.0f} s)",
        f"({sending.WRITING:.0f} s)",
    ],
    "Time that processing keeps for a message": [
        f"({at_most(LONGEST_TIME_OUT):.0f} s with its connection, for a time-out of"
        f" {LONGEST_TIME_OUT:.0f})",
        f"({processing.STORING:.0f} s)",
    ],
    "Time that processing keeps for a message with attachments": [
        f"({attachments.FETCHING:.0f} s,",
        f"last: {at_most(1e9) - 1e9:.0f} s)",
        f"writing ({processing.WRITING:.0f} s)",
    ],
    "Attachments in memory at once": [
        f"{THREADS} messages at a time, {attachments.TOGETHER} of each, of"
        f" {attachments.LARGEST / 1e6:.0f} MB",
    ],
    "Time for which a claim holds up other senders": [f"margin of {sending.LEASE_MARGIN:.0f} s"],
}


ROWS = {
    what: (figure, why)
    for what, figure, why in rows(DOCS / "DELIVERY.md", "The arithmetic of waiting")
}


def test_the_page_has_exactly_these_figures() -> None:
    assert list(ROWS) == list(FIGURES)


@pytest.mark.parametrize("what", FIGURES)
def test_a_figure_is_what_the_code_makes_it(what: str) -> None:
    figure, why = ROWS[what]
    assert figure == FIGURES[what]
    for piece in REASONS.get(what, []):
        assert piece in why


LAST_AGE = max(processing.GIVE_UP_AFTER, DEFAULTS.message_max_age, DEFAULTS.reply_max_age)


@pytest.mark.parametrize(
    ("less", "more"),
    [
        pytest.param(batches.LONGEST + TIME_OUT, SQS_LONGEST, id="deferral and visibility"),
        pytest.param(
            LAST_AGE + batches.LONGEST_BACKOFF,
            lasts(DATA["MaxReceiveCount"]),
            id="ages and receives by backoff",
        ),
        pytest.param(
            receives_at_breaker(LAST_AGE),
            DATA["MaxReceiveCount"],
            id="ages and receives at a breaker",
        ),
        pytest.param(2 * LAST_AGE, min(RETENTION), id="ages and retention"),
        pytest.param(
            DEFAULTS.lookup_max_age, processing.GIVE_UP_AFTER, id="look-ups and processing"
        ),
        pytest.param(
            LONGEST_TIME_OUT + SENDER_NEEDS + 3, TIME_OUT, id="the longest reply and the time-out"
        ),
        pytest.param(
            at_most(LONGEST_TIME_OUT) + 2 * sending.WRITING,
            LONGEST_TIME_OUT + SENDER_NEEDS,
            id="asking and storing, and what the sender keeps",
        ),
        pytest.param(CLAIM_NEEDS, DEFAULTS.reply_timeout + SENDER_NEEDS, id="a claim likewise"),
        pytest.param(PROCESSING_NEEDS + 3, TIME_OUT, id="the longest look-up and the time-out"),
        pytest.param(PICTURE_NEEDS + 3, TIME_OUT, id="attachments and the time-out"),
        pytest.param(
            attachments.FETCHING + at_most(1e9) - 1e9 + processing.WRITING,
            attachments.LONGEST,
            id="fetching and writing, and what is kept for both",
        ),
        # The runtime and our own modules take a fifth of it.
        pytest.param(IN_MEMORY, 0.7 * MEMORY * 2**20, id="attachments and memory"),
        pytest.param(attachments.WAITS, processing.GIVE_UP_AFTER, id="attachments and processing"),
        pytest.param(2 * processing.WRITING, processing.STORING, id="archive and table"),
        pytest.param(
            sending.WRITING + sending.CALLING, breaker.PROBING, id="claim and call, and the lease"
        ),
        pytest.param(
            settling.LISTED_AFTER,
            settling.LOOKS[-1] - settling.EARLY,
            id="a list that lags and the last look",
        ),
        pytest.param(
            next(look for look in settling.LOOKS if look >= settling.LISTED_AFTER) + 60,
            DEFAULTS.reply_max_age,
            id="the first look that can say *not sent*, and the age of replies",
        ),
        pytest.param(settling.LOOKS[-1], REPEATABLE, id="looks and idempotency keys"),
        pytest.param(
            receiving.DEPTH_KEPT + 1,
            receiving.COME_AGAIN,
            id="what a receiver saw, and who returns",
        ),
        pytest.param(
            breaker.LONGEST_COOL_OFF * (1 + breaker.JITTER),
            DEFAULTS.reply_max_age / 4,
            id="an open breaker and the age of replies",
        ),
    ],
)
def test_what_must_be_less_is_less(less: float, more: float) -> None:
    assert less <= more


def test_both_functions_have_the_same_time() -> None:
    assert CONFIG["lambda_functions"]["process"]["lambda_timeout"] == TIME_OUT
