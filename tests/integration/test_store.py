"""Every statement of the life of a task against real PostgreSQL: what it changes, and what it must not."""

import asyncio
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from rig import Connection, attempts, new, put, register, row, statuses

from taskq.config import Settings
from taskq.errors import StoreRefused, StoreUnavailable
from taskq.sql import Statement
from taskq.store import EARLIEST, Lane, Store
from taskq.task import Change, Status

LANE = ("default", 0)
NOBODY = 999_999
ENDLESS_S = 3_600.0


async def claim(store: Store, owner: int, *lanes: tuple[str, int], slots: int = 10, low: datetime = EARLIEST):
    """The runs claimed."""
    taken = lanes or (LANE,)
    return [run for run, _, _ in await store.claim(taken, [low] * len(taken), slots=slots, owner=owner)]


async def born(store: Store, owner: int, count: int = 1) -> list[int]:
    """Ids of rows born in progress."""
    return [each[0] for each in await store.insert([new()] * count, births=count, owner=owner)]


# -- insert


async def test_insert_returns_ids_in_the_order_of_the_batch(store: Store, connection: Connection):
    batch = [new(payload=f'{{"n": {n}}}') for n in range(50)]

    rows = await store.insert(batch, births=0, owner=0)

    stored = await connection.fetch("select id, (payload ->> 'n')::int from taskq.task order by id")
    assert [(each[0], n) for n, each in enumerate(rows)] == [tuple(each) for each in stored]


async def test_insert_keeps_every_field(store: Store, connection: Connection):
    [(task_id, _, created_at)] = await store.insert(
        [new("resize", '{"a": "ü€😀"}', queue="images", priority=-5, max_attempts=4)], births=0, owner=0
    )

    stored = await row(connection, task_id)
    assert (stored["kind"], stored["queue"], stored["priority"], stored["max_attempts"]) == ("resize", "images", -5, 4)
    assert (stored["payload"], stored["created_at"]) == ('{"a": "ü€😀"}', created_at)


async def test_insert_bears_the_first_rows_in_progress(store: Store, connection: Connection):
    owner = await register(connection)

    rows = await store.insert([new()] * 3, births=2, owner=owner)

    assert [status for _, status, _ in rows] == [1, 1, 0]
    stored = await row(connection, rows[0][0])
    assert (stored["owner"], stored["run"], stored["attempt"]) == (owner, 1, 1)
    assert stored["started_at"] is not None


async def test_insert_bears_nothing_when_the_lease_has_ended(store: Store, connection: Connection):
    rows = await store.insert([new()] * 3, births=3, owner=NOBODY)

    assert [status for _, status, _ in rows] == [0, 0, 0]
    assert (await row(connection, rows[0][0]))["attempt"] == 0


async def test_insert_refuses_a_batch_whole_when_one_row_can_not_be_stored(store: Store, connection: Connection):
    with pytest.raises(StoreRefused):
        await store.insert([new(), new(payload='{"a": "\\u0000"}')], births=0, owner=0)

    assert await statuses(connection) == {}


# -- claim


async def test_claim_takes_the_longest_due_first(store: Store, connection: Connection):
    owner = await register(connection)
    now = datetime.now(UTC)
    ids = [await put(connection, due_at=now - timedelta(seconds=s)) for s in (10, 30, 20)]

    runs = await claim(store, owner, slots=2)

    assert {run.id for run in runs} == {ids[1], ids[2]}


async def test_claim_takes_the_lanes_in_the_order_given(store: Store, connection: Connection):
    owner = await register(connection)
    late = await put(connection, priority=0, due_at=datetime(2001, 1, 1, tzinfo=UTC))
    urgent = await put(connection, priority=-1)

    runs = await claim(store, owner, ("default", -1), ("default", 0), slots=1)

    assert [run.id for run in runs] == [urgent]
    assert (await row(connection, late))["status"] == 0


async def test_claim_counts_the_attempt_and_the_run(store: Store, connection: Connection):
    owner = await register(connection)
    task_id = await put(connection, attempt=1, run=4, max_attempts=7)

    [run] = await claim(store, owner)

    assert (run.id, run.run, run.owner, run.attempt, run.max_attempts, run.kind) == (task_id, 5, owner, 2, 7, "work")
    stored = await row(connection, task_id)
    assert (stored["status"], stored["owner"], stored["run"], stored["attempt"]) == (1, owner, 5, 2)


