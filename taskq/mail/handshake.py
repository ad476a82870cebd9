"""From nothing to a connection that is secured, greeted and logged in; aiosmtplib does the talking.

The terms are never softened: where STARTTLS is asked for and not offered, where a certificate does
not match, or where the password is refused, there is no connection.  A password is tried once,
since servers lock accounts after a few failures.  Whatever goes wrong is named by its phase and its
cause; aiosmtplib's exceptions name the one or the other.
"""

import asyncio
import socket
import ssl
from collections.abc import Awaitable
from dataclasses import dataclass

import aiosmtplib

from taskq.mail.channel import Channel, Reply
from taskq.mail.classify import Event, Phase
from taskq.mail.failure import SmtpFailure
from taskq.mail.server import Server, Tls
from taskq.mail.trace import Trace

__all__ = ["TimeLimits", "shake_hands"]

ADDRESSES_MAX = 8  # of one host that are tried


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """Seconds to wait in each phase.

    RFC 5321 §4.5.3.2 asks for minutes, for relays that may forward while we wait; a submission
    relay that needs so long is down.  The wait after the dot is the RFC's: a shorter one makes
    duplicates (RFC 1047).
    """

    connect_s: float = 10.0
    """Name lookup and TCP, for each address of the host."""
    tls_s: float = 10.0
    """STARTTLS and its handshake; with TLS from the first byte, added to `hello_s` for handshake and banner."""
    hello_s: float = 30.0
    """The banner, each EHLO, AUTH: each at most this long."""
    command_s: float = 60.0
    """Each reply to RSET, MAIL, RCPT and DATA."""
    body_s: float = 30.0
    """Writing the text, however short."""
    body_octets_per_s: float = 50_000.0
    """Adds the time that this many octets of text a second take: the slowest upload that is waited for."""
    dot_s: float = 600.0
    """The reply to the final dot."""


async def shake_hands(
    server: Server, tls: ssl.SSLContext | None, *, name: str, limits: TimeLimits, trace: Trace
) -> tuple[Channel, dict[str, str]]:
    """Connect, secure, greet and log in.

    Args:
        server: Where, and on which terms.
        tls: The shared context; None only where the server is spoken to in plaintext.
        name: What we call ourselves in EHLO.
        limits: Seconds to wait in each phase.
        trace: Told the stages.

    Returns:
        The open channel, and what EHLO offered by its lower-case name.

    Raises:
        SmtpFailure: Not possible now, in the phase that it names.
    """
    trace.enter("connect")
    connection = await _dial(server, limits.connect_s)
    client = aiosmtplib.SMTP(
        hostname=server.host,
        local_hostname=name,
        timeout=None,  # see `_step`
        use_tls=server.tls is Tls.IMPLICIT,
        start_tls=False,  # the default would go on in plaintext where STARTTLS is not offered
        tls_context=tls,
        sock=connection,
    )
    try:
        await _set_up(client, server, limits, trace)
        transport = _transport_of(client)
    except BaseException:
        if client.transport is None:
            connection.close()  # nobody else may own it
        client.close()
        raise
    return Channel(transport), client.esmtp_extensions


def _transport_of(client: aiosmtplib.SMTP) -> asyncio.Transport:
    if client.transport is None:
        raise SmtpFailure(Phase.EHLO, Event.LOST, "the server closed the connection")
    return client.transport  # pyright: ignore[reportReturnType] - uvloop's transports are no subclass


async def _dial(server: Server, limit_s: float) -> socket.socket:
    """Connect to the first address of the host that answers; a limit of its own is why aiosmtplib does not."""
    loop = asyncio.get_running_loop()
    failure = SmtpFailure(Phase.CONNECT, Event.LOST, f"{server.host} has no address")
    try:
        async with asyncio.timeout(limit_s):
            places = await loop.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise _unreachable(server, error, limit_s) from error
    for family, kind, protocol, _, address in places[:ADDRESSES_MAX]:
        connection = socket.socket(family, kind, protocol)
        try:
            connection.setblocking(False)
            async with asyncio.timeout(limit_s):
                await loop.sock_connect(connection, address)
        except OSError as error:
            connection.close()
            failure = _unreachable(server, error, limit_s)
        except BaseException:
            connection.close()
            raise
        else:
            return connection
    raise failure


def _unreachable(server: Server, error: OSError, limit_s: float) -> SmtpFailure:
    if isinstance(error, TimeoutError):
        return SmtpFailure(Phase.CONNECT, Event.HUNG, f"{server.host} did not answer within {limit_s:g} s")
    return SmtpFailure(Phase.CONNECT, Event.LOST, f"{server.host} can't be reached ({error})")


async def _set_up(client: aiosmtplib.SMTP, server: Server, limits: TimeLimits, trace: Trace) -> None:
    """Take a client from its socket to ready, naming the phase of whatever goes wrong."""
    implicit_s = limits.tls_s if server.tls is Tls.IMPLICIT else 0.0
    await _step(Phase.CONNECT, client.connect(), limits.hello_s + implicit_s)
    await _step(Phase.EHLO, client.ehlo(), limits.hello_s)
    if server.tls is Tls.STARTTLS:
        trace.enter("tls")
        if not client.supports_extension("starttls"):
            text = "the server does not offer STARTTLS: see its port, or use smtps://"
            raise SmtpFailure(Phase.TLS, Event.MISSING, text)
        await _step(Phase.TLS, client.starttls(), limits.tls_s)
        await _step(Phase.EHLO, client.ehlo(), limits.hello_s)  # RFC 3207 §4.2: the offer before TLS is forgotten
    if server.user:
        trace.enter("auth")
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
        raise _translated(phase, error, limit_s) from error


async def _log_in(client: aiosmtplib.SMTP, server: Server) -> None:
    """Try the password once: servers lock accounts after a few failures."""
    if "plain" in client.server_auth_methods:
        await client.auth_plain(server.user, server.password)
    elif "login" in client.server_auth_methods:
        await client.auth_login(server.user, server.password)
    else:
        offered = ", ".join(client.server_auth_methods) or "none"
        raise SmtpFailure(Phase.AUTH, Event.MISSING, f"the server offers neither AUTH PLAIN nor LOGIN, but {offered}")


def _translated(phase: Phase, error: Exception, limit_s: float) -> SmtpFailure:
    """Translate what aiosmtplib raises, which names the phase but not the cause, into the cause."""
    cause = error.__cause__ if isinstance(error, aiosmtplib.SMTPConnectError) and error.__cause__ else error
    if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError):
        return SmtpFailure(Phase.TLS, Event.UNTRUSTED, str(cause))
    if isinstance(error, aiosmtplib.SMTPResponseException):
        reply = Reply.of(error.code, error.message)
        return SmtpFailure.refusal(phase, reply.code, reply.text, reply.enhanced)
    if isinstance(error, TimeoutError):
        return SmtpFailure(phase, Event.HUNG, f"no answer within {limit_s:g} s")
    return SmtpFailure(phase, Event.LOST, str(cause))
