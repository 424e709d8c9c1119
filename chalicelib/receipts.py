"""Receipts: what providers say became of what we sent, written to the ledger."""

from __future__ import annotations

from chalicelib.ledger import Ledger
from chalicelib.messages import DeliveryReceipt
from chalicelib.observing import count, log


def record(ledger: Ledger, receipt: DeliveryReceipt) -> None:
    """Writes one receipt down. One for a message that nobody knows is logged, counted and done
    with: asking for it again would not make it known."""
    result = ledger.receive(receipt)
    count("Receipts", provider=receipt.provider, reason=receipt.status)
    if result == "stranger":
        count("StrangeReceipts", provider=receipt.provider)
        log(
            "WARNING",
            "receipt_of_unknown_message",
            provider=receipt.provider,
            reason="no_such_part",
        )
    else:
        log(
            "INFO",
            f"receipt_{result}",
            id=receipt.reference,
            provider=receipt.provider,
            reason=receipt.status,
            code=receipt.error,
        )
