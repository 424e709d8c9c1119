"""`python -m spillway.simulator --port N`: serves the simulator until it is told to stop.

Its configuration is JSON in the environment variable SIMULATOR (configuration.py). With
SPILLWAY_PARENT_PIPE=1 it ends when standard input does.
"""

from __future__ import annotations

import argparse
import os
import sys

import httpx
import uvicorn

from spillway.local.parent import exit_with_parent
from spillway.simulator.app import application
from spillway.simulator.carrier import Receipts, World
from spillway.simulator.configuration import BadConfiguration, parse
from spillway.simulator.gates import Gate
from spillway.simulator.outbox import Outbox


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m spillway.simulator")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    arguments = parser.parse_args()
    if os.environ.get("SPILLWAY_PARENT_PIPE") == "1":
        exit_with_parent()
    try:
        configuration = parse(os.environ.get("SIMULATOR"))
    except BadConfiguration as error:
        sys.exit(f"SIMULATOR {error}")
    try:
        gates = {name: Gate(port, arguments.port) for name, port in configuration.gates.items()}
    except OSError as error:
        sys.exit(f"SIMULATOR gates: a port cannot be had: {error.strerror}")
    world = World(configuration, connections(), Outbox(), Receipts(), gates=gates)
    uvicorn.run(
        application(world),
        host=arguments.host,
        port=arguments.port,
        # A line for every request would hold what has no place in a log, and cost time in a burst.
        access_log=False,
        log_level="warning",
        # Longer than any client keeps a connection: one that the server closes just as it is used
        # again would look like a lost answer.
        timeout_keep_alive=120,
        # Delayed answers are not waited for.
        timeout_graceful_shutdown=1,
    )


def connections() -> httpx.AsyncClient:
    """The one client for all webhooks. No proxy of the environment: they are on this machine."""
    limits = httpx.Limits(max_connections=128, max_keepalive_connections=64, keepalive_expiry=2.0)
    return httpx.AsyncClient(limits=limits, trust_env=False)


if __name__ == "__main__":
    main()
