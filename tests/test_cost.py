"""docs/OPERATING.md: what it costs to run is what bench/cost.py computes."""

from __future__ import annotations

import json

import pytest

from bench.cost import LOG_KB, PROCESSING, RECEIVER, SENDER, Assumed, costs
from spillway.project import PROJECT
from tests.pages import DOCS, rows

PAGE = DOCS / "OPERATING.md"


def test_the_page_has_what_is_computed() -> None:
    every, none = costs(Assumed()), costs(Assumed(receipts=0))
    expected = [(name, f"{every[name]:.2f}", f"{none[name]:.2f}") for name in every]
    expected.append(("all", f"{sum(every.values()):.2f}", f"{sum(none.values()):.2f}"))
    assert [tuple(row) for row in rows(PAGE, "What it costs to run")] == expected


def test_its_assumptions_are_the_projects() -> None:
    functions = json.loads((PROJECT / ".chalice" / "config.json").read_text())["lambda_functions"]
    memory = {name: function["lambda_memory_size"] / 1024 for name, function in functions.items()}
    assert (memory["api_handler"], memory["process"], memory["send"]) == (
        RECEIVER,
        PROCESSING,
        SENDER,
    )
    assert f"{LOG_KB} KB a text" in PAGE.read_text()


@pytest.mark.parametrize(
    ("name", "value"),
    [("receipts", 9.0), ("processing_fill", 1.0), ("sender_fill", 1.0), ("sender_seconds", 9.0)],
)
def test_what_costs_more_costs_more(name: str, value: float) -> None:
    assert sum(costs(Assumed(**{name: value})).values()) > sum(costs(Assumed()).values())
