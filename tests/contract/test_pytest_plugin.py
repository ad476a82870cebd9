"""The fixture that taskq brings for the tests of its users, run as they run it."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from rig import serving

QUICK = ("--port", "0", "--durability", "relaxed", "--poll-s", "0.2", "--sweep-s", "0.1", "--beat-s", "0.2")
TESTS = """
import json
from urllib.request import urlopen

import pytest


def send(url, to, subject):
    mail = json.dumps({"To": to, "subject": subject, "body": "see https://x.test/c?t=1"}).encode()
    with urlopen(f"{url}/task/", mail) as answer:
        return json.load(answer)["id"]


def test_mail_is_waited_for(taskq_inbox):
    task = send(taskq_inbox.url, "ada@x.test", "Welcome")

    mail = taskq_inbox.wait(to="Ada@x.test", subject="welcome")

    assert (mail["task_id"], mail["links"]) == (task, ["https://x.test/c?t=1"])
    second = send(taskq_inbox.url, "ada@x.test", "Welcome")
    assert taskq_inbox.wait(to="ada@x.test", after=mail["id"])["task_id"] == second
    assert [each["task_id"] for each in taskq_inbox.mails(to="ada@x.test")] == [task, second]


def test_what_came_before_is_left_out(taskq_inbox):
    send(taskq_inbox.url, "bob@x.test", "Hi")

    assert taskq_inbox.wait()["to"] == "bob@x.test"
    assert [each["to"] for each in taskq_inbox.mails()] == ["bob@x.test"]


def test_no_mail_fails_the_test(taskq_inbox):
    with pytest.raises(pytest.fail.Exception, match="no mail to eve@x.test after [0-9]+ was captured within 0.1 s"):
        taskq_inbox.wait(to="eve@x.test", timeout=0.1)


def test_clear_empties_the_inbox(taskq_inbox):
    send(taskq_inbox.url, "bob@x.test", "Hi")
    taskq_inbox.wait()

    taskq_inbox.clear()

    assert taskq_inbox.mails() == []
"""


def run(folder: Path, *options: str, **environment: str) -> str:
    """Run a user's tests; return what pytest printed."""
    (folder / "test_mails.py").write_text(TESTS, encoding="utf-8")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TASKQ_", "PYTEST", "COVERAGE"))}
    others = [flag for name in ("randomly", "asyncio", "aiohttp") for flag in ("-p", f"no:{name}")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *others, "-W", "error", *options, "test_mails.py"],
        cwd=folder, env=clean | environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.mark.timeout(240)
def test_fixture_starts_a_service_of_its_own_and_leaves_nothing(tmp_path: Path):
    folder = Path(tempfile.mkdtemp())  # short, because a socket lies in it
    folder.chmod(0o755)

    # What the environment says of a service does not reach the fixture's.
    printed = run(tmp_path, TASKQ_SMTP_URL="smtp://127.0.0.1:1", TASKQ_NONSENSE="x", TMPDIR=str(folder))
    left = sorted(folder.glob("taskq-pytest-*"))
    shutil.rmtree(folder)

    assert "4 passed" in printed, printed
    assert left == []


def test_fixture_talks_to_the_service_that_is_named(database: str, tmp_path: Path):
    with serving(tmp_path / "service", *QUICK, database=database) as service:
        by_environment = run(tmp_path, TASKQ_TEST_URL=service.url + "/")
        by_option = run(tmp_path, "-o", f"taskq_url={service.url}")
        captured = service.call("GET", "/inbox").json["mails"]

    assert "4 passed" in by_environment, by_environment
    assert "4 passed" in by_option, by_option
    assert captured == []


def test_plugin_is_light(tmp_path: Path):
    """It is loaded at every start of pytest, wherever taskq is installed."""
    (tmp_path / "test_nothing.py").write_text(
        "import sys\n\n\ndef test_nothing():\n"
        "    assert 'pytest_taskq' in sys.modules\n"
        "    assert not {'taskq', 'pydantic', 'aiohttp', 'asyncpg'} & set(sys.modules)\n",
        encoding="utf-8",
    )

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:aiohttp", "test_nothing.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert "1 passed" in done.stdout, done.stdout + done.stderr
