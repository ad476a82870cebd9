"""What happens now and then: rescue, prune, partitions ahead."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from rig import Connection, attempts, put, register, row, says

from taskq import sql
from taskq import sweeper as module
from taskq.config import Settings
from taskq.errors import StoreUnavailable
from taskq.facts import Privacy
from taskq.lease import Lease
from taskq.store import Store
from taskq.sweeper import PARTITION_IDS, PARTITIONS_AHEAD, Sweeper
from taskq.task import Change, Status

DEAD = 999_999


class Wakes:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture
def wakes() -> Wakes:
    return Wakes()


@pytest.fixture
async def lease(connection: Connection) -> Lease:
    """Ours, held for long."""
    held = Lease(3_600)
    held.renewed(await register(connection), asyncio.get_running_loop().time())
    return held


@pytest.fixture
def sweeper(store: Store, lease: Lease, settings: Settings, wakes: Wakes) -> Sweeper:
    return Sweeper(store, lease, settings, wake=wakes)


async def test_prune_does_what_else_is_to_be_pruned(store: Store, lease: Lease, settings: Settings, wakes: Wakes):
    done: list[str] = []

    async def first() -> None:
        done.append("first")

    async def second() -> None:
        done.append("second")

    await Sweeper(store, lease, settings, wake=wakes, prune_more=(first, second)).prune()

    assert done == ["first", "second"]


async def running_at(connection: Connection, owner: int, **columns: Any) -> int:
    """The id of a task in progress under a lease."""
    return await put(
        connection,
        **{"status": 1, "owner": owner, "run": 1, "attempt": 1, "started_at": datetime.now(UTC)} | columns,
    )


async def numbers(store: Store) -> list[int]:
    return (await store.partitions())[1]


async def advance_to(connection: Connection, partition: int) -> None:
    """Let the ids have come to the middle of a partition."""
    await connection.execute(
        "select setval('taskq.task_id', $1::bigint)", partition * PARTITION_IDS + PARTITION_IDS // 2
    )


# -- rescue


async def test_rescue_takes_over_all_of_a_dead_instance(
    sweeper: Sweeper, connection: Connection, wakes: Wakes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "RESCUE_BATCH", 3)
    ids = [await running_at(connection, DEAD) for _ in range(8)]

    rescued = await sweeper.rescue()

    assert rescued == 8
    assert {(await row(connection, task_id))["status"] for task_id in ids} == {0}
    assert wakes.count == 3


async def test_rescue_wakes_nobody_when_nothing_was_lost(sweeper: Sweeper, connection: Connection, wakes: Wakes):
    await running_at(connection, await register(connection))

    assert await sweeper.rescue() == 0
    assert wakes.count == 0


async def test_rescue_ends_when_a_whole_batch_was_the_last(
    sweeper: Sweeper, connection: Connection, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "RESCUE_BATCH", 2)
    for _ in range(4):
        await running_at(connection, DEAD)

    assert await sweeper.rescue() == 4


async def test_rescue_leaves_it_to_the_instance_that_is_at_it(sweeper: Sweeper, database: str, connection: Connection):
    task_id = await running_at(connection, DEAD)
    other = await asyncpg.connect(database)
    async with other.transaction():
        await other.execute("select pg_advisory_xact_lock(1953719656, -1)")

        rescued = await sweeper.rescue()

    await other.close()
    assert rescued == 0
    assert (await row(connection, task_id))["status"] == 1


async def test_rescue_goes_on_when_the_leader_froze_in_the_middle(
    sweeper: Sweeper, database: str, connection: Connection, eventually: Any
):
    await running_at(connection, DEAD)
    frozen = await asyncpg.connect(database)
    await frozen.execute("begin")
    assert await frozen.fetchval(sql.load("tasks")["become_leader"].text)

    async def rescued() -> bool:
        return await sweeper.rescue() == 1

    await eventually(rescued)
    frozen.terminate()


async def test_third_crash_fails_a_task_as_poisoned(sweeper: Sweeper, store: Store, connection: Connection):
    task_id = await put(connection)
    for crash in range(3):
        owner = await register(connection)
        if crash < 2:
            [(run, _, _)] = await store.claim(
                [("default", 0)], [datetime(2000, 1, 1, tzinfo=UTC)], slots=1, owner=owner
            )
        else:
            run = await store.claim_suspect(owner=owner)
        assert run is not None
        await connection.execute("delete from taskq.lease where id = $1", owner)
        await sweeper.rescue()

    stored = await row(connection, task_id)
    assert (stored["status"], stored["reason"], stored["crashes"], stored["attempt"]) == (3, "poisoned", 3, 3)
    assert [outcome for _, _, outcome, _ in await attempts(connection, task_id)] == ["lost"] * 3


async def test_sealed_tasks_of_a_dead_instance_are_failed_and_counted(
    sweeper: Sweeper, connection: Connection, caplog: pytest.LogCaptureFixture
):
    sealed, unsealed = await running_at(connection, DEAD, sealed=1), await running_at(connection, DEAD, run=2, sealed=1)

    assert await sweeper.rescue() == 2

    assert [(await row(connection, task_id))["reason"] for task_id in (sealed, unsealed)] == ["outcome_unknown", None]
    assert sweeper.unknown == 1
    assert [record.__dict__["outcome_unknown"] for record in caplog.records] == [[sealed]]


async def test_late_result_of_a_rescued_run_is_stale(sweeper: Sweeper, store: Store, connection: Connection):
    task_id = await running_at(connection, DEAD)
    await sweeper.rescue()

    written = await store.settle([Change(task_id, 1, DEAD, Status.OK)])

    assert written == 0
    assert (await row(connection, task_id))["status"] == 0


# -- prune


async def test_prune_walks_all_ids_in_bounded_rounds(
    sweeper: Sweeper, connection: Connection, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "PRUNE_BATCH", 2)
    monkeypatch.setattr(module, "PRUNE_STEPS_MAX", 2)
    old = datetime.now(UTC) - timedelta(days=31)
    for _ in range(5):
        await put(connection, status=2, finished_at=old)
    young = await put(connection, status=2, finished_at=datetime.now(UTC))

    rounds = [await sweeper.prune() for _ in range(3)]

    assert rounds == [4, 1, 0]
    assert [each[0] for each in await connection.fetch("select id from taskq.task")] == [young]


async def test_prune_begins_again_at_the_first_id(sweeper: Sweeper, connection: Connection):
    task_id = await put(connection, status=2, finished_at=datetime.now(UTC))
    assert await sweeper.prune() == 0
    await connection.execute("update taskq.task set finished_at = now() - interval '31 days' where id = $1", task_id)

    assert await sweeper.prune() == 1


async def test_prune_keeps_what_is_not_finished(sweeper: Sweeper, connection: Connection):
    old = datetime.now(UTC) - timedelta(days=300)
    await put(connection, created_at=old, due_at=old)
    await running_at(connection, await register(connection), created_at=old, started_at=old)

    assert await sweeper.prune() == 0


async def test_prune_erases_in_passing_what_is_past_its_days(
    store: Store,
    lease: Lease,
    settings: Settings,
    wakes: Wakes,
    connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(module, "PRUNE_BATCH", 2)
    privacy = {"email": Privacy(("to",), 7.0)}
    sweeper = Sweeper(store, lease, settings, wake=wakes, privacy=privacy)
    old, young = (datetime.now(UTC) - timedelta(days=days) for days in (8, 6))
    payload = '{"to": "ada@example.com", "body": "Secret"}'
    ids = [await put(connection, "email", status=2, finished_at=moment, payload=payload) for moment in (old, young) * 3]

    await sweeper.prune()

    erased = [(await row(connection, task_id))["erased_at"] is not None for task_id in ids]
    assert erased == [True, False] * 3


# -- partitions


async def test_partitions_are_made_ahead_of_the_ids(sweeper: Sweeper, store: Store, connection: Connection):
    await advance_to(connection, 2)
    await put(connection)
    before = await numbers(store)

    await sweeper.keep_partitions()

    assert before == [0, 1, 2]
    assert (await numbers(store))[-PARTITIONS_AHEAD:] == [3, 4]


async def test_partition_made_later_is_like_the_first(sweeper: Sweeper, connection: Connection):
    await put(connection)
    await advance_to(connection, 2)
    await sweeper.keep_partitions()
    shape = """
        select (select array_agg(d order by d) from (
                       select regexp_replace(indexdef, ' INDEX .* USING', '') as d
                         from pg_indexes where schemaname = 'taskq' and tablename = $1) indexes),
               (select array_agg(pg_get_constraintdef(oid) order by conname) from pg_constraint
                 where conrelid = ('taskq.' || $1)::regclass and contype = 'c'),
               (select reloptions from pg_class where oid = ('taskq.' || $1)::regclass),
               (select array_agg((attname, attnotnull, pg_get_expr(adbin, adrelid)) order by attnum)
                  from pg_attribute left join pg_attrdef on adrelid = attrelid and adnum = attnum
                 where attrelid = ('taskq.' || $1)::regclass and attnum > 0)
    """

    first, later = [tuple(await connection.fetchrow(shape, name)) for name in ("task_0", "task_3")]

    assert first == later


async def test_partitions_take_tasks_across_their_border(sweeper: Sweeper, store: Store, connection: Connection):
    await connection.execute("select setval('taskq.task_id', $1::bigint)", 3 * PARTITION_IDS - 3)
    await sweeper.keep_partitions()

    ids = [await put(connection) for _ in range(5)]

    assert [task_id // PARTITION_IDS for task_id in ids] == [2, 2, 3, 3, 3]
    assert [(await store.get(task_id)) is not None for task_id in ids] == [True] * 5


async def test_partition_is_dropped_when_all_of_it_is_old(sweeper: Sweeper, store: Store, connection: Connection):
    task_id = await put(connection, status=2, finished_at=datetime.now(UTC) - timedelta(days=31))
    await connection.execute("insert into taskq.attempt values ($1, 1, 1, 1, now(), now(), 'retry', 'x')", task_id)
    await connection.execute("insert into taskq.blob values ('a', 1, 'a')")
    await connection.execute("insert into taskq.task_blob values ($1, 'a')", task_id)
    await connection.execute(
        "insert into taskq.task_group values (1, now(), 'work', array[$1::bigint], '{a}')", task_id
    )
    await advance_to(connection, 1)

    await sweeper.keep_partitions()

    assert await numbers(store) == [1, 2, 3]
    for table in ("blob", "task_blob", "task_group"):
        assert await connection.fetchval(f"select count(*) from taskq.{table}") == 0
    assert await connection.fetchval("select count(*) from taskq.attempt") == 0


@pytest.mark.parametrize(
    "columns",
    [{}, {"status": 2, "finished_at": datetime.now(UTC) - timedelta(days=29)}],
    ids=["pending", "young"],
)
async def test_partition_is_kept_while_it_holds_something(
    sweeper: Sweeper, store: Store, connection: Connection, columns: dict[str, Any]
):
    await put(connection, **columns)
    await advance_to(connection, 1)

    await sweeper.keep_partitions()

    assert 0 in await numbers(store)


async def test_partition_of_the_current_ids_is_never_dropped(sweeper: Sweeper, store: Store):
    await sweeper.keep_partitions()

    assert await numbers(store) == [0, 1, 2]


async def test_partition_is_left_for_later_when_somebody_reads_it(
    sweeper: Sweeper, store: Store, database: str, connection: Connection
):
    await advance_to(connection, 1)
    reader = await asyncpg.connect(database)
    async with reader.transaction():
        await reader.execute("select * from taskq.task_0 for share")

        with pytest.raises(StoreUnavailable):
            await sweeper.keep_partitions()

    await reader.close()
    assert 0 in await numbers(store)
    await sweeper.keep_partitions()
    assert 0 not in await numbers(store)


async def test_partitions_are_left_to_the_instance_that_is_at_it(
    sweeper: Sweeper, store: Store, database: str, connection: Connection
):
    await advance_to(connection, 1)
    other = await asyncpg.connect(database)
    async with other.transaction():
        await other.execute("select pg_advisory_xact_lock(1953719656, -1)")

        await sweeper.keep_partitions()

    await other.close()
    assert await numbers(store) == [0, 1, 2]


# -- the loop


async def test_sweeper_goes_on_after_a_failure(
    sweeper: Sweeper, connection: Connection, eventually, monkeypatch: pytest.MonkeyPatch, caplog
):
    rescue, failures = sweeper.rescue, [StoreUnavailable("away")]

    async def fail_once() -> int:
        if failures:
            raise failures.pop()
        return await rescue()

    monkeypatch.setattr(sweeper, "rescue", fail_once)
    task_id = await running_at(connection, DEAD)
    async with asyncio.TaskGroup() as group:
        runner = group.create_task(sweeper.run())

        async def rescued() -> bool:
            return (await row(connection, task_id))["status"] == 0

        await eventually(rescued)
        runner.cancel()

    assert "sweep failed; the next one makes up for it" in caplog.text


async def test_sweeper_prunes_every_so_often(sweeper: Sweeper, eventually, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "PRUNE_EVERY_S", 3_600.0)
    rescues, prunes = [], []

    async def rescue() -> int:
        rescues.append(1)
        return 0

    async def prune() -> int:
        prunes.append(1)
        return 0

    monkeypatch.setattr(sweeper, "rescue", rescue)
    monkeypatch.setattr(sweeper, "prune", prune)
    async with asyncio.TaskGroup() as group:
        runner = group.create_task(sweeper.run())
        await eventually(says(lambda: len(rescues) >= 3))
        runner.cancel()

    assert len(prunes) == 1


async def test_sweeper_does_nothing_without_a_living_lease(
    sweeper: Sweeper, connection: Connection, lease: Lease, eventually, monkeypatch: pytest.MonkeyPatch
):
    asked = []

    def holds() -> bool:
        asked.append(1)
        return False

    monkeypatch.setattr(lease, "holds", holds)
    task_id = await running_at(connection, DEAD)
    async with asyncio.TaskGroup() as group:
        runner = group.create_task(sweeper.run())
        await eventually(says(lambda: len(asked) >= 3))
        runner.cancel()

    assert (await row(connection, task_id))["status"] == 1
