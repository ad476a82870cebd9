"""One SMTP connection and, on it, one transaction after the other, phase by phase (RFC 5321).

aiosmtplib connects, secures (STARTTLS or TLS), greets and logs in; then `Channel` takes over.  A
transaction is MAIL, RCPT, DATA, the text and its final dot; where the relay offers PIPELINING the
three commands travel in one write (RFC 2920), so a mail costs two round trips.  Nothing is sent
that would have to be taken back: size and SMTPUTF8 are checked against the relay's offer first, and
text follows only when sender and recipient were both accepted.

Whatever is not a clean reply closes the connection without QUIT: our limits, a cancellation, a 421,
a reply out of step.  Only between the final dot and its reply is the outcome unknown; that span is
entered through the caller's `span`, waits as long as RFC 5321 §4.5.3.2.6 asks, and reports
`Phase.DOT`.
"""

import asyncio
import re
import ssl
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Self

import aiosmtplib

from taskq.mail.channel import Broken, Channel, Reply
from taskq.mail.classify import Event, Phase, Verdict, classify
from taskq.mail.envelope import Envelope, Span
from taskq.mail.server import Server, Tls

__all__ = ["Connection", "SmtpFailure", "TimeLimits"]

TAIL_OCTETS = 32_768  # written together with the dot; the rest of a large text is written before it
_UNSAFE = re.compile(r"[\x00-\x20\x7f<>]")


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """Seconds to wait in each phase.

    RFC 5321 §4.5.3.2 asks for minutes, for relays that may forward while we wait; a submission
    relay that needs so long is down.  The wait after the dot is the RFC's: a shorter one makes
    duplicates (RFC 1047).
    """

    connect_s: float = 30.0
    """Name lookup, TCP, implicit TLS and the banner: each at most this long."""
    hello_s: float = 30.0
    """EHLO, STARTTLS and its handshake, AUTH: each at most this long."""
    command_s: float = 60.0
    """Each reply to RSET, MAIL, RCPT and DATA."""
    body_s: float = 30.0
    """Writing the text, however short."""
    body_octets_per_s: float = 50_000.0
    """Added to `body_s` for each octet of text: the slowest upload that is waited for."""
    dot_s: float = 600.0
    """The reply to the final dot."""


class SmtpFailure(Exception):
    """A connection or a transaction ended otherwise than with an accepted mail.

    Attributes:
        phase: Where it stood.
        code: Reply code, or an `Event` when there was no reply.
        enhanced: Enhanced status code; may be empty.
        text: The server's words, or ours when it said nothing.
        reused: Whether the connection had served an earlier transaction.
    """

    def __init__(self, phase: Phase, code: int, text: str, *, enhanced: str = "", reused: bool = False) -> None:
        super().__init__(f"{phase}: {code} {text}" if code >= 100 else f"{phase}: {text}")
        self.phase = phase
        self.code = code
        self.enhanced = enhanced
        self.text = text
        self.reused = reused

    @property
    def verdict(self) -> Verdict:
        """What it means."""
        return classify(self.phase, self.code, self.enhanced, self.text, self.reused)


