"""Where the bench writes: databases of its own, on the configured server or an embedded one of its own.

The schema is migrated once, into a template; each measure gets a copy, which is removed at its end.
Nothing else on a configured server is touched, but it should have nothing else to do meanwhile: its
log and its processor time are counted whole.
"""

import contextlib
import dataclasses
import os
import tempfile
import uuid
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from taskq import sql
from taskq.bench.jobs import bench_session
from taskq.bench.usage import postmaster_of
from taskq.config import Settings
from taskq.database import Session
from taskq.migrate import migrate
from taskq.service import database

__all__ = ["Ground", "Place", "open_place", "passable_folder"]

_SQL = sql.load("bench")


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """One database for one measure, and a connection to it."""

    dsn: str
    session: Session

    async def counts(self) -> tuple[int, int]:
        """Return how many tasks are stored, and how many ended Ok."""
        stored, ok = (await self.session.fetch(_SQL["counts"]))[0]
        return stored, ok

    async def floor_rows(self) -> int:
        """Return how many rows the floors stored."""
        return (await self.session.fetch(_SQL["floor_count"]))[0][0]

    async def commits(self) -> int:
        """Return how many transactions were committed by connections that have ended."""
        return (await self.session.fetch(_SQL["commits"]))[0][0]

    async def unfinished(self) -> bool:
        """Tell whether a task waits or runs."""
        return (await self.session.fetch(_SQL["unfinished"]))[0][0]


class Ground:
    """A server, and the template on it."""

    def __init__(self, dsn: str, session: Session, template: str) -> None:
        """Use `session`, which is connected to `dsn`."""
        self._dsn = dsn
        self._session = session
        self._template = template
        self.version = ""
        self.postmaster: int | None = None

    async def prepare(self) -> None:
        """Make the template."""
        backend, version = (await self._session.fetch(_SQL["backend"]))[0]
        self.version, self.postmaster = version.split()[0], postmaster_of(backend)
        await self._define("create_database", name=self._template)
        dsn = _with_database(self._dsn, self._template)
        await migrate(dsn)
        session = bench_session(dsn)
        await session.fetch(_SQL["create_floor"])
        await session.fetch(_SQL["create_floor_pending"])
        await session.close()

    async def remove(self) -> None:
        """Remove the template."""
        await self._define("drop_database", name=self._template)

    @asynccontextmanager
    async def place(self) -> AsyncGenerator[Place]:
        """Make a database for one measure; it is gone afterwards."""
        name = f"{self._template}_{uuid.uuid4().hex[:8]}"
        await self._define("copy_database", name=name, template=self._template)
        dsn = _with_database(self._dsn, name)
        session = bench_session(dsn)
        try:
            yield Place(dsn, session)
        finally:
            await session.close()
            await self._define("drop_database", name=name)

    async def _define(self, statement: str, **names: str) -> None:
        """Run a data definition; names can't be parameters, and these are ours."""
        found = _SQL[statement]
        await self._session.fetch(dataclasses.replace(found, text=found.text.format(**names)))


@asynccontextmanager
async def open_place(settings: Settings) -> AsyncGenerator[Ground]:
    """Provide the server: the one that `settings` name, or an embedded one in a temporary folder.

    Raises:
        ConfigError: The server can't be reached, or won't let us make databases.
    """
    async with contextlib.AsyncExitStack() as stack:
        if settings.database_url is None:
            settings = settings.model_copy(update={"data_dir": stack.enter_context(passable_folder())})
        _, dsn, _ = await stack.enter_async_context(database(settings))
        session = bench_session(dsn)
        stack.push_async_callback(session.close)
        ground = Ground(dsn, session, f"taskq_bench_{os.getpid()}")
        try:
            await ground.prepare()
            yield ground
        finally:
            await ground.remove()


@contextlib.contextmanager
def passable_folder() -> Generator[Path]:
    """Make a temporary folder for an embedded PostgreSQL, which runs as another user when we are root."""
    with tempfile.TemporaryDirectory(prefix="taskq-bench-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)  # to be passed through, not read
        yield Path(folder, "data")


def _with_database(dsn: str, name: str) -> str:
    parts = urlsplit(dsn)
    return urlunsplit((parts.scheme, parts.netloc, f"/{name}", parts.query, ""))
