"""An HTTP client that costs little: prebuilt requests on connections that stay open.

Each connection has one request under way and sends the next when the answer is complete, so that
the number of connections is the number of callers.  Client, service and database share the machine;
a convenient client would be what is measured.  It knows just enough of HTTP for answers that carry a
`Content-Length`.
"""

import asyncio
import resource
import time
from urllib.parse import urlsplit

from taskq.bench.usage import percentile

__all__ = ["BODY_MAIL", "BODY_NOOP", "put_load"]

BODY_MAIL = '{"To":"example@gmail.com","subject":"Test Subject","body":"Test E-Mail Body"}'
BODY_NOOP = '{"kind":"noop","payload":{"n":1}}'

LATE_S = 30.0  # for the last answers
_LENGTH = b"\r\nContent-Length: "


async def put_load(url: str, body: str, *, connections: int, seconds: float, warm_s: float) -> dict[str, float]:
    """Send requests for `seconds`; return rate, latencies and the count of all answers.

    Args:
        url: Such as http://127.0.0.1:8080.
        body: Of each request, JSON.
        connections: Requests under way at the same time.
        seconds: That count.
        warm_s: Seconds before, of which only the number of answers is kept.
    """
    place = urlsplit(url)
    data = body.encode()
    head = f"POST /task/ HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
    load = _Load(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    loop = asyncio.get_running_loop()
    for _ in range(connections):
        await loop.create_connection(lambda: _Caller(load), place.hostname or "", place.port or 80)
    await asyncio.sleep(warm_s)
    warm, load.latencies = load.latencies, []
    began, cpu_began = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    await asyncio.sleep(seconds)
    measured, load.latencies = load.latencies, []
    took, cpu = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    load.open = False
    async with asyncio.timeout(LATE_S):
        await load.ended.wait()
    measured.sort()
    client_s = cpu.ru_utime + cpu.ru_stime - cpu_began.ru_utime - cpu_began.ru_stime
    return {
        "rate": len(measured) / took,
        "p50_ms": percentile(measured, 0.5) * 1e3,
        "p99_ms": percentile(measured, 0.99) * 1e3,
        "client_us": client_s / len(measured) * 1e6,
        "measured": len(measured),
        "answers": len(warm) + len(measured) + len(load.latencies),
        "refused": load.refused,
    }


class _Load:
    """What the callers share."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.open = True
        self.callers = 0
        self.refused = 0
        self.latencies: list[float] = []
        self.ended = asyncio.Event()


class _Caller(asyncio.Protocol):
    """One connection."""

    def __init__(self, load: _Load) -> None:
        self._load = load
        self._rest = b""
        self._sent_at = 0.0
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.WriteTransport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - uvloop's are no subclass
        self._transport = transport
        self._load.callers += 1
        self._send(transport)

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        head = data.find(b"\r\n\r\n")
        if head >= 0:
            length = data.index(_LENGTH, 0, head + 2) + len(_LENGTH)
            if len(data) >= head + 4 + int(data[length : data.index(b"\r", length)]):
                self._answered(data[9:12])
                return
        self._rest = data

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the signature is asyncio's
        load = self._load
        if load.open:
            load.refused += 1
        load.callers -= 1
        if not load.callers:
            load.ended.set()

    def _send(self, transport: asyncio.WriteTransport) -> None:
        self._sent_at = time.perf_counter()
        transport.write(self._load.request)

    def _answered(self, status: bytes) -> None:
        load, transport = self._load, self._transport
        load.latencies.append(time.perf_counter() - self._sent_at)
        self._rest = b""
        if status != b"201":
            load.refused += 1
        if transport is None:
            raise AssertionError
        if load.open:
            self._send(transport)
        else:
            transport.close()
