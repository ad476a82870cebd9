"""How fast one relay is given mails: evenly, and slower once it asks for that; pure, the clock is passed in.

Without a limit everybody goes at once.  With one, mails go at even distances: whoever's turn is near
waits for it, whoever's is far is told when to come back, each a turn later than the one before, so
that a thousand who wait come one after the other.

A relay that says "too fast" halves the rate; each ten seconds without such words give a twentieth of
the full rate back (additive increase, multiplicative decrease).  Where no limit was set the rate just
seen is halved, and the limit is forgotten once it is reached again.
"""

__all__ = ["PATIENCE_S", "Rate"]

PATIENCE_S = 1.0  # a turn that is nearer than this is waited for, and is ours
HORIZON_S = 600.0  # nobody is told to come back later than that
LEARNT_HORIZON_S = 100.0  # nor later than that for a limit that nobody set: it may be gone by then
COOL_S = 1.0  # refusals that come together are one
STEP_S = 10.0  # between two steps of recovery
STEP_SHARE = 0.05  # of the full rate, for each step
SEEN_PER_S_MIN = 10.0  # less says how little there was to send, not how much the relay takes
FLOOR_PER_S = 1 / 60


class Rate:
    """Gives out turns.

    Args:
        limit_per_s: Mails a second at most; None: as fast as the relay takes them.
    """

    def __init__(self, limit_per_s: float | None = None) -> None:
        self._limit_per_s = limit_per_s
        self._full_per_s = limit_per_s or 0.0  # what recovery leads to
        self.per_s = limit_per_s
        """Mails a second now; None: no limit."""
        self._next_at = 0.0  # the next turn that is free
        self._later_at = 0.0  # the last time that somebody was told to come back at
        self._slowed_at = self._stepped_at = float("-inf")
        self._seen_since = self._seen_per_s = 0.0
        self._seen = 0

    def take(self, now: float) -> float:
        """Return the seconds until this mail's turn; a turn beyond `PATIENCE_S` is not kept: ask again then."""
        per_s = self._recovered(now)
        if per_s is None:
            self._count(now)
            return 0.0
        turn_s = 1.0 / per_s
        turn_at = max(now, self._next_at)
        if turn_at - now <= PATIENCE_S:
            self._next_at = turn_at + turn_s
            return turn_at - now
        horizon_s = HORIZON_S if self._limit_per_s else LEARNT_HORIZON_S
        self._later_at = max(self._later_at, turn_at) + turn_s
        if self._later_at > now + horizon_s:
            self._later_at = turn_at  # the others are spread over the same time
        return min(self._later_at - now, horizon_s)

    def slow_down(self, now: float) -> bool:
        """Halve the rate; False when that has just been done."""
        if now - self._slowed_at < COOL_S:
            return False
        if self.per_s is None:
            self._count(now)
            self.per_s = self._full_per_s = max(SEEN_PER_S_MIN, self._seen_per_s, float(self._seen))
        self.per_s = max(self.per_s / 2, min(FLOOR_PER_S, self._full_per_s / 16))
        self._slowed_at = self._stepped_at = now
        self._next_at = max(self._next_at, now)
        return True

    def _recovered(self, now: float) -> float | None:
        """Return the rate after the steps that time has earned."""
        if self.per_s is not None and self.per_s < self._full_per_s and now - self._stepped_at >= STEP_S:
            steps = int((now - self._stepped_at) / STEP_S)
            self._stepped_at += steps * STEP_S
            self.per_s += steps * STEP_SHARE * self._full_per_s
            if self.per_s >= self._full_per_s:
                self.per_s = self._limit_per_s
        return self.per_s

    def _count(self, now: float) -> None:
        """Measure what goes through while there is no limit."""
        passed_s = now - self._seen_since
        if passed_s >= 1.0:
            self._seen_per_s, self._seen, self._seen_since = self._seen / passed_s, 0, now
        self._seen += 1
