"""The trigger kit: rows of another application's table become tasks, in its transaction, by its own rights."""

import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from rig import Connection

TEMPLATE = '{"to": "{email}", "subject": "Order {id}", "total": "{total}", "fixed": 7}'


@pytest.fixture
async def shop(connection: Connection) -> AsyncIterator[Connection]:
    """A connection to a database with the table of another application."""
    await connection.execute("create schema shop")
    await connection.execute(
        'create table shop.orders (id bigint primary key, email text, total numeric, items jsonb, "odd {name}" text)'
    )
    yield connection
    await connection.execute("drop schema shop cascade")


async def declare(shop: Connection, event: str, template: str = TEMPLATE, **arguments: Any) -> str:
    named = "".join(f", {name} => ${n}" for n, name in enumerate(arguments, 4))
    return await shop.fetchval(
        f"select taskq.enqueue_on('shop.orders', $1, $2, $3{named})", event, "mail", template, *arguments.values()
    )


async def payloads(shop: Connection) -> list[Any]:
    return [json.loads(each[0]) for each in await shop.fetch("select payload from taskq.task order by id")]


INSERT = "insert into shop.orders (id, email, total) values (1, 'ada@example.com', 9.50)"


async def test_inserted_row_becomes_a_task(shop: Connection):
    await declare(shop, "insert")

    await shop.execute(INSERT)

    assert await payloads(shop) == [{"to": "ada@example.com", "subject": "Order 1", "total": 9.5, "fixed": 7}]


async def test_rolled_back_row_becomes_none(shop: Connection):
    await declare(shop, "insert")
    transaction = shop.transaction()
    await transaction.start()
    await shop.execute(INSERT)
    await transaction.rollback()

    assert await payloads(shop) == []


async def test_every_argument_reaches_the_task(shop: Connection):
    await declare(shop, "insert", queue="bulk", priority=-5, max_attempts=3)

    await shop.execute(INSERT)

    task = await shop.fetchrow("select kind, queue, priority, max_attempts from taskq.task")
    assert tuple(task) == ("mail", "bulk", -5, 3)


async def test_condition_decides_which_rows(shop: Connection):
    await declare(shop, "insert", condition="new.total > 100")

    await shop.execute("insert into shop.orders (id, total) select n, n * 60 from generate_series(1, 4) n")

    assert [payload["subject"] for payload in await payloads(shop)] == ["Order 2", "Order 3", "Order 4"]


async def test_update_sees_the_row_before_and_after(shop: Connection):
    await declare(shop, "update", '{"now": "{total}"}', condition="new.total is distinct from old.total")
    await shop.execute(INSERT)

    await shop.execute("update shop.orders set email = 'eve@example.com'")
    await shop.execute("update shop.orders set total = 12")

    assert await payloads(shop) == [{"now": 12}]


async def test_deleted_row_is_read_as_it_was(shop: Connection):
    await declare(shop, "delete", '{"gone": "{id}"}', condition="old.total < 100")
    await shop.execute(INSERT)

    await shop.execute("delete from shop.orders")

    assert await payloads(shop) == [{"gone": 1}]


async def test_many_rows_of_one_statement_make_one_notification(shop: Connection, database: str):
    heard: list[str] = []
    listening = await asyncpg.connect(database)
    await listening.add_listener("taskq_wake", lambda *note: heard.append(note[2]))
    await declare(shop, "insert")

    await shop.execute("insert into shop.orders (id) select generate_series(1, 10001)")
    await listening.fetchval("select 1")
    await listening.close()

    assert await shop.fetchval("select count(*) from taskq.task") == 10_001
    assert len(heard) == 1


