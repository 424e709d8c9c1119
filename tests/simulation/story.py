"""What happens in one seed: who writes what and when, what is out of order, and for how long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

from tests.simulation import outside
from tests.simulation.outside import HOURS, NUMBERS, Text

PEOPLE = ("+14155550100", "+14155550101", "+14155550102")
_WORDS = {
    outside.STOP: ("STOP", "stop", "Unsubscribe", "opt-out", "please stop texting me"),
    outside.START_AGAIN: ("START", "unstop"),
    outside.HELP: ("HELP",),
    outside.YES: ("YES", "yes!"),
    outside.EMPTY: (" ",),
    outside.HUGE: ("heron " * 3400,),
}
_REJECTIONS = {"twilio": ("21211", "21610", "21606"), "telnyx": ("40310", "40300", "40305")}


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
    prompt: float  # how likely somebody decides about an unknown send as soon as it is one ...
    prompt_after: float  # ... within so many seconds
    reply_max_age: int  # REPLY_MAX_AGE
    lookup_max_age: int  # LOOKUP_MAX_AGE
    own_code: bool  # whether no reply API is asked, but the adopter's own function
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


def write(random: Random, start: float, *, calm: bool = False) -> Story:
    """The story of a seed."""
    story = _write(random, start)
    if not calm:
        plot = random.choice(_PLOTS) if random.random() < _PLOTTED else None
        return plot(story, random, start) if plot else story
    return replace(
        story,
        texts=tuple(text for text in story.texts if not text.poison),
        outages={},
        trouble=0.0,
        redrives=(),
        garbage=(),
        overtime=0.0,
        slowness={},
        rotation=None,
        without=None,
        secret_lost=None,
        reply_max_age=900,
        calm=True,
    )


def _write(random: Random, start: float) -> Story:
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
            random.choice(_WORDS.get(kind, (f"{name} is the heron awake?",))),
            encoded=random.random() < 0.2,
            poison=random.random() < poison and kind in (outside.PLAIN, outside.LONG),
        )
        if random.random() < rejected:
            text.rejected = random.choice(_REJECTIONS[text.provider])
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
    for what in ("dynamodb", "sqs", "s3", "secretsmanager", *_HOSTS):
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
        rotation=start + random.choice((length, 3000.0)) * random.random()
        if random.random() < 0.15
        else None,
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
        receipts_from=0.0,
        receipts_after=random.choice((8.0, 8.0, 8.0, 60.0)),
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


def _without(random: Random, start: float, length: float) -> tuple[str, float, float]:
    begins = start + length * random.random()
    return random.choice(list(NUMBERS.values())), begins, begins + random.choice((60.0, 1800.0))


def _secret_lost(random: Random, start: float, length: float) -> tuple[str, float]:
    return random.choice(list(NUMBERS.values())), start + length * (0.3 + random.random())


# Plots: what has to come together for some mishaps, which chance alone seldom brings about.

_PLOTTED = 0.75  # of the seeds that are not calm
_BOUND = (outside.GROUP, outside.NAMELESS, outside.UNREADABLE)
_SENDING = ("sender: twilio.send", "sender: telnyx.send")


def _become(text: Text, kind: str) -> None:
    """This text is one of that kind, and nothing is wrong with it."""
    if text.kind not in (*_BOUND, kind):
        text.kind, text.words = kind, _WORDS.get(kind, (f"{text.name} is the heron awake?",))[0]
        if text.person not in PEOPLE:
            text.person = PEOPLE[0]
    text.poison, text.rejected = False, ""
    text.move(text.ours, text.at)


def _move(text: Text, number: int, at: float) -> None:
    """To Twilio's number (0) or Telnyx's (1), if that can be."""
    text.move(text.ours if text.kind in _BOUND else list(NUMBERS)[number], at)


def _texts(
    random: Random, kinds: tuple[str, ...], count: int, at: Callable[[int], float]
) -> tuple[Text, ...]:
    """Texts of three people to both numbers, in six conversations; `at` says when each comes."""
    texts = []
    for number in range(count):
        kind = random.choice(kinds)
        words = _WORDS.get(kind, (f"m{number} is the heron awake?",))[0]
        person, ours = PEOPLE[number % 3], list(NUMBERS)[number % 2]
        texts.append(Text(f"m{number}", kind, person, ours, at(number), words))
    return tuple(texts)


def _crowd(story: Story, random: Random, start: float) -> Story:
    """Several functions have the same message, everybody whom they ask is slow, and the reply API
    never says the same."""
    kinds = (outside.FICKLE, outside.FICKLE, outside.LONG, outside.OUTGOING)
    texts = _texts(random, kinds, 7, lambda _: start + 60 * random.random())
    return replace(
        story,
        texts=texts,
        trouble=0.8,
        soon=random.choice((1.0, 4.0)),
        senders=4,
        batch=1,
        slowness={host: random.choice((1.0, 9.0)) for host in _HOSTS},
        reply_max_age=random.choice((900, 60, 25, 15)),
        own_code=False,
        without=None,
        outages={},
    )


def _interrupted(story: Story, random: Random, start: float) -> Story:
    """Somebody says STOP while a long answer to them is under way, in more hands than one."""
    for number, text in enumerate(story.texts):
        _become(text, outside.STOP if number % 3 == 2 else outside.LONG)
        later = 3 + 3 * random.random() if text.kind == outside.STOP else 0.0
        text.move(text.ours, start + later + random.random())
    return replace(
        story,
        trouble=0.6,
        soon=6.0,
        senders=4,
        batch=1,
        own_code=False,
        focus=(("consent.opted_out",), frozenset({"slow"}), 0.6),
    )


def _asleep(story: Story, random: Random, start: float) -> Story:
    """The owner of a claim stands still, and wakes when everybody has given it up."""
    kinds = (outside.PLAIN, outside.OUTGOING)
    texts = _texts(random, kinds, 9, lambda _: start + 200 * random.random())
    site = random.choice(("ledger.sent", "ledger.put_back"))
    return replace(
        story,
        texts=texts,
        trouble=0.0,
        outages={},
        overtime=40.0,
        frozen=80.0,
        focus=((site, *_SENDING), frozenset({"frozen", "no connection"}), 0.5),
        visibility=75,
        senders=4,
        prompt=1.0,
        prompt_after=4.0,
        says=("give_up",),
        receipts_fail=1.0,
        own_code=False,
    )


def _late_news(story: Story, random: Random, start: float) -> Story:
    """Providers take longer than we wait, and their receipts come after somebody has decided."""
    kinds = (outside.PLAIN, outside.OUTGOING)
    texts = _texts(random, kinds, 9, lambda _: start + 60 * random.random())
    twilio = random.random() < 0.5
    for text in texts:
        _move(text, 0 if twilio else list(NUMBERS).index(text.ours), text.at)
        text.rejected = random.choice(("", *_REJECTIONS[text.provider]))
        text.rejected_from = 2
    slow = random.choice((8.0, 14.0))
    site, kind = random.choice(
        (
            (_SENDING, "response lost"),
            (_SENDING, "throttled"),
            (("person: ledger._settle",), "frozen"),
            (("person: ledger._settle",), "frozen"),
        )
    )
    return replace(
        story,
        texts=texts,
        robot="",
        outages={},
        trouble=0.0,
        slowness={host: slow for host in _HOSTS if host.startswith("api.")},
        prompt=1.0,
        prompt_after=8.0,
        says=("resend",),
        receipts_from=slow if kind != "frozen" else 100.0,
        receipts_after=8.0,
        senders=4,
        receipts_fail=0.0,
        frozen=15.0,
        resend=random.random() < 0.3,
        own_code=False,
        focus=(site, frozenset({kind}), 0.4),
    )


def _stale_claims(story: Story, random: Random, start: float) -> Story:
    """Claims come late, while providers cannot be reached and have us come again."""
    kinds = (outside.PLAIN, outside.OUTGOING)
    texts = _texts(random, kinds, 9, lambda _: start + 200 * random.random())
    faults = frozenset({"arrives late", "no connection"})
    focus = (("ledger.claim", *_SENDING), faults, 0.5)
    return replace(story, texts=texts, outages={}, own_code=False, without=None, focus=focus)


def _slow_replies(story: Story, random: Random, start: float) -> Story:
    """One conversation, and a reply API that takes nearly all the time there is."""
    texts = _texts(
        random,
        (outside.PLAIN, outside.LONG, outside.FICKLE),
        8,
        lambda _: start + 3 * random.random(),
    )
    for text in texts:
        text.person = PEOPLE[0]
        _move(text, 0, text.at)
    kinds = frozenset({"throttled", "server error", "response lost", "slow"})
    return replace(
        story,
        texts=texts,
        slowness={"replies.example.com": 9.9},
        batch=10,
        visibility=random.choice((20, 361)),
        trouble=random.choice((0.0, 0.3)),
        senders=4,
        own_code=False,
        outages={},
        without=None,
        reply_max_age=900,
        focus=(("store_words",), kinds, 0.6),
    )


def _poisoned(story: Story, random: Random, start: float) -> Story:
    """One text kills, and all the others are in its company."""
    texts = _texts(random, (outside.PLAIN,), 6, lambda _: start + 0.3 * random.random())
    texts[random.randrange(6)].poison = True
    return replace(
        story,
        texts=texts,
        batch=10,
        senders=1,
        visibility=random.choice((75, 361)),
        own_code=False,
        without=None,
        secret_lost=None,
        reply_max_age=36_000,
        lookups=random.random() < 0.5,
        outages={},
    )


def _silence(story: Story, random: Random, start: float) -> Story:
    """Answers are lost, no receipt comes, and whoever looks is refused, or has old secrets."""
    turn = random.choice(("refused", "refused", "mismatch", "rotated", "rotated", "secret lost"))
    number = 0 if turn == "rotated" else 1
    kind = "response lost" if turn == "mismatch" else "lost on the way"
    kinds = (outside.PLAIN, outside.OUTGOING)
    texts = _texts(random, kinds, 8, lambda _: start + 10 * random.random())
    for text in texts:
        _move(text, number, text.at)
        if turn == "refused":
            text.rejected = random.choice((*_REJECTIONS["telnyx"], outside.OPTED_OUT_CODES[1]))
    return replace(
        story,
        texts=texts,
        trouble=0.0,
        robot="",
        receipts_fail=1.0,
        mismatches=0.8 if turn == "mismatch" else 0.0,
        focus=(_SENDING, frozenset({kind}), 0.8),
        rotation=start + 85 + 80 * random.random() if turn == "rotated" else None,
        secret_lost=("telnyx", start + 100.0) if turn == "secret lost" else None,
        reply_max_age=60 if turn == "secret lost" else 900,
        prompt=0.0,
        decisions=(),
        own_code=False,
        without=None,
        outages={},
        overtime=0.0,
    )


def _minds(story: Story, random: Random, start: float) -> Story:
    """Somebody changes their mind, several times within seconds, and the table is slow."""
    whole = random.random() < 0.6
    kinds = (outside.STOP, outside.START_AGAIN)
    texts = _texts(random, kinds, 14, lambda _: start + 5 * random.random())
    for text in texts:
        text.person = PEOPLE[0]
        at = float(int(text.at)) if whole else text.at
        _move(text, 1 if random.random() < 0.8 else 0, at)
    return replace(
        story,
        texts=texts,
        senders=4,
        batch=random.choice((1, 5)),
        focus=(("consent.record",), frozenset({"slow"}), 0.5),
        own_code=False,
        without=None,
        secret_lost=None,
        outages={},
    )


def _second_thoughts(story: Story, random: Random, start: float) -> Story:
    """Somebody says STOP, later START, and the provider tells of both once more, while what they
    said first still waits for a look-up."""
    for number, text in enumerate(story.texts):
        _become(text, outside.START_AGAIN if number % 2 else outside.STOP)
        if text.kind not in _BOUND:
            text.person = PEOPLE[0]
        _move(text, 0, start + 40.0 * number)
    return replace(
        story,
        doubles=0.8,
        own_code=False,
        lookups=True,
        outages={"lookups.example.com": [(start, start + 600.0)]},
        end=max(story.end, start + 700),
    )


def _half_a_day(story: Story, random: Random, start: float) -> Story:
    """A store is down for longer than anything is waited for."""
    what = random.choice(("s3", "dynamodb"))
    kinds = (outside.STOP, outside.PLAIN)
    texts = _texts(random, kinds, 2, lambda _: start + 5.0)
    return replace(
        story,
        texts=texts,
        outages={what: [(start + 5.0, start + 14 * HOURS)]},
        lookup_max_age=random.choice((30, 43_200)),
        robot="",
        own_code=False,
        focus=None,
        end=start + 14 * HOURS + 600,
    )


def _outage(story: Story, random: Random, start: float) -> Story:
    """Nobody can be sent anything for a while; many find that out at once, and some write later,
    two at a time."""
    end = start + random.choice((200.0, 500.0))
    kinds = (outside.PLAIN, outside.PLAIN, outside.OUTGOING)
    texts = _texts(
        random,
        kinds,
        12,
        lambda n: start + (3 * random.random() if n < 6 else 30 * (n // 2)),
    )
    ours = random.choice((0, 1))
    for text in texts:
        _move(text, ours, text.at)
    return replace(
        story,
        texts=texts,
        outages={host: [(start, end)] for host in _HOSTS if host.startswith("api.")},
        senders=1,
        batch=10,
        own_code=False,
        without=None,
        secret_lost=None,
        reply_max_age=900,
        end=max(story.end, end + 60),
    )


_PLOTS = (
    *(_crowd,) * 3,
    *(_interrupted,) * 3,
    *(_asleep,) * 3,
    *(_late_news,) * 4,
    *(_stale_claims,) * 2,
    *(_slow_replies,) * 4,
    *(_poisoned,) * 2,
    *(_silence,) * 5,
    *(_minds,) * 3,
    *(_second_thoughts,) * 2,
    *(_outage,) * 2,
    _half_a_day,
)


def _slowness(random: Random) -> dict[str, float]:
    """Who takes long to answer, as long as is allowed or too long."""
    return {host: random.choice((3.0, 9.0, 20.0)) for host in _HOSTS if random.random() < 0.08}


_HOSTS = ("api.twilio.com", "api.telnyx.com", "replies.example.com", "lookups.example.com")


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
