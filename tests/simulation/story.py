"""What happens in one seed: who writes what and when, what is out of order, and for how long."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from tests.simulation import outside
from tests.simulation.outside import HOURS, NUMBERS, Text

PEOPLE = ("+14155550100", "+14155550101", "+14155550102")
_WORDS = {
    outside.STOP: ("STOP", "stop", "Unsubscribe", "opt-out", "please stop texting me"),
    outside.START_AGAIN: ("START", "unstop"),
    outside.HELP: ("HELP",),
    outside.EMPTY: (" ",),
    outside.HUGE: ("heron " * 3400,),
}
_REJECTIONS = {"twilio": ("21211", "21610"), "telnyx": ("40310", "40300")}


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
    rotation: float | None  # when Twilio's token is changed
    decisions: tuple[float, ...]  # when a person looks through the unknown sends


def write(random: Random, start: float) -> Story:
    """The story of a seed."""
    length = random.choice((20.0, 200.0, 2000.0))
    people = PEOPLE[: random.choice((1, 1, 2, 3))]
    kinds = _kinds(random)
    texts = []
    for number in range(random.randint(2, 9)):
        ours = random.choice(list(NUMBERS))
        kind = random.choice(kinds)
        if kind == outside.GROUP:
            ours = list(NUMBERS)[1]
        name = f"m{number}"
        text = Text(
            name,
            kind,
            outside.SENDERS.get(kind) or random.choice(people),
            ours,
            start + length * random.random() ** random.choice((1, 3)),
            random.choice(_WORDS.get(kind, (f"{name} is the heron awake?",))),
            encoded=random.random() < 0.2,
            poison=random.random() < 0.03 and kind in (outside.PLAIN, outside.LONG),
        )
        if random.random() < 0.04:
            text.rejected = random.choice(_REJECTIONS[text.provider])
        texts.append(text)
    if kinds == [outside.STOP, outside.START_AGAIN] and random.random() < 0.5:
        # As good as at once, to a number whose provider says when.
        for text in texts:
            text.move(list(NUMBERS)[1], start + 3 * random.random())
    texts.sort(key=lambda one: one.at)
    outages = {}
    for what in ("dynamodb", "sqs", "s3", "secretsmanager", *_HOSTS):
        if random.random() < 0.06:
            begins = start + length * random.random()
            outages[what] = [(begins, begins + random.choice((5.0, 60.0, 600.0, 1 * HOURS)))]
    if random.random() < 0.01:
        # Longer than any look-up is waited for.
        outages["lookups.example.com"] = [(start, start + 14 * HOURS)]
        del texts[2:]
    last = max([start + length, *(end for spans in outages.values() for _, end in spans)])
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
        robot=people[0] if random.random() < 0.15 else "",
        loop_limit=random.choice((30, 30, 3, 0)),
        resend=random.random() < 0.25,
        overtime=random.choice((0.0, 0.0, 40.0)),
        slowness=_slowness(random),
        groups=random.random() < 0.5,
        public_url=random.random() < 0.5,
        garbage=(start + length * random.random(),) if random.random() < 0.1 else (),
        rotation=start + length * random.random() if random.random() < 0.1 else None,
        decisions=tuple(
            start + length * random.random() + random.choice((0, 300, 4000))
            for _ in range(random.choice((0, 0, 1, 3)))
        ),
        knocks=tuple(start + length * random.random() for _ in range(random.choice((0, 1)))),
    )


def _slowness(random: Random) -> dict[str, float]:
    """Who takes long to answer, as long as is allowed or too long."""
    return {host: random.choice((3.0, 9.0, 20.0)) for host in _HOSTS if random.random() < 0.08}


_HOSTS = ("api.twilio.com", "api.telnyx.com", "replies.example.com", "lookups.example.com")


def _kinds(random: Random) -> list[str]:
    often = [outside.PLAIN] * 4 + [outside.LONG] * 2
    consent = [outside.STOP, outside.STOP, outside.START_AGAIN, outside.HELP]
    rare = [outside.SILENT, outside.REFUSED, outside.GROUP, outside.UNREADABLE, *outside.INVALID]
    if random.random() < 0.12:
        # Nothing but a change of mind after the other, to several of our numbers.
        return [outside.STOP, outside.START_AGAIN]
    return (
        often
        + [outside.OUTGOING]
        + (consent if random.random() < 0.6 else [])
        + (rare if random.random() < 0.4 else [])
    )
