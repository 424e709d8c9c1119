"""What the simulated providers accepted for sending: one entry for each accepted send."""

from __future__ import annotations

import json
from urllib.parse import parse_qs, urlsplit


class Outbox:
    """Kept as encoded entries, so that reading it amid a burst costs next to nothing."""

    def __init__(self) -> None:
        self._entries: list[bytes] = []

    def add(
        self,
        *,
        provider: str,
        id: str,  # noqa: A002
        sender: str,
        recipient: str,
        text: str,
        media: list[str],
        callback: str,
        at: float,
    ) -> None:
        """`at` is in unix seconds; the reference is read from the call-back's query."""
        entry = {
            "to": recipient,
            "from": sender,
            "text": text,
            "reference": parse_qs(urlsplit(callback).query).get("reference", [""])[0],
            "at": at,
            "provider": provider,
            "id": id,
            "media": media,
        }
        self._entries.append(json.dumps(entry, separators=(",", ":")).encode("ascii"))

    def as_json(self) -> bytes:
        """A JSON list, newest last."""
        return b"[" + b",\n".join(self._entries) + b"]\n"
