"""Submissions by NOTIFY: each becomes one task whoever listens, and what can't be taken is kept with the reason."""

import asyncio
import contextlib
import json
from typing import Any

import pytest
from rig import Connection, Work, becomes, kind, running, says, statuses

from taskq import ingest as module
from taskq.config import Settings
from taskq.errors import StoreUnavailable

ON = {"notify_enqueue": "on"}
LISTENING = "select pid from pg_stat_activity where application_name = 'taskq ingest'"


def work(**payload: Any) -> str:
    return json.dumps({"kind": "work", "payload": payload})


async def notify(connection: Connection, *texts: str) -> None:
    for text in texts:
        await connection.execute("select pg_notify('taskq_enqueue', $1)", text)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TURN_S", 0.02)


async def test_notification_becomes_a_task_and_runs(settings: Settings, connection: Connection, eventually: Any):
    handler = Work()
    async with running(settings, kind("work", handler), **ON) as parts:
        await eventually(says(lambda: parts.ingest.alone))

        await notify(connection, work(a=1))

        await eventually(says(lambda: handler.ended))
        await eventually(becomes(connection, handler.ended[0], 2))
    assert await connection.fetchval("select payload from taskq.task") == '{"a": 1}'
    assert (parts.ingest.taken, parts.ingest.rejected) == (1, 0)


async def test_mail_may_be_notified_as_over_http(settings: Settings, connection: Connection, eventually: Any):
    mail = {"To": ["ada@example.com", "bob@example.com"], "subject": "Hi", "body": "both"}
    async with running(settings, **ON) as parts:
        await eventually(says(lambda: parts.ingest.alone))

        await notify(connection, json.dumps(mail))

        await eventually(says(lambda: parts.ingest.taken))
    assert await connection.fetchval("select count(*) from taskq.task where group_id is not null") == 2


async def test_notification_becomes_one_task_however_many_instances_run(
    settings: Settings, connection: Connection, eventually: Any
):
    handler = Work()
    async with (
        running(settings, kind("work", handler), **ON) as one,
        running(settings, kind("work", handler), **ON) as other,
    ):
        await eventually(says(lambda: one.ingest.alone or other.ingest.alone))
        await notify(connection, *[work(n=n) for n in range(200)])
        await eventually(says(lambda: len(handler.ended) >= 200))

    assert await statuses(connection) == {2: 200}
    assert sorted(each.ingest.taken for each in (one, other)) == [0, 200]


async def test_another_instance_takes_over_from_one_that_stops(settings: Settings, eventually: Any):
    async with contextlib.AsyncExitStack() as stack:
        async with running(settings, **ON) as one:
            await eventually(says(lambda: one.ingest.alone))
            other = await stack.enter_async_context(running(settings, **ON))

        await eventually(says(lambda: other.ingest.alone))


async def test_connection_that_is_cut_is_mended(settings: Settings, connection: Connection, eventually: Any):
    async def listens_anew() -> bool:
        return bool(await connection.fetchval(f"select count(*) from ({LISTENING}) now where pid <> $1", before))

    async with running(settings, kind("work", Work()), **ON) as parts:
        await eventually(says(lambda: parts.ingest.alone))
        before = await connection.fetchval(LISTENING)

        await connection.fetch("select pg_terminate_backend($1)", before)

        await eventually(listens_anew)
        await eventually(says(lambda: parts.ingest.alone))
        await notify(connection, work())
        await eventually(says(lambda: parts.ingest.taken == 1))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "EOF"),
        ("{", "EOF"),
        ('{"kind": "wrok", "payload": {}}', "did you mean work?"),
        ('{"kind": "work", "payload": 5}', "object"),
        ('{"kind": "work", "payload": {"a": "\\u0000"}}', "U+0000"),
        ('{"To": "nobody", "subject": "Hi", "body": "x"}', "0 @ signs"),
        ("x" * 7_999, "expected value"),
        ("[" * 5_000, ""),
    ],
)
async def test_what_can_not_be_taken_is_kept_with_the_reason(
    settings: Settings, connection: Connection, eventually: Any, text: str, error: str
):
    async with running(settings, kind("work", Work()), **ON) as parts:
        await eventually(says(lambda: parts.ingest.alone))

        await notify(connection, text, work())

        await eventually(says(lambda: (parts.ingest.taken, parts.ingest.rejected) == (1, 1)))
        [kept] = await connection.fetch("select payload, error from taskq.reject")
    assert kept["payload"] == text
    assert error in kept["error"]


async def test_rejects_are_bounded(settings: Settings, connection: Connection, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "KEPT_MAX", 3)
    await connection.execute(
        "insert into taskq.reject (payload, error) select n::text, '' from generate_series(1, 9) n"
    )

    async with running(settings, **ON) as parts:
        await parts.ingest.prune()

    assert [each[0] for each in await connection.fetch("select payload from taskq.reject order by id")] == [
        "7",
        "8",
        "9",
    ]


async def test_notification_waits_while_the_database_refuses_to_store(
    settings: Settings, connection: Connection, eventually: Any, monkeypatch: pytest.MonkeyPatch
):
    async with running(settings, kind("work", Work()), **ON) as parts:
        submit, tries = parts.intake.submit, list[int]()

        async def away_at_first(new: Any) -> int:
            tries.append(1)
            if len(tries) == 1:
                raise StoreUnavailable("away")
            return await submit(new)

        monkeypatch.setattr(parts.intake, "submit", away_at_first)
        await eventually(says(lambda: parts.ingest.alone))
        await notify(connection, work())

        await eventually(says(lambda: parts.ingest.taken == 1))
    assert len(tries) == 2


async def test_more_than_may_wait_are_dropped_and_counted(
    settings: Settings, connection: Connection, eventually: Any, monkeypatch: pytest.MonkeyPatch
):
    go_on = asyncio.Event()
    async with running(settings, kind("work", Work()), intake_waiting_max=5, **ON) as parts:
        submit = parts.intake.submit

        async def slow(new: Any) -> int:
            await go_on.wait()
            return await submit(new)

        monkeypatch.setattr(parts.intake, "submit", slow)
        await eventually(says(lambda: parts.ingest.alone))
        await notify(connection, *[work() for _ in range(9)])
        await eventually(says(lambda: parts.ingest.dropped == 4))
        go_on.set()
        await eventually(says(lambda: parts.ingest.taken == 5))


async def test_shared_database_is_not_listened_to_unless_asked_for(settings: Settings):
    async with running(settings) as parts:
        assert parts.ingest is None
