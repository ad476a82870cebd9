"""One process: the only place where the parts meet.

Start: database (embedded unless one is named) → migrations → a look at its durability → parts, in one
TaskGroup: listener, intake, dispatcher, sweeper → the web last, when the lease is held.

Stop, on SIGTERM or SIGINT: the web refuses new submissions → the intake flushes → the dispatcher
drains under the grace → the group is cancelled, which ends the lease → connections and the embedded
server are closed.  A second signal ends the grace.  Nothing is stranded and no attempt is burnt.

A part that dies takes the process down loudly; only the listener, the loops that talk to PostgreSQL
and the embedded server mend themselves.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import uuid
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from taskq import __version__
from taskq.budget import Budget
from taskq.config import Settings, redact_url
from taskq.control import Control, Waiters
from taskq.dispatcher import Dispatcher
from taskq.errors import ConfigError, StoreUnavailable
from taskq.ingest import Ingest
from taskq.intake import Intake
from taskq.kinds.registry import Registry
from taskq.listener import Listener
from taskq.listing import Listing
from taskq.mailroom import Mailroom, where_mails_go
from taskq.migrate import migrate
from taskq.postgres import EmbeddedPostgres, default_root
from taskq.settler import Sealer
from taskq.store import Server, Store
from taskq.sweeper import Sweeper
from taskq.web.api import Api
from taskq.web.app import Site
from taskq.web.inbox import InboxPages
from taskq.web.mail import MailPages
from taskq.web.single import TaskPages
from taskq.web.tasks import TaskList
from taskq.worker import Worker

__all__ = ["Banner", "Parts", "database", "run_service", "running_parts", "spare_collector"]

logger = logging.getLogger("taskq.service")

SERVER_VERSION_MIN = 150_000
START_TIMEOUT_S = 30.0  # for the first lease once the database answers
DEATH_POLL_S = 1.0
RESTART_PAUSE_S = 1.0
COLLECT_AFTER = (50_000, 20, 50)  # new containers, then young and middle collections


@dataclass(frozen=True, slots=True)
class Banner:
    """What a start tells its user."""

    version: str
    url: str
    database: str
    mails: str
    receives: str
    """Where mails of other programs are caught; empty: nowhere."""
    role: str
    warnings: tuple[str, ...]


@dataclass(slots=True)
class Parts:
    """The running parts of one process."""

    store: Store
    mailroom: Mailroom
    registry: Registry
    listener: Listener
    dispatcher: Dispatcher
    intake: Intake
    sweeper: Sweeper
    control: Control
    ingest: Ingest | None
    group: asyncio.TaskGroup


async def run_service(settings: Settings, announce: Callable[[Banner], None]) -> None:
    """Run until a signal asks to stop.

    Args:
        settings: Of the process.
        announce: Told once, when everything is up.

    Raises:
        ConfigError: The process can't start as configured.
    """
    stop, hurry = asyncio.Event(), asyncio.Event()
    _listen_to_signals(stop, hurry)
    async with database(settings) as (dsn, direct_dsn, described):
        applied = await migrate(direct_dsn)
        if applied:
            logger.info("database is up to date", extra={"applied": applied})
        async with running_parts(settings, dsn, direct_dsn) as (parts, server):
            warnings = _durability(server, settings)
            budget = Budget(settings.body_bytes_in_flight_max)
            api = Api(
                parts.registry,
                parts.intake,
                parts.control,
                budget,
                wait_s_max=settings.wait_s_max,
                admit=parts.mailroom.admit,
            )
            pages = [
                api,
                TaskPages(parts.store, parts.control, wait_s_max=settings.wait_s_max),
                TaskList(Listing(parts.store)),
                InboxPages(parts.mailroom.store, parts.mailroom.mailbox),
                MailPages(parts.mailroom.suppressions, parts.mailroom.bounces, server.installation),
            ]
            site = Site(
                [] if settings.role == "worker" else pages,
                lambda: _health(parts, described),
                body_bytes_max=settings.body_bytes_max,
            )
            url = await _serve_somewhere(site, settings, parts.listener)
            parts.listener.url = url
            receives = parts.mailroom.receiver.place if parts.mailroom.receiver else ""
            announce(Banner(__version__, url, described, where_mails_go(settings), receives, settings.role, warnings))
            spare_collector()
            await stop.wait()
            logger.info("stopping")
            api.stopping = True
            parts.mailroom.mailbox.close()
            if settings.role != "worker":
                await parts.intake.empty()
            if settings.role != "api":
                await parts.dispatcher.drain(settings.grace_s, hurry)
            await site.close()


@contextlib.asynccontextmanager
async def database(settings: Settings) -> AsyncGenerator[tuple[str, str, str]]:
    """Provide the database: its address, its direct address, and words for people."""
    if settings.database_url is not None:
        url = settings.database_url.get_secret_value()
        direct = settings.database_direct_url
        yield url, direct.get_secret_value() if direct else url, redact_url(url)
        return
    root = settings.data_dir or default_root()
    postgres = EmbeddedPostgres(root, bin_dir=settings.pg_bin, server_user=settings.pg_user)
    await asyncio.to_thread(postgres.start)
    try:
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(_keep_alive(postgres))
            yield postgres.dsn, postgres.dsn, postgres.description
            watch.cancel()
    finally:
        logger.info("database: %s", await asyncio.to_thread(postgres.stop))


async def _keep_alive(postgres: EmbeddedPostgres) -> None:
    """Start the embedded server again whenever it dies."""
    while True:
        if not await asyncio.to_thread(postgres.wait_dead, DEATH_POLL_S):
            continue
        logger.error("the embedded PostgreSQL died; starting it again")
        try:
            await asyncio.to_thread(postgres.start)
        except ConfigError as error:
            logger.error("it can't be started; trying again", extra={"error": str(error)})
            await asyncio.sleep(RESTART_PAUSE_S)


@contextlib.asynccontextmanager
async def running_parts(
    settings: Settings, dsn: str, direct_dsn: str, prepare: Callable[[Registry], None] = lambda _registry: None
) -> AsyncGenerator[tuple[Parts, Server]]:
    """Run the parts that need no web: what `taskq run` serves and `taskq bench` measures.

    Args:
        settings: Of the process.
        dsn: The database.
        direct_dsn: The same, without a pooler.
        prepare: Adds kinds before anything runs.
    """
    store = Store(dsn, settings)
    try:
        server = await _ask(store)
        listener = Listener(direct_dsn, settings, instance=uuid.uuid4())
        mailroom = Mailroom.open(settings, store, listener)
        registry = _registry(settings, mailroom, prepare)
        sealer = Sealer(store)
        worker = Worker(registry, server.installation, sealer.seal, store.bundles.blob)
        waiters = Waiters(size_max=settings.waiters_max)
        dispatcher = Dispatcher(store, worker, listener.lease, settings, signals=listener, ended=waiters.ended)
        control = Control(store, waiters, dispatcher, listener)
        births = dispatcher if settings.role == "all" else None
        intake = Intake(store, listener.lease, settings, births=births, notify_others=listener.notify_others)
        ingest = _ingest(settings, direct_dsn, store, registry, intake, mailroom)
        prunes = [*mailroom.prunes, *([ingest.prune] if ingest else [])]
        sweeper = Sweeper(
            store, listener.lease, settings, wake=dispatcher.wake.now, privacy=registry.private, prune_more=prunes
        )
        if settings.role != "api":
            listener.subscribe(wake=dispatcher.wake.notified, lost=dispatcher.lost)
            listener.hear("taskq_cancel", lambda _told: control.look())
        ready = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(listener.run(ready), name="listener")]
            async with asyncio.timeout(START_TIMEOUT_S):
                await ready.wait()
            running += [
                group.create_task(part, name=name)
                for name, part in (
                    ("intake", intake.run()),
                    ("sealer", sealer.run()),
                    ("sweeper", sweeper.run()),
                    ("control", control.run()),
                    *mailroom.running(),
                    *([("ingest", ingest.run())] if ingest else []),
                    *([("dispatcher", dispatcher.run())] if settings.role != "api" else []),
                )
            ]
            yield (
                Parts(store, mailroom, registry, listener, dispatcher, intake, sweeper, control, ingest, group),
                server,
            )
            for task in reversed(running):
                task.cancel()
        await mailroom.close()
    finally:
        await store.close()


def _registry(settings: Settings, mailroom: Mailroom, prepare: Callable[[Registry], None]) -> Registry:
    registry = Registry()
    registry.add(mailroom.kind)
    registry.load(settings.handlers)
    prepare(registry)
    return registry


def _ingest(
    settings: Settings, dsn: str, store: Store, registry: Registry, intake: Intake, mailroom: Mailroom
) -> Ingest | None:
    """Make what hears notified submissions, where it is wanted: of itself with a database that is ours alone."""
    wanted = settings.notify_enqueue == "on" or (settings.notify_enqueue == "auto" and settings.database_url is None)
    if not wanted or settings.role == "worker":
        return None
    return Ingest(dsn, store, registry, intake, settings, admit=mailroom.admit)


async def _ask(store: Store) -> Server:
    try:
        server = await store.server()
        await store.prepare()
    except StoreUnavailable as error:
        raise ConfigError(f"the database can't be used ({error}): check database_url") from None
    if server.version_num < SERVER_VERSION_MIN:
        raise ConfigError(f"the server is PostgreSQL {server.version}: taskq needs 15 or newer")
    return server


def _durability(server: Server, settings: Settings) -> tuple[str, ...]:
    if not server.unsafe:
        return ()
    facts = ", ".join(server.unsafe)
    if settings.durability == "strict":
        raise ConfigError(
            f"the server runs with {facts}, so a 201 would not mean that the task survives a crash: turn it on, "
            "or accept that with --durability relaxed"
        )
    return (f"{facts}: a crash of the server can lose tasks that were answered with 201",)


async def _serve_somewhere(site: Site, settings: Settings, listener: Listener) -> str:
    """Serve on the port wished for; where none was and an instance of ours is here already, on a free one."""
    try:
        return await site.serve(settings.host, settings.port)
    except ConfigError:
        if "port" in settings.model_fields_set or not await listener.neighbours():
            raise
        return await site.serve(settings.host, 0)


def _health(parts: Parts, described: str) -> tuple[bool, dict[str, object]]:
    holds = parts.listener.lease.holds()
    return holds, {
        "database": described if holds else "unavailable",
        "listener": "up" if parts.listener.listening else "down",
        "running": parts.dispatcher.running,
        **_ingested(parts.ingest),
        "outcomes_unknown": parts.dispatcher.unknown + parts.sweeper.unknown,
        "pid": os.getpid(),
    }


def _ingested(ingest: Ingest | None) -> dict[str, object]:
    if ingest is None:
        return {}
    return {"notified": {"taken": ingest.taken, "rejected": ingest.rejected, "dropped": ingest.dropped}}


def spare_collector() -> None:
    """Let the garbage collector look only at what is new, and less often: tasks end by their last reference."""
    gc.freeze()  # what the start left behind lives as long as the process: never look at it again
    gc.set_threshold(*COLLECT_AFTER)


def _listen_to_signals(stop: asyncio.Event, hurry: asyncio.Event) -> None:
    def asked() -> None:
        if stop.is_set():
            logger.warning("asked to stop again: what still runs is handed back")
            hurry.set()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked)
