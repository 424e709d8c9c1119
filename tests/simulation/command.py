"""`make simulate`: any number of seeds on all cores, with progress, and what they did not reach."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tests.simulation import trace
from tests.simulation.faults import STORE_FAULTS
from tests.simulation.run import Outcome, collect_rarely, run_seed

_CHUNK = 10
_LONG = 5000  # seeds
_SHOWN = 5  # seeds a broken promise


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 where no seed broke a promise, 1 where one did."""
    options = _options().parse_args(arguments)
    console = Console(highlight=False)
    if options.replay is not None:
        return _replay(console, options.replay, options.everything)
    first, count = options.start, options.seeds
    collect_rarely()
    began = time.monotonic()
    hits: Counter[tuple[str, str]] = Counter()
    sites: Counter[str] = Counter()
    broken: list[tuple[int, str, str]] = []
    steps = 0
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        bar = progress.add_task("seeds", total=count)
        for done, some in enumerate(_outcomes(first, count, options.jobs), start=1):
            hits += some.hits
            sites += some.sites
            steps += some.steps
            broken += some.broken
            for seed, invariant, text in some.broken:
                console.print(f"seed {seed}: {invariant}: {text}", markup=False, soft_wrap=True)
            progress.update(bar, advance=some.count, description=f"seeds, {len(broken)} violations")
            if not console.is_terminal and done % 20 == 0:
                console.print(f"{done * _CHUNK} seeds, {len(broken)} violations")
    for invariant, number in Counter(invariant for _, invariant, _ in broken).most_common():
        console.print(f"{number:6}  {invariant}", markup=False)
        for seed, _, text in sorted(one for one in broken if one[1] == invariant)[:_SHOWN]:
            console.print(f"        make simulate REPLAY={seed}   {text}", soft_wrap=True)
    seconds = time.monotonic() - began
    console.print(
        f"{count:,} seeds ({first} to {first + count - 1}), {steps:,} steps,"
        f" {sum(hits.values()):,} faults, {len(broken)} violations,"
        f" {seconds:.0f} s ({count / seconds:.1f} seeds a second)",
        soft_wrap=True,
    )
    least = options.least or (100 if count >= _LONG else 1)
    _coverage(console, hits, sites, least, options.sites)
    return 1 if broken else 0


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--from", dest="start", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument(
        "--least",
        type=int,
        help="list the pairs of call site and fault that were hit less often (100 in a long run)",
    )
    parser.add_argument("--sites", action="store_true", help="print every call site's hits")
    parser.add_argument("--replay", type=int, help="one seed, with the trace of its violation")
    parser.add_argument("--everything", action="store_true", help="... with its whole trace")
    return parser


def _replay(console: Console, seed: int, everything: bool) -> int:
    outcome = run_seed(seed)
    for violation in outcome.violations:
        console.print(f"seed {seed}: {violation}", markup=False, soft_wrap=True)
        lines = trace.told(outcome, violation, everything=everything)
        console.print(lines, markup=False, soft_wrap=True)
    if not outcome.violations:
        console.print(f"seed {seed}: no violation in {outcome.steps:,} steps")
    return 1 if outcome.violations else 0


class _Chunk:
    """What several seeds showed, small enough to travel between processes."""

    def __init__(self, outcomes: list[Outcome]) -> None:
        self.count = len(outcomes)
        self.hits: Counter[tuple[str, str]] = Counter()
        self.sites: Counter[str] = Counter()
        self.steps = sum(one.steps for one in outcomes)
        self.broken = [
            (one.seed, violation.invariant, violation.text)
            for one in outcomes
            for violation in one.violations[:1]
        ]
        for one in outcomes:
            self.hits += one.hits
            self.sites += one.sites


def _play(seeds: range) -> _Chunk:
    return _Chunk([run_seed(seed) for seed in seeds])


def _outcomes(first: int, count: int, jobs: int) -> Iterator[_Chunk]:
    ends = first + count
    chunks = [range(at, min(at + _CHUNK, ends)) for at in range(first, ends, _CHUNK)]
    if jobs == 1:
        yield from map(_play, chunks)
        return
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        yield from pool.imap_unordered(_play, chunks)


def _coverage(
    console: Console,
    hits: Counter[tuple[str, str]],
    sites: Counter[str],
    least: int,
    every: bool,
) -> None:
    """Which faults did not strike often enough, where."""
    few = [
        (hits[site, fault], site, fault)
        for site in sorted(sites)
        for fault in STORE_FAULTS
        if hits[site, fault] < least
    ]
    pairs = len(sites) * len(STORE_FAULTS)
    console.print(
        f"{pairs - len(few)} of {pairs} pairs of call site and fault"
        f" ({len(sites)} sites) were hit {least:,} times or more",
        soft_wrap=True,
    )
    for number, site, fault in sorted(few):
        line = f"{number:6}  {site}, {fault} (called {sites[site]:,} times)"
        console.print(line, markup=False, soft_wrap=True)
    if every:
        for site in sorted(sites):
            struck = ", ".join(f"{f} {hits[site, f]}" for f in STORE_FAULTS)
            console.print(f"{sites[site]:8,}  {site}: {struck}", markup=False, soft_wrap=True)
