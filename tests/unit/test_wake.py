"""When the dispatcher looks: events, the two timers and the mask.  Time is real, the spans are short."""

import asyncio
import time

import pytest

from taskq import wake as module
from taskq.wake import BUSY_NOTES, POLL_MAX_S, POLL_MIN_S, Wake

LONG_S = 60.0


class Notes:
    """Signals that are only noted."""

    def __init__(self) -> None:
        self.masks: list[bool] = []
        self.relays = 0

    def mask(self, on: bool) -> None:  # noqa: FBT001 - the signature is the caller's
        self.masks.append(on)

    def notify_others(self) -> None:
        self.relays += 1


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
async def polled(notes: Notes) -> Wake:
    """One whose full look was just done, so that nothing is due for long."""
    wake = Wake(notes, poll_s=LONG_S)
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


async def test_wake_begins_with_a_full_look(notes: Notes):
    assert await look(Wake(notes, poll_s=LONG_S))


async def test_wake_sleeps_when_nothing_happens(polled: Wake):
    assert await sleeps(polled)


async def test_wake_looks_fully_once_a_poll(notes: Notes):
    wake = Wake(notes, poll_s=0.02)
    wake.polled(0.0)

    assert await look(wake)


async def test_wake_spaces_full_looks_that_take_long(notes: Notes):
    wake = Wake(notes, poll_s=0.001)
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

    assert not await look(polled)


async def test_wake_takes_the_mask_when_notifications_flood(polled: Wake, notes: Notes):
    flood(polled)

    assert notes.masks == [True]


async def test_wake_asks_for_the_mask_again_when_producers_notify_all_the_same(polled: Wake, notes: Notes):
    flood(polled)
    polled.notified()
    assert notes.masks == [True]

    flood(polled)

    assert notes.masks == [True, True]


async def test_wake_leaves_the_mask_when_notifications_are_few(
    polled: Wake, notes: Notes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "WINDOW_S", 0.0)

    flood(polled)

    assert notes.masks == []


async def test_wake_looks_often_while_masked(polled: Wake):
    flood(polled)
    await look(polled)

    assert not await look(polled)
    assert not await look(polled)


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


async def test_wake_keeps_the_mask_and_wakes_the_others_when_no_slot_is_free(
    polled: Wake, notes: Notes, monkeypatch: pytest.MonkeyPatch
):
    polled.saturated()
    assert notes.relays == 0  # without the mask producers wake them
    flood(polled)

    polled.saturated()
    polled.saturated()
    assert notes.relays == 1
    monkeypatch.setattr(module, "RELAY_S", 0.0)
    polled._relay_at = 0.0
    polled.saturated()
    polled.saturated()

    assert notes.relays == 3
    assert notes.masks == [True]


async def test_wake_drops_the_mask_when_no_slot_is_free_for_long(
    polled: Wake, notes: Notes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "WINDOW_S", LONG_S)
    monkeypatch.setattr(module, "SATURATED_S", 0.03)
    flood(polled)

    while notes.masks == [True]:
        polled.saturated()
        await look(polled)

    assert notes.masks == [True, False]


async def test_wake_drops_the_mask_after_a_while_without_work(
    polled: Wake, notes: Notes, monkeypatch: pytest.MonkeyPatch
):
    flood(polled)
    monkeypatch.setattr(module, "WINDOW_S", 0.03)

    while notes.masks == [True]:
        await look(polled)

    assert notes.masks == [True, False]


async def test_wake_looks_again_after_the_mask_for_commits_under_way(
    polled: Wake, notes: Notes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "WINDOW_S", 0.03)
    monkeypatch.setattr(module, "ECHOES_S", (0.02, 0.04, 0.06))
    flood(polled)
    while notes.masks == [True]:
        await look(polled)
    monkeypatch.setattr(module, "WINDOW_S", LONG_S)

    while polled._echoes:  # two that a busy machine lets pass are made up for by one look
        assert not await look(polled)

    assert await sleeps(polled)
