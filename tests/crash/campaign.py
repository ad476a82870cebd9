"""The campaign: a durable cluster, instances of `run.py`, a sink, load that takes notes, and murder.

Everything is a process or a thread of our own; what is killed is killed by its process id.  Every
wait has a bound.  Randomness comes from one seed, so that the same faults come in the same order.
All campaigns but those that murder the server share one cluster; each has a database of its own.
"""

import atexit
import functools
import http.client
import itertools
import json
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import psycopg
from checker import Report, check
from databases import with_database
from gate import Gate
from processes import HERE, Instance, Sink, pass_time, wait_until

from taskq.postgres import EmbeddedPostgres

SCALE = max(1.0, float(os.environ.get("TASKQ_CRASH_SECONDS") or 0) / 150)
"""How much longer than the short form: TASKQ_CRASH_SECONDS over the 150 s of the short form."""

SHORT_LIVES = {"poll_s": 0.2, "sweep_s": 0.5, "beat_s": 0.5, "lease_s": 2, "probe_s": 2}
"""Settings that make a lost lease show within seconds."""

REQUEST_S = 20.0
LOAD_THREADS = 6

BUSY_S = 10.0
"""What a busy machine may add to a span that the settings promise; how long it takes at rest is printed."""


def rounds(short: int) -> int:
    """Return how often to do it: `short` times, more in the long form."""
    return round(short * SCALE)


