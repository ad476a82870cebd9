"""Where everything lies: one root directory, and no version in its path.

    root/            0700, or 0755 and root's own when root starts taskq
      start.lock  users.lock  server.lock
      bin/18.6/      our copy of PostgreSQL's programs
      pgdata/        the cluster; pgdata.new-* is one in the making
      run/           the socket
      postgres.log   what the server says before its own log in pgdata/log begins

The root never depends on the working directory: starting from elsewhere must not show an empty queue.
A socket's path is short and plain by force (107 bytes; every client splits it at commas), so a long or
odd root gets a private directory in the temporary directory instead of `run/`.
"""

import hashlib
import os
import re
import stat
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from taskq.errors import ConfigError
from taskq.postgres.account import Account, make_private

__all__ = ["Layout", "default_root"]

_SOCKET_NAME = ".s.PGSQL.5432"
_SOCKET_DIR_BYTES_MAX = (103 if sys.platform == "darwin" else 107) - len("/" + _SOCKET_NAME)
_SOCKET_DIR_PLAIN = re.compile(r"/[\w./ @+~-]*")


def default_root() -> Path:
    """Return the root directory to use when TASKQ_DATA_DIR doesn't name one."""
    if systemd := os.environ.get("STATE_DIRECTORY", "").split(":")[0]:
        return Path(systemd)
    if os.geteuid() == 0:
        return Path("/var/lib/taskq")
    if sys.platform == "darwin":
        return Path.home() / "Library/Application Support/taskq"
    data_home = Path(os.environ.get("XDG_DATA_HOME", ""))
    return (data_home if data_home.is_absolute() else Path.home() / ".local/share") / "taskq"


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths below one root directory.

    Attributes:
        root: The root directory, absolute and free of symbolic links.
    """

    root: Path

    @property
    def data(self) -> Path:
        """The cluster's directory."""
        return self.root / "pgdata"

    @property
    def start_lock(self) -> Path:
        """Held while a process starts, joins or leaves the server."""
        return self.root / "start.lock"

    @property
    def users_lock(self) -> Path:
        """Shared by every process that uses the server, for as long as it does."""
        return self.root / "users.lock"

    @property
    def server_lock(self) -> Path:
        """Held by the server's processes, which inherit it."""
        return self.root / "server.lock"

    @property
    def log(self) -> Path:
        """What the server prints before its own log begins; the start before is in `postgres.log.1`."""
        return self.root / "postgres.log"

    def prepare(self) -> None:
        """Make the root directory, or check that nobody else can tamper with it.

        Raises:
            ConfigError: It can't be made, isn't a directory, or isn't safe.
        """
        if any(ord(character) < 0x20 for character in str(self.root)):
            raise ConfigError(f"root directory {str(self.root)!r} has a control character: set TASKQ_DATA_DIR")
        try:
            self.root.mkdir(mode=0o755 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"root directory {self.root} can't be made: {error.strerror}; set TASKQ_DATA_DIR to one you own"
            ) from error
        state = self.root.stat()
        if os.geteuid() not in {0, state.st_uid} or state.st_mode & stat.S_IWOTH:
            raise ConfigError(
                f"root directory {self.root} belongs to user id {state.st_uid} with mode {state.st_mode & 0o7777:o}: "
                f"it must belong to the user who runs taskq and be closed to others' writing; set TASKQ_DATA_DIR"
            )

    def socket_directory(self, account: Account) -> Path:
        """Make the private directory for the socket: `run/`, or a short one if that is long or odd.

        Raises:
            ConfigError: No place fits, or somebody else sits on it.
        """
        name = f"taskq-{os.geteuid()}-{hashlib.sha256(os.fsencode(self.root)).hexdigest()[:12]}"
        runtime = "" if account.dropped else os.environ.get("XDG_RUNTIME_DIR", "")
        shared = [Path(base) for base in (runtime, tempfile.gettempdir(), "/tmp") if base]  # noqa: S108 - a private directory is made in it
        for path in (self.root / "run", *(base / name for base in shared)):
            plain = _SOCKET_DIR_PLAIN.fullmatch(str(path)) is not None
            if plain and len(os.fsencode(path)) <= _SOCKET_DIR_BYTES_MAX and path.parent.is_dir():
                make_private(path, account)
                return path
        raise ConfigError(
            f"no directory for the socket: its path may have {_SOCKET_DIR_BYTES_MAX} bytes, all of them plain; "
            f"set TASKQ_DATA_DIR to a shorter path"
        )
