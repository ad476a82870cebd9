"""The cluster: made once and whole, its access rules written anew at every start.

A half-made cluster starts and looks fine until something is missing, so `initdb` works in
`pgdata.new-*`, and only a finished, synced cluster is renamed to `pgdata`: the name is the proof.
Access is `peer` with a map: the user who runs taskq (and root) may be the database user `taskq`, nobody
else may be anybody, not even the server's own account.  `taskq.conf` holds what suits a task queue; an
operator's own settings go below its `include` in `postgresql.conf` and win.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from taskq.errors import ConfigError
from taskq.postgres.account import Account
from taskq.postgres.binaries import Binaries
from taskq.postgres.layout import Layout
from taskq.postgres.process import launch

__all__ = ["create_cluster", "sweep_unfinished", "write_configuration"]

_INITDB_TIMEOUT_S = 600.0  # a second on a disk, minutes on a bad network disk
_FILES_INCLUDABLE = 16  # the first major version whose access files know include_if_exists
_IO_METHOD = 18
_BUILTIN_LOCALE = 17


def create_cluster(
    layout: Layout, binaries: Binaries, *, account: Account, lock: int, options: Sequence[str] = ()
) -> None:
    """Make the cluster beside its place and move it there once it is whole.

    `lock` is the descriptor of the held `server.lock`: an orphaned initdb keeps it, so that nobody
    interferes.  `options` are more arguments for initdb.

    Raises:
        ConfigError: initdb failed; the message has its last words.
    """
    staged = Path(tempfile.mkdtemp(prefix="pgdata.new-", dir=layout.root))
    try:
        if account.dropped:
            os.chown(staged, account.uid, account.gid)
        _initdb(staged, binaries, account=account, lock=lock, options=options)
        configuration = staged / "postgresql.conf"
        text = configuration.read_text(encoding="utf-8")
        _write(configuration, text + _INCLUDE, account, sync=True)
        _sync_directory(staged)
        staged.rename(layout.data)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    _sync_directory(layout.root)


def sweep_unfinished(layout: Layout) -> None:
    """Remove what a killed initdb left; call it only with `server.lock` held."""
    for staged in layout.root.glob("pgdata.new-*"):
        shutil.rmtree(staged, ignore_errors=True)


def write_configuration(data: Path, binaries: Binaries, *, account: Account, client: str) -> None:
    """Write the access rules and `taskq.conf`: the user, the programs or taskq may have changed since.

    `client` is the operating system's user whom the server shall admit.
    """
    more = "include_if_exists {}\n" if binaries.major >= _FILES_INCLUDABLE else "# {} counts from 16 on\n"
    head = "# Written by taskq at every start. "
    _write(
        data / "pg_hba.conf",
        f"{head}Your own lines go to the file below.\n"
        f"local all all peer map=taskq\nlocal replication all peer map=taskq\n" + more.format("pg_hba.local.conf"),
        account,
    )
    name = client.replace('"', '""')
    _write(
        data / "pg_ident.conf",
        f"{head}Your own lines go to the file below.\n"
        f'taskq "{name}" taskq\ntaskq root taskq\n' + more.format("pg_ident.local.conf"),
        account,
    )
    _write(data / "taskq.conf", f"{head}Your own settings go to postgresql.conf.\n{_settings(binaries)}", account)


def _initdb(staged: Path, binaries: Binaries, *, account: Account, lock: int, options: Sequence[str]) -> None:
    locale = ["--locale=C"]
    if binaries.major >= _BUILTIN_LOCALE:
        locale += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    fixed = ["-U", "taskq", "-E", "UTF8", "-A", "peer", "--no-instructions", "--data-checksums"]
    command = [str(binaries.directory / "initdb"), "-D", str(staged), *fixed, *locale, *options]
    process = launch(command, account=account, cwd=staged.parent, output=subprocess.PIPE, keep=lock)
    try:
        said, _ = process.communicate(timeout=_INITDB_TIMEOUT_S)
    except BaseException as error:
        process.kill()
        process.communicate()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        raise ConfigError(f"initdb took more than {_INITDB_TIMEOUT_S:.0f} s: put TASKQ_DATA_DIR on a disk") from error
    if process.returncode != 0:
        raise ConfigError(
            f"initdb failed with {process.returncode} as {account.name}; mend what it says:\n"
            f"{said[-2000:].decode(errors='replace')}"
        )


_INCLUDE = """
# What suits a task queue; rewritten by taskq at every start.
include_if_exists 'taskq.conf'
# Your own settings go below this line: the last one wins.
"""

_SETTINGS = """\
shared_buffers = 128MB
max_connections = 50
jit = off                               # short statements: compiling costs more than it saves
max_parallel_workers_per_gather = 0     # containers have 64 MB of /dev/shm
min_dynamic_shared_memory = 4MB
max_logical_replication_workers = 0     # a process fewer
autovacuum_naptime = 10s                # a queue's tables turn over fast
timezone = 'UTC'
log_timezone = 'UTC'
lc_messages = 'C'
logging_collector = on                  # a week of logs, a file a day
log_filename = 'postgresql-%a.log'
log_rotation_age = 1d
log_rotation_size = 0
log_truncate_on_rotation = on
log_min_messages = warning
"""


def _settings(binaries: Binaries) -> str:
    text = _SETTINGS
    if binaries.major >= _IO_METHOD:
        text += "io_method = sync                        # three processes fewer\n"
    libraries = ["plpgsql"]  # loaded once: triggers survive an upgrade of the files under the server
    suffix = "dylib" if sys.platform == "darwin" else "so"
    for folder in ("lib", "lib/postgresql"):
        if (binaries.directory.parent / folder / f"pg_stat_statements.{suffix}").is_file():
            libraries.append("pg_stat_statements")
            break
    return text + f"shared_preload_libraries = '{','.join(libraries)}'\n"


def _write(path: Path, text: str, account: Account, *, sync: bool = False) -> None:
    """Replace the file in one step, never through a link that the server's account may have put there."""
    fd, staged = tempfile.mkstemp(prefix=f"{path.name}.new-", dir=path.parent)  # 0600, made by us
    with os.fdopen(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
        if account.dropped:
            os.fchown(fd, account.uid, account.gid)
        file.write(text)
        file.flush()
        if sync:
            os.fsync(fd)
    Path(staged).replace(path)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
