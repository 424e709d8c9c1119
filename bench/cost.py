"""What a million texts cost at AWS: `.venv/bin/python -m bench.cost`, with other assumptions as
options. List prices (prices.json), without what AWS gives free, without the provider's own prices,
which are a hundred times as much.

A text here is one webhook, one reply of one part, and so many receipts. What is counted a text is
counted in tests: the table's writes by tests/test_sending.py and test_processing.py, the log's
bytes by tests/test_operating.py. How full batches are and how long functions run is assumed, and
said: the options are for whoever has measured theirs.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

MILLION = 1_000_000
PRICES = Path(__file__).with_name("prices.json")

# Gigabytes of each function, as .chalice/config.json has them.
RECEIVER, PROCESSING, SENDER = 0.5, 1.0, 0.5
WRITES_OF_A_TEXT = 1  # its item
WRITES_OF_A_REPLY = 4  # opened, counted by the loop guard, claimed, sent
# Units of the ledger's item: with words, numbers and addresses it is above 1 KB from the claim on.
UNITS_ABOVE_1_KB = 2
READS_OF_A_TEXT = 4  # whether it is stored; consent, twice; how its provider's breaker stands
LOG_KB = 2.9


@dataclass(frozen=True, slots=True)
class Assumed:
    """`receipts` a text; messages a batch of each mapping; seconds that a function runs: the
    receiver a request, the others a batch."""

    receipts: float = 3.0
    processing_fill: float = 20.0
    sender_fill: float = 5.0
    receiver_seconds: float = 0.02
    processing_seconds: float = 0.6
    sender_seconds: float = 0.9


def costs(of: Assumed) -> dict[str, float]:
    """Dollars for a million texts, by what they are paid for."""
    found = json.loads(PRICES.read_text())
    price = {name: entry["usd"] for name, entry in found.items() if isinstance(entry, dict)}
    webhooks = 1 + of.receipts
    second = price["lambda.gb_s.arm64"]
    batches = webhooks / of.processing_fill
    one = {
        "API Gateway": webhooks * price["apigateway.rest_request"],
        "receiver": webhooks * (price["lambda.request"] + RECEIVER * of.receiver_seconds * second),
        "queues": webhooks * price["sqs.standard_request"]
        + price["sqs.fifo_request"]
        # Each batch is received and deleted, by tens.
        + 2 * webhooks / min(of.processing_fill, 10) * price["sqs.standard_request"]
        + 2 / of.sender_fill * price["sqs.fifo_request"],
        "processing": batches
        * (price["lambda.request"] + PROCESSING * of.processing_seconds * second),
        "sender": (price["lambda.request"] + SENDER * of.sender_seconds * second) / of.sender_fill,
        "table": price["dynamodb.wru"]
        * (
            WRITES_OF_A_TEXT
            + WRITES_OF_A_REPLY
            + (UNITS_ABOVE_1_KB - 1) * 2
            + of.receipts * UNITS_ABOVE_1_KB
        )
        + price["dynamodb.rru"] * READS_OF_A_TEXT,
        "archive": price["s3.put"] / of.processing_fill * webhooks,
        "logs": LOG_KB / MILLION * price["logs.custom_ingest_gb"],
    }
    return {name: MILLION * cost for name, cost in one.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cost", description=__doc__)
    usual = Assumed()
    for name in Assumed.__slots__:
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, type=float, default=getattr(usual, name), metavar="N")
    found = costs(Assumed(**vars(parser.parse_args())))
    table = Table("", "$ a million texts", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for name, cost in found.items():
        table.add_row(name, f"{cost:.2f}")
    table.add_row("all", f"{sum(found.values()):.2f}", style="bold")
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
