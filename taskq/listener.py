"""The control thread: LISTEN, the lease and the proof that notifications arrive.

It has its own thread, event loop and two connections, so that a handler that blocks the main loop
can neither cost us the lease nor stop reading notifications (a listener that does not read pins the
server's NOTIFY queue and its oldest snapshot, for every application on that server).  It owns
nothing else: what it hears it hands over as "wake".

1. Connect both, LISTEN, register or renew the lease; only then wake the dispatcher, so that nothing
   falls between reconnect and LISTEN.
2. Beat every `beat_s`.  A beat without a row: another instance ended our lease; register anew under
   a new id and tell the dispatcher to give up the runs of the old one.
3. Probe every `probe_s`: NOTIFY a nonce on one connection, expect it on the other.  A flag can lie
   (behind a transaction pooler LISTEN succeeds and is dead); a round trip can't.
4. A listening connection that the server closes is noticed at once; one that is cut silently, by the
   probe.
5. Anything that fails: close both, wait (full jitter, at most 5 s), begin again; for ever.

The main loop ticks; when it has not ticked for `loop_stall_s` the thread logs where it hangs and
stops beating, so that others rescue what a process that hangs for ever would keep for ever.
"""

import asyncio
import concurrent.futures
import functools
import logging
import os
import random
import socket
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from taskq import sql
from taskq.config import Settings
from taskq.database import Session
from taskq.errors import StoreUnavailable
from taskq.lease import Lease, process_namespace, process_start

__all__ = ["Listener"]

logger = logging.getLogger("taskq.listener")

PROBE_TIMEOUT_S = 3.0
COALESCE_S = 0.02  # between two notifications to the other instances
UNTOLD_MAX = 1_000  # notifications that wait for that; more are dropped
BACKOFF_S = (0.1, 5.0)
TICK_S = 0.5
STATEMENT_TIMEOUT_S = 3.0


