"""docs/COMPLIANCE.md: each rule has its source, and the tests that hold it are there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def rows() -> list[list[str]]:
    """The table's rows: rule, source, what is done, tests."""
    lines = (ROOT / "docs" / "COMPLIANCE.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


@cache
def names_in(file: str) -> frozenset[str]:
    """The tests of a file, by name."""
    module = ast.parse((ROOT / file).read_text())
    functions = (node for node in module.body if isinstance(node, ast.FunctionDef))
    return frozenset(node.name for node in functions if node.name.startswith("test_"))


def test_the_page_has_the_rules() -> None:
    assert len(rows()) > 10


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:40])
def test_a_rule_has_a_source_and_tests_that_exist(row: list[str]) -> None:
    rule, source, what, held_by = row
    assert rule
    assert what
    assert source == "ours" or re.search(r"\]\(https://\S+\)", source)
    named = TEST.findall(held_by)
    assert named
    assert TEST.sub("", held_by).strip() == ""
    for file, test in named:
        assert test in names_in(file), f"{file} has no {test}"