class Connection:
    """One open, greeted and authenticated connection to a relay; for one transaction at a time."""

    def __init__(self, channel: Channel, extensions: dict[str, str], limits: TimeLimits) -> None:
        self._channel = channel
        self._limits = limits
        self._pipelining = "pipelining" in extensions
        self._smtputf8 = "smtputf8" in extensions
        self._sizes = "size" in extensions
        self._size_max = (
            int(size) if (size := extensions.get("size", "")).isdecimal() else 0
        )  # 0: RFC 1870 §4, no limit
        self._dirty = False  # a refused transaction is still open at the relay: RSET comes first
        self._settled = True  # no transaction is under way, and the last one ended with a clean reply
        self.transactions = 0
        """Transactions begun."""
        self.opened_at = self.idle_since = asyncio.get_running_loop().time()
        """Event loop time; `idle_since` is kept by the pool."""

    @classmethod
    async def open(cls, server: Server, tls: ssl.SSLContext | None, *, name: str, limits: TimeLimits) -> Self:
        """Connect, secure, greet and log in.

        Args:
            server: Where, and on which terms.
            tls: The shared context; None only where the server is spoken to in plaintext.
            name: What we call ourselves in EHLO.
            limits: Seconds to wait in each phase.

        Raises:
            SmtpFailure: Not possible now, in the phase that it names.
        """
        client = aiosmtplib.SMTP(
            hostname=server.host,
            port=server.port,
            local_hostname=name,
            timeout=None,  # see `_step`
            use_tls=server.tls is Tls.IMPLICIT,
            start_tls=False,  # the default would go on in plaintext where STARTTLS is not offered
            tls_context=tls,
        )
        try:
            await _set_up(client, server, limits)
        except BaseException:
            client.close()
            raise
        transport = client.transport
        if transport is None:
            raise SmtpFailure(Phase.EHLO, Event.LOST, "the server closed the connection")
        extensions = client.esmtp_extensions
        channel = Channel(transport)  # pyright: ignore[reportArgumentType] - uvloop's transports are no subclass
        return cls(channel, extensions, limits)

    @property
    def usable(self) -> bool:
        """Whether another transaction may begin on it."""
        return self._settled and self._channel.in_step

    @property
    def closed(self) -> asyncio.Future[None]:
        """Done once the connection is closed."""
        return self._channel.closed

    async def transact(self, envelope: Envelope, span: Span) -> Reply:
        """Hand over one mail and return the reply to its final dot, a 2xx.

        Raises:
            SmtpFailure: The relay did not take it, or it is not known whether it did.
        """
        reused, self.transactions = self.transactions > 0, self.transactions + 1
        try:
            commands = self._commands(envelope)
            text = _stuffed(envelope.message)
            self._settled = False
            await self._announce(commands)
            return await self._deliver(text, span)
        except SmtpFailure as failure:
            failure.reused = reused
            raise
        finally:
            if not self._settled:
                self._channel.abort()

    def retire(self, limit_s: float) -> None:
        """Say goodbye and close within `limit_s`; a connection that is not at rest is just closed."""
        if self._settled:
            self._channel.retire(limit_s)
        else:
            self._channel.abort()

    def _commands(self, envelope: Envelope) -> list[tuple[Phase, bytes]]:
        """Return what to say before the text, or fail before anything is said."""
        if _UNSAFE.search(envelope.sender) or _UNSAFE.search(envelope.recipient):
            raise ValueError("an envelope holds an address that was not checked: make it with mail.address")
        size = len(envelope.message)
        if 0 < self._size_max < size:
            text = f"the mail has {size} octets, the relay takes {self._size_max}: shorten it"
            raise SmtpFailure(Phase.MAIL, 552, text, enhanced="5.3.4")
        if envelope.smtputf8 and not self._smtputf8:
            text = "the address needs SMTPUTF8, which the relay does not offer: use an ASCII address"
            raise SmtpFailure(Phase.RCPT, 553, text, enhanced="5.6.7")
        options = f" SIZE={size}" if self._sizes else ""
        if envelope.smtputf8:
            options += " BODY=8BITMIME SMTPUTF8"
        commands = [
            (Phase.MAIL, f"MAIL FROM:<{envelope.sender}>{options}\r\n".encode()),
            (Phase.RCPT, f"RCPT TO:<{envelope.recipient}>\r\n".encode()),
            (Phase.DATA, b"DATA\r\n"),
        ]
        return [(Phase.RSET, b"RSET\r\n"), *commands] if self._dirty else commands

    async def _announce(self, commands: list[tuple[Phase, bytes]]) -> None:
        """Get the relay to wait for the text, or raise the first refusal, whatever follows it."""
        if self._pipelining:
            self._channel.send(b"".join([line for _, line in commands]), replies=len(commands))
        refusal: SmtpFailure | None = None
        waiting_for_text = False
        for phase, line in commands:
            if not self._pipelining:
                self._channel.send(line, replies=1)
            try:
                reply = await self._channel.reply(self._limits.command_s)
            except Broken as broken:
                raise refusal or SmtpFailure(phase, broken.event, str(broken)) from broken
            waiting_for_text = phase is Phase.DATA and reply.code == 354
            if not waiting_for_text and (phase is Phase.DATA or reply.code >= 300):
                refusal = refusal or _refusal(phase, reply)
                if reply.code == 421 or not self._pipelining:
                    break
        if refusal is not None:
            # A relay that waits for text after refusing (RFC 2920 §3.1) would take the next commands
            # as text: such a connection is closed, as is one that answered out of order.
            self._dirty = True
            self._settled = not waiting_for_text and refusal.phase is not Phase.RSET and _is_refusal(refusal.code)
            raise refusal

    async def _deliver(self, text: bytes, span: Span) -> Reply:
        """Write the text and the dot, and read the one reply that says who is responsible now."""
        limits, channel = self._limits, self._channel
        head, tail = (b"", text) if len(text) <= TAIL_OCTETS * 2 else (text[:-TAIL_OCTETS], text[-TAIL_OCTETS:])
        try:
            channel.send(head, replies=1)  # the one reply to come is the dot's, or an early refusal
            if not await channel.drain(limits.body_s + len(head) / limits.body_octets_per_s):
                raise _refusal(Phase.BODY, await channel.reply(0))
        except Broken as broken:
            raise SmtpFailure(Phase.BODY, broken.event, str(broken)) from broken
        with span():
            channel.send(tail + b".\r\n", replies=0)
            if channel.lost:  # nothing was waiting to be written, so none of this was
                raise SmtpFailure(Phase.BODY, Event.LOST, "the connection was lost")
            try:
                reply = await channel.reply(limits.dot_s)
            except Broken as broken:
                raise SmtpFailure(Phase.DOT, broken.event, str(broken)) from broken
        self._dirty = False
        self._settled = reply.code != 421
        if reply.code >= 300:
            self._settled = _is_refusal(reply.code)
            raise _refusal(Phase.DOT, reply)
        return reply


