"""A sealed run in a whole process: however it ends, its effect is never repeated without our knowing it failed."""

import asyncio
import json
from typing import Any

import asyncpg
import pytest
from rig import HOUR_S, Connection, all_are, attempts, becomes, kind, new, row, running, says

from taskq.config import Settings
from taskq.context import Context
from taskq.errors import Snooze, TaskError
from taskq.facts import Privacy


class Effect:
    """A handler that seals, has its effect, and then ends as it is told, once for each run."""

    def __init__(self, *ends: BaseException | asyncio.Event | None) -> None:
        self._ends = list(ends)
        self.effects = 0
        self.began = asyncio.Event()

    async def __call__(self, _payload: dict[str, Any], context: Context) -> None:
        await context.seal()
        self.effects += 1
        self.began.set()
        end = self._ends.pop(0) if self._ends else None
        if isinstance(end, asyncio.Event):
            await end.wait()
        elif end is not None:
            raise end


@pytest.mark.parametrize(
    "end",
    [ConnectionResetError("lost after the text"), TaskError("?", reason="outcome_unknown", retry_after_s=0.01)],
    ids=["unexpected", "said-so"],
)
async def test_sealed_run_that_ends_unknown_is_failed(
    settings: Settings, connection: Connection, eventually, end: BaseException
):
    effect = Effect(end)
    async with running(settings, kind("work", effect)) as parts:
        task_id = await parts.intake.submit(new())
        await eventually(becomes(connection, task_id, 3))

        assert parts.dispatcher.unknown == 1

    assert effect.effects == 1
    assert (await row(connection, task_id))["reason"] == "outcome_unknown"


@pytest.mark.parametrize("end", [TaskError("450 later", retry_after_s=0.01), Snooze("down", delay_s=0.01)])
async def test_sealed_run_that_was_refused_is_tried_again(
    settings: Settings, connection: Connection, eventually, end: BaseException
):
    effect = Effect(end)
    async with running(settings, kind("work", effect)) as parts:
        task_id = await parts.intake.submit(new())
        await eventually(becomes(connection, task_id, 2))

    assert effect.effects == 2
    assert (await row(connection, task_id))["run"] == 2


async def test_sealed_run_that_takes_too_long_is_failed(settings: Settings, connection: Connection, eventually):
    effect = Effect(asyncio.Event())
    async with running(settings, kind("work", effect, timeout_s=0.1)) as parts:
        task_id = await parts.intake.submit(new())
        await eventually(becomes(connection, task_id, 3))

    stored = await row(connection, task_id)
    assert (stored["reason"], stored["run"]) == ("outcome_unknown", 1)
    assert "took longer than" in stored["last_error"]


async def test_sealed_run_that_outlives_a_stop_is_failed_and_others_are_handed_back(
    settings: Settings, connection: Connection, eventually
):
    sealed = Effect(asyncio.Event())
    entered = asyncio.Event()

    async def wait(_payload: dict[str, Any]) -> None:
        entered.set()
        await asyncio.Event().wait()

    async with running(settings, kind("work", sealed), kind("other", wait)) as parts:
        first, second = await parts.intake.submit(new()), await parts.intake.submit(new("other"))
        await asyncio.gather(sealed.began.wait(), entered.wait())
        await parts.dispatcher.drain(0, asyncio.Event())

    task = await row(connection, first)
    assert (task["status"], task["reason"], task["attempt"]) == (3, "outcome_unknown", 1)
    assert (await row(connection, second))["status"] == 0
    assert [each[2] for each in await attempts(connection, first)] == ["failed"]


