"""The only writer of states: one method per statement of `sql/tasks.sql`.

Three writers have a connection each, since they never wait for one another: submissions are
inserted on one, tasks claimed on the second, outcomes settled on the third.  Reads and sweeps share
a few more.  Every method is one round trip in one transaction, and raises `StoreUnavailable` when
PostgreSQL can't be reached; a caller that must not lose its values repeats, since every write of a
state is guarded and so harmless the second time.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import orjson

from taskq import sql
from taskq.bundles import Bundles
from taskq.config import Settings
from taskq.database import Session, Sessions
from taskq.facts import Privacy
from taskq.task import Change, NewTask, Run, Status, Task

__all__ = ["EARLIEST", "Lane", "Server", "Store"]

EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
"""A low-water mark below every task."""

_NOW = timedelta(0)


@dataclass(frozen=True, slots=True)
class Lane:
    """A queue and a priority with pending tasks."""

    queue: str
    priority: int
    due_in_s: float
    """Seconds until its first task is due; negative: it is."""
    suspect: bool = False
    """The lane of tasks that are run one at a time after two crashes."""


@dataclass(frozen=True, slots=True)
class Server:
    """What a database server says of itself."""

    version: str
    version_num: int
    """Such as 150018."""
    unsafe: tuple[str, ...]
    """Settings that make a commit less than durable, such as `fsync=off`."""
    installation: UUID
    """Names this installation of taskq in the outside world."""


class Store:
    """Tasks, attempts and counters in PostgreSQL."""

    def __init__(self, dsn: str, settings: Settings) -> None:
        """Prepare the connections; they open on demand."""
        self._sql = sql.load("tasks")
        self._dsn = dsn
        self._timeout_s = settings.database_timeout_s
        self._pooled = settings.database_direct_url is not None
        self._inserts = self.session("insert")
        self._claims = self.session("claim")
        self._seals = self.session("seal")
        self._settles = self.session("settle")
        self.reads = Sessions(
            lambda: self.session("read"), size_max=settings.read_connections_max, wait_s=settings.database_timeout_s / 4
        )
        """Connections that whoever reads and sweeps shares."""
        self.bundles = Bundles(self.session("bundle"), self.reads)

    def session(self, name: str) -> Session:
        """Make one more connection, which the caller closes; it opens on demand and is shown by its name."""
        return Session(self._dsn, name=f"taskq {name}", timeout_s=self._timeout_s, pooled=self._pooled)

    async def prepare(self) -> None:
        """Connect the hot paths and let PostgreSQL parse their statements, before anything depends on them.

        Otherwise the first settle would do that after the first mail's final dot, where time is dear: a
        crash in it sends the mail twice.
        """
        await self.insert([], births=0, owner=0)
        await self.claim([("default", 0)], [EARLIEST], slots=0, owner=0)
        await self._settle_ok((), owner=0)
        await self._settle_any(())

    async def insert(self, batch: Sequence[NewTask], *, births: int, owner: int) -> list[tuple[int, int, datetime]]:
        """Store submissions; return for each its id, its status and when it was created.

        Args:
            births: The first so many are born in progress, if the lease still stands.
            owner: Our lease.
        """
        return await self._inserts.fetch(  # pyright: ignore[reportReturnType] - rows of exactly these columns
            self._sql["insert"],
            births=births,
            owner=owner,
            kinds=[new.kind for new in batch],
            queues=[new.queue for new in batch],
            priorities=[new.priority for new in batch],
            max_attempts=[new.max_attempts for new in batch],
            payloads=[new.payload for new in batch],
        )

    async def claim(
        self, lanes: Sequence[tuple[str, int]], lows: Sequence[datetime], *, slots: int, owner: int
    ) -> list[tuple[Run, tuple[str, int], datetime]]:
        """Claim up to `slots` due tasks; return each run with its lane and when it was due."""
        rows = await self._claims.fetch(
            self._sql["claim"],
            queues=[lane[0] for lane in lanes],
            priorities=[lane[1] for lane in lanes],
            lows=lows,
            slots=slots,
            owner=owner,
        )
        return [(_run(row, owner), (row[9], row[10]), row[11]) for row in rows]

    async def claim_suspect(self, *, owner: int) -> Run | None:
        """Claim one task that was running during two crashes."""
        rows = await self._claims.fetch(self._sql["claim_suspect"], owner=owner)
        return _run(rows[0], owner) if rows else None

    async def survey(self) -> list[Lane]:
        """List the lanes that hold pending tasks, the most urgent first."""
        rows = await self._claims.fetch(self._sql["survey"])
        return [Lane(row[0], row[1], row[2], suspect=row[0] == "") for row in rows]

    async def owned(self, *, owner: int) -> list[tuple[int, int]]:
        """List id and run of what the table says `owner` has in progress."""
        return [(row[0], row[1]) for row in await self._claims.fetch(self._sql["owned"], owner=owner)]

    async def release(self, runs: Iterable[tuple[int, int]], *, owner: int) -> list[int]:
        """Hand back runs that never reached a worker; return the ids."""
        ids, numbers = zip(*runs, strict=True)
        return [row[0] for row in await self._claims.fetch(self._sql["release"], ids=ids, runs=numbers, owner=owner)]

    async def seal(self, runs: Sequence[Run]) -> set[tuple[int, int]]:
        """Write that the content of these runs may leave; return id and run of those that are still ours."""
        rows = await self._seals.fetch(
            self._sql["seal"],
            ids=[run.id for run in runs],
            runs=[run.run for run in runs],
            owners=[run.owner for run in runs],
        )
        return {(row[0], row[1]) for row in rows}

    async def settle(self, changes: Sequence[Change]) -> int:
        """Write outcomes; return how many were still ours to write, the rest is superseded."""
        first = changes[0].owner
        if all(
            change.status is Status.OK and change.owner == first and change.detail is None and change.keeps is None
            for change in changes
        ):
            return await self._settle_ok(changes, owner=first)
        return await self._settle_any(changes)

    async def _settle_ok(self, changes: Sequence[Change], *, owner: int) -> int:
        rows = await self._settles.fetch(
            self._sql["settle_ok"],
            ids=[change.id for change in changes],
            runs=[change.run for change in changes],
            owner=owner,
        )
        return int(rows[0][0])

    async def _settle_any(self, changes: Sequence[Change]) -> int:
        rows = await self._settles.fetch(
            self._sql["settle"],
            ids=[change.id for change in changes],
            runs=[change.run for change in changes],
            owners=[change.owner for change in changes],
            statuses=[change.status for change in changes],
            delays_s=[change.delay_s for change in changes],
            finals=[_NOW if change.delay_s is None else None for change in changes],
            attempts_back=[change.attempt_back for change in changes],
            reasons=[change.reason for change in changes],
            errors=[change.error for change in changes],
            details=[change.detail for change in changes],
            keeps=[change.keeps for change in changes],
            erasures=[None if change.keeps is None else _NOW for change in changes],
        )
        return len(rows)

    async def rescue(self, *, own: int, lease_s: float, batch: int) -> list[tuple[int, int, str | None]] | None:
        """Take over what ended leases had in progress; None when another instance is at it.

        Returns:
            Id, run and final reason (None: pending again) of each rescued task.
        """
        async with self.reads.session() as session, session.transaction():
            if not (await session.fetch(self._sql["become_leader"]))[0][0]:
                return None
            await session.fetch(self._sql["expire_leases"], own=own, lease_s=lease_s)
            rows = await session.fetch(self._sql["rescue"], batch=batch)
            return [(row[0], row[1], row[3]) for row in rows]

    async def expire(self, *, own: int, batch: int) -> int:
        """Fail waiting tasks whose time has passed; return their number, 0 when another instance is at it."""
        async with self.reads.session() as session, session.transaction():
            if not (await session.fetch(self._sql["become_leader"]))[0][0]:
                return 0
            return (await session.fetch(self._sql["expire"], own=own, batch=batch))[0][0]

    async def prune_tasks(
        self, *, after: int, retention_s: float, privacy: Mapping[str, Privacy], batch: int
    ) -> tuple[int | None, int]:
        """Delete and erase old finished tasks among the next ids; return the last id looked at and the count deleted.

        The tasks of a group go when all of them are old, and it with the last; content goes with the last
        task that needs it.

        Args:
            after: Begin behind this id.
            retention_s: Seconds that a finished task is kept.
            privacy: How long the payloads of some kinds stay whole.
            batch: Ids to look at.
        """
        kept = orjson.dumps({kind: asdict(each) for kind, each in privacy.items()}).decode()
        async with self.reads.session() as session, session.transaction():
            rows = await session.fetch(
                self._sql["prune_tasks"], after=after, retention_s=retention_s, privacy=kept, batch=batch
            )
            last, gone, groups, digests = rows[0]
            if groups:
                await session.fetch(self._sql["prune_groups"], ids=groups)
            await self._prune_blobs(session, digests)
            return last, gone

    async def _prune_blobs(self, session: Session, digests: Sequence[bytes]) -> None:
        if digests:  # a statement sees what was committed before it began: first the locks, then the look
            await session.fetch(self._sql["lock_blobs"], digests=digests)
            await session.fetch(self._sql["prune_blobs"], digests=digests)

    async def prune_counts(self, *, retention_s: float) -> None:
        """Delete old counters."""
        await self._read("prune_counts", retention_s=retention_s)

    async def partitions(self) -> tuple[int, list[int]]:
        """Return the last id given out and the numbers of the partitions that exist."""
        row = (await self._read("partitions"))[0]
        return row[0], row[1]

    async def partition_state(self, low: int, high: int) -> tuple[bool, float | None]:
        """Return whether these ids hold an unfinished task, and seconds since the last one finished."""
        row = (await self._read("partition_state", low=low, high=high))[0]
        return row[0], row[1]

    async def run_maintenance(self, statements: Sequence[sql.Statement]) -> bool:
        """Run data definitions in one transaction as leader; False when another instance is at it."""
        async with self.reads.session() as session, session.transaction():
            if not (await session.fetch(self._sql["become_leader"]))[0][0]:
                return False
            for statement in statements:
                await session.fetch(statement)
            return True

    async def forget(self, low: int, high: int, *, batch: int) -> int:
        """Delete groups and content of the tasks of a partition to be dropped; return how many rows went."""
        async with self.reads.session() as session, session.transaction():
            digests = [row[0] for row in await session.fetch(self._sql["forget_uses"], low=low, high=high, batch=batch)]
            await self._prune_blobs(session, digests)
            return len(digests) + len(await session.fetch(self._sql["forget_groups"], high=high, batch=batch))

    async def prune_attempts(self, low: int, high: int) -> None:
        """Forget the attempts of the tasks of a dropped partition."""
        await self._read("prune_attempts", low=low, high=high)

    async def get(self, task_id: int) -> Task | None:
        """Read one task."""
        rows = await self._read("get", id=task_id)
        if not rows:
            return None
        row = rows[0]
        return Task(row[0], row[1], row[2], Status(row[3]), *row[4:])

    async def attempts(self, task_id: int, *, limit: int) -> list[dict[str, Any]]:
        """Read the attempts of one task of which something is kept, oldest first."""
        names = ("attempt", "run", "started_at", "ended_at", "outcome", "error", "times", "detail")
        return [
            dict(zip(names, (*row[:7], row[7] and orjson.loads(row[7])), strict=True))
            for row in await self._read("attempts", id=task_id, limit=limit)
        ]

    async def server(self) -> Server:
        """Ask the server what it is and how durable its commits are."""
        row = (await self._read("server"))[0]
        names = ("fsync", "full_page_writes", "synchronous_commit")
        unsafe = tuple(f"{name}=off" for name, value in zip(names, row[2:5], strict=True) if value == "off")
        return Server(row[0].split(" ")[0], row[1], unsafe, row[5])

    async def close(self) -> None:
        """Close every connection."""
        for session in (self._inserts, self._claims, self._seals, self._settles, self.bundles, self.reads):
            await session.close()

    async def _read(self, name: str, **values: object) -> Sequence[Sequence[Any]]:
        async with self.reads.session() as session:
            return await session.fetch(self._sql[name], **values)


def _run(row: Sequence[Any], owner: int) -> Run:
    expires_at = None if row[12] is None else datetime.now(UTC) + row[12]
    return Run(row[0], row[1], owner, row[2], row[3], row[4], row[5], row[6], row[7], bool(row[8]), expires_at)
