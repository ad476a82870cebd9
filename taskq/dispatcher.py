"""Claim for free slots, run, settle in natural batches; the only caller of claim and settle.

    wake ─► claim ≤ free slots ─► one asyncio.Task per run ─► outcome ─► settle batch
              ▲ births: the intake's fresh rows take slots without a claim ┘

A slot is reserved before a row can become ours, so what runs is bounded by what the table says.
Claims start at each lane's low-water mark, behind the dead index entries of what was claimed before;
a full look past the marks, once a poll, finds what committed late.  Events only wake; the loop
decides.

What the table says we own and what we run must agree.  When the answer to a claim or an insert is
lost on the way (the connection broke at its commit), rows may be ours without our knowing; as our
lease lives nobody would rescue them.  So after such a break, and every `RECONCILE_S` besides, the
dispatcher compares and hands back what it does not know.

Draining: claims and births end at once, runs get `grace_s`, then they are cancelled and handed back
with their attempt; a run in an uninterruptible span (a mail past its final dot) is waited for.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta

from taskq.config import Settings
from taskq.errors import StoreRefused, StoreUnavailable
from taskq.lease import Lease
from taskq.settler import Settler, back_off
from taskq.store import EARLIEST, Store
from taskq.task import OUTCOME_UNKNOWN, Cancelled, Change, Failed, Released, Run
from taskq.wake import Signals, Wake
from taskq.worker import Execution, Worker

__all__ = ["Dispatcher"]

logger = logging.getLogger("taskq.dispatcher")

LANES_MAX = 1_000
RECONCILE_S = 30.0
SURVEY_PAUSE_S = 0.05
MARK_SLACK = timedelta(milliseconds=200)
LAST_WAIT_S = 10.0  # for uninterruptible runs after a second signal
WATCH_S = 0.25  # between looks for runs that take too long
UNKNOWN_KIND_TIMEOUT_S = 60.0


class Dispatcher:
    """Runs tasks on a bounded number of slots."""

    def __init__(
        self,
        store: Store,
        worker: Worker,
        lease: Lease,
        settings: Settings,
        *,
        signals: Signals,
        ended: Callable[[Iterable[int]], None] = lambda _ids: None,
    ) -> None:
        """Prepare; `run` starts it.

        Args:
            store: Where tasks are claimed and settled.
            worker: Runs one.
            lease: Under which they are ours.
            settings: Of the process.
            signals: To SQL producers and to other instances.
            ended: Told the ids of tasks whose runs were settled.
        """
        self._store = store
        self._worker = worker
        self._lease = lease
        self._ended_tasks = ended
        self._claim_max = settings.claim_batch_max
        self._slots = self._free = settings.concurrency
        self.wake = Wake(signals, poll_s=settings.poll_s)
        self.settler = Settler(store, settled=self._settled, refused=self._forget)
        self._lows: dict[tuple[str, int], datetime] = {("default", 0): EARLIEST}
        self._known: dict[int, Run] = {}
        self._running: dict[tuple[int, int], Execution] = {}  # by id and run: a lost run may end beside its successor
        self._group: asyncio.TaskGroup | None = None
        self._backlog = True
        self._births = 0
        self._draining = False
        self._suspect: int | None = None
        self._suspects_waiting = False
        self._reconcile_at = 0.0
        self._surveyed_at = self._survey_again_at = 0.0
        self._idle = asyncio.Event()
        self._ended = asyncio.Event()
        self.unknown = 0  # runs that may have had their effect without our knowing

    # -- births: slots for the intake

    def reserve(self, wanted: int) -> int:
        """Take up to `wanted` slots for rows about to be born in progress; 0 when others wait already."""
        if self._backlog or self._draining or self._group is None or self._reconcile_due() or not self._lease.holds():
            return 0
        taken = min(wanted, self._free)
        self._free -= taken
        self._births += taken
        return taken

    def born(self, runs: Sequence[Run], *, reserved: int, waiting: int) -> None:
        """Start rows born in progress and return the slots not used.

        Args:
            runs: The rows.
            reserved: Slots taken for them.
            waiting: Rows of the same insert that stay pending.
        """
        self._births -= reserved
        self._free += reserved - len(runs)
        for run in runs:
            self._start(run)
        if waiting:
            self._backlog = True
            self.wake.now()

    def birth_unknown(self, *, reserved: int) -> None:
        """Return the slots of an insert whose answer was lost; its rows may be ours."""
        self._births -= reserved
        self._free += reserved
        if reserved:
            self._reconcile_at = 0.0
            self.wake.now()

    # -- the loop

    async def run(self) -> None:
        """Claim and run until drained; leaving the group waits for the last run."""
        async with asyncio.TaskGroup() as around:
            writer = around.create_task(self.settler.run())
            watcher = around.create_task(self._watch())
            async with asyncio.TaskGroup() as self._group:
                await self._dispatch()
                self._idle.set()
            try:
                async with asyncio.timeout(LAST_WAIT_S):
                    await self.settler.empty()
            except TimeoutError:
                logger.error("outcomes could not be written before the stop", extra={"runs": len(self.settler)})
            writer.cancel()
            watcher.cancel()
        self._ended.set()

    async def _dispatch(self) -> None:
        failures = 0
        while not self._draining:
            full = await self.wake.wait()
            try:
                if self._lease.holds() and not self._draining:
                    await self._look(full=full)
                elif full:
                    self.wake.polled(0.0)
                failures = 0
            except (StoreUnavailable, StoreRefused) as error:
                failures += 1
                self._reconcile_at = 0.0
                self._backlog = True
                if failures == 1:
                    logger.warning("claiming failed; it is tried again", extra={"error": str(error)})
                await back_off(failures)

    async def _look(self, *, full: bool) -> None:
        if self._reconcile_due():
            await self._reconcile()
        if full:
            began = time.monotonic()
            await self._survey()
            self.wake.polled(time.monotonic() - began)
        if self._suspects_waiting and self._suspect is None and self._free:
            await self._claim_suspect()
        found = await self._claim(full=full)
        if not found and not full and self._free:
            found = await self._claim_from_new_lanes()
        self.wake.found(found)

    async def _claim_from_new_lanes(self) -> int:
        """Claim from lanes not seen before, as a notification may be from one; surveys keep a distance."""
        now = time.monotonic()
        pause_s = self._surveyed_at + SURVEY_PAUSE_S - now
        if pause_s > 0:
            if self._survey_again_at < now:
                self._survey_again_at = now + pause_s
                asyncio.get_running_loop().call_later(pause_s, self.wake.now)
            return 0
        await self._survey()
        return await self._claim(full=False)

    async def _claim(self, *, full: bool) -> int:
        """Claim until nothing is due or no slot is free; return the number claimed."""
        total = 0
        while not self._draining:
            slots = min(self._free, self._claim_max)
            if slots <= 0:
                self._backlog = True
                self.wake.saturated()
                break
            lanes = list(self._lows)
            lows = [EARLIEST] * len(lanes) if full else list(self._lows.values())
            self._free -= slots
            try:
                claimed = await self._store.claim(lanes, lows, slots=slots, owner=self._lease.id)
            finally:
                self._free += slots
            for run, lane, due_at in claimed:
                self._lows[lane] = max(self._lows[lane], due_at - MARK_SLACK)
                self._free -= 1
                self._start(run)
            total += len(claimed)
            if len(claimed) < slots:
                self._backlog = False
                break
            full = False
        return total

    async def _survey(self) -> None:
        self._surveyed_at = time.monotonic()
        lanes = (await self._store.survey())[:LANES_MAX]
        ordinary = [lane for lane in lanes if not lane.suspect]
        # Lanes keep their marks and stay claimable while empty, so that the next task in one is found at once.
        fresh = {
            (lane.queue, lane.priority): self._lows.get((lane.queue, lane.priority), EARLIEST) for lane in ordinary
        }
        merged = fresh | {key: low for key, low in self._lows.items() if key not in fresh}
        kept = list(merged.items())[:LANES_MAX]  # beyond the bound those that hold tasks win over the empty ones
        self._lows = dict(sorted(kept, key=lambda item: (item[0][1], item[0][0])))
        self._suspects_waiting = any(lane.suspect and lane.due_in_s <= 0 for lane in lanes)
        for lane in lanes:
            if lane.due_in_s > 0:
                self.wake.due_in(lane.due_in_s)

    async def _claim_suspect(self) -> None:
        """Run a task that two processes died with, one such at a time, so that only the culprit is blamed."""
        run = await self._store.claim_suspect(owner=self._lease.id)
        if run is None:
            self._suspects_waiting = False
            return
        self._suspect = run.id
        self._free -= 1
        self._start(run)

    # -- one run

    def _start(self, run: Run) -> None:
        if self._group is None:
            raise AssertionError
        kind = self._worker.kind(run)
        limit_s = kind.timeout_s if kind else UNKNOWN_KIND_TIMEOUT_S
        execution = Execution(run, kind, self._worker.context(run), time.monotonic() + limit_s)
        self._known[run.id] = run
        self._running[run.id, run.run] = execution
        execution.task = self._group.create_task(self._run_one(execution))

    async def _run_one(self, execution: Execution) -> None:
        run, kind = execution.run, execution.kind
        try:
            outcome = await self._worker.run(run, kind, execution.context)
        except asyncio.CancelledError:
            if execution.ended_as is None:
                raise  # the process goes down with an error
            outcome = execution.ended_as
        change = execution.change(outcome)
        self.unknown += execution.outcome_unknown(change)
        try:
            if kind is not None and kind.ack_each and not self._draining:
                await self.settler.put((run, change))
            else:
                self.settler.add((run, change))
        finally:
            del self._running[run.id, run.run]
            self._free += 1
            if self._suspect == run.id:
                self._suspect, self._suspects_waiting = None, True
                self.wake.now()
        if self._backlog:
            self.wake.now()

    async def _watch(self) -> None:
        """End runs that take longer than their kind allows; one look for all costs less than a timer each."""
        while True:
            await asyncio.sleep(WATCH_S)
            now = time.monotonic()
            for execution in list(self._running.values()):
                kind = execution.kind
                if kind is not None and execution.deadline < now and execution.context.interruptible:
                    message = f"the run took longer than the {kind.timeout_s:g} s that the kind {kind.name} allows"
                    execution.end(Failed(message, reason=OUTCOME_UNKNOWN))

    def _settled(self, written: Sequence[tuple[Run, Change]]) -> None:
        self._ended_tasks(run.id for run, _ in written)
        for run, change in written:
            self._forget(run)
            if change.delay_s is not None:
                self.wake.due_in(change.delay_s)

    def _forget(self, run: Run) -> None:
        if self._known.get(run.id) is run:
            del self._known[run.id]

    # -- what the table says and what we know

    def lost(self, lease: int) -> None:
        """Give up the runs of a lease that another instance ended: they run elsewhere by now."""
        for execution in list(self._running.values()):
            if execution.run.owner == lease and execution.context.interruptible:
                execution.end(Released())
            elif execution.run.owner == lease:
                execution.deadline = 0.0  # ended when its span is over; whatever it comes to is discarded
        self.wake.now()

    def cancel(self, task_id: int, run: int) -> None:
        """End a run of ours that somebody called off; one past its point of no return ends by itself."""
        execution = self._running.get((task_id, run))
        if execution is not None:
            execution.called_off = True
            if execution.context.interruptible:
                execution.end(Cancelled())

    def _reconcile_due(self) -> bool:
        return time.monotonic() >= self._reconcile_at

    async def _reconcile(self) -> None:
        if self._births:
            return  # an insert is under way; it wakes us when it is done
        owner = self._lease.id
        strangers = [
            (task_id, run) for task_id, run in await self._store.owned(owner=owner) if task_id not in self._known
        ]
        self._reconcile_at = time.monotonic() + RECONCILE_S
        if strangers:
            released = await self._store.release(strangers, owner=owner)
            logger.warning("handed back runs whose claim was lost on the way", extra={"task_ids": released[:20]})
            self._backlog = True
            self.wake.now()

    # -- the end

    async def drain(self, grace_s: float, hurry: asyncio.Event) -> None:
        """Stop claiming, give runs `grace_s` to end, hand back the rest, wait for the uninterruptible.

        Args:
            grace_s: Seconds.
            hurry: Set by a second signal: the grace ends at once.
        """
        self._draining = True
        self.wake.close()
        await self._idle.wait()
        await self._until_idle(grace_s, hurry)
        for execution in list(self._running.values()):
            if execution.context.interruptible:
                execution.end(Released())
        await self._until_idle(None, hurry)
        if self._running:
            await asyncio.wait(self._running_tasks(), timeout=LAST_WAIT_S)
        for task in self._running_tasks():
            task.cancel()  # its outcome stays unknown: the task is rescued as after a crash
        await self._ended.wait()

    async def _until_idle(self, grace_s: float | None, hurry: asyncio.Event) -> None:
        if not self._running:
            return
        logger.info("waiting for running tasks", extra={"running": len(self._running), "grace_s": grace_s})
        hurried = asyncio.ensure_future(hurry.wait())
        done = asyncio.ensure_future(asyncio.wait(self._running_tasks()))
        try:
            await asyncio.wait({hurried, done}, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hurried.cancel()
            done.cancel()

    def _running_tasks(self) -> list[asyncio.Task[None]]:
        return [execution.task for execution in self._running.values() if execution.task is not None]

    @property
    def running(self) -> int:
        """Runs under way."""
        return len(self._running)
