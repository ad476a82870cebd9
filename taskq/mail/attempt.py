"""One mail handed to one relay: on the connection used last, or on a new one, and written down.

A reused connection that had died shows at its first command, when nothing is lost: the mail is tried
again on a new connection, once, at once and free of charge.  Nothing else is repeated here.
"""

import asyncio
import re

from taskq.mail.channel import Reply
from taskq.mail.classify import Ruling
from taskq.mail.envelope import Envelope, Span
from taskq.mail.failure import SmtpFailure
from taskq.mail.pool import Pool
from taskq.mail.smtp import Connection, SealFailed
from taskq.mail.trace import Trace

__all__ = ["attempt", "remote_id_of"]

_REMOTE_ID = re.compile(r"\bqueued as ([^\s<>]+)|\bid=([^\s<>]+)|^(?:2\.\d\.\d )?Ok:? ([\w.@+-]{12,})$", re.IGNORECASE)


async def attempt(pool: Pool, envelope: Envelope, span: Span, *, relay: str) -> Reply:
    """Hand over one mail and return the reply to its final dot; the caller holds a slot of the pool.

    Args:
        pool: Of the relay.
        envelope: The mail; its `note` is told about each try.
        span: See `Transport.send`.
        relay: What the notes call the relay.

    Raises:
        SmtpFailure: The relay did not take it, or it is not known whether it did.
        SealFailed: Nothing of its content was sent.
    """
    connection = pool.take()
    if connection is not None:
        try:
            return await _once(pool, connection, envelope, span, relay)
        except SmtpFailure as failure:
            if failure.verdict.ruling is not Ruling.STALE:
                raise
    return await _once(pool, None, envelope, span, relay)


def remote_id_of(text: str) -> str | None:
    """Return the name that the relay gave the mail, such as Postfix's queue id."""
    found = _REMOTE_ID.search(text)
    return next((group for group in found.groups() if group), None) if found else None


async def _once(pool: Pool, connection: Connection | None, envelope: Envelope, span: Span, relay: str) -> Reply:
    trace = Trace()
    try:
        if connection is None:
            connection = await pool.open(trace)
        try:
            reply = await connection.transact(envelope, span, trace)
        finally:
            pool.give_back(connection)
    except SmtpFailure as failure:
        _note(envelope, relay, connection, trace.failed(failure))
        raise
    except (SealFailed, asyncio.CancelledError) as error:
        _note(envelope, relay, connection, trace.cut(str(error) or "cut short by us"))
        raise
    if envelope.note is not None:
        _note(
            envelope,
            relay,
            connection,
            trace.accepted((reply.code, reply.text), reply.enhanced, remote_id_of(reply.text)),
        )
    return reply


def _note(envelope: Envelope, relay: str, connection: Connection | None, facts: dict[str, object]) -> None:
    if envelope.note is not None:
        place: dict[str, object] = {"connection": None} if connection is None else connection.facts
        envelope.note({"relay": relay, "bytes": len(envelope.message)} | place | facts)
