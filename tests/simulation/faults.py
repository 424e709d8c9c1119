"""What goes wrong, where and how often: drawn by the seed, counted by call site.

Each seed gives each kind of fault its own probability, often none, so that some seeds are calm but
for one kind and some are a storm. Besides, a few pairs of call site and fault are *hot* in a seed:
there the fault is likely; and at call sites that few seeds come to most calls are struck, by the
kinds in turn, which is how the rarest line of the code gets its share. And a third of the seeds
have a *focus*: one part of the code where several kinds are likely at once, since some mishaps only
show together.
"""

from __future__ import annotations

import sys
import zlib
from collections import Counter
from dataclasses import dataclass
from functools import cache
from types import FrameType

from tests.simulation.world import World

STORE_FAULTS = ("killed before", "killed after", "response lost", "throttled")
HTTP_FAULTS = (
    "killed before",
    "killed after",
    "response lost",
    "throttled",
    "no connection",
    "lost on the way",
    "arrives late",
    "refused with 5xx",
    "accepted with 5xx",
    "answer broken",
)
# Beyond the four whose coverage is counted.
STORE_EXTRAS = ("server error", "slow", "arrives late", "partly done", "frozen")

# Sites that few seeds come to: there most calls are struck, by the kinds that are counted in turn.
_RARE = (
    "> vault.refreshed",
    "batches._delete",
    "> archive.quarantine",
    "loops._hold",
    "loops._forget",
    "ledger.failed",
    "ledger.store_words",
    "consent.opted_out_by",
    "breaker._write",
    "receiver: ledger.find",
    "processing: telnyx.send",
    "processing: consent.opted_out",
    "sender: batches._dead_letter",
    "person: settling.resume",
    "eraser: consent.",
    "eraser: ledger.",
    "erasure._in_payload",
    "sender: pacing._update",
    "ledger.wait",
    "events._announce",
    "breaker.resume_sending",
    "attachments._look_again",
    "attachments._fetched",
    "breaker.paused",
    "reconciliation._change",
    "reconciliation._take_out",
    "reconciliation._judge",
    "reconciliation._archive_days",
    "reconciliation._read_pictures",
    "dropper: dropping.work",
    "dropper: dropping._lost_of_a_message",
    "dropper: consent.",
    "dropper: ledger.",
    "replayer: replay._replays_of",
    "replayer: replay._send_some",
    "person: breaker.pause",
    "processing._store_again",
    "processing: ledger._settle",
    "redriver: redriving._moved",
    "redriver: letters.work_through",
)
_RATE_RARE = 0.8
_MOST_RARE = 5  # so often in a seed
_SPARED = 8  # one of so many seeds is spared it
_HOT = 14  # one of so many pairs of site and fault is hot in a seed
_MOST_HOT = 2  # so often in a seed, so that a hot pair does not stop everything

# Parts of the code by what their call sites are called.
_FOCUSES = (
    "ledger.",
    "ledger.claim",
    "api.",
    "api.",
    "consent.",
    "consent.",
    "batches.",
    "settling.",
    "receipts.",
    "sending.",
    "receiving.",
    "processing.",
    "vault.",
    "person",
    "breaker.",
    "loops.",
    "replies.",
    "lookups.",
)
_MOST_IN_FOCUS = 12  # faults, so that what is tried again comes through

# Frames that say how a call is made, and not what for.
_HOW = frozenset({"table", "queues", "archive", "vault", "runtime", "base"})
_HELPERS = frozenset(
    {"_move", "_record", "_replace", "<listcomp>", "<setcomp>", "<lambda>", "<genexpr>"}
)


@dataclass(slots=True)
class _Chance:
    """How likely one kind of fault is at one call site: always, and where it is hot, for as long
    as it is so."""

    kind: str
    rate: float
    heat: float
    hot_left: int
    in_focus: bool


