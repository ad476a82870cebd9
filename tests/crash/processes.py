"""The processes of a campaign: the sink and the instances of `run.py`; and how to wait for them."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).parent
PROGRAM = HERE.parents[1] / "run.py"
HANG_S = 60.0  # of a wait that is over in a moment, or never


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = HANG_S) -> float:
    """Wait for a condition; return the seconds that it took."""
    began = time.monotonic()
    never = threading.Event()
    while not condition():
        assert time.monotonic() < began + timeout_s, f"not within {timeout_s:g} s: {what}"
        never.wait(0.01)
    return time.monotonic() - began


def pass_time(seconds: float) -> None:
    """Let the others work: the length of a phase of a campaign, not a wait for anything."""
    threading.Event().wait(seconds)


class Sink:
    """The SMTP sink of `sink.py` as a process."""

    def __init__(self, place: Path, *, text_s: float = 0.0, dot_s: float = 0.0) -> None:
        self.journal = place / "sink.jsonl"
        delays = ["--text-s", str(text_s), "--dot-s", str(dot_s)]
        self._process = subprocess.Popen(
            [sys.executable, HERE / "sink.py", self.journal, *delays],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout
        self.url = f"smtp://127.0.0.1:{self._process.stdout.readline().strip()}"

    def close(self) -> None:
        self._process.communicate(timeout=10)


class Instance:
    """One `run.py`: started, killed, frozen, asked to stop, started again."""

    def __init__(self, place: Path, name: str, flags: dict[str, object], environment: dict[str, str]) -> None:
        self.name = name
        self.log = place / f"{name}.log"
        self.url: str | None = None
        self._said = place / f"{name}.out"
        self._place = place
        self._flags = [f"--{flag.replace('_', '-')}={value}" for flag, value in flags.items()]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TASKQ_")}
        self._environment = clean | environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, *, wait: bool = True) -> Self:
        self.url = None
        with self._said.open("wb") as said, self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, PROGRAM, *self._flags],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=log,
                cwd=self._place,
                env=self._environment,
            )
        if wait:
            self.wait_up()
        return self

    def wait_up(self) -> None:
        wait_until(lambda: self._find_url() or not self.alive, f"{self.name} starts")
        assert self.url, f"{self.name} ended at its start:\n{self.tail()}"

    def kill(self) -> float:
        """SIGKILL; return the wall clock just before."""
        self.url = None
        at = time.time()
        if self._process:
            self._process.kill()
            self._process.wait(10)
        return at

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def terminate(self, timeout_s: float = HANG_S) -> int:
        """Ask to stop and wait; return the exit code."""
        assert self._process
        self.url = None
        self._process.terminate()
        return self.wait(timeout_s)

    def wait(self, timeout_s: float) -> int:
        assert self._process
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not end within {timeout_s:g} s:\n{self.tail()}") from None

    def tail(self) -> str:
        """Return the end of its log."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-4000:]

    def events(self, message: str) -> list[dict[str, Any]]:
        """Return what it logged under a message."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        found = [json.loads(line) for line in lines if message in line and line.startswith("{")]
        return [event for event in found if event.get("event") == message]

    def _find_url(self) -> bool:
        if self._said.exists() and (found := re.search(r"HTTP\s+(http://\S+)", self._said.read_text())):
            self.url = found.group(1)
        return self.url is not None
