"""Cancelling against a real PostgreSQL: the wish outlives lost notifications, returns to pending and crashes."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
from rig import NEVER, Connection, Work, becomes, kind, new, put, register, row, running, says

from taskq.config import Settings
from taskq.context import Context
from taskq.errors import TaskError
from taskq.task import Status


async def test_status_says_the_word_of_the_contract(connection: Connection):
    task_id = await put(connection)

    assert await connection.fetchval("select taskq.status($1)", task_id) == "pending"
    assert await connection.fetchval("select taskq.status(4000000)") is None


@pytest.mark.parametrize("function", ["cancel", "status"])
async def test_functions_are_for_those_who_were_granted_them(connection: Connection, function: str):
    await connection.execute("drop role if exists stranger_to_control")
    await connection.execute("create role stranger_to_control")
    await connection.execute("grant usage on schema taskq to stranger_to_control")
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("set local role stranger_to_control")

    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.fetchval(f"select taskq.{function}(1)")

    await transaction.rollback()
    await connection.execute("revoke all on schema taskq from stranger_to_control")
    await connection.execute("drop role stranger_to_control")


async def test_cancel_is_part_of_the_callers_transaction(connection: Connection):
    task_id = await put(connection)
    transaction = connection.transaction()
    await transaction.start()
    cancelled = await connection.fetchval("select taskq.cancel($1)", task_id)
    await transaction.rollback()

    assert cancelled == "cancelled"
    assert (await row(connection, task_id))["status"] == Status.PENDING


async def test_cancelled_task_is_counted(connection: Connection):
    await connection.fetchval("select taskq.cancel($1)", await put(connection))

    counted = await connection.fetch("select status, n from taskq.minute_count")
    assert [tuple(each) for each in counted] == [(Status.CANCELLED, 1)]


async def test_wish_without_a_notification_is_found(
    settings: Settings, connection: Connection, eventually: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("taskq.control.WISHES_EVERY_S", 0.05)
    work = Work(held=True)
    async with running(settings, kind("work", work)) as parts:
        task_id = await parts.intake.submit(new())
        await eventually(says(lambda: work.running))

        await connection.execute("insert into taskq.cancel_request (task_id) values ($1)", task_id)

        await eventually(becomes(connection, task_id, Status.CANCELLED))
        assert work.ended == []


async def test_notification_without_a_wish_ends_nothing(settings: Settings, connection: Connection, eventually: Any):
    work = Work(held=True)
    async with running(settings, kind("work", work)) as parts:
        task_id = await parts.intake.submit(new())
        await eventually(says(lambda: work.running))

        await connection.execute(f"notify taskq_cancel, '{task_id}'")
        looked = await parts.intake.submit(new())
        await eventually(says(lambda: looked in work.seen))
        work.go_on.set()

        await eventually(becomes(connection, task_id, Status.OK))


@pytest.mark.parametrize(("fails", "status"), [(False, Status.OK), (True, Status.CANCELLED)])
async def test_run_past_its_point_of_no_return_ends_by_itself_and_is_not_repeated(
    settings: Settings, connection: Connection, eventually: Any, *, fails: bool, status: Status
):
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def work(_payload: dict[str, Any], context: Context) -> None:
        with context.uninterruptible():
            inside.set()
            await go_on.wait()
        if fails:
            raise TaskError("not yet")

    async with running(settings, kind("work", work)) as parts:
        task_id = await parts.intake.submit(new())
        await inside.wait()
        await parts.control.cancel(task_id)
        await eventually(says(lambda: any(each.called_off for each in parts.dispatcher._running.values())))
        go_on.set()

        await eventually(becomes(connection, task_id, status))


async def test_task_rescued_from_a_dead_process_is_not_run_after_a_wish(
    settings: Settings, connection: Connection, eventually: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("taskq.control.WISHES_EVERY_S", 0.05)
    dead = await register(connection, beaten_ago_s=0)
    task_id = await put(connection, status=1, owner=dead, attempt=1, run=1, started_at=datetime.now(UTC))
    assert await connection.fetchval("select taskq.cancel($1)", task_id) == "in-progress"
    work = Work()

    async with running(settings, kind("work", work), concurrency=1, role="api"):
        await connection.execute("delete from taskq.lease where id = $1", dead)

        await eventually(becomes(connection, task_id, Status.CANCELLED))
        assert work.seen == []


async def test_fulfilled_wishes_are_forgotten(
    settings: Settings, connection: Connection, eventually: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("taskq.control.WISHES_EVERY_S", 0.05)
    ended = await put(connection, status=2, finished_at=datetime.now(UTC))
    await connection.execute("insert into taskq.cancel_request (task_id) values ($1), (4000000)", ended)

    async def none_left() -> bool:
        return not await connection.fetchval("select count(*) from taskq.cancel_request")

    async with running(settings):
        await eventually(none_left)


async def test_thousand_waiters_cost_one_statement_a_second(
    settings: Settings, connection: Connection, eventually: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("taskq.control.ASK_EVERY_S", 0.05)
    elsewhere = await register(connection)
    task_ids = [await put(connection, status=1, owner=elsewhere, attempt=1, run=1) for _ in range(20)]
    asked: list[str] = []

    async with running(settings, role="api", **NEVER) as parts:
        ask = parts.control._ask

        async def counting(name: str, **values: object) -> Any:
            asked.append(name)
            return await ask(name, **values)

        monkeypatch.setattr(parts.control, "_ask", counting)
        async with asyncio.TaskGroup() as group:
            waiting = [group.create_task(parts.control.follow(task_ids[n % 20], 60)) for n in range(1_000)]
            await eventually(says(lambda: parts.control._waiters._size == 1_000))
            await connection.execute(
                "update taskq.task set status = 2, owner = null, finished_at = now() where id = any($1)", task_ids
            )

    assert {task.result().status for task in waiting} == {Status.OK}
    assert asked.count("ended") < 20
