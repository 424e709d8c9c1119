"""One seed, from its first text until everything is at rest; and many of them, on all cores.

python -m tests.simulation.run --seeds 2000             the seeds 0 to 1999
python -m tests.simulation.run --replay 17              one seed, with its trace
"""

from __future__ import annotations

import gc
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from chalicelib import observing
from chalicelib.batches import BatchFailed
from chalicelib.processing import Processing
from chalicelib.receiving import Receiver
from chalicelib.replies import Replies
from chalicelib.sending import Sender
from tests.fakes import SECRETS, settings
from tests.signing import TelnyxKey
from tests.simulation import hearing, plots, traffic
from tests.simulation.causes import Causes
from tests.simulation.faults import Faults
from tests.simulation.functions import Function, Invocation, Mapping
from tests.simulation.invariants import Invariants
from tests.simulation.outside import (
    GROUP,
    HELP_TEXT,
    HOURS,
    LONG,
    NUMBERS,
    PICTURES,
    PLAIN,
    SILENT,
    STOP,
    STOP_TEXT,
    URL,
    Door,
    Outside,
    OwnCodeBroke,
    may_happen,
)
from tests.simulation.person import Operator
from tests.simulation.runtime import Cloud, SimulatedRuntime
from tests.simulation.stores.dynamodb import DynamoDb
from tests.simulation.stores.s3 import S3
from tests.simulation.stores.secrets import Secrets
from tests.simulation.stores.sqs import Sqs
from tests.simulation.story import PEOPLE, Story, calls
from tests.simulation.world import START, NeverRests, Task, Violation, World

QUEUES = {
    "processing": False,
    "outbound.fifo": True,
    "processing-dlq": False,
    "outbound-dlq.fifo": True,
}
FOURTEEN_DAYS = 14 * 86_400
_ERASED = 0.4  # how likely somebody wants to be forgotten
_RECONCILED = 0.8  # how likely somebody holds the stores against each other
_REPLAYED = 0.4  # how likely texts are processed again
_DROPPED = 0.4  # how likely dead letters are dropped
_LOST = 0.2  # how likely somebody loses a message then, soon after it came
_DELETED = 0.4  # how likely somebody deletes a text from the table then
_ILLUSTRATED = 0.4  # how likely people send pictures
_PUT_ASIDE = 0.17  # how likely dead letters are what a story is about


@dataclass
class Outcome:
    """What one seed showed. `hits`: how often each fault struck at each call site."""

    seed: int
    violations: list[Violation] = field(default_factory=list)
    hits: Counter[tuple[str, str]] = field(default_factory=Counter)
    sites: Counter[str] = field(default_factory=Counter)
    steps: int = 0
    world: World | None = None
    names: dict[str, str] = field(default_factory=dict)


