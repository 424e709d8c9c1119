"""What the tests of the local run share."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # So that the tests also run without pytest-xdist, which brings the mark.
    config.addinivalue_line("markers", "xdist_group(name): one process for all of a group")