async def test_claim_leaves_what_is_due_later(store: Store, connection: Connection):
    owner = await register(connection)
    await put(connection, due_at=datetime.now(UTC) + timedelta(hours=1))

    assert await claim(store, owner) == []


async def test_claim_leaves_what_lies_below_the_mark(store: Store, connection: Connection):
    owner = await register(connection)
    now = datetime.now(UTC)
    await put(connection, due_at=now - timedelta(seconds=60))
    above = await put(connection, due_at=now - timedelta(seconds=5))

    runs = await claim(store, owner, low=now - timedelta(seconds=30))

    assert [run.id for run in runs] == [above]


async def test_claim_takes_nothing_when_the_lease_has_ended(store: Store, connection: Connection):
    task_id = await put(connection)

    assert await claim(store, NOBODY) == []
    assert (await row(connection, task_id))["status"] == 0


async def test_claim_passes_over_what_another_has_locked(store: Store, database: str, connection: Connection):
    owner = await register(connection)
    locked, free = await put(connection), await put(connection)
    other = await asyncpg.connect(database)
    async with other.transaction():
        await other.execute("select from taskq.task where id = $1 for update", locked)

        runs = await claim(store, owner)

    await other.close()
    assert [run.id for run in runs] == [free]


async def test_claim_never_hands_a_task_to_two(database: str, settings: Settings, connection: Connection):
    owners = [await register(connection) for _ in range(4)]
    await connection.execute(
        "insert into taskq.task (id, kind, payload) select nextval('taskq.task_id'), 'work', '{}'"
        " from generate_series(1, 400)"
    )
    stores = [Store(database, settings) for _ in owners]
    claimed: list[int] = []

    async def take(one: Store, owner: int) -> None:
        while runs := await claim(one, owner, slots=7):
            claimed.extend(run.id for run in runs)

    async with asyncio.TaskGroup() as group:
        for one, owner in zip(stores, owners, strict=True):
            group.create_task(take(one, owner))

    for one in stores:
        await one.close()
    assert len(claimed) == len(set(claimed)) == 400


async def test_claim_leaves_suspects_to_the_claim_of_suspects(store: Store, connection: Connection):
    owner = await register(connection)
    first, second = await put(connection, crashes=2), await put(connection, crashes=3)

    ordinary = await claim(store, owner)
    suspects = [await store.claim_suspect(owner=owner) for _ in range(3)]

    assert ordinary == []
    assert [run and (run.id, run.crashes) for run in suspects] == [(first, 2), (second, 3), None]


async def test_survey_lists_lanes_the_most_urgent_first(store: Store, connection: Connection):
    for queue, priority in (("b", 0), ("a", 0), ("b", -1), ("b", 0)):
        await put(connection, queue=queue, priority=priority)

    lanes = await store.survey()

    assert [(lane.queue, lane.priority, lane.suspect) for lane in lanes] == [
        ("b", -1, False),
        ("a", 0, False),
        ("b", 0, False),
    ]
    assert all(lane.due_in_s <= 0 for lane in lanes)


async def test_survey_says_when_the_first_of_a_lane_is_due(store: Store, connection: Connection):
    now = datetime.now(UTC)
    for hours in (2, 1, 3):
        await put(connection, due_at=now + timedelta(hours=hours))

    [lane] = await store.survey()

    assert lane.due_in_s == pytest.approx(3_600, abs=60)


async def test_survey_lists_suspects_apart(store: Store, connection: Connection):
    await put(connection, crashes=2)
    await put(connection, status=2, finished_at=datetime.now(UTC), queue="done")

    [lane] = await store.survey()

    assert isinstance(lane, Lane)
    assert (lane.queue, lane.suspect) == ("", True)


# -- settle


async def test_settle_finishes_our_run(store: Store, connection: Connection):
    owner = await register(connection)
    [task_id] = await born(store, owner)

    written = await store.settle([Change(task_id, 1, owner, Status.OK)])

    stored = await row(connection, task_id)
    assert written == 1
    assert (stored["status"], stored["owner"], stored["finished_at"] is not None) == (2, None, True)


