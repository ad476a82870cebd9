"""A relay that takes every mail and keeps none: what mails are sent to while sending is measured.

It costs less than any client and counts what it took, so that a measure can tell that every mail
arrived once.  It offers PIPELINING and answers what came together together.  With a delay each answer
comes so much later, as from a relay that far away; the first greeting too.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import cast

__all__ = ["serve_sink"]

BUFFER_BYTES_MAX = 2**22  # of one mail
BYE = b"221 2.0.0 bye\r\n"
HELLO = b"250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 ENHANCEDSTATUSCODES\r\n"


async def serve_sink(delay_s: float, announce: Callable[[str], Awaitable[None]]) -> dict[str, int]:
    """Take mails until `announce`, told the URL, returns; return how many were taken on how many connections."""
    sink = _Sink(delay_s)
    server = await asyncio.get_running_loop().create_server(lambda: _Session(sink), "127.0.0.1", 0)
    await announce(f"smtp://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    server.close()
    return {"mails": sink.mails, "connections": sink.connections}


class _Sink:
    """What all sessions know."""

    def __init__(self, delay_s: float) -> None:
        self.delay_s = delay_s
        self.mails = 0
        self.connections = 0


class _Session(asyncio.Protocol):
    """One connection."""

    def __init__(self, sink: _Sink) -> None:
        self._sink = sink
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._in_data = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet."""
        self._transport = cast("asyncio.Transport", transport)
        self._sink.connections += 1
        self._answer(b"220 sink ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        """Answer every command that is complete, and every mail."""
        self._buffer += data
        if len(self._buffer) > BUFFER_BYTES_MAX and self._transport is not None:
            self._transport.abort()
        answers: list[bytes] = []
        while True:
            end = b"\r\n.\r\n" if self._in_data else b"\r\n"
            found, mark, rest = self._buffer.partition(end)
            if not mark:
                break
            self._buffer = rest
            answers.append(self._take() if self._in_data else self._obey(found[:4].upper()))
        if answers:
            self._answer(b"".join(answers))

    def _take(self) -> bytes:
        self._in_data = False
        self._sink.mails += 1
        return b"250 2.0.0 Ok: queued as %d\r\n" % self._sink.mails

    def _obey(self, verb: bytes) -> bytes:
        match verb:
            case b"EHLO":
                return HELLO
            case b"DATA":
                self._in_data = True
                return b"354 go\r\n"
            case b"QUIT":
                return BYE
            case _:
                return b"250 2.1.0 Ok\r\n"

    def _answer(self, answer: bytes) -> None:
        if self._sink.delay_s:
            asyncio.get_running_loop().call_later(self._sink.delay_s, self._write, answer)
        else:
            self._write(answer)

    def _write(self, answer: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(answer)
        if answer.endswith(BYE):
            self._transport.close()
