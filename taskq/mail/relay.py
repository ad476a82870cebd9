"""A relay in use: sends a mail, and turns what happened into what the task should do.

A verdict about the relay raises `Snooze`: the mail keeps its attempts and comes back after the
breaker's next probe, spread at random so that those who waited do not come at once.  A verdict
about the mail raises `TaskError`, with the server's own words.  Not knowing whether the mail was
taken is said as that, and the mail comes back late enough for the receiver to recognise it.

A relay that serves some connections and refuses one more has told its limit: the mail waits for one
of those that it serves.  While a relay does not work its operator is told once, not once a mail.
"""

import asyncio
import logging
import random
import re
import socket
import ssl

from taskq.errors import ConfigError, Snooze
from taskq.facts import mask_addresses
from taskq.mail.address import mask_address
from taskq.mail.attempt import attempt, remote_id_of
from taskq.mail.breaker import Breaker, Ticket
from taskq.mail.channel import Reply
from taskq.mail.classify import Event, Phase, Ruling
from taskq.mail.consequence import Consequence, Declined, consequence_of, unknown_relay
from taskq.mail.envelope import Envelope, Receipt, Span
from taskq.mail.failure import SmtpFailure
from taskq.mail.handshake import TimeLimits
from taskq.mail.options import RelayOptions
from taskq.mail.pool import Narrowed, Pool
from taskq.mail.rate import PATIENCE_S, Rate
from taskq.mail.server import Server, Tls
from taskq.mail.smtp import Connection, SealFailed
from taskq.mail.trace import Trace

__all__ = ["Relay"]

BUSY_SNOOZE_S = 5.0  # when every connection was busy for as long as one waits
SEAL_SNOOZE_S = 5.0  # when the database could not take down that a mail is about to leave

_log = logging.getLogger("taskq.mail")
_HOST_NAME = re.compile(r"[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+")
_SETTING_UP = frozenset({Phase.CONNECT, Phase.TLS, Phase.EHLO, Phase.AUTH})


