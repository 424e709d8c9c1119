"""The engine that makes mutants: which ones it makes, that it puts them into the code that runs and
takes them out again, and that it calls caught what is caught."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from chalicelib import ledger as ledgers
from chalicelib.ledger import Busy, Ledger, PartEntry, Reply, draft
from chalicelib.messages import MessageId
from chalicelib.table import Table
from tests.fakes import NOW, OURS, THEIRS, FakeRuntime
from tests.simulation import mutants
from tests.simulation.mutants import (
    DIES,
    ENDLESS,
    Mutant,
    Score,
    Verdict,
    applied,
    equivalent,
    hunt,
    marked,
    mutants_of,
    reach,
    terms,
    without_term,
)

Load = Callable[[str], ModuleType]

# (Pythons from 3.12 on warn where a process with threads is forked, as pytest-xdist's are.)
forks = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    """Makes a module of a source, as an import would."""

    def loaded(source: str) -> ModuleType:
        path = tmp_path / "example.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location("example", path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules["example"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield loaded
    sys.modules.pop("example", None)


def mutant(module: ModuleType, id_: str) -> Mutant:
    return next(one for one in mutants_of(module) if one.id == id_)


# --- which mutants -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        pytest.param(
            "def f(t):\n    t.write(condition='a = :a AND b BETWEEN :b AND :c')",
            {
                "f:drop_condition:1": "condition: a = :a → true",
                "f:drop_condition:2": "condition: b BETWEEN :b AND :c → true",
                "f:delete_call:1": "t.write(condition='a = :a AND b BETWEEN :b AND :c') → pass",
            },
            id="each term of a condition",
        ),
        pytest.param(
            "def f(t):\n    return t.write(condition=f'{OWN} AND s = :s')\n"
            "OWN = 'o = :o AND n = :n'",
            {
                "f:drop_condition:1": "condition: o = :o → true",
                "f:drop_condition:2": "condition: n = :n → true",
                "f:drop_condition:3": "condition: s = :s → true",
            },
            id="... those of a constant too, which is written further down",
        ),
        pytest.param(
            "def f(t, new):\n"
            "    more = 'attribute_not_exists(pk)' if new else 'v = :v'\n"
            "    return t.write(condition=f'x = :x AND {more} AND {t.word}')",
            {
                "f:negate_guard:1": "if new → if not (…)",
                "f:drop_condition:1": "condition: x = :x → true",
                "f:drop_condition:2": "condition: attribute_not_exists(pk) or v = :v → true",
                "f:drop_condition:3": "condition: … → true",
            },
            id="... and of a variable, whatever it is",
        ),
        pytest.param(
            "def f(t, condition):\n    return t.write(condition=condition)",
            {},
            id="... but not where it only passes through",
        ),
        pytest.param(
            "def f(a, b):\n    x = a()\n    y: int = b()\n    c = d\n    return x",
            {"f:swap_calls:1": "x = a() ⇄ y: int = b()"},
            id="calls that follow each other",
        ),
        pytest.param(
            "def f(a, b):\n    x, y = a()\n    b(y)",
            {"f:delete_call:1": "b(y) → pass"},
            id="... but not where the second uses what the first makes",
        ),
        pytest.param(
            "class C:\n    def f(self, a, b):\n        self.x = a()\n        self.y = b(self.x)",
            {},
            id="... nor where it is an attribute",
        ),
        pytest.param(
            "def f(a, b):\n    for x in b:\n        a(x)\n        b(x)",
            {
                "f:swap_calls:1": "a(x) ⇄ b(x)",
                "f:delete_call:1": "a(x) → pass",
                "f:delete_call:2": "b(x) → pass",
            },
            id="... at any depth",
        ),
        pytest.param(
            "def f(a):\n"
            "    try:\n        return a\n"
            "    except (KeyError, ValueError):\n        return 1\n"
            "    except Exception:\n        return 2",
            {"f:widen_except:1": "except (KeyError, ValueError) → except Exception"},
            id="handlers that are not wide already",
        ),
        pytest.param(
            "def f(a):\n    with suppress(KeyError):\n        return a",
            {"f:widen_except:1": "suppress(KeyError) → suppress(Exception)"},
            id="... and what suppresses",
        ),
        pytest.param(
            "def f(a, b):\n"
            "    while a:\n        a = b if b else a\n"
            "    if a:\n        return 1\n"
            "    elif b:\n        return 2\n"
            "    return [x for x in b if x]",
            {
                "f:negate_guard:1": "while a → while not (…)",
                "f:negate_guard:2": "if b → if not (…)",
                "f:negate_guard:3": "if a → if not (…)",
                "f:negate_guard:4": "if b → if not (…)",
                "f:negate_guard:5": "if x → if not (…)",
            },
            id="every kind of guard",
        ),
        pytest.param(
            "def f(a):\n    return lambda: [g() for g in a if g]",
            {"f:negate_guard:1": "if g → if not (…)"},
            id="what stands in a lambda is its function's",
        ),
        pytest.param(
            "def f(a, log, count):\n"
            '    """What it does."""\n'
            "    log('x', reason='' if a else 'y')\n"
            "    count('x')\n"
            "    if a:\n        log('x')\n"
            "    _told(a)\n"
            "def _told(a):\n    log(a)\n    count(a)",
            {},
            id="not what only observes",
        ),
        pytest.param(
            "import sys\n"
            "def start():\n    sys.exit()\n"
            "class C:\n    def __init__(self):\n        sys.exit()\n"
            "if sys:\n    sys.exit\n"
            "A = 1 if sys else 2\n"
            "def f(a=1 if sys else 2): ...",
            {},
            id="nor what runs at import, nor what only makes things",
        ),
    ],
)
def test_the_mutants_of_a_source(load: Load, source: str, expected: dict[str, str]) -> None:
    found = {one.id: one.change for one in mutants_of(load(source))}
    prefix = "example.py:C." if source.startswith("class") else "example.py:"
    assert found == {prefix + id_: change for id_, change in expected.items()}


def test_a_mutant_says_where_it_is(load: Load) -> None:
    (only,) = mutants_of(load("\n\ndef f(a):\n    return 1 if a else 2"))
    assert (only.where, only.operator, only.function) == ("example.py:4", "negate_guard", "f")


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("a = :a", ["a = :a"]),
        ("a = :a AND b = :b", ["a = :a", "b = :b"]),
        (
            "a = :a AND (b = :b OR (c = :c AND d = :d))",
            ["a = :a", "(b = :b OR (c = :c AND d = :d))"],
        ),
        ("a BETWEEN :a AND :b AND c = :c", ["a BETWEEN :a AND :b", "c = :c"]),
        ("a = :a OR b = :b AND c = :c", ["a = :a OR b = :b AND c = :c"]),
        ("#ANDY = :AND AND c = :c", ["#ANDY = :AND", "c = :c"]),
    ],
)
def test_the_terms_of_a_condition(condition: str, expected: list[str]) -> None:
    assert terms(condition) == expected


def test_a_dropped_term_always_holds_and_names_what_it_named() -> None:
    always = "(b = :b OR attribute_exists(pk) OR attribute_not_exists(pk))"
    assert without_term("a = :a AND b = :b", 2) == f"a = :a AND {always}"
    assert without_term("a = :a AND b = :b", 3) == "a = :a AND b = :b"


# --- in the code that runs -----------------------------------------------------------------------

EXAMPLE = """
from functools import cached_property, wraps