async def test_run_that_can_not_be_sealed_has_no_effect(
    settings: Settings, database: str, connection: Connection, eventually
):
    """The lease was ended and the task runs elsewhere by the time the handler wants to seal."""
    go_on, entered = asyncio.Event(), asyncio.Event()
    effects: list[int] = []

    async def work(_payload: dict[str, Any], context: Context) -> None:
        entered.set()
        await go_on.wait()
        await context.seal()
        effects.append(context.task_id)

    async with running(settings, kind("work", work)) as parts:
        task_id = await parts.intake.submit(new())
        await entered.wait()
        await connection.execute("update taskq.task set run = run + 1 where id = $1", task_id)
        go_on.set()
        await eventually(says(lambda: parts.dispatcher.settler.stale == 1))

    assert effects == []


async def test_run_that_can_not_be_sealed_now_is_put_off(
    settings: Settings, database: str, connection: Connection, eventually
):
    go_on, entered = asyncio.Event(), asyncio.Event()
    effects: list[int] = []
    waits = "select count(*) from pg_stat_activity where application_name = 'taskq settle' and wait_event_type = 'Lock'"

    async def work(_payload: dict[str, Any], context: Context) -> None:
        entered.set()
        await go_on.wait()
        await context.seal()
        effects.append(context.attempt)

    async def settles() -> bool:
        return await connection.fetchval(waits) == 1

    other = await asyncpg.connect(database)
    async with running(settings, kind("work", work), database_timeout_s=0.5) as parts:
        task_id = await parts.intake.submit(new())
        await entered.wait()
        async with other.transaction():
            await other.execute("select from taskq.task where id = $1 for update", task_id)
            go_on.set()
            await eventually(settles)
            before = list(effects)
        await eventually(becomes(connection, task_id, 2))
    await other.close()

    assert (before, effects) == ([], [1])


async def test_many_runs_share_the_writes_of_their_seals(settings: Settings, connection: Connection, eventually):
    effect = Effect()
    async with running(settings, kind("work", effect), concurrency=200) as parts, asyncio.TaskGroup() as group:
        for _ in range(200):
            group.create_task(parts.intake.submit(new()))
        await eventually(all_are(connection, {2: 200}))

    assert effect.effects == 200
    assert await connection.fetchval("select count(*) from taskq.task where sealed = run") == 200


async def test_content_goes_with_the_last_write_where_none_is_kept(
    settings: Settings, connection: Connection, eventually
):
    async def work(_payload: dict[str, Any]) -> None:
        """Do nothing."""

    private = kind("work", work, privacy=Privacy(("to",), 0.0))
    async with running(settings, private, sweep_s=HOUR_S) as parts:
        task_id = await parts.intake.submit(new(payload='{"to": "ada@example.com", "body": "Secret"}'))
        await eventually(becomes(connection, task_id, 2))

    assert json.loads((await row(connection, task_id))["payload"]) == {"to": "a***@example.com", "erased": True}


async def test_no_log_and_no_record_of_a_private_kind_holds_an_address(
    settings: Settings, connection: Connection, eventually, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("DEBUG")
    ends: list[BaseException] = [
        ValueError("ada@example.com"),
        Snooze("450 <ada@example.com> later", delay_s=0.01),
        TaskError("? <ada@example.com>", reason="outcome_unknown", retry_after_s=0.01),
        TaskError("550 <ada@example.com> unknown", retryable=False),
    ]

    async def work(_payload: dict[str, Any], context: Context) -> None:
        context.note({"text": "<ada@example.com> said ada@example.com", "ambiguous": len(ends) == 2})
        raise ends.pop(0)

    async with running(settings, kind("work", work, privacy=Privacy(("to",), 7.0))) as parts:
        task_id = await parts.intake.submit(new(payload='{"to": "ada@example.com"}'))
        await eventually(becomes(connection, task_id, 3))

    stored = await connection.fetch("select error, detail from taskq.attempt where task_id = $1", task_id)
    told = [(await row(connection, task_id))["last_error"], *(text for each in stored for text in each)]
    logged = [str(record.__dict__) for record in caplog.records if record.name.startswith("taskq")]
    assert len(stored) == 4
    assert [text for text in [*told, *logged] if "ada@" in text] == []
    assert any("a***@example.com" in text for text in logged)
