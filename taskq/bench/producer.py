"""What a child does as another application: submit by SQL, with nothing of taskq but its function.

Another application has no natural batching unless it builds one: each call is a commit of its own,
or hands over a set.  Both are measured, and the pace of a lone caller.
"""

import asyncio
import time

from taskq import sql
from taskq.bench.jobs import bench_session
from taskq.bench.usage import percentile

__all__ = ["bulk", "enqueue", "paced"]

_SQL = sql.load("bench")


async def enqueue(dsn: str, connections: int, seconds: float) -> dict[str, float]:
    """Call `taskq.enqueue` on some connections, one call after the other on each."""
    took: list[float] = []
    until = time.perf_counter() + seconds

    async def one() -> None:
        session = bench_session(dsn)
        while (began := time.perf_counter()) < until:
            await session.fetch(_SQL["enqueue"], payload='{"n":1}')
            took.append(time.perf_counter() - began)
        await session.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(one())
    took.sort()
    return {"rate": len(took) / seconds, "p50_ms": percentile(took, 0.5) * 1e3, "tasks": len(took)}


async def bulk(dsn: str, tasks: int) -> dict[str, float]:
    """Hand over a set in one statement."""
    session = bench_session(dsn)
    await session.open()
    began = time.perf_counter()
    await session.fetch(_SQL["enqueue_many"], tasks=tasks)
    took = time.perf_counter() - began
    await session.close()
    return {"rate": tasks / took, "tasks": tasks}


async def paced(dsn: str, tasks: int, pause_s: float) -> dict[str, float]:
    """Call it every `pause_s` seconds, the moment of the call in the payload."""
    session = bench_session(dsn)
    took: list[float] = []
    for _ in range(tasks):
        await asyncio.sleep(pause_s)
        began = time.monotonic()
        await session.fetch(_SQL["enqueue"], payload=f'{{"at":{began!r}}}')
        took.append(time.monotonic() - began)
    await session.close()
    took.sort()
    return {"p50_ms": percentile(took, 0.5) * 1e3, "tasks": tasks}
