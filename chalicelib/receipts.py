"""Receipts: what providers say became of what we sent, written to the ledger."""

from __future__ import annotations

from chalicelib.ledger import Ledger, Reply
from chalicelib.messages import DeliveryReceipt
from chalicelib.observing import count, log


def record(ledger: Ledger, receipt: DeliveryReceipt) -> Reply | None:
    """Writes one receipt down; returns the reply if that settled its unknown part and others wait
    behind it. One for a message that nobody knows is logged, counted and done with: asking for it
    again would not make it known."""
    received = ledger.receive(receipt)
    result = received.result
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
    reply = received.reply
    return reply if reply is not None and reply.to_be_resumed else None
