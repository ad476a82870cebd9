"""Submissions share a commit; each gets its own answer."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg
import pytest
from rig import Connection, new, register, statuses

from taskq.config import Settings
from taskq.errors import IntakeFull, StoreRefused, StoreSlow, StoreUnavailable
from taskq.intake import Intake
from taskq.lease import Lease
from taskq.store import Store
from taskq.task import NewTask, Run

NUL = '{"a": "\\u0000"}'


class Slots:
    """Births that only take notes."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.born_runs: list[Run] = []
        self.waiting = 0
        self.unknown: list[int] = []

    def reserve(self, wanted: int) -> int:
        taken = min(wanted, self.free)
        self.free -= taken
        return taken

    def born(self, runs: Sequence[Run], *, reserved: int, waiting: int) -> None:
        self.free += reserved - len(runs)
        self.born_runs.extend(runs)
        self.waiting += waiting

    def birth_unknown(self, *, reserved: int) -> None:
        self.free += reserved
        self.unknown.append(reserved)


class Notes:
    def __init__(self) -> None:
        self.sent = 0

    def __call__(self) -> None:
        self.sent += 1


@contextlib.asynccontextmanager
async def taking(
    store: Store, settings: Settings, *, births: Slots | None = None, owner: int = 0, **changes: Any
) -> AsyncIterator[tuple[Intake, Notes]]:
    lease, notes = Lease(60), Notes()
    lease.id = owner
    intake = Intake(store, lease, settings.model_copy(update=changes), births=births, notify_others=notes)
    async with asyncio.TaskGroup() as group:
        runner = group.create_task(intake.run())
        yield intake, notes
        runner.cancel()


async def outcome(intake: Intake, task: NewTask) -> int | Exception:
    try:
        return await intake.submit(task)
    except (StoreRefused, StoreUnavailable) as error:
        return error


async def submit_all(intake: Intake, tasks: Sequence[NewTask]) -> list[int | Exception]:
    """Submit at once, so that the later ones share a batch."""
    async with asyncio.TaskGroup() as group:
        callers = [group.create_task(outcome(intake, each)) for each in tasks]
    return [caller.result() for caller in callers]


async def test_submit_returns_when_the_row_is_committed(store: Store, settings: Settings, connection: Connection):
    async with taking(store, settings) as (intake, _):
        task_id = await intake.submit(new())

        assert await connection.fetchval("select count(*) from taskq.task where id = $1", task_id) == 1


async def test_submit_shares_a_commit_with_others(store: Store, settings: Settings, connection: Connection):
    async with taking(store, settings) as (intake, _):
        ids = await submit_all(intake, [new() for _ in range(100)])

    moments = await connection.fetchval("select count(distinct created_at) from taskq.task")
    assert len(set(ids)) == 100
    assert moments <= 2


async def test_submit_refuses_the_one_row_that_can_not_be_stored(
    store: Store, settings: Settings, connection: Connection
):
    tasks = [new(payload=NUL if n == 5 else "{}") for n in range(10)]

    async with taking(store, settings) as (intake, _):
        results = await submit_all(intake, tasks)

    assert [n for n, result in enumerate(results) if isinstance(result, StoreRefused)] == [5]
    assert await statuses(connection) == {0: 9}


async def test_submit_says_so_when_the_database_is_silent(
    store: Store, settings: Settings, connection: Connection, database: str
):
    other = await asyncpg.connect(database)
    async with taking(store, settings, submit_timeout_s=0.1) as (intake, _):
        async with other.transaction():
            await other.execute("lock table taskq.task")

            with pytest.raises(StoreSlow, match=r"within 0\.1 s: it may be stored"):
                await intake.submit(new())

        await intake.empty()
    await other.close()
    assert await statuses(connection) == {0: 1}


async def test_submit_is_refused_when_too_many_wait(store: Store, settings: Settings, database: str):
    other = await asyncpg.connect(database)
    async with taking(store, settings, intake_waiting_max=3) as (intake, _), asyncio.TaskGroup() as group:
        async with other.transaction():
            await other.execute("lock table taskq.task")
            callers = [group.create_task(intake.submit(new())) for _ in range(3)]
            await asyncio.sleep(0)

            with pytest.raises(IntakeFull, match="3 submissions wait"):
                await intake.submit(new())

        assert len([await caller for caller in callers]) == 3
        assert await intake.submit(new())
    await other.close()