@pytest.mark.parametrize("status", [Status.OK, Status.FAILED])
@pytest.mark.parametrize(("owner_off", "run_off"), [(1, 0), (0, 1), (0, -1)])
async def test_settle_changes_nothing_when_the_run_is_superseded(
    store: Store, connection: Connection, status: Status, owner_off: int, run_off: int
):
    owner = await register(connection)
    [task_id] = await born(store, owner)
    before = await row(connection, task_id)
    reason = "permanent" if status is Status.FAILED else None

    change = Change(task_id, 1 + run_off, owner + owner_off, status, reason=reason)
    written = await store.settle([change, change])

    assert written == 0
    assert await row(connection, task_id) == before
    assert await connection.fetchval("select count(*) from taskq.minute_count") == 0


async def test_settle_is_harmless_the_second_time(store: Store, connection: Connection):
    owner = await register(connection)
    [task_id] = await born(store, owner)
    change = Change(task_id, 1, owner, Status.FAILED, error="no", reason="permanent")

    assert [await store.settle([change]) for _ in range(2)] == [1, 0]
    assert await connection.fetchval("select sum(n) from taskq.minute_count") == 1
    assert len(await attempts(connection, task_id)) == 1


async def test_settle_writes_a_mixed_batch(store: Store, connection: Connection):
    owner = await register(connection)
    ok, retry, failed, snoozed, released, stale = await born(store, owner, 6)

    written = await store.settle(
        [
            Change(ok, 1, owner, Status.OK),
            Change(retry, 1, owner, Status.PENDING, 60.0, "not yet"),
            Change(failed, 1, owner, Status.FAILED, None, "never", "permanent"),
            Change(snoozed, 1, owner, Status.PENDING, 30.0, "busy", None, 1),
            Change(released, 1, owner, Status.PENDING, 0.0, None, None, 1),
            Change(stale, 2, owner, Status.OK),
        ]
    )

    columns = ("status", "attempt", "run", "owner", "reason", "last_error")
    rows = [await row(connection, each) for each in (ok, retry, failed, snoozed)]
    stored = [tuple(each[column] for column in columns) for each in rows]
    assert written == 5
    assert stored == [
        (2, 1, 1, None, None, None),
        (0, 1, 1, None, None, "not yet"),
        (3, 1, 1, None, "permanent", "never"),
        (0, 0, 1, None, None, "busy"),
    ]
    assert (await row(connection, released))["attempt"] == 0
    assert (await row(connection, stale))["status"] == 1


async def test_settle_keeps_the_attempts_that_counted_and_failed(store: Store, connection: Connection):
    owner = await register(connection)
    retry, failed, snoozed = await born(store, owner, 3)

    await store.settle(
        [
            Change(retry, 1, owner, Status.PENDING, 0.0, "not yet"),
            Change(failed, 1, owner, Status.FAILED, None, "never", "permanent"),
            Change(snoozed, 1, owner, Status.PENDING, 0.0, "busy", None, 1),
        ]
    )

    assert await attempts(connection, retry) == [(1, 1, "retry", "not yet")]
    assert await attempts(connection, failed) == [(1, 1, "failed", "never")]
    assert await attempts(connection, snoozed) == []


async def test_settle_puts_a_retry_off_by_the_clock_of_the_database(store: Store, connection: Connection):
    owner = await register(connection)
    [task_id] = await born(store, owner)

    await store.settle([Change(task_id, 1, owner, Status.PENDING, 60.0, "not yet")])

    ahead = await connection.fetchval("select due_at - now() from taskq.task where id = $1", task_id)
    assert timedelta(seconds=55) < ahead <= timedelta(seconds=60)


async def test_settle_never_makes_a_task_due_earlier(store: Store, connection: Connection):
    owner = await register(connection)
    due_at = datetime.now(UTC) + timedelta(hours=1)
    task_id = await put(connection, status=1, owner=owner, run=1, attempt=1, due_at=due_at)

    await store.settle([Change(task_id, 1, owner, Status.PENDING, 1.0, None, None, 1)])

    assert (await row(connection, task_id))["due_at"] == due_at


