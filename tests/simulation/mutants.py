"""Whether the simulation finds bugs: makes hundreds of small ones, one at a time, and looks which
invariant breaks in which seed.

python -m tests.simulation.mutants                          all, each against 200 seeds at most
python -m tests.simulation.mutants --only ledger            those with "ledger" in their id
python -m tests.simulation.mutants --replay ID --seed 17    one, with the trace of what it breaks

A mutant is one change of one function, made on its syntax tree:

    drop_condition   a term of a write's condition always holds
    swap_calls       two calls that follow each other change places
    delete_call      a call whose value nobody uses is not made
    widen_except     a handler, or suppress(), takes every exception
    negate_guard     the test of if, while or a comprehension is turned round

Left alone: log(), count() and what does nothing else (unit tests hold those), code that runs at
import, and what only makes and wires things: `start` and constructors. Breaker and loop guard are
no part of the promise: what they may not do, the other modules' invariants hold.

A seed that never comes to a mutant's place is the same seed with and without it; so all places are
marked first, in one run of the unmutated code, of three times as many seeds as a mutant may meet.
Each meets the first ones that come to its place, of these the short ones first.

A mutant that only shifts the schedule is a fresh seed to the simulation. So the unmutated code must
pass every seed: an invariant that it breaks now and then would "catch" whatever is put before it.
The mutants listed as equivalent are the control: `--check-equivalent` must catch none of them.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import inspect
import multiprocessing
import os
import re
import resource
import signal
import sys
import time
import tomllib
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache, cached_property
from itertools import pairwise, product
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

MODULES = (
    "sending",
    "batches",
    "ledger",
    "consent",
    "receiving",
    "processing",
    "settling",
    "receipts",
)
EQUIVALENT = Path(__file__).with_name("equivalent.toml")
REPORT = Path(__file__).parents[2] / "build" / "mutants.md"

SHARE = 0.95  # of those that are not equivalent has to be caught
POOL = 3  # times as many seeds are looked through as a mutant may meet
# Seconds of processor time, not of the clock: on a busy machine a survivor must not look caught.
SEED_LIMIT = 30.0  # a hundredth is usual; the simulation ends most that go on for ever by itself
MUTANT_LIMIT = 30.0  # for all seeds of a mutant: what is left over then are a few long ones
BLOCKED = 600.0  # seconds by the clock, for a child that waits for something
MEMORY = 4 << 30  # bytes of address space, for a mutant that gathers for ever

# What our own limits catch, told apart from the invariants of the simulation.
ENDLESS = "(a seed does not end)"
DIES = "(the process dies)"

# The name of the first invariant that a seed breaks, None where it breaks none.
Check = Callable[[int], str | None]
Function = ast.FunctionDef | ast.AsyncFunctionDef


# --- where one change can be made, and what it is ------------------------------------------------


@dataclass(frozen=True)
class Site:
    """A place in a tree where one operator makes one change: `replaced` by what. Who comes to the
    place evaluates `reached`."""

    operator: str
    line: int
    change: str
    reached: ast.expr
    replaced: Mapping[ast.AST, ast.AST]


class Scope:
    """What the operators ask about the function that they are in."""

    def __init__(self, module: ModuleType, function: Function, observers: frozenset[str]) -> None:
        self._namespace = vars(module)
        self._function = function
        self._observers = observers

    def observes(self, node: ast.AST) -> bool:
        """Whether a statement does nothing but tell what happens."""
        return _calls_one_of(node, self._observers)

    @cached_property
    def parameters(self) -> frozenset[str]:
        arguments = self._function.args
        every = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
        return frozenset(one.arg for one in every)

    def texts(self, expression: ast.AST) -> list[str]:
        """What a string may be, as far as the source says; `…` stands for what it does not."""
        match expression:
            case ast.Constant(value=str(text)):
                return [text]
            case ast.FormattedValue(value=value):
                return self.texts(value)
            case ast.JoinedStr(values=values):
                return ["".join(each) for each in product(*map(self.texts, values))]
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return ["".join(each) for each in product(self.texts(left), self.texts(right))]
            case ast.IfExp(body=body, orelse=orelse):
                return self.texts(body) + self.texts(orelse)
            case ast.Name(id=name):
                bound = [one for value in self._assigned(name) for one in self.texts(value)]
                known = self._namespace.get(name)
                return bound or ([known] if isinstance(known, str) else ["…"])
        return ["…"]

    def _assigned(self, name: str) -> list[ast.expr]:
        return [
            node.value
            for node in ast.walk(self._function)
            if isinstance(node, ast.Assign)
            and any(isinstance(target, ast.Name) and target.id == name for target in node.targets)
        ]


def drop_condition(node: ast.AST, scope: Scope) -> Iterator[Site]:
    if not isinstance(node, ast.Call):
        return
    for keyword in node.keywords:
        value = keyword.value
        if keyword.arg != "condition":
            continue
        if isinstance(value, ast.Name) and value.id in scope.parameters:
            continue  # whoever passes it has the terms
        variants = [terms(text) for text in scope.texts(value)]
        for number in range(1, max(map(len, variants)) + 1):
            dropped = ast.Call(
                ast.Name("__without_term__", ast.Load()), [value, ast.Constant(number)], []
            )
            each = dict.fromkeys(one[number - 1] for one in variants if len(one) >= number)
            change = f"condition: {' or '.join(each)} → true"
            yield Site("drop_condition", value.lineno, change, value, {value: dropped})


def swap_calls(node: ast.AST, scope: Scope) -> Iterator[Site]:
    for name in ("body", "orelse", "finalbody"):
        statements = getattr(node, name, None)
        if not isinstance(statements, list):
            continue
        for first, second in pairwise(statements):
            call = _call_in(first)
            if call is None or _call_in(second) is None:
                continue
            if scope.observes(first) or scope.observes(second):
                continue
            if _bound(first) & (_used(second) | _bound(second)):
                continue
            change = f"{_short(first, 60)} ⇄ {_short(second, 60)}"
            swapped = {first: second, second: first}
            yield Site("swap_calls", first.lineno, change, call, swapped)


def delete_call(node: ast.AST, scope: Scope) -> Iterator[Site]:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        # Still there for the compiler, so that the function's free variables stay what they were.
        never = ast.If(ast.Constant(False), [node], [])
        yield Site("delete_call", node.lineno, f"{_short(node)} → pass", node.value, {node: never})


def widen_except(node: ast.AST, scope: Scope) -> Iterator[Site]:
    match node:
        case ast.ExceptHandler(type=ast.expr() as narrow):
            word = f"except {_short(narrow)} → except Exception"
        case ast.Call(func=ast.Name(id="suppress"), args=[narrow]):
            word = f"suppress({_short(narrow)}) → suppress(Exception)"
        case _:
            return
    if _short(narrow) not in ("Exception", "BaseException"):
        wide = ast.Name("Exception", ast.Load())
        yield Site("widen_except", node.lineno, word, narrow, {narrow: wide})


def negate_guard(node: ast.AST, scope: Scope) -> Iterator[Site]:
    tests: list[ast.expr] = []
    if isinstance(node, ast.comprehension):
        tests = node.ifs
    elif isinstance(node, (ast.If, ast.While, ast.IfExp)):
        tests = [node.test]
    if isinstance(node, ast.If) and all(map(scope.observes, [*node.body, *node.orelse])):
        tests = []
    for test in tests:
        word = "while" if isinstance(node, ast.While) else "if"
        change = f"{word} {_short(test)} → {word} not (…)"
        yield Site("negate_guard", test.lineno, change, test, {test: ast.UnaryOp(ast.Not(), test)})


OPERATORS = (drop_condition, swap_calls, delete_call, widen_except, negate_guard)


def terms(condition: str) -> list[str]:
    """The terms of a condition that AND joins at its top."""
    found, start, depth, between = [], 0, 0, False
    for match in re.finditer(r"[()]|(?<!\S)(?:AND|OR|BETWEEN)(?!\S)", condition):
        word = match[0]
        if word in "()":
            depth += 1 if word == "(" else -1
        elif depth:
            continue
        elif word == "OR":
            return [condition]
        elif word == "AND" and not between:
            found.append(condition[start : match.start()].strip())
            start = match.end()
        else:
            between = word == "BETWEEN"
    return [*found, condition[start:].strip()]


def without_term(condition: str, number: int) -> str:
    """The condition, with a term that always holds. It still names what the term named: DynamoDB
    refuses names and values that are given and not used."""
    every = terms(condition)
    if number <= len(every):
        always = f"({every[number - 1]} OR attribute_exists(pk) OR attribute_not_exists(pk))"
        every[number - 1] = always
    return " AND ".join(every)


def _call_in(statement: ast.stmt) -> ast.Call | None:
    if isinstance(statement, (ast.Expr, ast.Assign, ast.AnnAssign)):
        return statement.value if isinstance(statement.value, ast.Call) else None
    return None


def _bound(statement: ast.AST) -> set[str]:
    """The names, attributes and items that a statement assigns."""
    return {
        ast.unparse(node)
        for node in ast.walk(statement)
        if isinstance(getattr(node, "ctx", None), ast.Store)
    }


def _used(statement: ast.AST) -> set[str]:
    return {
        ast.unparse(node)
        for node in ast.walk(statement)
        if isinstance(getattr(node, "ctx", None), ast.Load)
    }


def _calls_one_of(node: ast.AST, names: Iterable[str]) -> bool:
    match node:
        case ast.Expr(value=ast.Call(func=ast.Name(id=name))):
            return name in names
    return False


def _short(node: ast.AST, most: int = 100) -> str:
    line = " ".join(ast.unparse(node).split())
    return line if len(line) <= most else line[: most - 1] + "…"


# --- all of a module -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutant:
    """One change. `id` names it as long as its function keeps its shape; `number` is its place in
    the list of its module's sites."""

    id: str
    module: str
    function: str
    number: int
    operator: str
    line: int
    change: str

    @property
    def where(self) -> str:
        return f"{self.module.replace('.', '/')}.py:{self.line}"


