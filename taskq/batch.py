"""Natural batching: whatever has queued while the last flush was under way is the next batch.

No timer: an item that comes to an idle batch is flushed at once, alone; under load the batches grow
by themselves, exactly as far as the disk is slow.  A thousand unrelated callers share one commit
without knowing of each other.  Intake, settling and the inbox all write this way, each on a
connection of its own, and each is bounded.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

__all__ = ["Batch"]

T = TypeVar("T")
R = TypeVar("R")


class Batch(Generic[T, R]):
    """Gather items and flush them together, one flush at a time, in the order they came."""

    def __init__(self, flush: Callable[[list[T]], Awaitable[Sequence[R | BaseException]]], *, size_max: int) -> None:
        """Prepare an empty batch.

        Args:
            flush: Writes the items and returns one result for each, in order; an exception among the
                results is raised to that item's caller alone.  It must not raise itself.
            size_max: Items per flush.
        """
        self._flush = flush
        self._size_max = size_max
        self._items: list[T] = []
        self._callers: list[asyncio.Future[R] | None] = []
        self._filled = asyncio.Event()
        self._flushed = asyncio.Event()
        self._flushing = 0

    def __len__(self) -> int:
        """Items added and not yet flushed, those of the flush under way included."""
        return len(self._items) + self._flushing

    async def put(self, item: T) -> R:
        """Add `item` and wait for its result.

        A caller that is cancelled meanwhile takes nothing back: the item is flushed all the same.
        """
        caller: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._items.append(item)
        self._callers.append(caller)
        self._filled.set()
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
            if not self._items:
                self._filled.clear()
            self._flushing = len(items)
            results = await self._flush(items)
            self._flushing = 0
            for caller, result in zip(callers, results, strict=True):
                if caller is None or caller.done():
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
