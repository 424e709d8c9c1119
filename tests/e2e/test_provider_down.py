"""The provider cannot be reached for a minute: nothing is lost, nothing is answered twice."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from tests.e2e.stack import Proxy, free_port, running, until

DOWN = 60.0  # seconds


def test_a_minute_without_the_provider(tmp_path: Path) -> None:
    # GIVEN a stack whose way to Twilio can be cut
    page = free_port()
    proxy = Proxy(page)
    variables = {"TWILIO_API_URL": f"{proxy.url}/provider/twilio"}
    with running(tmp_path, "--page-port", str(page), variables=variables) as stack:
        assert stack.inbound("before")["status"] == 200
        until(lambda: "before" in stack.answers(), 20)

        # WHEN it is cut, and texts go on coming
        proxy.down()
        words = [f"meanwhile {number}" for number in range(30)]
        for number, one in enumerate(words):
            sender = f"+141555501{40 + number % 10}"
            assert stack.inbound(one, sender=sender)["status"] == 200
        time.sleep(DOWN)
        assert not set(words) & set(stack.answers())
        proxy.up()

        # THEN each is answered once when it is back, in the order of its conversation
        until(lambda: set(words) <= set(stack.answers()), 240)
        until(lambda: stack.stores.depths()["outbound.fifo"].total == 0, 30)
        counts = Counter(stack.answers())
        assert {counts[one] for one in words} == {1}
        for lane in range(10):
            mine = [one for one in words if int(one.split()[1]) % 10 == lane]
            assert [one for one in stack.answers() if one in mine] == mine
        # AND nothing was given up
        assert not [i for i in stack.stores.items() if "unknown_bucket" in i or i.get("outcome")]
        assert stack.stores.depths()["outbound-dlq.fifo"].total == 0
        proxy.down()
