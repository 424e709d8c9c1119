"""Segments, as 3GPP TS 23.038 has them."""

from __future__ import annotations

import pytest

from spillway.simulator.segments import segments


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ("GSM-7", 1)),
        ("a" * 160, ("GSM-7", 1)),
        ("a" * 161, ("GSM-7", 2)),
        ("a" * 306, ("GSM-7", 2)),
        ("a" * 307, ("GSM-7", 3)),
        ("€" * 80, ("GSM-7", 1)),
        ("€" * 81, ("GSM-7", 2)),
        ("€" * 152, ("GSM-7", 2)),  # 76 of two septets fit into 153: one septet stays empty
        ("€" * 153, ("GSM-7", 3)),
        ("\x1b", ("UCS-2", 1)),
        ("á", ("UCS-2", 1)),
        ("ж" * 70, ("UCS-2", 1)),
        ("ж" * 71, ("UCS-2", 2)),
        ("ж" * 134, ("UCS-2", 2)),
        ("ж" * 135, ("UCS-2", 3)),
        ("👋" * 35, ("UCS-2", 1)),
        ("👋" * 66, ("UCS-2", 2)),
        ("👋" * 67, ("UCS-2", 3)),
    ],
)
def test_segments(text: str, expected: tuple[str, int]) -> None:
    assert segments(text) == expected
