"""A process of its own for each measure: reads one job from standard input, says what it found.

A job is one line of JSON, `{"job": "drain", ...}`; the last line said is what came of it.  A server
first says its `url` and runs until SIGTERM.  So no measure sees the memory, the caches or the
garbage of another.
"""

import asyncio
import json
import logging
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from pydantic import SecretStr

from taskq.bench import floors, jobs, load, mails, producer, sink
from taskq.bench.usage import memory_peak_mib
from taskq.config import Settings
from taskq.service import Banner, run_service

__all__ = ["main"]

Result = dict[str, Any]


def main() -> None:
    """Do the job that standard input names."""
    logging.basicConfig(level=logging.WARNING)
    order = json.loads(sys.stdin.readline())
    job = JOBS[order.pop("job")]
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        _say(runner.run(job(**order)))


async def _serve_hello() -> Result:
    """Run the server that stores nothing."""
    await floors.serve_hello(_until_told)
    return {"memory_mib": memory_peak_mib()}


async def _serve_insert(dsn: str) -> Result:
    """Run the server that stores each request by itself."""
    await floors.serve_insert(dsn, _until_told)
    return {"memory_mib": memory_peak_mib()}


async def _serve(dsn: str, role: str) -> Result:
    """Run the service, whole, until SIGTERM."""
    settings = Settings.model_validate(
        {
            "database_url": SecretStr(dsn),
            "durability": "relaxed",
            "role": role,
            "port": 0,
            "handlers": ("taskq.bench.kinds",),
            "inbox_mails_max": 1_000_000,
        }
    )

    def announce(banner: Banner) -> None:
        _say({"url": banner.url})

    await run_service(settings, announce)
    return {"memory_mib": memory_peak_mib()}


async def _wake_there(dsn: str, pause_s: float) -> Result:
    """Run what others submit until SIGTERM."""

    async def until() -> None:
        await _until_told("")

    return await jobs.wake_there(dsn, pause_s, until)


async def _serve_sink(delay_s: float) -> Result:
    """Take mails until SIGTERM."""
    return await sink.serve_sink(delay_s, _until_told)


JOBS: dict[str, Callable[..., Coroutine[Any, Any, Mapping[str, Any]]]] = {
    "serve_hello": _serve_hello,
    "serve_insert": _serve_insert,
    "serve": _serve,
    "serve_sink": _serve_sink,
    "wake_there": _wake_there,
    "commit_alone": floors.commit_alone,
    "insert_grouped": floors.insert_grouped,
    "put_load": load.put_load,
    "submit": jobs.submit,
    "drain": jobs.drain,
    "steady": jobs.steady,
    "wake_here": jobs.wake_here,
    "read": jobs.read,
    "enqueue": producer.enqueue,
    "bulk": producer.bulk,
    "paced": producer.paced,
    "send_each_alone": mails.send_each_alone,
    "send_on_few": mails.send_on_few,
    "drain_mails": mails.drain_mails,
    "compose_mails": mails.compose_mails,
}


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop  # noqa: PLC0415 - absent on Windows
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def _say(found: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


async def _until_told(url: str) -> None:
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    _say({"url": url})
    await told.wait()


if __name__ == "__main__":
    main()