async def test_settle_keeps_the_last_error_when_the_next_run_ends_well(store: Store, connection: Connection):
    owner = await register(connection)
    [task_id] = await born(store, owner)
    await store.settle([Change(task_id, 1, owner, Status.PENDING, 0.0, "not yet")])
    [run] = await claim(store, owner)

    await store.settle([Change(task_id, run.run, owner, Status.OK)])

    assert (await row(connection, task_id))["last_error"] == "not yet"


async def test_minute_counters_equal_the_history(store: Store, connection: Connection):
    owner, other = await register(connection), await register(connection)
    for each in (owner, other):
        ids = await born(store, each, 20)
        await store.settle([Change(task_id, 1, each, Status.OK) for task_id in ids[:10]])
        await store.settle(
            [Change(task_id, 1, each, Status.FAILED, None, "no", "permanent") for task_id in ids[10:15]]
            + [Change(task_id, 1, each, Status.OK) for task_id in ids[15:18]]
        )
    lost = await put(connection, status=1, owner=NOBODY, attempt=10, max_attempts=10, started_at=datetime.now(UTC))
    await store.rescue(own=owner, lease_s=ENDLESS_S, batch=10)

    counted = await connection.fetch("select status, sum(n)::int from taskq.minute_count group by 1 order by 1")

    assert [tuple(each) for each in counted] == [(2, 26), (3, 11)]
    assert await statuses(connection) == {1: 4, 2: 26, 3: 11}
    assert (await row(connection, lost))["reason"] == "attempts_exhausted"


async def test_settle_refuses_what_can_not_be_stored(store: Store, connection: Connection):
    owner = await register(connection)
    [task_id] = await born(store, owner)

    for text in ("\0", "\ud800"):
        with pytest.raises(StoreRefused):
            await store.settle([Change(task_id, 1, owner, Status.FAILED, None, text, "permanent")])

    assert (await row(connection, task_id))["status"] == 1


# -- what is ours


async def test_owned_lists_what_we_have_in_progress(store: Store, connection: Connection):
    owner, other = await register(connection), await register(connection)
    ours = await born(store, owner, 2)
    await born(store, other)
    await put(connection)

    assert sorted(await store.owned(owner=owner)) == [(task_id, 1) for task_id in ours]


async def test_release_gives_the_attempt_back(store: Store, connection: Connection):
    owner = await register(connection)
    [task_id] = await born(store, owner)

    released = await store.release([(task_id, 1)], owner=owner)

    stored = await row(connection, task_id)
    assert released == [task_id]
    assert (stored["status"], stored["owner"], stored["attempt"], stored["run"]) == (0, None, 0, 1)


@pytest.mark.parametrize(("owner_off", "run_off"), [(1, 0), (0, 1)])
async def test_release_leaves_what_is_not_this_run(store: Store, connection: Connection, owner_off: int, run_off: int):
    owner = await register(connection)
    [task_id] = await born(store, owner)

    assert await store.release([(task_id, 1 + run_off)], owner=owner + owner_off) == []
    assert (await row(connection, task_id))["status"] == 1


# -- rescue


async def test_rescue_makes_tasks_of_an_ended_lease_pending_again(store: Store, connection: Connection):
    own, dead = await register(connection), await register(connection, beaten_ago_s=60)
    [task_id] = await born(store, dead)

    rescued = await store.rescue(own=own, lease_s=20, batch=10)

    stored = await row(connection, task_id)
    assert rescued == [(task_id, 1, None)]
    assert (stored["status"], stored["owner"], stored["attempt"], stored["run"], stored["crashes"]) == (
        0,
        None,
        1,
        1,
        1,
    )
    assert await attempts(connection, task_id) == [(1, 1, "lost", "the process that ran it died or lost its lease")]
    assert await connection.fetchval("select count(*) from taskq.lease where id = $1", dead) == 0


async def test_rescue_takes_tasks_whose_owner_is_missing(store: Store, connection: Connection):
    own = await register(connection)
    task_id = await put(connection, status=1, owner=NOBODY, run=1, attempt=1, started_at=datetime.now(UTC))

    assert await store.rescue(own=own, lease_s=20, batch=10) == [(task_id, 1, None)]