def mutants_of(module: ModuleType) -> list[Mutant]:
    """Every mutant of a module, in the order of the source."""
    found: list[Mutant] = []
    numbers: Counter[tuple[str, str]] = Counter()
    for number, (function, site) in enumerate(_sites(module, _tree(module))):
        numbers[function, site.operator] += 1
        ordinal = numbers[function, site.operator]
        file = f"{module.__name__.rpartition('.')[2]}.py"
        found.append(
            Mutant(
                f"{file}:{function}:{site.operator}:{ordinal}",
                module.__name__,
                function,
                number,
                site.operator,
                site.line,
                site.change,
            )
        )
    return found


def _tree(module: ModuleType) -> ast.Module:
    assert module.__file__ is not None
    return ast.parse(_source(module.__file__), module.__file__)


@cache
def _source(path: str) -> bytes:
    # Once: somebody may be writing on, while what runs is what was imported.
    return Path(path).read_bytes()


def _sites(module: ModuleType, tree: ast.Module) -> list[tuple[str, Site]]:
    """Every site, with the qualified name of the function that it is in."""
    observers = _observers(tree)
    found = []
    for name, function in _functions(tree.body):
        scope = Scope(module, function, observers)
        # (Without its decorators and defaults, which are evaluated at import.)
        body = ast.Module(function.body, [])
        for node in _nodes(body, scope):
            found += [(name, site) for operator in OPERATORS for site in operator(node, scope)]
    return found


