"""What the tests of the core share: kinds, rows, leases, the parts in this process, the service as a program."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import asyncpg
from conftest import wait_until

from taskq.config import Settings
from taskq.context import Context
from taskq.kinds.registry import Kind, Registry, make_kind
from taskq.service import Parts, running_parts
from taskq.task import NewTask, RetryPolicy

CLONE = Path(__file__).parents[1]
QUICK = RetryPolicy(base_s=0.02, cap_s=0.05, floor_s=0.01)
START_S, STOP_S = 60.0, 60.0

Connection = asyncpg.Connection  # its parameter is of no use here


def kind(name: str, function: Callable[..., Awaitable[object]], *, policy: RetryPolicy = QUICK, **limits: Any) -> Kind:
    """A kind with quick retries."""
    return make_kind(
        name,
        function,
        policy,
        limits.get("timeout_s", 10.0),
        max_attempts=limits.get("max_attempts", 3),
        ack_each=limits.get("ack_each", False),
        privacy=limits.get("privacy"),
    )


def new(name: str = "work", payload: str = "{}", **fields: Any) -> NewTask:
    """A submission."""
    return NewTask(name, payload, **fields)


@contextlib.asynccontextmanager
async def running(settings: Settings, *kinds: Kind, **changes: Any) -> AsyncIterator[Parts]:
    """The parts of one process, without the web; what runs at the end is cut off."""
    changed = settings.model_copy(update=changes)
    url = changed.database_url.get_secret_value()

    def prepare(registry: Registry) -> None:
        for each in kinds:
            registry.add(each)

    async with running_parts(changed, url, url, prepare) as (parts, _):
        yield parts


async def register(connection: Connection, *, beaten_ago_s: float = 0.0) -> int:
    """The id of a new lease, of a process elsewhere."""
    return await connection.fetchval(
        "insert into taskq.lease (instance, host, pid, beat_at)"
        " values ($1, 'elsewhere', 1, now() - $2 * interval '1 second') returning id",
        uuid.uuid4(),
        beaten_ago_s,
    )


async def put(connection: Connection, name: str = "work", **columns: Any) -> int:
    """The id of a row that is inserted by hand, without a wake."""
    values = {"kind": name, "payload": "{}"} | columns
    names = ", ".join(values)
    places = ", ".join(f"${n}" for n in range(1, len(values) + 1))
    return await connection.fetchval(
        f"insert into taskq.task (id, {names}) values (nextval('taskq.task_id'), {places}) returning id",
        *values.values(),
    )


async def row(connection: Connection, task_id: int) -> asyncpg.Record:
    """The stored task."""
    return await connection.fetchrow("select * from taskq.task where id = $1", task_id)


async def statuses(connection: Connection) -> dict[int, int]:
    """How many tasks are in each status."""
    return dict(await connection.fetch("select status, count(*) from taskq.task group by 1"))


async def attempts(connection: Connection, task_id: int) -> list[tuple[Any, ...]]:
    """Run, attempt, outcome and error of the attempts kept."""
    return [
        tuple(each)
        for each in await connection.fetch(
            "select run, attempt, outcome, error from taskq.attempt where task_id = $1 order by run", task_id
        )
    ]


HOUR_S = 3_600.0
NEVER = {"poll_s": HOUR_S}
"""Settings under which nothing is found by the poll."""


class Work:
    """A handler that takes notes and, where asked to, waits for `go_on`."""

    def __init__(self, *, held: bool = False) -> None:
        self.seen: list[int] = []
        self.ended: list[int] = []
        self.go_on = asyncio.Event()
        self.running = self.most = 0
        if not held:
            self.go_on.set()

    async def __call__(self, _payload: dict[str, Any], context: Context) -> None:
        self.seen.append(context.task_id)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.go_on.wait()
            self.ended.append(context.task_id)
        finally:
            self.running -= 1


def becomes(connection: Connection, task_id: int, status: int) -> Callable[[], Any]:
    async def check() -> bool:
        return (await row(connection, task_id))["status"] == status

    return check


def all_are(connection: Connection, counts: dict[int, int]) -> Callable[[], Any]:
    async def check() -> bool:
        return await statuses(connection) == counts

    return check


def says(condition: Callable[[], object]) -> Callable[[], Any]:
    async def check() -> object:
        return condition()

    return check


async def settled_down(parts: Parts, eventually: Any) -> None:
    """Wait until the first looks are over, so that births are on."""
    await eventually(says(lambda: not parts.dispatcher._backlog and not parts.dispatcher._reconcile_due()))


@dataclass
class Answer:
    """What the service answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Program:
    """`python run.py` as a program of its own; `lines` is what it printed when it was up."""

    process: "subprocess.Popen[bytes]"
    folder: Path
    url: str = ""
    lines: list[str] = field(default_factory=list)

    @property
    def errors(self) -> str:
        return (self.folder / "stderr").read_text(encoding="utf-8")

    @property
    def printed(self) -> str:
        return (self.folder / "stdout").read_text(encoding="utf-8")

    def call(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """Make one request."""
        request = urllib.request.Request(self.url + path, data=body, method=method)  # noqa: S310 - our own address
        for name, value in headers.items():
            request.add_header(name.replace("_", "-"), value)
        if body is not None and not request.has_header("Content-type"):
            request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=20) as response:  # noqa: S310
                return Answer(response.status, dict(response.headers), response.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, dict(error.headers), error.read())

    def submit(self, **payload: Any) -> int:
        """Submit a task of kind `work`; return its id."""
        answer = self.call("POST", "/task/", json.dumps({"kind": "work", "payload": payload}).encode())
        assert answer.status == 201, answer.body
        return answer.json["id"]

    def shown(self, task_id: int, query: str = "") -> dict[str, Any]:
        """A task or a group, as the service shows it."""
        return self.call("GET", f"/task/{task_id}{query}").json

    def becomes(self, task_id: int, status: str) -> dict[str, Any]:
        """Wait until a task or a group has this status; return what is shown then."""
        wait_until(lambda: self.shown(task_id)["status"] == status)
        return self.shown(task_id)

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = STOP_S) -> int:
        return self.process.wait(timeout_s)


