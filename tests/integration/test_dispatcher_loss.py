"""What must not be lost: answers on the way, the lease, tasks of the dead, and what runs at a stop."""

import asyncio
import contextlib
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
from rig import (
    HOUR_S,
    NEVER,
    Connection,
    Work,
    all_are,
    becomes,
    kind,
    new,
    put,
    register,
    row,
    running,
    says,
    settled_down,
    statuses,
)

from taskq import dispatcher as module
from taskq.config import Settings
from taskq.context import Context
from taskq.errors import StoreUnavailable, TaskError
from taskq.service import Parts
from taskq.sql import Statement

# -- answers lost on the way


def cut_after(parts: Parts, name: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the next answer to the statement be lost, after its commit; return where that is noted."""
    cuts: list[int] = []
    session = parts.store._inserts if name == "insert" else parts.store._claims
    fetch = session.fetch

    async def cut(statement: Statement, /, **values: object) -> Any:
        rows = await fetch(statement, **values)
        if statement.name == name and rows and not cuts:
            cuts.append(len(rows))
            raise StoreUnavailable("cut at the commit", sent=True)
        return rows

    monkeypatch.setattr(session, "fetch", cut)
    return cuts


async def test_claim_whose_answer_was_lost_is_handed_back_and_run(
    settings: Settings, connection: Connection, eventually, monkeypatch: pytest.MonkeyPatch
):
    work = Work()
    async with running(settings, kind("work", work), poll_s=0.05) as parts:
        await settled_down(parts, eventually)
        cuts = cut_after(parts, "claim", monkeypatch)
        task_id = await put(connection)

        await eventually(becomes(connection, task_id, 2))

    stored = await row(connection, task_id)
    assert cuts == [1]
    assert (stored["attempt"], stored["run"]) == (1, 2)
    assert work.seen == [task_id]


async def test_births_whose_answer_was_lost_are_handed_back_and_run(
    settings: Settings, connection: Connection, eventually, monkeypatch: pytest.MonkeyPatch
):
    work = Work()
    async with running(settings, kind("work", work), poll_s=0.05) as parts:
        await settled_down(parts, eventually)
        cuts = cut_after(parts, "insert", monkeypatch)

        with pytest.raises(StoreUnavailable) as caught:
            await parts.intake.submit(new())

        await eventually(all_are(connection, {2: 1}))
        await eventually(says(lambda: parts.dispatcher._free == settings.concurrency))

    assert caught.value.sent
    assert cuts == [1]
    assert len(work.seen) == 1


async def test_runs_that_we_know_are_not_handed_back(settings: Settings, connection: Connection, eventually):
    work = Work(held=True)
    async with running(settings, kind("work", work), poll_s=0.05) as parts:
        task_id = await parts.intake.submit(new())
        await eventually(says(lambda: work.seen))
        parts.dispatcher.birth_unknown(reserved=0)
        parts.dispatcher._reconcile_at = 0.0
        parts.dispatcher.wake.now()
        await eventually(says(lambda: not parts.dispatcher._reconcile_due()))

        assert (await row(connection, task_id))["status"] == 1
        work.go_on.set()
        await eventually(becomes(connection, task_id, 2))

    assert work.seen == [task_id]


async def test_nothing_is_handed_back_while_an_insert_is_under_way(
    settings: Settings, connection: Connection, eventually
):
    """Its rows may be ours already, before we know of them."""
    work = Work()
    async with running(settings, kind("work", work), poll_s=0.05) as parts:
        await settled_down(parts, eventually)
        reserved = parts.dispatcher.reserve(1)
        task_id = await put(connection, status=1, owner=parts.listener.lease.id, run=1, attempt=1)
        parts.dispatcher._reconcile_at = 0.0
        before = parts.dispatcher.wake._next_poll
        await eventually(says(lambda: parts.dispatcher.wake._next_poll > before + 0.1))
        assert (await row(connection, task_id))["status"] == 1

        parts.dispatcher.born((), reserved=reserved, waiting=0)

        await eventually(becomes(connection, task_id, 2))


async def test_every_writer_mends_itself_when_its_connection_is_cut(
    settings: Settings, connection: Connection, eventually
):
    submitted: list[int] = []
    work = Work()
    async with running(settings, kind("work", work), concurrency=10, poll_s=0.05) as parts:

        async def submit() -> None:
            for _ in range(40):
                with contextlib.suppress(StoreUnavailable):
                    submitted.append(await parts.intake.submit(new()))

        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(submit())
            for name in ("insert", "claim", "settle") * 4:
                await connection.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity where application_name = $1",
                    f"taskq {name}",
                )

        async def all_done() -> bool:
            return set(await statuses(connection)) == {2}

        await eventually(all_done)

    stored = {each[0] for each in await connection.fetch("select id from taskq.task")}
    assert set(submitted) <= stored
    assert await connection.fetchval("select max(attempt) from taskq.task") == 1


# -- the lease


async def end_lease(parts: Parts, connection: Connection) -> int:
    lost = parts.listener.lease.id
    await connection.execute("delete from taskq.lease where id = $1", lost)
    return lost


async def test_runs_of_a_lost_lease_are_cancelled_and_run_again_under_a_new_one(
    settings: Settings, connection: Connection, eventually
):
    work = Work(held=True)
    async with running(settings, kind("work", work), beat_s=0.1, sweep_s=0.1) as parts:
        task_id = await parts.intake.submit(new())
        await eventually(says(lambda: work.seen == [task_id]))
        lost = await end_lease(parts, connection)
        await eventually(says(lambda: work.seen == [task_id, task_id]))
        work.go_on.set()

        await eventually(becomes(connection, task_id, 2))
        assert parts.listener.lease.id != lost
        await eventually(says(lambda: parts.dispatcher._free == settings.concurrency))
        assert parts.dispatcher.running == 0

    assert (await row(connection, task_id))["run"] == 2
    assert work.ended == [task_id]


async def test_run_of_a_lost_lease_is_cancelled_only_after_its_uninterruptible_span(
    settings: Settings, connection: Connection, eventually
):
    said: list[str] = []
    inside, leave = asyncio.Event(), asyncio.Event()

    async def work(_payload: dict[str, Any], context: Context) -> None:
        if context.attempt > 1:
            return
        with context.uninterruptible():
            inside.set()
            await leave.wait()
            said.append("span over")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            said.append("cancelled")
            raise

    async with running(settings, kind("work", work), beat_s=0.1, sweep_s=0.1) as parts:
        task_id = await parts.intake.submit(new())
        await inside.wait()
        await end_lease(parts, connection)

        await eventually(becomes(connection, task_id, 2))
        assert said == []
        leave.set()

        await eventually(says(lambda: said == ["span over", "cancelled"]))
    assert (await row(connection, task_id))["run"] == 2


async def test_runs_of_another_lease_are_left_alone_when_one_is_lost(
    settings: Settings, connection: Connection, eventually
):
    work = Work(held=True)
    async with running(settings, kind("work", work)) as parts:
        task_id = await parts.intake.submit(new())
        await eventually(says(lambda: work.seen))

        parts.dispatcher.lost(parts.listener.lease.id - 1)
        work.go_on.set()

        await eventually(becomes(connection, task_id, 2))
    assert work.seen == work.ended == [task_id]


async def test_run_that_outlives_its_lost_lease_does_not_disturb_the_next_run(
    settings: Settings, connection: Connection, eventually
):
    began: list[Context] = []
    first_ends, second_ends = asyncio.Event(), asyncio.Event()

    async def work(_payload: dict[str, Any], context: Context) -> None:
        began.append(context)
        if len(began) > 1:
            await second_ends.wait()
            return
        while not first_ends.is_set():
            with contextlib.suppress(asyncio.CancelledError):  # it does not listen
                await first_ends.wait()

    async with running(settings, kind("work", work), beat_s=0.1, sweep_s=0.1) as parts:
        task_id = await parts.intake.submit(new())
        await eventually(says(lambda: began))
        await end_lease(parts, connection)
        await eventually(says(lambda: len(began) == 2))

        first_ends.set()
        await eventually(says(lambda: parts.dispatcher.settler.stale == 1))
        second_ends.set()
        await eventually(becomes(connection, task_id, 2))

        assert parts.dispatcher.running == 0
        await eventually(says(lambda: parts.dispatcher._free == settings.concurrency))


async def test_tasks_of_another_instance_that_died_are_taken_over(
    settings: Settings, connection: Connection, eventually
):
    dead = await register(connection, beaten_ago_s=60)
    ids = [
        await put(connection, status=1, owner=dead, run=1, attempt=1, started_at=datetime.now(UTC)) for _ in range(5)
    ]

    work = Work()
    async with running(settings, kind("work", work), sweep_s=0.1):
        await eventually(all_are(connection, {2: 5}))

    assert sorted(work.seen) == ids


async def test_suspects_run_one_at_a_time_and_innocents_survive(settings: Settings, connection: Connection, eventually):
    work = Work(held=True)
    suspects = [await put(connection, crashes=2, run=2, attempt=2) for _ in range(3)]
    ordinary = [await put(connection) for _ in range(3)]

    async with running(settings, kind("work", work), poll_s=0.05) as parts:
        await eventually(says(lambda: len(work.seen) == 4))
        before = parts.dispatcher.wake._next_poll
        await eventually(says(lambda: parts.dispatcher.wake._next_poll > before + 0.1))
        at_once = list(work.seen)
        work.go_on.set()
        await eventually(all_are(connection, {2: 6}))

    assert len([task_id for task_id in at_once if task_id in suspects]) == 1
    assert sorted(work.seen) == sorted(suspects + ordinary)


async def test_suspect_that_fails_leaves_the_way_free_for_the_next(
    settings: Settings, connection: Connection, eventually
):
    async def work(_payload: dict[str, Any]) -> None:
        raise TaskError("no", retryable=False)

    for _ in range(3):
        await put(connection, crashes=2)

    async with running(settings, kind("work", work), **NEVER):
        await eventually(all_are(connection, {3: 3}))


async def test_suspect_taken_by_another_instance_is_let_go(
    settings: Settings, eventually, monkeypatch: pytest.MonkeyPatch
):
    async with running(settings, kind("work", Work()), poll_s=0.05) as parts:
        await settled_down(parts, eventually)

        async def taken(*, owner: int) -> None:
            assert owner

        monkeypatch.setattr(parts.store, "claim_suspect", taken)
        parts.dispatcher._suspects_waiting = True
        parts.dispatcher.wake.now()

        await eventually(says(lambda: not parts.dispatcher._suspects_waiting))


# -- draining


async def drain(parts: Parts, grace_s: float = 5.0, hurry: asyncio.Event | None = None) -> None:
    await parts.intake.empty()
    await parts.dispatcher.drain(grace_s, hurry or asyncio.Event())


async def test_drain_waits_for_running_tasks(settings: Settings, connection: Connection, eventually):
    work = Work(held=True)
    async with running(settings, kind("work", work)) as parts, asyncio.TaskGroup() as group:
        task_id = await parts.intake.submit(new())
        await eventually(says(lambda: work.seen))
        draining = group.create_task(drain(parts))
        await eventually(says(lambda: parts.dispatcher._draining))

        work.go_on.set()
        await draining

        assert (await row(connection, task_id))["status"] == 2


async def test_drain_claims_and_bears_nothing(settings: Settings, connection: Connection, eventually):
    work = Work()
    async with running(settings, kind("work", work), poll_s=0.05) as parts:
        await settled_down(parts, eventually)
        await drain(parts)

        await parts.intake.submit(new())
        await connection.execute("select taskq.enqueue('work', '{}')")

        assert await statuses(connection) == {0: 2}
    assert work.seen == []


async def test_drain_ends_a_look_that_claims_batch_after_batch(
    settings: Settings, connection: Connection, monkeypatch: pytest.MonkeyPatch, eventually
):
    async with running(settings, kind("work", Work()), claim_batch_max=1, **NEVER) as parts:
        await settled_down(parts, eventually)
        claims = parts.store.claim

        async def claim_and_stop(*lanes: Any, **named: Any) -> Any:
            parts.dispatcher._draining = True
            return await claims(*lanes, **named)

        monkeypatch.setattr(parts.store, "claim", claim_and_stop)
        for _ in range(3):
            await put(connection)
        parts.dispatcher.wake.now()
        await eventually(says(parts.dispatcher._ended.is_set))

        assert await statuses(connection) == {0: 2, 2: 1}


async def test_drain_hands_back_what_outlives_the_grace_with_its_attempt(
    settings: Settings, connection: Connection, eventually
):
    work = Work(held=True)
    async with running(settings, kind("work", work)) as parts:
        task_id = await parts.intake.submit(new())
        await eventually(says(lambda: work.seen))

        await drain(parts, 0.05)

        stored = await row(connection, task_id)
        assert (stored["status"], stored["attempt"], stored["run"], stored["crashes"]) == (0, 0, 1, 0)
        assert stored["owner"] is None


async def test_drain_waits_for_an_uninterruptible_span_beyond_the_grace(
    settings: Settings, connection: Connection, eventually
):
    go_on, began = asyncio.Event(), asyncio.Event()

    async def work(_payload: dict[str, Any], context: Context) -> None:
        with context.uninterruptible():
            began.set()
            await go_on.wait()

    async with running(settings, kind("work", work)) as parts, asyncio.TaskGroup() as group:
        task_id = await parts.intake.submit(new())
        await began.wait()
        draining = group.create_task(drain(parts, 0.0))
        await eventually(says(parts.dispatcher._idle.is_set))
        assert not draining.done()

        go_on.set()
        await draining

        assert (await row(connection, task_id))["status"] == 2


async def test_drain_ends_the_grace_at_a_second_signal(settings: Settings, connection: Connection, eventually):
    work, hurry = Work(held=True), asyncio.Event()
    async with running(settings, kind("work", work)) as parts, asyncio.TaskGroup() as group:
        task_id = await parts.intake.submit(new())
        await eventually(says(lambda: work.seen))
        draining = group.create_task(drain(parts, HOUR_S, hurry))
        await eventually(says(parts.dispatcher._idle.is_set))

        hurry.set()
        await draining

        assert (await row(connection, task_id))["status"] == 0


async def test_drain_gives_an_uninterruptible_span_a_last_wait_after_a_second_signal(
    settings: Settings, connection: Connection, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "LAST_WAIT_S", 0.1)
    began, hurry = asyncio.Event(), asyncio.Event()

    async def work(_payload: dict[str, Any], context: Context) -> None:
        with context.uninterruptible():
            began.set()
            await asyncio.Event().wait()

    async with running(settings, kind("work", work)) as parts:
        task_id = await parts.intake.submit(new())
        await began.wait()
        hurry.set()

        await drain(parts, HOUR_S, hurry)

        assert (await row(connection, task_id))["status"] == 1  # what came of it is unknown: rescued, and counted


async def test_drain_waits_until_the_last_outcome_is_written(
    settings: Settings, database: str, connection: Connection, eventually
):
    other = await asyncpg.connect(database)
    work = Work()
    async with running(settings, kind("work", work)) as parts, asyncio.TaskGroup() as group:
        async with other.transaction():
            await other.execute("lock table taskq.minute_count")
            task_id = await parts.intake.submit(new())
            await eventually(says(lambda: work.ended))
            draining = group.create_task(drain(parts))
            await eventually(says(parts.dispatcher._idle.is_set))
            assert not draining.done()
        await draining

        assert (await row(connection, task_id))["status"] == 2
    await other.close()


async def test_drain_gives_up_on_outcomes_when_the_database_stays_away(
    settings: Settings, eventually, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(module, "LAST_WAIT_S", 0.1)
    async with running(settings, kind("work", Work())) as parts:

        async def away(_changes: Any) -> int:
            raise StoreUnavailable("away")

        monkeypatch.setattr(parts.store, "settle", away)
        await parts.intake.submit(new())
        await eventually(says(lambda: len(parts.dispatcher.settler)))

        await drain(parts)

    assert "outcomes could not be written before the stop" in caplog.text
