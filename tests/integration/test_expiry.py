"""Times that pass: what is due later waits, what has lost its use is failed and never run."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from rig import (
    NEVER,
    QUICK,
    Connection,
    Work,
    attempts,
    becomes,
    kind,
    new,
    put,
    register,
    row,
    running,
    settled_down,
    statuses,
)

from taskq import sweeper as module
from taskq.config import Settings
from taskq.errors import Snooze, TaskError
from taskq.lease import Lease
from taskq.store import EARLIEST, Store
from taskq.sweeper import Sweeper
from taskq.task import RetryPolicy


def soon(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


@pytest.fixture
async def sweeper(store: Store, settings: Settings, connection: Connection) -> Sweeper:
    held = Lease(3_600)
    held.renewed(await register(connection), asyncio.get_running_loop().time())
    return Sweeper(store, held, settings, wake=lambda: None)


# -- due later


async def test_task_due_later_waits_and_then_runs_although_nobody_polls(
    settings: Settings, connection: Connection, eventually: Any
):
    work = Work()
    async with running(settings, kind("work", work), **NEVER) as parts:
        await settled_down(parts, eventually)
        due_at = soon(0.5)
        task_id = await parts.intake.submit(new(due_at=due_at))
        await eventually(becomes(connection, task_id, 2))

    done = await row(connection, task_id)
    assert done["due_at"] == due_at
    assert done["started_at"] >= due_at


# -- a run that comes too late


async def test_run_past_its_expiry_fails_without_running_and_counts_nothing(
    settings: Settings, connection: Connection, eventually: Any
):
    work = Work()
    late = await put(connection, expires_at=soon(-1), attempt=1, last_error="what the last try said")
    async with running(settings, kind("work", work), sweep_s=300) as _:
        await eventually(becomes(connection, late, 3))

    ended = await row(connection, late)
    assert work.seen == []
    assert (ended["reason"], ended["attempt"], ended["last_error"]) == ("expired", 1, "what the last try said")
    assert await attempts(connection, late) == []


async def test_run_before_its_expiry_runs(settings: Settings, connection: Connection, eventually: Any):
    work = Work()
    async with running(settings, kind("work", work)) as parts:
        task_id = await parts.intake.submit(new(expires_at=soon(60)))
        await eventually(becomes(connection, task_id, 2))

    assert work.seen == [task_id]


async def test_run_knows_its_expiry_on_the_clock_of_this_machine(
    store: Store, connection: Connection, monkeypatch: pytest.MonkeyPatch
):
    class Fast(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(hours=5)

    monkeypatch.setattr("taskq.store.datetime", Fast)
    owner = await register(connection)
    await put(connection, expires_at=soon(60))

    [(run, _, _)] = await store.claim([("default", 0)], [EARLIEST], slots=1, owner=owner)

    assert run.expires_at is not None
    assert timedelta(seconds=50) < run.expires_at - soon(5 * 3_600) <= timedelta(seconds=61)


@pytest.mark.parametrize(
    ("raised", "counted"),
    [(TaskError("busy", retry_after_s=600), 1), (ValueError("busy"), 1), (Snooze("busy", delay_s=600), 0)],
    ids=["retry", "back-off", "snooze"],
)
async def test_wait_that_would_end_after_the_expiry_fails_at_once_with_the_last_error(
    settings: Settings, connection: Connection, eventually: Any, raised: Exception, counted: int
):
    async def work(_payload: dict[str, Any]) -> None:
        raise raised

    slow = RetryPolicy(base_s=600, cap_s=600, floor_s=600)
    async with running(settings, kind("work", work, policy=slow)) as parts:
        task_id = await parts.intake.submit(new(expires_at=soon(60)))
        await eventually(becomes(connection, task_id, 3))

    ended = await row(connection, task_id)
    assert (ended["reason"], ended["attempt"]) == ("expired", counted)
    assert "busy" in ended["last_error"]


async def test_wait_that_ends_before_the_expiry_is_waited_for(
    settings: Settings, connection: Connection, eventually: Any
):
    tries: list[int] = []

    async def work(_payload: dict[str, Any]) -> None:
        tries.append(1)
        if len(tries) < 3:
            raise TaskError("busy")

    async with running(settings, kind("work", work, policy=QUICK)) as parts:
        task_id = await parts.intake.submit(new(expires_at=soon(60)))
        await eventually(becomes(connection, task_id, 2))

    assert len(tries) == 3


# -- the sweeper


async def test_sweeper_fails_what_expired_while_it_waited(sweeper: Sweeper, connection: Connection):
    late = [
        await put(connection, expires_at=soon(-1), due_at=soon(600), last_error="x"),
        await put(connection, expires_at=soon(-1), crashes=2),
    ]
    spared = [
        await put(connection, expires_at=soon(60)),
        await put(connection),
        await put(
            connection, expires_at=soon(-1), status=1, owner=sweeper._lease.id, run=1, attempt=1, started_at=soon(-1)
        ),
        await put(connection, expires_at=soon(-9), status=2, finished_at=soon(-10)),
    ]

    assert await sweeper.expire() == 2

    rows = [await row(connection, task_id) for task_id in late]
    assert [(each["status"], each["reason"]) for each in rows] == [(3, "expired")] * 2
    assert rows[0]["last_error"] == "x"
    assert [(await row(connection, task_id))["status"] for task_id in spared] == [0, 0, 1, 2]


async def test_sweeper_expires_in_bounded_batches_and_counts_them(
    sweeper: Sweeper, connection: Connection, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "EXPIRE_BATCH", 2)
    monkeypatch.setattr(module, "EXPIRE_STEPS_MAX", 2)
    for _ in range(5):
        await put(connection, expires_at=soon(-1))

    rounds = [await sweeper.expire() for _ in range(3)]

    assert rounds == [4, 1, 0]
    assert await statuses(connection) == {3: 5}
    counted = await connection.fetch("select owner, kind, status, sum(n) from taskq.minute_count group by 1, 2, 3")
    assert [tuple(each) for each in counted] == [(sweeper._lease.id, "work", 3, 5)]


async def test_sweeper_steps_over_a_task_that_is_being_claimed(sweeper: Sweeper, connection: Connection, database: str):
    claimed, other = await put(connection, expires_at=soon(-2)), await put(connection, expires_at=soon(-1))
    claimer = await asyncpg.connect(database)
    async with claimer.transaction():
        await claimer.execute("select from taskq.task where id = $1 for update", claimed)

        assert await sweeper.expire() == 1

    await claimer.close()
    assert [(await row(connection, task_id))["status"] for task_id in (claimed, other)] == [0, 3]


async def test_sweeper_leaves_expiring_to_the_instance_that_is_at_it(
    sweeper: Sweeper, connection: Connection, database: str
):
    await put(connection, expires_at=soon(-1))
    other = await asyncpg.connect(database)
    async with other.transaction():
        await other.execute("select pg_advisory_xact_lock(1953719656, -1)")

        assert await sweeper.expire() == 0

    await other.close()
    assert await sweeper.expire() == 1


async def test_service_expires_by_itself(settings: Settings, connection: Connection, eventually: Any):
    late = await put(connection, "nobody_runs_this", expires_at=soon(0.2), due_at=soon(600))

    async with running(settings):
        await eventually(becomes(connection, late, 3))
