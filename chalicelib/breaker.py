"""Whether a provider is called now: a breaker for each provider account, one for all environments;
and a pause, while somebody wants none to be called.

    closed      every call passes; five failures in a row, seen by one environment, open it
    open        no call until a time that the item names; messages are deferred beyond it
    half-open   that time has come: one message passes, under a lease that one conditional write
                gives away; its answer closes the breaker, its failure opens it for twice as long

The state is one item of the table, written when it changes and only then, and read at most once a
second. It keeps a provider from being hammered and our sends from becoming unknown; that nothing is
sent twice is the ledger's part. So it may be wrong for a second, and where its item cannot be read
or written the sending goes on. Whoever dies with the lease holds up the others until it ends.

A pause is an item, too, and is read with the others. Messages come back every quarter of an hour,
until there is none: what is too old by then is recorded so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, TypeVar

from chalicelib.batches import Defer
from chalicelib.ledger import DAY
from chalicelib.observing import count, log
from chalicelib.providers.base import OutcomeUnknown, SendError, Throttled, Unavailable
from chalicelib.runtime import Runtime
from chalicelib.table import Conflict, Item, Key, Table

T = TypeVar("T")
P = ParamSpec("P")

FAILURES = 5  # in a row, in one environment
FRESH = 1.0  # seconds for which what was read counts
# Seconds that it stays open; up to a quarter more by chance, so that two accounts part ways.
FIRST_COOL_OFF = 15.0
LONGEST_COOL_OFF = 120.0
JITTER = 0.25
# A provider that names a longer time gets one message an hour: a header must not silence an account
# for half a day.
LONGEST_RETRY_AFTER = 3600.0
# Seconds from the lease to the provider's answer at most: the claim, then the call.
PROBING = 28.0
# Seconds that the others leave to the probe before they look again. Most providers have answered.
PATIENCE = 5.0
# Seconds over which those who were deferred come back.
SPREAD = 10.0
# Seconds for which a message is deferred while sending is paused.
PAUSED_FOR = 900.0
PAUSE: Key = ("B#sending", "PAUSE")


Health = Literal["well", "ill", "cannot_tell"]


def health(error: SendError | None) -> Health:
    """What the end of a call says of the provider. None: it was taken.

    Ill: no connection, throttling, and whatever leaves the outcome unknown, since each more would
    be one more unknown send. Well: a refusal, which is an answer, and a mismatch of one idempotency
    key. Refused credentials say nothing: one environment may have old ones and all others new.
    """
    if isinstance(error, OutcomeUnknown):
        return "well" if error.reason == "idempotency_mismatch" else "ill"
    if isinstance(error, Unavailable):
        return "cannot_tell" if error.reason == "credentials" else "ill"
    return "ill" if isinstance(error, Throttled) else "well"


@dataclass(frozen=True, slots=True)
class _State:
    """The item as it was last seen. Times are unix seconds. Closed: `open_until` is 0."""

    open_until: float = 0.0
    cool_off: float = 0.0
    owner: str = ""
    lease_until: float = 0.0


@dataclass(slots=True)
class _Account:
    """What this environment knows of one account. Threads share it and none locks it: a count
    that two of them wrote at once is late by one, and the item decides all else."""

    provider: str
    state: _State
    failures: int = 0
    # Until when the provider asked to be left alone, in this row of failures.
    not_before: float = 0.0
    # Until when one message of this environment may be on its way to the lease.
    scout_until: float = 0.0

    @property
    def key(self) -> Key:
        return f"B#{self.provider}", "BREAKER"


class Breaker:
    """The breakers of some providers, on the table. Raises Defer, and nothing of the table's."""

    def __init__(self, table: Table, runtime: Runtime, providers: Iterable[str]) -> None:
        self._table = table
        self._runtime = runtime
        self._accounts = {name: _Account(name, _State()) for name in providers}
        self._paused = False
        self._read_at = float("-inf")

    def read(self) -> None:
        """Looks how things stand, if the last look is a second old.

        To be called before threads are started, too: while one of them reads, the others go by
        what was read before.
        """
        now = self._runtime.now()
        if now - self._read_at < FRESH:
            return
        self._read_at = now
        try:
            keys = [PAUSE, *(account.key for account in self._accounts.values())]
            found = self._table.get_many(keys)
        except Exception as error:
            _unreachable(error)
            return
        self._paused = PAUSE in found
        for account in self._accounts.values():
            account.state = _state(found.get(account.key))

    def check(self, provider: str) -> None:
        """Raises Defer where no message is let through just now."""
        self.read()
        self._check(self._accounts[provider])

    def ask(self, provider: str) -> None:
        """Raises Defer where a message would not be let through: before anything is done for it.

        In a half-open breaker one message of an environment passes, and may reach the lease.
        """
        self.read()
        account = self._accounts[provider]
        if self._check(account).open_until:
            now = self._runtime.now()
            if account.scout_until > now:
                raise self._later("probing", PATIENCE)
            account.scout_until = now + PATIENCE

    def permit(self, provider: str, *, until: float) -> Permit:
        """Leave for one call that has ended by `until` (unix seconds). Raises Defer.

        In a half-open breaker this takes the lease.
        """
        self.read()
        account = self._accounts[provider]
        lease = self._lease(account, until) if self._check(account).open_until else ""
        return Permit(self._learn, account, lease)

    def _check(self, account: _Account) -> _State:
        """Closed, or half-open with the lease to be had. Raises Defer otherwise."""
        if self._paused:
            raise Defer("paused", PAUSED_FOR + SPREAD * self._runtime.random())
        now = self._runtime.now()
        state = account.state
        if state.open_until > now:
            raise self._later("open", state.open_until - now)
        if state.lease_until > now:
            raise self._later("probing", min(state.lease_until - now, PATIENCE))
        return state

    def _later(self, reason: str, seconds: float) -> Defer:
        return Defer(f"breaker: {reason}", seconds + SPREAD * self._runtime.random())

    def _lease(self, account: _Account, until: float) -> str:
        """The owner id of the lease, which is now ours; "" where the call needs none."""
        owner = self._runtime.new_id()
        now = self._runtime.now()
        try:
            self._write(
                account,
                "SET #owner = :owner, lease_until = :end",
                condition="open_until <= :now"
                " AND (attribute_not_exists(lease_until) OR lease_until <= :now)",
                values={":owner": owner, ":end": min(until, now + PROBING), ":now": now},
            )
        except Conflict as conflict:
            there = _state(conflict.item)
            if not there.open_until:
                return ""
            # Ours, where the write was repeated because its answer was lost.
            if there.owner != owner:
                self._check(account)
                raise self._later("probing", PATIENCE) from None
        except Exception as error:
            # It may have been written; if not, nothing that is done under this id will be.
            _unreachable(error)
            return owner
        count("Breaker", provider=account.provider, reason="probe")
        log("INFO", "breaker_probe", provider=account.provider)
        return owner

    def _learn(self, account: _Account, lease: str, error: SendError | None) -> None:
        """What came of a call that was let through."""
        found = health(error)
        if found == "well":
            account.failures = 0
            account.not_before = 0.0
            if lease:
                self._close(account, lease)
        if error is None or found != "ill":
            return
        account.failures += 1
        if isinstance(error, Throttled) and error.retry_after is not None:
            wait = min(error.retry_after, LONGEST_RETRY_AFTER)
            account.not_before = max(account.not_before, self._runtime.now() + wait)
        if lease or account.failures >= FAILURES:
            self._open(account, lease, error.reason)

    def _open(self, account: _Account, lease: str, reason: str) -> None:
        now = self._runtime.now()
        before = account.state.cool_off if lease else 0.0
        cool_off = min(max(2 * before, FIRST_COOL_OFF), LONGEST_COOL_OFF)
        until = max(now + cool_off * (1 + JITTER * self._runtime.random()), account.not_before)
        account.failures = 0
        account.not_before = 0.0
        try:
            self._write(
                account,
                "SET open_until = :until, cool_off = :cool_off, expires_at = :end"
                " REMOVE #owner, lease_until",
                condition="#owner = :owner" if lease else "attribute_not_exists(open_until)",
                values={
                    ":until": until,
                    ":cool_off": cool_off,
                    ":end": int(until + DAY),
                    **({":owner": lease} if lease else {}),
                },
            )
        except Conflict:
            return  # somebody else has said how things stand
        except Exception as error:
            _unreachable(error)
            return
        count("Breaker", provider=account.provider, reason="opened")
        log(
            "WARNING",
            "breaker_opened",
            provider=account.provider,
            reason=reason,
            seconds=until - now,
        )

    def _close(self, account: _Account, lease: str) -> None:
        try:
            self._write(
                account,
                "REMOVE open_until, cool_off, #owner, lease_until",
                condition="#owner = :owner",
                values={":owner": lease},
            )
        except Conflict:
            return
        except Exception as error:
            _unreachable(error)
            return
        count("Breaker", provider=account.provider, reason="closed")
        log("INFO", "breaker_closed", provider=account.provider)

    def _write(
        self, account: _Account, update: str, *, condition: str, values: dict[str, Any]
    ) -> None:
        """Changes the item, and keeps what is there then. Raises what the table raises."""
        try:
            item: Item | None = self._table.update(
                account.key,
                update,
                condition=condition,
                names={"#owner": "owner"},
                values=values,
            )
        except Conflict as conflict:
            account.state = _state(conflict.item)
            raise
        account.state = _state(item)


