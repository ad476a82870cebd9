"""A bound on bytes held at once, by whoever asks first.

One large request is harmless, sixty at the same moment are not.  Whoever is about to take in bytes asks
for room for all of them before the first; who gets none is told to come back, and those already
under way finish.  Charging bytes as they come would let all of them get halfway.
"""

import contextlib
from collections.abc import Generator

from taskq.errors import IntakeFull

__all__ = ["Budget"]


class Budget:
    """Bytes that may be held at once."""

    def __init__(self, bytes_max: int) -> None:
        """Begin with all of it free.

        Args:
            bytes_max: Bytes at most, of all holders together.
        """
        self._bytes_max = bytes_max
        self.held = 0

    @contextlib.contextmanager
    def hold(self, size: int) -> Generator[None]:
        """Hold `size` bytes of it.

        Raises:
            IntakeFull: So much is not free now.
        """
        if self.held + size > self._bytes_max:
            raise IntakeFull(
                f"{self.held} of {self._bytes_max} bytes for bodies under way are taken, so {size} more find no room: "
                "try again in a moment, or raise body_bytes_in_flight_max"
            )
        self.held += size
        try:
            yield
        finally:
            self.held -= size
