"""The public SQL API: `taskq.enqueue` in other applications' transactions, and the masked wake behind it."""

import asyncio
import contextlib
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from rig import NEVER, Connection, Work, all_are, kind, new, row, running, says, settled_down, statuses

from taskq.config import Settings
from taskq.wake import BUSY_NOTES

MASK = "select pg_advisory_lock(1953719656, 'taskq'::regnamespace::oid::int)"


async def test_enqueue_stores_a_task_with_the_documented_defaults(connection: Connection):
    task_id = await connection.fetchval("select taskq.enqueue('email', '{\"a\": 1}')")

    stored = await row(connection, task_id)
    assert (stored["kind"], stored["payload"], stored["status"]) == ("email", '{"a": 1}', 0)
    assert (stored["queue"], stored["priority"], stored["max_attempts"], stored["attempt"]) == ("default", 0, 10, 0)
    assert stored["due_at"] == stored["created_at"]


async def test_enqueue_takes_every_argument_by_name(connection: Connection):
    due_at = datetime.now(UTC) + timedelta(days=1)

    task_id = await connection.fetchval(
        "select taskq.enqueue(kind => 'k', payload => '{}', queue => 'Q.1_-', priority => -100, due_at => $1,"
        " max_attempts => 100)",
        due_at,
    )

    stored = await row(connection, task_id)
    assert (stored["queue"], stored["priority"], stored["due_at"], stored["max_attempts"]) == (
        "Q.1_-",
        -100,
        due_at,
        100,
    )


async def test_enqueue_is_part_of_the_callers_transaction(connection: Connection):
    transaction = connection.transaction()
    await transaction.start()
    await connection.fetchval("select taskq.enqueue('work', '{}')")
    await transaction.rollback()

    assert await statuses(connection) == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("null, '{}'", "kind is null"),
        ("'', '{}'", "kind is ''"),
        ("'Work', '{}'", "kind is 'Work'"),
        ("'1', '{}'", "kind is '1'"),
        (f"'{'w' * 65}', '{{}}'", "kind is 'www"),
        ("E'a\\nb', '{}'", "kind is"),
        ("'work', null", "payload is null"),
        ("'work', '[]'", "payload is array"),
        ("'work', 'null'", "payload is null"),
        ("'work', '1'", "payload is number"),
        ("'work', '{}', queue => null", "queue is null"),
        ("'work', '{}', queue => ''", "queue is ''"),
        ("'work', '{}', queue => 'a b'", "queue is 'a b'"),
        ("'work', '{}', priority => 101", "priority is 101"),
        ("'work', '{}', priority => null", "priority is null"),
        ("'work', '{}', max_attempts => 0", "max_attempts is 0"),
        ("'work', '{}', max_attempts => 101", "max_attempts is 101"),
        ("'work', '{}', max_attempts => null", "max_attempts is null"),
    ],
)
async def test_enqueue_refuses_what_can_not_be_a_task(connection: Connection, arguments: str, message: str):
    with pytest.raises(asyncpg.InvalidParameterValueError, match=message):
        await connection.fetchval(f"select taskq.enqueue({arguments})")

    assert await statuses(connection) == {}


@pytest.mark.parametrize("size", [8_000, 100_000, 1_000_000])
async def test_enqueue_takes_payloads_larger_than_a_notification(connection: Connection, size: int):
    task_id = await connection.fetchval("select taskq.enqueue('work', jsonb_build_object('a', repeat('x', $1)))", size)

    assert len((await row(connection, task_id))["payload"]) > size


async def test_enqueue_takes_many_in_one_transaction(connection: Connection):
    await connection.execute("select count(taskq.enqueue('work', '{}')) from generate_series(1, 5000)")

    assert await statuses(connection) == {0: 5_000}


