"""`spillway burst --faults`: texts while everything fails in turn, and the count of each of them.

The texts come at a steady pace for as long as the plan lasts (faults.py): providers, look-ups and
the reply API are slow, throttled, failing and down, workers are killed. Then all is well again, and
the run waits until nothing is under way and every send of unknown outcome was settled, or its time
is up. What it did and what came of it is told by the functions' own lines and metrics; the verdict
is taken from the stores and the outbox alone (burst.py).

What this process leaves behind if it dies: a fault ends by itself, in the simulator; a killed
worker is started again by the run; what was acknowledged is answered. Nothing has to be mended.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from chalicelib.queues import OUTBOUND, PROCESSING
from spillway.local.folder import Folder
from spillway.problem import Problem
from spillway.traffic import burst, kills
from spillway.traffic.burst import Count, Sent, Traffic
from spillway.traffic.faults import Kill, Plan
from spillway.traffic.kills import Killed
from spillway.traffic.stores import LocalStores

# Seconds from the end of the plan until the last unknown send is settled: a provider's list is
# certain after 5 minutes and asked after 8; a killed worker's messages come back after 75 s.
SETTLING = 600.0
# Seconds that a kill waits for work to be in hand.
PATIENCE = 20.0
_SAID_EVERY = 30.0
_QUEUES = {"processing": PROCESSING, "outbound": OUTBOUND}
_PROVIDERS = ("twilio", "telnyx")


@dataclass(frozen=True, slots=True)
class Said:
    """Something that was done to the system or seen of it. `at`: seconds after the start."""

    at: float
    part: str
    what: str


@dataclass(slots=True)
class Report:
    """What was done, and what became of every message. Times are seconds.

    `unknown`: sends whose outcome was unknown, by cause; `settled`: how they were settled.
    `unsettled`: replies of which one is unknown still. `done`: nothing was under way in the end.
    """

    seed: int
    count: Count
    requests: int
    seconds: float
    done: bool
    unsettled: int
    timeline: list[Said] = field(default_factory=list)
    faults: list[dict[str, Any]] = field(default_factory=list)
    killed: list[Killed] = field(default_factory=list)
    unknown: dict[str, int] = field(default_factory=dict)
    settled: dict[str, int] = field(default_factory=dict)
    deferrals: dict[str, int] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """Whether every message that was acknowledged is where it should be, and nothing open."""
        back = all(one.back_after is not None for one in self.killed)
        return self.count.good and self.done and self.unsettled == 0 and back

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "good": self.good}


class Metrics:
    """What the functions count, from the lines that they write from now on into their logs."""

    def __init__(self, folder: Folder) -> None:
        self._read: dict[Path, int] = {}
        for name in kills.COMMANDS:
            self._read[folder.log(name)] = folder.log(name).stat().st_size
        self._lines: list[dict[str, Any]] = []

    def since(self, at: float) -> Iterator[dict[str, Any]]:
        """Every metric that was counted since then (unix seconds)."""
        for path, position in self._read.items():
            with path.open("rb") as file:
                file.seek(position)
                # A line that is being written is for the next time.
                whole = file.read().rpartition(b"\n")[0]
            self._read[path] = position + len(whole)
            self._lines += filter(None, map(_metric, whole.splitlines()))
        return (line for line in self._lines if line["_aws"]["Timestamp"] >= 1000 * at)

    def sums(self, metric: str, by: str, at: float = 0.0, **where: str) -> dict[str, int]:
        """A metric since then (unix seconds), by its reason or provider."""
        found: Counter[str] = Counter()
        for line in self.since(at):
            if metric in line and where.items() <= line.items():
                found[line.get(by, "")] += line[metric]
        return dict(found)


def _metric(line: bytes) -> dict[str, Any] | None:
    """A line's metric; None for what is none, or was cut off by a kill."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "_aws" in found else None


def run(
    local: Mapping[str, Any],
    messages: list[Sent],
    plan: Plan,
    *,
    within: float,
    console: Console,
) -> Report:
    """Carries the plan out, waits for `within` seconds from the start at most, and counts."""
    with closing(LocalStores(local)) as stores:
        return _Run(local, Folder(), stores, messages, plan, console).to_its_end(within)


