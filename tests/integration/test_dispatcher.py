"""Claiming, running and settling in one process: what must happen, and what must not be lost.

The parts run as in the service, without the web.  `poll_s` is an hour where a test shows that
something is found by a wake or a timer, and not by the poll.
"""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from rig import (
    HOUR_S,
    NEVER,
    Connection,
    Work,
    all_are,
    attempts,
    becomes,
    kind,
    new,
    put,
    row,
    running,
    says,
    settled_down,
)

from taskq import dispatcher as module
from taskq import settler
from taskq.config import Settings
from taskq.context import Context
from taskq.errors import Snooze, StoreRefused, StoreUnavailable, TaskError
from taskq.task import RetryPolicy

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
        await eventually(says(lambda: work.running == 2))

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

        await eventually(says(lambda: parts.dispatcher._free == 5))
        assert parts.dispatcher.running == 0
    assert work.most <= 5


async def test_new_lane_is_found_by_a_notification(settings: Settings, connection: Connection, eventually):
    async with running(settings, kind("work", Work()), **NEVER) as parts:
        await settled_down(parts, eventually)

        task_id = await connection.fetchval("select taskq.enqueue('work', '{}', queue => 'fresh', priority => 7)")

        await eventually(becomes(connection, task_id, 2))


async def test_row_without_a_wake_is_found_by_the_poll(settings: Settings, connection: Connection, eventually):
    async with running(settings, kind("work", Work()), poll_s=0.1):
        task_id = await put(connection, queue="quiet")

        await eventually(becomes(connection, task_id, 2))


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
        await eventually(becomes(connection, old, 2))

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
        await eventually(becomes(connection, task_id, 2))

    late = (await row(connection, task_id))["started_at"] - due_at
    assert late >= timedelta(0)


async def test_retry_is_claimed_on_time_by_the_timer(
    settings: Settings, connection: Connection, eventually, monkeypatch: pytest.MonkeyPatch
):
    began: list[float] = []

    async def work(_payload: dict[str, Any]) -> None:
        began.append(time.monotonic())
        if len(began) == 1:
            raise TaskError("not yet", retry_after_s=0.5)

    async def survey() -> list[Any]:
        return []  # so that nothing else tells when the task is due

    async with running(settings, kind("work", work), **NEVER) as parts:
        await settled_down(parts, eventually)
        monkeypatch.setattr(parts.store, "survey", survey)
        task_id = await parts.intake.submit(new())
        await eventually(becomes(connection, task_id, 2))

    assert began[1] - began[0] >= 0.5


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
        await eventually(says(lambda: parts.dispatcher._free == settings.concurrency))


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

        async def snoozed() -> bool:
            return (await row(connection, task_id))["last_error"] is not None

        await eventually(snoozed)

    stored = await row(connection, task_id)
    assert (stored["status"], stored["attempt"], stored["run"], stored["last_error"]) == (0, 0, 1, "busy")
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
        await eventually(says(lambda: parts.dispatcher._running))
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
    async with running(settings, kind("work", work, policy=RetryPolicy(0.01, 0.02, 0.01))):
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

        await eventually(says(lambda: parts.dispatcher._free == settings.concurrency))


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
    monkeypatch.setattr(settler, "BACKOFF_S", (0.001, 0.01))
    async with running(settings, kind("work", Work())) as parts:
        settles, failures = parts.store.settle, [StoreUnavailable("cut", sent=True)] * 3

        async def settle(changes: Any) -> int:
            if failures:
                raise failures.pop()
            return await settles(changes)

        monkeypatch.setattr(parts.store, "settle", settle)
        task_id = await parts.intake.submit(new())

        await eventually(becomes(connection, task_id, 2))
        assert parts.dispatcher.settler.stale == 0


async def test_settle_whose_answer_was_lost_counts_once(
    settings: Settings, connection: Connection, eventually, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(settler, "BACKOFF_S", (0.001, 0.01))
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
        await eventually(becomes(connection, task_id, 2))
        await eventually(says(lambda: not parts.dispatcher._known))

        assert await connection.fetchval("select sum(n) from taskq.minute_count") == 1
        assert parts.dispatcher.settler.stale == 0


async def test_outcome_that_is_refused_does_not_hold_up_the_others(
    settings: Settings, connection: Connection, eventually, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(settler, "BACKOFF_S", (0.001, 0.01))
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
        assert (await row(connection, ids[2]))["reason"] == "unstorable_outcome"


async def test_outcome_that_can_not_be_stored_at_all_is_handed_back(
    settings: Settings, connection: Connection, eventually, monkeypatch: pytest.MonkeyPatch
):
    work = Work()
    async with running(settings, kind("work", work), poll_s=0.05) as parts:
        settles, refusals = parts.store.settle, [StoreRefused("odd")] * 2

        async def settle(changes: Any) -> int:
            if refusals:
                raise refusals.pop()
            return await settles(changes)

        monkeypatch.setattr(parts.store, "settle", settle)
        monkeypatch.setattr(module, "RECONCILE_S", 0.1)
        task_id = await parts.intake.submit(new())

        await eventually(becomes(connection, task_id, 2))

    assert work.seen == [task_id, task_id]


async def test_result_of_a_superseded_run_is_discarded_and_counted(
    settings: Settings, connection: Connection, eventually
):
    work = Work(held=True)
    async with running(settings, kind("work", work)) as parts:
        task_id = await parts.intake.submit(new())
        await eventually(says(lambda: work.seen))
        await connection.execute("update taskq.task set run = run + 1 where id = $1", task_id)

        work.go_on.set()
        await eventually(says(lambda: parts.dispatcher.settler.stale == 1))

        assert (await row(connection, task_id))["status"] == 1
