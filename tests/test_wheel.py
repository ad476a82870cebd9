"""The wheel holds everything: in an environment of its own, far from the clone, it starts and works."""

import json
import os
import re
import subprocess
import sys
import urllib.request
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import wait_until

ROOT = Path(__file__).parent.parent
START_S = 60


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
    assert {"taskq/py.typed", "pytest_taskq.py"} <= names


@pytest.mark.timeout(300)
def test_wheel_starts_in_a_fresh_environment(wheel: Path, place: Path):
    venv.create(place / "venv", with_pip=True)
    subprocess.run([place / "venv/bin/pip", "install", "--quiet", wheel], check=True, capture_output=True)
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("TASKQ_", "COVERAGE_", "PYTHON"))
    }

    with (place / "printed").open("wb") as out:
        service = subprocess.Popen(
            [place / "venv/bin/taskq", "--port", "0", "--data-dir", place / "data"], stdout=out, cwd=place, env=clean
        )
    try:
        wait_until(lambda: service.poll() is not None or "  try  " in (place / "printed").read_text(), START_S)
        url = re.findall(r"HTTP +(\S+)", (place / "printed").read_text())[0]
        mail = json.dumps({"To": "example@gmail.com", "subject": "Test Subject", "body": "Test E-Mail Body"}).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{url}/task/", data=mail), timeout=10) as answer:  # noqa: S310
            assert json.load(answer) == {"message": "Task Created", "id": 1}
    finally:
        service.terminate()
        assert service.wait(30) == 0
