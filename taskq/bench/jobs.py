"""What a child does with the parts of taskq in its own process: submit, drain, keep steady, wake.

The parts are those that the service runs, made by `service.running_parts`; only the web is left out.
Where the submitter must be alone, the parts have the role `api`, in which nothing runs.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from pydantic import SecretStr

from taskq import sql
from taskq.bench.usage import Meter, memory_peak_mib, percentile
from taskq.config import Settings
from taskq.database import Session
from taskq.kinds.registry import Handler, Registry, make_kind
from taskq.service import Parts, running_parts, spare_collector
from taskq.task import NewTask, RetryPolicy

__all__ = [
    "bench_session",
    "drain",
    "only_submitting",
    "read",
    "steady",
    "submit",
    "until_finished",
    "wake_here",
    "wake_there",
]

SLOTS = 1_000
CLAIM_BATCH = 500
BACKLOG_MAX = 2_000  # of the steady state: submitters wait beyond
POLL_S = 0.005  # between looks whether storage has caught up
LATE_S = 120.0  # for what is still under way at the end of a measure
STATEMENT_S = 300.0  # filling a table with a million rows
WARM_S = 0.5
TIMEOUT_S = 60.0  # of one run

_SQL = sql.load("bench")


def bench_session(dsn: str) -> Session:
    """Make a connection for what the bench asks for itself."""
    return Session(dsn, name="taskq bench", timeout_s=STATEMENT_S)


@asynccontextmanager
async def only_submitting(dsn: str, **changes: Any) -> AsyncGenerator[Parts]:
    """Run parts in which nothing runs until somebody starts the dispatcher; `changes` are settings."""
    async with _parts(dsn, _nothing, role="api", **changes) as parts:
        yield parts


async def submit(dsn: str, callers: int, seconds: float) -> dict[str, float]:
    """Submit from `callers` at once, each waiting for its commit; nothing runs."""
    session = bench_session(dsn)
    async with _parts(dsn, _nothing, role="api") as parts:
        meter, took = Meter(session), list[float]()
        await _call(callers, WARM_S, lambda: parts.intake.submit(NewTask("noop", '{"n":1}')), took)
        warm = len(took)
        took.clear()
        await meter.start()
        await _call(callers, seconds, lambda: parts.intake.submit(NewTask("noop", '{"n":1}')), took)
        found = await meter.stop(len(took))
    await session.close()
    return found | _latencies(took) | {"tasks": warm + len(took)}


async def drain(dsn: str, tasks: int, waiting: int) -> dict[str, float]:
    """Work off `tasks` of `waiting` tasks that were there before; count until storage shows them Ok.

    With more waiting than are to be worked off, the clock stops when so many have run.
    """
    session = bench_session(dsn)
    await session.fetch(_SQL["fill"], tasks=waiting)
    await session.fetch(_SQL["analyze"])  # plans are those of a table that has lived for a while
    enough, runs = asyncio.Event(), 0

    async def run(_payload: dict[str, Any]) -> None:
        nonlocal runs
        runs += 1
        if runs == tasks:
            enough.set()

    async with _parts(dsn, run, role="api", concurrency=SLOTS, claim_batch_max=CLAIM_BATCH) as parts:
        memory_before = memory_peak_mib()
        meter = Meter(session)
        await meter.start()
        dispatching = parts.group.create_task(parts.dispatcher.run())
        async with asyncio.timeout(LATE_S):
            await enough.wait()
            if waiting == tasks:
                await until_finished(session)
        found = await meter.stop(tasks)
        found |= {"memory_mib": memory_peak_mib(), "memory_before_mib": memory_before}
        await parts.dispatcher.drain(LATE_S, asyncio.Event())
        await dispatching
    await session.close()
    return found | {"tasks": waiting, "runs": runs}


async def steady(dsn: str, callers: int, seconds: float, claimed: bool) -> dict[str, float]:  # noqa: FBT001 - from JSON
    """Submit, run and settle at the same time, the backlog bounded.

    Args:
        dsn: The database.
        callers: Submitters, each waiting for its commit.
        seconds: Of submitting; the time until all is settled counts too.
        claimed: Two sets of parts: what one stores the other claims, so that nothing is born running.
    """
    session = bench_session(dsn)
    runs, submitted = 0, 0
    room = asyncio.Event()

    async def run(_payload: dict[str, Any]) -> None:
        nonlocal runs
        runs += 1
        room.set()

    async def call(parts: Parts) -> None:
        nonlocal submitted
        submitted += 1
        await parts.intake.submit(NewTask("noop", '{"n":1}'))
        while submitted - runs > BACKLOG_MAX:
            room.clear()
            await room.wait()

    took: list[float] = []
    async with _apart(dsn, run) if claimed else _parts(dsn, run) as parts:
        await _call(callers, WARM_S, lambda: call(parts), [])
        await until_finished(session)
        meter, warm = Meter(session), runs
        await meter.start()
        await _call(callers, seconds, lambda: call(parts), took)
        await until_finished(session)
        found = await meter.stop(runs - warm)
    await session.close()
    return found | _latencies(took) | {"tasks": submitted, "runs": runs}


async def wake_here(dsn: str, tasks: int, pause_s: float) -> dict[str, float]:
    """Submit to an idle worker in this process; time the span from the call to the handler."""
    session, arrived = bench_session(dsn), asyncio.Event()
    began, took = 0.0, list[float]()

    async def run(_payload: dict[str, Any]) -> None:
        took.append(time.perf_counter() - began)
        arrived.set()

    async with _parts(dsn, run) as parts:
        for _ in range(tasks):
            await asyncio.sleep(pause_s)
            arrived.clear()
            began = time.perf_counter()
            await parts.intake.submit(NewTask("noop", '{"n":1}'))
            async with asyncio.timeout(LATE_S):
                await arrived.wait()
        await until_finished(session)
    await session.close()
    return _latencies(took) | {"tasks": tasks}


async def wake_there(dsn: str, pause_s: float, until: Callable[[], Awaitable[None]]) -> dict[str, list[float]]:
    """Run what another process submits by SQL; return when each task was submitted and started.

    The submitter puts the moment of its call into the payload: the clock is one for all processes.
    """
    spans: list[float] = []

    async def run(payload: dict[str, Any]) -> None:
        spans.append(time.monotonic() - payload["at"])

    async with _parts(dsn, run):
        await until()
        await asyncio.sleep(pause_s)
    return {"spans": spans}


async def read(dsn: str, reads: int, first: int) -> dict[str, float]:
    """Read tasks one after the other, as `GET /task/{id}` does."""
    took: list[float] = []
    async with _parts(dsn, _nothing, role="api") as parts:
        for n in range(reads):
            began = time.perf_counter()
            await parts.store.get(first + n)
            took.append(time.perf_counter() - began)
    return _latencies(took)


async def _nothing(_payload: dict[str, Any]) -> None:
    """Do nothing."""


@asynccontextmanager
async def _parts(dsn: str, function: Handler, **changes: Any) -> AsyncGenerator[Parts]:
    settings = Settings(database_url=SecretStr(dsn), durability="relaxed", **changes)

    def prepare(registry: Registry) -> None:
        registry.add(make_kind("noop", function, RetryPolicy(), TIMEOUT_S, max_attempts=1, ack_each=False))

    async with running_parts(settings, dsn, dsn, prepare) as (parts, _):
        spare_collector()  # as the service does
        yield parts


@asynccontextmanager
async def _apart(dsn: str, function: Handler) -> AsyncGenerator[Parts]:
    """Run parts that work; yield others, which only take submissions."""
    beat_s = 0.2  # so that they soon know of each other and notify
    async with (
        _parts(dsn, function, role="worker", concurrency=SLOTS, beat_s=beat_s),
        _parts(dsn, _nothing, role="api", beat_s=beat_s) as parts,
    ):
        await asyncio.sleep(3 * beat_s)
        yield parts


async def _call(callers: int, seconds: float, call: Callable[[], Awaitable[Any]], took: list[float]) -> None:
    """Call from `callers` at once, each again and again, until the time is over; append each span."""
    until = time.perf_counter() + seconds

    async def one() -> None:
        while (began := time.perf_counter()) < until:
            await call()
            took.append(time.perf_counter() - began)

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(one())


async def until_finished(session: Session) -> None:
    """Wait until no task waits or runs."""
    async with asyncio.timeout(LATE_S):
        while (await session.fetch(_SQL["unfinished"]))[0][0]:  # noqa: ASYNC110 - another process brings it about
            await asyncio.sleep(POLL_S)


def _latencies(took: list[float]) -> dict[str, float]:
    took.sort()
    return {"p50_ms": percentile(took, 0.5) * 1e3, "p99_ms": percentile(took, 0.99) * 1e3}
