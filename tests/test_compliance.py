"""docs/COMPLIANCE.md: each rule has its source, and the tests that hold it are there."""

from __future__ import annotations

import re

import pytest

from tests.pages import DOCS, TEST, names_in, rows

# Each: rule, source, what is done, tests.
RULES = rows(DOCS / "COMPLIANCE.md", "What Spillway does")


def test_the_page_has_the_rules() -> None:
    assert len(RULES) > 10


@pytest.mark.parametrize("row", RULES, ids=lambda row: row[0][:40])
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
