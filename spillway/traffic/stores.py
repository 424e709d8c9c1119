"""What the local stack holds: its stores, and what its simulated providers took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from chalicelib.table import Item
from spillway.aws import of_emulator
from spillway.stores import Stores

STAGE = "local"


class LocalStores(Stores):
    """The stores of a running local stack; `local` is what local.json says."""

    def __init__(self, local: Mapping[str, Any]) -> None:
        super().__init__(of_emulator(local["aws"]), STAGE)
        self.page = local["page"]
        self.http = httpx.Client(timeout=10.0, trust_env=False)

    def close(self) -> None:
        self.http.close()
        super().close()

    def outbox(self) -> list[Item]:
        """What the simulated providers took, newest last."""
        found: list[Item] = self.http.get(f"{self.page}/provider/outbox", timeout=60).json()
        return found
