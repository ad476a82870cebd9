"""What the README and docs show is done: every block, in order, against a service that really runs.

Each page gets a copy of the clone without its environment, an empty data folder and a free port.  A
`console` block holds commands after `$ ` and what they print; `…` stands for anything.  A `python`
block whose first line names a file is written there; a `sql` block runs in the service's database.
A reader's next command comes later than a machine's, so one that only looks is repeated for a while.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from conftest import wait_until

CLONE = Path(__file__).parents[1]
PAGES = [CLONE / "README.md", *sorted((CLONE / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)\)")
READ_ONLY = {"text", "mermaid"}
STARTS_SERVICE = re.compile(r"^(?:TASKQ_\w+=\S+ )*(?:make run\b|\S*python run\.py\b)")
ONLY_LOOKS = re.compile(r"^curl -s http")
START_S, LOOK_S = 240, 15
# What a clone may hold beside its files; some of it comes and goes while other tests run.
UNNEEDED = (
    ".git",
    ".venv",
    "*_cache",
    ".hypothesis",
    "__pycache__",
    ".coverage*",
    ".logs",
    "taskq.toml",
    "dist",
    "build",
)
# Commands that would run these very tests: what can be shown of them is.
REHEARSALS = {
    "make test": "make --dry-run test",
    ".venv/bin/pip install --quiet --editable '.[dev]'": ".venv/bin/pip install --quiet --dry-run '.[dev]'",
    ".venv/bin/python -m pytest": f"{sys.executable} -m pytest -q --collect-only tests/unit",
}


class Reader:
    """Somebody who types what a page shows."""

    def __init__(self, folder: Path) -> None:
        self.clone = folder / "clone"
        self.data = folder / "data"
        self._printed = folder / "printed"
        self._service: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = str(probe.getsockname()[1])
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("TASKQ_", "COVERAGE_", "MAKE"))
        }
        self._environment = kept | {
            "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}",
            "PYTHON": sys.executable,
            "TASKQ_DATA_DIR": str(self.data),
            "TASKQ_PORT": self._port,
        }

    def follow(self, page: Path) -> None:
        for language, text in BLOCK.findall(page.read_text(encoding="utf-8")):
            match language:
                case "console":
                    for command, expected in _commands(text):
                        self.type(command, expected)
                case "sql":
                    with psycopg.connect(f"postgresql://taskq@/taskq?host={self.data / 'run'}") as connection:
                        connection.execute(text)
                case "python":
                    name = text.splitlines()[0].removeprefix("# ")
                    (self.clone / name).write_text(text, encoding="utf-8")
                case _:
                    assert language in READ_ONLY, f"a block of {language or 'nothing'}, which nobody runs:\n{text}"

    def type(self, command: str, expected: str) -> None:
        if STARTS_SERVICE.match(command):
            self.start(command)
            printed = self._printed.read_text(encoding="utf-8")
        elif ONLY_LOOKS.match(command):
            wait_until(lambda: self._matches(self._run(command), expected), LOOK_S)
            return
        else:
            printed = self._run(REHEARSALS.get(command, command))
        assert command in REHEARSALS or self._matches(printed, expected), f"$ {command}\n{printed}\nis not\n{expected}"

    def start(self, command: str) -> None:
        """Start the service anew and wait until it serves."""
        self.stop()
        with self._printed.open("wb") as out:
            service = self._service = subprocess.Popen(
                ["bash", "-c", self._here(command)],
                stdin=subprocess.DEVNULL, stdout=out, cwd=self.clone, env=self._environment, start_new_session=True,
            )  # fmt: skip

        def serves() -> bool:
            assert service.poll() is None, f"{command} ended with {service.returncode}"
            return "  try  " in self._printed.read_text(encoding="utf-8")

        wait_until(serves, START_S)

    def stop(self) -> None:
        """Press Ctrl-C."""
        if self._service is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._service.pid, signal.SIGINT)
            self._service.wait(60)
            self._service = None

    def _run(self, command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", self._here(command)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=self.clone, env=self._environment,
            timeout=START_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def _here(self, text: str) -> str:
        return text.replace("8080", self._port)

    def _matches(self, printed: str, expected: str) -> bool:
        pattern = ".*".join(re.escape(part) for part in self._here(expected).strip().split("…"))
        return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


def _commands(block: str) -> Iterator[tuple[str, str]]:
    """Split a block into commands and what each prints."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, _, printed = part.partition("\n")
        yield command, printed


@pytest.fixture
def reader() -> Iterator[Reader]:
    folder = Path(tempfile.mkdtemp(prefix="taskq-docs-"))  # short: a socket lies in it
    folder.chmod(0o755)  # PostgreSQL's own account must pass when root runs this
    unneeded = shutil.ignore_patterns(*UNNEEDED)
    shutil.copytree(CLONE, folder / "clone", ignore=unneeded)
    someone = Reader(folder)
    try:
        yield someone
    finally:
        someone.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.timeout(600)
def test_readme_does_what_it_shows(reader: Reader) -> None:
    reader.follow(CLONE / "README.md")


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.stem)
def test_page_does_what_it_shows(reader: Reader, page: Path) -> None:
    if {language for language, _ in BLOCK.findall(page.read_text(encoding="utf-8"))} - READ_ONLY:
        reader.start(f"{sys.executable} run.py")

    reader.follow(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")

    assert [link for link in LINK.findall(text) if not (page.parent / link).exists()] == []