def collect_rarely() -> None:
    """What is imported stays for good, and a seed makes a great deal that is soon gone: a tenth of
    the time went into looking for it. For a process that plays many of them."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def run_seed(seed: int) -> Outcome:
    """Plays the seed to its end, or to its first violation."""
    outcome = Outcome(seed)
    with _quiet() as lines:
        simulation = Simulation(seed)
        world = simulation.world
        lines.world = world
        lines.hear = simulation.causes.on_line
        try:
            simulation.run()
        except Violation as violation:
            outcome.violations.append(violation)
        except NeverRests as never:
            outcome.violations.append(Violation("the system comes to rest", str(never)))
        except AssertionError as refused:
            outcome.violations.append(Violation("a good request is taken", str(refused)))
        finally:
            world.close()
        for surprise in simulation.surprises():
            outcome.violations.append(
                Violation("no bug", f"{type(surprise).__name__} left a function: {surprise!r}")
            )
        for event in lines.bugs[:1]:
            outcome.violations.append(Violation("no bug", event))
        outcome.hits = simulation.cloud.faults.hits
        outcome.sites = simulation.cloud.faults.sites
        outcome.steps = world.steps
        outcome.world = world
        outcome.names = simulation.names()
    return outcome


class Simulation:
    """A world with all of Spillway in it."""

    def __init__(self, seed: int) -> None:
        self.world = world = World(seed)
        calm = world.chance(0.1)
        faults = Faults(world, none=calm)
        story = plots.write(world.random, START, calm=calm)
        # (Drawn apart, so that no other seed is another story for it.)
        redriving = Random(f"{seed} redrives")
        if not calm and redriving.random() < _PUT_ASIDE:
            story = plots.put_aside(story, redriving, START)
        self.story = story
        rotations = [*story.rotations, *_show(story, Random(f"{seed} shows"))]
        reorder = world.random.choice((0.0, 0.0, 0.5))
        self.sqs = Sqs(lambda: world.now, world.random, reorder=reorder)
        for name, fifo in QUEUES.items():
            self.sqs.add(
                f"spillway-test-{name}",
                fifo=fifo,
                visibility=story.visibility,
                retention=FOURTEEN_DAYS,
            )
        secrets = {**SECRETS, "telnyx": {"api_key": "key", "public_keys": [TelnyxKey.public]}}
        secrets["events"] = hearing.SECRET
        self._known_settings: dict[tuple[str, ...], Any] = {}
        self.heard = hearing.settings(seed)
        self.rules = traffic.rules(seed, START, story.end, "" if calm else story.held_back)
        stores = {
            "sqs": self.sqs,
            "dynamodb": DynamoDb(lambda: world.now),
            "s3": S3(lambda: world.now),
            "events": hearing.Bus(Random(f"{seed} has a bus"), 0.0 if calm else 0.02),
            "secretsmanager": Secrets({f"spillway/test/{n}": s for n, s in secrets.items()}),
        }
        self.cloud = Cloud(world, faults, stores)
        self.cloud.outages = dict(story.outages)
        self.cloud.frozen = story.frozen
        if story.mild:
            faults.soften()
        if story.focus and not calm:
            faults.focus(*story.focus)
        self.cloud.slowness = dict(story.slowness)
        receiver = Function(self.cloud, "receiver", self._receiver, 10.0)
        processing_ = Function(self.cloud, "processing", self._processing, 60.0, story.overtime)
        sender = Function(self.cloud, "sender", self._sender, 60.0, story.overtime)
        self.door = Door(self.cloud, receiver)
        self.outside = Outside(self.cloud, self.door)
        self.hearing = hearing.Hearing(self.cloud, self.outside)
        self.invariants = Invariants(self.cloud, self.outside, "default")
        self.mappings = {
            "processing": self._mapping("processing", processing_, most=2),
            "outbound.fifo": self._mapping("outbound.fifo", sender, most=story.senders),
        }
        may_lack = bool(story.without or story.secret_lost)
        self.causes = Causes(self.cloud, self.outside, calm=story.calm, may_lack=may_lack)
        self.traffic = traffic.Traffic(self.cloud, self.outside, self.rules)
        self.causes.held_back = self.rules
        self.causes.reply_max_age = story.reply_max_age
        self.invariants.held_back = self.rules
        self.invariants.hearing = self.hearing if self.heard else None
        self.invariants.loop_limit = story.loop_limit
        self.invariants.reply_max_age = story.reply_max_age
        self.invariants.lookup_max_age = story.lookup_max_age
        self.invariants.lookups = story.lookups
        self.invariants.visibility = story.visibility
        self.invariants.listed = self.causes.listed
        self.causes.resumed = self.invariants.resumed
        self.invariants.on_partly_sent = self._ask
        self.cloud.watchers.append(self._wake)
        self.operator = Operator(
            self.cloud, self.outside, self.mappings, self.invariants.allow, self.invariants.resumed
        )
        self.operator.says = story.says
        self.operator.settings = self._settings
        self.invariants.erased = self.operator.erased
        self.operator.on_good = self.invariants.nothing_is_left_of_before
        self.operator.on_reconciled = self.invariants.agree
        self.invariants.dropped = self.operator.dropped
        self.operator.on_lost = self.invariants.lose
        # (Drawn apart, so that no other seed is another story for it.)
        erasing = Random(f"{seed} erases")
        self.erases = ""
        stops = [text.person for text in story.texts if text.poison and text.kind == STOP]
        if stops or erasing.random() < _ERASED or story.erased_at:
            self.erases = (stops or [erasing.choice(PEOPLE[:2])])[0]
            after = (story.end - START) * erasing.random() * erasing.choice((1.0, 0.2))
            if story.erased_at:
                self.erases, after = PEOPLE[0], story.erased_at - START
            world.spawn(lambda: self.operator.erase(self.erases), after=after)
        reconciling = Random(f"{seed} reconciles")
        self.reconciles = reconciling.random() < _RECONCILED
        if self.reconciles:
            after = (story.end - START) * reconciling.random()
            world.spawn(self.operator.reconcile, after=after)
            # (Whose line no item names, no erasure finds: docs/RETENTION.md.)
            if not self.erases and reconciling.random() < _DELETED:
                after = (story.end - START) * reconciling.random()
                world.spawn(self.operator.lose_item, after=after)
            for text in story.texts:
                if reconciling.random() < _LOST:
                    after = text.at - START + 5 * reconciling.random() ** 2
                    world.spawn(self.operator.lose, after=after)
        replaying = Random(f"{seed} replays")
        self.replays = not calm and replaying.random() < _REPLAYED
        if self.replays:
            for _ in range(replaying.choice((1, 3))):
                after = (story.end - START) * replaying.random()
                world.spawn(self.operator.replay, after=after)
        dropping = Random(f"{seed} drops")
        about_letters = story.mended_at < float("inf")
        if not calm and (dropping.random() < _DROPPED or about_letters):
            whole = story.end - START
            early = [whole * dropping.random() for _ in range(4 if about_letters else 1)]
            for after in (*early, whole + 5 * HOURS):
                world.spawn(self.operator.drop, after=after)
        # (After the end, too, when they meet what nobody else does: dead letters.)
        faults.still = set() if calm else {"eraser", "reconciler", "replayer", "dropper"}
        for call in calls(Random(f"{seed} calls"), story):
            by = self.operator.state if call.by_hand else self.outside.state
            world.spawn(lambda call=call, by=by: by(call), after=call.handed_in - START)  # type: ignore[misc]
        for text in story.texts:
            world.spawn(lambda text=text: self.outside.write(text), after=text.at - START)  # type: ignore[misc]
        self.outside.robot = story.robot
        self.outside.receipts_from = story.receipts_from
        self.outside.receipts_after = story.receipts_after
        self.outside.receipts_fail = story.receipts_fail
        self.outside.mismatches = story.mismatches
        # (Two copies at once leave lines that no item names, and items of the other copy.)
        self.outside.doubles = 0.5 if self.reconciles else story.doubles
        if story.secret_lost:
            provider, at = story.secret_lost
            world.spawn(lambda: self.outside.lose_secret(provider), after=at - START)
        for at in story.without[1:] if story.without else ():
            for function in (processing_, sender):
                world.spawn(function.renew, after=at - START)
        for at in rotations:
            world.spawn(self.outside.rotate, after=at - START)
        for at in story.garbage:
            world.spawn(self.operator.litter, after=at - START)
        for at in story.knocks:
            world.spawn(self.outside.knock, after=at - START)
        self.invariants.resend = story.resend
        self.invariants.answers_stop = story.answers_stop
        self.invariants.on_unknown = self._decide_soon
        for at in story.decisions:
            world.spawn(self.operator.decide, after=at - START)
        if story.mended_at < float("inf"):
            world.spawn(self.outside.mend, after=story.mended_at - START)
        for at in story.redrives:
            world.spawn(self.operator.redrive, after=max(0.0, at - START))

    def run(self) -> None:
        """Until rest, and looks whether all is well then."""
        if not self.story.calm:
            self.cloud.faults.calm_at = self.story.end
        world = self.world
        world.run(self.story.end + 30 * HOURS)
        self.cloud.faults.calm_at = world.now
        self.cloud.outages.clear()
        self.cloud.slowness.clear()
        if self.replays:
            self._processed_again()
        if self.erases:
            self._erased_for_good(self.erases)
        if self.reconciles:
            self._agreed()
        self.invariants.at_rest(self.mappings, self.operator.littered)
        world.spawn(lambda: self.invariants.asked_for(self.door))
        world.run(world.now + 10 * HOURS)

    def _processed_again(self) -> None:
        """When nobody does anything any more, and no provider has any picture any more, texts are
        processed again: each is stored anew, and no picture is lost by it."""
        world = self.world
        self.outside.pictures_gone = True
        world.spawn(self.operator.replay)
        world.run(world.now + 20 * HOURS)
        self.cloud.faults.still.discard("replayer")
        last = world.spawn(lambda: self.operator.replay(until_good=True))
        world.run(world.now + 20 * HOURS)
        self.invariants.replayed(last.result)

    def _erased_for_good(self, person: str) -> None:
        """When nobody does anything any more, nothing is left of somebody; and nothing comes of
        it when the provider tells of their texts once more."""
        world, said = self.world, len(self.outside.accepted)
        world.spawn(lambda: self.operator.erase(person))
        world.run(world.now + 10 * HOURS)
        self.cloud.faults.still.discard("eraser")
        world.spawn(lambda: self.operator.erase(person, until_good=True))
        world.run(world.now + 10 * HOURS)
        self.invariants.nothing_is_left(person)
        for text in self.invariants.answered(person):
            world.spawn(lambda text=text: self.outside._tell(text))  # type: ignore[misc]
        world.run(world.now + 10 * HOURS)
        self.invariants.nothing_is_left(person)
        if len(self.outside.accepted) != said:
            raise Violation("what is erased is gone", f"{person} is answered again")

    def _agreed(self) -> None:
        """When nobody does anything any more, the stores agree, or are brought to; and nothing of
        somebody who was erased comes back by it."""
        world = self.world
        # (Many of its calls are struck, and of some there are few.)
        for _ in range(5):
            world.spawn(self.operator.reconcile)
            world.run(world.now + 10 * HOURS)
        self.cloud.faults.still.clear()
        world.spawn(lambda: self.operator.reconcile(until_good=True))
        world.run(world.now + 10 * HOURS)
        if self.erases:
            self.invariants.nothing_is_left(self.erases)

    def _decide_soon(self) -> None:
        if self.world.chance(self.story.prompt):
            # At once, or when somebody else looks, too; and often two of them.
            after = self.story.prompt_after * self.world.random.random()
            after = self.world.random.choice((after, after, 60.1))
            for _ in range(self.world.random.choice((1, 2, 2))):
                self.world.spawn(self.operator.decide, after=after)

    def _ask(self, id_: str) -> None:
        """Somebody wants to know what became of a message that is on its way just now."""

        def ask() -> None:
            began = self.world.now
            status, body = self.door.post(f"/messages/{id_}", {})
            said = json.loads(body).get("state") if status == 200 else ""
            if status == 200 and said not in self.invariants.was(id_, began):
                raise Violation("a question is answered", f"{said}, while on its way", (id_,))

        if self.world.chance(0.3):
            self.world.spawn(ask)

    def surprises(self) -> list[BaseException]:
        return [
            *self.door.surprises,
            *(error for mapping in self.mappings.values() for error in mapping.surprises),
        ]

    def names(self) -> dict[str, str]:
        """What the hashes stand for, to make a trace readable."""
        found: dict[str, str] = {}
        for text in self.outside.texts.values():
            found[text.id.message] = text.name
            found.setdefault(text.id.conversation, f"c{len(found)}")
        return found

    def _mapping(self, queue: str, function: Function, most: int) -> Mapping:
        mapping = Mapping(
            self.cloud,
            self.sqs,
            f"spillway-test-{queue}",
            function,
            batch=self.story.batch,
            most=most,
            reporting=self.story.reporting,
            trouble=self.story.trouble,
            groups=self.story.groups,
            visibility=self.story.visibility,
            soon=self.story.soon,
        )
        # (Own code that fails each time makes its texts wait, and so does a rate.)
        unhindered = self.rules == traffic.Rules() and not self.story.own_code
        mapping.calm = self.story.calm and unhindered
        mapping.expected = lambda invocation: _expected(invocation, self.story.reporting)
        return mapping

    def _wake(self, task: Any, service: str, operation: str, arguments: Any, answer: Any) -> None:
        if service == "sqs":
            for mapping in self.mappings.values():
                mapping.wake()

    def _settings(self, function: str) -> Any:
        providers = [name for name in NUMBERS.values() if not self._lacks(function, name)]
        known = (function, *providers)
        if known not in self._known_settings:
            self._known_settings[known] = self._read_settings(function, providers)
        return self._known_settings[known]

    def _read_settings(self, function: str, providers: list[str]) -> Any:
        urls = '{"line": "https://lookups.example.com/line"}' if self.story.lookups else "{}"
        numbers = [number for number, name in NUMBERS.items() if name in providers]
        return settings(
            function,
            PROVIDERS=",".join(providers),
            NUMBERS=",".join(f"{number}={NUMBERS[number]}" for number in numbers),
            REPORT_BATCH_ITEM_FAILURES="true" if self.story.reporting else "false",
            REPLY_API_URL="https://replies.example.com/",
            LOOKUP_URLS=urls,
            PUBLIC_URL=URL if self.story.public_url else "",
            HELP_TEXT=HELP_TEXT,
            STOP_TEXT=STOP_TEXT,
            UNKNOWN_SENDS="resend" if self.story.resend else "hold",
            LOOP_LIMIT=str(self.story.loop_limit),
            REPLY_MAX_AGE=str(self.story.reply_max_age),
            LOOKUP_MAX_AGE=str(self.story.lookup_max_age),
            **self.heard,
            **self.rules.settings(numbers),
        )

    def _lacks(self, function: str, provider: str) -> bool:
        """Whether a function's settings do not have the provider just now."""
        if function == "receiver" or self.story.without is None:
            return False
        name, since, until = self.story.without
        return name == provider and since <= self.world.now < until

    def _receiver(self, runtime: SimulatedRuntime) -> Receiver:
        return Receiver(runtime, self._settings("receiver"))

    def _processing(self, runtime: SimulatedRuntime) -> Processing:
        processing = Processing(runtime, self._settings("processing"))
        processing._settling._quiet_until = self.rules.quiet_until
        return processing

    def _sender(self, runtime: SimulatedRuntime) -> Sender:
        sender = Sender(runtime, self._settings("sender"))
        sender._quiet_until = self.rules.quiet_until
        for provider in sender._providers.values():
            # Whether a provider confirms STOP is a matter of its account, too.
            provider.__dict__["answers_stop"] = self.story.answers_stop
        if self.story.own_code:
            own = self.outside.own_reply
            sender._replies = Replies(runtime, url="", timeout=10.0, own=own)
        return sender


