"""Pacing, kept by many functions at once: the real sender on the simulated cloud, in virtual time,
so that what is measured is the pacing and not the machine."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest

from chalicelib.text import segments
from tests.simulation import outside, plots, run, traffic
from tests.simulation.faults import Faults
from tests.simulation.outside import NUMBERS, Text
from tests.simulation.story import by_chance
from tests.simulation.world import START, World

SENDERS = 20
RATE = 10.0  # segments a second
TELNYXS = list(NUMBERS)[1]
WITHIN = 0.05


def played(
    monkeypatch: pytest.MonkeyPatch, texts: list[Text], rules: traffic.Rules, **story: Any
) -> run.Simulation:
    """These texts, to twenty senders of ten messages each, with nothing going wrong."""

    def write(random: Random, start: float, *, calm: bool) -> Any:
        return replace(
            by_chance(Random(0), start),
            texts=tuple(texts),
            **{
                "outages": {},
                "end": start + 60,
                "visibility": 361,
                "reporting": True,
                "lookups": False,
                "trouble": 0.0,
                "redrives": (),
                "batch": 10,
                "senders": SENDERS,
                "robot": "",
                "loop_limit": 0,
                "knocks": (),
                "resend": False,
                "overtime": 0.0,
                "slowness": {},
                "garbage": (),
                "rotations": (),
                "decisions": (),
                "prompt": 0.0,
                "reply_max_age": 900,
                "own_code": False,
                "without": None,
                "secret_lost": None,
                "focus": None,
                "calm": True,
                "doubles": 0.0,
                "receipts_fail": 1.0,
                **story,
            },
        )

    monkeypatch.setattr(plots, "write", write)
    monkeypatch.setattr(traffic, "rules", lambda *_: rules)
    monkeypatch.setattr(run, "Faults", lambda world, none: Faults(world, none=True))
    for unlikely in ("_ERASED", "_RECONCILED"):
        monkeypatch.setattr(f"tests.simulation.run.{unlikely}", 0.0)
    monkeypatch.setattr("tests.simulation.world.MOST_STEPS", 5_000_000)
    # (A tenth of the seeds are calm, and hold nothing back.)
    seed = next(one for one in range(99) if not World(one).chance(0.1))
    simulation = run.Simulation(seed)
    simulation.causes._calm = False  # (where nothing is wrong nobody waits, but for this)
    with run._quiet() as lines:
        lines.world = simulation.world
        simulation.run()
    simulation.world.close()
    assert not simulation.surprises()
    assert not lines.bugs
    return simulation


def texts(count: int, kind: str, within: float, name: str = "m") -> list[Text]:
    """From as many people, to one number of ours, over so many seconds."""
    exchange = {"m": 6, "p": 7}[name]
    return [
        Text(
            f"{name}{number}",
            kind,
            f"+141555{exchange}{number:04d}",
            TELNYXS,
            START + within * number / count,
            f"{name}{number} is the heron awake?",
        )
        for number in range(count)
    ]


def left_at(simulation: run.Simulation) -> list[float]:
    """When the provider took each segment."""
    return sorted(
        one.at - START for one in simulation.outside.accepted for _ in range(segments(one.words))
    )


def test_twenty_senders_keep_ten_segments_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN a number that may send ten segments a second
    rules = traffic.Rules(pacing={TELNYXS: {"per_second": RATE}})
    # WHEN six hundred texts come within five seconds, and twenty senders work on them
    simulation = played(monkeypatch, texts(600, outside.PLAIN, 5.0), rules)
    # THEN they leave at ten a second, from the first to the last ...
    times = left_at(simulation)[:600]  # (and a probe, when all is over)
    assert len(times) == 600
    rate = (len(times) - 1) / (times[-1] - times[0])
    assert RATE * (1 - WITHIN) < rate < RATE * (1 + WITHIN)
    # ... in each ten seconds of it
    for start in range(int(times[-1]) - 10):
        most = sum(start <= at < start + 10 for at in times)
        assert most <= 10 * RATE * (1 + WITHIN) + RATE, (start, most)


def test_texts_that_get_no_answer_take_no_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN the same number, and twelve hundred texts of which every other is answered
    rules = traffic.Rules(pacing={TELNYXS: {"per_second": RATE}})
    told = [replace(one, kind=outside.SILENT) for one in texts(600, outside.PLAIN, 5.0, "p")]
    both = [one for two in zip(texts(600, outside.PLAIN, 5.0), told, strict=True) for one in two]
    # WHEN twenty senders work on them
    simulation = played(monkeypatch, both, rules)
    # THEN the answers leave at the same rate
    times = left_at(simulation)[:600]
    assert len(times) == 600
    rate = (len(times) - 1) / (times[-1] - times[0])
    assert RATE * (1 - WITHIN) < rate < RATE * (1 + WITHIN)


def test_answers_go_ahead_of_a_campaign(monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN a campaign of forty seconds on a number, and people who write to it meanwhile
    rules = traffic.Rules(pacing={TELNYXS: {"per_second": RATE}})
    campaign = texts(400, outside.OUTGOING, 1.0)
    people = texts(40, outside.PLAIN, 20.0, "p")
    # WHEN all of it is sent
    simulation = played(monkeypatch, [*campaign, *people], rules)
    # THEN nobody who wrote waits for the campaign ...
    asked = {str(text.id): text.at for text in people}
    waited = [
        one.at - asked[one.reference.rpartition("-")[0]]
        for one in simulation.outside.accepted
        if one.reference.rpartition("-")[0] in asked
    ]
    assert len(waited) == 40
    assert max(waited) < 5
    # ... which keeps its pace meanwhile
    times = sorted(
        one.at - START
        for one in simulation.outside.accepted[:440]
        if one.reference.rpartition("-")[0] not in asked
    )
    rate = (len(times) - 1) / (times[-1] - times[0])
    assert RATE * (1 - WITHIN) < rate < RATE * (1 + WITHIN)
