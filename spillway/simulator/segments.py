"""How many SMS segments a text takes, as the simulated providers count it (3GPP TS 23.038)."""

from __future__ import annotations

from typing import Literal

Encoding = Literal["GSM-7", "UCS-2"]

_BASIC = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
_EXTENDED = frozenset("\f^{}\\[~]|€")
_GSM_7 = _BASIC | _EXTENDED


def segments(text: str) -> tuple[Encoding, int]:
    """The encoding that a text needs, and its segments: 1 for an empty one.

    A segment of a longer text loses room to the header that joins them, and neither an escape
    sequence nor a surrogate pair is cut in two.
    """
    if _GSM_7.issuperset(text):
        return "GSM-7", _count([2 if c in _EXTENDED else 1 for c in text], 160, 153)
    return "UCS-2", _count([2 if c > "\uffff" else 1 for c in text], 70, 67)


def _count(sizes: list[int], alone: int, joined: int) -> int:
    if sum(sizes) <= alone:
        return 1
    count, used = 1, 0
    for size in sizes:
        if used + size > joined:
            count, used = count + 1, 0
        used += size
    return count