def _functions(body: Sequence[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Function]]:
    """The functions that can be found by name: those of the module, and methods."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from _functions(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, Function) and node.name not in ("start", "__init__"):
            yield prefix + node.name, node


def _nodes(node: ast.AST, scope: Scope) -> Iterator[ast.AST]:
    """Depth first, without what only observes."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not scope.observes(child):
            yield from _nodes(child, scope)


def _observers(tree: ast.Module) -> frozenset[str]:
    """log() and count(), and the functions of a module that do nothing but call them."""
    found = {"log", "count"}
    for name, function in _functions(tree.body):
        if all(_calls_one_of(statement, found) for statement in function.body):
            found.add(name)
    return frozenset(found)


# --- put into the code that runs -----------------------------------------------------------------


@contextmanager
def applied(mutant: Mutant) -> Iterator[None]:
    """The function is the mutated one, for whoever calls it by whatever reference."""
    module = importlib.import_module(mutant.module)
    tree = _tree(module)
    _, site = _sites(module, tree)[mutant.number]
    mutated = _Replacing(site.replaced).visit(tree)
    with _live(module, mutated, {mutant.function}, {"__without_term__": without_term}):
        yield


@contextmanager
def marked(mutants: Sequence[Mutant]) -> Iterator[set[str]]:
    """The functions do what they did, and the set gets the ids of the mutants whose places are
    come to. A handler's place is come to by an exception that it does not take."""
    reached: set[str] = set()

    def passing(id_: str, narrow: Any) -> Any:
        error = sys.exc_info()[1]
        if isinstance(error, Exception) and not isinstance(error, narrow):
            reached.add(id_)
        return narrow

    helpers = {"__reached__": reached.add, "__passing__": passing}
    by_module: dict[str, list[Mutant]] = defaultdict(list)
    for mutant in mutants:
        by_module[mutant.module].append(mutant)
    with ExitStack() as stack:
        for name, some in by_module.items():
            module = importlib.import_module(name)
            tree = _tree(module)
            sites = _sites(module, tree)
            marks: dict[ast.AST, list[Mutant]] = defaultdict(list)
            for mutant in some:
                marks[sites[mutant.number][1].reached].append(mutant)
            functions = {mutant.function for mutant in some}
            stack.enter_context(_live(module, _Marking(marks).visit(tree), functions, helpers))
        yield reached