class _Run:
    def __init__(
        self,
        local: Mapping[str, Any],
        folder: Folder,
        stores: LocalStores,
        messages: list[Sent],
        plan: Plan,
        console: Console,
    ) -> None:
        self._local = local
        self._folder = folder
        self._stores = stores
        self._messages = messages
        self._plan = plan
        self._console = console
        self._traffic = Traffic()
        self._metrics = Metrics(folder)
        self._began = time.time()
        self._timeline: list[Said] = []
        self._killed: list[Killed] = []
        self._faults: list[dict[str, Any]] = []

    def to_its_end(self, within: float) -> Report:
        with ThreadPoolExecutor(2) as pool:
            sending = pool.submit(
                asyncio.run,
                burst.send_all(
                    self._local, self._messages, self._traffic, spread=self._plan.seconds
                ),
            )
            killing = pool.submit(self._kill_all)
            try:
                self._strike_all(sending)
                done = self._rest(sending, killing, self._began + within)
            finally:
                self._traffic.stopped = True
                self._restore()
        sending.result()
        killing.result()
        return self._report(done)

    # -- what is done to the system -----------------------------------------------------------

    def _strike_all(self, sending: Future[None]) -> None:
        faults = self._plan.faults
        # What it leads to is seen until the next one, time-outs included.
        ends = [following.at for following in faults[1:]] + [self._plan.seconds]
        for fault, end in zip(faults, ends, strict=True):
            self._until(fault.at)
            began = time.time()
            self._set(fault.service, {**fault.behaviour, "for": fault.seconds})
            self._say(fault.service, f"{fault.what}, for {fault.seconds:g} s")
            self._until(max(end, fault.at + fault.seconds))
            if sending.done():
                sending.result()  # raises what ended it
            seen = self._seen(fault.service, began)
            self._say(fault.service, f"as before; seen: {_listed(seen) or 'nothing failed'}")
            self._faults.append(
                {
                    "service": fault.service,
                    "what": fault.what,
                    "seconds": fault.seconds,
                    "seen": seen,
                }
            )

    def _kill_all(self) -> None:
        for one in self._plan.kills:
            self._until(one.at)
            if self._traffic.stopped:
                return
            self._kill(one)

    def _kill(self, one: Kill) -> None:
        deadline = time.monotonic() + PATIENCE
        while not (in_hand := self._in_hand(one.worker)):
            if time.monotonic() > deadline or self._traffic.stopped:
                self._say(one.worker, "had nothing in hand: not killed")
                return
            time.sleep(0.05)
        killed = kills.kill(self._folder, one.worker, in_hand)
        self._killed.append(killed)
        what = "requests" if one.worker == "webhook" else "messages"
        back = f"back after {killed.back_after} s"
        self._say(
            one.worker,
            f"killed with {in_hand:,} {what} under way; "
            f"{back if killed.back_after is not None else 'not back'}",
        )

    def _in_hand(self, worker: str) -> int:
        """What it works on. (Of a queue: what was received and is not done; a part of it waits.)"""
        if worker == "webhook":
            return self._traffic.under_way
        return self._stores.depth(_QUEUES[worker]).in_flight

    def _set(self, service: str, behaviour: Mapping[str, Any]) -> None:
        kind = "provider" if service in _PROVIDERS else "sample"
        url = f"{self._local['page']}/{kind}/behaviour/{service}"
        try:
            answer = httpx.put(url, json=dict(behaviour), timeout=30, trust_env=False)
        except httpx.HTTPError:
            raise Problem("The local run has ended meanwhile, or its simulator.") from None
        if answer.status_code != 200:
            raise Problem(f"The simulator refused a fault: {answer.json()['error']}")

    def _restore(self) -> None:
        for service in {fault.service for fault in self._plan.faults}:
            self._set(service, {"for": 0})

    # -- what is seen of it -------------------------------------------------------------------

    def _seen(self, service: str, since: float) -> dict[str, int]:
        """What the functions counted of a service since then."""
        sums = self._metrics.sums
        if service in _PROVIDERS:
            of = {"provider": service}
            found = {
                "sent": sum(sums("Sent", "reason", since, **of).values()),
                "put back": sum(sums("SendsDeferred", "reason", since, **of).values()),
                "unknown": sum(sums("UnknownSends", "reason", since, **of).values()),
                "breaker opened": sums("Breaker", "reason", since, **of).get("opened", 0),
            }
        elif service == "reply":
            waiting = sums("Deferrals", "reason", since).get("reply_api", 0)
            found = {"waiting for its answer": waiting}
        else:
            found = {
                "look-ups failed": sums("LookUpFailures", "reason", since).get(service, 0),
                "messages waiting for one": sums("Deferrals", "reason", since).get("lookup", 0),
            }
        return {what: number for what, number in found.items() if number}

    def _rest(self, sending: Future[None], killing: Future[None], until: float) -> bool:
        """Waits until all texts are in and nothing is under way; false where time is up first.

        Every unknown send has a message on the processing queue until it is settled or was looked
        for six times, which takes an hour.
        """
        if self._plan.faults:
            self._say("all", "well again; waiting until nothing is under way")
        quiet, said = 0, 0.0
        while quiet < 3:
            if time.time() > until:
                return False
            for one in (sending, killing):
                if one.done():
                    one.result()  # raises what ended it
            depths = self._stores.depths()
            left = {name: depths[name].total for name in _QUEUES.values()}
            receipts = self._stores.http.get(f"{self._local['page']}/health").json()["receipts"]
            left["receipts"] = receipts["waiting"]
            all_in = sending.done() and killing.done()
            quiet = quiet + 1 if all_in and not any(left.values()) else 0
            if time.time() - said > _SAID_EVERY and not quiet:
                said = time.time()
                unknown = sum(1 for _ in self._stores.unknown())
                looked = " (looked for after 1, 3, 8 and 23 minutes)" if unknown else ""
                self._say("waiting", f"for {_listed(left)}; {unknown} unknown sends{looked}")
            time.sleep(0.5)
        return True

    def _report(self, done: bool) -> Report:
        seconds = time.time() - self._began
        count = burst.take(self._stores, self._messages, self._began)
        count.sending_seconds = self._plan.seconds
        count.drain_seconds = round(seconds - self._plan.seconds, 1)
        count.webhooks_per_second = round(self._traffic.requests / self._plan.seconds, 1)
        count.messages_per_second = round(len(self._messages) / seconds, 1)
        unsettled = sum(1 for _ in self._stores.unknown())
        unknown = {
            line["id"]: line["reason"]
            for line in self._metrics.since(self._began)
            if "UnknownSends" in line
        }
        settled = {
            line["id"]: line["reason"]
            for line in self._metrics.since(self._began)
            if "Settled" in line and line["id"] in unknown
        }
        how = Counter(settled.values())
        # A receipt's own line says nothing of what it settled.
        by_receipt = len(unknown) - len(settled) - unsettled
        if by_receipt > 0:
            how["receipt"] = by_receipt
        return Report(
            seed=self._plan.seed,
            count=count,
            requests=self._traffic.requests,
            seconds=round(seconds, 1),
            done=done,
            unsettled=unsettled,
            timeline=self._timeline,
            faults=self._faults,
            killed=self._killed,
            unknown=dict(Counter(unknown.values())),
            settled=dict(how),
            deferrals=self._metrics.sums("Deferrals", "reason", self._began),
        )

    def _until(self, at: float) -> None:
        """Waits until so many seconds after the start, or until the run is stopped."""
        while not self._traffic.stopped and (left := self._began + at - time.time()) > 0:
            time.sleep(min(left, 0.2))

    def _say(self, part: str, what: str) -> None:
        said = Said(round(time.time() - self._began, 1), part, what)
        self._timeline.append(said)
        minutes, seconds = divmod(int(said.at), 60)
        clock = datetime.now().strftime("%H:%M:%S")  # noqa: DTZ005 -- the reader's own clock
        delivered = f"{self._traffic.delivered:>6,}"
        self._console.print(
            f"[dim]{clock}[/dim] {minutes:>3}:{seconds:02d} {delivered}  {part:<10} {what}",
            soft_wrap=True,
        )


