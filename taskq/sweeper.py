"""What must happen now and then, on one instance at a time: rescue, expire, prune, erase, partitions ahead.

*Rescue* ends leases that were not renewed and makes their tasks pending again, at once; the task's
attempt stays counted, its run number grows with the next claim, so that nothing the lost process
still does can be recorded.  *Expire* fails tasks that wait although their time has passed; those that
a run meets first end the same way.  *Prune* walks the ids in small batches, deletes what finished longer ago
than the retention, and in passing erases content that may not be kept so long.  *Partitions* are
made before the ids reach them, and dropped whole when everything in them is old.

Each step is one transaction that begins by becoming the leader (an advisory lock that ends with the
transaction): no election, no term, nothing to hold when the process dies.  A leader that freezes in
the middle is thrown out by the server, or nobody could rescue what it holds.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from taskq.config import Settings
from taskq.errors import StoreRefused, StoreUnavailable
from taskq.facts import Privacy
from taskq.lease import Lease
from taskq.sql import Statement
from taskq.store import Store
from taskq.task import OUTCOME_UNKNOWN

__all__ = ["PARTITION_IDS", "Sweeper"]

logger = logging.getLogger("taskq.sweeper")

RESCUE_BATCH = 5_000
EXPIRE_BATCH = 1_000
EXPIRE_STEPS_MAX = 20
PRUNE_BATCH = 5_000
PRUNE_EVERY_S = 60.0
PRUNE_STEPS_MAX = 20  # batches a round, so that a round ends
PARTITION_IDS = 10_000_000
PARTITIONS_AHEAD = 2
COUNTS_KEPT_S = 7 * 86_400.0
HOT = (
    "fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000, "
    "autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0.05"
)


class Sweeper:
    """Rescues, expires, prunes and keeps partitions ahead."""

    def __init__(
        self,
        store: Store,
        lease: Lease,
        settings: Settings,
        *,
        wake: Callable[[], None],
        privacy: Mapping[str, Privacy] | None = None,
        prune_more: Sequence[Callable[[], Awaitable[None]]] = (),
    ) -> None:
        """Prepare; `run` starts it.

        Args:
            store: What to sweep.
            lease: Our own, which is never ended here.
            settings: Of the process.
            wake: Tells the dispatcher that rescued tasks wait.
            privacy: Of the kinds whose content is erased; see `Registry.private`.
            prune_more: What else is done at each pruning, in small steps.
        """
        self._store = store
        self._lease = lease
        self._settings = settings
        self._wake = wake
        self._privacy = privacy or {}
        self._prune_more = prune_more
        self._pruned_to = 0
        self.unknown = 0
        """Sealed runs that were lost, since the start."""

    async def run(self) -> None:
        """Sweep for ever; ends by cancellation."""
        prune_at = 0.0
        while True:
            try:
                if self._lease.holds():
                    await self.rescue()
                    await self.expire()
                    if time.monotonic() >= prune_at:
                        await self.keep_partitions()
                        await self.prune()
                        prune_at = time.monotonic() + PRUNE_EVERY_S
            except (StoreUnavailable, StoreRefused) as error:
                logger.warning("sweep failed; the next one makes up for it", extra={"error": str(error)})
            await asyncio.sleep(self._settings.sweep_s * random.uniform(0.8, 1.0))  # noqa: S311 - jitter is no secret

    async def rescue(self) -> int:
        """Take over the tasks of ended leases; return their number."""
        total = 0
        while True:
            rows = await self._store.rescue(own=self._lease.id, lease_s=self._settings.lease_s, batch=RESCUE_BATCH)
            if not rows:
                return total
            total += len(rows)
            poisoned, unknown = (
                [task_id for task_id, _, reason in rows if reason == final] for final in ("poisoned", OUTCOME_UNKNOWN)
            )
            self.unknown += len(unknown)
            facts = {"tasks": len(rows), "poisoned": poisoned[:20], "outcome_unknown": unknown[:20]}
            logger.warning("rescued tasks of a lost instance", extra=facts)
            self._wake()
            if len(rows) < RESCUE_BATCH:
                return total

    async def expire(self) -> int:
        """Fail waiting tasks whose time has passed, a bounded number a round; return the count."""
        total = 0
        for _ in range(EXPIRE_STEPS_MAX):
            count = await self._store.expire(own=self._lease.id, batch=EXPIRE_BATCH)
            total += count
            if count < EXPIRE_BATCH:
                break
        if total:
            logger.info("failed tasks that expired while they waited", extra={"tasks": total})
        return total

    async def prune(self) -> int:
        """Delete finished tasks past their retention, erase content past its days; return the count deleted."""
        total = 0
        for _ in range(PRUNE_STEPS_MAX):
            last, gone = await self._store.prune_tasks(
                after=self._pruned_to,
                retention_s=self._settings.retention_days * 86_400,
                privacy=self._privacy,
                batch=PRUNE_BATCH,
            )
            total += gone
            if last is None:
                self._pruned_to = 0
                break
            self._pruned_to = last
        await self._store.prune_counts(retention_s=COUNTS_KEPT_S)
        for prune in self._prune_more:
            await prune()
        return total

    async def keep_partitions(self) -> None:
        """Make the partitions that the ids will need, drop the oldest when all of it is old."""
        last_id, numbers = await self._store.partitions()
        current = last_id // PARTITION_IDS
        for number in range(current, current + PARTITIONS_AHEAD + 1):
            if number not in numbers:
                await self._make_partition(number)
        oldest = min(numbers)
        if oldest < current:
            await self._drop_partition_if_old(oldest)

    async def _make_partition(self, number: int) -> None:
        low, high = number * PARTITION_IDS, (number + 1) * PARTITION_IDS
        # Made apart and then attached: attaching takes a weaker lock on the parent than making in place.
        made = await self._store.run_maintenance(
            [
                _definition(f"create table taskq.task_{number} (like taskq.task including all) with ({HOT})"),
                _definition(
                    f"alter table taskq.task attach partition taskq.task_{number} for values from ({low}) to ({high})"
                ),
            ]
        )
        if made:
            logger.info("made a partition", extra={"number": number})

    async def _drop_partition_if_old(self, number: int) -> None:
        low, high = number * PARTITION_IDS, (number + 1) * PARTITION_IDS
        busy, idle_s = await self._store.partition_state(low, high)
        if busy or (idle_s is not None and idle_s < self._settings.retention_days * 86_400):
            return
        while await self._store.forget(low, high, batch=PRUNE_BATCH):
            pass  # before the drop: a crash between the two leaves old tasks, never content without one
        dropped = await self._store.run_maintenance(
            [_definition("set local lock_timeout = '100ms'"), _definition(f"drop table taskq.task_{number}")]
        )
        if dropped:
            await self._store.prune_attempts(low, high)
            logger.info("dropped a partition whose tasks are all old", extra={"number": number})


def _definition(text: str) -> Statement:
    return Statement("partition", text, ())
