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
async def batching(size_max: int = 100, wait_s: float | None = None) -> AsyncIterator[tuple[Batch[int, int], Disk]]:
    disk = Disk()
    batch: Batch[int, int] = Batch(disk.flush, size_max=size_max, wait_s=wait_s)
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


async def test_batch_turns_a_caller_away_when_the_flush_takes_too_long():
    async with batching(wait_s=0.02) as (batch, disk):
        with pytest.raises(TimeoutError):
            await batch.put(1)

        assert disk.batches == [[1]]
        disk.go_on.set()
        await batch.empty()


async def test_batch_turns_away_those_who_queue_and_flushes_their_items():
    async with batching(size_max=1, wait_s=0.02) as (batch, disk):
        batch.add(0)
        async with asyncio.TaskGroup() as group:
            turned_away = [group.create_task(refusal(batch, n)) for n in (1, 2)]

        assert [await caller for caller in turned_away] == ["too late", "too late"]
        disk.go_on.set()
        await batch.empty()
        assert disk.batches == [[0], [1], [2]]


async def test_batch_gives_every_caller_the_same_time():
    """Each began when the one before was turned away, while the same flush went on."""
    loop = asyncio.get_running_loop()
    async with batching(wait_s=0.05) as (batch, disk):
        waits: list[float] = []
        for n in range(3):
            began = loop.time()
            await refusal(batch, n)
            waits.append(loop.time() - began)

        assert min(waits) >= 0.05
        assert max(waits) < 0.5
        last = asyncio.ensure_future(batch.put(3))
        await asyncio.sleep(0)
        disk.go_on.set()
        assert await last == 30


async def test_batch_keeps_a_caller_that_is_answered_in_time():
    async with batching(wait_s=0.02) as (batch, disk):
        disk.go_on.set()
        assert await batch.put(1) == 10

        disk.go_on.clear()
        with pytest.raises(TimeoutError):
            await batch.put(2)

        disk.go_on.set()
        assert await batch.put(3) == 30


async def refusal(batch: Batch[int, int], item: int) -> str:
    with pytest.raises(TimeoutError):
        await batch.put(item)
    return "too late"
