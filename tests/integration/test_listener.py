"""The control thread: what it hears, the lease it keeps, and that it proves and mends LISTEN."""

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import pytest
from conftest import wait_until
from rig import Connection, register, says

from taskq import listener as module
from taskq.config import Settings
from taskq.database import Session
from taskq.errors import StoreUnavailable
from taskq.lease import process_namespace, process_start
from taskq.listener import Listener


class Heard:
    """What the main loop is told."""

    def __init__(self) -> None:
        self.wakes = 0
        self.lost: list[int] = []
        self.threads: set[int] = set()

    def wake(self) -> None:
        self.wakes += 1
        self.threads.add(threading.get_ident())

    def on_lost(self, lease: int) -> None:
        self.lost.append(lease)


@contextlib.asynccontextmanager
async def listening(database: str, settings: Settings, **changes: Any) -> AsyncIterator[tuple[Listener, Heard]]:
    listener = Listener(database, settings.model_copy(update=changes), instance=uuid.uuid4())
    heard, ready = Heard(), asyncio.Event()
    listener.subscribe(wake=heard.wake, lost=heard.on_lost)
    async with asyncio.TaskGroup() as group:
        runner = group.create_task(listener.run(ready))
        await ready.wait()
        yield listener, heard
        runner.cancel()


async def notify(connection: Connection, channel: str = "taskq_wake", payload: str = "") -> None:
    await connection.execute("select pg_notify($1, $2)", channel, payload)


async def hears_again(connection: Connection, heard: Heard, eventually: Callable[..., Any]) -> None:
    """Wait until a notification sent now arrives."""
    before = heard.wakes

    async def arrived() -> bool:
        await notify(connection)
        return heard.wakes > before + 1

    await eventually(arrived)


async def inside(listener: Listener, statement: str) -> None:
    """Run a statement on the listening connection, on its own thread."""
    connection = listener._listen._connection
    assert connection is not None
    await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(connection.execute(statement), listener._loop))


async def lease_row(connection: Connection, listener: Listener) -> asyncpg.Record | None:
    return await connection.fetchrow("select * from taskq.lease where id = $1", listener.lease.id)


# -- hearing


async def test_listener_hands_wakes_to_the_main_loop(
    database: str, settings: Settings, connection: Connection, eventually
):
    async with listening(database, settings) as (_, heard):
        await eventually(says(lambda: heard.wakes == 1))  # after every LISTEN: what came before it is looked for

        await notify(connection)

        await eventually(says(lambda: heard.wakes == 2))
    assert heard.threads == {threading.get_ident()}


@pytest.mark.parametrize(
    "payload", ["", "x" * 7_999, "ünï\U0001f600", "1; drop table taskq.task", "9" * 20, '{"a": 1}']
)
async def test_listener_takes_any_payload_as_a_wake(
    database: str, settings: Settings, connection: Connection, eventually, payload: str
):
    async with listening(database, settings) as (listener, heard):
        await eventually(says(lambda: heard.wakes == 1))

        await notify(connection, "taskq_wake", payload)
        await notify(connection, listener._channel, payload)

        await eventually(says(lambda: heard.wakes == 2))
        assert listener.listening


async def test_listener_listens_before_it_wakes(
    database: str, settings: Settings, monkeypatch: pytest.MonkeyPatch, eventually
):
    order: list[str] = []
    listen, fetch = Session.listen, Session.fetch

    async def noting_listen(self: Session, channel: str, heard: Callable[[str], None], **more: Any) -> None:
        await listen(self, channel, heard, **more)
        order.append("listen")

    async def noting_fetch(self: Session, statement: Any, /, **values: Any) -> Any:
        rows = await fetch(self, statement, **values)
        order.append(statement.name)
        return rows

    monkeypatch.setattr(Session, "listen", noting_listen)
    monkeypatch.setattr(Session, "fetch", noting_fetch)
    async with listening(database, settings, beat_s=60, probe_s=60) as (_, heard):
        await eventually(says(lambda: heard.wakes == 1))
        at_wake = list(order)

    assert at_wake[:3] == ["listen", "listen", "register"]


