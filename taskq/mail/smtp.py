"""One SMTP connection and, on it, one transaction after the other, phase by phase (RFC 5321).

`handshake` opens it; from then on `Channel` speaks.  A transaction is MAIL, RCPT, DATA, the text
and its final dot; where the relay offers PIPELINING the three commands travel in one write
(RFC 2920), so a mail costs two round trips.  Nothing is sent that would have to be taken back: size
and SMTPUTF8 are checked against the relay's offer first, and text follows only when sender and
recipient were both accepted and, where the mail is to be sealed, when that is written down.

Whatever is not a clean reply closes the connection without QUIT: our limits, a cancellation, a 421,
a reply out of step.  Only between the final dot and its reply is the outcome unknown; that span is
entered through the caller's `span`, waits as long as RFC 5321 §4.5.3.2.6 asks, and reports
`Phase.DOT`.
"""

import asyncio
import itertools
import re
import ssl
from typing import Self

from taskq.errors import TaskqError
from taskq.mail.channel import Broken, Channel, Reply
from taskq.mail.classify import Event, Phase
from taskq.mail.envelope import Envelope, Seal, Span
from taskq.mail.failure import SmtpFailure
from taskq.mail.handshake import TimeLimits, shake_hands
from taskq.mail.server import Server
from taskq.mail.trace import Trace

__all__ = ["Connection", "SealFailed"]

TAIL_OCTETS = 32_768  # written together with the dot; the rest of a large text is written before it
_UNSAFE = re.compile(r"[\x00-\x20\x7f<>]")
_XTEXT = re.compile(r"[^!-*,-<>-~]")  # RFC 3461 §4: printable ASCII but "+" and "="
_numbers = itertools.count(1)


class SealFailed(Exception):
    """It could not be written down that a mail is about to leave, so it did not."""


class Connection:
    """One open, greeted and authenticated connection to a relay; for one transaction at a time."""

    def __init__(self, channel: Channel, extensions: dict[str, str], limits: TimeLimits) -> None:
        self._channel = channel
        self._limits = limits
        self._pipelining = "pipelining" in extensions
        self._smtputf8 = "smtputf8" in extensions
        self._reports = "dsn" in extensions
        self._sizes = "size" in extensions
        self._size_max = (
            int(size) if (size := extensions.get("size", "")).isdecimal() else 0
        )  # 0: RFC 1870 §4, no limit
        self._dirty = False  # a refused transaction is still open at the relay: RSET comes first
        self._place: dict[str, object] | None = None  # written down once, and only where it is asked for
        self._settled = True  # no transaction is under way, and the last one ended with a clean reply
        self.number = next(_numbers)
        """Names it within this process."""
        self.transactions = 0
        """Transactions begun."""
        self.opened_at = self.idle_since = asyncio.get_running_loop().time()
        """Event loop time; `idle_since` is kept by the pool."""

    @classmethod
    async def open(
        cls, server: Server, tls: ssl.SSLContext | None, *, name: str, limits: TimeLimits, trace: Trace
    ) -> Self:
        """Open one; see `shake_hands`."""
        channel, extensions = await shake_hands(server, tls, name=name, limits=limits, trace=trace)
        return cls(channel, extensions, limits)

    @property
    def facts(self) -> dict[str, object]:
        """What the record of a try says about it."""
        if self._place is None:
            self._place = self._channel.facts
        return {"connection": self.number, "connection_mails": self.transactions} | self._place

    @property
    def usable(self) -> bool:
        """Whether another transaction may begin on it."""
        return self._settled and self._channel.in_step

    @property
    def closed(self) -> asyncio.Future[None]:
        """Done once the connection is closed."""
        return self._channel.closed

    async def transact(self, envelope: Envelope, span: Span, trace: Trace) -> Reply:
        """Hand over one mail and return the reply to its final dot, a 2xx.

        Raises:
            SmtpFailure: The relay did not take it, or it is not known whether it did.
            SealFailed: Nothing of its content was sent.
        """
        reused, self.transactions = self.transactions > 0, self.transactions + 1
        try:
            commands = self._commands(envelope)
            text = _stuffed(envelope.message)
            self._settled = False
            trace.enter("envelope")
            await self._announce(commands, trace)
            if envelope.seal is not None:
                await self._seal(envelope.seal)
            trace.enter("data")
            return await self._deliver(text, span, trace)
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
        options, rcpt_options = f" SIZE={size}" if self._sizes else "", ""
        if envelope.smtputf8:
            options += " BODY=8BITMIME SMTPUTF8"
        if self._reports and envelope.envid:
            options += f" RET=HDRS ENVID={_xtext(envelope.envid)}"
            rcpt_options = f" NOTIFY=FAILURE,DELAY ORCPT={_original_recipient(envelope.recipient)}"
        commands = [
            (Phase.MAIL, f"MAIL FROM:<{envelope.sender}>{options}\r\n".encode()),
            (Phase.RCPT, f"RCPT TO:<{envelope.recipient}>{rcpt_options}\r\n".encode()),
            (Phase.DATA, b"DATA\r\n"),
        ]
        return [(Phase.RSET, b"RSET\r\n"), *commands] if self._dirty else commands

    async def _seal(self, seal: Seal) -> None:
        try:
            async with asyncio.timeout(self._limits.command_s):
                await seal()
        except (TaskqError, TimeoutError) as error:
            raise SealFailed(str(error) or "it took too long") from error

    async def _announce(self, commands: list[tuple[Phase, bytes]], trace: Trace) -> None:
        """Get the relay to wait for the text, or raise the first refusal, whatever follows it."""
        if self._pipelining:
            self._channel.send(b"".join([line for _, line in commands]), replies=len(commands))
        refusal: SmtpFailure | None = None
        waiting_for_text = False
        for phase, line in commands:
            trace.phase = phase
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

    async def _deliver(self, text: bytes, span: Span, trace: Trace) -> Reply:
        """Write the text and the dot, and read the one reply that says who is responsible now."""
        limits, channel = self._limits, self._channel
        head, tail = (b"", text) if len(text) <= TAIL_OCTETS * 2 else (text[:-TAIL_OCTETS], text[-TAIL_OCTETS:])
        trace.phase = Phase.BODY
        try:
            channel.send(head, replies=1)  # the one reply to come is the dot's, or an early refusal
            if not await channel.drain(limits.body_s + len(head) / limits.body_octets_per_s):
                raise _refusal(Phase.BODY, await channel.reply(0))
        except Broken as broken:
            raise SmtpFailure(Phase.BODY, broken.event, str(broken)) from broken
        with span():
            trace.phase = Phase.DOT
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


def _is_refusal(code: int) -> bool:
    """Whether a code says no and leaves the connection usable."""
    return 400 <= code < 600 and code != 421


def _refusal(phase: Phase, reply: Reply) -> SmtpFailure:
    return SmtpFailure.refusal(phase, reply.code, reply.text, reply.enhanced)


def _xtext(text: str) -> str:
    """Return ASCII text as a parameter of a command (RFC 3461 §4)."""
    return _XTEXT.sub(lambda found: f"+{ord(found.group()):02X}", text)


def _original_recipient(address: str) -> str:
    """Return what a delivery report names the recipient by (RFC 3461 §4.2, beyond ASCII RFC 6533 §3)."""
    if address.isascii():
        return f"rfc822;{_xtext(address)}"
    return "utf-8;" + "".join(_xtext(sign) if sign.isascii() else f"\\x{{{ord(sign):X}}}" for sign in address)


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
