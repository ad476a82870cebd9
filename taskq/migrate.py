"""Bring the schema up to date at every start, under one lock, in milliseconds when nothing is missing.

1. Ask which migrations are applied (one query).  None missing: done.
2. Take a session advisory lock on a direct connection: of several starters one migrates.
3. Holding it, remove the row that yoyo's own lock leaves behind when its process is killed; the
   advisory lock proves that its owner is gone, since PostgreSQL drops it with the connection.
4. Apply each missing migration in one transaction.  A DDL statement that can't get its lock within
   2 s gives way, so that it never stands at the head of a queue of other applications, and is
   tried again.

A server whose schema is newer than this program is left alone: code N-1 runs on schema N.
"""

import asyncio
import importlib
import logging
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg

from taskq.errors import ConfigError

__all__ = ["migrate", "migrations_folder", "roll_back"]

logger = logging.getLogger("taskq.migrate")

TRIES_MAX = 10  # of a migration that can't get its locks
CONNECT_TIMEOUT_S = 10.0
LOCK_CLASS, LOCK_OBJECT = 1953719656, -2


def migrations_folder() -> Path:
    """Find the migrations: inside the installed package, or beside it in a clone."""
    package = Path(__file__).parent
    for folder in (package / "migrations", package.parent / "migrations"):
        if folder.is_dir():
            return folder
    raise ConfigError(f"no migrations in {package} or beside it: the installation is incomplete, install taskq again")


async def migrate(dsn: str) -> list[str]:
    """Apply what is missing; return the names of the migrations applied.

    Args:
        dsn: A direct connection, not one through a pooler in transaction mode.

    Raises:
        ConfigError: The database can't be reached, or refuses a migration.
    """
    wanted = sorted(path.stem for path in migrations_folder().glob("[0-9]*.py"))
    connection = await _connect(dsn)
    try:
        if not await _missing(connection, wanted):
            return []
        await connection.execute("select pg_advisory_lock($1, $2)", LOCK_CLASS, LOCK_OBJECT)
        missing = await _missing(connection, wanted)
        if missing:
            await connection.execute("create schema if not exists taskq")
            await asyncio.to_thread(_apply, _yoyo_url(dsn))
            logger.info("schema migrated", extra={"applied": missing})
        return missing
    finally:
        await connection.close()


async def roll_back(dsn: str, *, keep: int = 0) -> list[str]:
    """Undo all migrations but the first `keep`; every task beyond them is lost."""
    connection = await _connect(dsn)
    try:
        await connection.execute("select pg_advisory_lock($1, $2)", LOCK_CLASS, LOCK_OBJECT)
        return await asyncio.to_thread(_undo, _yoyo_url(dsn), keep)
    finally:
        await connection.close()


async def _connect(dsn: str) -> "asyncpg.Connection[asyncpg.Record]":
    try:
        return await asyncpg.connect(dsn, timeout=CONNECT_TIMEOUT_S, statement_cache_size=0)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        raise ConfigError(
            f"the database can't be reached ({type(error).__name__}: {error}): check that it runs, and database_url"
        ) from None


async def _missing(connection: "asyncpg.Connection[asyncpg.Record]", wanted: list[str]) -> list[str]:
    if not await connection.fetchval("select to_regclass('taskq._yoyo_migration') is not null"):
        return wanted
    applied = {row[0] for row in await connection.fetch("select migration_id from taskq._yoyo_migration")}
    return [name for name in wanted if name not in applied]


def _yoyo_url(dsn: str) -> str:
    parts = urlsplit(dsn)
    query = dict(parse_qsl(parts.query))
    query["schema"] = "taskq"
    query["options"] = "-c lock_timeout=2s -c client_connection_check_interval=1s"
    return urlunsplit(("postgresql+psycopg", parts.netloc, parts.path, urlencode(query), ""))


def _apply(url: str) -> None:
    yoyo: Any = importlib.import_module("yoyo")  # not at the head: 150 ms that a start without work saves

    for tries_left in range(TRIES_MAX, 0, -1):
        with yoyo.get_backend(url) as backend:
            backend.break_lock()
            try:
                with backend.lock():
                    backend.apply_migrations(backend.to_apply(yoyo.read_migrations(str(migrations_folder()))))
            except (backend.DatabaseError, yoyo.exceptions.LockTimeout) as error:
                if tries_left > 1 and "lock timeout" in str(error):
                    logger.info("migration waits for a lock", extra={"tries_left": tries_left - 1})
                    continue
                raise ConfigError(f"the database refused a migration: {error}") from error
            return


def _undo(url: str, keep: int) -> list[str]:
    yoyo: Any = importlib.import_module("yoyo")
    with yoyo.get_backend(url) as backend:
        backend.break_lock()
        every = yoyo.read_migrations(str(migrations_folder()))
        names: set[str] = {migration.id for migration in list(every)[keep:]}

        def beyond(migration: Any) -> bool:
            return migration.id in names

        with backend.lock():
            undo = backend.to_rollback(every.filter(beyond))
            backend.rollback_migrations(undo)
        return [migration.id for migration in undo]