class _Replacing(ast.NodeTransformer):
    def __init__(self, replaced: Mapping[ast.AST, ast.AST]) -> None:
        self._replaced = replaced

    def visit(self, node: ast.AST) -> ast.AST:
        if node in self._replaced:
            return ast.copy_location(self._replaced[node], node)
        visited: ast.AST = self.generic_visit(node)
        return visited


class _Marking(ast.NodeTransformer):
    """`test` becomes `__reached__(id) or test`, and a handler's type `__passing__(id, type)`."""

    def __init__(self, marks: Mapping[ast.AST, Sequence[Mutant]]) -> None:
        self._marks = marks

    def visit(self, node: ast.AST) -> ast.AST:
        marked: Any = self.generic_visit(node)
        for mutant in self._marks.get(node, ()):
            id_ = ast.Constant(mutant.id)
            if mutant.change.startswith("except "):
                marked = ast.Call(ast.Name("__passing__", ast.Load()), [id_, marked], [])
            else:
                mark = ast.Call(ast.Name("__reached__", ast.Load()), [id_], [])
                marked = ast.BoolOp(ast.Or(), [mark, marked])
        visited: ast.AST = marked
        return ast.copy_location(visited, node)


@contextmanager
def _live(
    module: ModuleType, tree: ast.AST, functions: Iterable[str], helpers: Mapping[str, object]
) -> Iterator[None]:
    """These functions of the module run the code of this tree meanwhile."""
    assert isinstance(tree, ast.Module)
    assert module.__file__ is not None
    compiled = compile(ast.fix_missing_locations(tree), module.__file__, "exec", dont_inherit=True)
    codes = {code.co_qualname: code for code in _codes(compiled)}
    before: dict[FunctionType, CodeType] = {}
    vars(module).update(helpers)
    try:
        for name in functions:
            function, code = _function(module, name), codes[name]
            old = function.__code__
            assert (old.co_firstlineno, len(old.co_freevars)) == (
                code.co_firstlineno,
                len(code.co_freevars),
            ), f"{name} is not the function that its file has"
            before[function] = old
            function.__code__ = code
        yield
    finally:
        for function, old in before.items():
            function.__code__ = old
        for name in helpers:
            del vars(module)[name]


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


def _function(module: ModuleType, name: str) -> FunctionType:
    """The live function, out of whatever it is wrapped in."""
    found: Any = module
    for part in name.split("."):
        found = inspect.getattr_static(found, part)
    for inside in ("__func__", "fget", "func"):
        found = getattr(found, inside, found)
    found = inspect.unwrap(found)
    assert isinstance(found, FunctionType), name
    return found


