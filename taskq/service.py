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
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

from taskq import __version__
from taskq.batch import Batch
from taskq.config import Settings, redact_url
from taskq.dispatcher import Dispatcher
from taskq.errors import ConfigError, StoreRefused, StoreUnavailable
from taskq.intake import Intake
from taskq.kinds.email import Email
from taskq.kinds.registry import Registry, make_kind
from taskq.listener import Listener
from taskq.mail.dkim import load_signers
from taskq.mail.envelope import Transport
from taskq.mail.inbox import CapturedMail
from taskq.mail.pool import PoolLimits
from taskq.mail.relay import transport_from_url
from taskq.mail.suppressing import Suppressing
from taskq.migrate import migrate
from taskq.postgres import EmbeddedPostgres, default_root
from taskq.store import Server, Store
from taskq.suppression import Bounces, Suppressions
from taskq.sweeper import Sweeper
from taskq.task import RetryPolicy
from taskq.web.api import Api
from taskq.web.app import Site
from taskq.web.inbox import InboxPages
from taskq.web.mail import MailPages
from taskq.worker import Worker

__all__ = ["Banner", "Parts", "database", "run_service", "running_parts", "spare_collector"]

logger = logging.getLogger("taskq.service")

SERVER_VERSION_MIN = 150_000
START_TIMEOUT_S = 30.0  # for the first lease once the database answers
DEATH_POLL_S = 1.0
RESTART_PAUSE_S = 1.0
CAPTURE_BATCH_MAX = 500
DAY_S = 86_400.0
COLLECT_AFTER = (50_000, 20, 50)  # new containers, then young and middle collections


@dataclass(frozen=True, slots=True)
class Banner:
    """What a start tells its user."""

    version: str
    url: str
    database: str
    mails: str
    role: str
    warnings: tuple[str, ...]


@dataclass(slots=True)
class Parts:
    """The running parts of one process."""

    store: Store
    registry: Registry
    listener: Listener
    dispatcher: Dispatcher
    intake: Intake
    sweeper: Sweeper
    suppressions: Suppressions
    bounces: Bounces
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
            api = Api(parts.store, parts.registry, parts.intake, parts.suppressions)
            mail_pages = MailPages(parts.suppressions, parts.bounces, server.installation)
            site = Site(
                [] if settings.role == "worker" else [api, InboxPages(parts.store), mail_pages],
                lambda: _health(parts, described),
                body_bytes_max=settings.body_bytes_max,
            )
            url = await _serve_somewhere(site, settings, parts.listener)
            parts.listener.url = url
            announce(Banner(__version__, url, described, _mails(settings), settings.role, warnings))
            spare_collector()
            await stop.wait()
            logger.info("stopping")
            api.stopping = True
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
        captures: Batch[CapturedMail, None] = Batch(lambda mails: _capture(store, mails), size_max=CAPTURE_BATCH_MAX)
        suppressions = Suppressions(
            store.reads, copied_max=settings.suppressions_copied_max, automatic_s=settings.suppression_days * DAY_S
        )
        bounces = Bounces(store.reads, retention_s=settings.retention_days * DAY_S)
        relay = transport_from_url(
            settings.smtp_url.get_secret_value(),
            captures.put,
            pool=PoolLimits(connections_max=settings.smtp_connections_max),
        )
        transport = Suppressing(relay, suppressions.lookup, suppressions.learn)
        registry = _registry(settings, transport)
        prepare(registry)
        listener = Listener(direct_dsn, settings, instance=uuid.uuid4())
        worker = Worker(registry, server.installation)
        dispatcher = Dispatcher(store, worker, listener.lease, settings, signals=listener)
        births = dispatcher if settings.role == "all" else None
        intake = Intake(store, listener.lease, settings, births=births, notify_others=listener.notify_others)
        prune_more = (suppressions.prune, bounces.prune, suppressions.refresh)
        sweeper = Sweeper(store, listener.lease, settings, wake=dispatcher.wake.now, prune_more=prune_more)
        if settings.role != "api":
            listener.subscribe(wake=dispatcher.wake.notified, lost=dispatcher.lost)
        ready = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(listener.run(ready), name="listener")]
            async with asyncio.timeout(START_TIMEOUT_S):
                await ready.wait()
            running += [
                group.create_task(part, name=name)
                for name, part in (
                    ("intake", intake.run()),
                    ("inbox", captures.run()),
                    ("suppressions", suppressions.run()),
                    ("sweeper", sweeper.run()),
                    *([("dispatcher", dispatcher.run())] if settings.role != "api" else []),
                )
            ]
            yield Parts(store, registry, listener, dispatcher, intake, sweeper, suppressions, bounces, group), server
            for task in reversed(running):
                task.cancel()
        await transport.close()
    finally:
        await store.close()


def _registry(settings: Settings, transport: Transport) -> Registry:
    registry = Registry()
    registry.add(
        make_kind(
            "email",
            Email(transport, settings.mail_from, load_signers(settings.dkim)),
            RetryPolicy(settings.retry_base_s, settings.retry_cap_s, min(1.0, settings.retry_base_s)),
            settings.mail_timeout_s,
            max_attempts=settings.max_attempts,
            ack_each=not _catches(settings),
        )
    )
    registry.load(settings.handlers)
    return registry


async def _capture(store: Store, mails: list[CapturedMail]) -> Sequence[BaseException | None]:
    try:
        await store.capture([(mail.task_id, mail.sender, mail.recipient, mail.message) for mail in mails])
    except (StoreUnavailable, StoreRefused) as error:
        return [error] * len(mails)
    return [None] * len(mails)


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
        "pid": os.getpid(),
    }


def _catches(settings: Settings) -> bool:
    return settings.smtp_url.get_secret_value() in ("", "inbox:")


def _mails(settings: Settings) -> str:
    if _catches(settings):
        return "caught in the local inbox, none leaves this machine (set smtp_url to send)"
    return f"sent by {redact_url(settings.smtp_url.get_secret_value())} from {settings.mail_from}"


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
