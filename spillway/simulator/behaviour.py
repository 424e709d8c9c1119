"""How a simulated service behaves: until further notice, or for a while and then as before.

What is set for a while ends by itself: whoever set it and died leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from spillway.simulator.gates import Gate
from spillway.simulator.web import BadInput, only, seconds

# Of a provider; a sample service has the first three, which are before anything was done.
Failure = Literal[
    "throttled", "server_error", "down", "rejected", "failed_answer", "lost_answer", "no_answer"
]
PROVIDER_FAILURES: tuple[str, ...] = get_args(Failure)
SAMPLE_FAILURES = PROVIDER_FAILURES[:3]


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Answers after `delay` seconds, and fails in one of these ways:

        throttled      429, with `retry_after` seconds where they are given
        server_error   500, and nothing was taken
        down           no connection can be made, and those that are open are cut
        rejected       a refusal (a provider's)
        failed_answer  taken, and answered 500
        lost_answer    taken, and the connection cut
        no_answer      taken, and never answered

    A provider posts `receipts` or loses them.
    """

    delay: float = 0.0
    fail: Failure | None = None
    receipts: bool = True
    retry_after: int | None = None

    @classmethod
    def parse(cls, payload: dict[str, Any], failures: Sequence[str]) -> Behaviour:
        """What is not named is as at the start. Raises BadInput."""
        fail, receipts = payload.get("fail"), payload.get("receipts", True)
        retry_after = payload.get("retry_after")
        if fail is not None and fail not in failures:
            raise BadInput(f"fail is none of: null, {', '.join(failures)}")
        if not isinstance(receipts, bool):
            raise BadInput("receipts is neither true nor false")
        if retry_after is not None and (type(retry_after) is not int or retry_after < 0):
            raise BadInput("retry_after is not a whole number of seconds")
        return cls(seconds(payload, "delay"), fail, receipts, retry_after)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Service:
    """One service that is told how to behave. `gate` is its own port, without which it cannot be
    down."""

    def __init__(self, failures: Sequence[str], gate: Gate | None = None) -> None:
        self._failures = failures
        self._gate = gate
        self._standing = Behaviour()
        self._passing = Behaviour()
        self._passes_at = 0.0
        self._timer: asyncio.Task[None] | None = None

    @property
    def behaviour(self) -> Behaviour:
        """As it is now."""
        return self._passing if time.monotonic() < self._passes_at else self._standing

    async def told(self, payload: dict[str, Any]) -> Behaviour:
        """Sets the behaviour that a request describes; `for`: for so many seconds, and then as
        before (0: as before at once). Raises BadInput."""
        only(payload, "delay", "fail", "receipts", "retry_after", "for")
        behaviour = Behaviour.parse(payload, self._failures)
        if behaviour.fail == "down" and self._gate is None:
            raise BadInput("down: this service has no port of its own (gates in SIMULATOR)")
        await self.behave(behaviour, seconds(payload, "for") if "for" in payload else None)
        return self.behaviour

    async def behave(self, behaviour: Behaviour, lasting: float | None = None) -> None:
        """Until further notice, or for `lasting` seconds."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if lasting is None:
            self._standing, self._passes_at = behaviour, 0.0
        else:
            self._passing, self._passes_at = behaviour, time.monotonic() + lasting
            self._timer = asyncio.create_task(self._as_before())
        await self._mind_the_gate()

    async def _as_before(self) -> None:
        while (left := self._passes_at - time.monotonic()) > 0:
            await asyncio.sleep(left)
        await self._mind_the_gate()

    async def _mind_the_gate(self) -> None:
        if self._gate is None:
            return
        if self.behaviour.fail == "down":
            self._gate.close()
        else:
            await self._gate.open()
