"""The life of the server as one process sees it: own it, or be a guest of the process that does.

Starting, under `start.lock`: become a user (a shared lock on `users.lock`), then try `server.lock`.
Who gets it knows that no process of a server lives, makes the cluster if there is none, and hands the
lock down to the server.  Who doesn't waits until the server that lives lets him in, or is gone.
Stopping, under `start.lock`: cease to be a user; whoever was the last one, guest or owner, ends the server.
A taskq that is killed leaves the server running; the next one joins it, and may end it.
"""

import atexit
import logging
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from urllib.parse import quote

from taskq.errors import ConfigError, TaskqError
from taskq.postgres.account import Account, choose_account, client_name
from taskq.postgres.binaries import Binaries, find_binaries, keep_copy
from taskq.postgres.cluster import create_cluster, sweep_unfinished, write_configuration
from taskq.postgres.layout import Layout
from taskq.postgres.locks import is_free, poll_until, release, try_lock
from taskq.postgres.process import check_reach, is_postmaster, read_pid_file, shut_down, signal_postmaster
from taskq.postgres.server import is_serving, last_words, spawn

__all__ = ["EmbeddedPostgres"]

logger = logging.getLogger("taskq.postgres")

_POLL_S = 0.005
_REMIND_S = 5.0  # a long wait says every so often what it waits for
_LEAVE_S = 80.0  # longer than another process needs to stop the server
_GUEST_POLL_S = 0.1
_left_running: "list[subprocess.Popen[bytes]]" = []  # our children that others use; kept so that they are reaped


@dataclass(frozen=True, slots=True)
class _Service:
    """The server that we use: its socket's directory, its version, and whether we started it."""

    directory: Path
    version: str
    owned: bool


