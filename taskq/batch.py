"""Natural batching: whatever has queued while the last flush was under way is the next batch.

No timer: an item that comes to an idle batch is flushed at once, alone; under load the batches grow
by themselves, exactly as far as the disk is slow.  A thousand unrelated callers share one commit
without knowing of each other.  Intake, settling and the inbox all write this way, each on a
connection of its own, and each is bounded.

How long a caller waits can be bounded too.  One timer looks after all of them: it sleeps until the
caller that has waited longest would be overdue, so it costs nothing per item.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

__all__ = ["Batch"]

WATCH_STEP = 0.02  # of `wait_s` between two looks at the callers: each look passes all of them

T = TypeVar("T")
R = TypeVar("R")


class Batch(Generic[T, R]):
    """Gather items and flush them together, one flush at a time, in the order they came."""

    def __init__(
        self,
        flush: Callable[[list[T]], Awaitable[Sequence[R | BaseException]]],
        *,
        size_max: int,
        wait_s: float | None = None,
    ) -> None:
        """Prepare an empty batch.

        Args:
            flush: Writes the items and returns one result for each, in order; an exception among the
                results is raised to that item's caller alone.  It must not raise itself.
            size_max: Items per flush.
            wait_s: Seconds that `put` waits for its result, to 2 %; None: as long as it takes.
        """
        self._flush = flush
        self._size_max = size_max
        self._wait_s = wait_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._items: list[T] = []
        self._callers: list[tuple[float, asyncio.Future[R]] | None] = []
        self._served: list[tuple[float, asyncio.Future[R]] | None] = []
        self._filled = asyncio.Event()
        self._flushed = asyncio.Event()

    def __len__(self) -> int:
        """Items added and not yet flushed, those of the flush under way included."""
        return len(self._items) + len(self._served)

    async def put(self, item: T) -> R:
        """Add `item` and wait for its result.

        A caller that is cancelled meanwhile takes nothing back: the item is flushed all the same.

        Raises:
            TimeoutError: There was no result within `wait_s`; the item is flushed all the same.
        """
        loop = self._loop
        if loop is None:  # asked once: Python 3.11 calls the kernel to look
            loop = self._loop = asyncio.get_running_loop()
        caller: asyncio.Future[R] = loop.create_future()
        now = loop.time()
        self._items.append(item)
        self._callers.append((now, caller))
        self._filled.set()
        if self._watch is None and self._wait_s is not None:
            self._watch = loop.call_at(now + self._wait_s, self._turn_away, loop, self._wait_s)
        return await caller

    def add(self, item: T) -> None:
        """Add `item` without waiting."""
        self._items.append(item)
        self._callers.append(None)
        self._filled.set()

    async def run(self) -> None:
        """Flush for ever; ends by cancellation."""
        while True:
            await self._filled.wait()
            items, self._items = self._items[: self._size_max], self._items[self._size_max :]
            callers, self._callers = self._callers[: self._size_max], self._callers[self._size_max :]
            self._served = callers
            if not self._items:
                self._filled.clear()
            results = await self._flush(items)
            self._served = []
            for entry, result in zip(callers, results, strict=True):
                if entry is None or (caller := entry[1]).done():
                    continue
                if isinstance(result, BaseException):
                    caller.set_exception(result)
                else:
                    caller.set_result(result)
            self._flushed.set()

    async def empty(self) -> None:
        """Wait until everything added so far is flushed."""
        while len(self):
            self._flushed.clear()
            await self._flushed.wait()

    def _turn_away(self, loop: asyncio.AbstractEventLoop, wait_s: float) -> None:
        """Raise to the callers that are overdue, and come back for the one that will be next."""
        self._watch = None
        now = loop.time()
        for entry in itertools.chain(self._served, self._callers):  # the longest waiting first
            if entry is None or (caller := entry[1]).done():
                continue
            if entry[0] + wait_s > now:
                due = max(entry[0] + wait_s, now + wait_s * WATCH_STEP)
                self._watch = loop.call_at(due, self._turn_away, loop, wait_s)
                return
            caller.set_exception(TimeoutError())
