"""A pytest fixture for programs that send mail by taskq: `taskq_inbox` waits for a mail and returns it.

It talks to the service that `TASKQ_TEST_URL`, or `taskq_url` in pytest's configuration, names.  Where
neither is set it starts one for the whole run, with a database of its own, to be deleted, and never a
relay: the settings of the surrounding environment don't reach it.

pytest loads this at every start wherever taskq is installed, so it stands apart from the package and
imports nothing that pytest has not: what a test needs is imported when one asks for the fixture.
"""

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

__all__ = ["TaskqInbox", "pytest_addoption", "taskq_inbox", "taskq_service"]

START_S = 120.0  # an empty database is made first
STOP_S = 60.0
ANSWER_S = 30.0  # beyond the wait that was asked for


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option of the configuration file."""
    parser.addini("taskq_url", "Address of a running taskq, such as http://127.0.0.1:8080.", default="")


@pytest.fixture(scope="session")
def taskq_service(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a service: the one that is named, or one of this run's own."""
    named = os.environ.get("TASKQ_TEST_URL") or str(request.config.getini("taskq_url"))
    if named:
        yield named.rstrip("/")
        return
    with _own_service() as url:
        yield url


@pytest.fixture
def taskq_inbox(taskq_service: str) -> "TaskqInbox":
    """The inbox of the service; what came before the test is left out."""
    return TaskqInbox(taskq_service)


class TaskqInbox:
    """The inbox of a running service, as of now.

    Attributes:
        url: Address of the service.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        newest: list[dict[str, Any]] = self._call("GET", "/inbox", limit=1)["mails"]
        self._after: int = newest[0]["id"] if newest else 0

    def wait(
        self,
        *,
        to: str | None = None,
        sender: str | None = None,
        subject: str | None = None,
        task: int | None = None,
        after: int | None = None,
        timeout: float = 10.0,
    ) -> dict[str, Any]:
        """Return the first mail that fits, as soon as it is captured; fail the test when none comes.

        Args:
            to: The whole address of the recipient, in any case.
            sender: The whole address of the sender, in any case.
            subject: A part of the subject, in any case.
            task: The id of the task that sends it.
            after: The id of a mail that it must come after; None: since the test began.
            timeout: Seconds, at most 60.
        """
        after = self._after if after is None else after
        filters = {"to": to, "from": sender, "subject": subject, "task": task}
        return self._call("GET", "/inbox/wait", timeout_s=timeout, after=after, timeout=timeout, **filters)

    def mails(
        self, *, to: str | None = None, subject: str | None = None, task: int | None = None
    ) -> list[dict[str, Any]]:
        """Return the mails that came since the test began, oldest first, the newest hundred at most."""
        found: list[dict[str, Any]] = self._call("GET", "/inbox", limit=100, to=to, subject=subject, task=task)["mails"]
        return [mail for mail in reversed(found) if mail["id"] > self._after]

    def clear(self) -> None:
        """Forget every mail of the service, those of other tests too."""
        self._call("DELETE", "/inbox")

    def _call(self, method: str, path: str, timeout_s: float = 0.0, **query: object) -> Any:
        import json  # noqa: PLC0415 - see the head of this module
        from urllib.error import HTTPError  # noqa: PLC0415
        from urllib.parse import urlencode  # noqa: PLC0415
        from urllib.request import Request, urlopen  # noqa: PLC0415

        given = urlencode({name: value for name, value in query.items() if value is not None})
        request = Request(f"{self.url}{path}?{given}", method=method)  # noqa: S310 - the address is the user's own
        try:
            with urlopen(request, timeout=timeout_s + ANSWER_S) as answer:  # noqa: S310
                return json.load(answer)
        except HTTPError as error:
            with error:
                detail = json.load(error)["detail"]
        pytest.fail(f"taskq: {detail}", pytrace=False)


@contextmanager
def _own_service() -> Generator[str]:
    """Run a service with an empty database; nothing of it is left behind."""
    import shutil  # noqa: PLC0415 - see the head of this module
    import subprocess  # noqa: PLC0415
    import sys  # noqa: PLC0415
    import tempfile  # noqa: PLC0415
    from pathlib import Path  # noqa: PLC0415

    folder = Path(tempfile.mkdtemp(prefix="taskq-pytest-"))
    folder.chmod(0o755)  # for a run by root: its PostgreSQL has an account of its own
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TASKQ_")}
    flags = ("--port", "0", "--data-dir", str(folder / "data"), "--smtp-url", "inbox:", "--log-format", "human")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-m", "taskq", *flags],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, cwd=folder, env=clean,
        )  # fmt: skip
    try:
        yield _address(process, folder / "log")
    finally:
        process.terminate()
        try:
            process.communicate(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        shutil.rmtree(folder, ignore_errors=True)


def _address(process: Any, log: Any) -> str:
    """Return the address that the service prints once it is up."""
    from threading import Timer  # noqa: PLC0415 - see the head of this module

    patience = Timer(START_S, process.kill)
    patience.start()
    try:
        for line in process.stdout:
            words = line.split()
            if words[:1] == [b"HTTP"]:
                return words[1].decode()
    finally:
        patience.cancel()
    pytest.fail(f"taskq did not start within {START_S:g} s:\n{log.read_text(errors='replace')[-2_000:]}", pytrace=False)