async def test_submit_tells_every_caller_when_the_database_is_away(
    store: Store, settings: Settings, postgres: str, connection: Connection
):
    name = await connection.fetchval("select current_database()")
    server = await asyncpg.connect(postgres)
    async with taking(store, settings) as (intake, _):
        await intake.submit(new())
        await server.execute(f"alter database {name} allow_connections false")
        await server.execute(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
            " where application_name = 'taskq insert' and datname = $1",
            name,
        )

        away = await submit_all(intake, [new() for _ in range(3)])
        await server.execute(f"alter database {name} allow_connections true")
        back = await submit_all(intake, [new() for _ in range(3)])

    await server.close()
    assert all(isinstance(result, StoreUnavailable) for result in away)
    assert all(isinstance(result, int) for result in back)


async def test_submit_stores_the_row_of_a_caller_that_hung_up(
    store: Store, settings: Settings, database: str, connection: Connection
):
    other = await asyncpg.connect(database)
    async with taking(store, settings) as (intake, _), asyncio.TaskGroup() as group:
        async with other.transaction():
            await other.execute("lock table taskq.task")
            callers = [group.create_task(intake.submit(new())) for _ in range(3)]
            await asyncio.sleep(0)
            for caller in callers:
                caller.cancel()
        await intake.empty()
    await other.close()

    assert await statuses(connection) == {0: 3}


async def test_submit_bears_rows_while_slots_are_free(store: Store, settings: Settings, connection: Connection):
    owner, slots = await register(connection), Slots(free=2)

    async with taking(store, settings, births=slots, owner=owner) as (intake, notes):
        ids = [await intake.submit(new(payload='{"n":1}', max_attempts=4)) for _ in range(3)]

    first = slots.born_runs[0]
    assert await statuses(connection) == {0: 1, 1: 2}
    assert (first.id, first.run, first.owner, first.attempt, first.max_attempts) == (ids[0], 1, owner, 1, 4)
    assert (first.kind, first.payload) == ("work", '{"n":1}')
    assert (slots.free, slots.waiting, notes.sent) == (0, 1, 1)


async def test_submit_gives_slots_back_when_the_lease_has_ended(
    store: Store, settings: Settings, connection: Connection
):
    slots = Slots(free=5)

    async with taking(store, settings, births=slots, owner=999_999) as (intake, notes):
        await intake.submit(new())

    assert (slots.free, slots.born_runs, slots.waiting, notes.sent) == (5, [], 1, 1)
    assert await statuses(connection) == {0: 1}


async def test_submit_tells_nobody_when_every_row_was_born(store: Store, settings: Settings, connection: Connection):
    owner, slots = await register(connection), Slots(free=5)

    async with taking(store, settings, births=slots, owner=owner) as (intake, notes):
        await intake.submit(new())

    assert notes.sent == 0


async def test_submit_gives_slots_back_when_rows_are_refused(store: Store, settings: Settings, connection: Connection):
    owner, slots = await register(connection), Slots(free=50)
    tasks = [new(payload=NUL if n % 2 else "{}") for n in range(10)]

    async with taking(store, settings, births=slots, owner=owner) as (intake, _):
        await submit_all(intake, tasks)

    assert (len(slots.born_runs), slots.free) == (5, 45)
    assert await statuses(connection) == {1: 5}


async def test_submit_gives_slots_back_when_the_answer_was_lost(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    slots = Slots(free=5)

    async def cut(*_: object, **__: object) -> None:
        raise StoreUnavailable("cut", sent=True)

    monkeypatch.setattr(store, "insert", cut)
    async with taking(store, settings, births=slots) as (intake, _):
        [result] = await submit_all(intake, [new()])

    assert isinstance(result, StoreUnavailable)
    assert (slots.free, slots.unknown) == (5, [1])


async def test_empty_waits_for_what_was_submitted(store: Store, settings: Settings, connection: Connection):
    async with taking(store, settings) as (intake, _), asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(intake.submit(new()))
        await asyncio.sleep(0)

        await intake.empty()

        assert await statuses(connection) == {0: 20}