@pytest.mark.parametrize("name", ["taskq listen", "taskq control"])
async def test_listener_mends_itself_when_a_connection_is_cut(
    database: str, settings: Settings, connection: Connection, eventually, name: str
):
    async with listening(database, settings) as (listener, heard):
        lease = listener.lease.id
        await connection.execute(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name = $1", name
        )

        await hears_again(connection, heard, eventually)

        assert listener.lease.id == lease
        assert heard.lost == []


async def test_listener_probe_finds_a_dead_listen_and_mends_it(
    database: str, settings: Settings, connection: Connection, eventually, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "PROBE_TIMEOUT_S", 0.2)
    async with listening(database, settings, probe_s=0.1) as (listener, heard):
        await eventually(says(lambda: heard.wakes == 1))
        await inside(listener, "unlisten *")
        await notify(connection)

        await eventually(says(lambda: heard.wakes == 2))  # of the new connection; the notification was not heard
        await hears_again(connection, heard, eventually)


async def test_listener_probe_is_quiet_while_listen_works(database: str, settings: Settings, eventually):
    probes = 0
    async with listening(database, settings, probe_s=0.02, beat_s=0.02) as (listener, heard):

        async def probed() -> bool:
            nonlocal probes
            probes += listener._heard.is_set()
            return probes > 50

        await eventually(probed)

        assert heard.wakes == 1  # never reconnected, although beats and probes share a connection


async def test_listener_survives_a_flood(database: str, settings: Settings, connection: Connection, eventually):
    async with listening(database, settings) as (listener, heard):
        await connection.execute("select pg_notify('taskq_wake', n::text) from generate_series(1, 20000) n")

        await eventually(says(lambda: heard.wakes >= 20_001))
        assert listener.listening


# -- the lease


async def test_listener_registers_who_it_is(database: str, settings: Settings, connection: Connection):
    async with listening(database, settings) as (listener, _):
        stored = await lease_row(connection, listener)

        assert stored is not None
        assert (stored["instance"], stored["pid"]) == (listener._instance, os.getpid())
        assert (stored["namespace"], stored["pid_start"]) == (process_namespace(), process_start(os.getpid()))
        assert listener.lease.holds()


async def test_listener_ends_its_lease_when_it_stops(database: str, settings: Settings, connection: Connection):
    async with listening(database, settings):
        assert await connection.fetchval("select count(*) from taskq.lease") == 1

    assert await connection.fetchval("select count(*) from taskq.lease") == 0


async def test_listener_beats(database: str, settings: Settings, connection: Connection, eventually):
    async with listening(database, settings, beat_s=0.05) as (listener, _):
        listener.url = "http://127.0.0.1:1234"

        async def beaten() -> bool:
            stored = await lease_row(connection, listener)
            return stored is not None and stored["beat_at"] > stored["started_at"] and stored["url"] == listener.url

        await eventually(beaten)


async def test_listener_registers_anew_when_its_lease_was_ended(
    database: str, settings: Settings, connection: Connection, eventually
):
    async with listening(database, settings, beat_s=0.05) as (listener, heard):
        lost = listener.lease.id
        await connection.execute("delete from taskq.lease")

        await eventually(says(lambda: heard.lost))

        assert heard.lost == [lost]
        assert listener.lease.id not in (0, lost)
        assert await lease_row(connection, listener) is not None


