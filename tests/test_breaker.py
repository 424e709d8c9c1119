"""The breaker: when a provider is left alone, for how long, and who looks whether it is back."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from math import ceil
from typing import Any

import pytest

from chalicelib.batches import Defer
from chalicelib.breaker import (
    FAILURES,
    FIRST_COOL_OFF,
    FRESH,
    JITTER,
    LONGEST_COOL_OFF,
    LONGEST_RETRY_AFTER,
    PATIENCE,
    PROBING,
    SPREAD,
    Breaker,
    Permit,
    health,
)
from chalicelib.providers.base import (
    OutcomeUnknown,
    Rejected,
    SendError,
    Throttled,
    Unavailable,
)
from chalicelib.table import Item, Table
from tests.fakes import (
    NOW,
    FakeRuntime,
    Lost,
    aws_error,
    events,
    logged,
    no_answer,
    on_empty_table,
    tapped,
)

pytestmark = pytest.mark.usefixtures("says_nothing")

NO_CONNECTION = Unavailable("no_connection")
# The clock of the tests' chance is 0.5: half of the jitter, half of the spread.
OPEN = FIRST_COOL_OFF * (1 + JITTER / 2)


class Environment:
    """One environment of the sender: a runtime of its own, on the table of all."""

    def __init__(self, name: str, dynamodb: Any) -> None:
        self.runtime = FakeRuntime()
        self.runtime.__dict__["dynamodb"] = dynamodb
        ids = (f"{name}-{number}" for number in count())
        self.runtime.__dict__["new_id"] = lambda: next(ids)
        self.breaker = Breaker(Table(self.runtime, "test"), self.runtime, ["twilio", "telnyx"])

    def permit(self, provider: str = "twilio", seconds: float = 60) -> Permit:
        return self.breaker.permit(provider, until=self.runtime.clock + seconds)

    def send(self, error: Exception | None = None, provider: str = "twilio") -> None:
        """One call that is let through, and ends so."""
        end(self.permit(provider), error)

    def fails(self, error: SendError = NO_CONNECTION, times: int = FAILURES) -> None:
        for _ in range(times):
            self.send(error)

    def waits(self, provider: str = "twilio") -> float | None:
        """For how long a message would have to wait before a claim, if it would."""
        try:
            self.permit(provider)
        except Defer as defer:
            return defer.after
        return None


def end(permit: Permit, error: Exception | None = None) -> None:
    def send() -> None:
        if error is not None:
            raise error

    with suppress(SendError, ValueError), permit:
        permit.call(send)


@pytest.fixture
def environments(dynamodb: Any) -> Callable[[str], Environment]:
    """Makes environments on one table, emptied."""
    shared = on_empty_table(dynamodb).dynamodb
    return lambda name: Environment(name, shared)


@pytest.fixture
def one(environments: Callable[[str], Environment]) -> Environment:
    return environments("one")


@pytest.fixture
def other(environments: Callable[[str], Environment]) -> Environment:
    return environments("other")


def item(environment: Environment, provider: str = "twilio") -> Item | None:
    return Table(environment.runtime, "test").get((f"B#{provider}", "BREAKER"))


def later(seconds: float, *environments: Environment) -> None:
    for environment in environments:
        environment.runtime.clock += seconds


# --- what opens it -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (None, "well"),
        (Rejected("landline", "30006"), "well"),
        (Rejected("rejected"), "well"),
        (OutcomeUnknown("idempotency_mismatch", "409"), "well"),
        (Unavailable("credentials", "401"), "cannot_tell"),
        (Unavailable("no_connection"), "ill"),
        (Throttled("throttled"), "ill"),
        (OutcomeUnknown("server_error", "500"), "ill"),
        (OutcomeUnknown("read_timeout"), "ill"),
        (OutcomeUnknown("write_timeout"), "ill"),
        (OutcomeUnknown("remote_protocol_error"), "ill"),
        (OutcomeUnknown("unreadable_answer", "200"), "ill"),
        (OutcomeUnknown("unexpected_answer", "302"), "ill"),
    ],
    ids=lambda one: f"{one.reason}" if isinstance(one, SendError) else str(one),
)
def test_what_the_end_of_a_call_says_of_the_provider(
    error: SendError | None, expected: str
) -> None:
    assert health(error) == expected


def test_failures_in_a_row_open_it(one: Environment, capsys: pytest.CaptureFixture[str]) -> None:
    one.fails(times=FAILURES - 1)
    assert one.waits() is None
    assert tapped(one.runtime).writes() == []

    one.send(NO_CONNECTION)
    assert one.waits() == OPEN + SPREAD / 2
    lines = logged(capsys)
    assert [
        (line["level"], line["event"], line["reason"]) for line in lines if "event" in line
    ] == [("WARNING", "breaker_opened", "no_connection")]
    assert [(line["provider"], line["reason"]) for line in lines if "Breaker" in line] == [
        ("twilio", "opened")
    ]


@pytest.mark.parametrize("between", [None, Rejected("landline")], ids=["sent", "rejected"])
def test_an_answer_in_between_begins_the_count_anew(
    one: Environment, between: SendError | None
) -> None:
    for _ in range(3):
        one.fails(times=FAILURES - 1)
        one.send(between)
    assert one.waits() is None


@pytest.mark.parametrize("error", [Unavailable("credentials", "401"), ValueError("heron")])
def test_what_says_nothing_of_the_provider_changes_nothing(
    one: Environment, error: Exception
) -> None:
    # GIVEN failures of which one more would open it
    one.fails(times=FAILURES - 1)
    for _ in range(2 * FAILURES):
        one.send(error)
    assert one.waits() is None
    # THEN they are in a row still
    one.send(NO_CONNECTION)
    assert one.waits() is not None


def test_a_permit_that_was_not_used_says_nothing(one: Environment) -> None:
    one.fails(times=FAILURES - 1)
    with one.permit():
        pass
    one.send(NO_CONNECTION)
    assert one.waits() is not None


def test_one_provider_is_not_the_other(one: Environment) -> None:
    one.fails()
    assert one.waits("telnyx") is None


@pytest.mark.parametrize(
    ("told", "opened"),
    [
        (7.0, OPEN),
        (100.0, 100.0),
        (43_200.0, LONGEST_RETRY_AFTER),
    ],
)
def test_a_provider_that_names_a_time_is_left_alone_so_long(
    one: Environment, told: float, opened: float
) -> None:
    # (the longest of those that it named)
    one.fails(Throttled("throttled", retry_after=told), times=1)
    one.fails(Throttled("throttled", retry_after=1), times=1)
    one.fails(Throttled("throttled"), times=FAILURES - 2)
    assert one.waits() == opened + SPREAD / 2


def test_a_time_that_was_named_before_an_answer_counts_no_more(one: Environment) -> None:
    one.send(Throttled("throttled", retry_after=100))
    one.send()
    one.fails()
    assert one.waits() == OPEN + SPREAD / 2


# --- open --------------------------------------------------------------------------------------


def test_all_environments_know_within_a_second(one: Environment, other: Environment) -> None:
    assert other.waits() is None
    one.fails()
    assert other.waits() is None
    later(FRESH, one, other)
    assert other.waits() == OPEN - FRESH + SPREAD / 2
    # AND one that comes new knows at once
    other.breaker = Breaker(Table(other.runtime, "test"), other.runtime, ["twilio"])
    assert other.waits() is not None


def test_who_failed_at_the_same_time_does_not_open_it_again(
    one: Environment, other: Environment
) -> None:
    # GIVEN calls under way in another environment when it opens
    permits = [other.permit() for _ in range(2 * FAILURES)]
    one.fails()
    opened = item(one)
    later(1, one, other)
    for permit in permits:
        end(permit, NO_CONNECTION)
    assert item(one) == opened


def test_before_anything_is_done_for_a_message(one: Environment) -> None:
    one.breaker.ask("twilio")
    one.fails()
    with pytest.raises(Defer, match="breaker: open") as caught:
        one.breaker.ask("twilio")
    assert caught.value.after == OPEN + SPREAD / 2


def test_those_who_wait_do_not_come_back_all_at_once(
    one: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.fails()
    waits = []
    for chance in (0.0, 0.25, 0.999):
        monkeypatch.setattr(one.runtime, "random", lambda chance=chance: chance)
        waits.append(one.waits())
    assert waits == [OPEN, OPEN + SPREAD / 4, pytest.approx(OPEN + SPREAD, abs=0.02)]


# --- half-open ---------------------------------------------------------------------------------


def half_open(*environments: Environment) -> None:
    environments[0].fails()
    later(OPEN, *environments)


def test_one_message_looks_whether_it_is_back(
    one: Environment, other: Environment, capsys: pytest.CaptureFixture[str]
) -> None:
    half_open(one, other)
    probe = one.permit()
    # THEN nobody else does, here or there
    assert one.waits() == other.waits() == PATIENCE + SPREAD / 2
    # AND when it has an answer all may send, at once here and within a second there
    end(probe)
    assert one.waits() is None
    later(FRESH, one, other)
    assert other.waits() is None
    assert events(logged(capsys)) == ["breaker_opened", "breaker_probe", "breaker_closed"]


def test_a_refusal_is_an_answer(one: Environment) -> None:
    half_open(one)
    one.send(Rejected("landline"))
    assert one.waits() is None


def test_each_failure_of_a_probe_doubles_the_time_up_to_two_minutes(
    one: Environment, other: Environment
) -> None:
    one.fails()
    lengths = []
    for _ in range(6):
        found = item(one)
        assert found is not None
        lengths.append((found["open_until"] - one.runtime.clock) / (1 + JITTER / 2))
        later(found["open_until"] - one.runtime.clock, one, other)
        other.send(OutcomeUnknown("read_timeout"))
    assert lengths == pytest.approx([15, 30, 60, 120, 120, 120])
    # AND once it is back it begins with the first again
    later(LONGEST_COOL_OFF * (1 + JITTER), one, other)
    one.send()
    one.fails()
    assert one.waits() == OPEN + SPREAD / 2


def test_a_probe_that_is_told_when_to_come_again(one: Environment) -> None:
    half_open(one)
    one.send(Throttled("throttled", retry_after=300))
    assert one.waits() == 300 + SPREAD / 2


def test_two_who_want_to_look_at_once(one: Environment, other: Environment) -> None:
    # GIVEN two who both saw that the time has come
    half_open(one, other)
    other.breaker.read()
    won: list[Permit] = []
    tapped(one.runtime).next["update_item"] = iter([lambda: won.append(one.permit())])
    # THEN one of them wins
    assert other.waits() == PATIENCE + SPREAD / 2
    end(won[0])
    assert one.waits() is None


def test_who_comes_as_it_closes_passes(one: Environment, other: Environment) -> None:
    half_open(one, other)
    other.breaker.read()
    tapped(one.runtime).next["update_item"] = iter([lambda: one.send()])
    assert other.waits() is None


def test_who_comes_as_it_opens_again_waits(one: Environment, other: Environment) -> None:
    half_open(one, other)
    other.breaker.read()
    tapped(one.runtime).next["update_item"] = iter([lambda: one.send(NO_CONNECTION)])
    assert other.waits() == 2 * OPEN + SPREAD / 2


def test_a_prober_that_dies_holds_up_the_others_until_its_lease_ends(
    one: Environment, other: Environment
) -> None:
    half_open(one, other)
    one.permit(seconds=60)
    later(PROBING - 1, one, other)
    assert other.waits() == 1 + SPREAD / 2
    later(1, one, other)
    other.send()
    assert other.waits() is None


def test_a_lease_ends_with_the_invocation(one: Environment, other: Environment) -> None:
    half_open(one, other)
    one.permit(seconds=3)
    assert other.waits() == 3 + SPREAD / 2
    later(3, one, other)
    assert other.waits() is None


def test_what_a_prober_says_after_its_lease_was_taken_over_changes_nothing(
    one: Environment, other: Environment
) -> None:
    half_open(one, other)
    slow = one.permit()
    later(PROBING, one, other)
    quick = other.permit()
    held = item(one)
    end(slow, NO_CONNECTION)
    assert item(one) == held
    end(quick)
    assert other.waits() is None


@pytest.mark.parametrize("skew", [-1.0, 1.0])
def test_clocks_that_differ_by_a_second(one: Environment, other: Environment, skew: float) -> None:
    other.runtime.clock += skew
    half_open(one, other)
    probe = one.permit()
    assert other.waits() is not None
    end(probe)
    later(FRESH, one, other)
    assert other.waits() is None


def test_in_each_environment_one_message_is_prepared_for_it(
    one: Environment, other: Environment
) -> None:
    half_open(one, other)
    one.breaker.ask("twilio")
    other.breaker.ask("twilio")
    with pytest.raises(Defer, match="probing") as caught:
        one.breaker.ask("twilio")
    assert caught.value.after == PATIENCE + SPREAD / 2
    # AND another, should nothing have come of it
    later(PATIENCE, one, other)
    one.breaker.ask("twilio")


# --- the table fails ---------------------------------------------------------------------------


def test_a_write_that_was_repeated_is_recognised(one: Environment, other: Environment) -> None:
    # GIVEN a lease whose first write landed, and whose answer was lost on its way to botocore
    half_open(one, other)
    tap = tapped(one.runtime)

    def first() -> None:
        _, arguments = tap.calls[-1]
        tap._client.update_item(**arguments)

    tap.next["update_item"] = iter([first])
    probe = one.permit()
    # THEN it is its own, and closes what it opened
    assert other.waits() == PATIENCE + SPREAD / 2
    end(probe)
    assert one.waits() is None


@pytest.mark.parametrize(
    "failure", [aws_error("InternalServerError"), Lost(no_answer())], ids=["refused", "lost"]
)
def test_without_a_lease_the_sending_goes_on(
    one: Environment,
    other: Environment,
    failure: Exception | Lost,
    capsys: pytest.CaptureFixture[str],
) -> None:
    half_open(one, other)
    tapped(one.runtime).next["update_item"] = iter([failure])
    one.send()
    assert "breaker_unreachable" in events(logged(capsys))
    # AND nobody waits because of it
    later(FRESH, one, other)
    other.send()
    assert (one.waits(), other.waits()) == (None, None)


def test_what_cannot_be_read_is_what_was_read_before(
    one: Environment, capsys: pytest.CaptureFixture[str]
) -> None:
    # GIVEN a breaker that cannot be read from the first time on
    down = aws_error("InternalServerError")
    tapped(one.runtime).next["batch_get_item"] = iter([down] * 10)
    one.send()
    assert events(logged(capsys)) == ["breaker_unreachable"]
    # WHEN it was seen open meanwhile
    one.fails()
    later(FRESH, one)
    # THEN it is open, and no longer than it said
    assert one.waits() == OPEN - FRESH + SPREAD / 2
    later(OPEN - FRESH, one)
    assert one.waits() is None


def test_what_cannot_be_written_is_counted_again(one: Environment) -> None:
    tapped(one.runtime).next["update_item"] = iter([aws_error("InternalServerError")])
    one.fails()
    assert one.waits() is None
    one.fails()
    assert one.waits() is not None


@pytest.mark.parametrize("error", [None, NO_CONNECTION], ids=["well", "ill"])
def test_a_probe_that_cannot_tell_is_followed_by_another(
    one: Environment, other: Environment, error: SendError | None
) -> None:
    half_open(one, other)
    probe = one.permit()
    tapped(one.runtime).next["update_item"] = iter([aws_error("InternalServerError")])
    end(probe, error)
    later(PROBING, one, other)
    other.send()
    assert other.waits() is None


# --- what it costs -----------------------------------------------------------------------------


def test_while_all_is_well_nothing_is_written_and_little_read(one: Environment) -> None:
    for _ in range(50):
        one.breaker.read()
        one.breaker.ask("twilio")
        one.send()
        one.send(provider="telnyx")
        later(0.1, one)
    calls = [name for name, _ in tapped(one.runtime).calls]
    assert set(calls) == {"batch_get_item"}
    assert len(calls) <= 5 / FRESH + 1


def test_the_item_names_the_provider_and_nobody_else(one: Environment) -> None:
    half_open(one)
    one.permit()
    found = item(one)
    assert found == {
        "pk": "B#twilio",
        "sk": "BREAKER",
        "open_until": NOW + OPEN,
        "cool_off": FIRST_COOL_OFF,
        "owner": "one-0",
        "lease_until": NOW + OPEN + PROBING,
        "expires_at": int(NOW + OPEN + 86_400),
    }


# --- an outage ---------------------------------------------------------------------------------

OUTAGE = 3600.0
MAX_AGE = 900.0
OPEN_LONGEST = LONGEST_COOL_OFF * (1 + JITTER / 2)


class Outage:
    """An hour in which a provider fails, seen by five environments whose clocks differ, with a
    text every ten seconds before, meanwhile and after."""

    def __init__(
        self,
        environments: Callable[[str], Environment],
        error: SendError,
        takes: float,
    ) -> None:
        self._chance = random.Random(7)
        self._environments = [environments(f"e{number}") for number in range(5)]
        self._skews = [self._chance.uniform(-0.5, 0.5) for _ in self._environments]
        for environment in self._environments:
            environment.runtime.__dict__["random"] = self._chance.random
        self._error = error
        self._takes = takes
        self._due: list[tuple[float, int, Callable[[float], None]]] = []
        self._numbers = count()
        self.calls: list[float] = []
        self.receives: Counter[float] = Counter()
        self.unknown = 0
        self.expired = 0
        self.sent: dict[float, float] = {}

    def run(self) -> None:
        for written in range(-60, int(OUTAGE) + 300, 10):
            self._push(written, self._receiving(written))
        while self._due:
            at, _, what = heapq.heappop(self._due)
            what(at)

    def _push(self, at: float, what: Callable[[float], None]) -> None:
        heapq.heappush(self._due, (at, next(self._numbers), what))

    def _receiving(self, written: float) -> Callable[[float], None]:
        return lambda at: self._receive(written, at)

    def _receive(self, written: float, at: float) -> None:
        if at - written > MAX_AGE:
            self.expired += 1
            return
        self.receives[written] += 1
        number = self._chance.randrange(len(self._environments))
        environment = self._environments[number]
        environment.runtime.clock = NOW + at + self._skews[number]
        try:
            environment.breaker.ask("twilio")
            permit = environment.permit()
        except Defer as defer:
            self._push(at + ceil(defer.after or 0), self._receiving(written))
            return
        self.calls.append(at)
        down = 0 <= at < OUTAGE
        takes = self._takes if down else 0.3

        def answered(at: float) -> None:
            environment.runtime.clock = NOW + at + self._skews[number]
            self._answered(written, at, permit, self._error if down else None)

        self._push(at + takes, answered)

    def _answered(self, written: float, at: float, permit: Permit, error: SendError | None) -> None:
        end(permit, error)
        if error is None:
            self.sent[written] = at
        elif isinstance(error, OutcomeUnknown):
            self.unknown += 1
        else:
            self._push(at + 1 + 2 * self._chance.random(), self._receiving(written))


@pytest.mark.parametrize(
    ("error", "takes"),
    [
        pytest.param(Unavailable("no_connection"), 3.0, id="no connection"),
        pytest.param(OutcomeUnknown("read_timeout"), 13.0, id="time-outs"),
        pytest.param(OutcomeUnknown("server_error", "503"), 0.1, id="5xx"),
        pytest.param(Throttled("throttled", retry_after=20), 0.1, id="throttling"),
    ],
)
def test_an_outage_of_an_hour(
    environments: Callable[[str], Environment], error: SendError, takes: float
) -> None:
    outage = Outage(environments, error, takes)
    outage.run()

    # Until it opens each environment has its failures; then a handful a minute, and soon one.
    minutes = Counter(int(at // 60) for at in outage.calls if 0 <= at < OUTAGE)
    begin = sum(minutes[minute] for minute in range(4))
    assert begin <= 5 * FAILURES + 6
    assert max(minutes[minute] for minute in range(4, 60)) <= 1
    # So hardly a send becomes unknown: one a probe, after those.
    assert outage.unknown <= 5 * FAILURES + OUTAGE / LONGEST_COOL_OFF + 6
    # Everything else waited, for little, until it was too old or the provider was back.
    assert outage.receives.total() / len(outage.receives) <= 2 * MAX_AGE / OPEN_LONGEST
    assert max(outage.receives.values()) <= 25
    assert len(outage.sent) + outage.expired + outage.unknown == len(outage.receives)
    # It is found to be back when its cool-off ends, and everything is on its way then.
    back = min(at for at in outage.calls if at >= OUTAGE)
    assert back <= OUTAGE + LONGEST_COOL_OFF * (1 + JITTER) + SPREAD + 10
    waiting = [at for written, at in outage.sent.items() if 0 <= written < OUTAGE]
    assert waiting
    assert max(waiting) <= back + 2 * SPREAD + PATIENCE
