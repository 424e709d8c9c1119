"""docs/EMULATOR.md: what covers each difference exists."""

from __future__ import annotations

import re

import pytest

from tests.pages import DOCS, ROOT, TEST, names_in

PAGE = DOCS / "EMULATOR.md"
# ("Step Functions" has no table.)
HEADINGS = (
    *("The stores", "Lambda and its mappings", "API Gateway", "CloudFormation"),
    "What is seen from outside",
)


def test_every_test_that_it_names_exists() -> None:
    named = TEST.findall(PAGE.read_text())
    assert len(named) > 20
    assert [f"{file}::{name}" for file, name in named if name not in names_in(file)] == []


@pytest.mark.parametrize("heading", HEADINGS)
def test_every_difference_is_covered(heading: str) -> None:
    section = PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][2:]
    assert rows
    for row in rows:
        covers = row.strip("|").split("|")[-1]
        assert TEST.search(covers) or "has not been tried" in covers, row


def test_it_is_of_the_version_that_is_used() -> None:
    pinned = re.search(r"^ministack==(\S+)", (ROOT / "requirements-dev.txt").read_text(), re.M)
    assert pinned
    assert f"MiniStack {pinned[1]}," in PAGE.read_text()
