"""The connections to one relay: bounded, reused, never shared.

Who wants to send first gets a slot, in the order of asking; slots bound the open connections.  The
holder takes the connection that was used last (so that those too many age out) or opens one; opening
happens outside any lock, two at a time.  A connection comes back only if its last transaction ended
with a clean reply.  It serves a bounded number of mails, a bounded time, and is idle for less than
relays tolerate (Amazon SES hangs up after 10 s).  There are no test commands: a reused connection
that has died shows at its first command, when nothing is lost.

A relay that refuses a further connection while it serves others has told its limit: the number of
slots shrinks to what works, and grows again by one a minute.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from taskq.mail.smtp import Connection
from taskq.mail.trace import Trace

__all__ = ["Narrowed", "Pool", "PoolLimits"]


class Narrowed(Exception):
    """The relay serves no more connections than are open: the slot at hand is one too many."""


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Bounds of a pool."""

    connections_max: int = 10
    """Open connections."""
    connects_max: int = 2
    """Connections being opened at once: a relay that is coming up is not stormed."""
    messages_max: int = 100
    """Mails per connection, what most relays allow."""
    idle_s: float = 8.0
    """Seconds that an unused connection is kept."""
    age_s: float = 300.0
    """Seconds that a connection is kept, so that a changed DNS entry is followed."""
    quit_s: float = 2.0
    """Seconds to wait for the reply to QUIT."""
    slot_wait_s: float = 120.0
    """Seconds to wait for a slot; whoever waits longer does better to let its worker go."""
    regrow_s: float = 60.0
    """Seconds until one slot that the relay refused is tried again."""


class Pool:
    """The connections to one relay.

    Args:
        connect: Opens one connection, within limits of its own.
    """

    def __init__(self, connect: Callable[[Trace], Awaitable[Connection]], limits: PoolLimits) -> None:
        self._connect = connect
        self._limits = limits
        self._slots_max = limits.connections_max
        self._slots_used = 0
        self._shrunk_at = 0.0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._connecting = asyncio.Semaphore(limits.connects_max)
        self._opening = 0
        self._idle: list[Connection] = []
        self._leased: set[Connection] = set()
        self._retiring: set[Connection] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.closed = False
        """Whether `close` was called."""

    @property
    def connections(self) -> int:
        """Connections that are open: in use, idle or saying goodbye."""
        return len(self._leased) + len(self._idle) + len(self._retiring)

    @asynccontextmanager
    async def slot(self) -> AsyncGenerator[None]:
        """Hold one slot: the right to use one connection.

        Raises:
            TimeoutError: None became free within `slot_wait_s`.
        """
        await self._acquire()
        try:
            yield
        finally:
            self._slots_used -= 1
            self._regrow()
            self._grant()

    def take(self) -> Connection | None:
        """Return the connection that was used last, if there is a good one; the caller holds a slot."""
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection = self._idle.pop()
            if self._fresh(connection, now):
                self._leased.add(connection)
                return connection
            self._retire(connection)
        return None

    async def open(self, trace: Trace) -> Connection:
        """Open a connection; the caller holds a slot and `trace` is told how it goes.

        Raises:
            SmtpFailure: The relay can't be reached or does not want us.
            Narrowed: While waiting for its turn the pool shrank to what is open: wait for another slot.
        """
        async with self._connecting:
            if self._others() >= self._slots_max:
                raise Narrowed
            await self._retired()
            self._opening += 1
            try:
                connection = await self._connect(trace)
            finally:
                self._opening -= 1
        self._leased.add(connection)
        return connection

    def give_back(self, connection: Connection) -> None:
        """Take a connection back after a transaction, however that ended."""
        self._leased.discard(connection)
        connection.idle_since = asyncio.get_running_loop().time()
        if self.closed or not connection.usable:
            self._retire(connection)
            return
        self._idle.append(connection)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._limits.idle_s, self._expire)

    def shrink(self) -> bool:
        """Note that the relay refused one more connection; False when no other one is in use."""
        others = self._others()
        if others == 0:
            return False
        self._slots_max = min(self._slots_max, others)
        self._shrunk_at = asyncio.get_running_loop().time()
        return True

    def widen(self) -> None:
        """Forget what `shrink` has learnt: the relay was going down, which is no limit."""
        self._slots_max = self._limits.connections_max

    async def close(self) -> None:
        """Close what is idle, politely but within `quit_s`; what is in use closes when it comes back."""
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._idle:
            self._retire(self._idle.pop())
        await self._retired()

    def _others(self) -> int:
        """Count what is open, or being opened, at a moment when the caller itself has no connection."""
        return len(self._leased) + len(self._idle) + self._opening

    async def _acquire(self) -> None:
        if self._slots_used < self._slots_max and not self._waiters:
            self._slots_used += 1
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(self._limits.slot_wait_s):
                await waiter  # `_grant` has counted us when it ends
        except BaseException:
            if waiter.done() and not waiter.cancelled():
                self._slots_used -= 1
                self._grant()
            elif waiter in self._waiters:  # else `_grant` has met it already, and passed it over
                self._waiters.remove(waiter)
            raise

    def _grant(self) -> None:
        while self._waiters and self._slots_used < self._slots_max:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self._slots_used += 1
                waiter.set_result(None)

    def _regrow(self) -> None:
        """Try one more slot when the last refusal is long enough ago."""
        if self._slots_max < self._limits.connections_max:
            now = asyncio.get_running_loop().time()
            if now - self._shrunk_at >= self._limits.regrow_s:
                self._slots_max, self._shrunk_at = self._slots_max + 1, now

    def _fresh(self, connection: Connection, now: float) -> bool:
        limits = self._limits
        return (
            connection.usable
            and connection.transactions < limits.messages_max
            and now - connection.idle_since < limits.idle_s
            and now - connection.opened_at < limits.age_s
        )

    def _retire(self, connection: Connection) -> None:
        connection.retire(self._limits.quit_s)
        if not connection.closed.done():
            self._retiring.add(connection)
            connection.closed.add_done_callback(lambda _: self._retiring.discard(connection))

    async def _retired(self) -> None:
        """Wait until those that said goodbye are gone, so that a new one does not exceed the bound."""
        for connection in tuple(self._retiring):
            await asyncio.wait([connection.closed], timeout=self._limits.quit_s * 2)

    def _expire(self) -> None:
        """Retire what has been idle too long; the longest idle come first."""
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._idle and now - self._idle[0].idle_since >= self._limits.idle_s:
            self._retire(self._idle.pop(0))
        if self._idle:
            due_at = self._idle[0].idle_since + self._limits.idle_s
            self._timer = loop.call_at(due_at, self._expire)
