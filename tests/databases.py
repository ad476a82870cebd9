"""Databases for tests: migrated ones cloned from a template, and used again where a test left no trace.

Making and dropping one takes a hundred times as long as emptying one, and most tests leave rows only.
Whether one did is read from the catalogue: any other object, setting or migration, or a table that
has grown, and the database is dropped.
"""

import itertools
import os
from urllib.parse import urlsplit, urlunsplit

import psycopg

PAGES_MAX = 200  # of all task partitions and their indexes together
TABLES = (
    "task",
    "task_group",
    "task_blob",
    "blob",
    "lease",
    "attempt",
    "minute_count",
    "inbox",
    "cancel_request",
    "suppression",
    "bounce",
    "reject",
)
SHAPE = """
select (select array_agg(relname::text order by oid) from pg_class where relnamespace <> 'pg_toast'::regnamespace),
       (select array_agg(nspname::text order by oid) from pg_namespace),
       (select count(*) from pg_proc),
       (select count(*) from pg_attribute where not attisdropped),
       (select array_agg(migration_id order by 1) from taskq._yoyo_migration),
       (select count(*) from taskq.yoyo_lock),
       (select count(*) from taskq.installation),
       (select count(*) from pg_db_role_setting where setdatabase = (select oid from pg_database
                                                                       where datname = current_database()))
"""
PAGES = "select sum(pg_relation_size(oid)) / 8192 from pg_class where relnamespace = 'taskq'::regnamespace"
OTHERS = (
    "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity where datname = %s and pid <> pg_backend_pid()"
)


def with_database(dsn: str, name: str) -> str:
    """Return the address of another database on the same server."""
    parts = urlsplit(dsn)
    return urlunsplit((parts.scheme, parts.netloc, f"/{name}", parts.query, ""))


class Databases:
    """Clones of a migrated template on one server."""

    def __init__(self, dsn: str, template: str) -> None:
        self._dsn = dsn
        self._template = template
        self._numbers = itertools.count(1)
        self._spare: list[str] = []
        with psycopg.connect(with_database(dsn, template), autocommit=True) as connection:
            self._shape = connection.execute(SHAPE).fetchone()

    def make(self) -> str:
        """Make one; return its address."""
        name = f"test_{os.getpid()}_{next(self._numbers)}"
        self._run(f"create database {name} template {self._template} strategy wal_log")
        return with_database(self._dsn, name)

    def take(self) -> str:
        """Return the address of an empty one, used before or new."""
        return self._spare.pop() if self._spare else self.make()

    def give_back(self, dsn: str) -> None:
        """Keep one for another test, if this one left only rows in it."""
        if self._emptied(dsn):
            self._spare.append(dsn)
        else:
            self.drop(dsn)

    def drop(self, dsn: str) -> None:
        """Drop one, whoever is connected."""
        self._run(f"drop database if exists {urlsplit(dsn).path[1:]} with (force)")

    def _emptied(self, dsn: str) -> bool:
        try:
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute(OTHERS, (urlsplit(dsn).path[1:],))
                if connection.execute(SHAPE).fetchone() != self._shape:
                    return False
                for table in TABLES:
                    connection.execute(f"delete from taskq.{table}")  # pyright: ignore[reportArgumentType]
                for sequence in ("task_id", "lease_id_seq", "inbox_id_seq", "suppression_id_seq"):
                    connection.execute("select setval(%s, 1, false)", (f"taskq.{sequence}",))
                row = connection.execute(PAGES).fetchone()
                return row is not None and row[0] <= PAGES_MAX
        except psycopg.Error:
            return False

    def _run(self, statement: str) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            connection.execute(statement)  # pyright: ignore[reportArgumentType]
