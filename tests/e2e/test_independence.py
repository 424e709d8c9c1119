"""The two pipelines do not wait for each other: slow look-ups do not slow the answers."""

from __future__ import annotations

import statistics
import threading
import time
from pathlib import Path

import httpx

from spillway.simulator import telnyx
from tests.e2e.stack import Stack, running, until

RATE = 12.0  # texts a second, which the local stack carries with room to spare
MESSAGES = 300
BACKLOG = 500


def test_answers_keep_their_pace_while_processing_lags(tmp_path: Path) -> None:
    with running(tmp_path) as stack:
        # (the internal API takes its time, as real ones do: what is compared is not noise)
        stack.delay(reply=0.25)
        replies(stack, "warm up", 30)
        # GIVEN the answers' pace while look-ups are quick
        baseline = replies(stack, "baseline", MESSAGES)

        # WHEN look-ups take 5 seconds, and a backlog of more than 500 waits for them
        stack.delay(reply=0.25, customer=5, line=5)
        replies(stack, "backlog", BACKLOG + 150, rate=80.0)
        until(lambda: stack.stores.depths()["outbound.fifo"].total == 0, 120)
        waiting: list[int] = []
        done = threading.Event()
        watch = threading.Thread(target=watch_depth, args=(stack, waiting, done))
        watch.start()
        slow = replies(stack, "slow", MESSAGES)
        done.set()
        watch.join()

        # THEN the answers keep their pace
        print(f"reply p50: {baseline:.3f} s, with slow look-ups {slow:.3f} s")
        assert min(waiting) > BACKLOG
        assert slow < 1.5 * baseline

        # AND processing drains when the look-ups are quick again
        stack.delay(reply=0.25, customer=0, line=0)
        until(lambda: stack.stores.depths()["processing"].total == 0, 120, every=0.5)
        stored = [i for i in stack.stores.items() if i["sk"].startswith("IN#")]
        assert len(stored) == 30 + 2 * MESSAGES + BACKLOG + 150


def watch_depth(stack: Stack, waiting: list[int], done: threading.Event) -> None:
    while not done.wait(0.5):
        waiting.append(stack.stores.depths()["processing"].total)


def replies(stack: Stack, tag: str, messages: int, rate: float = RATE) -> float:
    """Sends texts at a steady rate; the median of seconds from acknowledgement to answer."""
    acknowledged: dict[str, float] = {}
    local = stack.local
    with httpx.Client(timeout=20, trust_env=False) as http:
        began: float = time.monotonic()
        for number in range(messages):
            time.sleep(max(0.0, began + number / rate - time.monotonic()))
            text = f"{tag} {number}"
            url, headers, body = telnyx.inbound(
                webhook=local["webhook"],
                secrets=local["secrets"]["telnyx"],
                sender=f"+1415556{number % 100:04d}",
                recipient=local["numbers"]["telnyx"],
                text=text,
                id=f"{tag}-{number}",
                now=time.time(),
            )
            answer = http.post(url, headers=dict(headers), content=body)
            assert answer.status_code == 200
            acknowledged[text] = time.time()
    until(lambda: acknowledged.keys() <= set(stack.answers()), 120, every=0.5)
    at = {entry["text"]: entry["at"] for entry in stack.stores.outbox()}
    waits: list[float] = [max(0.0, at[text] - when) for text, when in acknowledged.items()]
    return statistics.median(waits)
