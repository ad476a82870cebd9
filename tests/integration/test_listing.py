"""Lists against a real PostgreSQL: filters find what they say, pages join without gap or repeat."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import psycopg
import pytest
from databases import Databases
from rig import Connection, put, register

from taskq import listing as module
from taskq import sql
from taskq.config import Settings
from taskq.database import PLANNER
from taskq.errors import InvalidFilter
from taskq.filters import parse_filter
from taskq.listing import Listing
from taskq.store import Store

MANY = 300_000
NOW = datetime.now(UTC)


async def listed(store: Store, text: str, *, limit: int = 100) -> list[int]:
    """The ids of all pages."""
    after, ids = None, []
    while True:
        page = await Listing(store).page(parse_filter(text), after=after, limit=limit)
        assert len(page.tasks) <= limit
        ids += [task.id for task in page.tasks]
        if page.next is None:
            return ids
        after = page.next


@pytest.fixture
async def some(connection: Connection) -> dict[str, int]:
    """A task of every sort."""
    owner = await register(connection)
    ended: dict[str, Any] = {"finished_at": NOW, "attempt": 1, "started_at": NOW}
    tagged = {"tags": ["receipt", "shop"]}
    mail = {"to": "Ada@example.com", "subject": "Hello", "order": {"id": 17, "tags": ["a"]}}
    return {
        "pending": await put(connection, "email", payload=json.dumps(mail)),
        "running": await put(connection, status=1, owner=owner, attempt=1, run=1, started_at=NOW),
        "ok": await put(connection, status=2, queue="bulk", **tagged, **ended),
        "failed": await put(
            connection, "email", status=3, reason="permanent", last_error="550 5.1.1 No such user", **ended
        ),
        "cancelled": await put(connection, status=4, created_at=NOW - timedelta(days=30), **ended),
    }


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ["cancelled", "failed", "ok", "running", "pending"]),
        ("status:pending,ok", ["ok", "pending"]),
        ("-status:in-progress", ["cancelled", "failed", "ok", "pending"]),
        ("status:failed", ["failed"]),
        ("status:failed -kind:email", []),
        ("status:ok status:failed", []),
        ("kind:email", ["failed", "pending"]),
        ("-kind:email", ["cancelled", "ok", "running"]),
        ("queue:bulk,other", ["ok"]),
        ("tag:shop,none", ["ok"]),
        ("-tag:shop", ["cancelled", "failed", "running", "pending"]),
        ("reason:permanent", ["failed"]),
        ("-reason:permanent", ["cancelled", "ok", "running", "pending"]),
        ("error:'550", []),
        ('error:"no such USER"', ["failed"]),
        ("to:ada@EXAMPLE", ["pending"]),
        ("payload.subject:Hello,Bye", ["pending"]),
        ("payload.order.id:17", ["pending"]),
        ("payload.order.tags.0:a", ["pending"]),
        ("payload.order.nothing:1", []),
        ("since:1d", ["failed", "ok", "running", "pending"]),
        ("until:1d", ["cancelled"]),
        ("kind:email since:1h status:failed error:550", ["failed"]),
    ],
)
async def test_filter_finds_what_it_says(store: Store, some: dict[str, int], text: str, names: list[str]):
    assert await listed(store, text) == [some[name] for name in names]


@pytest.mark.parametrize("text", ["", "kind:work", "status:failed", "status:failed kind:work"])
@pytest.mark.parametrize("limit", [1, 3, 7])
async def test_pages_join_without_gap_or_repeat(
    store: Store, connection: Connection, monkeypatch: pytest.MonkeyPatch, text: str, limit: int
):
    monkeypatch.setattr(module, "WINDOW_MIN", 2)
    monkeypatch.setattr(module, "TIME_S", 0.0)
    ids = [
        await put(connection, "work" if n % 3 else "other", status=3, finished_at=NOW - timedelta(seconds=n // 4))
        for n in range(20)
    ]
    wanted = [task_id for n, task_id in enumerate(ids) if n % 3 or "kind" not in text]
    at = {task_id: n // 4 for n, task_id in enumerate(ids)}
    order = sorted(wanted, key=lambda task_id: (at[task_id] if "failed" in text else 0, -task_id))

    assert await listed(store, text, limit=limit) == order


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("", "x"),
        ("", "-5"),
        ("", "1-5"),
        ("status:failed", "5"),
        ("status:failed", "9" * 30 + "-1"),
        ("", "1" * 50),
        ("", "²"),
    ],
)
async def test_place_that_is_none_of_ours_is_refused(store: Store, text: str, after: str):
    with pytest.raises(InvalidFilter, match="send the next of the page before"):
        await Listing(store).page(parse_filter(text), after=after, limit=5)


# -- many rows


@pytest.fixture(scope="module")
def crowded(databases: Databases) -> Iterator[str]:
    """The address of a database with many finished tasks, a few of them failed long ago."""
    dsn = databases.make()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "insert into taskq.task (id, kind, payload, status, created_at, finished_at, last_error)"
            " select n, 'work', '{\"to\": \"ada@example.com\"}', case when n %% 1000 = 0 then 3 else 2 end,"
            " now() - (%s - n) * interval '1 second', now() - (%s - n) * interval '1 second', 'no'"
            "   from generate_series(1, %s) n",
            (MANY, MANY, MANY),
        )
        connection.execute("vacuum analyze taskq.task")
    yield dsn
    databases.drop(dsn)


@pytest.mark.parametrize(
    "text", ["", "status:pending", "status:failed", "to:nobody", "payload.x.y:1", "error:no kind:x"]
)
async def test_statement_reads_a_bounded_number_of_pages_by_its_index(crowded: str, text: str):
    wanted = parse_filter(text)
    values = {
        "failed": str(wanted.only_failed),
        "before_at": "'9999-01-01'::timestamptz",
        "below": str(2**62),
        "window": str(module.WINDOW_MAX),
        "limit": "50",
        "statuses": f"array[{','.join(str(int(status)) for status in wanted.statuses)}]::smallint[]",
        "since": "null",
        "until": "null",
        "terms": f"'{json.dumps([asdict(term) for term in wanted.terms])}'",
    }
    statement = sql.load("listing")["page"]
    connection = await asyncpg.connect(crowded)
    try:
        for name, value in PLANNER.items():
            await connection.execute(f"set {name} = {value}")
        await connection.execute("set plan_cache_mode = force_generic_plan")
        await connection.execute(f"prepare page as {statement.text}")
        given = ", ".join(values[name] for name in statement.parameters)
        explained = json.loads(
            await connection.fetchval(f"explain (analyze, buffers, format json) execute page({given})")
        )[0]["Plan"]
    finally:
        await connection.close()

    assert '"Seq Scan"' not in json.dumps(explained)
    assert explained["Shared Hit Blocks"] + explained["Shared Read Blocks"] <= 3_000


async def test_page_without_a_hit_says_where_to_go_on(
    crowded: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "TIME_S", 0.0)
    store = Store(crowded, settings)
    try:
        page = await Listing(store).page(parse_filter("to:nobody"), after=None, limit=5)
    finally:
        await store.close()

    assert (page.tasks, page.next) == ([], str(MANY - module.WINDOW_MIN + 1))