async def test_lease_is_not_held_when_the_database_is_away(
    database: str, settings: Settings, postgres: str, connection: Connection, eventually
):
    name = await connection.fetchval("select current_database()")
    server = await asyncpg.connect(postgres)
    async with listening(database, settings, beat_s=0.05, lease_s=0.4) as (listener, heard):
        await server.execute(f"alter database {name} allow_connections false")
        await server.execute(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
            " where datname = $1 and application_name like 'taskq%'",
            name,
        )
        await eventually(says(lambda: not listener.lease.holds() and not listener.listening))

        await server.execute(f"alter database {name} allow_connections true")

        await eventually(says(lambda: listener.lease.holds() and listener.listening))
        assert heard.lost == []  # nobody ended it meanwhile
    await server.close()


async def test_listener_buries_dead_neighbours_at_once(database: str, settings: Settings, connection: Connection):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead, reused, living, elsewhere = [await register(connection) for _ in range(4)]
    mark = "update taskq.lease set namespace = $2, pid = $3, pid_start = $4 where id = $1"
    own = process_start(os.getpid())
    await connection.execute(mark, dead, process_namespace(), gone.pid, 5)
    await connection.execute(mark, reused, process_namespace(), os.getpid(), (own or 0) - 1)
    await connection.execute(mark, living, process_namespace(), os.getpid(), own)
    await connection.execute(mark, elsewhere, "another machine", gone.pid, 5)

    async with listening(database, settings) as (listener, _):
        left = {each[0] for each in await connection.fetch("select id from taskq.lease")}

        assert left == {living, elsewhere, listener.lease.id}


async def test_listener_counts_the_living_instances_of_this_machine(
    database: str, settings: Settings, connection: Connection
):
    async with listening(database, settings) as (listener, _):
        assert await listener.neighbours() == 0
        neighbour = await register(connection)
        await connection.execute(
            "update taskq.lease set namespace = $2, pid = $3, pid_start = $4 where id = $1",
            neighbour,
            process_namespace(),
            os.getpid(),
            process_start(os.getpid()),
        )

        assert await listener.neighbours() == 1


async def test_listener_notices_at_once_that_its_connection_was_closed(
    database: str, settings: Settings, connection: Connection, eventually
):
    async with listening(database, settings, beat_s=60, probe_s=60, lease_s=3_600) as (_, heard):
        await eventually(says(lambda: heard.wakes == 1))
        await connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where application_name = 'taskq listen' and datname = current_database()"
        )

        await eventually(says(lambda: heard.wakes > 1))  # what was sent meanwhile is looked for
        await hears_again(connection, heard, eventually)


async def test_listener_buries_nobody_where_processes_can_not_be_told_apart(
    database: str, settings: Settings, connection: Connection, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "process_namespace", lambda: None)
    dead = await register(connection)

    async with listening(database, settings):
        assert await connection.fetchval("select count(*) from taskq.lease where id = $1", dead) == 1


async def test_listener_gives_the_lease_up_when_the_main_loop_hangs(
    database: str, settings: Settings, eventually, caplog: pytest.LogCaptureFixture
):
    async with listening(database, settings, beat_s=0.05, lease_s=0.4, loop_stall_s=0.8) as (listener, _):
        threading.Event().wait(2.0)  # what a handler must not do
        held_meanwhile = listener.lease.holds()

        await eventually(says(listener.lease.holds))

    assert not held_meanwhile
    [record] = [each for each in caplog.records if each.levelname == "ERROR"]
    assert record.message == "the event loop is blocked; the lease is no longer renewed"
    assert "threading.Event().wait(2.0)" in record.__dict__["stack"]


async def test_listener_keeps_the_lease_while_a_handler_blocks_the_loop_for_a_while(database: str, settings: Settings):
    async with listening(database, settings, beat_s=0.05, loop_stall_s=600) as (listener, _):
        first_until = listener.lease._until

        wait_until(lambda: listener.lease._until > first_until + 0.3)  # without a turn for the loop

        assert listener.lease.holds()


# -- telling others