def run_program(
    folder: Path, *flags: str, database: str | None = None, environment: dict[str, str] | None = None
) -> Program:
    """Start `python run.py` in an empty folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TASKQ_", "COVERAGE_"))}
    if database is not None:
        clean["TASKQ_DATABASE_URL"] = database
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, str(CLONE / "run.py"), *flags],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=folder,
            env=clean | (environment or {}),
        )
    return Program(process, folder)


def await_url(program: Program, timeout_s: float = START_S) -> Program:
    """Wait until the program has printed where it serves."""
    until = time.monotonic() + timeout_s
    pause = Event()
    while True:
        printed = program.printed
        for line in printed.splitlines():
            if line.split()[:1] == ["HTTP"] and "  mails  " in printed:
                program.url, program.lines = line.split()[1], printed.splitlines()
                return program
        assert program.process.poll() is None, program.errors
        assert time.monotonic() < until, f"not up within {timeout_s:g} s: {program.errors}"
        pause.wait(0.01)


@contextlib.contextmanager
def serving(folder: Path, *flags: str, **options: Any) -> Iterator[Program]:
    """A running service, which is stopped at the end."""
    program = run_program(folder, *flags, **options)
    try:
        yield await_url(program)
    finally:
        if program.process.poll() is None:
            program.signal()
            try:
                program.wait()
            except subprocess.TimeoutExpired:
                program.process.kill()
                program.wait()
                raise


HANDLERS = '''
from typing import Any

from gate import pass_gate

from taskq import Context, RetryPolicy, Snooze, TaskError, handler


@handler("work", policy=RetryPolicy(0.05, 0.1, 0.01), max_attempts=3)
async def work(payload: dict[str, Any], context: Context) -> None:
    """Do what the payload says."""
    for facts in payload.get("note", ()):
        context.note(facts)
    if "gate" in payload:
        await pass_gate(payload["gate"])
    match payload.get("do"):
        case "fail":
            raise TaskError("no such luck", retryable=False)
        case "retry":
            raise TaskError("not yet", retry_after_s=float(payload["after_s"]))
        case "snooze":
            raise Snooze("later", delay_s=60)
        case "crash":
            raise ValueError(payload.get("text", "bang"))
'''


def handlers(folder: Path) -> dict[str, str]:
    """Write a module with the kind `work`; return the environment that makes the program load it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "contract_kinds.py").write_text(HANDLERS, encoding="utf-8")
    return {"TASKQ_HANDLERS": "contract_kinds", "PYTHONPATH": f"{folder}{os.pathsep}{CLONE / 'tests'}"}
