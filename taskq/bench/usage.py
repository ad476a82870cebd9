"""What a span of work cost: seconds, processor time here and at the server, bytes of log, memory.

The server's processor time is that of all its processes, read from /proc; None where the server is
elsewhere or there is no /proc.  The peak of memory is that of the program now running, not the one
that `getrusage` tells, which a process inherits from whoever started it.
"""

import os
import platform
import re
import resource
import sys
import time
from pathlib import Path

from taskq import sql
from taskq.database import Session

__all__ = [
    "Meter",
    "busy_s",
    "cpu_here_s",
    "cpu_model",
    "cpu_s",
    "family_cpu_s",
    "memory_peak_mib",
    "percentile",
    "postmaster_of",
    "server_cpu_s",
]

TICKS = os.sysconf("SC_CLK_TCK")
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)


class Meter:
    """Reads the meters at the begin and the end of a span."""

    def __init__(self, session: Session) -> None:
        """Prepare.

        Args:
            session: A connection that nobody else uses meanwhile.
        """
        self._session = session
        self._sql = sql.load("bench")
        self._postmaster: int | None = None
        self._before: tuple[float, float, float | None, int] = (0.0, 0.0, None, 0)

    async def start(self) -> None:
        """Begin the span."""
        self._postmaster = postmaster_of((await self._session.fetch(self._sql["backend"]))[0][0])
        log = int((await self._session.fetch(self._sql["log_position"]))[0][0])
        self._before = (time.perf_counter(), cpu_here_s(), server_cpu_s(self._postmaster), log)

    async def stop(self, tasks: int) -> dict[str, float]:
        """End the span in which `tasks` were done; return its rate and what each cost."""
        seconds, app_s, server_s = time.perf_counter(), cpu_here_s(), server_cpu_s(self._postmaster)
        log = int((await self._session.fetch(self._sql["log_position"]))[0][0])
        began, app_before_s, server_before_s, log_before = self._before
        found = {
            "rate": tasks / (seconds - began),
            "app_us": (app_s - app_before_s) / tasks * 1e6,
            "wal_bytes": (log - log_before) / tasks,
        }
        if server_s is not None and server_before_s is not None:
            found["server_us"] = (server_s - server_before_s) / tasks * 1e6
            found["cpu_us"] = found["app_us"] + found["server_us"]
        return found


def percentile(values: list[float], share: float) -> float:
    """Return the value below which `share` of the values lie; `values` must be sorted."""
    return values[min(len(values) - 1, int(len(values) * share))]


def cpu_here_s() -> float:
    """Return the processor seconds that this process has used."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def memory_peak_mib() -> float:
    """Return the most memory that this process has held."""
    try:
        found = _PEAK.search(Path("/proc/self/status").read_text(encoding="ascii", errors="replace"))
    except OSError:
        found = None
    if found:
        return int(found.group(1)) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def cpu_s(pid: int) -> float | None:
    """Return the processor seconds that a process has used; None where that can't be told."""
    fields = _stat(pid)
    return None if fields is None else (int(fields[11]) + int(fields[12])) / TICKS


def server_cpu_s(postmaster: int | None) -> float | None:
    """Return the processor seconds of a server's processes, those that ended included."""
    fields = _stat(postmaster) if postmaster is not None else None
    if fields is None:
        return None
    ticks = sum(int(field) for field in fields[11:15])
    for entry in os.listdir("/proc"):  # noqa: PTH208 - names suffice, and there are many
        child = _stat(int(entry)) if entry.isdecimal() else None
        if child is not None and int(child[1]) == postmaster:
            ticks += int(child[11]) + int(child[12])
    return ticks / TICKS


def postmaster_of(backend: int) -> int | None:
    """Return the process that started a server process; None when it is not on this machine."""
    try:
        name = Path(f"/proc/{backend}/comm").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = _stat(backend)
    return int(fields[1]) if fields is not None and name.startswith("postgres") else None


def cpu_model() -> str:
    """Name the processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1) if found else platform.processor() or platform.machine()


def busy_s() -> float | None:
    """Return the processor seconds that all programs of this machine have used; None without /proc."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
    except OSError:
        return None
    user, nice, system, _idle, _waiting, interrupts, soft_interrupts, *_ = (int(field) for field in fields[1:])
    return (user + nice + system + interrupts + soft_interrupts) / TICKS


def family_cpu_s() -> float:
    """Return the processor seconds of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return cpu_here_s() + children.ru_utime + children.ru_stime


def _stat(pid: int) -> list[str] | None:
    """Read the fields of /proc/PID/stat from the state on."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()
