"""Submissions by `NOTIFY taskq_enqueue, '{json}'`, from whoever may connect to the database.

One instance of all listens, whichever holds an advisory lock, so that a notification becomes one
task; when it goes, another takes its place.  A notification is not stored by anyone: what is sent
while nobody listens is lost, which `taskq.enqueue` never is.  What can't be taken is kept in
`taskq.reject` with the reason.

The road behind is that of HTTP: the same checks, the same batches, the same bounds.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence

from taskq import sql
from taskq.batch import Batch
from taskq.config import Settings
from taskq.database import Session
from taskq.errors import IntakeFull, StoreRefused, StoreSlow, StoreUnavailable, SubmissionError
from taskq.intake import Intake
from taskq.kinds.registry import Registry
from taskq.settler import back_off
from taskq.store import Store
from taskq.submission import read_submission
from taskq.task import NewTask

__all__ = ["Ingest"]

logger = logging.getLogger("taskq.ingest")

CHANNEL = "taskq_enqueue"
TURN_S = 1.0  # between two tries to become the one that listens
BATCH_MAX = 500
KEPT_MAX = 1_000


class Ingest:
    """Takes in what is notified."""

    def __init__(
        self,
        dsn: str,
        store: Store,
        registry: Registry,
        intake: Intake,
        settings: Settings,
        *,
        admit: Callable[[Sequence[NewTask]], Awaitable[None]],
    ) -> None:
        """Prepare; `run` starts it.

        Args:
            dsn: A direct connection, not one through a pooler in transaction mode.
            store: Keeps what can't be taken.
            registry: Kinds of work that may be submitted.
            intake: Where submissions go.
            settings: Of the process.
            admit: Lets tasks pass before they are stored, or raises a `SubmissionError`.
        """
        self._session = Session(dsn, name="taskq ingest", timeout_s=settings.database_timeout_s)
        self._store = store
        self._registry = registry
        self._intake = intake
        self._admit = admit
        self._probe_s = settings.probe_s
        self._waiting_max = settings.intake_waiting_max
        self._sql = sql.load("ingest")
        self._batch: Batch[str, None] = Batch(self._take, size_max=BATCH_MAX)
        self.alone = False
        """Whether this instance is the one that listens."""
        self.taken = self.rejected = self.dropped = 0
        """Notifications since the start: stored, kept as rejects, and lost because too many waited."""

    async def run(self) -> None:
        """Take in for ever; ends by cancellation."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._batch.run())
            failures = 0
            try:
                while True:
                    try:
                        await self._listen()
                    except StoreUnavailable as error:
                        failures = 0 if self.alone else failures + 1
                        self.alone = False
                        logger.log(
                            logging.WARNING if failures <= 1 else logging.DEBUG,
                            "notifications of submissions can't be heard now",
                            extra={"error": str(error)},
                        )
                    self._session.drop()
                    await back_off(failures)
            finally:
                await self._session.close()

    async def prune(self) -> None:
        """Keep the newest rejects only."""
        async with self._store.reads.session() as session:
            await session.fetch(self._sql["prune_rejects"], keep=KEPT_MAX)

    async def _listen(self) -> None:
        while True:
            rows = await self._session.fetch(self._sql["stand_alone"])
            if rows[0][0]:
                break
            await asyncio.sleep(TURN_S)
        cut = asyncio.Event()
        await self._session.listen(CHANNEL, self._heard, ended=cut.set)
        self.alone = True
        while not cut.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._probe_s):
                    await cut.wait()
            if not cut.is_set():
                await self._session.fetch(self._sql["still_there"])
        raise StoreUnavailable("the server closed the connection that listens")

    def _heard(self, text: str) -> None:
        if len(self._batch) < self._waiting_max:
            self._batch.add(text)
            return
        if not self.dropped:
            logger.error("too many notified submissions wait: some are lost", extra={"waiting": self._waiting_max})
        self.dropped += 1

    async def _take(self, texts: list[str]) -> list[None]:
        async with asyncio.TaskGroup() as group:
            taking = [group.create_task(self._take_one(text)) for text in texts]
        refused = [(text, error) for text, one in zip(texts, taking, strict=True) if (error := one.result())]
        if refused:
            await self._keep(refused)
        self.taken += len(texts) - len(refused)
        return [None] * len(texts)

    async def _take_one(self, text: str) -> str | None:
        """Submit what was notified; return why it can't be, or None."""
        tries = 0
        while True:
            try:
                taken = read_submission(self._registry, text.encode())
                tasks = [taken] if isinstance(taken, NewTask) else taken.tasks
                await self._admit(tasks)
                await (self._intake.submit(taken) if isinstance(taken, NewTask) else self._intake.submit_bundle(taken))
            except (SubmissionError, StoreRefused, StoreSlow) as error:
                return str(error)
            except (IntakeFull, StoreUnavailable) as error:
                if isinstance(error, StoreUnavailable) and error.sent:
                    return f"it may have been stored, or not: {error}"
                tries += 1
                await back_off(tries)
            else:
                return None

    async def _keep(self, refused: list[tuple[str, str]]) -> None:
        logger.warning("refused notified submissions", extra={"count": len(refused), "first": refused[0][1][:200]})
        payloads, errors = zip(*refused, strict=True)
        try:
            async with self._store.reads.session() as session:
                await session.fetch(self._sql["reject"], payloads=payloads, errors=errors)
        except (StoreUnavailable, StoreRefused) as error:
            logger.warning("refused submissions could not be kept", extra={"error": str(error)})
        self.rejected += len(refused)
