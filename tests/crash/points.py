"""Crash points: kill a process exactly before its N-th system call, for every N.

strace is attached to the main thread of an idle service; then one task is submitted.  uvloop reads
and writes its sockets with read(2) and write(2), and strace can deliver SIGKILL on entering the N-th
of them.  The calls before which one can die between two effects are thus walked through one by one.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from processes import Instance

CALLS = ("write", "read")
_LAST = re.compile(r"^(?P<call>read|write)\((?P<descriptor>\d+), (?P<rest>.*)$")


class Tracer:
    """strace on one process, set to kill it before the N-th call."""

    def __init__(self, service: Instance, call: str, number: int, log: Path) -> None:
        self._log = log
        inject = [] if not number else ["-e", f"inject={call}:signal=SIGKILL:when={number}"]
        self._process = subprocess.Popen(
            ["strace", "-s", "64", "-o", log, "-e", f"trace={','.join(CALLS)}", *inject, "-p", str(service.pid)],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr
        self.said = self._process.stderr.readline()  # "attached", or why not

    @property
    def attached(self) -> bool:
        return "attached" in self.said

    def close(self) -> str:
        """Detach; return the call before which the process died, for people."""
        if self._process.poll() is None:
            self._process.terminate()
        self._process.communicate(timeout=10)
        calls = [line for line in self._log.read_text(errors="replace").splitlines() if _LAST.match(line)]
        return _described(calls)


def _described(calls: list[str]) -> str:
    if not calls:
        return "at the first call"
    found = _LAST.match(calls[-1])
    assert found
    return f"{found['call']} {_purpose(calls[-1], calls[:-1], found['descriptor'])}"


def _purpose(line: str, before: list[str], descriptor: str) -> str:
    """Name what a call was for; a read that was killed shows no bytes, so look at what its socket wrote."""
    if line.startswith("write"):
        return f"of {_name(line, before)}"
    written = [at for at, earlier in enumerate(before) if earlier.startswith(f"write({descriptor},")]
    if written:
        return f"of the reply to {_name(before[written[-1]], before[: written[-1]])}"
    return "of a wake-up, a request or a greeting"


def _name(line: str, before: list[str]) -> str:
    for mark, purpose in (
        ("HTTP/1.1 201", "the answer 201"),
        ("EHLO", "EHLO"),
        ("MAIL FROM", "MAIL, RCPT and DATA"),
        ('"From: ', "the text with its final dot"),
        ("QUIT", "QUIT"),
        ("typeinfo_tree", "asyncpg's look at types"),
        ("client_encoding", "the log-in at PostgreSQL"),
        ('"P', "preparing a statement"),
    ):
        if mark in line:
            return purpose
    return "the settle" if any('"From: ' in earlier for earlier in before) else "a statement before the mail"


def why_impossible() -> str:
    """Return why processes can't be traced here; empty when they can."""
    if not shutil.which("strace"):
        return "strace is not installed"
    probe = subprocess.run(
        ["strace", "-qq", "-o", "/dev/null", sys.executable, "-c", ""], capture_output=True, check=False
    )
    return "" if probe.returncode == 0 else f"processes can't be traced here: {probe.stderr.decode()[:200]}"