# --- hunting -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant. `seed` and `invariant` where it was caught; `note` says more."""

    mutant: Mutant
    outcome: Literal["caught", "survived", "equivalent"]
    invariant: str = ""
    seed: int | None = None
    note: str = ""


@dataclass
class Reach:
    """The unmutated code's seeds: those that come to each mutant's place, and those it fails."""

    seeds: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    broken: dict[int, str] = field(default_factory=dict)


def reach(
    mutants: Sequence[Mutant],
    seeds: Sequence[int],
    check: Check,
    jobs: int,
    told: Callable[[], object] = lambda: None,
    most: int | None = None,
) -> Reach:
    """Plays the unmutated code. `told` is called after each seed; `most`: for a mutant."""
    found = Reach()
    places: dict[int, set[str]] = {}
    seconds: dict[int, float] = {}
    with marked(mutants) as reached:
        children = [
            _Child.start(_play_marked, reached, seeds[n::jobs], check)
            for n in range(min(jobs, len(seeds)))
        ]
    left = {child.pipe: child for child in children}
    while left:
        for pipe in _ready(left):
            try:
                seed, invariant, ids, seconds[seed] = pipe.recv()
            except EOFError:
                left.pop(pipe).process.join()
                continue
            places[seed] = ids
            if invariant is not None:
                found.broken[seed] = invariant
            told()
    if len(places) < len(seeds):
        raise SystemExit("A seed of the unmutated code ends the whole process.")
    for seed in seeds:
        for id_ in places[seed]:
            found.seeds[id_].append(seed)
    for id_, some in found.seeds.items():
        found.seeds[id_] = sorted(some[:most], key=lambda one: round(seconds[one], 1))
    return found


def hunt(
    mutants: Sequence[Mutant],
    seeds: Mapping[str, Sequence[int]],
    check: Check,
    jobs: int,
    seed_limit: float = SEED_LIMIT,
) -> Iterator[Verdict]:
    """Each mutant in a process of its own, against its own seeds until one catches it."""
    waiting = deque(mutants)
    running: dict[Connection, _Hunt] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.popleft()
            if not seeds.get(mutant.id):
                yield Verdict(mutant, "survived", note="no seed comes here")
                continue
            with applied(mutant):
                child = _Child.start(_play, seeds[mutant.id], check, seed_limit)
            running[child.pipe] = _Hunt(mutant, child, len(seeds[mutant.id]))
        for pipe in _ready(running, timeout=0.5):
            if verdict := running[pipe].heard():
                del running[pipe]
                yield verdict
        for pipe, one in list(running.items()):
            if verdict := one.blocked():
                del running[pipe]
                yield verdict


def _ready(pipes: Iterable[Connection], timeout: float | None = None) -> list[Connection]:
    """Those on which something was said, or the other end is gone."""
    some = list(pipes)
    return [one for one in wait(some, timeout) if isinstance(one, Connection)] if some else []


class _Child:
    """A process, and the pipe that it reports on."""

    def __init__(self, process: Any, pipe: Connection) -> None:
        self.process = process
        self.pipe = pipe

    @classmethod
    def start(cls, work: Callable[..., None], *arguments: Any) -> _Child:
        # Forked: it has the code as it is changed now, and everything imported.
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(*arguments, theirs), daemon=True)
        process.start()
        theirs.close()
        return cls(process, ours)


class _Hunt:
    """One mutant under way."""

    def __init__(self, mutant: Mutant, child: _Child, seeds: int) -> None:
        self._mutant = mutant
        self._child = child
        self._seeds = seeds
        self._since = time.monotonic()
        self._seed: int | None = None
        self._begun = 0

    def heard(self) -> Verdict | None:
        """Takes what the child says: a number is the seed that it begins."""
        try:
            said = self._child.pipe.recv()
        except EOFError:
            self._child.process.join()
            timed_out = self._child.process.exitcode == -signal.SIGPROF
            return self._caught(ENDLESS if timed_out else DIES)
        if isinstance(said, int):
            self._seed, self._since = said, time.monotonic()
            self._begun += 1
            return None
        self._child.process.join()
        if said is not None:
            return self._caught(said)
        cut = f"only {self._begun} of {self._seeds} seeds in {MUTANT_LIMIT:.0f} s"
        return Verdict(self._mutant, "survived", note=cut if self._begun < self._seeds else "")

    def blocked(self) -> Verdict | None:
        if time.monotonic() - self._since < BLOCKED:
            return None
        self._child.process.kill()
        self._child.process.join()
        return self._caught(ENDLESS)

    def _caught(self, invariant: str) -> Verdict:
        return Verdict(self._mutant, "caught", invariant, self._seed)


