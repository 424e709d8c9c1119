"""MiniStack, an AWS emulator from the package index, as a child of a local run.

Started as `python -m spillway.local.emulator`. Its state is in memory and ends with it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from spillway.local.parent import exit_with_parent
from spillway.local.ports import LOOPBACK

# MiniStack is steered by dozens of variables, some with common names: it gets these and no others.
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "PYTHONPATH", "VIRTUAL_ENV", "SYSTEMROOT")

HEALTH = "/_ministack/health"
# Every message of a queue, which SQS itself never shows.
MESSAGES = "/_ministack/sqs/messages"


def environment(port: int, folder: Path, caller: Mapping[str, str]) -> dict[str, str]:
    """What MiniStack needs to listen on loopback and to leave the rest of the machine alone."""
    return {
        **{name: caller[name] for name in _KEPT if name in caller},
        "GATEWAY_PORT": str(port),
        "BIND_HOST": LOOPBACK,
        "IOT_MTLS_ENABLED": "0",
        "TMPDIR": str(folder),
        # It would remove containers of other MiniStacks when it starts and when it ends.
        "DOCKER_HOST": f"unix://{folder}/no-docker",
        # At INFO, a line for every request.
        "LOG_LEVEL": "WARNING",
        "PYTHONUNBUFFERED": "1",
    }


def main() -> None:
    exit_with_parent()
    os.environ.setdefault("BIND_HOST", LOOPBACK)
    from ministack.app import main as ministack

    ministack()


if __name__ == "__main__":
    main()