async def test_enqueue_many_stores_all_in_the_order_given_and_wakes_once(
    connection: Connection, ear: "Ear", eventually
):
    due_at = datetime.now(UTC)

    ids = await connection.fetch(
        "select taskq.enqueue_many('work', array(select jsonb_build_object('n', n) from generate_series(1, 5000) n),"
        " 'bulk', -5, $1, 3) as id",
        due_at,
    )

    stored = await connection.fetch(
        "select id, payload->>'n', queue, priority, due_at, max_attempts from taskq.task order by id"
    )
    assert [tuple(each) for each in stored] == [
        (each["id"], str(n), "bulk", -5, due_at, 3) for n, each in enumerate(ids, 1)
    ]
    await eventually(says(lambda: ear.notes))
    assert await heard(ear) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("'Work', '{}'", "kind is 'Work'"),
        ("'work', null", "payloads has no elements"),
        ("'work', array[null::jsonb]", r"payloads\[1\] is null"),
        ("'work', array['{}', '[]', '1']::jsonb[]", r"payloads\[2\] is array"),
        ("'work', array_fill('{}'::jsonb, array[100001])", "payloads has 100001 elements"),
        ("'work', '{}', priority => 101", "priority is 101"),
    ],
)
async def test_enqueue_many_refuses_all_when_one_can_not_be_a_task(
    connection: Connection, arguments: str, message: str
):
    with pytest.raises(asyncpg.InvalidParameterValueError, match=message):
        await connection.fetch(f"select taskq.enqueue_many({arguments})")

    assert await statuses(connection) == {}


async def test_enqueue_many_of_nothing_stores_nothing_and_is_silent(connection: Connection, ear: "Ear"):
    assert await connection.fetch("select taskq.enqueue_many('work', '{}')") == []

    assert (await statuses(connection), await heard(ear)) == ({}, 0)


async def test_enqueue_needs_execute_and_nothing_else(database: str, connection: Connection):
    await connection.execute("drop role if exists taskq_test_shop")
    await connection.execute("create role taskq_test_shop")
    await connection.execute("grant usage on schema taskq to taskq_test_shop")
    shop = await asyncpg.connect(database)
    await shop.execute("set role taskq_test_shop")

    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await shop.fetchval("select taskq.enqueue('work', '{}')")
    await connection.execute(
        "grant execute on function taskq.enqueue(text, jsonb, text, integer, timestamptz, integer) to taskq_test_shop"
    )
    task_id = await shop.fetchval("select taskq.enqueue('work', '{}')")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await shop.execute("select from taskq.task")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await shop.execute("select taskq.wake()")

    await shop.close()
    await connection.execute("drop owned by taskq_test_shop")
    await connection.execute("drop role taskq_test_shop")
    assert task_id


async def test_enqueue_can_not_be_misled_by_the_callers_search_path(database: str, connection: Connection):
    mallory = await asyncpg.connect(database)
    await mallory.execute("create schema evil")
    await mallory.execute("create table evil.task (id bigint)")
    await mallory.execute("create function evil.nextval(text) returns bigint language sql as 'select 666::bigint'")
    await mallory.execute("set search_path = evil, pg_temp, pg_catalog")

    task_id = await mallory.fetchval("select taskq.enqueue('work', '{}')")

    await mallory.close()
    assert (await row(connection, task_id))["id"] == 1


# -- the wake


