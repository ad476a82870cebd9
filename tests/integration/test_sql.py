"""The statements: they fit the schema, each is used, their plans hold, and what a task costs is bounded.

The costs are counts of the server (bytes of log, commits, pages), not times, so they hold on any
machine.
"""

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
from databases import Databases
from rig import CLONE, Connection, kind, new, register, running

from taskq import sql
from taskq.config import Settings
from taskq.database import PLANNER
from taskq.store import EARLIEST, Store
from taskq.task import Change, Status

CALLERS = {
    "bundle": "bundles",
    "control": "control",
    "inbox": "mailstore",
    "ingest": "ingest",
    "lease": "listener",
    "listing": "listing",
    "suppression": "suppression",
    "tasks": "store",
}
FILES = tuple(CALLERS)
STATEMENTS = [pytest.param(file, name, id=name) for file in FILES for name in sql.load(file)]
TASKS = sql.load("tasks") | sql.load("bundle")
PAYLOAD = json.dumps({"to": "ada@example.com", "subject": "A subject of usual length", "body": "x" * 240})
NOTED = json.dumps(
    {
        "relay": "smtp://smtp.example.com:587", "peer": "192.0.2.25", "tls": "TLSv1.3", "connection": 7, "mail": 31,
        "ms": {"connect": 0, "tls": 0, "auth": 0, "envelope": 12.4, "data": 23.9}, "phase": "dot",
        "verdict": "accepted", "code": 250, "enhanced": "2.0.0", "text": "Ok: queued as 4YkZl13wJzz9sSx",
        "remote_id": "4YkZl13wJzz9sSx", "bytes": 812,
    }
)  # fmt: skip
BACKLOG = 200_000
BATCH = 64

HOT: dict[str, dict[str, str]] = {
    "claim": {
        "queues": "array['default', 'mail']",
        "priorities": "array[0, 5]::smallint[]",
        "lows": "array['-infinity', '-infinity']::timestamptz[]",
        "slots": "100",
        "owner": "1",
    },
    "settle": {
        "ids": "array[5, 6]::bigint[]",
        "runs": "array[1, 1]",
        "owners": "array[1, 1]::bigint[]",
        "statuses": "array[2, 0]::smallint[]",
        "delays_s": "array[null, 1]::float8[]",
        "finals": "array['0', null]::interval[]",
        "attempts_back": "array[0, 1]::smallint[]",
        "reasons": "array[null, null]::text[]",
        "errors": "array[null, 'x']::text[]",
        "details": "array['{}', null]::text[]",
        "keeps": "array['[]', null]::text[]",
        "erasures": "array['0', null]::interval[]",
    },
    "seal": {"ids": "array[5, 6]::bigint[]", "runs": "array[1, 1]", "owners": "array[1, 1]::bigint[]"},
    "settle_ok": {"ids": "array[5, 6]::bigint[]", "runs": "array[1, 1]", "owner": "1"},
    "get": {"id": "5"},
    "rescue": {"batch": "5000"},
    "survey": {},
    "owned": {"owner": "1"},
    "claim_suspect": {"owner": "1"},
    "expire": {"own": "1", "batch": "1000"},
    "prune_tasks": {"after": "0", "retention_s": "3600", "privacy": "'{}'", "batch": "5000"},
    "group": {"id": "5"},
    "blob": {"digest": "'a'"},
}
INDEX = {
    "claim": "task_pending",
    "settle": "task_pkey",
    "seal": "task_pkey",
    "settle_ok": "task_pkey",
    "get": "task_pkey",
    "rescue": "task_running",
    "survey": "task_pending",
    "owned": "task_running",
    "claim_suspect": "task_suspect",
    "expire": "task_expiring",
    "prune_tasks": "task_pkey",
    "group": "task_pkey",
    "blob": "blob_pkey",
}


# -- the files


@pytest.fixture
async def shared(module_database: str) -> AsyncIterator[Connection]:
    opened = await asyncpg.connect(module_database)
    yield opened
    await opened.close()