def _play(seeds: Sequence[int], check: Check, seed_limit: float, pipe: Connection) -> None:
    """In a child: says each seed before it begins, and at the end how it was caught, or None."""
    _alone()
    for seed in seeds:
        pipe.send(seed)
        # Ends the process: an exception might be caught by the very code that does not end.
        signal.setitimer(signal.ITIMER_PROF, seed_limit)
        try:
            caught = check(seed)
        except Exception as error:
            caught = f"({type(error).__name__} in the simulation)"
        if caught or time.process_time() > MUTANT_LIMIT:
            pipe.send(caught)
            return
    pipe.send(None)


def _play_marked(reached: set[str], seeds: Sequence[int], check: Check, pipe: Connection) -> None:
    _alone()
    for seed in seeds:
        reached.clear()
        began = time.process_time()
        invariant = check(seed)
        pipe.send((seed, invariant, set(reached), time.process_time() - began))


def _alone() -> None:
    """A child says nothing on the screen and takes only its share of the memory."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    _limit(resource.RLIMIT_AS, MEMORY)


def _limit(what: int, most: int) -> None:
    with suppress(ValueError, OSError):  # not every system has every limit
        resource.setrlimit(what, (most, most))


# --- those that change nothing that matters ------------------------------------------------------


def equivalent(path: Path, mutants: Iterable[Mutant]) -> tuple[dict[str, str], list[str]]:
    """The reasons by id, and what is wrong with the file: entries that name no mutant. An entry
    names one by id and change, so that it cannot come to mean another when its function changes."""
    known = {mutant.id: mutant for mutant in mutants}
    reasons, problems = {}, []
    for entry in tomllib.loads(path.read_text()).get("mutant", []):
        id_, change = entry["id"], entry["change"]
        if id_ not in known:
            problems.append(f"{path.name}: there is no {id_}")
        elif known[id_].change != change:
            problems.append(f"{path.name}: {id_} is: {known[id_].change}")
        else:
            reasons[id_] = entry["reason"]
    return reasons, problems


# --- telling -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """How many of some verdicts came out how."""

    mutants: int
    caught: int
    equivalent: int
    survived: int

    @classmethod
    def of(cls, verdicts: Iterable[Verdict]) -> Score:
        counted = Counter(verdict.outcome for verdict in verdicts)
        return cls(counted.total(), counted["caught"], counted["equivalent"], counted["survived"])

    @property
    def share(self) -> float:
        """Of those that are not equivalent, those caught."""
        real = self.mutants - self.equivalent
        return self.caught / real if real else 1.0

    def cells(self) -> list[str]:
        numbers = (self.mutants, self.caught, self.equivalent, self.survived)
        return [*map(str, numbers), f"{self.share:.0%}" if self.share < 1 else "all"]


def groups(verdicts: Sequence[Verdict]) -> list[tuple[str, str, Score]]:
    """Module, operator, score."""
    grouped: dict[tuple[str, str], list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        module = verdict.mutant.module.rpartition(".")[2]
        grouped[module, verdict.mutant.operator].append(verdict)
    return [(*key, Score.of(some)) for key, some in grouped.items()]


def catchers(verdicts: Iterable[Verdict]) -> list[tuple[str, int]]:
    """How many mutants each invariant caught, most first."""
    caught = (verdict.invariant for verdict in verdicts if verdict.outcome == "caught")
    return Counter(caught).most_common()


def _table(verdicts: Sequence[Verdict]) -> Table:
    table = Table("module", "operator")
    for heading in ("mutants", "caught", "equivalent", "survived", "share"):
        table.add_column(heading, justify="right")
    last = ""
    for module, operator, score in groups(verdicts):
        table.add_row(module if module != last else "", operator, *score.cells())
        last = module
    table.add_section()
    table.add_row("all", "", *Score.of(verdicts).cells())
    return table


def _markdown(verdicts: Sequence[Verdict], reasons: Mapping[str, str]) -> str:
    """Each mutant with what caught it, for whoever wants to look at all of them."""
    score = Score.of(verdicts)
    lines = [
        "# Mutants",
        "",
        f"{score.mutants} mutants, {score.caught} caught, {score.equivalent} equivalent,"
        f" {score.survived} survived: {score.share:.1%} of those that are not equivalent.",
        "",
        "| Module | Operator | Mutants | Caught | Equivalent | Survived | Share |",
        "| --- | --- | --: | --: | --: | --: | --: |",
        *(
            f"| {module} | {operator} | {' | '.join(one.cells())} |"
            for module, operator, one in groups(verdicts)
        ),
        "",
        "| Mutants caught by | |",
        "| --- | --: |",
        *(f"| {invariant} | {number} |" for invariant, number in catchers(verdicts)),
        "",
        "| Mutant | Line | Change | Outcome |",
        "| --- | --: | --- | --- |",
    ]
    for verdict in verdicts:
        mutant = verdict.mutant
        change = mutant.change.replace("|", "\\|")
        outcome = _outcome(verdict, reasons)
        lines.append(f"| {mutant.id} | {mutant.line} | `{change}` | {outcome} |")
    return "\n".join(lines) + "\n"


def _outcome(verdict: Verdict, reasons: Mapping[str, str]) -> str:
    if verdict.outcome == "caught":
        return f"{verdict.invariant} (seed {verdict.seed})"
    if verdict.outcome == "equivalent":
        return f"equivalent: {reasons[verdict.mutant.id]}"
    return f"**survived** {verdict.note}".strip()


def _listed(console: Console, title: str, lines: Sequence[tuple[Mutant, str]]) -> None:
    if lines:
        console.print(f"\n[bold]{title}[/bold]")
    for mutant, said in lines:
        console.print(f"{mutant.where}  {mutant.id}", markup=False, soft_wrap=True)
        console.print(f"    {mutant.change}", markup=False, soft_wrap=True)
        if said:
            console.print(f"    {said}", markup=False, soft_wrap=True)


# --- the command ---------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 where enough mutants are caught and the list of equivalent ones is true."""
    options = _options().parse_args(arguments)
    console = Console(highlight=False)
    every = [mutant for module in _modules() for mutant in mutants_of(module)]
    if options.replay:
        return _replay(console, every, options.replay, options.seed)
    chosen = [mutant for mutant in every if fnmatchcase(mutant.id, f"*{options.only}*")]
    reasons, problems = equivalent(EQUIVALENT, every)
    seeds = range(options.start, options.start + POOL * options.seeds)
    began = time.monotonic()
    verdicts = _judge(console, chosen, reasons, seeds, options)
    for verdict in verdicts:
        if verdict.outcome == "caught" and verdict.mutant.id in reasons:
            problems.append(
                f"{EQUIVALENT.name}: {verdict.mutant.id} is not: seed {verdict.seed} catches it"
            )
    _report(console, verdicts, reasons)
    score = Score.of(verdicts)
    if score.share < SHARE:
        problems.append(f"{score.share:.1%} are caught, fewer than {SHARE:.0%}")
    for problem in problems:
        console.print(problem, markup=False, soft_wrap=True)
    console.print(f"{time.monotonic() - began:.0f} s; each mutant with its seed: {REPORT}")
    return 1 if problems else 0


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make mutants")
    parser.add_argument("--seeds", type=int, default=200, help="how many, at most, a mutant")
    parser.add_argument("--from", dest="start", type=int, default=0, help="the first seed")
    parser.add_argument("--only", default="", help="those whose id has this (* and ? as in files)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument(
        "--check-equivalent", action="store_true", help="hunt those called equivalent, too"
    )
    parser.add_argument("--replay", help="the id of one mutant, to see what it breaks")
    parser.add_argument("--seed", type=int, default=0, help="... in this seed")
    return parser