def _show(story: Story, random: Random) -> list[float]:
    """Some texts come with a picture. When Twilio's token is changed, in some stories, just before
    two of them are fetched. (Drawn apart, so that no other seed is another story for it.)"""
    if random.random() > _ILLUSTRATED:
        return []
    for text in story.texts:
        if text.kind in (PLAIN, LONG, SILENT, STOP, GROUP) and random.random() < 0.6:
            text.picture = random.choice(("there", "there", "redirected", *PICTURES))
    shown = [text.at for text in story.texts if text.picture and text.provider == "twilio"]
    if story.calm or story.rotations:
        return []
    return [max(START, at - 3 * random.random() ** 2) for at in shown[-2:]]


def _expected(invocation: Invocation, reporting: bool) -> bool:
    """A start may fail; and without reports an error is how a batch says that not all is done."""
    error = invocation.error
    if error is None or (invocation.started and reporting):
        return False
    return isinstance(error, BatchFailed) or may_happen(error)


class _quiet:
    """Log lines go into the trace, and those of unexpected errors are bugs."""

    def __init__(self) -> None:
        self.world: World | None = None
        self.hear: Callable[[Task, dict[str, Any]], None] = lambda *_: None
        self.bugs: list[str] = []

    def __enter__(self) -> _quiet:
        self._write = observing._write
        observing._write = self._line
        return self

    def __exit__(self, *_: object) -> None:
        observing._write = self._write

    def _line(self, line: dict[str, Any]) -> None:
        event = line.get("event")
        if event is None:
            return
        if self.world is not None:
            task = self.world.current()
            who = task.process.name
            said = " ".join(
                str(line[n]) for n in ("reason", "code", "seconds", "error") if n in line
            )
            self.world.note(who, f"log {event} {line.get('id', '')} {said}")
            self.hear(task, line)
        stores = ("ClientError", "ReadTimeoutError", "ConnectTimeoutError", "QueueRefused")
        failed = event in (
            "could_not_defer",
            "visibility_not_set",
            "not_taken",
            "depth_not_read",
            "not_deleted",
            "suspects_not_read",
            "no_slots_taken",
            "slots_not_given_back",
        )
        bug = failed and line.get("error") not in (*stores, "SecretError", "NotReady")
        bug = bug or event == "unexpected_error"
        if bug and line.get("error") != OwnCodeBroke.__name__:
            self.bugs.append(f"unexpected error {line.get('error')} at {line.get('where')}")


if __name__ == "__main__":
    from tests.simulation.command import main

    sys.exit(main())
