"""What the tests of the pages in docs/ share: a page's tables, and which tests there are."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
# A test as a page names it: its file, and its function there.
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def rows(page: Path, heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without its first two lines."""
    section = page.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


@cache
def names_in(file: str) -> frozenset[str]:
    """The tests of a file, by name."""
    module = ast.parse((ROOT / file).read_text())
    functions = (node for node in module.body if isinstance(node, ast.FunctionDef))
    return frozenset(node.name for node in functions if node.name.startswith("test_"))
