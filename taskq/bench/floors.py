"""What nothing can beat: a server that stores nothing, a commit that nobody waits beside.

These are the yardsticks, so they use the libraries bare; this is the one module of the bench that
knows aiohttp and asyncpg.  The server has the settings that the service has (no access log, uvloop),
its handler reads nothing and its answer is as long as ours.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import asyncpg
from aiohttp import web

from taskq import sql
from taskq.bench.usage import percentile

__all__ = ["commit_alone", "insert_grouped", "serve_hello", "serve_insert"]

POOL_SIZE = 16
KEEPALIVE_S = 75.0
PAYLOAD = '{"n":1}'

_SQL = sql.load("bench")

Announce = Callable[[str], Awaitable[None]]
"""Told the URL; returns when the server should stop."""


async def serve_hello(announce: Announce) -> None:
    """Answer 201 to everything and store nothing."""

    async def create(_request: web.Request) -> web.Response:
        return web.Response(status=201, body=b'{"message":"Task Created","id":1234}', content_type="application/json")

    await _serve(create, announce)


async def serve_insert(dsn: str, announce: Announce) -> None:
    """Store one row per request, durably, and notify; what most services do."""
    text = _SQL["floor_insert_notify"].text
    async with asyncpg.create_pool(dsn, min_size=POOL_SIZE, max_size=POOL_SIZE) as pool:

        async def create(_request: web.Request) -> web.Response:
            row_id = await pool.fetchval(text, "noop", PAYLOAD)
            body = b'{"message":"Task Created","id":%d}' % row_id
            return web.Response(status=201, body=body, content_type="application/json")

        await _serve(create, announce)


async def commit_alone(dsn: str, seconds: float) -> dict[str, float]:
    """Store one row after the other on one connection."""
    connection = await asyncpg.connect(dsn)
    text = _SQL["floor_insert"].text
    took: list[float] = []
    began = last = time.perf_counter()
    while last < began + seconds:
        await connection.fetchval(text, "noop", PAYLOAD)
        now = time.perf_counter()
        took.append(now - last)
        last = now
    await connection.close()
    took.sort()
    return {"rate": len(took) / seconds, "p50_ms": percentile(took, 0.5) * 1e3, "rows": len(took)}


async def insert_grouped(dsn: str, callers: int, seconds: float) -> dict[str, float]:
    """Store what `callers` submit in groups: whatever came during one commit is the next."""
    connection = await asyncpg.connect(dsn)
    text = _SQL["floor_insert_many"].text
    waiting: list[tuple[str, str, asyncio.Future[int]]] = []
    came = asyncio.Event()
    took: list[float] = []

    async def write() -> None:
        while True:
            await came.wait()
            came.clear()
            group = waiting.copy()
            waiting.clear()
            rows = await connection.fetch(text, [one[0] for one in group], [one[1] for one in group])
            for one, row in zip(group, rows, strict=True):
                one[2].set_result(row[0])

    async def call(until: float) -> None:
        loop = asyncio.get_running_loop()
        while (began := time.perf_counter()) < until:
            stored: asyncio.Future[int] = loop.create_future()
            waiting.append(("noop", PAYLOAD, stored))
            came.set()
            await stored
            took.append(time.perf_counter() - began)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as around:
        writer = around.create_task(write())
        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(call(began + seconds))
        rate = len(took) / (time.perf_counter() - began)
        writer.cancel()
    await connection.close()
    took.sort()
    return {"rate": rate, "p99_ms": percentile(took, 0.99) * 1e3, "rows": len(took)}


async def _serve(create: Callable[[web.Request], Awaitable[web.Response]], announce: Announce) -> None:
    app = web.Application()
    app.router.add_post("/task/", create)
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=KEEPALIVE_S)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    await announce(f"http://127.0.0.1:{runner.addresses[0][1]}")
    await runner.cleanup()
