"""Points in time, as they are typed."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

from spillway.problem import Problem

_SPAN = re.compile(r"([0-9]{1,6})(min|h|d)", re.ASCII)
_SECONDS = {"min": 60.0, "h": 3600.0, "d": 86_400.0}


def moment(option: str, text: str) -> float:
    """Unix seconds of a date or time in ISO 8601 (UTC where it names no zone), or of a span before
    now: 90min, 36h, 14d. Raises Problem, which names the option."""
    if span := _SPAN.fullmatch(text):
        return time.time() - int(span[1]) * _SECONDS[span[2]]
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise Problem(
            f"{option}: must be a date or time such as 2026-11-24 or 2026-11-24T06:30Z, or how "
            "long ago: 90min, 36h, 14d"
        ) from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
