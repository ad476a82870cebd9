"""PostgreSQL's processes: start one, tell whether one is ours, end it.

A program gets a clean environment (a hostile LC_ALL or PGPORT has broken many a start), a session of
its own (Ctrl-C must reach taskq alone, which then stops the server in order) and, as root, the server's
account.  `postmaster.pid` is a hint and no more: after a crash it still says "ready", and its pid may by
now be somebody else's, so a pid is signalled only after its command line has been compared.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from taskq.errors import ConfigError
from taskq.postgres.account import Account
from taskq.postgres.locks import poll_until

__all__ = ["PidFile", "check_reach", "is_postmaster", "launch", "read_pid_file", "shut_down", "signal_postmaster"]

FAST_S = 60.0  # seconds for a fast shutdown: rolls back, writes a checkpoint
IMMEDIATE_S = 10.0  # seconds for the immediate one, which only drops everything


@dataclass(frozen=True, slots=True)
class PidFile:
    """What `postmaster.pid` says; nothing of it is sure.

    Attributes:
        pid: The postmaster's process, in its own container's numbers.
        socket_directory: Where its socket lies; None until it has one.
        ready: Whether it says that it accepts connections.
    """

    pid: int
    socket_directory: Path | None
    ready: bool


def launch(
    command: Sequence[str],
    *,
    account: Account,
    cwd: Path,
    output: int,
    keep: int | None = None,
    env: Mapping[str, str] | None = None,
) -> "subprocess.Popen[bytes]":
    """Start one of PostgreSQL's programs as the account.

    Output and errors go to `output`, a descriptor or subprocess.PIPE.  It inherits the descriptor `keep`
    under the same number, and has the variables of `env` in its otherwise clean environment.

    Raises:
        ConfigError: The program can't be executed as that account.
    """
    dropped = account.dropped
    try:
        return subprocess.Popen(  # noqa: S603 - PostgreSQL's programs, found by us or named by the operator
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC", **(env or {})},
            cwd=cwd,
            umask=0o077,
            start_new_session=True,
            pass_fds=() if keep is None else (keep,),
            user=account.uid if dropped else None,
            group=account.gid if dropped else None,
            extra_groups=[] if dropped else None,
        )
    except OSError as error:
        raise ConfigError(
            f"{command[0]} can't be executed as {account.name}: {error.strerror}; "
            f"let that account reach it, or name other programs by TASKQ_PG_BIN or another account by TASKQ_PG_USER"
        ) from error


def check_reach(path: Path, account: Account) -> None:
    """Check that the account may pass through every directory down to `path`.

    Raises:
        ConfigError: It may not; the message names the first directory in the way.
    """
    if not account.dropped:
        return
    script = 'for place; do test -x "$place" || { printf %s "$place"; exit 1; }; done'
    places = [str(place) for place in (*reversed(path.parents), path)]
    process = launch(["/bin/sh", "-c", script, "sh", *places], account=account, cwd=Path("/"), output=subprocess.PIPE)
    blocked, _ = process.communicate()
    if process.returncode != 0:
        raise ConfigError(
            f"PostgreSQL would run as {account.name}, who can't pass through {os.fsdecode(blocked)} to {path}: "
            f"set TASKQ_DATA_DIR to a place that everybody can pass to, such as /var/lib/taskq, "
            f"or run taskq as an ordinary user"
        )


def read_pid_file(data: Path) -> PidFile | None:
    """Read `postmaster.pid`; None if it is absent or not yet written."""
    try:
        lines = (data / "postmaster.pid").read_text(errors="surrogateescape").split("\n")
        pid = int(lines[0])
    except (OSError, ValueError):
        return None
    directory = Path(lines[4]) if len(lines) > 4 and lines[4].startswith("/") else None
    return PidFile(pid, directory, ready=len(lines) > 7 and lines[7].strip() == "ready")


def is_postmaster(pid: int, data: Path) -> bool:
    """Tell whether the process is a PostgreSQL server on that data directory, by its command line."""
    if sys.platform == "linux":
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
        return os.path.basename(words[0]) in {b"postgres", b"postmaster"} and os.fsencode(data) in words  # noqa: PTH119 - bytes
    listing = ["/bin/ps", "-ww", "-o", "command=", "-p", str(pid)]
    said = subprocess.run(listing, capture_output=True, text=True, check=False).stdout  # noqa: S603 - fixed words and a number
    return "/postgres " in said and str(data) in said


def signal_postmaster(pid: int, data: Path, number: int) -> bool:
    """Send a signal to the server on that data; False if the pid is not (or no longer) that server."""
    handle = None
    try:
        if sys.platform == "linux":  # first a handle, then the look: the pid can't become another's in between
            with suppress(PermissionError, NotImplementedError):  # an old container's filter
                handle = os.pidfd_open(pid)
        if not is_postmaster(pid, data):
            return False
        if sys.platform == "linux" and handle is not None:
            signal.pidfd_send_signal(handle, number)
        else:
            os.kill(pid, number)
    except ProcessLookupError:
        return False
    finally:
        if handle is not None:
            os.close(handle)
    return True


def shut_down(send: Callable[[int], object], gone: Callable[[], bool]) -> bool:
    """End the server in order, then in haste, but never by SIGKILL; False if it still lives.

    SIGTERM is not used: it refuses new connections and waits for the old ones, for ever.
    """
    send(signal.SIGINT)
    if poll_until(gone, FAST_S):
        return True
    send(signal.SIGQUIT)
    return poll_until(gone, IMMEDIATE_S)