async def test_notify_others_is_coalesced(database: str, settings: Settings, connection: Connection, eventually):
    await register(connection)
    notes: list[Any] = []
    other = await asyncpg.connect(database)
    await other.add_listener("taskq_wake", lambda *note: notes.append(note))
    async with listening(database, settings, beat_s=0.05) as (listener, _):
        await eventually(says(lambda: listener.peers == 1))
        began = time.monotonic()

        for _ in range(1_000):
            listener.notify_others()
            await asyncio.sleep(0)

        await eventually(says(lambda: notes))
        took_s = time.monotonic() - began
    await other.close()
    assert len(notes) <= 2 + took_s / module.COALESCE_S


async def test_notify_others_is_free_when_there_are_none(database: str, settings: Settings):
    async with listening(database, settings) as (listener, _):
        listener.notify_others()

        assert not listener._wake_others.is_set()


@contextlib.asynccontextmanager
async def hearing(database: str, settings: Settings, **changes: Any) -> AsyncIterator[tuple[Listener, list[str]]]:
    """A listener that hears what is told on a channel of its own."""
    listener = Listener(database, settings.model_copy(update=changes), instance=uuid.uuid4())
    heard, ready = list[str](), asyncio.Event()
    listener.hear("taskq_news", heard.append)
    async with asyncio.TaskGroup() as group:
        runner = group.create_task(listener.run(ready))
        await ready.wait()
        yield listener, heard
        runner.cancel()


async def test_what_is_told_is_heard_by_the_others(database: str, settings: Settings, eventually):
    async with hearing(database, settings) as (one, _), hearing(database, settings) as (_, heard):
        await eventually(says(lambda: one.peers == 1))

        for text in ("1 2", "3 4", "1 2"):
            one.tell_others("taskq_news", text)

        await eventually(says(lambda: {"1 2", "3 4"} <= set(heard)))


async def test_new_connection_says_that_news_may_have_been_missed(
    database: str, settings: Settings, connection: Connection, eventually
):
    async with hearing(database, settings, beat_s=60, probe_s=60, lease_s=3_600) as (_, heard):
        await eventually(says(lambda: heard == [""]))
        await connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where application_name = 'taskq listen' and datname = current_database()"
        )

        await eventually(says(lambda: heard == ["", ""]))


async def test_what_could_not_be_told_is_told_later(
    database: str, settings: Settings, connection: Connection, eventually, monkeypatch: pytest.MonkeyPatch
):
    fetch, failures = Session.fetch, [1]

    async def failing(self: Session, statement: Any, /, **values: object) -> Any:
        if statement.name == "tell" and failures:
            failures.pop()
            raise StoreUnavailable("gone")
        return await fetch(self, statement, **values)

    monkeypatch.setattr(Session, "fetch", failing)
    async with hearing(database, settings) as (one, _), hearing(database, settings) as (_, heard):
        await eventually(says(lambda: one.peers == 1))

        one.tell_others("taskq_news", "1 2")

        await eventually(says(lambda: "1 2" in heard))
    assert not failures


async def test_news_that_wait_to_be_told_are_bounded(
    database: str, settings: Settings, connection: Connection, eventually
):
    await register(connection)
    async with hearing(database, settings) as (listener, _):
        await eventually(says(lambda: listener.peers == 1))
        listener._ask = lambda _name, **_values: asyncio.Event().wait()  # pyright: ignore[reportAttributeAccessIssue]

        for n in range(3 * module.UNTOLD_MAX):
            listener.tell_others("taskq_news", str(n))
        await eventually(says(lambda: len(listener._untold) == module.UNTOLD_MAX))


async def holders(connection: Connection) -> int:
    """How many hold the mask."""
    return await connection.fetchval(
        "select count(*) from pg_locks where locktype = 'advisory' and classid = 1953719656 and granted"
        " and database = (select oid from pg_database where datname = current_database())"
        " and objid = 'taskq'::regnamespace::oid"
    )