@pytest.mark.parametrize(("file", "name"), STATEMENTS)
async def test_statement_fits_the_schema(shared: Connection, file: str, name: str):
    statement = sql.load(file)[name]

    prepared = await shared.prepare(statement.text)

    assert len(prepared.get_parameters()) == len(statement.parameters)


@pytest.mark.parametrize(("file", "name"), STATEMENTS)
def test_statement_has_a_caller(file: str, name: str):
    source = (CLONE / "taskq" / f"{CALLERS[file]}.py").read_text(encoding="utf-8")

    assert f'"{name}"' in source


@pytest.mark.parametrize("file", FILES)
def test_statement_says_what_it_does(file: str):
    text = (Path(sql.__file__).parent / f"{file}.sql").read_text(encoding="utf-8")

    assert not re.findall(r"^-- name: \w+\n(?!-- \w)", text, re.MULTILINE)


def test_load_numbers_parameters_by_first_appearance():
    statement = TASKS["get"]

    assert statement.parameters == ("id",)
    assert statement.text.endswith("where id = $1")
    assert "--" not in statement.text


def test_load_leaves_casts_alone():
    assert "::float8" in TASKS["prune_counts"].text
    assert TASKS["prune_counts"].parameters == ("retention_s",)


# -- plans


@pytest.fixture
def database(databases: Databases) -> Iterator[str]:
    """The address of a new database: what tests before left behind would be counted here."""
    dsn = databases.make()
    yield dsn
    databases.drop(dsn)


@pytest.fixture(scope="module")
def crowded(databases: Databases) -> Iterator[str]:
    """The address of a database with many pending tasks."""
    dsn = databases.make()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "insert into taskq.task (id, kind, payload, due_at)"
            " select nextval('taskq.task_id'), 'work', '{}', now() - n * interval '1 ms' from generate_series(1, %s) n",
            (BACKLOG,),
        )
        connection.execute(
            "insert into taskq.task_group select 1000000 + n, now(), 'work', array[n, n + 1, n + 2], '{a,b,c}'"
            " from generate_series(1, 20000) n union all select 5, now(), 'work', array_agg(n), array_agg(n::text)"
            " from generate_series(1, 500) n"
        )
        connection.execute("vacuum analyze taskq.task")
    yield dsn
    databases.drop(dsn)


def bound(name: str, **values: object) -> list[object]:
    """The values in the order of the statement's parameters."""
    return [values[parameter] for parameter in TASKS[name].parameters]


async def explain(connection: Connection, name: str, options: str) -> str:
    """Explain the plan that serves any values, as our sessions make it."""
    for name_of, value in PLANNER.items():
        await connection.execute(f"set {name_of} = {value}")
    await connection.execute("set plan_cache_mode = force_generic_plan")
    await connection.execute("set enable_seqscan = off")  # as every session of the process
    await connection.execute(f"prepare hot as {TASKS[name].text}")
    values = ", ".join(HOT[name][parameter] for parameter in TASKS[name].parameters)
    return await connection.fetchval(f"explain ({options}) execute hot" + (f"({values})" if values else ""))


async def plan_of(connection: Connection, name: str) -> list[dict[str, Any]]:
    text = await explain(connection, name, "format json")
    nodes: list[dict[str, Any]] = []

    def walk(node: dict[str, Any]) -> None:
        nodes.append(node)
        for child in node.get("Plans", ()):
            walk(child)

    walk(json.loads(text)[0]["Plan"])
    return nodes


