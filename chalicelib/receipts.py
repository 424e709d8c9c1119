"""Receipts: what providers say became of what we sent, written to the ledger; and to the list of
consent, where they say that the person opted out."""

from __future__ import annotations

from chalicelib.consent import ConsentList
from chalicelib.events import Events
from chalicelib.ledger import Ledger, Reply
from chalicelib.messages import DeliveryReceipt, parse_reference
from chalicelib.observing import count, log
from chalicelib.providers import provider_named


def record(
    ledger: Ledger, consent: ConsentList, events: Events, receipt: DeliveryReceipt
) -> Reply | None:
    """Writes one receipt down; returns the reply if that settled its unknown part and others wait
    behind it. One for a message that nobody knows is logged, counted and done with: asking for it
    again would not make it known.

    An opt-out is recorded first and whatever the ledger has already: a receipt that comes again,
    after a death in between, is `stale` there.
    """
    if receipt.error:
        reason = provider_named(receipt.provider).reason_of(receipt.error)
        if reason == "opted_out":
            _record_opt_out(ledger, consent, receipt)
    received = ledger.receive(receipt)
    result = received.result
    # (Of a stranger's anybody may have written the reference.)
    reference = receipt.reference if parse_reference(receipt.reference) else ""
    count("Receipts", provider=receipt.provider, reason=receipt.status, id=reference)
    if result == "stranger":
        count("StrangeReceipts", provider=receipt.provider, id=reference)
        log(
            "WARNING",
            "receipt_of_unknown_message",
            id=reference,
            provider=receipt.provider,
            reason="no_such_part",
        )
    else:
        log(
            "INFO",
            f"receipt_{result}",
            id=reference,
            provider=receipt.provider,
            reason=receipt.status,
            code=receipt.error,
        )
    reply = received.reply
    if reply is not None:
        # (What says nothing new, too: whoever recorded it may have died before this.)
        events.told(receipt, reply)
        if reply.ended_by_receipt:
            # (Whoever sent it may have given up asking, and told nobody.)
            events.ended(reply)
    return reply if reply is not None and reply.to_be_resumed else None


def _record_opt_out(ledger: Ledger, consent: ConsentList, receipt: DeliveryReceipt) -> None:
    """A receipt names no number: the ledger's item has it, and when the attempt began."""
    named = parse_reference(receipt.reference)
    reply = ledger.find(named[0]) if named else None
    if reply is None or not reply.theirs:
        return  # nothing of ours, or erased: nobody knows any more whose it was
    for part in reply.parts or ():
        # One that was never claimed was never refused: whoever says so is mistaken.
        if reply.id.part(part.number) == receipt.reference and part.started_at is not None:
            consent.record_refusal(
                reply.theirs,
                part.started_at,
                provider=receipt.provider,
                code=receipt.error,
                id_=str(reply.id),
            )
