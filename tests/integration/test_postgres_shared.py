"""Several users of one embedded server: guests, owners that leave, restarts, processes that forget.

Users are objects in this process, which behave as processes do, or real processes where it matters.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters import Make, ask, server_pid, tell

import taskq.postgres
from taskq.postgres.locks import is_free

PROCESS = """
import logging, sys
from pathlib import Path
from taskq.postgres import EmbeddedPostgres
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
server = EmbeddedPostgres(Path(sys.argv[1]), settings={"fsync": "off"}, initdb_options=["--no-sync"])
server.start()
print("serving", server.description, flush=True)
if sys.stdin.readline():
    print("outcome", server.stop())
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


def run_process(place: Path, script: str = PROCESS) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(taskq.postgres.__file__).parents[2],
    )
    started.append(process)
    return process


def read_until(process: "subprocess.Popen[str]", word: str) -> list[str]:
    assert process.stdout
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line.strip())
        if line.startswith(word):
            return lines
    raise AssertionError(f"the process ended without saying {word}: {lines}")


def test_guest_joins_and_leaves_the_server_running(make: Make) -> None:
    owner, guest = make(), make()
    owner.start()

    guest.start()

    assert guest.description.endswith("(shared)")
    assert guest.version == owner.version
    assert guest.dsn == owner.dsn
    assert guest.stop() == "left running: other processes use it"
    assert ask(owner, "select 1") == "1"
    assert owner.stop() == "stopped"


def test_guest_ends_the_server_when_the_owner_left_before(make: Make, place: Path) -> None:
    owner, guest = make(), make()
    owner.start()
    guest.start()

    assert owner.stop() == "left running: other processes use it"

    assert ask(guest, "select 1") == "1"
    assert guest.stop() == "stopped"
    assert is_free(place / "server.lock")


def test_owner_becomes_a_guest_when_it_returns(make: Make) -> None:
    owner, guest = make(), make()
    owner.start()
    guest.start()
    owner.stop()

    owner.start()

    assert owner.description.endswith("(shared)")
    assert guest.stop() == "left running: other processes use it"
    assert owner.stop() == "stopped"


def test_wait_dead_tells_owner_and_guest_and_either_starts_again(make: Make, place: Path) -> None:
    owner, guest = make(settings=None), make(settings=None)
    owner.start()
    guest.start()
    tell(owner, "create table kept as select 1 as answer")
    assert not owner.wait_dead(0.02)
    assert not guest.wait_dead(0.02)

    os.kill(server_pid(place), signal.SIGKILL)

    assert owner.wait_dead(30)
    assert guest.wait_dead(30)
    guest.start()
    owner.start()
    assert guest.description.endswith("(owner)")
    assert owner.description.endswith("(shared)")
    assert ask(owner, "select count(*) from kept") == "1"
    assert not owner.wait_dead(0.02)
    assert guest.stop() == "left running: other processes use it"
    assert owner.stop() == "stopped"


def test_owner_ends_the_server_that_a_guest_restarted(make: Make, place: Path) -> None:
    owner, guest = make(), make()
    owner.start()
    guest.start()
    os.kill(server_pid(place), signal.SIGKILL)
    assert owner.wait_dead(30)
    guest.start()
    assert guest.stop() == "left running: other processes use it"

    assert owner.stop() == "stopped"

    assert is_free(place / "server.lock")


def test_four_processes_share_one_server_when_started_at_once(place: Path) -> None:
    processes = [run_process(place) for _ in range(4)]

    said = ["\n".join(read_until(process, "serving")) for process in processes]
    outcomes = [process.communicate("stop\n")[0].strip().splitlines()[-1] for process in processes]

    assert sum("cluster created" in lines for lines in said) == 1
    assert sum("(owner)" in lines for lines in said) == 1
    assert sum("(shared)" in lines for lines in said) == 3
    assert outcomes == [*["outcome left running: other processes use it"] * 3, "outcome stopped"]
    assert is_free(place / "server.lock")


def test_server_ends_with_a_process_that_forgot_to_stop_it(place: Path) -> None:
    process = run_process(place)
    read_until(process, "serving")

    process.communicate()  # the end of its input lets it run to its end

    assert process.returncode == 0
    assert is_free(place / "server.lock")


def test_forked_child_neither_stops_the_server_nor_stays_a_user(place: Path) -> None:
    script = PROCESS.replace(
        "if sys.stdin",
        "import os\nparent, ours = os.pipe()\nif os.fork() == 0:\n    os.close(ours)\n"
        "    print('child', server.stop(), flush=True)\n"
        "    os.read(parent, 1)  # it outlives its parent\n    os._exit(0)\nif sys.stdin",
    )
    process = run_process(place, script)
    said = read_until(process, "child")

    assert process.stdin
    process.stdin.write("stop\n")
    process.stdin.flush()
    assert any("forked child" in line for line in said)
    assert read_until(process, "outcome")[-1] == "outcome stopped"

    process.communicate()