def keep(function):
    @wraps(function)
    def kept(*arguments):
        return function(*arguments)

    return kept


@keep
def wrapped(a):
    return "yes" if a else "no"


def nested(a):
    def inner():
        return "yes" if a else "no"

    return inner()


def careful(a):
    try:
        return int(a)
    except ValueError:
        return 0


class Named(list):
    def append(self, name):
        super().append(name)
        return "yes" if name else "no"


class Thing:
    def method(self, a):
        return "yes" if a else "no"

    @staticmethod
    def static(a):
        return "yes" if a else "no"

    @classmethod
    def of_class(cls, a):
        return "yes" if a else "no"

    @property
    def shown(self):
        return "yes" if self else "no"

    @cached_property
    def kept(self):
        return "yes" if self else "no"
"""


@pytest.mark.parametrize(
    ("function", "call"),
    [
        ("wrapped", lambda example: example.wrapped(1)),
        ("nested", lambda example: example.nested(1)),
        ("Named.append", lambda example: example.Named().append("x")),
        ("Thing.method", lambda example: example.Thing().method(1)),
        ("Thing.static", lambda example: example.Thing.static(1)),
        ("Thing.of_class", lambda example: example.Thing.of_class(1)),
        ("Thing.shown", lambda example: example.Thing().shown),
        ("Thing.kept", lambda example: example.Thing().kept),
    ],
)
def test_a_mutant_is_in_the_code_that_runs_and_goes_again(
    load: Load, function: str, call: Callable[[ModuleType], str]
) -> None:
    example = load(EXAMPLE)
    before = set(vars(example))
    assert call(example) == "yes"
    with applied(mutant(example, f"example.py:{function}:negate_guard:1")):
        assert call(example) == "no"
    assert call(example) == "yes"
    assert set(vars(example)) == before


def test_who_holds_the_function_has_the_mutant_too(load: Load) -> None:
    example = load(EXAMPLE)
    held = example.nested
    with applied(mutant(example, "example.py:nested:negate_guard:1")):
        assert held(1) == "no"


def test_a_call_may_be_deleted_that_needs_a_free_variable(load: Load) -> None:
    example = load(EXAMPLE)
    named = example.Named()
    with applied(mutant(example, "example.py:Named.append:delete_call:1")):
        assert named.append("x") == "yes"
    assert named == []


def test_a_handler_is_widened(load: Load) -> None:
    example = load(EXAMPLE)
    with applied(mutant(example, "example.py:careful:widen_except:1")):
        assert example.careful(None) == 0
    with pytest.raises(TypeError):
        example.careful(None)


def test_calls_change_places(load: Load) -> None:
    example = load("def f(a):\n    a.append(1)\n    a.append(2)\n    a.append(3)")
    said: list[int] = []
    with applied(mutant(example, "example.py:f:swap_calls:2")):
        example.f(said)
    assert said == [1, 3, 2]


def test_places_are_marked_where_the_code_comes_to_them(load: Load) -> None:
    example = load(EXAMPLE)
    with marked(mutants_of(example)) as reached:
        assert example.nested(0) == "no"
        # A handler's place is come to by what it does not take.
        assert example.careful("heron") == 0
        assert reached == {"example.py:nested:negate_guard:1"}
        with pytest.raises(TypeError):
            example.careful(None)
        assert "example.py:careful:widen_except:1" in reached


def test_every_place_of_the_real_modules_can_be_marked() -> None:
    every = [one for module in mutants._modules() for one in mutants_of(module)]
    assert len({one.id for one in every}) == len(every) > 200
    with marked(every) as reached:
        assert ledgers._parts(None) == {}
        Reply.state.__get__(REPLY)
    assert "ledger.py:Reply.state:negate_guard:1" in reached


REPLY = Reply(MessageId("c" * 24, "7" * 24), "", "twilio", OURS, THEIRS, "", NOW, "", False, None)


def test_without_a_term_two_owners_claim_the_same_part(runtime: FakeRuntime) -> None:
    def claimed(owner: str) -> PartEntry:
        return ledger.claim(reply, part, owner=owner, lease_until=NOW + 65)

    # GIVEN a part that somebody has claimed
    ledger = Ledger(Table(runtime, "test"), runtime, keep_days=400)
    opening: dict[str, Any] = {"kind": "inbound", "provider": "twilio", "callback_url": ""}
    opened = ledger.open(REPLY.id, ours=OURS, theirs=THEIRS, received_at=NOW, **opening)
    ledger.store_words(draft(opened, [("heron", ())]))
    reply = ledger.find(REPLY.id) or REPLY
    (part,) = reply.parts or ()
    claimed("one")
    with pytest.raises(Busy):
        claimed("another")
    # WHEN the write does not look at the part's state
    with applied(mutant(ledgers, "ledger.py:Ledger.claim:drop_condition:2")):
        # THEN another has it
        assert claimed("another").owner == "another"
    with pytest.raises(Busy):
        claimed("one")


# --- the hunt ------------------------------------------------------------------------------------

HUNTED = """
import os


