"""What happens in one seed: who writes what and when, what is out of order, and for how long."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

from tests.simulation import outside
from tests.simulation.outside import HOURS, NUMBERS, Call, Text
from tests.simulation.world import START

PEOPLE = ("+14155550100", "+14155550101", "+14155550102")
WORDS = {
    outside.STOP: ("STOP", "stop", "Unsubscribe", "opt-out", "please stop texting me"),
    outside.START_AGAIN: ("START", "unstop"),
    outside.HELP: ("HELP",),
    outside.YES: ("YES", "yes!"),
    outside.EMPTY: (" ",),
    outside.HUGE: ("heron " * 3400,),
}
# What holds sending back: what the seed says, mostly the rates of our numbers, or nothing.
HeldBack = Literal["by chance", "paced", ""]
_CALLED = 0.3  # how likely anybody says something otherwise
REJECTIONS = {"twilio": ("21211", "21610", "21606"), "telnyx": ("40310", "40300", "40305")}


@dataclass(frozen=True)
class Story:
    """`texts` by time. Times in seconds after the beginning."""

    texts: tuple[Text, ...]
    outages: dict[str, list[tuple[float, float]]]
    end: float
    visibility: int
    reporting: bool
    answers_stop: bool
    lookups: bool
    trouble: float
    redrives: tuple[float, ...]
    batch: int
    senders: int
    robot: str
    loop_limit: int
    knocks: tuple[float, ...]
    resend: bool  # UNKNOWN_SENDS
    overtime: float  # seconds that a function may go on after its time
    slowness: dict[str, float]  # seconds that a host may take
    groups: bool  # whether the events name the message group
    public_url: bool  # whether PUBLIC_URL is set
    garbage: tuple[float, ...]  # when something that is not ours stands on the queues
    rotations: tuple[float, ...]  # when Twilio's token is changed
    decisions: tuple[float, ...]  # when a person looks through the unknown sends
    prompt: float  # how likely somebody decides about an unknown send as soon as it is one ...
    prompt_after: float  # ... within so many seconds
    reply_max_age: int  # REPLY_MAX_AGE
    lookup_max_age: int  # LOOKUP_MAX_AGE
    own_code: bool  # whether no reply API is asked, but the adopter's own function
    mended_at: float  # when that function's bug is mended
    without: tuple[str, float, float] | None  # a provider that PROVIDERS lacks for a while
    secret_lost: tuple[str, float] | None  # a provider's secret that is deleted by mistake
    receipts_from: float  # seconds that a receipt takes at least ...
    receipts_after: float  # ... and at most, besides
    receipts_fail: float  # how likely a provider never tells
    mismatches: float  # how likely Telnyx does not recognise a repeated request
    doubles: float  # how likely a provider tells of a text twice
    soon: float  # seconds after which SQS delivers once more than it was asked to, at most
    frozen: float  # seconds that a frozen function stands still at least
    says: tuple[Literal["sent", "resend", "give_up"], ...]  # what that person may decide
    focus: tuple[tuple[str, ...], frozenset[str], float] | None  # where what strikes, how likely
    calm: bool  # nothing goes wrong at all
    mild: bool = False  # whether little goes wrong, but what the story is about
    held_back: HeldBack = "by chance"
    erased_at: float = 0.0  # when somebody is to be erased, 0 if chance says so


def by_chance(random: Random, start: float) -> Story:
    """A story in which everything is drawn for itself."""
    length = random.choice((20.0, 200.0, 2000.0))
    people = PEOPLE[: random.choice((1, 1, 2, 3))]
    kinds = _kinds(random)
    texts = []
    # Some seeds are about numbers that providers refuse, and some about what kills.
    rejected = random.choice((0.02, 0.02, 0.02, 0.5))
    poison = random.choice((0.0, 0.0, 0.0, 0.0, 0.0, 0.3))
    own_code = random.random() < 0.1
    broken = 0.3 if own_code else 0.0
    for number in range(random.randint(2, 9)):
        ours = random.choice(list(NUMBERS))
        kind = random.choice(kinds)
        if kind == outside.PLAIN and random.random() < broken:
            kind = outside.BROKEN
        if kind == outside.GROUP:
            ours = list(NUMBERS)[1]
        if kind == outside.NAMELESS:
            ours = next(iter(NUMBERS))
        name = f"m{number}"
        text = Text(
            name,
            kind,
            outside.SENDERS.get(kind, random.choice(people)),
            ours,
            start + length * random.random() ** random.choice((1, 3)),
            random.choice(WORDS.get(kind, (f"{name} is the heron awake?",))),
            encoded=random.random() < 0.2,
            poison=random.random() < poison and kind in (outside.PLAIN, outside.LONG),
        )
        if random.random() < rejected:
            text.rejected = random.choice(REJECTIONS[text.provider])
            text.rejected_from = random.choice((1, 1, 2))
        texts.append(text)
    if kinds == [outside.STOP, outside.START_AGAIN] and random.random() < 0.5:
        # As good as at once, to a number whose provider says when (and not always finely).
        whole = random.random() < 0.5
        for text in texts:
            after = 3 * random.random()
            text.rejected = ""
            text.move(list(NUMBERS)[1], start + (int(after) if whole else after))
    texts.sort(key=lambda one: one.at)
    outages = {}
    for what in ("dynamodb", "sqs", "s3", "secretsmanager", *HOSTS):
        if random.random() < (0.12 if what.startswith("api.") else 0.06):
            begins = start + length * random.random() ** 2
            outages[what] = [(begins, begins + random.choice((5.0, 60.0, 600.0, 1 * HOURS)))]
    if random.random() < 0.03:
        # Longer than anything is waited for.
        what = random.choice(("lookups.example.com", "s3", "dynamodb"))
        outages[what] = [(start + 5.0, start + 14 * HOURS)]
        del texts[2:]
        people = ()  # (and no robot)
    without = _without(random, start, length) if random.random() < 0.05 else None
    ends = [end for spans in outages.values() for _, end in spans]
    last = max([start + length, *ends, *(without[2:] if without else ())])
    return Story(
        texts=tuple(texts),
        outages=outages,
        end=last + random.choice((60.0, 1800.0)),
        visibility=random.choice((361, 361, 361, 75, 20)),
        reporting=random.random() < 0.75,
        answers_stop=random.random() < 0.6,
        lookups=random.random() < 0.6,
        trouble=random.choice((0.0, 0.05, 0.3)),
        redrives=tuple(
            last + length * random.random() - length / 2 for _ in range(random.choice((0, 0, 1, 2)))
        ),
        batch=random.choice((1, 2, 5, 10)),
        senders=random.choice((1, 2, 4)),
        robot=people[0] if people and random.random() < 0.15 else "",
        loop_limit=random.choice((30, 30, 3, 0)),
        resend=random.random() < 0.25,
        overtime=random.choice((0.0, 0.0, 40.0)),
        slowness=_slowness(random),
        groups=random.random() < 0.5,
        public_url=random.random() < 0.5,
        garbage=(start + length * random.random(),) if random.random() < 0.1 else (),
        rotations=(start + random.choice((length, 3000.0)) * random.random(),)
        if random.random() < 0.15
        else (),
        decisions=tuple(
            start + length * random.random() + random.choice((0, 300, 4000))
            for _ in range(random.choice((0, 0, 1, 3)))
        ),
        knocks=tuple(start + length * random.random() for _ in range(random.choice((0, 1)))),
        prompt=random.choice((0.0, 0.0, 0.5, 1.0)),
        prompt_after=random.choice((10.0, 60.0)),
        reply_max_age=random.choice((900, 900, 900, 60, 25)),
        lookup_max_age=random.choice((43_200, 43_200, 43_200, 30)),
        own_code=own_code,
        mended_at=float("inf"),
        receipts_from=0.0,
        receipts_after=random.choice((8.0, 8.0, 8.0, 60.0, 1.2 * HOURS)),
        receipts_fail=random.choice((0.0, 0.0, 0.1, 0.5, 0.95)),
        mismatches=random.choice((0.0, 0.0, 0.0, 0.5)),
        doubles=0.15,
        soon=40.0,
        frozen=0.0,
        says=("sent", "resend", "give_up"),
        focus=None,
        without=without,
        secret_lost=_secret_lost(random, start, length) if random.random() < 0.04 else None,
        calm=False,
    )


def calls(random: Random, story: Story) -> list[Call]:
    """What people say otherwise than by a text, in some seeds: often about when they or others
    write, and handed in at once, much later, or all of it by several in the same moment."""
    if random.random() >= _CALLED:
        return []
    made: list[Call] = []
    together = random.random() < 0.3
    for number in range(random.randint(1, 5)):
        event: Literal["stop", "start"] = random.choice(("stop", "stop", "start"))
        person = random.choice(PEOPLE[:2])
        near = random.choice([text.at for text in story.texts] or [START])
        at = near + random.choice((3.0, 60.0)) * (random.random() - 0.3)
        if random.random() < 0.5:
            at = float(int(at))
        handed_in = max(at, START) + random.choice((0.0, 0.0, 5.0, 600.0)) * random.random()
        if made and together:
            person, handed_in = made[0].person, made[0].handed_in
            at = made[0].at - 9 * random.random()
        timed = event == "start" or random.random() < 0.6
        by_hand = random.random() < 0.4
        made.append(Call(f"c{number}", person, event, at, handed_in, timed, by_hand))
    return made


def _without(random: Random, start: float, length: float) -> tuple[str, float, float]:
    begins = start + length * random.random()
    return random.choice(list(NUMBERS.values())), begins, begins + random.choice((60.0, 1800.0))


def _secret_lost(random: Random, start: float, length: float) -> tuple[str, float]:
    return random.choice(list(NUMBERS.values())), start + length * (0.3 + random.random())


def _slowness(random: Random) -> dict[str, float]:
    """Who takes long to answer, as long as is allowed or too long."""
    return {host: random.choice((3.0, 9.0, 20.0)) for host in HOSTS if random.random() < 0.08}


HOSTS = ("api.twilio.com", "api.telnyx.com", "replies.example.com", "lookups.example.com")


def _kinds(random: Random) -> list[str]:
    often = [outside.PLAIN] * 4 + [outside.LONG] * 2
    consent = [outside.STOP, outside.STOP, outside.START_AGAIN, outside.YES, outside.HELP]
    rare = [outside.SILENT, outside.REFUSED, outside.GROUP, outside.UNREADABLE, *outside.INVALID]
    if random.random() < 0.15:
        # A reply API that never says the same.
        return [outside.FICKLE]
    if random.random() < 0.15:
        # Nothing but a change of mind after the other, to several of our numbers.
        return [outside.STOP, outside.START_AGAIN]
    return (
        often
        + [outside.OUTGOING]
        + (consent if random.random() < 0.6 else [])
        + (rare if random.random() < 0.4 else [])
    )
