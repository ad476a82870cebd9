"""The embedded server under SIGKILL: of taskq, of the server, of initdb; and pids that lie.

What must hold: every acknowledged row is found again, no second server ever runs on the same data, and
no leftover of a crash keeps the next start from working.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from clusters import ask, server_pid, tell
from conftest import wait_until

import taskq.postgres
from taskq.postgres import EmbeddedPostgres
from taskq.postgres.account import choose_account
from taskq.postgres.locks import is_free
from taskq.postgres.process import launch

pytestmark = pytest.mark.crash

PROCESS = """
import sys
from pathlib import Path
from taskq.postgres import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1]))
server.start()
print("serving", server.description, flush=True)
sys.stdin.readline()
print("outcome", server.stop(), flush=True)
"""


started: "list[subprocess.Popen[str]]" = []


@pytest.fixture(autouse=True)
def _no_process_left() -> Iterator[None]:
    yield
    while started:
        process = started.pop()
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture
def container() -> list[str]:
    """What stands before a command to run it in a container of its own."""
    words = ["unshare", "--pid", "--ipc", "--mount-proc", "--fork", "--kill-child"]
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("needs root and unshare")
    tried = subprocess.run([*words, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:  # in a container without the right to make others, or behind a plain chroot
        pytest.skip(tried.stderr.strip())
    return words


@pytest.fixture
def server(place: Path) -> Iterator[EmbeddedPostgres]:
    made = EmbeddedPostgres(place)
    yield made
    made.stop()


def run_process(place: Path, *before: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [*before, sys.executable, "-c", PROCESS, str(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(taskq.postgres.__file__).parents[2],
    )
    started.append(process)
    return process


def first_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def kill(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


def crash_server(server: EmbeddedPostgres, place: Path) -> None:
    os.kill(server_pid(place), signal.SIGKILL)
    assert server.wait_dead(30)


def test_killed_process_leaves_a_server_that_the_next_adopts_and_stops(place: Path, server: EmbeddedPostgres) -> None:
    process = run_process(place)
    first_line(process)
    pid = server_pid(place)
    kill(process)

    server.start()

    assert server.description.endswith("(shared)")
    assert server_pid(place) == pid
    assert ask(server, "select 1") == "1"
    assert server.stop() == "stopped"
    assert is_free(place / "server.lock")
    assert not (place / "pgdata/postmaster.pid").exists()


@pytest.mark.parametrize("kills", [1, 3])
def test_acknowledged_rows_are_found_when_the_server_is_killed_under_load(
    place: Path, server: EmbeddedPostgres, kills: int
) -> None:
    server.start()
    tell(server, "create table work (id bigint primary key)")
    acknowledged: list[int] = []

    def load(dsn: str, many: threading.Event) -> None:
        first = len(acknowledged)
        with (
            suppress(psycopg.OperationalError),
            psycopg.connect(dsn, connect_timeout=20, autocommit=True) as connection,
        ):
            for number in range(first, first + 1_000_000):
                connection.execute("insert into work values (%s) on conflict do nothing", (number,))
                acknowledged.append(number)
                if number - first > 100:
                    many.set()

    for _ in range(kills):
        many = threading.Event()
        loading = threading.Thread(target=load, args=(server.dsn, many))
        loading.start()
        assert many.wait(30)
        crash_server(server, place)
        loading.join(30)
        server.start()

    with psycopg.connect(server.dsn, connect_timeout=20) as connection:
        found = {row[0] for row in connection.execute("select id from work")}
    assert len(acknowledged) > 100 * kills
    assert set(acknowledged) <= found
    assert server.description.endswith("(owner)")


def test_start_waits_for_a_backend_that_outlives_its_server(place: Path, server: EmbeddedPostgres) -> None:
    server.start()
    begun = threading.Event()
    loop = "do $$ begin while clock_timestamp() < now() + interval '3 s' loop end loop; end $$"

    def busy(dsn: str) -> None:
        with suppress(psycopg.OperationalError), psycopg.connect(dsn, autocommit=True) as connection:
            begun.set()
            connection.execute(loop.encode())

    outliving = threading.Thread(target=busy, args=(server.dsn,))
    outliving.start()
    assert begun.wait(30)
    running = "select count(*) from pg_stat_activity where query like 'do $$%' and state = 'active'"
    wait_until(lambda: ask(server, running) != "0")

    crash_server(server, place)
    outlived = not is_free(place / "server.lock")
    server.start()

    assert outlived
    outliving.join(30)
    assert not outliving.is_alive()
    assert ask(server, "select 1") == "1"


def test_server_returns_by_itself_when_a_backend_is_killed(server: EmbeddedPostgres) -> None:
    server.start()
    with psycopg.connect(server.dsn, connect_timeout=20) as connection:
        os.kill(connection.info.backend_pid, signal.SIGKILL)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")

    def serves() -> bool:
        with suppress(psycopg.OperationalError):
            return ask(server, "select 1") == "1"
        return False

    wait_until(serves)
    assert not server.wait_dead(0.01)


@pytest.mark.parametrize("initdb_lives", [False, True])
def test_start_makes_a_whole_cluster_when_initdb_was_interrupted(
    place: Path, server: EmbeddedPostgres, *, initdb_lives: bool
) -> None:
    process = run_process(place)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_until(lambda: list(place.glob("pgdata.new-*/PG_VERSION")))
    initdb = int(children.read_text().split()[0])
    kill(process)
    if not initdb_lives:
        os.kill(initdb, signal.SIGKILL)

    server.start()

    assert not list(place.glob("pgdata.new-*"))
    assert server.description.endswith("(owner)")
    assert ask(server, "select count(*) > 140 from pg_class where relkind = 'v'") == "True"
    assert ask(server, "select count(*) from pg_database where datname in ('postgres', 'template0')") == "2"


THREADED = """
import sys, threading
def stay(): print(threading.get_native_id(), flush=True); sys.stdin.read()
threading.Thread(target=stay).start()
"""


@pytest.mark.parametrize("who", ["process", "thread"])
def test_start_is_not_fooled_when_the_stale_pid_is_somebody_elses(
    place: Path, server: EmbeddedPostgres, who: str
) -> None:
    server.start()
    account = choose_account(place.resolve() / "pgdata", None)
    crash_server(server, place)
    if who == "process":
        other = launch(["/bin/sleep", "60"], account=account, cwd=Path("/"), output=subprocess.DEVNULL)
        stale = other.pid
    else:
        python = "/usr/bin/python3" if account.dropped else sys.executable
        if not Path(python).exists():
            pytest.skip("no Python that the server's account can run")
        demote = {"user": account.uid, "group": account.gid} if account.dropped else {}
        other = subprocess.Popen(
            [python, "-c", THREADED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", **demote
        )
        assert other.stdout
        stale = int(other.stdout.readline())
        assert stale != other.pid
    pid_file = place / "pgdata/postmaster.pid"
    lines = pid_file.read_text().split("\n")
    pid_file.write_text("\n".join([str(stale), *lines[1:]]))

    server.start()

    assert server.description.endswith("(owner)")
    assert ask(server, "select 1") == "1"
    other.kill()
    other.communicate()


def test_container_starts_again_when_its_first_process_was_killed(
    place: Path, server: EmbeddedPostgres, container: list[str]
) -> None:
    for _ in range(2):
        inside = run_process(place, *container)
        assert first_line(inside).endswith("(owner)")
        kill(inside)

    server.start()

    assert server.description.endswith("(owner)")


def test_second_container_is_a_guest_and_takes_over_when_the_first_dies(
    place: Path, server: EmbeddedPostgres, container: list[str]
) -> None:
    inside = run_process(place, *container)
    assert first_line(inside).endswith("(owner)")

    server.start()
    assert server.description.endswith("(shared)")
    tell(server, "create table kept as select 42 as answer")
    assert not server.wait_dead(0.01)
    kill(inside)

    assert server.wait_dead(30)
    server.start()
    assert server.description.endswith("(owner)")
    assert ask(server, "select answer from kept") == "42"


def test_guest_in_another_container_leaves_the_server_running(
    place: Path, server: EmbeddedPostgres, container: list[str]
) -> None:
    owner = run_process(place)
    first_line(owner)
    guest = run_process(place, *container)
    assert first_line(guest).endswith("(shared)")
    kill(owner)  # now the guest is the last user of a server whose process it can't see

    said, _ = guest.communicate("stop\n")

    assert said.strip() == "outcome left running: it belongs to another container"
    server.start()
    assert server.description.endswith("(shared)")
    assert server.stop() == "stopped"