def _modules() -> list[ModuleType]:
    names = [f"chalicelib.{name}" for name in MODULES]
    return [importlib.import_module(name) for name in names if importlib.util.find_spec(name)]


def _first_broken(seed: int) -> str | None:
    from tests.simulation.run import run_seed

    return next((violation.invariant for violation in run_seed(seed).violations), None)


def _judge(
    console: Console,
    mutants: Sequence[Mutant],
    reasons: Mapping[str, str],
    seeds: Sequence[int],
    options: argparse.Namespace,
) -> list[Verdict]:
    importlib.import_module("tests.simulation.run").collect_rarely()
    hunted = [m for m in mutants if options.check_equivalent or m.id not in reasons]
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        auto_refresh=False,  # (its thread would be forked in the middle of a line)
        disable=not console.is_terminal,
    ) as progress:
        told = _Told(console, progress, "unmutated seeds", len(seeds))
        found = reach(hunted, seeds, _first_broken, options.jobs, told.one, options.seeds)
        _must_stand(found.broken)
        told = _Told(console, progress, "mutants", len(hunted))
        by_id: dict[str, Verdict] = {}
        for verdict in hunt(hunted, found.seeds, _first_broken, options.jobs):
            by_id[verdict.mutant.id] = verdict
            told.one(survived=verdict.outcome == "survived")
    for mutant in mutants:
        if mutant.id in reasons and (
            mutant.id not in by_id or by_id[mutant.id].outcome == "survived"
        ):
            by_id[mutant.id] = Verdict(mutant, "equivalent")
    return [by_id[mutant.id] for mutant in mutants]