class Relay:
    """A transport that hands mails to one SMTP server.

    Args:
        server: Where it is; see `parse_server`.
        options: Its name, bounds and rate.
        limits: Seconds to wait in each phase.
        breaker: Keeps tasks away while the relay is down.
    """

    def __init__(
        self,
        server: Server,
        *,
        options: RelayOptions | None = None,
        limits: TimeLimits | None = None,
        breaker: Breaker | None = None,
    ) -> None:
        self._server = server
        self._limits = limits or TimeLimits()
        self._tls = _tls_context(server)
        self._hello_name = _hello_name()
        self._breaker = breaker or Breaker()
        self.options = options or RelayOptions(server.host)
        """What its URL says beside its server."""
        self.name = self.options.name or server.host
        """What mails ask for it by."""
        self._pool = Pool(self._connect, self.options.pool)
        self._rate = Rate(self.options.rate_per_s)
        self._told: tuple[Ruling, Phase, int] | None = None  # the failure that its operator knows of

    def __repr__(self) -> str:
        return f"Relay({str(self._server)!r})"

    async def send(self, envelope: Envelope, span: Span) -> Receipt:
        """Hand over one mail; see `Transport.send`."""
        if envelope.relay is not None and envelope.relay != self.name:
            raise unknown_relay(envelope.relay, [self.name])
        try:
            return await self.hand_over(envelope, span)
        except Declined as declined:
            raise declined.error from declined.__cause__

    async def hand_over(self, envelope: Envelope, span: Span) -> Receipt:
        """Hand over one mail.

        Raises:
            Declined: It was not taken, or it is not known whether it was; whether another relay may be asked.
        """
        self._refuse_while_open()
        wait_s = self._rate.take(self._now())
        if wait_s > 0.0:
            await self._await_turn(wait_s)
        try:
            reply = await self._over_a_connection(envelope, span)
        except TimeoutError:
            raise Declined(
                Snooze(
                    f"every connection to {self._server} was busy for too long: raise the number of connections, or "
                    f"lower the number of workers",
                    delay_s=_spread(BUSY_SNOOZE_S),
                ),
                elsewhere=True,
            ) from None
        to = "***" if envelope.sensitive else mask_address(envelope.recipient)
        _log.debug("mail_accepted", extra={"task_id": envelope.task_id, "to": to})
        return Receipt(str(self._server), reply.code, reply.text, remote_id_of(reply.text))

    async def close(self) -> None:
        """Close the idle connections, politely but soon."""
        await self._pool.close()

    async def _await_turn(self, wait_s: float) -> None:
        """Wait for a turn that is near; come back for one that is far."""
        if wait_s > PATIENCE_S:
            text = f"{self._server} is given no more than {self._rate.per_s or 0.0:.3g} mails a second"
            raise Declined(Snooze(f"{text}: its turn comes, no attempt is used up", delay_s=wait_s), elsewhere=False)
        await asyncio.sleep(wait_s)

    async def _over_a_connection(self, envelope: Envelope, span: Span) -> Reply:
        """Send within a slot; again within another where the relay serves no further connection."""
        while True:
            async with self._pool.slot():
                reply = await self._try(envelope, span)
            if reply is not None:
                return reply

    async def _try(self, envelope: Envelope, span: Span) -> Reply | None:
        """Send within a slot, and tell the breaker how it went; None: a slot less, wait for another."""
        ticket = self._breaker.enter(self._now())
        if ticket is None or self._pool.closed:
            raise self._unavailable()
        try:
            reply = await attempt(self._pool, envelope, span, relay=self.name)
        except Narrowed:
            return None
        except SmtpFailure as failure:
            if _is_one_too_many(failure) and self._pool.shrink():
                return None
            raise self._declined(failure, ticket) from failure
        except SealFailed as error:
            text = f"the mail was not sent because that could not be written down first ({error})"
            raise Declined(
                Snooze(f"{text}: tried again soon", delay_s=_spread(SEAL_SNOOZE_S)), elsewhere=False
            ) from error
        else:
            self._note_success(ticket)
            return reply
        finally:
            self._breaker.abandon(ticket)

    async def _connect(self, trace: Trace) -> Connection:
        return await Connection.open(self._server, self._tls, name=self._hello_name, limits=self._limits, trace=trace)

    def _declined(self, failure: SmtpFailure, ticket: Ticket) -> Declined:
        """Decide what a failure means for the task, and let breaker and rate know."""
        what = consequence_of(failure, str(self._server), probe_s=self.options.probe_s)
        if what.slows and self._rate.slow_down(self._now()):
            _log.info("relay_slowed", extra={"relay": str(self._server), "mails_per_s": self._rate.per_s})
        if what.error is not None:
            self._note_success(ticket)  # whatever it thinks of this mail, the relay works
            ambiguous = failure.verdict.ruling is Ruling.AMBIGUOUS
            return Declined(what.error, elsewhere=what.elsewhere, ambiguous=ambiguous)
        if what.shuts:
            self._shut(failure, what, ticket)
        return Declined(self._snooze(what.fact, what.delay_s), elsewhere=what.elsewhere)

    def _shut(self, failure: SmtpFailure, what: Consequence, ticket: Ticket) -> None:
        pause_s = self._breaker.fail(ticket, self._now(), pause_s=what.pause_s)
        if pause_s is None:
            return
        self._pool.widen()
        cause = (failure.verdict.ruling, failure.phase, failure.code)
        if cause == self._told:
            return
        self._told = cause
        fields = {"relay": str(self._server), "phase": failure.phase, "code": failure.code, "pause_s": pause_s}
        said = mask_addresses(str(failure))  # a server may quote who the mail was for
        if failure.verdict.ruling is Ruling.CONFIG:
            _log.error("relay_needs_attention: %s; correct TASKQ_SMTP_URL or the relay", said, extra=fields)
        else:
            _log.warning("relay_unavailable: %s", said, extra=fields)

    def _note_success(self, ticket: Ticket) -> None:
        if self._breaker.succeed(ticket):
            self._told = None
            _log.info("relay_available", extra={"relay": str(self._server)})

    def _refuse_while_open(self) -> None:
        """Keep tasks from queueing for a slot while the breaker would refuse them anyway."""
        if self._pool.closed or self._breaker.wait_s(self._now()) > 0.0:
            raise self._unavailable()

    def _unavailable(self) -> Declined:
        return Declined(self._snooze("is not available", None), elsewhere=True)

    def _snooze(self, fact: str, delay_s: float | None) -> Snooze:
        if delay_s is None:
            delay_s = self._breaker.wait_s(self._now())
        return Snooze(f"{self._server} {fact}: tried again, no attempt is used up", delay_s=_spread(delay_s))

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _is_one_too_many(failure: SmtpFailure) -> bool:
    """Whether a new connection was refused in a way that only their number can explain, if others are served."""
    return failure.phase in _SETTING_UP and (failure.code == Event.LOST or 400 <= failure.code < 500)


def _spread(delay_s: float) -> float:
    """Return a delay between the given one and one and a half times it, at least a second wide."""
    return delay_s + random.random() * max(1.0, delay_s / 2)  # noqa: S311 - jitter is no secret


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
    return name if _HOST_NAME.fullmatch(name) else "[127.0.0.1]"
