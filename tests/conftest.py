"""Real PostgreSQL for every test that asks for it.

`postgres` is one server for the whole run: the embedded one without durability (a crash test starts
its own, with), or the one that TASKQ_TEST_DATABASE_URL names.  `database` is a fresh, migrated
database for one test, cloned from a template in milliseconds.
"""

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import asyncpg
import psycopg
import pytest
from clusters import Make, making, open_folder
from databases import Databases, with_database
from hypothesis import HealthCheck
from hypothesis import settings as property_tests

from taskq.config import Settings
from taskq.mailstore import MailStore
from taskq.postgres import EmbeddedPostgres
from taskq.store import Store

property_tests.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
property_tests.load_profile("patient")

HANG_S = 60.0  # of a wait that is over in a moment, or never
UNSAFE = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "max_connections": "200"}


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a server, with a database to connect to."""
    given = os.environ.get("TASKQ_TEST_DATABASE_URL")
    if given:
        yield given
        return
    root = Path(tempfile.mkdtemp(prefix="taskq-test-"))
    root.chmod(0o755)  # as root, the server runs under an account of its own
    bin_dir = os.environ.get("TASKQ_TEST_PG_BIN")
    server = EmbeddedPostgres(
        root, bin_dir=Path(bin_dir) if bin_dir else None, settings=UNSAFE, initdb_options=["--no-sync"]
    )
    server.start()
    yield server.dsn
    server.stop()
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def template(postgres: str) -> str:
    """The name of a migrated database that nobody is connected to."""
    import asyncio

    from taskq.migrate import migrate

    name = f"template_{os.getpid()}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"drop database if exists {name}")
        connection.execute(f"create database {name}")
    asyncio.run(migrate(with_database(postgres, name)))
    return name


@pytest.fixture(scope="session")
def databases(postgres: str, template: str) -> Databases:
    """Migrated databases."""
    return Databases(postgres, template)


@pytest.fixture
def database(databases: Databases) -> Iterator[str]:
    """The address of an empty, migrated database."""
    dsn = databases.take()
    yield dsn
    databases.give_back(dsn)


@pytest.fixture
def bare(postgres: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a fresh database without our schema."""
    name = f"bare_{os.getpid()}_{abs(hash(request.node.nodeid)):x}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"create database {name}")
    yield with_database(postgres, name)
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"drop database if exists {name} with (force)")


@pytest.fixture(scope="module")
def module_database(databases: Databases) -> Iterator[str]:
    """The address of a migrated database that the tests of one module share."""
    dsn = databases.take()
    yield dsn
    databases.give_back(dsn)


@pytest.fixture
async def connection(database: str):
    """An open connection to the fresh database."""
    opened = await asyncpg.connect(database)
    yield opened
    await opened.close()


@pytest.fixture
def settings(database: str) -> Settings:
    """Settings on the fresh database, with short waits."""
    return Settings(
        database_url=database,
        durability="relaxed",
        port=0,
        poll_s=0.2,
        sweep_s=0.1,
        beat_s=0.1,
        lease_s=10.0,
        probe_s=0.2,
    )


@pytest.fixture
async def store(database: str, settings: Settings):
    """A store on the fresh database."""
    opened = Store(database, settings)
    yield opened
    await opened.close()


@pytest.fixture
async def mails(store: Store):
    """The captured mails of the fresh database."""
    opened = MailStore(store.session("inbox"), store.reads)
    yield opened
    await opened.close()


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with a short path, which the account of a PostgreSQL server may pass."""
    with open_folder() as folder:
        yield folder


@pytest.fixture
def make(place: Path) -> Iterator[Make]:
    """Make embedded servers that start fast and keep nothing safe."""
    with making(place) as make:
        yield make


@pytest.fixture
def eventually() -> Callable[[Callable[[], Awaitable[object]]], Awaitable[None]]:
    """Await a condition that another part brings about, or fail after `HANG_S`."""
    import asyncio

    async def wait(condition: Callable[[], Awaitable[object]], timeout_s: float = HANG_S) -> None:
        until = time.monotonic() + timeout_s
        while not await condition():
            assert time.monotonic() < until, f"not within {timeout_s:g} s"
            pause = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_later(0.01, pause.set_result, None)
            await pause

    return wait


def wait_until(condition: Callable[[], object], timeout_s: float = HANG_S) -> None:
    """The same for tests without an event loop."""
    until = time.monotonic() + timeout_s
    never = threading.Event()
    while not condition():
        assert time.monotonic() < until, f"not within {timeout_s:g} s"
        never.wait(0.01)