class EmbeddedPostgres:
    """PostgreSQL below one root directory, shared by every process that names the same directory.

    Its methods block, and may be called from any thread; `stop` makes a waiting `start` give up.

    Attributes:
        root: The root directory, absolute.
    """

    def __init__(
        self,
        root: Path,
        *,
        bin_dir: Path | None = None,
        server_user: str | None = None,
        settings: Mapping[str, str] | None = None,
        initdb_options: Sequence[str] = (),
    ) -> None:
        """Prepare, touching nothing yet.

        Args:
            root: The root directory; made by `start` if it is absent.
            bin_dir: Directory of PostgreSQL's programs; None: find them.
            server_user: The account for the server when root runs taskq; None: choose one.
            settings: Settings that win over taskq's own, even over those for safety; for tests.
            initdb_options: More arguments for initdb; for tests.
        """
        self.root = root.resolve()
        self._layout = Layout(self.root)
        self._bin_dir = bin_dir
        self._server_user = server_user
        self._settings = dict(settings or {})
        self._initdb_options = tuple(initdb_options)
        self._turn = Lock()
        self._give_up = Event()
        self._process_id = os.getpid()
        self._user_lock: int | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._service: _Service | None = None

    @property
    def dsn(self) -> str:
        """The address of the database, for asyncpg, psycopg and libpq; only once started."""
        return f"postgresql://taskq@/taskq?host={quote(os.fsencode(self._serving.directory))}"

    @property
    def version(self) -> str:
        """The running server's version, as in `18.6`; only once started."""
        return self._serving.version

    @property
    def description(self) -> str:
        """One line for people: version, place, and whether we own or share the server."""
        how = "owner" if self._serving.owned else "shared"
        return f"embedded PostgreSQL {self.version} in {self.root} ({how})"

    def start(self) -> None:
        """Start the server or join the one that runs; return once the database `taskq` can be used.

        Call it again after the server died.  It takes as long as recovery takes.

        Raises:
            ConfigError: Something is wrong that only the operator can mend.
            TaskqError: `stop` was called meanwhile.
        """
        with self._turn:
            if self._user_lock is not None and self._child is not None and self._child.poll() is None:
                return
            self._child = None
            self._layout.prepare()
            self._process_id = os.getpid()
            atexit.register(self.stop)
            start = self._await_lock(self._layout.start_lock)
            try:
                if self._user_lock is None:
                    self._user_lock = self._await_lock(self._layout.users_lock, shared=True)
                self._service = self._join_or_own()
            except BaseException:
                self._abandon()
                raise
            finally:
                release(start)

    def stop(self) -> str:
        """Leave the server, and end it if nobody else uses it; return what became of it, for people."""
        if os.getpid() != self._process_id:
            return "left running: a forked child doesn't own it"
        self._give_up.set()
        with self._turn:
            self._give_up.clear()
            atexit.unregister(self.stop)
            if self._user_lock is None:
                return "not running"
            outcome = self._leave()
            self._service = None
        logger.info("postgres left outcome=%s dir=%s", outcome, self.root)
        return outcome

    def wait_dead(self, timeout_s: float) -> bool:
        """Wait until the server is dead, at most `timeout_s` seconds; tell whether it is.

        An owner hears of its child's death at once, a guest within a tenth of a second of the moment
        when the last of the server's processes is gone.
        """
        child = self._child
        if child is None:
            return poll_until(lambda: is_free(self._layout.server_lock), timeout_s, every_s=_GUEST_POLL_S)
        try:
            child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    @property
    def _serving(self) -> _Service:
        if self._service is None:
            raise TaskqError("the embedded PostgreSQL is not started: call start() first")
        return self._service

    def _await_lock(self, path: Path, *, shared: bool = False) -> int:
        for _ in self._polls("another taskq that starts or stops PostgreSQL"):
            lock = try_lock(path, shared=shared)
            if lock is not None:
                return lock
        raise AssertionError("the polling ends by return or by error")

    def _polls(self, awaited: str) -> Iterator[None]:
        """Let the caller look again and again until it breaks off; give up when `stop` is called."""
        remind_at = time.monotonic() + _REMIND_S
        yield
        while not self._give_up.wait(_POLL_S):
            if time.monotonic() > remind_at:
                logger.info("postgres start waits for=%s dir=%s", awaited, self.root)
                remind_at += _REMIND_S
            yield
        raise TaskqError(f"the start of PostgreSQL in {self.root} was given up: stop() was called")

    def _join_or_own(self) -> _Service:
        """Become the guest of a server that lives, or the owner of a new one."""
        for _ in self._polls("the server that holds server.lock"):
            lock = try_lock(self._layout.server_lock)
            if lock is not None:
                try:
                    return self._own(lock)
                except OSError as error:
                    raise ConfigError(
                        f"PostgreSQL can't be set up in {self.root}: {error}; "
                        f"mend the directory's space, permissions or mount"
                    ) from error
                finally:
                    release(lock)
            if service := self._guest():
                return service
        raise AssertionError("the polling ends by return or by error")

    def _guest(self) -> _Service | None:
        """Try to use the server that lives; None while it doesn't serve yet, or no longer."""
        told = read_pid_file(self._layout.data)
        if told is None or not told.ready or told.socket_directory is None:
            return None
        version = is_serving(told.socket_directory)
        if version is None:
            return None
        logger.info("postgres joined pid=%d version=%s dir=%s", told.pid, version, self.root)
        return _Service(told.socket_directory, version, owned=False)

    def _own(self, lock: int) -> _Service:
        """Start a server that inherits the lock, on a cluster that is made now if there is none."""
        layout = self._layout
        account = choose_account(layout.data, self._server_user)
        client = client_name()
        check_reach(layout.root, account)
        sweep_unfinished(layout)
        self._refuse_stranger()
        binaries = keep_copy(layout.root, find_binaries(layout.root, self._bin_dir))
        if account.dropped and self._service is None:
            logger.warning(
                "postgres runs as user=%s because taskq runs as root; better run taskq as a user", account.name
            )
        if not layout.data.exists():
            create_cluster(layout, binaries, account=account, lock=lock, options=self._initdb_options)
            logger.info("postgres cluster created version=%s dir=%s", binaries.version, layout.data)
        write_configuration(layout.data, binaries, account=account, client=client)
        return self._run(binaries, account, lock)

    def _refuse_stranger(self) -> None:
        """Refuse a server that somebody started by hand: it holds no lock, so nobody could share it."""
        told = read_pid_file(self._layout.data)
        if told is not None and is_postmaster(told.pid, self._layout.data):
            raise ConfigError(
                f"PostgreSQL runs on {self._layout.data} (process {told.pid}), but taskq didn't start it "
                f"(or its lock files were deleted): stop it with pg_ctl, or set DATABASE_URL to use it"
            )

    def _run(self, binaries: Binaries, account: Account, lock: int) -> _Service:
        directory = self._layout.socket_directory(account)
        self._child = child = spawn(
            self._layout, binaries, account=account, lock=lock, socket_directory=directory, settings=self._settings
        )
        for _ in self._polls("the server's recovery"):
            if child.poll() is not None:
                raise ConfigError(
                    f"PostgreSQL ended with {child.returncode} at its start; mend what it says:\n"
                    f"{last_words(self._layout)}"
                )
            told = read_pid_file(self._layout.data)
            if told and told.ready and told.pid == child.pid and (version := is_serving(directory)):
                logger.info("postgres started pid=%d version=%s dir=%s", child.pid, version, self.root)
                return _Service(directory, version, owned=True)
        raise AssertionError("the polling ends by return or by error")

    def _abandon(self) -> None:
        """After a failed start: end our server, and cease to be a user."""
        child, self._child = self._child, None
        if child is not None and child.poll() is None and not _end_child(child):
            _left_running.append(child)
        self._drop_user_lock()
        atexit.unregister(self.stop)

    def _drop_user_lock(self) -> None:
        if self._user_lock is not None:
            release(self._user_lock)
            self._user_lock = None

    def _leave(self) -> str:
        """Cease to be a user; end the server if nobody else is one."""
        locks: list[int] = []

        def got(path: Path) -> bool:
            lock = try_lock(path)
            if lock is not None:
                locks.append(lock)
            return lock is not None

        child, self._child = self._child, None
        try:
            if not self.root.is_dir():  # deleted under us, which the server won't survive either
                return "stopped" if child is None or _end_child(child) else "still running"
            if not poll_until(lambda: got(self._layout.start_lock), _LEAVE_S):
                outcome = f"left running: another process has been starting or stopping it for {_LEAVE_S:.0f} s"
            else:
                self._drop_user_lock()
                outcome = self._end(child) if got(self._layout.users_lock) else "left running: other processes use it"
            if child is not None and child.poll() is None:
                _left_running.append(child)
            return outcome
        finally:
            self._drop_user_lock()
            for lock in locks:
                release(lock)

    def _end(self, child: "subprocess.Popen[bytes] | None") -> str:
        """End the server, ours or the one we joined."""
        if child is not None and child.poll() is None:
            ended = _end_child(child)
        else:
            told = read_pid_file(self._layout.data)
            if is_free(self._layout.server_lock):
                return "not running: it died before"
            data = self._layout.data
            if told is None or not is_postmaster(told.pid, data):
                return "left running: it belongs to another container"
            ended = shut_down(
                lambda number: signal_postmaster(told.pid, data, number),
                lambda: is_free(self._layout.server_lock),
            )
        if ended:
            return "stopped"
        logger.error("postgres doesn't stop dir=%s", self.root)
        return "still running: it obeys neither a fast nor an immediate shutdown"


def _end_child(child: "subprocess.Popen[bytes]") -> bool:
    return shut_down(child.send_signal, lambda: child.poll() is not None)