class Ear:
    """Counts notifications on the channel of wakes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def __call__(self, *note: Any) -> None:
        self.notes.append(note[3])


@pytest.fixture
async def ear(database: str):
    opened, ear = await asyncpg.connect(database), Ear()
    await opened.add_listener("taskq_wake", ear)
    ear.connection = opened  # pyright: ignore[reportAttributeAccessIssue] - for the tests below
    yield ear
    await opened.close()


async def heard(ear: Ear) -> int:
    """The number of notifications that came before now."""
    await ear.connection.execute("select 1")  # pyright: ignore[reportAttributeAccessIssue]
    return len(ear.notes)


async def test_enqueue_wakes_once_a_transaction_with_an_empty_note(connection: Connection, ear: Ear, eventually):
    async with connection.transaction():
        for _ in range(50):
            await connection.fetchval("select taskq.enqueue('work', '{}')")

    await eventually(says(lambda: ear.notes))
    assert (await heard(ear), ear.notes) == (1, [""])


async def test_enqueue_is_silent_while_the_mask_is_held(connection: Connection, database: str, ear: Ear):
    dispatcher = await asyncpg.connect(database)
    await dispatcher.execute(MASK)

    await connection.fetchval("select taskq.enqueue('work', '{}')")

    assert await heard(ear) == 0
    await dispatcher.close()


async def test_enqueue_wakes_again_when_the_holder_of_the_mask_dies(
    connection: Connection, database: str, ear: Ear, eventually
):
    dispatcher = await asyncpg.connect(database)
    await dispatcher.execute(MASK)
    await connection.execute("select pg_terminate_backend($1, 5000)", dispatcher.get_server_pid())

    await connection.fetchval("select taskq.enqueue('work', '{}')")

    await eventually(says(lambda: ear.notes))
    dispatcher.terminate()


async def test_enqueue_is_silent_about_what_is_due_later(connection: Connection, ear: Ear):
    await connection.fetchval("select taskq.enqueue('work', '{}', due_at => now() + interval '1 hour')")

    assert await heard(ear) == 0


async def test_enqueue_keeps_no_lock(connection: Connection):
    async with connection.transaction():
        await connection.fetchval("select taskq.enqueue('work', '{}')")

        assert await connection.fetchval("select count(*) from pg_locks where locktype = 'advisory'") == 0


async def test_steady_producers_notify_rarely(
    settings: Settings, database: str, connection: Connection, ear: Ear, eventually
):
    """Also when all slots are full again and again: the handler takes longer than a commit."""
    producers, each = 24, 300
    go_on = asyncio.Event()

    async def work(_payload: dict[str, Any]) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.02):
                await go_on.wait()

    async def produce() -> None:
        shop = await asyncpg.connect(database)
        for _ in range(each):
            await shop.fetchval("select taskq.enqueue('work', '{}')")
        await shop.close()

    async with running(settings, kind("work", work), concurrency=30) as parts:
        await settled_down(parts, eventually)
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for _ in range(producers):
                group.create_task(produce())
        took_s = time.monotonic() - began
        go_on.set()
        await eventually(all_are(connection, {2: producers * each}))

    # Below 80 a second the mask is not worth its while, so a slow machine may hear more.
    assert await heard(ear) <= producers * each / 8 + 100 * took_s


async def test_other_instances_are_woken_while_the_holder_of_the_mask_is_full(
    settings: Settings, connection: Connection, eventually
):
    held, free = Work(held=True), Work()
    async with (
        running(settings, kind("work", held), concurrency=1, **NEVER) as full,
        running(settings, kind("work", free), **NEVER) as other,
    ):
        await settled_down(full, eventually)
        await settled_down(other, eventually)
        await eventually(says(lambda: full.listener.peers == 1))
        await full.intake.submit(new())
        await eventually(says(lambda: held.seen))
        for _ in range(2 * BUSY_NOTES):
            full.dispatcher.wake.notified()
        await eventually(says(lambda: full.listener._mask_held))

        await connection.fetchval("select taskq.enqueue('work', '{}')")  # in silence

        await eventually(says(lambda: free.seen))
        held.go_on.set()


async def test_enqueue_is_picked_up_at_once(settings: Settings, connection: Connection, eventually):
    async with running(settings, kind("work", Work()), poll_s=60) as parts:
        await settled_down(parts, eventually)

        await connection.fetchval("select taskq.enqueue('work', '{}')")

        await eventually(all_are(connection, {2: 1}))


async def test_tasks_of_long_transactions_wait_for_no_longer_than_a_poll_after_their_commit(
    settings: Settings, database: str, connection: Connection, eventually
):
    looks: list[datetime] = []
    async with running(settings, kind("work", Work()), poll_s=0.5) as parts:
        polled = parts.dispatcher.wake.polled

        def note(took_s: float) -> None:  # a full look goes on to claim what was committed before
            looks.append(datetime.now(UTC))
            polled(took_s)

        parts.dispatcher.wake.polled = note  # pyright: ignore[reportAttributeAccessIssue] - to count them
        await settled_down(parts, eventually)
        committed: dict[int, datetime] = {}

        async def produce() -> None:
            shop = await asyncpg.connect(database)
            for _ in range(3):
                async with shop.transaction():
                    task_id = await shop.fetchval("select taskq.enqueue('work', '{}')")
                    await shop.execute("select pg_sleep(0.2)")
                committed[task_id] = await shop.fetchval("select clock_timestamp()")
            await shop.close()

        async with asyncio.TaskGroup() as group:
            for _ in range(12):
                group.create_task(produce())
        await eventually(all_are(connection, {2: 36}))

    started = dict([tuple(each) for each in await connection.fetch("select id, started_at from taskq.task")])
    missed = [sum(moment < look < started[task_id] for look in looks) for task_id, moment in committed.items()]
    assert max(missed) <= 1  # each was claimed in the first full look after its commit, or sooner


async def test_work_is_done_although_every_notification_is_lost(settings: Settings, connection: Connection, eventually):
    work = Work()
    async with running(settings, kind("work", work), poll_s=0.2) as parts:
        parts.listener.subscribe(wake=lambda: None, lost=parts.dispatcher.lost)
        for _ in range(20):
            await connection.fetchval("select taskq.enqueue('work', '{}')")

        await eventually(all_are(connection, {2: 20}))

    assert max(Counter(work.seen).values()) == 1
