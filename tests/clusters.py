"""What the tests of the embedded server share: quick settings, a place for a cluster, words with its server.

A server gets a directory of its own directly in the temporary directory: pytest's own directories
are closed to the account that PostgreSQL runs as when the tests run as root.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from taskq.postgres import EmbeddedPostgres
from taskq.postgres.process import read_pid_file

FAST = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
Make = Callable[..., EmbeddedPostgres]


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder with a short path, which any account may pass."""
    path = Path(tempfile.mkdtemp(prefix="taskq-test-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        if path.exists():
            path.chmod(0o755)
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def making(place: Path) -> Iterator[Make]:
    """A maker of quick servers, in `place` if nothing else is said; those it made are stopped at the end."""
    made: list[EmbeddedPostgres] = []

    def new(root: Path = place, **options: object) -> EmbeddedPostgres:
        options = {"settings": FAST, "initdb_options": ["--no-sync"], **options}
        made.append(EmbeddedPostgres(root, **options))  # pyright: ignore[reportArgumentType] - options by name
        return made[-1]

    yield new
    for server in reversed(made):
        server.stop()


def ask(server: EmbeddedPostgres, query: str) -> str:
    with psycopg.connect(server.dsn, connect_timeout=20, autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()  # bytes: a query of our own
        assert row is not None
        return str(row[0])


def tell(server: EmbeddedPostgres, statement: str) -> None:
    with psycopg.connect(server.dsn, connect_timeout=20, autocommit=True) as connection:
        connection.execute(statement.encode())


def server_pid(place: Path) -> int:
    told = read_pid_file(place.resolve() / "pgdata")
    assert told is not None
    return told.pid
