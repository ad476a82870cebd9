"""Where the embedded server lives and as whom: odd paths, hostile neighbours and environments, root.

Tests of what only root can arrange skip themselves, visibly, elsewhere.
"""

import asyncio
import os
import pwd
import shutil
import subprocess
import tempfile
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
from clusters import FAST, Make, ask

from taskq.errors import ConfigError
from taskq.postgres import EmbeddedPostgres, default_root
from taskq.postgres.account import choose_account
from taskq.postgres.layout import Layout

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can arrange it")


@pytest.fixture(scope="module")
def programs() -> Iterator[Path]:
    """Copied programs that any account can reach, which may not be true of this clone."""
    root = Path(tempfile.mkdtemp(prefix="taskq-programs-"))
    root.chmod(0o755)
    server = EmbeddedPostgres(root, settings=FAST, initdb_options=["--no-sync"])
    server.start()
    server.stop()
    yield next((root / "bin").rglob("initdb")).parent
    shutil.rmtree(root)


def socket_directory(server: EmbeddedPostgres) -> Path:
    return Path(urllib.parse.parse_qs(urllib.parse.urlsplit(server.dsn).query)["host"][0])


def say(program: Path, user: str, server: EmbeddedPostgres) -> str:
    command = [str(program), "-h", str(socket_directory(server)), "-U", "taskq", "-c", "select 1", "taskq"]
    return subprocess.run(command, user=user, cwd="/", capture_output=True, text=True, check=False).stderr


@pytest.mark.parametrize(
    ("name", "moved"),
    [
        ('it\'s a "path"', True),
        ("$(false)`false`\\", True),
        ("spaced out and with+plus", False),
        ("würde", False),
        ("comma,separated", True),
        ("per%cent", True),
        ("long" * 30, True),
    ],
)
def test_start_serves_both_drivers_below_an_odd_path(
    place: Path, make: Make, programs: Path, name: str, *, moved: bool
) -> None:
    server = make(place / name, bin_dir=programs)

    server.start()

    async def connect() -> str:
        connection = await asyncpg.connect(server.dsn, timeout=20)
        try:
            return await connection.fetchval("show data_directory")
        finally:
            await connection.close()

    assert asyncio.run(connect()) == str(place.resolve() / name / "pgdata")
    assert ask(server, "select 1") == "1"
    directory = socket_directory(server)
    assert (directory != place.resolve() / name / "run") is moved
    assert directory.stat().st_mode & 0o777 == 0o700
    assert server.stop() == "stopped"
    if moved:
        directory.rmdir()


