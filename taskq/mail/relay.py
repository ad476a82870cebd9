"""A relay in use: sends a mail, and turns what happened into what the task should do.

A verdict about the relay raises `Snooze`: the mail keeps its attempts and comes back after the
breaker's next probe, spread at random so that those who waited do not come at once.  A verdict
about the mail raises `TaskError`, with the server's own words.  Not knowing whether the mail was
taken is said as that, and the mail comes back late enough for the receiver to recognise it.

A reused connection that had died is replaced once, at once and free of charge.
"""

import asyncio
import logging
import random
import re
import socket
import ssl

from taskq.errors import ConfigError, Snooze, TaskError
from taskq.mail.address import mask_address
from taskq.mail.breaker import Breaker, Ticket
from taskq.mail.channel import Reply
from taskq.mail.classify import Phase, Ruling, Scope, Verdict
from taskq.mail.envelope import Envelope, Receipt, Refused, Span, Transport
from taskq.mail.inbox import Capture, Inbox
from taskq.mail.pool import Pool, PoolLimits
from taskq.mail.server import Server, Tls, parse_server
from taskq.mail.smtp import Connection, SmtpFailure, TimeLimits

__all__ = ["Relay", "transport_from_url"]

BUSY_SNOOZE_S = 5.0  # when every connection was busy for as long as one waits
HANG_UP_SNOOZE_S = 30.0  # when the relay hangs up on one mail, after having accepted its sender