async def test_mask_is_held_and_dropped(database: str, settings: Settings, connection: Connection, eventually):
    async with listening(database, settings) as (listener, heard):
        await eventually(says(lambda: heard.wakes == 1))

        async def held() -> bool:
            return await holders(connection) == 1

        async def free() -> bool:
            return await holders(connection) == 0

        listener.mask(True)
        await eventually(held)
        listener.mask(True)
        listener.mask(False)
        await eventually(free)

        await eventually(says(lambda: heard.wakes == 2))  # what was enqueued silently is looked for


async def test_mask_is_tried_again_when_a_producer_was_in_the_way(
    database: str, settings: Settings, connection: Connection, eventually
):
    async with listening(database, settings) as (listener, _):
        probe = "lock_shared(1953719656, 'taskq'::regnamespace::oid::int)"
        await connection.execute(f"select pg_advisory_{probe}")
        listener.mask(True)

        async def tried() -> bool:
            asked = "select query from pg_stat_activity where application_name = 'taskq listen' and state = 'idle'"
            return "pg_try_advisory_lock" in (await connection.fetchval(asked) or "")

        await eventually(tried)
        await connection.execute(f"select pg_advisory_un{probe}")
        assert await holders(connection) == 0

        listener.mask(True)

        async def held() -> bool:
            return await holders(connection) == 1

        await eventually(held)


async def test_mask_follows_the_last_word_when_it_changes_fast(
    database: str, settings: Settings, connection: Connection, eventually
):
    async with listening(database, settings) as (listener, _):
        for _ in range(100):
            listener.mask(True)
            await asyncio.sleep(0)
            listener.mask(False)
            await asyncio.sleep(0)

        async def free() -> bool:
            return await holders(connection) == 0 and not listener._mask_changed.is_set()

        await eventually(free)


async def test_mask_is_taken_again_after_a_reconnect(
    database: str, settings: Settings, connection: Connection, eventually
):
    async with listening(database, settings) as (listener, heard):
        listener.mask(True)

        async def held() -> bool:
            return await holders(connection) == 1

        await eventually(held)
        await connection.execute(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name = 'taskq listen'"
        )
        await hears_again(connection, heard, eventually)

        await eventually(held)


# -- ends


async def test_listener_takes_the_process_down_when_it_has_a_defect(database: str, settings: Settings):
    listener = Listener(database, settings, instance=uuid.uuid4())
    listener._sql = {}

    with pytest.raises(BaseExceptionGroup) as caught:
        await listener.run(asyncio.Event())

    assert caught.group_contains(KeyError)


async def test_listener_stops_although_the_database_is_away(
    settings: Settings, caplog: pytest.LogCaptureFixture, eventually
):
    listener = Listener("postgresql://127.0.0.1:1/x", settings, instance=uuid.uuid4())
    async with asyncio.TaskGroup() as group:
        runner = group.create_task(listener.run(asyncio.Event()))
        await eventually(says(lambda: "listener lost PostgreSQL" in caplog.text))

        runner.cancel()

    assert runner.cancelled()


async def test_listener_says_so_when_its_lease_can_not_be_ended(
    database: str, settings: Settings, postgres: str, connection: Connection, caplog: pytest.LogCaptureFixture
):
    name = await connection.fetchval("select current_database()")
    server = await asyncpg.connect(postgres)
    async with listening(database, settings, beat_s=60, probe_s=60):
        await server.execute(f"alter database {name} allow_connections false")
        await server.execute(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
            " where datname = $1 and application_name like 'taskq%'",
            name,
        )
    await server.execute(f"alter database {name} allow_connections true")
    await server.close()

    assert "the lease could not be ended; it will run out" in caplog.text


async def test_instance_that_joins_knows_the_others_at_once(database: str, settings: Settings, eventually):
    """What it has to tell them can't wait for its first beat."""
    async with (
        listening(database, settings, beat_s=60, lease_s=600) as (_, _),
        listening(database, settings, beat_s=60, lease_s=600) as (joined, heard),
    ):
        await eventually(says(lambda: heard.wakes))

        assert joined.peers == 1
