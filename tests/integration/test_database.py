"""One connection that mends itself: what breaks, how the caller hears of it, and that the next call works."""

import asyncio

import pytest
from rig import Connection

from taskq.database import Session, Sessions
from taskq.errors import StoreRefused, StoreUnavailable
from taskq.sql import Statement


def statement(text: str, *parameters: str) -> Statement:
    return Statement("test", text, parameters)


ONE = statement("select 1")


@pytest.fixture
async def session(database: str):
    opened = Session(database, name="taskq test", timeout_s=5)
    yield opened
    await opened.close()


async def kill(connection: Connection, name: str = "taskq test") -> int:
    """End the server processes of a session."""
    return await connection.fetchval(
        "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity where application_name = $1", name
    )


async def test_session_opens_on_demand(session: Session):
    assert not session.connected

    rows = await session.fetch(statement("select $1::int + $2::int", "a", "b"), a=2, b=3)

    assert rows[0][0] == 5
    assert session.connected


async def test_session_opens_when_told(session: Session):
    await session.open()

    assert session.connected


async def under_way(connection: Connection, text: str) -> bool:
    return await connection.fetchval("select count(*) from pg_stat_activity where query = $1", text)


async def test_session_tells_when_its_connection_broke_and_then_opens_another(
    session: Session, connection: Connection, eventually
):
    sleeping = "select pg_sleep(32)"

    async def call() -> None:
        with pytest.raises(StoreUnavailable) as caught:
            await session.fetch(statement(sleeping))
        assert caught.value.sent

    async with asyncio.TaskGroup() as group:
        group.create_task(call())
        await eventually(lambda: under_way(connection, sleeping))
        await kill(connection)

    assert (await session.fetch(ONE))[0][0] == 1


async def test_session_opens_another_after_a_close_that_was_noticed(session: Session):
    await session.fetch(ONE)
    session._connection.terminate()

    assert (await session.fetch(ONE))[0][0] == 1


async def test_session_knows_that_nothing_was_sent_when_it_could_not_connect(bare: str):
    session = Session(bare + "_gone" if "?" not in bare else bare.replace("?", "_gone?"), name="x", timeout_s=1)

    with pytest.raises(StoreUnavailable, match="can't be reached") as caught:
        await session.fetch(ONE)

    assert not caught.value.sent


@pytest.mark.parametrize("dsn", ["nonsense", "postgresql://127.0.0.1:1/x", "postgresql:///x?host=/nowhere/at-all"])
async def test_session_has_one_error_for_every_wrong_address(dsn: str):
    session = Session(dsn, name="x", timeout_s=1)

    with pytest.raises(StoreUnavailable, match="can't be reached"):
        await session.open()


@pytest.mark.parametrize(
    "refused",
    [
        statement("select 1 / 0"),
        statement("insert into taskq.task (id, kind, payload, status) values (1, 'x', '{}', 9)"),
        statement("insert into taskq.installation (id) select id from taskq.installation"),
        statement("select 'x'::text || chr(0)"),
    ],
    ids=["22", "23-check", "23-unique", "54"],
)
async def test_session_keeps_its_connection_when_values_are_refused(session: Session, refused: Statement):
    await session.fetch(ONE)
    before = session._connection

    with pytest.raises(StoreRefused):
        await session.fetch(refused)

    assert session._connection is before


@pytest.mark.parametrize(
    ("text", "value"), [("select $1::text", "\ud800"), ("select $1::int", 2**31), ("select $1::int", "x")]
)
async def test_session_refuses_values_that_the_driver_can_not_send(session: Session, text: str, value: object):
    with pytest.raises(StoreRefused):
        await session.fetch(statement(text, "value"), value=value)


@pytest.mark.parametrize(
    "text",
    ["set transaction_read_only = on; select 1", "select * from taskq.nothing", "selec"],
    ids=["several", "missing", "syntax"],
)
async def test_session_takes_everything_else_as_unavailable(session: Session, text: str):
    with pytest.raises(StoreUnavailable) as caught:
        await session.fetch(statement(text))

    assert caught.value.sent
    assert not session.connected


async def test_session_takes_a_server_that_refuses_writes_as_unavailable(session: Session, connection: Connection):
    name = await connection.fetchval("select current_database()")
    await connection.execute(f"alter database {name} set default_transaction_read_only = on")

    with pytest.raises(StoreUnavailable, match="ReadOnlySQLTransaction"):
        await session.fetch(statement("delete from taskq.inbox"))

    assert not session.connected


async def test_session_ends_a_statement_that_takes_too_long(database: str):
    session = Session(database, name="taskq slow", timeout_s=0.1)

    with pytest.raises(StoreUnavailable, match="TimeoutError") as caught:
        await session.fetch(statement("select pg_sleep(30)"))

    assert caught.value.sent
    assert not session.connected