_log = logging.getLogger("taskq.mail")
_REMOTE_ID = re.compile(r"\bqueued as ([^\s<>]+)|\bid=([^\s<>]+)|^(?:2\.\d\.\d )?Ok:? ([\w.@+-]{12,})$", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+")


def transport_from_url(url: str, capture: Capture, *, pool: PoolLimits | None = None) -> Transport:
    """Make the transport that a URL names: a relay, or the inbox for `inbox:` and for nothing.

    Raises:
        ConfigError: The URL can't be used; the message never shows its password.
    """
    if url in {"", "inbox:"}:
        return Inbox(capture)
    return Relay(parse_server(url), pool=pool)


class Relay:
    """A transport that hands mails to one SMTP server.

    Args:
        server: Where it is; see `parse_server`.
        pool: Bounds of its connections.
        limits: Seconds to wait in each phase.
        breaker: Keeps tasks away while the relay is down.
    """

    def __init__(
        self,
        server: Server,
        *,
        pool: PoolLimits | None = None,
        limits: TimeLimits | None = None,
        breaker: Breaker | None = None,
    ) -> None:
        self._server = server
        self._limits = limits or TimeLimits()
        self._tls = _tls_context(server)
        self._hello_name = _hello_name()
        self._breaker = breaker or Breaker()
        self._pool = Pool(self._connect, pool or PoolLimits())

    def __repr__(self) -> str:
        return f"Relay({str(self._server)!r})"

    async def send(self, envelope: Envelope, span: Span) -> Receipt:
        """Hand over one mail; see `Transport.send`."""
        self._refuse_while_open()
        try:
            async with self._pool.slot():
                reply = await self._try(envelope, span)
        except TimeoutError:
            raise Snooze(
                f"every connection to {self._server} was busy for too long: raise the number of connections, or lower "
                f"the number of workers",
                delay_s=_spread(BUSY_SNOOZE_S),
            ) from None
        _log.debug("mail_accepted", extra={"task_id": envelope.task_id, "to": mask_address(envelope.recipient)})
        return Receipt(str(self._server), reply.code, reply.text, _remote_id(reply.text))

    async def close(self) -> None:
        """Close the idle connections, politely but soon."""
        await self._pool.close()

    async def _try(self, envelope: Envelope, span: Span) -> Reply:
        """Send within a slot, and tell the breaker how it went."""
        ticket = self._breaker.enter(self._now())
        if ticket is None or self._pool.closed:
            raise self._snooze("is not available")
        try:
            reply = await self._attempt(envelope, span)
        except SmtpFailure as failure:
            raise self._consequence(failure, ticket) from failure
        else:
            self._note_success(ticket)
            return reply
        finally:
            self._breaker.abandon(ticket)

    async def _attempt(self, envelope: Envelope, span: Span) -> Reply:
        connection = self._pool.take()
        if connection is not None:
            try:
                return await self._transact(connection, envelope, span)
            except SmtpFailure as failure:
                if failure.verdict.ruling is not Ruling.STALE:
                    raise
        return await self._transact(await self._pool.open(), envelope, span)

    async def _transact(self, connection: Connection, envelope: Envelope, span: Span) -> Reply:
        try:
            return await connection.transact(envelope, span)
        finally:
            self._pool.give_back(connection)

    async def _connect(self) -> Connection:
        return await Connection.open(self._server, self._tls, name=self._hello_name, limits=self._limits)

    def _consequence(self, failure: SmtpFailure, ticket: Ticket) -> TaskError | Snooze:
        """Decide what a failure means for the task, and let the breaker know."""
        verdict = failure.verdict
        if verdict.scope is Scope.RELAY:
            return self._relay_failed(failure, verdict, ticket)
        self._note_success(ticket)  # whatever it thinks of this mail, the relay works
        said = f"{failure.code} {failure.text}" if failure.code >= 100 else failure.text
        about = f"{verdict.scope} at {failure.phase.upper()}"
        match verdict.ruling:
            case Ruling.PERMANENT:
                refused = f"{self._server} refused the {about}: {said}"
                return Refused(refused, phase=failure.phase, code=failure.code, enhanced=failure.enhanced)
            case Ruling.AMBIGUOUS:
                return TaskError(
                    f"ambiguous: {self._server} may or may not have taken the mail ({said}); it is sent again with the "
                    f"same Message-ID",
                    reason="outcome_unknown",
                    retry_after_s=verdict.hint_s,
                )
            case _:
                return TaskError(f"{self._server} put off the {about}: {said}", retry_after_s=verdict.hint_s)

    def _relay_failed(self, failure: SmtpFailure, verdict: Verdict, ticket: Ticket) -> Snooze:
        if failure.phase in {Phase.RCPT, Phase.DATA} and verdict.ruling is Ruling.TRANSIENT:
            # It may dislike just this mail, and would be shut to all others by it again and again.
            return self._snooze(f"hung up ({failure})", delay_s=verdict.hint_s or HANG_UP_SNOOZE_S)
        if failure.phase is Phase.CONNECT and 400 <= failure.code < 500 and self._pool.shrink():
            return self._snooze(f"takes no more connections ({failure})")
        pause_s = self._breaker.fail(ticket, self._now(), pause_s=verdict.hint_s)
        if pause_s is not None:
            self._log_failure(failure, verdict, pause_s)
        return self._snooze(f"is not available ({failure})")

    def _log_failure(self, failure: SmtpFailure, verdict: Verdict, pause_s: float) -> None:
        fields = {"relay": str(self._server), "phase": failure.phase, "code": failure.code, "pause_s": pause_s}
        if verdict.ruling is Ruling.CONFIG:
            _log.error("relay_needs_attention: %s; correct TASKQ_SMTP_URL or the relay", failure, extra=fields)
        else:
            _log.warning("relay_unavailable: %s", failure, extra=fields)

    def _note_success(self, ticket: Ticket) -> None:
        if self._breaker.succeed(ticket):
            _log.info("relay_available", extra={"relay": str(self._server)})

    def _refuse_while_open(self) -> None:
        """Keep tasks from queueing for a slot while the breaker would refuse them anyway."""
        if self._pool.closed or self._breaker.wait_s(self._now()) > 0.0:
            raise self._snooze("is not available")

    def _snooze(self, fact: str, *, delay_s: float | None = None) -> Snooze:
        if delay_s is None:
            delay_s = self._breaker.wait_s(self._now())
        return Snooze(f"{self._server} {fact}: tried again, no attempt is used up", delay_s=_spread(delay_s))

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _spread(delay_s: float) -> float:
    """Return a delay between the given one and one and a half times it, at least a second wide."""
    return delay_s + random.random() * max(1.0, delay_s / 2)  # noqa: S311 - jitter is no secret


def _remote_id(text: str) -> str | None:
    """Return the name that the relay gave the mail, such as Postfix's queue id."""
    found = _REMOTE_ID.search(text)
    return next((group for group in found.groups() if group), None) if found else None


def _tls_context(server: Server) -> ssl.SSLContext | None:
    """Build the one context of all connections: verified, TLS 1.2 or newer."""
    if server.tls is Tls.OFF:
        return None
    try:
        context = ssl.create_default_context(cafile=server.ca_file or None)
    except OSError as error:
        raise ConfigError(
            f"TASKQ_SMTP_URL names the CA file {server.ca_file!r}, which can't be read ({error})"
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _hello_name() -> str:
    """Return what EHLO calls us: this host's full name, else an address literal (RFC 5321 §4.1.4)."""
    name = socket.gethostname()
    return name if _NAME.fullmatch(name) else "[127.0.0.1]"
