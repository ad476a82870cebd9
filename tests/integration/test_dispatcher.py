"""Claiming, running and settling in one process: what must happen, and what must not be lost.

The parts run as in the service, without the web.  `poll_s` is an hour where a test shows that
something is found by a wake or a timer, and not by the poll.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from rig import Connection, attempts, kind, new, put, register, row, running, statuses

from taskq import dispatcher as module
from taskq.config import Settings
from taskq.errors import Snooze, StoreRefused, StoreUnavailable, TaskError
from taskq.service import Parts
from taskq.sql import Statement
from taskq.task import Context, RetryPolicy

HOUR_S = 3_600.0
NEVER = {"poll_s": HOUR_S}


class Work:
    """A handler that takes notes and, where asked to, waits for `go_on`."""

    def __init__(self, *, held: bool = False) -> None:
        self.seen: list[int] = []
        self.ended: list[int] = []
        self.go_on = asyncio.Event()
        self.running = self.most = 0
        if not held:
            self.go_on.set()

    async def __call__(self, _payload: dict[str, Any], context: Context) -> None:
        self.seen.append(context.task_id)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.go_on.wait()
            self.ended.append(context.task_id)
        finally:
            self.running -= 1


def becomes(connection: Connection, task_id: int, status: int) -> Callable[[], Any]:
    async def check() -> bool:
        return (await row(connection, task_id))["status"] == status

    return check


def all_are(connection: Connection, counts: dict[int, int]) -> Callable[[], Any]:
    async def check() -> bool:
        return await statuses(connection) == counts

    return check


def says(condition: Callable[[], object]) -> Callable[[], Any]:
    async def check() -> object:
        return condition()

    return check


async def settled_down(parts: Parts, eventually: Any) -> None:
    """Wait until the first looks are over, so that births are on."""
    await eventually(says(lambda: not parts.dispatcher._backlog and not parts.dispatcher._reconcile_due()))


# -- finding work


async def test_task_is_run_and_finished(settings: Settings, connection: Connection, eventually):
    work = Work()
    async with running(settings, kind("work", work)) as parts:
        task_id = await parts.intake.submit(new())

        await eventually(becomes(connection, task_id, 2))

    assert work.seen == [task_id]


async def test_task_is_born_in_progress_when_slots_are_free(settings: Settings, connection: Connection, eventually):
    work = Work(held=True)
    async with running(settings, kind("work", work), **NEVER) as parts:
        await settled_down(parts, eventually)

        task_id = await parts.intake.submit(new())

        stored = await row(connection, task_id)
        assert (stored["status"], stored["owner"]) == (1, parts.listener.lease.id)


async def test_task_waits_when_no_slot_is_free(settings: Settings, connection: Connection, eventually):
    work = Work(held=True)
    async with running(settings, kind("work", work), concurrency=2) as parts:
        ids = [await parts.intake.submit(new()) for _ in range(5)]
        await eventually(all_are(connection, {0: 3, 1: 2}))

        work.go_on.set()
        await eventually(all_are(connection, {2: 5}))

    assert work.most == 2
    assert sorted(work.seen) == ids


async def test_nothing_is_born_or_claimed_without_a_living_lease(
    settings: Settings, connection: Connection, eventually
):
    work = Work()
    async with running(settings, kind("work", work), poll_s=0.05) as parts:
        await settled_down(parts, eventually)
        parts.listener.lease.holds = lambda: False  # pyright: ignore[reportAttributeAccessIssue] - shut off for the test

        task_id = await parts.intake.submit(new())
        before = parts.dispatcher.wake._next_poll
        await eventually(says(lambda: parts.dispatcher.wake._next_poll > before + 0.1))

        assert (await row(connection, task_id))["status"] == 0
        assert work.seen == []


async def test_slots_never_run_more_than_there_are(settings: Settings, connection: Connection, eventually):
    work = Work()
    async with running(settings, kind("work", work), concurrency=5) as parts:
        async with asyncio.TaskGroup() as group:
            for _ in range(300):
                group.create_task(parts.intake.submit(new()))
        await eventually(all_are(connection, {2: 300}))

        assert parts.dispatcher._free == 5
        assert parts.dispatcher.running == 0
    assert work.most <= 5


async def test_new_lane_is_found_by_a_notification(settings: Settings, connection: Connection, eventually):
    async with running(settings, kind("work", Work()), **NEVER) as parts:
        await settled_down(parts, eventually)

        task_id = await connection.fetchval("select taskq.enqueue('work', '{}', queue => 'fresh', priority => 7)")

        await eventually(becomes(connection, task_id, 2), 3.0)


async def test_row_without_a_wake_is_found_by_the_poll(settings: Settings, connection: Connection, eventually):
    async with running(settings, kind("work", Work()), poll_s=0.1):
        task_id = await put(connection, queue="quiet")

        await eventually(becomes(connection, task_id, 2), 3.0)


async def test_row_that_committed_late_below_the_mark_is_found_by_a_full_look(
    settings: Settings, database: str, connection: Connection, eventually
):
    late = await asyncpg.connect(database)
    async with running(settings, kind("work", Work()), poll_s=0.3) as parts:
        transaction = late.transaction()
        await transaction.start()
        old = await put(late, due_at=datetime.now(UTC) - timedelta(seconds=30))
        fresh = await put(connection)
        await eventually(becomes(connection, fresh, 2))
        low = parts.dispatcher._lows["default", 0]

        await transaction.commit()
        await late.close()
        await eventually(becomes(connection, old, 2), 3.0)

    assert (await row(connection, old))["due_at"] < low


async def test_urgent_task_is_claimed_before_others(settings: Settings, connection: Connection, eventually):
    work = Work()
    ids = [await put(connection, priority=priority) for priority in (5, 0, -5)]
    async with running(settings, kind("work", work), concurrency=1):
        await eventually(all_are(connection, {2: 3}))

    assert work.seen == ids[::-1]


async def test_more_lanes_than_remembered_are_all_served(
    settings: Settings, connection: Connection, eventually, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "LANES_MAX", 3)
    for n in range(10):
        await put(connection, queue=f"q{n}")

    async with running(settings, kind("work", Work()), poll_s=0.05):
        await eventually(all_are(connection, {2: 10}))


async def test_task_due_later_is_claimed_on_time_by_the_timer(settings: Settings, connection: Connection, eventually):
    due_at = datetime.now(UTC) + timedelta(seconds=0.6)
    task_id = await put(connection, due_at=due_at)

    async with running(settings, kind("work", Work()), **NEVER):
        await eventually(becomes(connection, task_id, 2), 5.0)

    late = (await row(connection, task_id))["started_at"] - due_at
    assert timedelta(0) <= late < timedelta(seconds=0.5)


async def test_retry_is_claimed_on_time_by_the_timer(settings: Settings, connection: Connection, eventually):
    began: list[float] = []

    async def work(_payload: dict[str, Any]) -> None:
        began.append(time.monotonic())
        if len(began) == 1:
            raise TaskError("not yet", retry_after_s=0.5)

    async with running(settings, kind("work", work), **NEVER) as parts:
        task_id = await parts.intake.submit(new())
        await eventually(becomes(connection, task_id, 2), 5.0)

    assert 0.5 <= began[1] - began[0] < 1.0


async def test_claim_failure_is_tried_again(
    settings: Settings, connection: Connection, eventually, monkeypatch: pytest.MonkeyPatch
):
    async with running(settings, kind("work", Work()), poll_s=0.05) as parts:
        claims, failures = parts.store.claim, [StoreUnavailable("away"), StoreRefused("odd")]

        async def claim(*args: Any, **named: Any) -> Any:
            if failures:
                raise failures.pop()
            return await claims(*args, **named)

        monkeypatch.setattr(parts.store, "claim", claim)
        task_id = await put(connection)

        await eventually(becomes(connection, task_id, 2))
        assert parts.dispatcher._free == settings.concurrency


# -- what a run comes to


async def test_failed_attempts_are_kept_until_none_is_left(settings: Settings, connection: Connection, eventually):
    async def work(_payload: dict[str, Any], context: Context) -> None:
        raise TaskError(f"no {context.attempt}")

    async with running(settings, kind("work", work)) as parts:
        task_id = await parts.intake.submit(new(max_attempts=3))
        await eventually(becomes(connection, task_id, 3))

    assert (await row(connection, task_id))["reason"] == "attempts_exhausted"
    assert await attempts(connection, task_id) == [
        (1, 1, "retry", "no 1"),
        (2, 2, "retry", "no 2"),
        (3, 3, "failed", "no 3"),
    ]


async def test_snooze_gives_the_attempt_back(settings: Settings, connection: Connection, eventually):
    async def work(_payload: dict[str, Any]) -> None:
        raise Snooze("busy", delay_s=HOUR_S)

    async with running(settings, kind("work", work)) as parts:
        task_id = await parts.intake.submit(new())
        await eventually(becomes(connection, task_id, 0))

    stored = await row(connection, task_id)
    assert (stored["attempt"], stored["run"], stored["last_error"]) == (0, 1, "busy")
    assert stored["due_at"] > datetime.now(UTC) + timedelta(minutes=50)


async def test_run_that_takes_too_long_is_ended_and_tried_again(
    settings: Settings, connection: Connection, eventually, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "WATCH_S", 0.02)
    async with running(settings, kind("work", Work(held=True), timeout_s=0.1)) as parts:
        task_id = await parts.intake.submit(new(max_attempts=1))
        await eventually(becomes(connection, task_id, 3))

    stored = await row(connection, task_id)
    assert stored["last_error"] == "the run took longer than the 0.1 s that the kind work allows"


async def test_run_that_takes_too_long_is_waited_for_in_an_uninterruptible_span(
    settings: Settings, connection: Connection, eventually, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "WATCH_S", 0.02)
    go_on = asyncio.Event()

    async def work(_payload: dict[str, Any], context: Context) -> None:
        with context.uninterruptible():
            await go_on.wait()

    async with running(settings, kind("work", work, timeout_s=0.05)) as parts:
        task_id = await parts.intake.submit(new())
        [execution] = parts.dispatcher._running.values()
        await eventually(says(lambda: time.monotonic() > execution.deadline + 0.1))
        go_on.set()

        await eventually(becomes(connection, task_id, 2))


async def test_unknown_kind_is_tried_again_elsewhere_later(settings: Settings, connection: Connection, eventually):
    async with running(settings):
        task_id = await put(connection, "elsewhere")

        async def failed_once() -> bool:
            return (await row(connection, task_id))["last_error"] is not None

        await eventually(failed_once)

    stored = await row(connection, task_id)
    assert (stored["status"], stored["attempt"]) == (0, 1)
    assert stored["last_error"].startswith("the kind elsewhere is unknown to this process")


POISON = {
    "deep": '{"a":' + '{"a":' * 3_000 + "1" + "}" * 3_001,
    "digits": '{"n": ' + "9" * 4_301 + "}",
    "infinite": '{"n": 1e999}',
    "missing": "{}",
    "null": "null",
    "list": "[1]",
    "long": '{"n": "' + "x" * 1_000_000 + '"}',
}


async def test_payloads_put_in_by_sql_that_do_not_fit_fail_alone(
    settings: Settings, connection: Connection, eventually
):
    done: list[int] = []

    async def work(payload: dict[str, int], context: Context) -> None:
        if payload["n"]:
            done.append(context.task_id)

    bad = [await put(connection, payload=text) for text in POISON.values()]
    good = [await put(connection, payload='{"n": 1}') for _ in range(5)]
    async with running(settings, kind("work", work, policy=RetryPolicy(0.01, 0.02, 0.01)), max_attempts=1):
        await eventually(all_are(connection, {2: len(good), 3: len(bad)}))

    assert sorted(done) == good


@pytest.mark.parametrize("text", ["nul \0", "lone \ud800"], ids=["nul", "surrogate"])
async def test_error_text_that_postgresql_can_not_hold_is_spelt_out(
    settings: Settings, connection: Connection, eventually, text: str
):
    async def work(_payload: dict[str, Any]) -> None:
        raise TaskError(text, retryable=False, reason=text)

    async with running(settings, kind("work", work)) as parts:
        task_id = await parts.intake.submit(new())
        await eventually(becomes(connection, task_id, 3))

    assert "\\" in (await row(connection, task_id))["last_error"]


async def test_cancellation_that_nobody_asked_for_frees_the_slot(
    settings: Settings, connection: Connection, eventually
):
    async def work(_payload: dict[str, Any]) -> None:
        raise asyncio.CancelledError

    async with running(settings, kind("work", work)) as parts:
        task_id = await parts.intake.submit(new(max_attempts=1))
        await eventually(becomes(connection, task_id, 3))

        assert parts.dispatcher._free == settings.concurrency


async def test_outcome_is_written_before_the_slot_is_used_again_when_a_repeat_is_expensive(
    settings: Settings, database: str, connection: Connection, eventually
):
    work = Work()
    other = await asyncpg.connect(database)
    async with running(settings, kind("work", work, ack_each=True), concurrency=1) as parts:
        await settled_down(parts, eventually)
        async with other.transaction():
            await other.execute("lock table taskq.minute_count")  # settling waits for it
            first = await parts.intake.submit(new())
            await put(connection)
            await eventually(says(lambda: work.ended == [first]))
            parts.dispatcher.wake.now()

            assert parts.dispatcher._free == 0
        await eventually(all_are(connection, {2: 2}))
    await other.close()


# -- settling


async def test_settle_is_repeated_until_the_database_has_it(
    settings: Settings, connection: Connection, eventually, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "BACKOFF_S", (0.001, 0.01))
    async with running(settings, kind("work", Work())) as parts:
        settles, failures = parts.store.settle, [StoreUnavailable("cut", sent=True)] * 3

        async def settle(changes: Any) -> int:
            if failures:
                raise failures.pop()
            return await settles(changes)

        monkeypatch.setattr(parts.store, "settle", settle)
        task_id = await parts.intake.submit(new())

        await eventually(becomes(connection, task_id, 2))
        assert parts.dispatcher.stale == 0


async def test_settle_whose_answer_was_lost_counts_once(
    settings: Settings, connection: Connection, eventually, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "BACKOFF_S", (0.001, 0.01))
    async with running(settings, kind("work", Work())) as parts:
        settles, cuts = parts.store.settle, [1]

        async def settle(changes: Any) -> int:
            written = await settles(changes)
            if cuts:
                cuts.pop()
                raise StoreUnavailable("cut at the commit", sent=True)
            return written

        monkeypatch.setattr(parts.store, "settle", settle)
        task_id = await parts.intake.submit(new())
        await eventually(says(lambda: not parts.dispatcher._known))

        assert (await row(connection, task_id))["status"] == 2
        assert await connection.fetchval("select sum(n) from taskq.minute_count") == 1
        assert parts.dispatcher.stale == 0


async def test_outcome_that_is_refused_does_not_hold_up_the_others(
    settings: Settings, connection: Connection, eventually, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "BACKOFF_S", (0.001, 0.01))
    work = Work(held=True)
    async with running(settings, kind("work", work)) as parts:
        settles = parts.store.settle
        ids = [await parts.intake.submit(new()) for _ in range(6)]
        await eventually(says(lambda: len(work.seen) == 6))

        async def settle(changes: Any) -> int:
            if any(change.id == ids[2] and change.status == 2 for change in changes):
                raise StoreRefused("odd")
            return await settles(changes)

        monkeypatch.setattr(parts.store, "settle", settle)
        work.go_on.set()

        await eventually(all_are(connection, {2: 5, 3: 1}))
        stored = await row(connection, ids[2])
        assert stored["reason"] == "unstorable_outcome"


async def test_result_of_a_superseded_run_is_discarded_and_counted(
    settings: Settings, connection: Connection, eventually
):
    work = Work(held=True)
    async with running(settings, kind("work", work)) as parts:
        task_id = await parts.intake.submit(new())
        await eventually(says(lambda: work.seen))
        await connection.execute("update taskq.task set run = run + 1 where id = $1", task_id)

        work.go_on.set()
        await eventually(says(lambda: parts.dispatcher.stale == 1))

        assert (await row(connection, task_id))["status"] == 1


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
        assert parts.dispatcher._free == settings.concurrency

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
        assert parts.dispatcher._free == settings.concurrency
        assert parts.dispatcher.running == 0

    stored = await row(connection, task_id)
    assert (stored["run"], stored["crashes"]) == (2, 1)
    assert work.ended == [task_id]


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
        await eventually(says(lambda: parts.dispatcher.stale == 1))
        second_ends.set()
        await eventually(becomes(connection, task_id, 2))

        assert parts.dispatcher.running == 0
        assert parts.dispatcher._free == settings.concurrency


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
        await eventually(all_are(connection, {3: 3}), 5.0)


async def test_suspect_taken_by_another_instance_is_let_go(
    settings: Settings, connection: Connection, eventually, monkeypatch: pytest.MonkeyPatch
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
        await eventually(says(lambda: parts.dispatcher._idle.is_set()))
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
        await eventually(says(lambda: parts.dispatcher._idle.is_set()))

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
            await eventually(says(lambda: parts.dispatcher._idle.is_set()))
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
        await eventually(says(lambda: len(parts.dispatcher._settles)))

        await drain(parts)

    assert "outcomes could not be written before the stop" in caplog.text