async def test_rescue_leaves_tasks_of_a_living_lease(store: Store, connection: Connection):
    own, living = await register(connection), await register(connection, beaten_ago_s=5)
    await born(store, living)

    assert await store.rescue(own=own, lease_s=20, batch=10) == []


async def test_rescue_never_ends_our_own_lease(store: Store, connection: Connection):
    own = await register(connection, beaten_ago_s=60)
    await born(store, own)

    assert await store.rescue(own=own, lease_s=20, batch=10) == []
    assert await connection.fetchval("select count(*) from taskq.lease where id = $1", own) == 1


@pytest.mark.parametrize(
    ("crashes", "attempt", "reason"), [(2, 1, "poisoned"), (0, 3, "attempts_exhausted"), (2, 3, "poisoned")]
)
async def test_rescue_fails_what_must_not_run_again(
    store: Store, connection: Connection, crashes: int, attempt: int, reason: str
):
    own = await register(connection)
    task_id = await put(
        connection,
        status=1,
        owner=NOBODY,
        run=3,
        attempt=attempt,
        max_attempts=3,
        crashes=crashes,
        started_at=datetime.now(UTC),
    )

    rescued = await store.rescue(own=own, lease_s=20, batch=10)

    stored = await row(connection, task_id)
    assert rescued == [(task_id, 3, reason)]
    assert (stored["status"], stored["reason"], stored["crashes"]) == (3, reason, crashes + 1)
    assert stored["finished_at"] is not None
    assert await connection.fetchval("select sum(n) from taskq.minute_count where status = 3") == 1


async def test_rescue_takes_at_most_a_batch(store: Store, connection: Connection):
    own = await register(connection)
    for _ in range(5):
        await put(connection, status=1, owner=NOBODY, run=1, attempt=1, started_at=datetime.now(UTC))

    sizes = [len(await store.rescue(own=own, lease_s=20, batch=2) or ()) for _ in range(4)]

    assert sizes == [2, 2, 1, 0]


async def test_rescue_stands_back_when_another_instance_is_at_it(store: Store, database: str, connection: Connection):
    own = await register(connection)
    other = await asyncpg.connect(database)
    async with other.transaction():
        await other.execute("select pg_advisory_xact_lock(1953719656, -1)")

        rescued = await store.rescue(own=own, lease_s=20, batch=10)

    await other.close()
    assert rescued is None


async def test_rescue_and_settle_race_to_one_outcome(store: Store, connection: Connection):
    own, slow = await register(connection), await register(connection, beaten_ago_s=60)
    [task_id] = await born(store, slow)
    await store.rescue(own=own, lease_s=20, batch=10)

    late = await store.settle([Change(task_id, 1, slow, Status.OK)])

    assert late == 0
    assert (await row(connection, task_id))["status"] == 0


# -- prune


async def finished(connection: Connection, days_ago: float, status: int = 2) -> int:
    moment = datetime.now(UTC) - timedelta(days=days_ago)
    return await put(connection, status=status, finished_at=moment)


async def test_prune_deletes_what_finished_before_the_retention(store: Store, connection: Connection):
    old, failed, young = (
        await finished(connection, 40),
        await finished(connection, 40, status=3),
        await finished(connection, 20),
    )
    waiting = await put(connection, created_at=datetime(2020, 1, 1, tzinfo=UTC))
    await connection.execute("insert into taskq.attempt values ($1, 1, 1, 1, now(), now(), 'retry', 'x')", old)
    await connection.execute("insert into taskq.attempt values ($1, 1, 1, 1, now(), now(), 'retry', 'x')", young)

    last, gone = await store.prune_tasks(after=0, retention_s=30 * 86_400, privacy={}, batch=100)

    left = [each[0] for each in await connection.fetch("select id from taskq.task order by id")]
    assert (last, gone) == (waiting, 2)
    assert left == [young, waiting]
    assert failed not in left
    assert [each[0] for each in await connection.fetch("select task_id from taskq.attempt")] == [young]


async def test_prune_walks_the_ids_in_batches(store: Store, connection: Connection):
    ids = [await finished(connection, 40) for _ in range(5)]

    first = await store.prune_tasks(after=0, retention_s=0, privacy={}, batch=2)
    second = await store.prune_tasks(after=ids[1], retention_s=0, privacy={}, batch=9)
    end = await store.prune_tasks(after=ids[-1], retention_s=0, privacy={}, batch=9)

    assert (first, second, end) == ((ids[1], 2), (ids[4], 3), (None, 0))