class Permit:
    """Leave for one call to a provider. The breaker learns at the end of a `with` what came of it:
    not before the ledger has it, whose word matters more."""

    def __init__(
        self,
        learn: Callable[[_Account, str, SendError | None], None],
        account: _Account,
        lease: str,
    ) -> None:
        self._learn = learn
        self._account = account
        self._lease = lease
        self._called = False
        self._error: SendError | None = None

    def call(self, send: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls `send`, and raises what it raises."""
        try:
            result = send(*args, **kwargs)
        except SendError as error:
            self._called = True
            self._error = error
            raise
        self._called = True
        return result

    def __enter__(self) -> Permit:
        return self

    def __exit__(self, *_: object) -> None:
        # A bug of ours around the call says nothing of the provider.
        if self._called:
            self._learn(self._account, self._lease, self._error)


def pause(table: Table, at: float, why: str) -> float:
    """Nothing more is sent, from a second on; returns since when (unix seconds)."""
    there = table.insert({"pk": PAUSE[0], "sk": PAUSE[1], "since": at, "why": why})
    return at if there is None else float(there.get("since", at))


def resume_sending(table: Table) -> None:
    """What waits is sent: within a quarter of an hour."""
    table.delete(PAUSE)


def paused(table: Table) -> Item | None:
    """The pause, with `since` (unix seconds) and `why`; None where there is none."""
    return table.get(PAUSE)


def _state(item: Item | None) -> _State:
    item = item or {}
    return _State(
        **{
            name: item[name]
            for name in ("open_until", "cool_off", "owner", "lease_until")
            if name in item
        }
    )


def _unreachable(error: Exception) -> None:
    count("Breaker", reason="unreachable")
    log("WARNING", "breaker_unreachable", error=error)
