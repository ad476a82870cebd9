"""A relay's circuit breaker: pure, the clock is passed in.

Closed, everybody may go.  A failure of the relay opens it for a while: 1 s at first, twice as long
after each further failure, 60 s at most, or as long as the failure itself asks for.  When that time
has passed one caller goes as a probe; its success closes the breaker, its failure opens it again.

Callers that fail together are one failure: each enters with a ticket, and news that is older than
the breaker's last change does not count.
"""

from dataclasses import dataclass

__all__ = ["Breaker", "Ticket"]

PROBE_WAIT_S = 5.0  # until another look while a probe is under way, which may take as long as a connect


@dataclass(frozen=True, slots=True)
class Ticket:
    """Admission to one try."""

    generation: int
    """Which opening of the breaker it belongs to."""


class Breaker:
    """Decides who may try a relay, and when.

    Args:
        floor_s: Seconds that the first failure keeps it open.
        cap_s: Seconds that repeated failures keep it open at most.
    """

    def __init__(self, *, floor_s: float = 1.0, cap_s: float = 60.0) -> None:
        self._floor_s = floor_s
        self._cap_s = cap_s
        self._failures = 0
        self._generation = 0
        self._closed_ticket = Ticket(0)
        self._open_until: float | None = None
        self._probing = False

    @property
    def open(self) -> bool:
        """Whether it keeps callers out (all, or all but a probe)."""
        return self._open_until is not None

    def wait_s(self, now: float) -> float:
        """Return the seconds until a try makes sense; 0 when it does now."""
        if self._open_until is None:
            return 0.0
        return PROBE_WAIT_S if self._probing else max(0.0, self._open_until - now)

    def enter(self, now: float) -> Ticket | None:
        """Admit a caller, who must then say how it went; None: not now."""
        if self._open_until is not None:
            if self._probing or now < self._open_until:
                return None
            self._probing = True
        return self._closed_ticket

    def succeed(self, ticket: Ticket) -> bool:
        """Note that the relay works; True when that closes the breaker."""
        if ticket.generation != self._generation:
            return False
        was_open, self._open_until, self._probing, self._failures = self.open, None, False, 0
        return was_open

    def fail(self, ticket: Ticket, now: float, *, pause_s: float | None = None) -> float | None:
        """Note that the relay does not work.

        Args:
            ticket: What `enter` gave.
            now: The clock.
            pause_s: Seconds to stay open, where the failure names them; else the back-off.

        Returns:
            The seconds that it is now open for; None when the news was old.
        """
        if ticket.generation != self._generation:
            return None
        self._failures += 1
        self._generation += 1
        self._closed_ticket = Ticket(self._generation)
        if pause_s is None:
            pause_s = min(self._cap_s, self._floor_s * 2.0 ** min(self._failures - 1, 60))
        self._open_until, self._probing = now + pause_s, False
        return pause_s

    def abandon(self, ticket: Ticket) -> None:
        """Note that a try ended without news; a probe's place becomes free for the next caller."""
        if ticket.generation == self._generation:
            self._probing = False