class _Told:
    """How far it is: a bar on a terminal, else a line now and then."""

    def __init__(self, console: Console, progress: Progress, what: str, total: int) -> None:
        self._console = console
        self._progress = progress
        self._what = what
        self._total = total
        self._done = self._survived = 0
        self._bar = progress.add_task(what, total=total)

    def one(self, *, survived: bool = False) -> None:
        self._done += 1
        self._survived += survived
        said = f", {self._survived} not caught" if self._survived else ""
        self._progress.update(self._bar, advance=1, description=self._what + said, refresh=True)
        if not self._console.is_terminal and self._done % 50 == 0:
            self._console.print(f"{self._done} of {self._total} {self._what}{said}")


def _must_stand(broken: Mapping[int, str]) -> None:
    if broken:
        seed, invariant = min(broken.items())
        raise SystemExit(
            f"The unmutated code fails {len(broken)} of the seeds, the first of them {seed}:"
            f" {invariant}. No mutant can be judged before that is mended:"
            f" make simulate REPLAY={seed}"
        )


def _report(console: Console, verdicts: Sequence[Verdict], reasons: Mapping[str, str]) -> None:
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(_markdown(verdicts, reasons))
    console.print(_table(verdicts))
    for invariant, number in catchers(verdicts):
        console.print(f"{number:6}  {invariant}", markup=False)
    same = [v.mutant for v in verdicts if v.outcome == "equivalent"]
    _listed(console, "Equivalent", [(mutant, reasons[mutant.id]) for mutant in same])
    left = [(v.mutant, v.note) for v in verdicts if v.outcome == "survived"]
    _listed(console, "Survived", left)


def _replay(console: Console, mutants: Sequence[Mutant], id_: str, seed: int) -> int:
    from tests.simulation import trace
    from tests.simulation.run import run_seed

    mutant = next((one for one in mutants if one.id == id_), None)
    if mutant is None:
        raise SystemExit(f"There is no mutant {id_}.")
    _listed(console, f"Seed {seed} with", [(mutant, "")])
    with applied(mutant):
        outcome = run_seed(seed)
    for violation in outcome.violations:
        console.print(f"{violation}", markup=False, soft_wrap=True)
        console.print(trace.told(outcome, violation), markup=False, soft_wrap=True)
    if not outcome.violations:
        console.print("It breaks nothing.")
    return 1 if outcome.violations else 0


if __name__ == "__main__":
    sys.exit(main())
