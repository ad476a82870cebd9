"""One server: its command line, its proof of life, its last words.

What keeps the promise "committed is stored" stands on the command line, where neither `ALTER SYSTEM`
nor a configuration file can change it.  A server serves when it lets us log in to the database `taskq`,
which is made here if it is missing; nothing less counts as ready.
"""

import logging
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from taskq.errors import ConfigError
from taskq.postgres.account import Account
from taskq.postgres.binaries import Binaries
from taskq.postgres.layout import Layout
from taskq.postgres.process import launch, read_pid_file
from taskq.postgres.wire import Refusal, log_in

__all__ = ["is_serving", "last_words", "spawn"]

logger = logging.getLogger("taskq.postgres")

_WORDS_BYTES = 3000
_LOGIN_S = 5.0
_CREATE_S = 120.0

_PINNED = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "port": "5432",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "cluster_name": "taskq",
}
_NOT_YET = re.compile(r"57P0[123]|53300")  # starting or stopping; too many connections
_NO_DATABASE = "3D000"


def spawn(
    layout: Layout,
    binaries: Binaries,
    *,
    account: Account,
    lock: int,
    socket_directory: Path,
    settings: Mapping[str, str],
) -> "subprocess.Popen[bytes]":
    """Start the server; it is not ready when this returns.

    It inherits `lock`, the descriptor of the held `server.lock`: the proof that no process of another
    server lives.  `socket_directory` is private to the account; `settings` win over the pinned ones.
    """
    quoted = str(socket_directory).replace('"', '""')
    given = {**_PINNED, "unix_socket_directories": f'"{quoted}"', **settings}
    command = [str(binaries.directory / "postgres"), "-D", str(layout.data)]
    for name, value in given.items():
        command += ["-c", f"{name}={value}"]
    for leftover in (".s.PGSQL.5432", ".s.PGSQL.5432.lock"):
        (socket_directory / leftover).unlink(missing_ok=True)
    told = read_pid_file(layout.data)
    # The lock proves that the pid in the stale file, if it lives, is somebody else's by now (or a mere
    # thread's).  PostgreSQL would refuse to start for ever, unless it takes that pid for a grandparent.
    env = {} if told is None else {"PG_GRANDPARENT_PID": str(told.pid)}
    if layout.log.exists():
        layout.log.replace(layout.log.with_name("postgres.log.1"))
    output = os.open(layout.log, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        return launch(command, account=account, cwd=layout.root, output=output, keep=lock, env=env)
    finally:
        os.close(output)


def is_serving(socket_directory: Path) -> str | None:
    """Return the server's version if it lets us use the database `taskq`, None if it doesn't yet.

    Raises:
        ConfigError: It refuses us for good.
    """
    try:
        try:
            return log_in(socket_directory, "taskq", timeout_s=_LOGIN_S)
        except Refusal as refusal:
            if refusal.sqlstate != _NO_DATABASE:
                raise
        version = log_in(socket_directory, "postgres", then="CREATE DATABASE taskq", timeout_s=_CREATE_S)
    except OSError:
        return None
    except Refusal as refusal:
        if _NOT_YET.fullmatch(refusal.sqlstate):
            return None
        raise ConfigError(
            f"PostgreSQL at {socket_directory} refuses taskq: {refusal.text} ({refusal.sqlstate}); "
            f"start every taskq on this directory as the same user"
        ) from refusal
    logger.info("postgres database created name=taskq")
    return version


def last_words(layout: Layout) -> str:
    """Return the end of what a failed server said: in postgres.log, and in its own log if that is newer."""
    said = layout.log.read_bytes()[-_WORDS_BYTES:]
    begun = layout.log.stat().st_mtime
    for own in (layout.data / "log").glob("postgresql-*.log"):
        if own.stat().st_mtime >= begun:
            said += b"\n" + own.read_bytes()[-_WORDS_BYTES:]
    return said.decode(errors="replace").strip()
