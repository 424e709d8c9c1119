"""Your answers, for when no REPLY_API_URL is set.

Return a text, several texts, an `Answer` with media, or None for no answer. It may be called more
than once for the same message, when an earlier attempt ended half-way: what was stored first is
sent. What you raise is retried, and after a few times dead-lettered.
"""

from __future__ import annotations

from collections.abc import Sequence

from chalicelib.messages import InboundMessage
from chalicelib.replies import Answer


def reply(message: InboundMessage) -> Answer | str | Sequence[str] | None:
    """What to answer to this message."""
    return f"You wrote: {message.text}" if message.text else None
