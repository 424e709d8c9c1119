"""What may be seen from outside: log lines and metrics, without a number, a text or a credential.

The parameters of `log` are the whole list of what a line can say, so the type checker refuses
anything else. Metrics are embedded in log lines (EMF), which costs no call:
https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
Standard library only, since the receiver and the authorizer log too and pay for each import.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, Literal

# What libraries say may hold addresses, headers and bodies, whatever level somebody sets.
for _library in ("boto3", "botocore", "httpcore", "httpx", "urllib3"):
    logging.getLogger(_library).setLevel(logging.WARNING)

Level = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
_ORDER = {"DEBUG": 0, "INFO": 1, "WARNING": 2, "ERROR": 3}


def log(
    level: Level,
    event: str,
    *,
    id: str = "",  # noqa: A002 -- the name that every log of the field uses
    provider: str = "",
    reason: str = "",
    code: str = "",
    error: BaseException | None = None,
    count: int | None = None,
    seconds: float | None = None,
    receives: int | None = None,
    starts: int | None = None,
) -> None:
    """One JSON line on standard output.

    `event`, `reason` and `code` are words of ours or a provider's code; `id` is a message id or
    reference (hashes). Of `error` only the type and the lines of code are written: its text may
    hold anything.
    """
    if _ORDER[level] < _ORDER.get(os.environ.get("LOG_LEVEL", "INFO"), 1):
        return
    line: dict[str, Any] = {"timestamp": _now(), "level": level, "event": event, **_origin()}
    for name, value in (
        ("id", id),
        ("provider", provider),
        ("reason", reason),
        ("code", code),
        ("count", count),
        ("seconds", None if seconds is None else round(seconds, 3)),
        ("receives", receives),
        ("starts", starts),
    ):
        if value not in ("", None):
            line[name] = value
    if error is not None:
        line["error"] = type(error).__name__
        line["where"] = [
            f"{'/'.join(frame.filename.split(os.sep)[-2:])}:{frame.lineno}"
            for frame in traceback.extract_tb(error.__traceback__)[-4:]
        ]
    _write(line)


def count(
    metric: str,
    number: int = 1,
    *,
    provider: str = "",
    reason: str = "",
    id: str = "",  # noqa: A002 -- as in `log`
) -> None:
    """Adds `number` to a metric of the stage, to that of the provider and to that of the reason.

    Each of these is billed as a metric of its own, so providers and reasons are few and are not
    multiplied with each other; and each has a name that an alarm can watch without searching.
    `id` (as in `log`; several with a space between them) and the function are in the line, where a
    search of the log finds them, and are no dimensions.
    """
    named = {name: value for name, value in (("provider", provider), ("reason", reason)) if value}
    _write(
        {
            "_aws": {
                "Timestamp": _milliseconds(),
                "CloudWatchMetrics": [
                    {
                        "Namespace": "Spillway",
                        "Dimensions": [["stage"], *(["stage", name] for name in named)],
                        "Metrics": [{"Name": metric, "Unit": "Count"}],
                    }
                ],
            },
            **_origin(),
            **named,
            **({"id": id} if id else {}),
            metric: number,
        }
    )


def _origin() -> dict[str, str]:
    return {
        "function": os.environ.get("SPILLWAY_FUNCTION", ""),
        "stage": os.environ.get("SPILLWAY_STAGE", ""),
    }


def _now() -> str:
    """As Lambda writes it into its own JSON lines."""
    seconds, milliseconds = divmod(_milliseconds(), 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{milliseconds:03d}Z"


def _milliseconds() -> int:
    # Nothing is decided by this clock: CloudWatch wants a time in the line.
    import time  # noqa: TID251

    return int(time.time() * 1000)


def _write(line: dict[str, Any]) -> None:
    # One write a line: several threads share the stream.
    sys.stdout.write(json.dumps(line, separators=(",", ":")) + "\n")
    sys.stdout.flush()
