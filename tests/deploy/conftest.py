"""An emulated account for the tests of deploying."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from spillway.aws import Aws, of_emulator
from tests import emulated


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    """An account that nobody has used."""
    with emulated.ministack(tmp_path_factory.mktemp("ministack")) as endpoint:
        account = of_emulator(endpoint)
        yield account
        account.close()
