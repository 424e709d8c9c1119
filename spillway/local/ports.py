"""Which ports a local run listens on: those asked for, or free ones."""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

from spillway.problem import Problem

LOOPBACK = "127.0.0.1"
EMULATOR = 4566
# The services of the simulator that have a port of their own besides the page's, so that one can be
# down while the others are not.
GATES = ("twilio", "telnyx", "reply", "customer", "line")


@dataclass(frozen=True, slots=True)
class Ports:
    """One for each server of a run, all on loopback."""

    webhook: int
    page: int
    aws: int
    gates: Mapping[str, int] = field(default_factory=dict)


def choose(webhook: int, page: int, aws: int | None) -> Ports:
    """The ports to use. 0 is any free one; `aws` None is 4566 or, where that is taken, a free one.

    Raises Problem for a port that is taken, with the option that moves it.
    """
    # All of them stay reserved until the last is found, so that no two options get the same one.
    with ExitStack() as reserved:
        chosen = [
            _reserve(reserved, webhook, "--webhook-port"),
            _reserve(reserved, page, "--page-port"),
        ]
        try:
            chosen.append(_reserve(reserved, EMULATOR if aws is None else aws, "--aws-port"))
        except Problem:
            if aws is not None:
                raise
            chosen.append(_reserve(reserved, 0, "--aws-port"))
        gates = {name: _reserve(reserved, 0, "") for name in GATES}
        return Ports(chosen[0], chosen[1], chosen[2], gates)


def _reserve(reserved: ExitStack, port: int, option: str) -> int:
    probe = reserved.enter_context(socket.socket())
    # As the servers do: a port whose last connections are still being forgotten is free.
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        # Somebody who listens on every interface does not keep us from binding on all systems.
        if port and _answers(port):
            raise OSError(errno.EADDRINUSE, "")
        probe.bind((LOOPBACK, port))
    except OSError as error:
        what = "may not be used by you" if error.errno == errno.EACCES else "is taken"
        raise Problem(
            f"Port {port} {what} ({option}). Choose another one, or 0 for any free one:\n"
            f"  spillway run {option} 0"
        ) from None
    probe.listen()
    bound: int = probe.getsockname()[1]
    return bound


def _answers(port: int) -> bool:
    with socket.socket() as caller:
        caller.settimeout(0.5)
        return caller.connect_ex((LOOPBACK, port)) == 0