async def scans(connection: Connection, name: str) -> set[str]:
    """How the partitions of the task table are read: the parent's index, or the kind of scan."""
    rows = await connection.fetch(
        "select c.relname, p.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid"
        " join pg_class p on p.oid = i.inhparent where p.relkind = 'I'"
    )
    parent = dict([tuple(each) for each in rows])
    found: set[str] = set()
    for node in await plan_of(connection, name):
        if node["Node Type"] in ("Index Scan", "Index Only Scan", "Bitmap Index Scan"):
            found.add(parent.get(node["Index Name"], node["Index Name"]))
        elif node["Node Type"] == "Seq Scan" and node["Relation Name"].startswith("task_"):
            found.add("Seq Scan")
    return found


@pytest.mark.parametrize("name", list(HOT))
async def test_plan_uses_its_index_when_the_table_is_new(connection: Connection, name: str):
    found = await scans(connection, name)

    assert INDEX[name] in found
    assert "Seq Scan" not in found


@pytest.mark.parametrize("name", list(HOT))
async def test_plan_uses_its_index_when_many_wait(crowded: str, name: str):
    connection = await asyncpg.connect(crowded)
    try:
        found = await scans(connection, name)
    finally:
        await connection.close()

    assert INDEX[name] in found
    assert "Seq Scan" not in found


@pytest.mark.parametrize("name", ["claim", "survey", "rescue", "claim_suspect", "expire", "group"])
async def test_plan_reads_few_pages_when_many_wait(crowded: str, name: str):
    connection = await asyncpg.connect(crowded)
    try:
        await register(connection)
        transaction = connection.transaction()
        await transaction.start()
        text = await explain(connection, name, "analyze, buffers, format json")
        await transaction.rollback()
    finally:
        await connection.close()

    assert pages(text) <= 3_000


def pages(explained: str) -> int:
    plan = json.loads(explained)[0]["Plan"]
    return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]


# -- what a task costs


async def log_bytes(connection: Connection) -> int:
    return int(await connection.fetchval("select pg_current_wal_insert_lsn() - '0/0'"))


async def run_round(store: Store, owner: int, *, births: int, detail: str | None = None) -> None:
    """One batch from its insert to its settling."""
    rows = await store.insert([new(payload=PAYLOAD)] * BATCH, births=births, owner=owner)
    runs = [(task_id, 1) for task_id, _, _ in rows]
    if not births:
        claimed = await store.claim([("default", 0)], [EARLIEST], slots=BATCH, owner=owner)
        runs = [(run.id, run.run) for run, _, _ in claimed]
    assert len(runs) == BATCH
    await store.settle([Change(task_id, run, owner, Status.OK, detail=detail) for task_id, run in runs])


@pytest.mark.parametrize(
    ("births", "detail", "most"),
    [(BATCH, None, 850), (0, None, 1_250), (BATCH, NOTED, 1_500)],
    ids=["born", "claimed", "born-and-noted"],
)
async def test_task_costs_few_bytes_of_log(
    store: Store, connection: Connection, births: int, detail: str | None, most: int
):
    owner = await register(connection)
    await run_round(store, owner, births=births, detail=detail)
    costs: list[float] = []

    for _ in range(5):  # the least of five: autovacuum and checkpoints write there too
        before = await log_bytes(connection)
        for _ in range(20):
            await run_round(store, owner, births=births, detail=detail)
        costs.append((await log_bytes(connection) - before) / (20 * BATCH))

    assert min(costs) <= most


