"""What people do to single tasks: cancel, run again, wait for the end.

*Cancel.*  A pending task is cancelled by the statement itself.  One in progress belongs to the
instance that runs it: the wish is a row, a notification tells every instance to look, and each ends
its own runs where that is safe; a mail past its final dot goes on and may well end Ok.  A wish
outlives a lost notification and a crash: the next sweep finds it, whoever runs the task by then.

*Wait.*  Whoever waits for a task sits in memory until this process settles it.  What other instances
settle is found by one statement a second for all who wait, however many they are.
"""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Generator, Iterable, Sequence
from typing import Any

from taskq import sql
from taskq.dispatcher import Dispatcher
from taskq.errors import StoreRefused, StoreUnavailable, TooManyWaiters
from taskq.listener import Listener
from taskq.store import Store
from taskq.task import Task

__all__ = ["Control", "Waiters"]

logger = logging.getLogger("taskq.control")

ASK_EVERY_S = 1.0
WISHES_EVERY_S = 5.0


class Waiters:
    """Those who wait for a task to end."""

    def __init__(self, *, size_max: int) -> None:
        """Begin with nobody; `size_max` may wait at a time."""
        self._size_max = size_max
        self._size = 0
        self._waiting: defaultdict[int, list[asyncio.Event]] = defaultdict(list)

    @property
    def ids(self) -> list[int]:
        """The tasks that somebody waits for."""
        return list(self._waiting)

    @contextlib.contextmanager
    def expecting(self, task_id: int) -> Generator[asyncio.Event]:
        """Provide an event that is set whenever the task may have ended.

        Raises:
            TooManyWaiters: The bound is reached.
        """
        if self._size >= self._size_max:
            raise TooManyWaiters(f"{self._size_max} callers wait already: ask again without wait, or in a moment")
        event = asyncio.Event()
        self._size += 1
        self._waiting[task_id].append(event)
        try:
            yield event
        finally:
            self._size -= 1
            here = self._waiting[task_id]
            here.remove(event)
            if not here:
                del self._waiting[task_id]

    def ended(self, task_ids: Iterable[int]) -> None:
        """Wake those who wait for one of these tasks."""
        if not self._waiting:
            return
        for task_id in task_ids:
            for event in self._waiting.get(task_id, ()):
                event.set()


class Control:
    """Cancels, repeats and waits on behalf of callers; tells the dispatcher which of its runs to end."""

    def __init__(self, store: Store, waiters: Waiters, dispatcher: Dispatcher, listener: Listener) -> None:
        """Prepare; `run` starts it.

        Args:
            store: Whose connections are used.
            waiters: Those who wait for the end of a task.
            dispatcher: Ends runs, and looks for what is due.
            listener: Tells the other instances that something is due.
        """
        self._store = store
        self._waiters = waiters
        self._dispatcher = dispatcher
        self._listener = listener
        self._sql = sql.load("control")
        self._wished = asyncio.Event()

    async def cancel(self, task_id: int) -> str | None:
        """Call a task off; return its status now: `in-progress` while its run is being ended, None: no such task."""
        rows = await self._ask("cancel", id=task_id)
        self._waiters.ended((task_id,))
        self._wished.set()
        return rows[0][0]

    async def retry(self, task_id: int) -> bool:
        """Make a task pending and due; False when it is in progress, Ok, erased or not there."""
        rows = await self._ask("retry", id=task_id)
        if rows:
            self._dispatcher.wake.now()
            self._listener.notify_others()
        return bool(rows)

    async def follow(self, task_id: int, wait_s: float) -> Task | None:
        """Read a task once it has ended, or as it is when `wait_s` seconds are over; None: it is not there.

        Raises:
            TooManyWaiters: The bound is reached.
        """
        if wait_s <= 0:
            return await self._store.get(task_id)
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        with self._waiters.expecting(task_id) as ended:
            while True:
                ended.clear()
                task = await self._store.get(task_id)
                if task is None or task.status.final or loop.time() >= until:
                    return task
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(until):
                        await ended.wait()

    def look(self) -> None:
        """Look for wishes now: somebody was heard to have one."""
        self._wished.set()

    async def run(self) -> None:
        """Fulfil wishes and ask after tasks that other instances run; ends by cancellation."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._fulfil_wishes())
            group.create_task(self._ask_elsewhere())

    async def _fulfil_wishes(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WISHES_EVERY_S):
                    await self._wished.wait()
            self._wished.clear()
            try:
                for task_id, run in await self._ask("wished", owner=self._listener.lease.id):
                    self._dispatcher.cancel(task_id, run)
                self._waiters.ended(row[0] for row in await self._ask("fulfil"))
            except (StoreUnavailable, StoreRefused) as error:
                logger.warning(
                    "wishes to cancel could not be read; the next look finds them", extra={"error": str(error)}
                )

    async def _ask_elsewhere(self) -> None:
        while True:
            await asyncio.sleep(ASK_EVERY_S)
            ids = self._waiters.ids
            if not ids:
                continue
            try:
                self._waiters.ended(row[0] for row in await self._ask("ended", ids=ids))
            except (StoreUnavailable, StoreRefused) as error:
                logger.debug("tasks that callers wait for could not be looked up", extra={"error": str(error)})

    async def _ask(self, name: str, **values: object) -> Sequence[Sequence[Any]]:
        async with self._store.reads.session() as session:
            return await session.fetch(self._sql[name], **values)
