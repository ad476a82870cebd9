"""What is kept of a run, the seal that forbids its repetition, and the erasing of content, in real PostgreSQL."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from rig import Connection, new, put, register, row

from taskq.facts import Privacy
from taskq.store import EARLIEST, Store
from taskq.task import Change, Run, Status

DAY_S = 86_400.0
PRIVACY = {"email": Privacy(("to", "n"), 7.0)}
MAIL = {"to": "ada@example.com", "subject": "Secret", "body": "text for bob@example.com", "n": 5, "cc": "x@example.com"}
NOTED = json.dumps({"relay": "smtp://relay", "phase": "dot", "code": 250})


async def born(store: Store, owner: int) -> Run:
    """A run in progress."""
    [(task_id, _, created_at)] = await store.insert([new()], births=1, owner=owner)
    return Run(task_id, 1, owner, "work", 1, 10, created_at, "{}")


async def next_run(store: Store, owner: int) -> Run:
    [(run, _, _)] = await store.claim([("default", 0)], [EARLIEST], slots=1, owner=owner)
    return run


async def kept(connection: Connection, task_id: int) -> list[tuple[Any, ...]]:
    """Run, attempt, outcome, error, times and detail of the attempts kept."""
    return [
        (*each[:5], each[5] and json.loads(each[5]))
        for each in await connection.fetch(
            "select run, attempt, outcome, error, times, detail from taskq.attempt where task_id = $1 order by run",
            task_id,
        )
    ]


def put_off(run: Run, detail: str | None, error: str = "down") -> Change:
    return Change(run.id, run.run, run.owner, Status.PENDING, 0.0, error, None, 1, detail)


# -- the record of a run


@pytest.mark.parametrize(
    ("change", "outcome", "error"),
    [
        ((Status.OK, None, None, None), "Ok", None),
        ((Status.PENDING, 60.0, "not yet", None), "retry", "not yet"),
        ((Status.FAILED, None, "never", "permanent"), "failed", "never"),
    ],
)
async def test_settle_keeps_what_was_noted(store: Store, connection: Connection, change: Any, outcome: str, error: str):
    run = await born(store, await register(connection))

    await store.settle([Change(run.id, 1, run.owner, *change, detail=NOTED)])

    assert await kept(connection, run.id) == [(1, 1, outcome, error, 1, json.loads(NOTED))]
    assert await store.attempts(run.id, limit=9) == [
        {
            "attempt": 1, "run": 1, "outcome": outcome, "error": error, "times": 1, "detail": json.loads(NOTED),
        } | {name: (await store.attempts(run.id, limit=9))[0][name] for name in ("started_at", "ended_at")}
    ]  # fmt: skip


async def test_settle_keeps_nothing_of_an_ok_run_that_noted_nothing(store: Store, connection: Connection):
    run = await born(store, await register(connection))

    await store.settle([Change(run.id, 1, run.owner, Status.OK)])

    assert await kept(connection, run.id) == []


async def test_runs_that_were_put_off_share_one_row(store: Store, connection: Connection):
    owner = await register(connection)
    run = await born(store, owner)
    for n in range(50):
        await store.settle([put_off(run, json.dumps({"n": n}), f"down {n}")])
        run = await next_run(store, owner)

    await store.settle([Change(run.id, run.run, owner, Status.FAILED, None, "no", "permanent", detail=NOTED)])

    assert await kept(connection, run.id) == [
        (0, 0, "snoozed", "down 49", 50, {"n": 49}),
        (51, 1, "failed", "no", 1, json.loads(NOTED)),
    ]


async def test_run_put_off_without_facts_leaves_no_row(store: Store, connection: Connection):
    run = await born(store, await register(connection))

    await store.settle([put_off(run, None)])

    assert await kept(connection, run.id) == []
    assert (await row(connection, run.id))["last_error"] == "down"


async def test_superseded_run_leaves_no_record(store: Store, connection: Connection):
    run = await born(store, await register(connection))

    assert await store.settle([Change(run.id, 2, run.owner, Status.OK, detail=NOTED)]) == 0
    assert await kept(connection, run.id) == []


# -- the seal


async def lose(store: Store, connection: Connection, run: Run) -> asyncpg.Record:
    """Let the process of a run be gone, and rescue; the task as it then is."""
    await connection.execute("delete from taskq.lease where id = $1", run.owner)
    await store.rescue(own=await register(connection), lease_s=3_600, batch=10)
    return await row(connection, run.id)


async def test_sealed_run_that_is_lost_is_never_repeated(store: Store, connection: Connection):
    run = await born(store, await register(connection))
    assert await store.seal([run]) == {(run.id, 1)}

    task = await lose(store, connection, run)

    assert (task["status"], task["reason"], task["finished_at"] is not None) == (3, "outcome_unknown", True)
    assert [(each[2], each[5]) for each in await kept(connection, run.id)] == [("lost", {"ambiguous": True})]
    assert await connection.fetchval("select sum(n) from taskq.minute_count where status = 3") == 1


async def test_run_that_is_not_sealed_is_repeated_when_lost(store: Store, connection: Connection):
    owner = await register(connection)
    sealed, unsealed = await born(store, owner), await born(store, owner)
    await store.seal([sealed])

    task = await lose(store, connection, unsealed)

    assert (task["status"], task["reason"]) == (0, None)


async def test_seal_ends_with_its_run(store: Store, connection: Connection):
    """Refused before the dot and tried again: the next run has not sealed anything."""
    owner = await register(connection)
    run = await born(store, owner)
    await store.seal([run])
    await store.settle([Change(run.id, 1, owner, Status.PENDING, 0.0, "450 later")])
    again = await next_run(store, owner)

    task = await lose(store, connection, again)

    assert (task["status"], task["reason"], task["run"]) == (0, None, 2)


async def test_seal_of_a_run_that_is_not_ours_is_refused(store: Store, connection: Connection):
    owner = await register(connection)
    run, late, theirs = await born(store, owner), await born(store, owner), await born(store, owner)
    late.run, theirs.owner = 2, owner + 1

    ours = await store.seal([late, theirs, run])

    assert ours == {(run.id, 1)}
    assert [(await row(connection, each.id))["sealed"] for each in (run, late, theirs)] == [1, None, None]


async def test_seal_is_refused_once_the_run_was_rescued(store: Store, connection: Connection):
    run = await born(store, await register(connection))
    await lose(store, connection, run)

    assert await store.seal([run]) == set()


async def test_sealed_run_can_end_in_any_way(store: Store, connection: Connection):
    owner = await register(connection)
    ok, failed = await born(store, owner), await born(store, owner)
    await store.seal([ok, failed])

    await store.settle([Change(ok.id, 1, owner, Status.OK)])
    await store.settle([Change(failed.id, 1, owner, Status.FAILED, None, "no", "permanent")])

    assert [(await row(connection, each.id))["status"] for each in (ok, failed)] == [2, 3]


async def test_sealed_run_is_not_handed_back(store: Store, connection: Connection):
    owner = await register(connection)
    run = await born(store, owner)
    await store.seal([run])

    assert await store.release([(run.id, 1)], owner=owner) == []
    assert (await row(connection, run.id))["status"] == 1


# -- erasing


async def finished(connection: Connection, days_ago: float, kind: str = "email", **columns: Any) -> int:
    moment = datetime.now(UTC) - timedelta(days=days_ago)
    return await put(connection, kind, **{"status": 2, "finished_at": moment, "payload": json.dumps(MAIL)} | columns)


async def payload(connection: Connection, task_id: int) -> dict[str, Any]:
    return json.loads((await row(connection, task_id))["payload"])


async def prune(store: Store) -> None:
    await store.prune_tasks(after=0, retention_s=30 * DAY_S, privacy=PRIVACY, batch=100)


async def test_prune_erases_the_content_after_its_days(store: Store, connection: Connection):
    old, failed = await finished(connection, 8), await finished(connection, 8, status=3)

    await prune(store)

    for task_id in (old, failed):
        assert await payload(connection, task_id) == {"to": "a***@example.com", "erased": True}
        assert (await row(connection, task_id))["erased_at"] is not None
    task = await store.get(old)
    assert task is not None
    assert task.erased_at is not None


@pytest.mark.parametrize(
    ("days_ago", "columns"),
    [
        (6, {}),
        (8, {"kind": "work"}),
        (8, {"status": 0, "finished_at": None, "due_at": datetime.now(UTC) + timedelta(days=1)}),
    ],
    ids=["young", "a-kind-without-privacy", "still-waiting"],
)
async def test_prune_leaves_other_payloads_alone(
    store: Store, connection: Connection, days_ago: float, columns: dict[str, Any]
):
    task_id = await finished(connection, days_ago, **columns)
    before = await row(connection, task_id)

    await prune(store)

    assert await row(connection, task_id) == before


async def test_prune_erases_a_sensitive_task_at_once(store: Store, connection: Connection):
    """One that did not end in its process: what ends there is erased when it is settled."""
    task_id = await finished(connection, 0, sensitive=True)

    await prune(store)

    assert "body" not in await payload(connection, task_id)


async def test_prune_erases_once(store: Store, connection: Connection):
    task_id = await finished(connection, 8)
    await prune(store)
    before = await connection.fetchrow("select ctid, xmin, erased_at from taskq.task where id = $1", task_id)

    await prune(store)

    assert await connection.fetchrow("select ctid, xmin, erased_at from taskq.task where id = $1", task_id) == before


async def test_prune_deletes_rather_than_erases_what_is_past_both(store: Store, connection: Connection):
    task_id = await finished(connection, 31)

    await prune(store)

    assert await row(connection, task_id) is None


async def test_settle_erases_in_the_same_statement(store: Store, connection: Connection):
    owner = await register(connection)
    ids = [
        await put(
            connection, "email", status=1, owner=owner, run=1, attempt=1, payload=json.dumps(MAIL),
            started_at=datetime.now(UTC),
        )
        for _ in range(3)
    ]  # fmt: skip

    await store.settle([Change(ids[0], 1, owner, Status.OK, keeps='["to"]')])
    await store.settle(
        [
            Change(ids[1], 1, owner, Status.FAILED, None, "no", "permanent", keeps='["to"]'),
            Change(ids[2], 1, owner, Status.OK),
        ]
    )

    erased = {"to": "a***@example.com", "erased": True}
    assert [await payload(connection, task_id) for task_id in ids] == [erased, erased, MAIL]
    assert [(await row(connection, task_id))["erased_at"] is None for task_id in ids] == [False, False, True]


@pytest.mark.parametrize(
    ("to", "left"),
    [
        ("ada@example.com", "a***@example.com"),
        ("Ada <ada@example.com>, bob@example.com", "Ada <a***@example.com>, b***@example.com"),
        ("jürgen@bücher.example", "j***@bücher.example"),
        ('"ada"@example.com', '"***@example.com'),
    ],
)
async def test_erased_payload_masks_the_addresses_that_it_keeps(connection: Connection, to: str, left: str):
    kept = await connection.fetchval('select taskq.erased($1, \'["to", "absent"]\')', json.dumps({"to": to, "x": 1}))

    assert json.loads(kept) == {"to": left, "erased": True}


@pytest.mark.parametrize("value", [["ada@example.com"], {"email": "ada@example.com"}, 5, None])
async def test_erased_payload_keeps_only_texts(connection: Connection, value: object):
    kept = await connection.fetchval("select taskq.erased($1, '[\"to\"]')", json.dumps({"to": value}))

    assert json.loads(kept) == {"erased": True}