async def test_task_costs_few_commits_when_many_submit(connection: Connection, settings: Settings, eventually):
    async def work(_payload: dict[str, Any]) -> None:
        """Do nothing."""

    tasks, submitters = 6_400, 64
    count = "select xact_commit from pg_stat_database where datname = current_database()"
    before = await connection.fetchval(count)

    async with running(settings, kind("work", work), concurrency=100) as parts, asyncio.TaskGroup() as group:

        async def submit() -> None:
            for _ in range(tasks // submitters):
                await parts.intake.submit(new(payload=PAYLOAD))

        for _ in range(submitters):
            group.create_task(submit())

    async def counted() -> bool:  # a server process reports its commits when it ends
        return not await connection.fetchval(
            "select count(*) from pg_stat_activity where application_name like 'taskq%'"
        )

    await eventually(counted)
    await connection.execute("select pg_stat_clear_snapshot()")
    assert (await connection.fetchval(count) - before) / tasks <= 0.1


async def test_claim_reads_few_pages_when_an_old_snapshot_is_held(database: str, store: Store, connection: Connection):
    """As with a backup under way: nothing that was claimed since can be vacuumed away."""
    owner = await register(connection)
    holder = await asyncpg.connect(database)
    await holder.execute("begin isolation level repeatable read")
    await holder.fetchval("select count(*) from taskq.task")
    low, most = EARLIEST, 0
    try:
        for n in range(BACKLOG // 1_000):
            await store.insert([new()] * 1_000, births=0, owner=owner)
            for last in (False, True):
                if last and n % 10 == 9:
                    most = max(most, await claim_pages(connection, owner, low))
                claimed = await store.claim([("default", 0)], [low], slots=500, owner=owner)
                low = max(due_at for _, _, due_at in claimed) - timedelta(milliseconds=200)
                await store.settle([Change(run.id, run.run, owner, Status.OK) for run, _, _ in claimed])
    finally:
        await holder.close()

    assert most <= 2_000


async def claim_pages(connection: Connection, owner: int, low: datetime) -> int:
    """The pages that a claim of 100 reads; it is rolled back."""
    transaction = connection.transaction()
    await transaction.start()
    prepared = await connection.prepare("explain (analyze, buffers, format json) " + TASKS["claim"].text)
    text = await prepared.fetchval(
        *bound("claim", queues=["default"], priorities=[0], lows=[low], slots=100, owner=owner)
    )
    await transaction.rollback()
    return pages(text)


SWITCHES = ("seqscan", "indexscan", "bitmapscan", "nestloop", "hashjoin", "mergejoin", "material", "memoize", "sort")


@pytest.mark.parametrize("seed", range(8))
async def test_claim_takes_at_most_its_slots_whatever_the_plan(connection: Connection, seed: int):
    dice = random.Random(seed)
    owner = await register(connection)
    await connection.execute(
        "insert into taskq.task (id, kind, payload, queue, priority, due_at)"
        " select nextval('taskq.task_id'), 'work', '{}', 'q' || n % 3, n % 2, now() - n * interval '1 s'"
        " from generate_series(1, 125) n"
    )

    for _ in range(25):
        for switch in SWITCHES:
            await connection.execute(f"set enable_{switch} = {dice.choice(('on', 'off'))}")
        await connection.execute(f"set plan_cache_mode = force_{dice.choice(('generic', 'custom'))}_plan")
        pretended = (dice.choice((0, 1, 125, 10**7)), dice.choice((0, 1, 10**6)))
        await connection.execute(
            "update pg_class set reltuples = $1, relpages = $2 where oid::regclass::text like 'taskq.task%'", *pretended
        )
        slots = dice.randint(0, 20)
        lanes = dice.sample([(f"q{q}", p) for q in range(4) for p in range(2)], 4)
        transaction = connection.transaction()
        await transaction.start()
        values = bound(
            "claim",
            queues=[queue for queue, _ in lanes],
            priorities=[priority for _, priority in lanes],
            lows=[EARLIEST] * 4,
            slots=slots,
            owner=owner,
        )
        rows = await connection.fetch(TASKS["claim"].text, *values)
        await transaction.rollback()

        assert len(rows) <= slots, (seed, slots, pretended)
        assert len({each["id"] for each in rows}) == len(rows)


def test_run_is_written_as_the_store_reads_it():
    """The columns that `claim` returns are those that a Run is made of, in this order."""
    returned = TASKS["claim"].text.rpartition("returning")[2].replace("t.", "").split(",")

    names = " ".join(name.strip() for name in returned)

    assert names == (
        "id run kind attempt max_attempts created_at payload crashes sensitive queue priority due_at"
        " expires_at - now() as expires_in"
    )
