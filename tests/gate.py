"""A gate that handlers in other processes wait at: no polling, and the test hears who has come.

A handler connects and reads; that ends when the gate is opened, which closes every connection, or
when the gate is open already and nobody listens any more.
"""

import asyncio
import socket

__all__ = ["Gate", "pass_gate"]

ARRIVE_S = 60.0  # of a wait that is over in a moment, or never
WAITING_MAX = 100


class Gate:
    """Closed until it is opened; `port` is what a handler is told."""

    def __init__(self) -> None:
        self._door = socket.create_server(("127.0.0.1", 0), backlog=WAITING_MAX)
        self._door.settimeout(ARRIVE_S)
        self._inside: list[socket.socket] = []
        self.port: int = self._door.getsockname()[1]

    def wait_for(self, number: int = 1) -> None:
        """Wait until so many more handlers have come."""
        for _ in range(number):
            self._inside.append(self._door.accept()[0])

    def open(self) -> None:
        """Let everybody through, for ever."""
        for each in (self._door, *self._inside):
            each.close()


async def pass_gate(port: int) -> None:
    """Wait, as a handler, until the gate is open."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return
    try:
        await reader.read()
    except OSError:  # the gate was opened before it saw us
        pass
    finally:
        writer.close()
