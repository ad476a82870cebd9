"""Start children, hear what they say, end them; see `child` for what they do.

A child that fails or says nothing fails the measure, with the end of what it wrote to standard
error.  None outlives the bench.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import taskq
from taskq.bench.figures import BenchFailed

__all__ = ["Child", "child", "do", "time_start"]

SAY_S = 600.0  # the longest measure: a million rows filled, then worked on
END_S = 60.0
LINE_BYTES_MAX = 2**22
WORDS_BYTES = 2_000


class Child:
    """A running child."""

    def __init__(self, process: asyncio.subprocess.Process, job: str, errors: Path) -> None:
        """Wrap a process that has its job."""
        self._process = process
        self._job = job
        self._errors = errors

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    async def said(self) -> dict[str, Any]:
        """Wait for the next line."""
        if self._process.stdout is None:
            raise AssertionError
        try:
            async with asyncio.timeout(SAY_S):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise BenchFailed(f"{self._job} said nothing for {SAY_S:g} s: the machine is too slow or it hangs") from None
        if not line:
            words = self._errors.read_text(encoding="utf-8", errors="replace")[-WORDS_BYTES:].strip()
            raise BenchFailed(f"{self._job} failed:\n{words}")
        return json.loads(line)

    async def told_to_end(self) -> dict[str, Any]:
        """Ask a server to stop; return what it says at last."""
        self._process.send_signal(signal.SIGTERM)
        return await self.said()

    async def end(self) -> None:
        """Wait for its end, or bring it about."""
        try:
            async with asyncio.timeout(END_S):
                await self._process.wait()
        except TimeoutError:
            self.kill()
            await self._process.wait()

    def kill(self) -> None:
        """End it at once, if it lives."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()


@asynccontextmanager
async def child(job: str, **arguments: Any) -> AsyncGenerator[Child]:
    """Run a child with a job; it is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="taskq-bench-") as folder:
        errors = Path(folder, "errors")
        with errors.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "taskq.bench.child",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=file,
                cwd=folder,
                env=_environment(),
                limit=LINE_BYTES_MAX,
            )
        running = Child(process, job, errors)
        try:
            if process.stdin is None:
                raise AssertionError
            process.stdin.write(json.dumps({"job": job} | arguments).encode() + b"\n")
            yield running
        except BaseException:
            running.kill()
            raise
        finally:
            await running.end()


async def do(job: str, **arguments: Any) -> dict[str, Any]:
    """Run a job to its end; return what it found."""
    async with child(job, **arguments) as running:
        return await running.said()


async def time_start(*flags: str, dsn: str | None = None) -> float:
    """Start the service as a user does; return the seconds until it serves, and stop it."""
    with tempfile.TemporaryDirectory(prefix="taskq-bench-") as folder:
        errors = Path(folder, "errors")
        with errors.open("wb") as file:
            began = time.perf_counter()
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "taskq", "run", "--port", "0", "--durability", "relaxed", *flags),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=file,
                cwd=folder,
                env=_environment() | ({} if dsn is None else {"TASKQ_DATABASE_URL": dsn}),
            )
        if process.stdout is None:
            raise AssertionError
        try:
            async with asyncio.timeout(END_S):
                while not (line := await process.stdout.readline()).startswith(b"  HTTP"):
                    if not line:
                        words = errors.read_text(encoding="utf-8", errors="replace")[-WORDS_BYTES:].strip()
                        raise BenchFailed(f"the service did not start:\n{words}")
            return time.perf_counter() - began
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            await process.communicate()


def _environment() -> dict[str, str]:
    """Pass on the environment without settings of taskq: the bench measures one configuration."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TASKQ_")}
    places = (str(Path(taskq.__file__).parents[1]), kept.get("PYTHONPATH", ""))
    return kept | {"PYTHONPATH": os.pathsep.join(place for place in places if place)}