@pytest.mark.parametrize(
    ("form", "payload"),
    [
        ('{"a": "{{id}}", "b": "}}{{"}', {"a": "{id}", "b": "}{"}),
        (
            '{"a": "", "b": null, "c": [1, "{id}", {"d": "x{id}y"}], "e": true}',
            {"a": "", "b": None, "c": [1, 1, {"d": "x1y"}], "e": True},
        ),
        ('{"whole": "{items}", "text": "<{items}>"}', {"whole": {"k": [1]}, "text": '<{"k": [1]}>'}),
        ('{"none": "{odd {name}}"}', None),
        ('{"it\'s": "o\'clock \\\\ %s %I {email}"}', {"it's": "o'clock \\ %s %I '; drop table taskq.task; --"}),
        ("{}", {}),
        ('{"a": {}, "b": []}', {"a": {}, "b": []}),
    ],
)
async def test_template_holds_columns_and_nothing_of_it_is_executed(shop: Connection, form: str, payload: Any):
    if payload is None:
        with pytest.raises(asyncpg.PostgresError, match="write"):
            await declare(shop, "insert", form)
        return
    await declare(shop, "insert", form)

    await shop.execute(
        "insert into shop.orders (id, email, items) values (1, '''; drop table taskq.task; --', '{\"k\": [1]}')"
    )

    assert await payloads(shop) == [payload]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("'shop.orders', 'truncate', 'mail', '{}'", "event is 'truncate': must be insert, update or delete"),
        ("'shop.orders', null, 'mail', '{}'", "event is null"),
        ("'shop.orders', 'insert', 'Mail', '{}'", "kind is 'Mail'"),
        ("'shop.orders', 'insert', 'mail', '[]'", "template is array: must be a JSON object"),
        ("'shop.orders', 'insert', 'mail', null", "template is null"),
        (
            """'shop.orders', 'insert', 'mail', '{"a": "{emial}"}'""",
            "names {emial}, which is no column of the table: use one of id, email",
        ),
        ("""'shop.orders', 'insert', 'mail', '{"a": "{}"}'""", "names {}"),
        ("""'shop.orders', 'insert', 'mail', '{"a": "x{"}'""", "a single \"{\" in 'x{': write {{"),
        ("'shop.orders', 'insert', 'mail', '{}', queue => ''", "queue is ''"),
        ("'shop.orders', 'insert', 'mail', '{}', priority => 101", "priority is 101"),
        ("'shop.orders', 'insert', 'mail', '{}', condition => 'new.x > 1'", "column new.x does not exist"),
        ("'shop.orders', 'update', 'mail', '{}', condition => 'new.x > 1'", "column new.x does not exist"),
        ("'shop.order', 'insert', 'mail', '{}'", "does not exist"),
    ],
)
async def test_wrong_declaration_is_refused_and_leaves_nothing(shop: Connection, arguments: str, says: str):
    with pytest.raises(asyncpg.PostgresError) as raised:
        await shop.execute(f"select taskq.enqueue_on({arguments})")

    assert says in str(raised.value)
    await shop.execute(INSERT)
    assert await payloads(shop) == []


async def test_declaring_again_replaces_and_dropping_ends_it(shop: Connection):
    await declare(shop, "insert", '{"a": 1}')
    await declare(shop, "insert", '{"a": 2}')
    await shop.execute(INSERT)

    dropped = [await shop.fetchval("select taskq.drop_enqueue_on('shop.orders', 'insert', 'mail')") for _ in range(2)]
    await shop.execute("insert into shop.orders (id) values (2)")

    assert await payloads(shop) == [{"a": 2}]
    assert dropped == [True, False]
    assert not await shop.fetchval("select count(*) from pg_proc where pronamespace = 'shop'::regnamespace")


async def test_two_tables_have_triggers_of_their_own(shop: Connection):
    await shop.execute("create table shop.invoices (id bigint)")
    await declare(shop, "insert", '{"order": "{id}"}')
    await shop.execute("""select taskq.enqueue_on('shop.invoices', 'insert', 'mail', '{"invoice": "{id}"}')""")
    await shop.fetchval("select taskq.drop_enqueue_on('shop.orders', 'insert', 'mail')")

    await shop.execute(INSERT)
    await shop.execute("insert into shop.invoices values (5)")

    assert await payloads(shop) == [{"invoice": 5}]


async def test_application_that_writes_the_table_needs_no_rights_on_the_queue(shop: Connection):
    await shop.execute("drop role if exists shop_writer")
    await shop.execute("create role shop_writer")
    await declare(shop, "insert")
    await shop.execute("grant usage on schema shop to shop_writer")
    await shop.execute("grant insert on shop.orders to shop_writer")

    await shop.execute("set role shop_writer")
    await shop.execute(INSERT)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await shop.execute("select taskq.enqueue('mail', '{}')")
    await shop.execute("reset role")

    assert len(await payloads(shop)) == 1
    await shop.execute("drop owned by shop_writer")
    await shop.execute("drop role shop_writer")


async def test_hostile_search_path_changes_nothing(shop: Connection):
    """A role that plants functions of the same names before ours must not have them run with our rights."""
    await declare(shop, "insert")
    await shop.execute("create schema evil")
    await shop.execute(
        "create function evil.to_jsonb(text) returns jsonb language sql as $$select '\"stolen\"'::jsonb$$"
    )
    await shop.execute("set search_path = evil, pg_catalog")

    await shop.execute(INSERT)

    await shop.execute("reset search_path")
    assert (await payloads(shop))[0]["to"] == "ada@example.com"
    await shop.execute("drop schema evil cascade")