async def test_prune_counts_forgets_old_counters(store: Store, connection: Connection):
    await connection.execute(
        "insert into taskq.minute_count"
        " values (now() - interval '9 days', 1, 'q', 'k', 2, 5), (now(), 1, 'q', 'k', 2, 6)"
    )

    await store.prune_counts(retention_s=8 * 86_400)

    assert await connection.fetchval("select sum(n) from taskq.minute_count") == 6


async def test_prune_attempts_forgets_a_span_of_ids(store: Store, connection: Connection):
    for task_id in (9, 10, 19, 20):
        await connection.execute("insert into taskq.attempt values ($1, 1, 1, 1, now(), now(), 'retry', 'x')", task_id)

    await store.prune_attempts(10, 20)

    assert [each[0] for each in await connection.fetch("select task_id from taskq.attempt order by 1")] == [9, 20]


async def test_partition_state_says_whether_work_is_left_and_since_when_not(store: Store, connection: Connection):
    empty = await store.partition_state(1, 10**7)
    task_id = await finished(connection, 2)
    idle = await store.partition_state(1, 10**7)
    await put(connection)
    busy = await store.partition_state(1, 10**7)

    assert empty == (False, None)
    assert (idle[0], round((idle[1] or 0) / 86_400)) == (False, 2)
    assert busy[0]
    assert (await store.partition_state(task_id + 10, 10**7)) == (False, None)


# -- show


async def test_get_shows_a_task(store: Store):
    [(task_id, _, created_at)] = await store.insert([new("work", max_attempts=4)], births=0, owner=0)

    task = await store.get(task_id)

    assert task is not None
    assert (task.id, task.kind, task.queue, task.status) == (task_id, "work", "default", Status.PENDING)
    assert (task.attempt, task.max_attempts, task.created_at, task.due_at) == (0, 4, created_at, created_at)


async def test_get_returns_nothing_when_there_is_no_such_task(store: Store):
    assert await store.get(1) is None


async def test_attempts_are_shown_the_oldest_first(store: Store, connection: Connection):
    owner = await register(connection)
    [task_id] = await born(store, owner)
    await store.settle([Change(task_id, 1, owner, Status.PENDING, 0.0, "first")])
    [run] = await claim(store, owner)
    await store.settle([Change(task_id, run.run, owner, Status.FAILED, None, "second", "permanent")])

    kept = await store.attempts(task_id, limit=100)

    assert [(each["attempt"], each["run"], each["outcome"], each["error"]) for each in kept] == [
        (1, 1, "retry", "first"),
        (2, 2, "failed", "second"),
    ]
    assert len(await store.attempts(task_id, limit=1)) == 1


async def test_server_says_what_makes_a_commit_less_than_durable(store: Store, connection: Connection):
    server = await store.server()

    off = [
        f"{name}=off"
        for name in ("fsync", "full_page_writes", "synchronous_commit")
        if await connection.fetchval(f"show {name}") == "off"
    ]
    assert list(server.unsafe) == off
    assert server.version_num >= 150_000
    assert server.version[0].isdigit()


async def test_maintenance_runs_in_one_transaction_or_not_at_all(store: Store, connection: Connection):
    with pytest.raises(StoreUnavailable):
        await store.run_maintenance(
            [Statement("a", "create table taskq.a ()", ()), Statement("b", "create table taskq.a ()", ())]
        )

    assert await connection.fetchval("select to_regclass('taskq.a')") is None
    assert await store.run_maintenance([Statement("a", "create table taskq.a ()", ())])


async def test_maintenance_stands_back_when_another_instance_is_at_it(
    store: Store, database: str, connection: Connection
):
    other = await asyncpg.connect(database)
    async with other.transaction():
        await other.execute("select pg_advisory_xact_lock(1953719656, -1)")

        done = await store.run_maintenance([Statement("a", "create table taskq.a ()", ())])

    await other.close()
    assert not done
    assert await connection.fetchval("select to_regclass('taskq.a')") is None