class Listener:
    """Keeps the lease alive and hears notifications, on a thread of its own."""

    def __init__(self, dsn: str, settings: Settings, *, instance: uuid.UUID) -> None:
        """Prepare the thread; `run` starts it.

        Args:
            dsn: A direct connection, not one through a pooler in transaction mode.
            settings: Of the process.
            instance: Names this start of this process.
        """
        self.lease = Lease(settings.lease_s)
        self.url: str | None = None
        self.listening = False
        self.peers = 0
        self._settings = settings
        self._instance = instance
        self._sql = sql.load("lease")
        self._listen = Session(dsn, name="taskq listen", timeout_s=STATEMENT_TIMEOUT_S)
        self._control = Session(dsn, name="taskq control", timeout_s=STATEMENT_TIMEOUT_S)
        self._control_turn = asyncio.Lock()
        self._on_wake: Callable[[], None] = lambda: None
        self._on_lost: Callable[[int], None] = lambda _lease: None
        self._main: asyncio.AbstractEventLoop | None = None
        self._loop = asyncio.new_event_loop()
        self._ticked = time.monotonic()
        self._channels: dict[str, Callable[[str], None]] = {}
        self._untold: dict[tuple[str, str], None] = {}
        self._wake_others = asyncio.Event()
        self._mask_changed = asyncio.Event()
        self._mask = self._mask_held = False
        self._heard = asyncio.Event()
        self._cut = asyncio.Event()
        self._nonce = ""
        self._first = threading.Event()
        self._serving: asyncio.Task[None] | None = None

    def subscribe(self, *, wake: Callable[[], None], lost: Callable[[int], None]) -> None:
        """Call `wake` on the main loop when there may be work, `lost` when a lease was ended by others."""
        self._on_wake, self._on_lost = wake, lost

    def hear(self, channel: str, heard: Callable[[str], None]) -> None:
        """Call `heard` on the main loop with what is told on `channel`; empty: some of it may have been missed.

        To be asked for before `run`.
        """
        self._channels[channel] = heard

    def notify_others(self) -> None:
        """Tell the other instances that tasks are waiting; coalesced, free when there are none."""
        self.tell_others("taskq_wake", "")

    def tell_others(self, channel: str, payload: str) -> None:
        """Tell the other instances something; free when there are none, lost when very much waits to be told."""
        if self.peers:
            self._loop.call_soon_threadsafe(self._tell, channel, payload)

    async def neighbours(self) -> int:
        """Return how many other instances live on this machine, as the table says now."""
        asked = asyncio.run_coroutine_threadsafe(self._bury_neighbours(), self._loop)
        try:
            return await asyncio.wrap_future(asked)
        except StoreUnavailable:
            return 0

    def mask(self, on: bool) -> None:  # noqa: FBT001 - a switch is a boolean
        """Hold or drop the advisory lock that spares SQL producers their NOTIFY.

        A producer that probes the lock at that moment keeps us from taking it; asking again tries again.
        """
        if on != self._mask or (on and not self._mask_held):
            self._mask = on
            self._loop.call_soon_threadsafe(self._mask_changed.set)

    async def run(self, ready: asyncio.Event) -> None:
        """Run the thread until cancelled; sets `ready` when the first lease is registered.

        Cancelled, it ends the lease, so that nobody waits for it to run out.
        """
        self._main = asyncio.get_running_loop()
        ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        thread = threading.Thread(target=self._thread, args=(ended,), name="taskq-control", daemon=True)
        thread.start()
        waiting = asyncio.wrap_future(ended)
        try:
            while not ended.done():
                self._ticked = time.monotonic()
                if self._first.is_set():
                    ready.set()
                await asyncio.wait({waiting}, timeout=TICK_S if self._first.is_set() else 0.005)
            ended.result()
        finally:
            if self._serving is not None and not ended.done():
                self._loop.call_soon_threadsafe(self._serving.cancel)
            await asyncio.to_thread(thread.join, 2 * STATEMENT_TIMEOUT_S)

    def _thread(self, ended: "concurrent.futures.Future[None]") -> None:
        asyncio.set_event_loop(self._loop)
        self._serving = self._loop.create_task(self._serve())
        try:
            self._loop.run_until_complete(self._serving)
        except asyncio.CancelledError:
            ended.set_result(None)
        except BaseException as error:  # noqa: BLE001 - handed to the main thread, which dies of it
            ended.set_exception(error)
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        failures = 0
        try:
            while True:
                began = time.monotonic()
                try:
                    async with asyncio.TaskGroup() as group:
                        await self._connect()
                        group.create_task(self._beat())
                        group.create_task(self._probe())
                        group.create_task(self._relay_wakes())
                        group.create_task(self._hold_mask())
                        group.create_task(self._notice_cut())
                except* StoreUnavailable as group_error:
                    if self.listening or failures == 0:
                        logger.warning("listener lost PostgreSQL", extra={"error": str(group_error.exceptions[0])})
                    self.listening = False
                failures = 0 if time.monotonic() - began > BACKOFF_S[1] else failures + 1
                self._listen.drop()
                self._control.drop()
                await asyncio.sleep(random.uniform(0, min(BACKOFF_S[1], BACKOFF_S[0] * 2.0 ** min(failures, 10))))  # noqa: S311 - jitter is no secret
        finally:
            await self._leave()

    async def _connect(self) -> None:
        cut = self._cut = asyncio.Event()  # of this connection: an earlier one may still be ending
        await self._listen.listen("taskq_wake", lambda _payload: self._to_main(self._on_wake), ended=cut.set)
        for channel, heard in self._channels.items():
            await self._listen.listen(channel, functools.partial(self._hand_over, heard))
        await self._listen.listen(self._channel, self._hear)
        if self.lease.id == 0:
            await self._register()
        else:
            await self._renew()
        if not self.listening:
            self.listening = True
            logger.info("listening", extra={"lease": self.lease.id, "instance": str(self._instance)})
        self._first.set()
        self._to_main(self._on_wake)
        for heard in self._channels.values():
            self._hand_over(heard, "")

    @property
    def _channel(self) -> str:
        return f"taskq_probe_{self._instance.hex}"

    def _hear(self, nonce: str) -> None:
        if nonce == self._nonce:
            self._heard.set()

    async def _register(self) -> None:
        asked_at = time.monotonic()
        rows = await self._ask(
            "register",
            instance=self._instance,
            host=socket.gethostname(),
            namespace=process_namespace(),
            pid=os.getpid(),
            pid_start=process_start(os.getpid()),
            url=self.url,
        )
        self.lease.renewed(rows[0][0], asked_at)
        self.peers = rows[0][1]
        await self._bury_neighbours()

    async def _bury_neighbours(self) -> int:
        """End the leases of dead processes of this machine at once; return the number of living ones."""
        namespace = process_namespace()
        if namespace is None:
            return 0
        neighbours = await self._ask("neighbours", namespace=namespace, own=self.lease.id)
        living = 0
        for row in neighbours:
            if process_start(row[1]) == row[2]:
                living += 1
                continue
            await self._ask("end_lease", lease=row[0])
            logger.info("ended the lease of a dead process of this host", extra={"lease": row[0], "pid": row[1]})
        return living

    async def _renew(self) -> None:
        asked_at = time.monotonic()
        rows = await self._ask("beat", lease=self.lease.id, url=self.url)
        if rows:
            self.lease.renewed(rows[0][0], asked_at)
            self.peers = rows[0][1]
            return
        lost = self.lease.id
        logger.warning("our lease was ended by another instance", extra={"lease": lost})
        await self._register()
        self._to_main(lambda: self._on_lost(lost))

    async def _beat(self) -> None:
        stalled = False
        while True:
            await asyncio.sleep(self._settings.beat_s)
            if time.monotonic() - self._ticked < self._settings.loop_stall_s:
                stalled = False
                await self._renew()
                await self._bury_neighbours()
            elif not stalled:
                stalled = True
                frames = sys._current_frames().get(threading.main_thread().ident or 0)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - the only way to see where another thread hangs
                stack = "".join(traceback.format_stack(frames)) if frames else "unknown"
                logger.error("the event loop is blocked; the lease is no longer renewed", extra={"stack": stack})

    async def _probe(self) -> None:
        while True:
            await asyncio.sleep(self._settings.probe_s)
            self._nonce = uuid.uuid4().hex
            self._heard.clear()
            await self._ask("probe", channel=self._channel, nonce=self._nonce)
            try:
                async with asyncio.timeout(PROBE_TIMEOUT_S):
                    await self._heard.wait()
            except TimeoutError:
                raise StoreUnavailable(
                    f"a notification did not come back within {PROBE_TIMEOUT_S:g} s: LISTEN is dead here; "
                    "if database_url goes through a pooler, set database_direct_url"
                ) from None

    async def _notice_cut(self) -> None:
        await self._cut.wait()
        raise StoreUnavailable("the server closed the connection that listens")

    async def _relay_wakes(self) -> None:
        while True:
            await self._wake_others.wait()
            self._wake_others.clear()
            telling, self._untold = self._untold, {}
            try:
                await self._ask("tell", channels=[each[0] for each in telling], payloads=[each[1] for each in telling])
            except StoreUnavailable:
                self._untold = telling | self._untold
                self._wake_others.set()
                raise
            await asyncio.sleep(COALESCE_S)

    def _tell(self, channel: str, payload: str) -> None:
        if len(self._untold) < UNTOLD_MAX:
            self._untold[channel, payload] = None
        self._wake_others.set()

    async def _hold_mask(self) -> None:
        self._mask_held = False  # a new connection holds no lock
        while True:
            self._mask_changed.clear()
            wanted = self._mask
            if wanted and not self._mask_held:
                self._mask_held = (await self._listen.fetch(self._sql["mask"]))[0][0]
            elif self._mask_held and not wanted:
                await self._listen.fetch(self._sql["unmask"])
                self._mask_held = False
                self._to_main(self._on_wake)  # what was enqueued silently until now is found at once
            await self._mask_changed.wait()

    async def _leave(self) -> None:
        try:
            if self.lease.id:
                await self._ask("end_lease", lease=self.lease.id)
        except StoreUnavailable as error:
            logger.warning("the lease could not be ended; it will run out", extra={"error": str(error)})
        await self._listen.close()
        await self._control.close()

    async def _ask(self, name: str, **values: object) -> Sequence[Sequence[Any]]:
        """Run a statement on the control connection; beats, probes and wakes take turns."""
        async with self._control_turn:
            return await self._control.fetch(self._sql[name], **values)

    def _hand_over(self, heard: Callable[[str], None], payload: str) -> None:
        self._to_main(functools.partial(heard, payload))

    def _to_main(self, call: Callable[[], None]) -> None:
        if self._main is not None:
            self._main.call_soon_threadsafe(call)