async def _set_up(client: aiosmtplib.SMTP, server: Server, limits: TimeLimits) -> None:
    """Take a client from nothing to ready, naming the phase of whatever goes wrong."""
    await _step(Phase.CONNECT, client.connect(), limits.connect_s)
    await _step(Phase.EHLO, client.ehlo(), limits.hello_s)
    if server.tls is Tls.STARTTLS:
        if not client.supports_extension("starttls"):
            text = "the server does not offer STARTTLS: see its port, or use smtps://"
            raise SmtpFailure(Phase.TLS, Event.MISSING, text)
        await _step(Phase.TLS, client.starttls(), limits.hello_s)
        await _step(Phase.EHLO, client.ehlo(), limits.hello_s)  # RFC 3207 §4.2: the offer before TLS is forgotten
    if server.user:
        await _step(Phase.AUTH, _log_in(client, server), limits.hello_s)


async def _step(phase: Phase, step: Awaitable[object], limit_s: float) -> None:
    """Await one step of setting up.

    The limit is ours and aiosmtplib's is off: Python 3.11's `wait_for`, which it would use, loses a
    cancellation that comes together with the result.
    """
    try:
        async with asyncio.timeout(limit_s):
            await step
    except (aiosmtplib.SMTPException, OSError) as error:
        raise _set_up_failure(phase, error, limit_s) from error


async def _log_in(client: aiosmtplib.SMTP, server: Server) -> None:
    """Try the password once: servers lock accounts after a few failures."""
    if "plain" in client.server_auth_methods:
        await client.auth_plain(server.user, server.password)
    elif "login" in client.server_auth_methods:
        await client.auth_login(server.user, server.password)
    else:
        offered = ", ".join(client.server_auth_methods) or "none"
        raise SmtpFailure(Phase.AUTH, Event.MISSING, f"the server offers neither AUTH PLAIN nor LOGIN, but {offered}")


def _set_up_failure(phase: Phase, error: Exception, limit_s: float) -> SmtpFailure:
    """Translate what aiosmtplib raises, which names the phase but not the cause, into the cause."""
    cause = error.__cause__ if isinstance(error, aiosmtplib.SMTPConnectError) and error.__cause__ else error
    if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError):
        return SmtpFailure(Phase.TLS, Event.UNTRUSTED, str(cause))
    if isinstance(error, aiosmtplib.SMTPResponseException):
        reply = Reply.of(error.code, error.message)
        return _refusal(phase, reply)
    if isinstance(error, TimeoutError):
        return SmtpFailure(phase, Event.HUNG, f"no answer within {limit_s:g} s")
    return SmtpFailure(phase, Event.LOST, str(error))


def _is_refusal(code: int) -> bool:
    """Whether a code says no and leaves the connection usable."""
    return 400 <= code < 600 and code != 421


def _refusal(phase: Phase, reply: Reply) -> SmtpFailure:
    """Make a failure of a reply; one that neither refuses nor fits is garbage."""
    code = reply.code if 400 <= reply.code < 600 else Event.GARBAGE
    text = reply.text if code >= 400 else f"unexpected reply {reply}"
    return SmtpFailure(phase, code, text, enhanced=reply.enhanced)


def _stuffed(message: bytes) -> bytes:
    """Return the text with its leading dots doubled (RFC 5321 §4.5.2).

    Raises:
        ValueError: A line does not end with CRLF; relays disagree about such lines, and that
            disagreement has been used to smuggle a second mail into the first.
    """
    lines = message.count(b"\r\n")
    if message.count(b"\n") != lines or message.count(b"\r") != lines or not message.endswith(b"\r\n"):
        raise ValueError("a mail holds a line that does not end with CRLF: make it with mail.compose")
    if b"\r\n." in message:
        message = message.replace(b"\r\n.", b"\r\n..")
    return b"." + message if message.startswith(b".") else message