class History:
    """What clients were told, one JSON line for each submission."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("a", encoding="utf-8")
        self._turn = threading.Lock()
        self._numbers = itertools.count(1)
        self.stored_at: list[float] = []
        """Monotonic times of the answers 201."""
        self.refused_at: list[float] = []
        """Monotonic times of all other answers."""
        self.latest = ""
        """The recipient of the latest submission."""

    def recipient(self, name: str = "n") -> str:
        """Return an address that no other submission has; `name` begins it."""
        self.latest = f"{name}{next(self._numbers)}@example.com"
        return self.latest

    def note(self, to: str, outcome: str, **facts: object) -> None:
        with self._turn:
            (self.stored_at if outcome == "stored" else self.refused_at).append(time.monotonic())
            self._file.write(json.dumps({"at": time.monotonic(), "to": to, "outcome": outcome} | facts) + "\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()

    def first_stored_after(self, moment: float) -> float:
        """Wait for the first 201 after a monotonic moment; return the seconds between."""
        wait_until(lambda: self.stored_at and self.stored_at[-1] > moment, "a submission is stored again")
        return next(at for at in list(self.stored_at) if at > moment) - moment


def post(url: str, document: dict[str, object], history: History) -> int | None:
    """Submit one task and note what was told; return its id when it was stored."""
    parts = urlsplit(url)
    payload = document.get("payload", document)
    to = str(payload.get("To") or payload["to"]) if isinstance(payload, dict) else ""
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=REQUEST_S)
    try:
        connection.connect()
    except OSError as error:
        history.note(to, "refused", why=repr(error))  # nothing was sent
        return None
    try:
        connection.request("POST", "/task/", json.dumps(document), {"Content-Type": "application/json"})
        response = connection.getresponse()
        told = json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        history.note(to, "unknown", why=repr(error))
        return None
    finally:
        connection.close()
    if response.status == 201:
        history.note(to, "stored", id=told["id"])
        return int(told["id"])
    unknown = told.get("code") == "outcome_unknown"
    history.note(to, "unknown" if unknown else "refused", why=told.get("code"), status=response.status)
    return None


def mail(to: str, number: int = 0) -> dict[str, object]:
    return {"To": to, "subject": f"Crash test {number}", "body": f"One of many.\n.\nFor {to}.\n"}


class Load:
    """Threads that submit at random moments, at a given mean rate, to whichever instance is up."""

    def __init__(
        self,
        instances: Sequence[Instance],
        history: History,
        seed: int,
        *,
        rate_per_s: float,
        document: Callable[[str], dict[str, object]] = mail,
        name: str = "n",
    ) -> None:
        self._instances = instances
        self._history = history
        self._document = document
        self._name = name
        self._pause_s = LOAD_THREADS / rate_per_s
        self._ended = threading.Event()
        self._turns = itertools.count()
        self._threads = [threading.Thread(target=self._submit, args=(seed * 100 + n,)) for n in range(LOAD_THREADS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(2 * REQUEST_S)

    def _submit(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self._ended.wait(chance.expovariate(1 / self._pause_s)):
            urls = [url for instance in self._instances if (url := instance.url)]
            if urls:
                post(
                    urls[next(self._turns) % len(urls)],
                    self._document(self._history.recipient(self._name)),
                    self._history,
                )


@functools.cache
def shared_cluster() -> str:
    """Start a durable cluster that lives as long as this process; return its address."""
    root = Path(tempfile.mkdtemp(prefix="taskq-campaigns-"))
    root.chmod(0o755)
    cluster = EmbeddedPostgres(root)
    cluster.start()
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    atexit.register(cluster.stop)
    return cluster.dsn


class Campaign:
    """One test's world; leaving it ends every process of it."""

    def __init__(self, seed: int, *, text_s: float = 0.0, dot_s: float = 0.0, embedded: bool = False) -> None:
        """Prepare the world.

        Args:
            seed: Of everything random.
            text_s: Seconds that the sink waits before it takes a text.
            dot_s: Seconds that the sink waits between accepting a mail and saying so.
            embedded: The first instance starts a cluster of its own; else it gets a database on the shared one.
        """
        self.seed = seed
        self.chance = random.Random(seed)
        self.gates = [Gate() for _ in range(2)]
        self.place = Path(tempfile.mkdtemp(prefix="taskq-campaign-"))
        self.place.chmod(0o755)
        self.history = History(self.place / "history.jsonl")
        self.effects = self.place / "effects.jsonl"
        self.sink = Sink(self.place, text_s=text_s, dot_s=dot_s)
        self.instances: list[Instance] = []
        self._root = self.place / "data"
        self._root.mkdir(mode=0o755)
        self._cluster = EmbeddedPostgres(self._root) if embedded else None
        self._joined = False
        self._database = f"{self.place.name}_{seed}".replace("-", "_").lower()
        if not embedded:
            self._define(f"create database {self._database}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for instance in self.instances:
                print(f"-- log of {instance.name}\n{instance.tail()}")
        for instance in self.instances:
            instance.kill()
        for gate in self.gates:
            gate.open()
        self.sink.close()
        self.history.close()
        if self._cluster:
            self._join(self._cluster)
            self._cluster.stop()
        else:
            self._define(f"drop database {self._database} with (force)")
        shutil.rmtree(self.place, ignore_errors=True)

    @property
    def dsn(self) -> str:
        if self._cluster is None:
            return with_database(shared_cluster(), self._database)
        self._join(self._cluster)
        return self._cluster.dsn

    @property
    def postmaster(self) -> int:
        """The process id of the server."""
        return int((self._root / "pgdata" / "postmaster.pid").read_text().splitlines()[0])

    def instance(self, name: str, **flags: object) -> Instance:
        """Start an instance with the given settings."""
        settings: dict[str, object] = {
            "port": 0,
            "smtp_url": self.sink.url,
            "mail_from": "taskq@example.org",
            "retry_base_s": 0.1,
            "log_format": "json",
        }
        settings |= {"data_dir": self._root} if self._cluster else {"database_url": self.dsn}
        environment = {
            "CRASH_GATES": ",".join(str(gate.port) for gate in self.gates),
            "CRASH_JOURNAL": str(self.effects),
            "CRASH_RELAY": self.sink.url,
            "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}",
        }
        made = Instance(self.place, name, settings | flags, environment)
        self.instances.append(made)
        return made.start()

    def load(
        self, *, rate_per_s: float = 100.0, document: Callable[[str], dict[str, object]] = mail, name: str = "n"
    ) -> Load:
        return Load(self.instances, self.history, self.seed, rate_per_s=rate_per_s, document=document, name=name)

    def post(self, document: dict[str, object], instance: Instance | None = None) -> int | None:
        url = (instance or self.instances[0]).url
        assert url
        return post(url, document, self.history)

    def enqueue(self, number: int = 1) -> None:
        """Submit mails the other way, by SQL."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            for _ in range(number):
                to = self.history.recipient()
                row = connection.execute(
                    "select taskq.enqueue('email',"
                    " jsonb_build_object('to', %s::text, 'subject', 'Crash test', 'body', 'By SQL.'))",
                    [to],
                ).fetchone()
                assert row
                self.history.note(to, "stored", id=row[0])

    def ask(self, query: str, *values: object) -> list[Any]:
        with psycopg.connect(self.dsn, autocommit=True, connect_timeout=5) as connection:
            return connection.execute(query.encode(), values or None).fetchall()

    def tell(self, statement: str, *values: object) -> int:
        with psycopg.connect(self.dsn, autocommit=True, connect_timeout=5) as connection:
            return connection.execute(statement.encode(), values or None).rowcount

    @contextmanager
    def hold(self, statement: str) -> Iterator[None]:
        """Keep what a statement locks until the block ends."""
        with psycopg.connect(self.dsn, connect_timeout=5) as connection:
            connection.execute(statement.encode())
            yield

    def seem_elsewhere(self, instance: Instance) -> None:
        """Let a lease look like that of another machine, so that nobody can tell that its process is dead."""
        changed = self.tell("update taskq.lease set namespace = 'elsewhere' where pid = %s", instance.pid)
        assert changed == 1

    def unfinished(self) -> int:
        with suppress(psycopg.OperationalError):
            return int(self.ask("select count(*) from taskq.task where status < 2")[0][0])
        return -1

    def finish(self, title: str, *, poison: str = "", doomed: str = "", sealed: str = "") -> Report:
        """Wait until every task is final, then let the checker compare."""
        began = time.monotonic()
        with suppress(AssertionError):  # what is stuck is the checker's to report
            wait_until(lambda: self.unfinished() == 0, "every task is final")
        journals = [self.sink.journal, self.effects]
        report = check(self.history.path, self.dsn, journals, poison=poison, doomed=doomed, sealed=sealed)
        print(report.table(f"{title} (seed {self.seed}; all final {time.monotonic() - began:.1f} s after the load)"))
        return report

    def rescues(self) -> list[float]:
        """Return when runs were found to be lost, by the wall clock."""
        return [
            row[0]
            for row in self.ask(
                "select extract(epoch from ended_at)::float8 from taskq.attempt"
                " where outcome = 'lost' order by ended_at"
            )
        ]

    def rescue_delays(self, kills: Sequence[float]) -> list[float]:
        """Return for each lost run the seconds from the latest kill to its rescue."""
        return sorted(at - max(kill for kill in kills if kill <= at) for at in self.rescues())

    def lease_delays(self, kills: Sequence[float]) -> list[float]:
        """Return for each lost lease the seconds from the kill that ended its last run to the rescue."""
        lost = self.ask(
            "select extract(epoch from max(started_at))::float8, extract(epoch from max(ended_at))::float8"
            " from taskq.attempt where outcome = 'lost' group by owner"
        )
        return sorted(ended - min(kill for kill in kills if kill >= started - 0.1) for started, ended in lost)

    def start_delays(self) -> list[float]:
        """Return for each task, in the order of submission, the seconds until its run began."""
        return [
            row[0]
            for row in self.ask(
                "select extract(epoch from started_at - created_at)::float8 from taskq.task where run > 0 order by id"
            )
        ]

    def backend(self) -> int:
        """Return the process id of a backend that serves a hot path."""
        found = self.ask(
            "select pid from pg_stat_activity where application_name in ('taskq insert', 'taskq claim', 'taskq settle')"
        )
        return int(self.chance.choice(sorted(found))[0])

    def spare_suspects(self, kills: Sequence[float]) -> None:
        """Wait until no task has met two crashes: an innocent in the third would be failed as poisoned."""
        suspects = (
            "select count(*) from taskq.task where status < 2"
            " and (crashes > 1 or crashes > 0 and status = 1 and started_at < to_timestamp(%s))"
        )
        wait_until(lambda: self.ask(suspects, max(kills, default=0.0))[0][0] == 0, "suspects end")

    def running(self, *, run: int) -> int:
        """Return how many tasks are in their `run`-th run."""
        return int(self.ask("select count(*) from taskq.task where status = 1 and run = %s", run)[0][0])

    def let_go(self, *, run: int) -> None:
        """Let the `run`-th runs of held errands end."""
        self.gates[run - 1].open()

    def answers(self) -> bool:
        """Tell whether the server lets one log in."""
        try:
            return bool(self.ask("select 1"))
        except psycopg.Error:
            return False

    def rest(self) -> None:
        """Wait until the instances have said nothing to the server for a moment."""
        silent = (
            "select coalesce(min(clock_timestamp() - state_change), interval '0') > interval '0.1 s'"
            " from pg_stat_activity where application_name like 'taskq %'"
        )
        wait_until(lambda: self.ask(silent)[0][0], "the instances rest")

    def cut_listener(self) -> int:
        """End every session that listens; return their number."""
        cut = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'taskq listen'"
        return sum(row[0] for row in self.ask(cut))

    def wait_refused(self, since: float) -> float:
        """Wait for the first answer other than 201 after a monotonic moment; return when it came."""
        refused_at = self.history.refused_at
        wait_until(lambda: refused_at and refused_at[-1] > since, "a submission is refused")
        return next(at for at in list(refused_at) if at > since)

    def _join(self, cluster: EmbeddedPostgres) -> None:
        if not self._joined:
            cluster.start()
            self._joined = True

    def _define(self, statement: str) -> None:
        with psycopg.connect(shared_cluster(), autocommit=True) as connection:
            connection.execute(statement.encode())


def spread(delays: Sequence[float]) -> str:
    """Return count, median and maximum for people."""
    if not delays:
        return "none"
    ordered = sorted(delays)
    return f"{len(ordered)}: p50 {ordered[len(ordered) // 2]:.2f} s, max {ordered[-1]:.2f} s"


def every(seconds: float, chance: random.Random, times: int) -> Iterator[int]:
    """Pass `times` random spans of `seconds` on average."""
    for number in range(times):
        pass_time(chance.uniform(0.5, 1.5) * seconds)
        yield number
