"""Gates: a port of its own for each simulated service, so that one of them can be down.

A port refuses connections for everything behind it or for nothing. So each service has one, which
passes connections on to the simulator's own while it is open.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import closing, suppress

_LOOPBACK = "127.0.0.1"
_BACKLOG = 512
_CHUNK = 65536


class Gate:
    """Closed at first. A closed gate keeps its port, so that nobody else is given it."""

    def __init__(self, port: int, target: int) -> None:
        """Raises OSError where the port is taken."""
        self._target = target
        self._socket = _bound(port)
        self.port: int = self._socket.getsockname()[1]
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(
                self._pass_on, sock=self._socket, backlog=_BACKLOG
            )

    def close(self) -> None:
        """Refuses new connections, and cuts those that are open."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        for one in self._connections:
            one.transport.abort()
        self._socket = _bound(self.port)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            with suppress(OSError):
                inner, outer = await asyncio.open_connection(_LOOPBACK, self._target)
                with closing(outer):
                    pumps = {
                        asyncio.create_task(_pump(reader, outer)),
                        asyncio.create_task(_pump(inner, writer)),
                    }
                    # HTTP closes no half of a connection: where one ends, so does the other.
                    _, other = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                    for one in other:
                        one.cancel()
        finally:
            self._connections.discard(writer)
            writer.close()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(_CHUNK):
            sink.write(data)
            await sink.drain()


def _bound(port: int) -> socket.socket:
    """A socket that has the port and refuses connections: it does not listen."""
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind((_LOOPBACK, port))
    return one
