"""MiniStack, for the contract suite of the stores."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import emulated


@pytest.fixture(scope="session")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """MiniStack's endpoint, for all tests of this process."""
    with emulated.ministack(tmp_path_factory.mktemp("ministack")) as endpoint:
        yield endpoint