def play(seed):
    if seed == 3:
        return "even" if seed % 2 == 0 else None
    left = seed
    word = "some" if seed else "none"
    while left > 9:
        left -= 1
    if left < 0:
        os._exit(1)
    if left > 99:
        raise KeyError(seed)
    return None
"""
FATES = {
    "if seed == 3": ("caught", "even", 2),
    "if seed": ("survived", "", None),
    "if seed % 2 == 0": ("caught", "even", 3),
    "while left > 9": ("caught", ENDLESS, 1),
    "if left < 0": ("caught", DIES, 1),
    "if left > 99": ("caught", "(KeyError in the simulation)", 1),
}


@forks
def test_the_hunt_says_what_became_of_each(load: Load) -> None:
    # GIVEN mutants, of which one never ends, one ends the process and one makes the check fail
    example = load(HUNTED)
    every = [one for one in mutants_of(example) if one.operator == "negate_guard"]
    # WHEN they are hunted
    found = reach(every, [1, 2, 3], example.play, jobs=2)
    verdicts = list(hunt(every, found.seeds, example.play, jobs=2, seed_limit=0.5))
    # THEN each meets only the seeds that come to its place, in their order
    assert found.broken == {}
    assert found.seeds["example.py:play:negate_guard:2"] == [3]
    by_guard = {
        one.mutant.change.partition(" →")[0]: (one.outcome, one.invariant, one.seed)
        for one in verdicts
    }
    assert by_guard == FATES
    assert example.play(3) is None


@forks
def test_where_no_seed_comes_nothing_is_hunted(load: Load) -> None:
    example = load("def play(seed):\n    return None\ndef other(a):\n    return 1 if a else 2")
    every = mutants_of(example)
    found = reach(every, [1, 2], example.play, jobs=1)
    (verdict,) = hunt(every, found.seeds, example.play, jobs=1)
    assert (verdict.outcome, verdict.note) == ("survived", "no seed comes here")


@forks
def test_the_seeds_that_the_unmutated_code_fails_are_told(load: Load) -> None:
    example = load("def play(seed):\n    return 'odd' if seed % 2 else None")
    told: list[None] = []
    found = reach(mutants_of(example), range(4), example.play, 2, partial(told.append, None))
    assert found.broken == {1: "odd", 3: "odd"}
    assert len(told) == 4


@forks
def test_the_unmutated_code_must_not_end_the_process(load: Load) -> None:
    example = load("import os\ndef play(seed):\n    return os._exit(1) if seed else None")
    with pytest.raises(SystemExit):
        reach(mutants_of(example), [0, 1], example.play, jobs=1)


# --- those that are equivalent, and the score ----------------------------------------------------


@pytest.mark.parametrize(
    ("id_", "change", "problem"),
    [
        ("example.py:f:negate_guard:1", "if a → if not (…)", None),
        ("example.py:f:negate_guard:1", "if b → if not (…)", "is: if a → if not"),
        ("example.py:g:negate_guard:1", "if a → if not (…)", "there is no example.py:g"),
    ],
)
def test_an_entry_names_a_mutant_by_id_and_change(
    load: Load, tmp_path: Path, id_: str, change: str, problem: str | None
) -> None:
    example = load("def f(a):\n    return 1 if a else 2")
    path = tmp_path / "equivalent.toml"
    path.write_text(f'[[mutant]]\nid = "{id_}"\nchange = "{change}"\nreason = "both are said"\n')
    reasons, problems = equivalent(path, mutants_of(example))
    if problem is None:
        assert (reasons, problems) == ({id_: "both are said"}, [])
    else:
        assert reasons == {}
        assert problem in problems[0]


def test_the_share_is_of_those_that_are_not_equivalent() -> None:
    one = Mutant("id", "chalicelib.example", "f", 0, "negate_guard", 1, "")
    verdicts = [
        *(Verdict(one, "caught", "an invariant", seed) for seed in range(3)),
        Verdict(one, "survived"),
        Verdict(one, "equivalent"),
    ]
    assert Score.of(verdicts) == Score(mutants=5, caught=3, equivalent=1, survived=1)
    assert Score.of(verdicts).share == 0.75
    assert Score.of([]).share == 1.0
