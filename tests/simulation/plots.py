"""Plots: what has to come together for some mishaps, which chance alone seldom brings about.

Each takes a story of chance and turns it to its purpose; what happens in it is still drawn by the
seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

from tests.simulation import outside
from tests.simulation.outside import HOURS, NUMBERS, Text
from tests.simulation.story import HOSTS, PEOPLE, REJECTIONS, WORDS, Story, by_chance

_PLOTTED = 0.9  # of the seeds that are not calm
_BOUND = (outside.GROUP, outside.NAMELESS, outside.UNREADABLE)
_LATE = frozenset({"arrives late", "slow"})
_SENDING = ("sender: twilio.send", "sender: telnyx.send")


def _to_the_point(random: Random) -> dict[str, Any]:
    """What lets a plot come about in most of its stories: little else goes wrong, who died is
    followed soon, and no answer is one too many."""
    return {"mild": random.random() < 0.8, "visibility": 75, "loop_limit": 30}


def _become(text: Text, kind: str) -> None:
    """This text is one of that kind, and nothing is wrong with it."""
    if text.kind not in (*_BOUND, kind):
        text.kind, text.words = kind, WORDS.get(kind, (f"{text.name} is the heron awake?",))[0]
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
        words = WORDS.get(kind, (f"m{number} is the heron awake?",))[0]
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
        slowness={host: random.choice((1.0, 9.0)) for host in HOSTS},
        reply_max_age=random.choice((900, 60, 25, 15)),
        own_code=False,
        without=None,
        outages={},
        held_back="paced" if random.random() < 0.3 else "",
        focus=random.choice(
            (story.focus, (("ledger.close", "ledger.claim", "ledger.wait"), _LATE, 0.4))
        ),
    )


def _campaign(story: Story, random: Random, start: float) -> Story:
    """Our own clients send to everybody at once, faster than may be sent, and people answer."""
    kinds = (*(outside.OUTGOING,) * 5, outside.PLAIN, outside.LONG, outside.FICKLE)
    texts = _texts(random, kinds, 14, lambda _: start + 4 * random.random() ** 3)
    one = random.choice((None, 0, 1))
    for text in texts:
        text.person = random.choice(PEOPLE)
        _move(text, list(NUMBERS).index(text.ours) if one is None else one, text.at)
    ends = start + random.choice((20.0, 100.0, 300.0))
    away = random.choice(("", "", "api.twilio.com", "api.telnyx.com"))
    return replace(
        story,
        texts=texts,
        held_back="paced",
        loop_limit=30,
        mild=random.random() < 0.7,
        visibility=75,
        batch=10,
        senders=random.choice((1, 1, 2, 4)),
        trouble=random.choice((0.0, 0.0, 0.5)),
        outages={away: [(start + 5 * random.random(), ends)]} if away else {},
        slowness={},
        robot="",
        own_code=False,
        without=None,
        secret_lost=None,
        reply_max_age=random.choice((900, 900, 60, 25)),
        focus=random.choice(
            (
                None,
                None,
                (("ledger.wait",), _LATE | {"response lost"}, 0.5),
                (("pacing.",), frozenset({"throttled", "server error", "response lost"}), 0.4),
                (_SENDING, frozenset({"no connection", "throttled"}), 0.3),
                (("ledger.sent", "ledger.claim"), frozenset({"throttled", "response lost"}), 0.3),
            )
        ),
        end=max(story.end, ends + 60),
    )


def _forgotten(story: Story, random: Random, start: float) -> Story:
    """Somebody is erased in the very minutes in which what waited for long can be answered."""
    kinds = (outside.PLAIN, outside.FICKLE, outside.SILENT, outside.LONG)
    texts = _texts(random, kinds, 14, lambda _: start + 20 * random.random())
    for text in texts:
        text.person = PEOPLE[0]
        text.move(text.ours, text.at)
    ends = start + random.choice((700.0, 900.0))
    away = random.choice((("replies.example.com",), ("api.twilio.com", "api.telnyx.com")))
    return replace(
        story,
        texts=texts,
        outages={host: [(start, ends)] for host in away},
        reply_max_age=36_000,
        # (It waits for ten minutes first, for the queues to be empty.)
        erased_at=ends - 620 + 60 * random.random(),
        mild=True,
        visibility=75,
        senders=4,
        batch=1,
        trouble=0.3,
        robot="",
        loop_limit=0,
        own_code=False,
        without=None,
        secret_lost=None,
        frozen=2.0,
        focus=(("eraser: ledger.",), _LATE | {"frozen"}, 0.5),
        end=max(story.end, ends + 600),
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
        text.rejected = random.choice(("", *REJECTIONS[text.provider]))
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
        slowness={host: slow for host in HOSTS if host.startswith("api.")},
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
    return replace(
        story,
        texts=texts,
        outages={},
        own_code=False,
        without=None,
        trouble=random.choice((story.trouble, 0.8)),
        soon=4.0,
        senders=4,
        batch=1,
        reply_max_age=random.choice((900, 25, 15)),
        focus=(("ledger.claim", *_SENDING), faults, 0.5),
    )


def _impatient(story: Story, random: Random, start: float) -> Story:
    """Answers are lost, and somebody has it sent again before anybody has looked; the one or the
    other did not arrive."""
    kinds = (outside.PLAIN, outside.OUTGOING)
    texts = _texts(random, kinds, 8, lambda _: start + 60 * random.random())
    for text in texts:
        _move(text, 0, text.at)
    return replace(
        story,
        texts=texts,
        **_to_the_point(random),
        robot="",
        outages={},
        trouble=0.0,
        slowness={},
        prompt=0.5,
        prompt_after=8.0,
        says=("resend",),
        receipts_fail=1.0,
        own_code=False,
        without=None,
        secret_lost=None,
        resend=random.random() < 0.3,
        focus=(_SENDING, frozenset({"response lost", "lost on the way"}), 0.5),
    )


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
        trouble=random.choice((0.0, 0.3, 0.8)),
        senders=4,
        own_code=False,
        outages={},
        without=None,
        reply_max_age=900,
        focus=(("store_words",), kinds, 0.6),
    )


def _poisoned(story: Story, random: Random, start: float) -> Story:
    """One text kills, and all the others are in its company. Where it is a STOP, its letter is what
    is left to say so."""
    # (Who comes first is worked on at once, and alone.)
    texts = _texts(random, (outside.PLAIN,), 8, lambda n: start + 0.03 * n + 0.02 * random.random())
    poison = texts[random.randrange(3, 8)]
    poison.poison = True
    stops = random.random() < 0.4
    if random.random() < 0.4:
        # All in one conversation, and of two it is not known which it was.
        texts[5].poison = texts[6].poison = True
        for text in texts:
            text.person = PEOPLE[0]
            _move(text, 0, text.at)
    elif stops:
        poison.kind, poison.words = outside.STOP, WORDS[outside.STOP][0]
    return replace(
        story,
        texts=texts,
        mild=random.random() < 0.8,
        focus=None,
        trouble=0.0,
        robot="",
        loop_limit=30,
        batch=10,
        senders=1,
        visibility=random.choice((75, 361)),
        own_code=False,
        without=None,
        secret_lost=None,
        reply_max_age=36_000,
        lookups=stops or random.random() < 0.5,
        outages={},
    )


def _silence(story: Story, random: Random, start: float) -> Story:
    """Answers are lost, no receipt comes, and whoever looks is refused, or lacks the secret."""
    turns = ("refused", "mismatch", "mismatch", "mismatch", "secret lost")
    turn = random.choice((*turns, *["confirmation"] * 3))
    # They come when nobody looks any more, or never; and so does who decides.
    late = random.random() < 0.6
    kind = "response lost" if turn == "mismatch" else "lost on the way"
    kinds = (outside.STOP,) if turn == "confirmation" else (outside.PLAIN, outside.OUTGOING)
    texts = _texts(random, kinds, 8, lambda _: start + 10 * random.random())
    for text in texts:
        _move(text, 1, text.at)
        if turn == "refused":
            text.rejected = random.choice((*REJECTIONS["telnyx"], outside.OPTED_OUT_CODES[1]))
    return replace(
        story,
        texts=texts,
        **_to_the_point(random),
        trouble=0.0,
        robot="",
        receipts_fail=0.3 if turn == "mismatch" and late else 1.0,
        receipts_from=3300.0 if late else 0.0,
        receipts_after=600.0,
        mismatches=0.8 if turn == "mismatch" else 0.0,
        focus=(_SENDING, frozenset({kind}), 0.8),
        secret_lost=("telnyx", start + 100.0) if turn == "secret lost" else None,
        reply_max_age=60 if turn == "secret lost" else 900,
        prompt=0.0,
        decisions=(start + 4500.0,) if late else (),
        says=("give_up", "sent") if late else story.says,
        answers_stop=story.answers_stop and turn != "confirmation",
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
    kinds = (outside.PLAIN, random.choice((outside.PLAIN, outside.OUTGOING)), outside.OUTGOING)
    texts = _texts(
        random,
        kinds,
        14,
        lambda n: start + (3 * random.random() if n < 6 else 30 * (n // 2)),
    )
    ours = random.choice((0, 1))
    for text in texts:
        _move(text, ours, text.at)
    return replace(
        story,
        texts=texts,
        outages={host: [(start, end)] for host in HOSTS if host.startswith("api.")},
        senders=random.choice((1, 2, 4)),
        batch=random.choice((2, 10)),
        held_back="paced" if random.random() < 0.7 else "",
        loop_limit=30,
        slowness=random.choice(({}, {"replies.example.com": 4.0})),
        mild=random.random() < 0.8,
        focus=random.choice(
            (
                None,
                (("ledger.claim",), frozenset({"slow"}), 0.5),
                (("breaker.read",), frozenset({"slow"}), 0.5),
            )
        ),
        visibility=75,
        own_code=False,
        without=None,
        secret_lost=None,
        reply_max_age=900,
        end=max(story.end, end + 60),
    )


def _regular(story: Story, random: Random, start: float) -> Story:
    """Two people who write all day, now and then faster than they may be answered."""
    at, times = start, []
    for _ in range(9):
        times.append(at)
        at += random.choice((1.0, 640.0, 640.0, 640.0))
    texts = _texts(random, (outside.PLAIN,), 9, lambda number: times[number])
    for text in texts:
        text.person = PEOPLE[0] if random.random() < 0.8 else PEOPLE[1]
        _move(text, 0, text.at)
        if random.random() < 0.1:
            text.rejected = random.choice(REJECTIONS["twilio"][::2])
    return replace(
        story,
        texts=texts,
        loop_limit=random.choice((1, 1, 2)),
        robot="",
        outages={},
        own_code=False,
        without=None,
        secret_lost=None,
        reply_max_age=900,
        focus=None,
        end=max(story.end, at + 60),
    )


def _rotated(story: Story, random: Random, start: float) -> Story:
    """Twilio's token is changed again and again while some send, and others look for what was
    lost."""
    kinds = (outside.PLAIN, outside.OUTGOING)
    texts = _texts(random, kinds, 14, lambda n: start + 40 * n + 20 * random.random())
    for text in texts:
        _move(text, 0, text.at)
        if text.kind == outside.PLAIN and random.random() < 0.6:
            text.picture = "there"
    return replace(
        story,
        texts=texts,
        robot="",
        trouble=0.0,
        outages={},
        receipts_fail=1.0,
        rotations=tuple(start + 70 * n + 40 * random.random() for n in range(1, 12)),
        senders=1,
        prompt=0.0,
        decisions=(),
        own_code=False,
        without=None,
        secret_lost=None,
        focus=(_SENDING, frozenset({"lost on the way"}), 0.3),
        end=max(story.end, start + 900),
    )


def _unreported(story: Story, random: Random, start: float) -> Story:
    """Nobody takes partial reports, of batches in which some is done and some is not."""
    kinds = (outside.PLAIN, outside.PLAIN, outside.PLAIN, outside.UNREADABLE)
    texts = _texts(random, kinds, 12, lambda number: start + 20 * (number // 6) + random.random())
    for text in texts:
        if random.random() < 0.3:
            text.rejected = random.choice(REJECTIONS[text.provider][::2])
    return replace(
        story,
        texts=texts,
        reporting=False,
        lookups=True,
        batch=10,
        senders=1,
        outages={},
        own_code=False,
        without=None,
        secret_lost=None,
        focus=(("lookups.", "replies."), frozenset({"refused with 5xx"}), 0.4),
    )


def put_aside(story: Story, random: Random, start: float) -> Story:
    """Own code with a bug, and a look-up that is away: most texts are put aside. Somebody redrives
    them again and again, before all is mended and afterwards."""
    kinds: tuple[str, ...] = (*[outside.BROKEN] * 6, outside.PLAIN, outside.OUTGOING)
    if random.random() < 0.2:
        kinds += (outside.STOP,)  # (Whoever has said it gets no answer that could be put aside.)
    texts = _texts(random, kinds, 12, lambda _: start + 60 * random.random())
    for number, text in enumerate(texts):
        text.person = PEOPLE[0] if random.random() < 0.8 else PEOPLE[1]
        if number > 6:
            _become(text, random.choice((outside.STOP, outside.START_AGAIN)))
            text.person = PEOPLE[2]
        _move(text, 0 if random.random() < 0.8 else 1, text.at)
    mended = start + random.choice((200.0, 500.0))
    return replace(
        story,
        texts=texts,
        mended_at=mended,
        own_code=True,
        lookups=True,
        lookup_max_age=30,
        outages={"lookups.example.com": [(start, mended)]},
        redrives=tuple(start + 900 * random.random() for _ in range(8)),
        robot="",
        without=None,
        secret_lost=None,
        reply_max_age=900,
        end=max(story.end, start + 1000),
    )


_PLOTS = (
    *(_regular,) * 4,
    *(_rotated,) * 4,
    *(_unreported,) * 2,
    *(_crowd,) * 3,
    *(_interrupted,) * 3,
    *(_asleep,) * 3,
    *(_late_news,) * 4,
    *(_stale_claims,) * 2,
    *(_slow_replies,) * 3,
    *(_poisoned,) * 4,
    *(_silence,) * 7,
    *(_minds,) * 3,
    *(_second_thoughts,) * 2,
    *(_outage,) * 5,
    *(_impatient,) * 3,
    *(_campaign,) * 6,
    *(_forgotten,) * 3,
    _half_a_day,
)


def write(random: Random, start: float, *, calm: bool = False) -> Story:
    """The story of a seed."""
    story = by_chance(random, start)
    if not calm:
        if random.random() >= _PLOTTED:
            return story
        # (What holds sending back as well is mostly in the plot's way.)
        held_back = story.held_back if random.random() < 0.15 else ""
        return random.choice(_PLOTS)(replace(story, held_back=held_back), random, start)
    return replace(
        story,
        texts=tuple(text for text in story.texts if not text.poison),
        outages={},
        trouble=0.0,
        redrives=(),
        garbage=(),
        overtime=0.0,
        slowness={},
        rotations=(),
        without=None,
        secret_lost=None,
        reply_max_age=900,
        calm=True,
    )
