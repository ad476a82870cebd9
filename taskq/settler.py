"""Outcomes out, and seals before them: what comes while others are being written shares the next statement.

A write is repeated until PostgreSQL has it: the guards (owner and run) make the second one harmless,
and a run that was taken over meanwhile changes nothing.  An outcome that PostgreSQL refuses is
written as a failure instead, alone, so that it holds up nobody.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence

from taskq.batch import Batch
from taskq.errors import Snooze, StoreRefused, StoreUnavailable
from taskq.store import Store
from taskq.task import Change, Run, Status

__all__ = ["Sealer", "Settled", "Settler", "back_off"]

logger = logging.getLogger("taskq.settler")

SETTLE_BATCH_MAX = SEAL_BATCH_MAX = 1_000
SEAL_SNOOZE_S = 2.0  # until the next try when a run could not be sealed
BACKOFF_S = (0.1, 5.0)
UNSTORABLE = "unstorable_outcome"

Settled = Callable[[Sequence[tuple[Run, Change]]], None]
"""Told the runs whose outcomes are written, with what was written."""


class Settler:
    """Writes outcomes in batches."""

    def __init__(self, store: Store, *, settled: Settled, refused: Callable[[Run], None]) -> None:
        """Prepare; `run` starts it.

        Args:
            store: Where outcomes are written.
            settled: Told what was written.
            refused: Told a run of which PostgreSQL refuses even the failure.
        """
        self._store = store
        self._settled = settled
        self._refused = refused
        self._batch: Batch[tuple[Run, Change], bool] = Batch(self._write, size_max=SETTLE_BATCH_MAX)
        self.add = self._batch.add
        self.put = self._batch.put
        self.run = self._batch.run
        self.empty = self._batch.empty
        self.stale = 0
        """Results of superseded runs, discarded."""

    def __len__(self) -> int:
        """Outcomes that are not written yet."""
        return len(self._batch)

    async def _write(self, batch: list[tuple[Run, Change]]) -> list[bool]:
        """Write outcomes, repeating until PostgreSQL has them: the guards make a second write harmless."""
        tries = 0
        while True:
            try:
                written = await self._store.settle([change for _, change in batch])
                break
            except StoreRefused as error:
                return await self._write_refused(batch, error)
            except StoreUnavailable as error:
                tries += 1
                if tries == 1:
                    facts = {"runs": len(batch), "error": str(error)}
                    logger.warning("settling failed; it is tried again", extra=facts)
                await back_off(tries)
        if written < len(batch) and not tries:
            self.stale += len(batch) - written
            logger.warning("results of superseded runs were discarded", extra={"runs": len(batch) - written})
        self._settled(batch)
        return [True] * len(batch)

    async def _write_refused(self, batch: list[tuple[Run, Change]], error: StoreRefused) -> list[bool]:
        """Write a refused batch one by one; a run whose own outcome is refused is failed, and holds up nobody."""
        if len(batch) > 1:
            return [written for one in batch for written in await self._write([one])]
        run, change = batch[0]
        logger.error("PostgreSQL refused an outcome", extra={"task_id": run.id, "error": str(error)})
        if change.reason == UNSTORABLE:
            self._refused(run)  # reconciling hands it back
            return [False]
        text = "PostgreSQL refused to store what this run came to: see the log"
        return await self._write([(run, Change(run.id, run.run, run.owner, Status.FAILED, None, text, UNSTORABLE))])


class Sealer:
    """Writes, in batches, that the content of runs is about to leave."""

    def __init__(self, store: Store) -> None:
        """Prepare; `run` starts it."""
        self._store = store
        self._batch: Batch[Run, None] = Batch(self._write, size_max=SEAL_BATCH_MAX)
        self.run = self._batch.run

    async def seal(self, run: Run) -> None:
        """Return once it is committed; see `Context.seal`.

        Raises:
            Snooze: It can't be stored, or the run is no longer ours; nothing may leave.
        """
        await self._batch.put(run)

    async def _write(self, runs: list[Run]) -> Sequence[BaseException | None]:
        try:
            ours = await self._store.seal(runs)
        except (StoreUnavailable, StoreRefused) as error:
            fact = f"that the content is about to leave can't be stored now ({error})"
            return [Snooze(f"{fact}: nothing left, tried again soon", delay_s=SEAL_SNOOZE_S) for _ in runs]
        lost = "the run was taken over by another instance: nothing left"
        return [None if (run.id, run.run) in ours else Snooze(lost, delay_s=SEAL_SNOOZE_S) for run in runs]


async def back_off(tries: int) -> None:
    """Wait at random up to a bound that doubles with each try, to 5 seconds at most."""
    await asyncio.sleep(random.uniform(0, min(BACKOFF_S[1], BACKOFF_S[0] * 2.0 ** min(tries, 10))))  # noqa: S311 - jitter is no secret
