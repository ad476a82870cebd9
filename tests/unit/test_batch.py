"""Natural batching: what queued during a flush is the next batch."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from taskq.batch import Batch


class Disk:
    """A flush that waits until it is told to go on."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go_on = asyncio.Event()
        self.began = asyncio.Event()

    async def flush(self, items: list[int]) -> list[int | BaseException]:
        self.batches.append(items)
        self.began.set()
        await self.go_on.wait()
        return [ValueError(f"{item}") if item < 0 else item * 10 for item in items]


@contextlib.asynccontextmanager
async def batching(size_max: int = 100) -> AsyncIterator[tuple[Batch[int, int], Disk]]:
    disk = Disk()
    batch: Batch[int, int] = Batch(disk.flush, size_max=size_max)
    async with asyncio.TaskGroup() as group:
        runner = group.create_task(batch.run())
        yield batch, disk
        runner.cancel()


async def test_batch_flushes_an_item_alone_when_idle():
    async with batching() as (batch, disk):
        disk.go_on.set()

        result = await batch.put(7)

        assert result == 70
        assert disk.batches == [[7]]


async def test_batch_gathers_what_comes_during_a_flush():
    async with batching() as (batch, disk), asyncio.TaskGroup() as group:
        first = group.create_task(batch.put(1))
        await disk.began.wait()
        others = [group.create_task(batch.put(n)) for n in (2, 3, 4)]
        await asyncio.sleep(0)

        disk.go_on.set()

        assert [await caller for caller in (first, *others)] == [10, 20, 30, 40]
        assert disk.batches == [[1], [2, 3, 4]]


async def test_batch_keeps_to_its_size_when_more_wait():
    async with batching(size_max=2) as (batch, disk):
        for n in range(5):
            batch.add(n)

        disk.go_on.set()
        await batch.empty()

        assert disk.batches == [[0, 1], [2, 3], [4]]


async def test_batch_raises_to_the_one_caller_whose_item_failed():
    async with batching() as (batch, disk), asyncio.TaskGroup() as group:
        group.create_task(batch.put(1))
        await disk.began.wait()
        good = group.create_task(batch.put(2))
        batch.add(-3)

        async def bad() -> None:
            with pytest.raises(ValueError, match="-4"):
                await batch.put(-4)

        refused = group.create_task(bad())
        await asyncio.sleep(0)
        disk.go_on.set()

        assert await good == 20
        await refused


async def test_batch_flushes_an_item_whose_caller_hung_up():
    async with batching() as (batch, disk), asyncio.TaskGroup() as group:
        group.create_task(batch.put(1))
        await disk.began.wait()
        gone = group.create_task(batch.put(2))
        stays = group.create_task(batch.put(3))
        await asyncio.sleep(0)

        gone.cancel()
        disk.go_on.set()

        assert await stays == 30
        assert disk.batches == [[1], [2, 3]]


async def test_batch_length_counts_the_flush_under_way():
    async with batching(size_max=2) as (batch, disk):
        for n in range(3):
            batch.add(n)
        await disk.began.wait()

        assert len(batch) == 3

        disk.go_on.set()
        await batch.empty()

        assert len(batch) == 0


async def test_batch_is_empty_at_once_when_nothing_was_added():
    async with batching() as (batch, _):
        await batch.empty()

        assert len(batch) == 0
