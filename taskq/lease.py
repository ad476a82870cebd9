"""The lease of this process, as both threads see it: the control thread renews it, the main one asks.

The database clock decides when a lease ends; this side only ever stops sooner.  Time counts here
from *before* a renewal was sent and on the monotonic clock, so neither a slow answer nor a clock
that jumps can make a lost lease look held.
"""

import time
from pathlib import Path

__all__ = ["Lease", "process_namespace", "process_start"]

MARGIN = 0.15  # of the lease: so much earlier than the database we stop trusting it


class Lease:
    """Whether, and under which id, this process owns the runs it starts."""

    def __init__(self, lease_s: float) -> None:
        """Begin without a lease.

        Args:
            lease_s: Seconds until an unrenewed lease may be ended by others.
        """
        self.id = 0
        self._trusted_s = lease_s * (1 - MARGIN)
        self._until = 0.0

    def renewed(self, lease_id: int, asked_at: float) -> None:
        """Note a registration or renewal that was asked for at `asked_at` (monotonic seconds)."""
        self._until = asked_at + self._trusted_s
        self.id = lease_id

    def holds(self) -> bool:
        """Whether effects may be started now."""
        return time.monotonic() < self._until


def process_namespace() -> str | None:
    """Name this boot of this machine and its process ids; None where /proc does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def process_start(pid: int) -> int | None:
    """Return the start of a process in clock ticks since boot; None when there is no such process.

    A process id alone may name a later process; with its start it names one for ever.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])
