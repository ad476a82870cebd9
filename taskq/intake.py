"""Submissions in: concurrent ones share one INSERT and so one flush of the log.

`submit` returns when the row is committed.  A failing row fails alone: a batch that PostgreSQL
refuses is repeated row by row.  When too many wait, or PostgreSQL is away, the caller is told at
once and nothing of it is kept in memory.  When PostgreSQL says nothing, the caller is told after
`submit_timeout_s` that its row may be stored; the batch goes on.  A caller that hangs up loses
nothing: its row is stored with the batch it had joined.

While slots are free and nobody waits, the first rows of a batch are born in progress: they need no
claim, no second commit and no entry in the pending index.

A bundle (several tasks, content beside a payload, times that pass) goes another way, so that a large
one holds up no plain task: a batch and a connection of its own, and no births.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Protocol

from taskq.batch import Batch
from taskq.bundles import Packed, Stored, pack
from taskq.config import Settings
from taskq.errors import IntakeFull, StoreRefused, StoreSlow, StoreUnavailable
from taskq.lease import Lease
from taskq.store import Store
from taskq.task import Bundle, NewTask, Run, Status

__all__ = ["Births", "Intake"]

logger = logging.getLogger("taskq.intake")

BUNDLE_BATCH_MAX = 100
BUNDLE_BYTES_MAX = 16_777_216  # stored by one statement; a larger bundle has one for itself


class Births(Protocol):
    """Where rows born in progress run; the dispatcher."""

    def reserve(self, wanted: int) -> int:
        """Take up to `wanted` slots."""
        ...

    def born(self, runs: Sequence[Run], *, reserved: int, waiting: int) -> None:
        """Start the runs and return the other slots."""
        ...

    def birth_unknown(self, *, reserved: int) -> None:
        """Return the slots of an insert whose answer was lost."""
        ...


class Intake:
    """Stores submissions in batches."""

    def __init__(
        self,
        store: Store,
        lease: Lease,
        settings: Settings,
        *,
        births: Births | None,
        notify_others: Callable[[], None],
    ) -> None:
        """Prepare; `run` starts it.

        Args:
            store: Where the rows go.
            lease: Under which rows are born in progress.
            settings: Of the process.
            births: Where they run; None: every row waits for a claim.
            notify_others: Tells the other instances that rows wait.
        """
        self._store = store
        self._lease = lease
        self._births = births
        self._notify_others = notify_others
        self._waiting_max = settings.intake_waiting_max
        self._wait_s = settings.submit_timeout_s
        self._batch: Batch[NewTask, int] = Batch(self._flush, size_max=settings.intake_batch_max, wait_s=self._wait_s)
        self._bundles: Batch[Packed, Stored] = Batch(
            self._flush_bundles, size_max=BUNDLE_BATCH_MAX, wait_s=self._wait_s
        )

    async def submit(self, new: NewTask) -> int:
        """Store one task; return its id when it is committed.

        Raises:
            IntakeFull: Too many wait; nothing was stored.
            StoreUnavailable: PostgreSQL is away; `sent` says whether the row may be stored.
            StoreRefused: PostgreSQL refused this very row.
            StoreSlow: PostgreSQL has not answered in time; the row may be stored.
        """
        if not new.plain:
            return (await self.submit_bundle(Bundle([new], [""], []))).ids[0]
        self._check_room()
        try:
            return await self._batch.put(new)
        except TimeoutError:
            raise self._slow() from None

    async def submit_bundle(self, bundle: Bundle) -> Stored:
        """Store a bundle, all of it or nothing; return what it has become when it is committed.

        Raises:
            IntakeFull: Too many wait; nothing was stored.
            StoreUnavailable: PostgreSQL is away; `sent` says whether it may be stored.
            StoreRefused: PostgreSQL refused this very bundle.
            StoreSlow: PostgreSQL has not answered in time; it may be stored.
            ValueError: The bundle contradicts itself.
        """
        self._check_room()
        packed = await pack(bundle)
        try:
            return await self._bundles.put(packed)
        except TimeoutError:
            raise self._slow() from None

    def _check_room(self) -> None:
        if len(self._batch) + len(self._bundles) >= self._waiting_max:
            raise IntakeFull(f"{self._waiting_max} submissions wait for their commit: try again in a moment")

    def _slow(self) -> StoreSlow:
        return StoreSlow(
            f"PostgreSQL has not confirmed the task within {self._wait_s:g} s: it may be stored, now or in a "
            "moment, and sending it again may store it twice"
        )

    async def run(self) -> None:
        """Store batches for ever; ends by cancellation."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._batch.run())
            group.create_task(self._bundles.run())

    async def empty(self) -> None:
        """Wait until every submission so far is stored or refused."""
        await self._batch.empty()
        await self._bundles.empty()

    async def _flush(self, batch: list[NewTask]) -> Sequence[int | BaseException]:
        reserved = self._births.reserve(len(batch)) if self._births else 0
        owner = self._lease.id
        try:
            rows = await self._store.insert(batch, births=reserved, owner=owner)
        except StoreUnavailable as error:
            if self._births:
                self._births.birth_unknown(reserved=reserved)
            return [error] * len(batch)
        except StoreRefused as error:
            if self._births:
                self._births.born((), reserved=reserved, waiting=0)
            if len(batch) == 1:
                return [error]
            return [result for new in batch for result in await self._flush([new])]
        self._hand_over(batch, rows, reserved, owner)
        return [row[0] for row in rows]

    def _hand_over(
        self, batch: list[NewTask], rows: list[tuple[int, int, datetime]], reserved: int, owner: int
    ) -> None:
        runs: list[Run] = []
        if reserved:
            runs = [
                Run(task_id, 1, owner, new.kind, 1, new.max_attempts, created_at, new.payload)
                for new, (task_id, status, created_at) in zip(batch, rows, strict=True)
                if status == Status.IN_PROGRESS
            ]
        waiting = len(batch) - len(runs)
        if self._births:
            self._births.born(runs, reserved=reserved, waiting=waiting)
        if waiting:
            self._notify_others()

    async def _flush_bundles(self, batch: list[Packed]) -> Sequence[Stored | BaseException]:
        return [result for part in _parts(batch) for result in await self._store_bundles(part)]

    async def _store_bundles(self, part: list[Packed]) -> Sequence[Stored | BaseException]:
        try:
            stored = await self._store.bundles.store(part)
        except StoreUnavailable as error:
            return [error] * len(part)
        except StoreRefused as error:
            if len(part) == 1:
                return [error]
            return [result for packed in part for result in await self._store_bundles([packed])]
        if self._births:
            self._births.born((), reserved=0, waiting=sum(len(one.ids) for one in stored))
        self._notify_others()
        return stored


def _parts(batch: list[Packed]) -> Iterator[list[Packed]]:
    """Cut a batch where the bytes of a statement end."""
    part: list[Packed] = []
    size = 0
    for packed in batch:
        if part and size + packed.size > BUNDLE_BYTES_MAX:
            yield part
            part, size = [], 0
        part.append(packed)
        size += packed.size
    yield part
