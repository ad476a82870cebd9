"""Locks between processes: `flock` on empty files in the root directory.

The kernel drops such a lock when the last descriptor of it is closed, so a killed process leaves no
stale lock and there is nothing to clean up.  A lock stays with whoever inherits the descriptor: that is
how `server.lock` follows PostgreSQL's processes.  The other locks must not be inherited: Python's
descriptors close on exec, and a hook closes them in a forked child too.
"""

import errno
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event

from taskq.errors import ConfigError

__all__ = ["is_free", "poll_until", "release", "try_lock"]

_POLL_S = 0.005
_never = Event()
_owned: set[int] = set()


def try_lock(path: Path, *, shared: bool = False) -> int | None:
    """Lock the file without waiting; return its descriptor, or None if another process is in the way.

    Raises:
        ConfigError: The file can't be opened or locked at all.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            f"lock file {path} can't be opened: {error.strerror}; run taskq as the user who owns {path.parent}, "
            f"or set TASKQ_DATA_DIR to a directory of your own"
        ) from error
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
            return None
        raise ConfigError(
            f"lock file {path} can't be locked: {error.strerror}; put TASKQ_DATA_DIR on a local file system"
        ) from error
    _owned.add(fd)
    return fd


def release(fd: int) -> None:
    """Close our descriptor; the lock lasts as long as somebody else holds a copy of it."""
    _owned.discard(fd)
    os.close(fd)


def is_free(path: Path) -> bool:
    """Tell whether nobody holds the lock alone; probing shared, so that two probes don't meet."""
    fd = try_lock(path, shared=True)
    if fd is None:
        return False
    release(fd)
    return True


def poll_until(done: Callable[[], bool], timeout_s: float, *, every_s: float = _POLL_S) -> bool:
    """Ask `done` every `every_s` seconds until it says yes; False after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while not done():
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return False
        _never.wait(min(every_s, left_s))
    return True


def _forget_in_forked_child() -> None:
    """Close the locks in a child made by fork, which would otherwise keep them after our death."""
    while _owned:
        os.close(_owned.pop())


os.register_at_fork(after_in_child=_forget_in_forked_child)
