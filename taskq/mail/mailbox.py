"""Captured mails on their way into the database, and those who wait for one.

Mails are stored a batch at a time: whatever has queued while the last INSERT was under way is the
next batch, and a caller returns when its mails are committed.

Who waits sits in memory and asks the database twice at most: when it comes, because the mail may be
there already, and when its time is over, because a notification may have been lost.  In between,
every batch that is committed, here or (by a notification) on another instance, names the ids that
it lies between, and one statement asks about these ids for all who wait.  Ids are given out before
they are committed, so nobody keeps a mark of what was seen: a lower id may come later.
"""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from taskq.batch import Batch
from taskq.errors import StoreRefused, StoreUnavailable, TooManyWaiters
from taskq.mailstore import CapturedMail, MailStore, StoredMail, Wanted

__all__ = ["CHANNEL", "Mailbox"]

logger = logging.getLogger("taskq.mail.mailbox")

CHANNEL = "taskq_inbox"
BATCH_MAX = 500
BATCH_BYTES_MAX = 16 * 1024 * 1024  # of messages in one INSERT, except that one mail may be larger
LOOK_AGAIN_S = 1.0  # after a look for those who wait that the database did not answer
ALIVE_EVERY_S = 1.0  # between two questions whether a caller is still there
ID_MAX = 2**63 - 1
EVERYTHING = (0, ID_MAX)


@dataclass(frozen=True, slots=True)
class _Waiter:
    wanted: Wanted
    after: int
    found: asyncio.Future[int]


class Mailbox:
    """Stores captured mails and lets callers wait for them."""

    def __init__(self, store: MailStore, *, waiters_max: int, tell_others: Callable[[str, str], None]) -> None:
        """Prepare; `run` starts it.

        Args:
            store: Where mails are kept.
            waiters_max: Callers that may wait at a time.
            tell_others: Sends a payload on a channel to the other instances.
        """
        self._store = store
        self._waiters_max = waiters_max
        self._tell_others = tell_others
        self._captures: Batch[Sequence[CapturedMail], None] = Batch(self._store_batch, size_max=BATCH_MAX)
        self._waiters: dict[int, _Waiter] = {}
        self._numbers = itertools.count()
        self._news: tuple[int, int] | None = None
        self._arrived = asyncio.Event()
        self.closed = False
        """Whether nobody may wait any more: the process stops."""

    @property
    def waiting(self) -> int:
        """How many callers wait."""
        return len(self._waiters)

    async def capture(self, *mails: CapturedMail) -> None:
        """Store mails; return once all of them are committed.

        Raises:
            StoreUnavailable: PostgreSQL can't be reached.
            StoreRefused: PostgreSQL refused them.
        """
        await self._captures.put(mails)

    async def wait(
        self, wanted: Wanted, *, after: int, timeout_s: float, alive: Callable[[], bool] = lambda: True
    ) -> StoredMail | None:
        """Return the first mail after id `after` that fits, as soon as it is committed.

        Args:
            wanted: What to wait for.
            after: An id; 0 for any mail, also one that is there already.
            timeout_s: Seconds until None is returned.
            alive: Asked every second; once it is False nobody wants the answer.

        Raises:
            TooManyWaiters: The bound is reached.
            StoreUnavailable: PostgreSQL can't be reached.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        with self._place(_Waiter(wanted, after, loop.create_future())) as waiter:
            mail_id = await self._look_for(waiter)
            while mail_id is None and alive() and not self.closed:
                left_s = until - loop.time()
                if left_s <= 0:
                    mail_id = await self._look_for(waiter)
                    break
                await asyncio.wait({waiter.found}, timeout=min(left_s, ALIVE_EVERY_S))
                mail_id = waiter.found.result() if waiter.found.done() and not self.closed else None
        return None if mail_id is None else await self._store.mail(mail_id)

    def heard(self, payload: str) -> None:
        """Take in what another instance told; an empty payload: anything may have been missed."""
        low, _, high = payload.partition(" ")
        self._note(*((int(low), int(high)) if low.isdecimal() and high.isdecimal() else EVERYTHING))

    async def run(self) -> None:
        """Store mails and answer those who wait; ends by cancellation."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._captures.run())
            group.create_task(self._answer())

    def close(self) -> None:
        """Send those who wait away."""
        self.closed = True
        for waiter in self._waiters.values():
            waiter.found.cancel()

    @contextlib.contextmanager
    def _place(self, waiter: _Waiter) -> Generator[_Waiter]:
        if len(self._waiters) >= self._waiters_max:
            raise TooManyWaiters(
                f"{self._waiters_max} callers wait for mails already: ask again in a moment, or raise inbox_waiters_max"
            )
        number = next(self._numbers)
        self._waiters[number] = waiter
        try:
            yield waiter
        finally:
            del self._waiters[number]

    async def _look_for(self, waiter: _Waiter) -> int | None:
        found = await self._store.awaited([(0, waiter.after, waiter.wanted)], *EVERYTHING)
        return found[0][1] if found else None

    async def _answer(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            news, self._news = self._news, None
            if news is None or not self._waiters:
                continue
            asked = [(number, waiter.after, waiter.wanted) for number, waiter in self._waiters.items()]
            try:
                found = await self._store.awaited(asked, *news)
            except (StoreUnavailable, StoreRefused) as error:
                logger.warning("those who wait for mails can't be answered yet", extra={"error": str(error)})
                self._note(*news)
                await asyncio.sleep(LOOK_AGAIN_S)
                continue
            for number, mail_id in found:
                waiter = self._waiters.get(number)
                if waiter is not None and not waiter.found.done():
                    waiter.found.set_result(mail_id)

    def _note(self, low: int, high: int) -> None:
        if self._news is not None:
            low, high = min(low, self._news[0]), max(high, self._news[1])
        self._news = low, high
        self._arrived.set()

    async def _store_batch(self, calls: list[Sequence[CapturedMail]]) -> Sequence[BaseException | None]:
        try:
            for mails in _bounded([mail for call in calls for mail in call]):
                low, high = await self._store.capture(mails)
                self._note(low, high)
                self._tell_others(CHANNEL, f"{low} {high}")
        except (StoreUnavailable, StoreRefused) as error:
            return [error] * len(calls)
        return [None] * len(calls)


def _bounded(mails: list[CapturedMail]) -> Generator[list[CapturedMail]]:
    """Split mails so that no part but a single large mail exceeds the bytes of one INSERT."""
    part: list[CapturedMail] = []
    size = 0
    for mail in mails:
        if part and size + len(mail.message) > BATCH_BYTES_MAX:
            yield part
            part, size = [], 0
        part.append(mail)
        size += len(mail.message)
    if part:
        yield part