async def test_session_drops_its_connection_when_its_caller_is_cancelled(session: Session, connection, eventually):
    sleeping = "select pg_sleep(31)"

    async with asyncio.TaskGroup() as group:
        call = group.create_task(session.fetch(statement(sleeping)))
        await eventually(lambda: under_way(connection, sleeping))
        call.cancel()

    assert not session.connected
    assert (await session.fetch(ONE))[0][0] == 1


async def test_session_repeats_a_statement_that_lost_a_deadlock(session: Session, connection: Connection):
    await connection.execute("create sequence tries")
    lose_twice = statement(
        "do $$ begin if nextval('tries') < 3 then raise exception using errcode = '40P01'; end if; end $$"
    )

    await session.fetch(lose_twice)

    assert await connection.fetchval("select last_value from tries") == 3


@pytest.mark.parametrize("code", ["40P01", "40001"])
async def test_session_gives_up_when_every_try_loses(session: Session, code: str):
    with pytest.raises(StoreUnavailable, match="deadlock"):
        await session.fetch(statement(f"do $$ begin raise exception using errcode = '{code}'; end $$"))


async def test_transaction_commits_what_is_inside(session: Session, connection: Connection):
    async with session.transaction():
        await session.fetch(statement("create table one ()"))
        await session.fetch(statement("create table two ()"))

    assert await connection.fetchval("select count(*) from pg_class where relname in ('one', 'two')") == 2


async def test_transaction_rolls_back_when_the_inside_raises(session: Session, connection: Connection):
    async def fail() -> None:
        async with session.transaction():
            await session.fetch(statement("create table one ()"))
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        await fail()

    assert await connection.fetchval("select to_regclass('one')") is None
    assert (await session.fetch(ONE))[0][0] == 1


async def test_transaction_does_not_go_on_over_another_connection(session: Session, connection: Connection):
    async def cut() -> None:
        async with session.transaction():
            await session.fetch(statement("create table one ()"))
            await kill(connection)
            await session.fetch(statement("create table two ()"))

    with pytest.raises(StoreUnavailable):
        await cut()

    assert await connection.fetchval("select count(*) from pg_class where relname in ('one', 'two')") == 0


async def test_transaction_is_not_repeated_in_part_when_it_loses_a_deadlock(session: Session, connection: Connection):
    async def lose() -> None:
        async with session.transaction():
            await session.fetch(statement("create table one ()"))
            await session.fetch(statement("do $$ begin raise exception using errcode = '40P01'; end $$"))

    with pytest.raises(StoreUnavailable):
        await lose()

    assert await connection.fetchval("select to_regclass('one')") is None
    assert (await session.fetch(ONE))[0][0] == 1


async def test_listen_hands_over_payloads(session: Session, connection: Connection, eventually):
    heard: list[str] = []
    await session.listen("taskq_test", heard.append)

    await connection.execute("select pg_notify('taskq_test', 'ü'), pg_notify('taskq_test', '')")

    async def both() -> bool:
        return heard == ["ü", ""]

    await eventually(both)


async def test_listen_tells_when_it_can_not(session: Session):
    await session.fetch(statement("begin"))
    await session.fetch(statement("set transaction isolation level serializable"))
    with pytest.raises(StoreRefused):
        await session.fetch(statement("select 1 / 0"))

    with pytest.raises(StoreUnavailable, match="listen failed"):  # the transaction is aborted
        await session.listen("taskq_test", lambda _payload: None)


async def test_close_of_a_session_never_opened_does_nothing(database: str):
    session = Session(database, name="x", timeout_s=1)

    await session.close()
    session.drop()

    assert not session.connected


async def test_pooled_session_prepares_nothing_that_lasts(database: str):
    session = Session(database, name="x", timeout_s=5, pooled=True)

    await session.fetch(ONE)
    rows = await session.fetch(statement("select count(*) from pg_prepared_statements where name <> ''"))

    await session.close()
    assert rows[0][0] == 0


async def test_sessions_are_bounded(database: str):
    sessions = Sessions(lambda: Session(database, name="x", timeout_s=5), size_max=1, wait_s=0.05)

    async with sessions.session() as first:
        with pytest.raises(StoreUnavailable, match="raise read_connections_max") as caught:
            async with sessions.session():
                """Never reached."""

    assert not caught.value.sent
    async with sessions.session() as again:
        assert again is first
    await sessions.close()


async def test_sessions_are_given_back_when_their_user_fails(database: str):
    sessions = Sessions(lambda: Session(database, name="x", timeout_s=5), size_max=1, wait_s=0.05)

    async def fail() -> None:
        async with sessions.session():
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await fail()

    async with sessions.session() as session:
        assert (await session.fetch(ONE))[0][0] == 1
    await sessions.close()
