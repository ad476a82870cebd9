"""Connections to PostgreSQL that mend themselves, and one meaning for every way they break.

A `Session` is one connection for one caller at a time.  The hot paths (insert, claim, settle) each
own one: a pool would reset the connection after every statement and make the writers wait for one
another.  A `Sessions` is a handful of them for reads.  Both connect when first used and again after
a break; the caller that met the break gets `StoreUnavailable` and decides whether to repeat.

What drivers and servers raise when a connection dies is a zoo (a closed socket, a state error of the
protocol, an administrator's shutdown, a standby that refuses writes, a time-out); here it becomes
one exception, with `sent` saying whether the statement may have taken effect.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from taskq.errors import StoreRefused, StoreUnavailable
from taskq.sql import Statement

__all__ = ["Session", "Sessions"]

Row = Sequence[Any]

CONNECT_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 2.0
CONFLICT_TRIES_MAX = 3  # of a statement that lost a deadlock; PostgreSQL rolled it back whole
PLANNER = {
    "jit": "off",  # compiling costs more than any of our statements runs
    "enable_seqscan": "off",  # a plan cached while the table was tiny must not scan it when it has grown
}

_CONFLICT = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
_REFUSED = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, asyncpg.ProgramLimitExceededError)
_ZOO = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

_BEGIN, _COMMIT, _ROLLBACK = (Statement(word, word, ()) for word in ("begin", "commit", "rollback"))


class Session:
    """One connection that is opened on demand and reopened after a break; one caller at a time."""

    def __init__(self, dsn: str, *, name: str, timeout_s: float, pooled: bool = False) -> None:
        """Prepare a session; nothing is opened yet.

        Args:
            dsn: Where to connect.
            name: Shown as `application_name`.
            timeout_s: Seconds until a statement counts as failed.
            pooled: The server is behind a pooler in transaction mode: no prepared statements.
        """
        self._dsn = dsn
        self._name = name
        self._timeout_s = timeout_s
        self._pooled = pooled
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self._in_transaction = False

    @property
    def connected(self) -> bool:
        """Whether the connection is open, as far as this side knows."""
        return self._connection is not None and not self._connection.is_closed()

    async def fetch(self, statement: Statement, /, **values: object) -> Sequence[Row]:
        """Run one statement in a transaction of its own and return its rows.

        Raises:
            StoreUnavailable: The connection could not be opened or broke.
            StoreRefused: The values violate a type or a constraint.
        """
        for tries_left in range(CONFLICT_TRIES_MAX, 0, -1):
            connection = await self._open()
            try:
                return await connection.fetch(  # pyright: ignore[reportReturnType] - a Record is a sequence of values
                    statement.text, *[values[name] for name in statement.parameters], timeout=self._timeout_s
                )
            except _CONFLICT:
                if tries_left == 1 or self._in_transaction:
                    raise StoreUnavailable(f"{statement.name} lost a deadlock") from None
            except _ZOO as error:
                raise self._translate(statement.name, error) from error
            except asyncio.CancelledError:
                self.drop()  # a statement may be under way: what comes back would answer the next one
                raise
        raise AssertionError

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[None]:
        """Run the statements inside as one transaction."""
        await self.fetch(_BEGIN)
        self._in_transaction = True
        try:
            yield
            await self.fetch(_COMMIT)
        except BaseException:
            if self.connected:
                await self.fetch(_ROLLBACK)
            raise
        finally:
            self._in_transaction = False

    async def listen(
        self, channel: str, heard: Callable[[str], None], *, ended: Callable[[], None] = lambda: None
    ) -> None:
        """Call `heard` with the payload of every notification on `channel`, and `ended` when no more can come."""
        connection = await self._open()
        connection.add_termination_listener(lambda _connection: ended())
        try:
            await connection.add_listener(channel, lambda _connection, _pid, _channel, payload: heard(str(payload)))
        except _ZOO as error:
            raise self._translate("listen", error) from error

    async def open(self) -> None:
        """Connect now rather than at the first statement."""
        await self._open()

    async def close(self) -> None:
        """Close the connection, if one is open."""
        connection, self._connection = self._connection, None
        if connection is not None and not connection.is_closed():
            try:
                await connection.close(timeout=CLOSE_TIMEOUT_S)
            except _ZOO:
                connection.terminate()

    def drop(self) -> None:
        """Cut the connection without ceremony; the next statement opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def _open(self) -> "asyncpg.Connection[asyncpg.Record]":
        if self._connection is not None:
            if not self._connection.is_closed():
                return self._connection
            self._connection = None
        if self._in_transaction:
            raise StoreUnavailable("the connection broke inside a transaction", sent=True)
        try:
            self._connection = await asyncpg.connect(
                self._dsn,
                timeout=CONNECT_TIMEOUT_S,
                statement_cache_size=0 if self._pooled else 100,
                max_cached_statement_lifetime=0,
                server_settings={} if self._pooled else {"application_name": self._name} | PLANNER,
            )
        except (*_ZOO, ValueError) as error:
            raise StoreUnavailable(f"PostgreSQL can't be reached ({type(error).__name__}: {error})") from error
        return self._connection

    def _translate(self, name: str, error: Exception) -> StoreUnavailable | StoreRefused:
        if isinstance(error, _REFUSED):
            return StoreRefused(str(error))
        self.drop()
        return StoreUnavailable(f"{name} failed ({type(error).__name__}: {error})", sent=True)


class Sessions:
    """A few sessions shared by short reads; the next caller takes the one used last."""

    def __init__(self, make: Callable[[], Session], *, size_max: int, wait_s: float) -> None:
        """Prepare the sessions; they open on demand.

        Args:
            make: Makes one.
            size_max: Sessions at most.
            wait_s: Seconds that a caller waits for a free one before `StoreUnavailable`.
        """
        self._idle = [make() for _ in range(size_max)]
        self._all = tuple(self._idle)
        self._wait_s = wait_s
        self._free = asyncio.Semaphore(size_max)

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[Session]:
        """Borrow a session."""
        try:
            async with asyncio.timeout(self._wait_s):
                await self._free.acquire()
        except TimeoutError:
            raise StoreUnavailable(
                f"no connection was free within {self._wait_s:g} s: raise read_connections_max"
            ) from None
        session = self._idle.pop()
        try:
            yield session
        finally:
            self._idle.append(session)
            self._free.release()

    async def close(self) -> None:
        """Close every session."""
        for session in self._all:
            await session.close()
