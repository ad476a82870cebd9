"""The schema at every start: fresh, current, half made, contested, and back to nothing."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from rig import CLONE, Connection, says

from taskq import migrate as module
from taskq.errors import ConfigError
from taskq.migrate import migrate, migrations_folder, roll_back

NAMES = sorted(path.stem for path in migrations_folder().glob("[0-9]*.py"))
YOYO = {"_yoyo_log", "_yoyo_migration", "_yoyo_version", "yoyo_lock"}

SLOW = f"""
from yoyo import step
__depends__ = {{"{NAMES[-1]}"}}
steps = [step("create table taskq.half ()", "drop table taskq.half"), step("select pg_sleep(600)")]
"""
BAD = SLOW.replace("select pg_sleep(600)", "select no_such_thing")
LOCKING = SLOW.replace("select pg_sleep(600)", "alter table taskq.task add column extra text")


@pytest.fixture
async def raw(bare: str) -> AsyncIterator[Connection]:
    opened = await asyncpg.connect(bare)
    yield opened
    await opened.close()


@pytest.fixture
def longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all migrations, to which a test adds one."""
    for path in migrations_folder().glob("[0-9]*.py"):
        (tmp_path / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(module, "migrations_folder", lambda: tmp_path)
    return tmp_path


def run_python(text: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", text, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(CLONE)},
    )


async def objects(connection: Connection) -> set[str]:
    """The names of all that is in our schema."""
    rows = await connection.fetch(
        "select relname::text from pg_class"
        " where relnamespace = 'taskq'::regnamespace and relkind in ('r', 'p', 'S', 'v')"
        " union select proname::text from pg_proc where pronamespace = 'taskq'::regnamespace"
        " union select typname::text from pg_type where typnamespace = 'taskq'::regnamespace and typtype in ('e', 'd')"
    )
    return {each[0] for each in rows}


async def applied(connection: Connection) -> list[str]:
    return [each[0] for each in await connection.fetch("select migration_id from taskq._yoyo_migration order by 1")]


async def test_migrate_makes_the_schema(bare: str, raw: Connection):
    done = await migrate(bare)

    assert done == NAMES
    assert await applied(raw) == NAMES
    assert await raw.fetchval("select taskq.enqueue('work', '{}')") == 1


async def test_migrate_leaves_a_current_schema_alone(database: str, connection: Connection):
    ask = "select pg_snapshot_xmax(pg_current_snapshot())"
    before = await connection.fetchval(ask)

    done = await migrate(database)

    assert done == []
    assert await connection.fetchval(ask) == before  # nothing was written


def test_migrate_does_not_even_load_yoyo_when_the_schema_is_current(database: str):
    program = run_python(
        "import asyncio, sys; from taskq.migrate import migrate;"
        "print(asyncio.run(migrate(sys.argv[1])), 'yoyo' in sys.modules, 'psycopg' in sys.modules)",
        database,
    )

    out, errors = program.communicate(timeout=30)

    assert (out.strip(), errors) == ("[] False False", "")


async def test_migrate_is_done_once_when_several_start_together(bare: str, raw: Connection):
    async with asyncio.TaskGroup() as group:
        starters = [group.create_task(migrate(bare)) for _ in range(4)]

    assert sorted(len(starter.result()) for starter in starters) == [0, 0, 0, len(NAMES)]
    assert await applied(raw) == NAMES


async def test_migrate_breaks_a_lock_that_a_dead_process_left(bare: str, raw: Connection):
    await migrate(bare)
    await roll_back(bare, keep=len(NAMES) - 1)
    await raw.execute("insert into taskq.yoyo_lock (locked, ctime, pid) values (1, now(), 4194304)")

    done = await migrate(bare)

    assert done == NAMES[-1:]
    assert await raw.fetchval("select count(*) from taskq.yoyo_lock") == 0


async def test_migrate_goes_on_after_a_kill_in_the_middle(bare: str, raw: Connection, longer: Path, eventually):
    (longer / "0999_slow.py").write_text(SLOW, encoding="utf-8")
    program = run_python(
        "import asyncio, sys; from pathlib import Path; from taskq import migrate;"
        "migrate.migrations_folder = lambda: Path(sys.argv[2]); asyncio.run(migrate.migrate(sys.argv[1]))",
        bare,
        str(longer),
    )

    async def asleep() -> bool:
        return await raw.fetchval("select count(*) from pg_stat_activity where query like '%pg_sleep(600)%'") > 1

    await eventually(asleep)
    program.kill()
    program.communicate()
    (longer / "0999_slow.py").write_text(SLOW.replace("600", "0"), encoding="utf-8")

    done = await migrate(bare)

    assert done == ["0999_slow"]
    assert await raw.fetchval("select to_regclass('taskq.half') is not null")


async def test_migrate_gives_way_and_tries_again_when_a_table_is_in_use(
    bare: str, raw: Connection, longer: Path, eventually, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", "taskq.migrate")
    await migrate(bare)
    (longer / "0999_locking.py").write_text(LOCKING, encoding="utf-8")
    reading = raw.transaction()
    await reading.start()
    await raw.execute("select from taskq.task")

    async with asyncio.TaskGroup() as group:
        migrating = group.create_task(migrate(bare))
        await eventually(says(lambda: "migration waits for a lock" in caplog.text))
        await reading.rollback()

    assert migrating.result() == ["0999_locking"]


async def test_migrate_gives_up_when_a_table_stays_in_use(
    bare: str, raw: Connection, longer: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "TRIES_MAX", 1)
    await migrate(bare)
    (longer / "0999_locking.py").write_text(LOCKING, encoding="utf-8")
    async with raw.transaction():
        await raw.execute("select from taskq.task")

        with pytest.raises(ConfigError, match="lock timeout"):
            await migrate(bare)

    assert await applied(raw) == NAMES


async def test_migrate_keeps_nothing_of_a_migration_that_is_refused(bare: str, raw: Connection, longer: Path):
    (longer / "0999_bad.py").write_text(BAD, encoding="utf-8")

    with pytest.raises(ConfigError, match=r"the database refused a migration: .*no_such_thing"):
        await migrate(bare)

    assert await applied(raw) == NAMES
    assert await raw.fetchval("select to_regclass('taskq.half') is null")


async def test_migrate_leaves_a_newer_schema_alone(database: str, connection: Connection):
    await connection.execute(
        "insert into taskq._yoyo_migration (migration_hash, migration_id, applied_at_utc)"
        " values ('x', '9999_newer', now())"
    )

    assert await migrate(database) == []


@pytest.mark.parametrize("dsn", ["postgresql://127.0.0.1:1/x", "nonsense://", "postgresql:///x?host=/nowhere/at-all"])
async def test_migrate_says_so_when_the_database_can_not_be_reached(dsn: str):
    with pytest.raises(ConfigError, match=r"the database can't be reached .* database_url"):
        await migrate(dsn)


async def test_roll_back_leaves_nothing_but_the_books_of_yoyo(bare: str, raw: Connection):
    await migrate(bare)
    await raw.fetchval("select taskq.enqueue('work', '{}')")

    undone = await roll_back(bare)

    assert undone == NAMES[::-1]
    assert await objects(raw) <= YOYO


async def test_roll_back_and_up_again_gives_the_same_schema(bare: str, raw: Connection):
    await migrate(bare)
    before = await objects(raw)
    await roll_back(bare)

    await migrate(bare)

    assert await objects(raw) == before


async def test_roll_back_keeps_the_first_when_told(bare: str, raw: Connection):
    await migrate(bare)

    undone = await roll_back(bare, keep=1)

    assert undone == NAMES[:0:-1]
    assert await applied(raw) == NAMES[:1]
    assert await migrate(bare) == NAMES[1:]


def test_every_migration_has_one_statement_a_step():
    """Several in one simple query can't be prepared; some distributions refuse them."""
    from yoyo import read_migrations

    for migration in read_migrations(str(migrations_folder())):
        migration.load()
        for each in migration.steps:
            for text in (each.step._apply, each.step._rollback):
                bodies = (text or "").split("$f$")
                assert ";" not in "".join(bodies[::2]).strip().rstrip(";")
                assert text, f"{migration.id} has a step without its way back"


def test_migrations_are_missed_loudly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(module, "__file__", str(tmp_path / "taskq" / "migrate.py"))

    with pytest.raises(ConfigError, match="install taskq again"):
        migrations_folder()