def show(console: Console, report: Report) -> None:
    """What was done to the system, and what became of the messages."""
    table = Table(title="What was done to the system", title_justify="left", box=None)
    for heading in ("what", "how often", "seconds", "seen"):
        table.add_column(
            heading, justify="right" if heading in ("how often", "seconds") else "left"
        )
    for worker in kills.COMMANDS:
        times = [one for one in report.killed if one.worker == worker]
        in_hand = ", ".join(str(one.in_hand) for one in times)
        back = ", ".join("never" if t.back_after is None else f"{t.back_after}" for t in times)
        table.add_row(
            f"{worker} killed", str(len(times)), back, f"under way: {in_hand}" if times else ""
        )
    for fault in report.faults:
        what, lasted = f"{fault['service']} {fault['what']}", f"{fault['seconds']:g}"
        table.add_row(what, "1", lasted, _listed(fault["seen"]))
    console.print(table)
    count = report.count
    unknown = sum(report.unknown.values())
    console.print(
        f"{count.duplicates:,} webhooks came twice; {report.requests:,} requests to the door\n"
        f"{unknown:,} sends of unknown outcome ({_listed(report.unknown)}), settled by "
        f"{_listed(report.settled)}; {report.unsettled:,} not settled\n"
        f"{sum(report.deferrals.values()):,} deferrals ({_listed(report.deferrals)})",
        soft_wrap=True,
    )
    burst.show(console, count)
    if not report.done:
        console.print("[bold red]Time was up before nothing was under way (--within).[/bold red]")


def _listed(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {what}" for what, n in numbers.items() if n)