@pytest.mark.parametrize("trap", ["open", "link", "file"])
def test_start_refuses_a_socket_directory_that_somebody_else_made(
    place: Path, make: Make, monkeypatch: pytest.MonkeyPatch, trap: str
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    root = place / "a,b"
    root.mkdir(mode=0o755)
    directory = Layout(root.resolve()).socket_directory(choose_account(root / "pgdata", None))
    directory.rmdir()
    match trap:
        case "open":
            directory.mkdir()
            directory.chmod(0o777)
        case "link":
            directory.symlink_to(place)
        case _:
            directory.touch()
    try:
        with pytest.raises(ConfigError, match="no private directory"):
            make(root).start()
    finally:
        directory.rmdir() if trap == "open" else directory.unlink()


def test_start_ignores_a_hostile_environment(place: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "LC_ALL": "xx_YY.UTF-8",
        "PGPORT": "6543",
        "PGDATA": "/nonexistent",
        "PGOPTIONS": "-c nonsense",
        "TZ": "Nowhere/Never",
        "LD_LIBRARY_PATH": "/nonexistent",
    }.items():
        monkeypatch.setenv(name, value)
    server = make(place)

    server.start()

    assert (socket_directory(server) / ".s.PGSQL.5432").exists()
    for name in ("PGPORT", "PGOPTIONS"):  # psycopg heeds them too
        monkeypatch.delenv(name)
    assert ask(server, "show lc_messages") == "C"


def test_start_refuses_a_root_that_everybody_may_write_to(place: Path, make: Make) -> None:
    place.chmod(0o777)

    with pytest.raises(ConfigError, match="closed to others' writing"):
        make(place).start()


def test_start_refuses_control_characters(place: Path, make: Make) -> None:
    with pytest.raises(ConfigError, match="control character"):
        make(place / "two\nlines").start()


def test_start_refuses_a_root_that_is_a_file(place: Path, make: Make) -> None:
    (place / "file").touch()

    with pytest.raises(ConfigError, match="can't be made"):
        make(place / "file").start()


def test_start_refuses_a_user_without_a_name(place: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> pwd.struct_passwd:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)

    with pytest.raises(ConfigError, match="no entry in /etc/passwd"):
        make(place).start()


def test_start_refuses_another_account_when_not_root(place: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = place.stat().st_uid
    entry = pwd.getpwuid(owner)
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    monkeypatch.setattr(pwd, "getpwuid", lambda _: entry)

    with pytest.raises(ConfigError, match="only root can become another"):
        choose_account(place / "pgdata", "somebody")
    with pytest.raises(ConfigError, match="must belong to the user"):
        make(place).start()


def test_access_rules_are_written_anew_at_every_start(place: Path, make: Make) -> None:
    server = make(place)
    server.start()
    server.stop()
    rules, names = place / "pgdata/pg_hba.conf", place / "pgdata/pg_ident.conf"
    rules.write_text("local all all reject\n")
    names.unlink()
    names.symlink_to(place / "victim")  # as a broken-in server account might

    server.start()

    assert ask(server, "select current_user") == "taskq"
    assert "map=taskq" in rules.read_text()
    assert not names.is_symlink()
    assert not (place / "victim").exists()
    assert "include_if_exists pg_hba.local.conf" in rules.read_text()


def test_default_root_follows_systemd_then_root_then_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/one:/var/lib/two")
    assert default_root() == Path("/var/lib/one")

    monkeypatch.delenv("STATE_DIRECTORY")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_root() == Path("/var/lib/taskq")

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_root() == Path("/data/taskq")
    monkeypatch.setenv("XDG_DATA_HOME", "relative/is/invalid")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert default_root() == Path("/home/somebody/.local/share/taskq")


@needs_root
def test_root_runs_the_server_as_the_account_and_keeps_to_it(place: Path, make: Make) -> None:
    server = make(place, server_user="nobody")
    server.start()
    nobody = pwd.getpwnam("nobody").pw_uid
    assert (place / "pgdata").stat().st_uid == nobody
    server.stop()

    server = make(place)  # no account named: the owner of the data stays
    server.start()

    assert (place / "pgdata/postmaster.pid").stat().st_uid == nobody
    assert place.stat().st_uid == 0
    assert all(path.stat().st_uid == 0 for path in (place / "bin").rglob("*"))
    assert ask(server, "select current_user") == "taskq"


@needs_root
@pytest.mark.parametrize(
    ("user", "said"), [("no-such-user", "doesn't exist"), ("root", "which is root"), ("daemon", "belongs to user id")]
)
def test_root_is_refused_an_unfit_account(place: Path, make: Make, user: str, said: str) -> None:
    (place / "pgdata").mkdir()
    os.chown(place / "pgdata", pwd.getpwnam("nobody").pw_uid, -1)

    with pytest.raises(ConfigError, match=said):
        make(place, server_user=user).start()


@needs_root
def test_root_is_refused_data_of_its_own(place: Path, make: Make) -> None:
    (place / "pgdata").mkdir()

    with pytest.raises(ConfigError, match="belongs to root"):
        make(place).start()


@needs_root
def test_root_is_told_which_directory_the_account_cannot_pass(place: Path, make: Make) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o700)

    with pytest.raises(ConfigError, match=f"can't pass through {closed.resolve()} to"):
        make(closed / "taskq").start()

    assert closed.stat().st_mode & 0o777 == 0o700


@needs_root
def test_nobody_but_the_user_is_admitted(place: Path, make: Make) -> None:
    server = make(place, settings={**FAST, "unix_socket_permissions": "0777"})
    server.start()
    account = choose_account(place.resolve() / "pgdata", None).name
    stranger = "daemon"
    programs = list((place / "bin").rglob("psql"))
    program = programs[0] if programs else Path("/usr/bin/psql")

    assert "Permission denied" in say(program, stranger, server)
    assert "Peer authentication failed" in say(program, account, server)
    socket_directory(server).chmod(0o755)
    assert "Peer authentication failed" in say(program, stranger, server)
