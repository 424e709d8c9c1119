"""docs/DELIVERY.md: what each failure is held by exists, and the page forgets no fault or invariant
of the simulation."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from functools import cache

import pytest

from tests.pages import DOCS, ROOT, TEST, names_in, rows
from tests.simulation.faults import HTTP_FAULTS, STORE_EXTRAS, STORE_FAULTS
from tests.simulation.story import Story

PAGE = DOCS / "DELIVERY.md"
PROMISE = (
    "*Nothing acknowledged is dropped; each text is answered at most once automatically; sends of"
    " unknown outcome are settled by evidence or listed for a decision.*"
)
# A part of the simulation as the page names it: its kind, and its name there.
PART = re.compile(r"`(fault|story|simulation|invariant): ([^`]+)`")
# Each: what fails, what happens then, what is left for a person, what holds it.
FAILURES = rows(PAGE, "What fails, and what happens then")


@cache
def tree(module: str) -> ast.Module:
    """The source of a module of the simulation."""
    path = ROOT.joinpath("tests", "simulation", *module.split(".")).with_suffix(".py")
    return ast.parse(path.read_text())


@cache
def invariants() -> frozenset[str]:
    """The name of every promise that the simulation can say was broken."""
    calls = [
        node
        for module in (
            "invariants",
            "causes",
            "person",
            "run",
            "functions",
            "traffic",
            "slots",
            "hearing",
        )
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Violation"
    ]
    return frozenset(ast.literal_eval(call.args[0]) for call in calls)


@cache
def members_of(module: str, class_: str) -> frozenset[str]:
    """The methods of a class of the simulation, and what its methods set on `self`."""
    (found,) = (
        node for node in tree(module).body if isinstance(node, ast.ClassDef) and node.name == class_
    )
    return frozenset(
        node.name if isinstance(node, ast.FunctionDef) else node.attr
        for node in ast.walk(found)
        if isinstance(node, ast.FunctionDef)
        or (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and ast.unparse(node.value) == "self"
        )
    )


def exists(kind: str, name: str) -> bool:
    if kind == "fault":
        return name in {*STORE_FAULTS, *STORE_EXTRAS, *HTTP_FAULTS}
    if kind == "story":
        return name in {field.name for field in fields(Story)}
    if kind == "invariant":
        return name in invariants()
    module, class_, member = name.rsplit(".", 2)
    return member in members_of(module, class_)


def named(kind: str) -> set[str]:
    """What of the simulation the page names."""
    return {name for found, name in PART.findall(PAGE.read_text()) if found == kind}


def test_the_promise_is_in_these_words() -> None:
    assert PROMISE in " ".join(PAGE.read_text().split())


def test_the_page_has_the_failures() -> None:
    assert len(FAILURES) > 40


@pytest.mark.parametrize("row", FAILURES, ids=lambda row: row[0][:40])
def test_what_holds_a_failure_exists(row: list[str]) -> None:
    what, then, left, held_by = row
    assert what
    assert then
    assert left
    tests, parts = TEST.findall(held_by), PART.findall(held_by)
    assert tests or parts
    assert PART.sub("", TEST.sub("", held_by)).strip() == ""
    for file, test in tests:
        assert test in names_in(file), f"{file} has no {test}"
    for kind, name in parts:
        assert exists(kind, name), f"the simulation has no {kind}: {name}"


def test_the_page_names_every_fault() -> None:
    assert named("fault") == {*STORE_FAULTS, *STORE_EXTRAS, *HTTP_FAULTS}


def test_the_page_names_every_invariant() -> None:
    assert named("invariant") == invariants()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("fault", "no such fault"),
        ("story", "no_such_field"),
        ("invariant", "no such invariant"),
        ("simulation", "outside.Outside.no_such_member"),
    ],
)
def test_what_is_not_there_is_seen(kind: str, name: str) -> None:
    assert not exists(kind, name)
