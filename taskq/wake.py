"""When to look for work: an event, two timers and the mask.

A notification only ever wakes; the dispatcher then looks at its own pace.  Losing every one of them
costs at most `poll_s`: at each poll the dispatcher looks fully, past its low-water marks.  Tasks
that are due later are met by a timer set to the earliest of them.

When SQL producers notify fast (more than `BUSY_NOTES` in `WINDOW_S`), the dispatcher takes the
mask, as a network card's driver turns its interrupts off: producers see the lock and stay silent,
the dispatcher looks every 2 to 20 ms.  After `WINDOW_S` without work it drops the mask and looks at
once and thrice more, for producers whose commit was still under way.

Without a free slot it keeps the mask, for `SATURATED_S` at most, and wakes the other instances
itself: dropping it at every such moment would let a steady load of producers notify all the time.
"""

import asyncio
import time
from typing import Protocol

__all__ = ["Signals", "Wake"]

WINDOW_S = 0.25
SATURATED_S = 1.0
RELAY_S = 0.05  # between two wakes of the others while no slot is free
BUSY_NOTES = 20
POLL_MIN_S, POLL_MAX_S = 0.002, 0.02
ECHOES_S = (0.05, 0.25, 1.0)


class Signals(Protocol):
    """What others are told."""

    def mask(self, on: bool) -> None:  # noqa: FBT001 - a switch is a boolean
        """Hold or drop the mask; holding it again tries again, where a producer was in the way."""

    def notify_others(self) -> None:
        """Wake the other instances."""


class Wake:
    """Tells the dispatcher when to look."""

    def __init__(self, signals: Signals, *, poll_s: float) -> None:
        """Begin with a full look due at once.

        Args:
            signals: To producers and to other instances.
            poll_s: Seconds between full looks.
        """
        self._signals = signals
        self._poll_s = poll_s
        self._event = asyncio.Event()
        self._next_poll = 0.0
        self._due = float("inf")
        self._masked = False
        self._masked_poll_s = POLL_MIN_S
        self._notes = 0
        self._window_ends = 0.0
        self._found_at = 0.0
        self._saturated_at = 0.0
        self._relay_at = 0.0
        self._echoes: list[float] = []
        self._closed = False

    def now(self) -> None:
        """Look as soon as possible."""
        self._event.set()

    def notified(self) -> None:
        """Hear a notification."""
        moment = time.monotonic()
        if moment > self._window_ends:
            self._window_ends, self._notes = moment + WINDOW_S, 0
        self._notes += 1
        if self._notes > BUSY_NOTES and not self._closed:
            if not self._masked:
                self._masked, self._found_at = True, moment
            self._notes = 0
            self._signals.mask(True)
        self._event.set()

    def due_in(self, delay_s: float) -> None:
        """Look in `delay_s` seconds at the latest."""
        at = time.monotonic() + delay_s
        if at < self._due:
            self._due = at
            self._event.set()  # so that a wait under way learns of the earlier moment

    def found(self, count: int) -> None:
        """Say how many tasks the last look brought."""
        if count:
            self._found_at, self._masked_poll_s = time.monotonic(), POLL_MIN_S
        elif self._masked:
            self._masked_poll_s = min(POLL_MAX_S, self._masked_poll_s * 1.5)

    def close(self) -> None:
        """Say that nobody will look any more: drop the mask for good, and let the waiting one go."""
        self._closed = True
        if self._masked:
            self._unmask(time.monotonic())
        self._event.set()

    def saturated(self) -> None:
        """Say that no slot is free: others must hear of new tasks, from us where the mask keeps producers silent."""
        if self._masked:
            self._saturated_at = moment = time.monotonic()
            if moment >= self._relay_at:
                self._relay_at = moment + RELAY_S
                self._signals.notify_others()

    def polled(self, took_s: float) -> None:
        """Note a full look; one that took long is not repeated sooner than 20 times as long."""
        self._next_poll = time.monotonic() + max(self._poll_s, 20 * took_s)

    async def wait(self) -> bool:
        """Wait until it is time to look; return whether the look should be a full one."""
        while True:
            moment = time.monotonic()
            if self._masked and moment - self._found_at > self._patience_s(moment):
                self._unmask(moment)
            if moment >= self._next_poll:
                self._event.clear()
                return True
            if self._event.is_set() or moment >= self._due or (self._echoes and moment >= self._echoes[0]):
                self._event.clear()
                if moment >= self._due:
                    self._due = float("inf")
                self._echoes = [at for at in self._echoes if at > moment]
                return False
            until = min(self._next_poll, self._due, *self._echoes[:1])
            if self._masked:
                until = min(until, moment + self._masked_poll_s)
            try:
                async with asyncio.timeout(until - moment):
                    await self._event.wait()
            except TimeoutError:
                if self._masked:
                    return False

    def _patience_s(self, moment: float) -> float:
        """Return how long the mask is held without work; what waits for a slot is no lack of it."""
        return SATURATED_S if moment - self._saturated_at < WINDOW_S else WINDOW_S

    def _unmask(self, moment: float) -> None:
        self._masked = False
        self._signals.mask(False)
        self._echoes = [moment + delay for delay in ECHOES_S]
