"""When the dispatcher looks: events, the two timers and the mask.  Time is real, the spans are short."""

import asyncio
import time

import pytest

from taskq import wake as module
from taskq.wake import BUSY_NOTES, POLL_MAX_S, POLL_MIN_S, Wake

LONG_S = 60.0


class Mask:
    def __init__(self) -> None:
        self.calls: list[bool] = []

    def __call__(self, on: bool) -> None:  # noqa: FBT001 - the signature is the caller's
        self.calls.append(on)


@pytest.fixture
def mask() -> Mask:
    return Mask()


@pytest.fixture
async def polled(mask: Mask) -> Wake:
    """One whose full look was just done, so that nothing is due for long."""
    wake = Wake(mask, poll_s=LONG_S)
    wake.polled(0.0)
    return wake


async def look(wake: Wake, within_s: float = 5.0) -> bool:
    async with asyncio.timeout(within_s):
        return await wake.wait()


async def sleeps(wake: Wake, for_s: float = 0.05) -> bool:
    try:
        await look(wake, for_s)
    except TimeoutError:
        return True
    return False


def flood(wake: Wake) -> None:
    for _ in range(BUSY_NOTES + 1):
        wake.notified()


async def test_wake_begins_with_a_full_look(mask: Mask):
    assert await look(Wake(mask, poll_s=LONG_S))


async def test_wake_sleeps_when_nothing_happens(polled: Wake):
    assert await sleeps(polled)


async def test_wake_looks_fully_once_a_poll(mask: Mask):
    wake = Wake(mask, poll_s=0.02)
    wake.polled(0.0)

    assert await look(wake)


async def test_wake_spaces_full_looks_that_take_long(mask: Mask):
    wake = Wake(mask, poll_s=0.001)
    wake.polled(10.0)

    assert await sleeps(wake)


async def test_wake_looks_once_when_told(polled: Wake):
    polled.now()

    assert not await look(polled)
    assert await sleeps(polled)


async def test_wake_interrupts_a_wait_under_way(polled: Wake):
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(look(polled))
        await asyncio.sleep(0)
        polled.notified()

        assert not await waiting


async def test_wake_looks_when_a_task_falls_due(polled: Wake):
    began = time.monotonic()
    polled.due_in(0.1)
    await look(polled)  # only learns of the earlier moment

    assert not await look(polled)
    assert time.monotonic() - began >= 0.1


async def test_wake_keeps_the_earlier_of_two_moments(polled: Wake):
    polled.due_in(0.05)
    await look(polled)

    polled.due_in(LONG_S)

    assert not await look(polled, 1.0)


async def test_wake_takes_the_mask_when_notifications_flood(polled: Wake, mask: Mask):
    flood(polled)

    assert mask.calls == [True]


async def test_wake_takes_the_mask_once(polled: Wake, mask: Mask):
    flood(polled)
    flood(polled)

    assert mask.calls == [True]


async def test_wake_leaves_the_mask_when_notifications_are_few(
    polled: Wake, mask: Mask, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "WINDOW_S", 0.0)

    flood(polled)

    assert mask.calls == []


async def test_wake_looks_often_while_masked(polled: Wake):
    flood(polled)
    await look(polled)

    assert not await look(polled, 0.2)
    assert not await look(polled, 0.2)


async def test_wake_looks_less_often_when_masked_looks_find_nothing(polled: Wake):
    flood(polled)
    for _ in range(50):
        polled.found(0)
    assert polled._masked_poll_s == POLL_MAX_S

    polled.found(1)

    assert polled._masked_poll_s == POLL_MIN_S


async def test_wake_counts_nothing_when_it_is_not_masked(polled: Wake):
    polled.found(0)

    assert polled._masked_poll_s == POLL_MIN_S


async def test_wake_drops_the_mask_at_once_when_no_slot_is_free(polled: Wake, mask: Mask):
    flood(polled)

    polled.saturated()
    polled.saturated()

    assert mask.calls == [True, False]


async def test_wake_drops_the_mask_after_a_while_without_work(
    polled: Wake, mask: Mask, monkeypatch: pytest.MonkeyPatch
):
    flood(polled)
    monkeypatch.setattr(module, "WINDOW_S", 0.03)

    while mask.calls == [True]:
        await look(polled, 0.2)

    assert mask.calls == [True, False]


async def test_wake_looks_again_after_the_mask_for_commits_under_way(polled: Wake, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "ECHOES_S", (0.02, 0.04, 0.06))
    flood(polled)
    await look(polled)
    polled.saturated()

    looks = [await look(polled, 0.2) for _ in range(3)]

    assert looks == [False, False, False]
    assert await sleeps(polled)
