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

    def __init__(self, process: asyncio.subprocess.Process, name: str, errors: Path) -> None:
        """Wrap a process; `errors` is what it writes to standard error."""
        self._process = process
        self._name = name
        self._errors = errors

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def tell(self, line: bytes) -> None:
        """Send it its only line."""
        if self._process.stdin is None:
            raise AssertionError
        self._process.stdin.write(line)

    async def line(self) -> bytes:
        """Wait for the next line that it says.

        Raises:
            BenchFailed: It ended, or says nothing.
        """
        if self._process.stdout is None:
            raise AssertionError
        try:
            async with asyncio.timeout(SAY_S):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise BenchFailed(f"{self._name} said nothing for {SAY_S:g} s: it hangs, or the machine is slow") from None
        if not line:
            words = self._errors.read_text(encoding="utf-8", errors="replace")[-WORDS_BYTES:].strip()
            raise BenchFailed(f"{self._name} failed:\n{words}")
        return line

    async def url(self) -> str:
        """Wait until a server serves; return where."""
        return json.loads(await self.line())["url"]

    async def result(self) -> dict[str, Any]:
        """Ask a server to stop; return what it found."""
        self.stop()
        return json.loads(await self.line())

    def stop(self) -> None:
        """Ask it to stop."""
        self._process.send_signal(signal.SIGTERM)

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
    order = json.dumps({"job": job} | arguments).encode() + b"\n"
    with tempfile.TemporaryDirectory(prefix="taskq-bench-") as folder:
        running = await _start(job, Path(folder), "taskq.bench.child", environment=_environment())
        try:
            running.tell(order)
            yield running
        except BaseException:
            running.kill()
            raise
        finally:
            await running.end()


async def do(job: str, **arguments: Any) -> dict[str, Any]:
    """Run a job to its end; return what it found."""
    async with child(job, **arguments) as running:
        return json.loads(await running.line())


async def time_start(*flags: str, dsn: str | None = None) -> float:
    """Start the service as a user does; return the seconds until it serves, and stop it."""
    environment = _environment() | ({} if dsn is None else {"TASKQ_DATABASE_URL": dsn})
    command = ("taskq", "run", "--port", "0", "--durability", "relaxed", *flags)
    with tempfile.TemporaryDirectory(prefix="taskq-bench-") as folder:
        began = time.perf_counter()
        service = await _start("the service", Path(folder), *command, environment=environment)
        try:
            while not (await service.line()).startswith(b"  HTTP"):
                pass
            took = time.perf_counter() - began
            service.stop()
        except BaseException:
            service.kill()
            raise
        finally:
            await service.end()
    return took


async def _start(name: str, folder: Path, *command: str, environment: dict[str, str]) -> Child:
    errors = folder / "errors"
    with errors.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *command),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=file,
            cwd=folder,
            env=environment,
            limit=LINE_BYTES_MAX,
        )
    return Child(process, name, errors)


def _environment() -> dict[str, str]:
    """Pass on the environment without settings of taskq: the bench measures one configuration."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TASKQ_")}
    places = (str(Path(taskq.__file__).parents[1]), kept.get("PYTHONPATH", ""))
    return kept | {"PYTHONPATH": os.pathsep.join(place for place in places if place)}