class Faults:
    """The faults of one seed."""

    def __init__(self, world: World, *, none: bool = False) -> None:
        random = world.random
        self._world = world
        self.calm_at = 0.0 if none else float("inf")
        self.still: set[str] = set()  # the roles that are struck even then
        # How likely a fault of each kind is at each call of a function.
        storm = random.choice((0.0, 0.3, 1.0, 1.0))
        self._rates = {
            kind: storm * 10 ** -random.uniform(1.2, 3.0) if random.random() < 0.55 else 0.0
            for kind in dict.fromkeys((*STORE_FAULTS, *STORE_EXTRAS, *HTTP_FAULTS))
        }
        self._focus: tuple[str, ...] = ()
        if random.random() < 0.35:
            self._focus = (random.choice(_FOCUSES),)
        kinds = list(self._rates)
        self._focused = frozenset(random.sample(kinds, random.choice((1, 2, 3, 6))))
        self._focus_rate = random.choice((0.1, 0.2, 0.4))
        self._focus_left = _MOST_IN_FOCUS
        self._lasting = random.choice((0.2, 0.5, 0.9))
        # By site, what may strike there, each kind once: `_chances`.
        self._known: dict[tuple[str, tuple[str, ...]], list[_Chance]] = {}
        self._rare: Counter[str] = Counter()  # what struck in turn, by site
        self.hits: Counter[tuple[str, str]] = Counter()
        self.sites: Counter[str] = Counter()

    def focus(self, where: tuple[str, ...], kinds: frozenset[str], rate: float) -> None:
        """Strikes where a call site has one of these in its name, instead of at random."""
        self._focus, self._focused, self._focus_rate = where, kinds, rate
        self._focus_left *= 2
        self._known.clear()

    def soften(self) -> None:
        """Strikes at random a tenth as often."""
        self._rates = {kind: rate / 10 for kind, rate in self._rates.items()}

    @property
    def calm(self) -> bool:
        """Towards the end nothing goes wrong any more, so that the system can come to rest."""
        return self._world.now >= self.calm_at

    def draw(self, site: str, kinds: tuple[str, ...]) -> str:
        """What goes wrong at this call, or ""."""
        self.sites[site] += 1
        late = self.calm
        if late and site.partition(":")[0] not in self.still:
            return ""
        if _is_rare(site) and (kind := self._in_turn(site)):
            self.hits[site, kind] += 1
            return kind
        chances = self._known.get((site, kinds))
        if chances is None:
            chances = self._known[site, kinds] = self._chances(site, kinds)
        for chance in chances:
            in_focus = chance.in_focus and self._focus_left > 0
            rate = max(
                0.0 if late else chance.rate,
                chance.heat if chance.hot_left > 0 else 0.0,
                self._focus_rate if in_focus else 0.0,
            )
            if rate and self._world.random.random() < rate:
                self.hits[site, chance.kind] += 1
                chance.hot_left -= 1
                self._focus_left -= in_focus
                return chance.kind
        return ""

    def lasting(self) -> bool:
        """Whether a fault outlasts the client's own repetitions."""
        return self._world.chance(self._lasting)

    def _chances(self, site: str, kinds: tuple[str, ...]) -> list[_Chance]:
        """Of each kind that may strike here at all."""
        focus = any(part in site for part in self._focus)
        focused = self._focused if focus else frozenset()
        every = [
            _Chance(kind, self._rates[kind], *self._heat(site, kind), kind in focused)
            for kind in kinds
        ]
        return [one for one in every if one.rate or one.heat or one.in_focus]

    def _in_turn(self, site: str) -> str:
        """What strikes at a rare site, or "": so each kind does equally often there, also the one
        that ends what would have called again."""
        one_of, first = divmod(zlib.crc32(f"{self._world.seed}|{site}".encode()), 4)
        struck = self._rare[site]
        if struck >= _MOST_RARE or one_of % _SPARED == 0:
            return ""
        if not self._world.chance(_RATE_RARE):
            return ""
        self._rare[site] += 1
        return STORE_FAULTS[(first + struck) % 4]

    def _heat(self, site: str, kind: str) -> tuple[float, int]:
        """How likely the fault is where it is hot, 0 elsewhere; and how often it is."""
        mark = zlib.crc32(f"{self._world.seed}|{site}|{kind}".encode())
        return (0.3, _MOST_HOT) if mark % _HOT == 0 else (0.0, 0)


def site_of(role: str) -> str:
    """The call site: the function of ours that this call is made for."""
    frame: FrameType | None = sys._getframe(2)
    how, store = "", "?"
    while frame is not None:
        module: str = frame.f_globals["__name__"]
        if module == "spillway.stores":
            store = f"stores.{frame.f_code.co_name}"  # by a thread that does nothing else
        if module.startswith(("chalicelib.", "spillway.operate.")):
            name = frame.f_code.co_name
            where = module.rpartition(".")[2]
            if where not in _HOW and name not in _HELPERS:
                return f"{role}: {where}.{name}{how}"
            if where in ("vault", "archive") or name == "url":
                how = f" > {where}.{name}"
        frame = frame.f_back
    return f"{role}: {store}"


@cache
def _is_rare(site: str) -> bool:
    return any(rare in site for rare in _RARE)
