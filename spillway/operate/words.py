"""How commands say times and texts."""

from __future__ import annotations

from datetime import UTC, datetime


def span(seconds: float) -> str:
    """A time as somebody says it."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def moment(at: float) -> str:
    """A moment (unix seconds), in UTC."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}"


def printable(text: str) -> str:
    """What somebody wrote, without what no terminal can show."""
    return text.encode("utf-8", "replace").decode()
