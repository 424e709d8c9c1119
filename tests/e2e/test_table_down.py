"""The table cannot be reached for a minute: what was acknowledged is kept and answered after it."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from tests.e2e.stack import Proxy, free_port, running, until

DOWN = 60.0  # seconds


def test_a_minute_without_the_table(tmp_path: Path) -> None:
    # GIVEN a stack whose way to DynamoDB can be cut
    aws = free_port()
    proxy = Proxy(aws)
    variables = {"AWS_ENDPOINT_URL_DYNAMODB": proxy.url}
    with running(tmp_path, "--aws-port", str(aws), variables=variables) as stack:
        assert stack.inbound("before")["status"] == 200
        until(lambda: "before" in stack.answers(), 20)

        # WHEN it is cut, and texts go on coming
        proxy.down()
        words = [f"meanwhile {number}" for number in range(30)]
        for number, one in enumerate(words):
            sender = f"+141555501{60 + number % 10}"
            assert stack.inbound(one, sender=sender)["status"] == 200
        time.sleep(DOWN)
        assert not set(words) & set(stack.answers())
        proxy.up()

        # THEN each is stored and answered once
        def stored() -> set[str]:
            return {i["text"] for i in stack.stores.items() if i["sk"].startswith("IN#")}

        until(lambda: set(words) <= set(stack.answers()), 240)
        until(lambda: set(words) <= stored(), 400, every=0.5)
        until(lambda: all(d.total == 0 for d in stack.stores.depths().values()), 400)
        counts = Counter(stack.answers())
        assert {counts[one] for one in words} == {1}
        assert set(words) <= {line["text"] for line in stack.stores.archived(0)}
        proxy.down()
