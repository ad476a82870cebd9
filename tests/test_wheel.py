"""The wheel holds everything: installed apart from the clone it finds its migrations and statements."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    hatchling = Path(sys.executable).with_name("hatchling")
    subprocess.run([hatchling, "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_wheel_holds_every_migration_and_statement(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())

    for path in (ROOT / "migrations").glob("*.py"):
        assert f"taskq/migrations/{path.name}" in names
    for path in (ROOT / "taskq/sql").glob("*.sql"):
        assert f"taskq/sql/{path.name}" in names
    assert "taskq/py.typed" in names


def test_wheel_brings_a_command_that_starts(wheel: Path, tmp_path: Path):
    place = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", place, wheel],
        check=True,
        capture_output=True,
    )
    code = "from taskq.migrate import migrations_folder; print(migrations_folder())"

    found = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(place)},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )

    assert Path(found.stdout.strip()) == place / "taskq/migrations"
