"""The inbox transport: mail is captured instead of sent, so that a first run needs no relay.

It looks like a relay to the handler.  Capturing means awaiting one function that the service gives
it (`mailbox` stores the mail); this module knows no SQL.  When the database can't be reached the
mail is snoozed, as with any relay that is down.  Some addresses are refused as a relay might refuse
them: see `simulator`.
"""

import asyncio
from collections.abc import Awaitable, Callable

from taskq.errors import Snooze, StoreUnavailable, TaskError
from taskq.mail.classify import Phase, Ruling
from taskq.mail.consequence import consequence_of
from taskq.mail.envelope import Envelope, Receipt, Span
from taskq.mail.failure import SmtpFailure
from taskq.mail.simulator import Act, act_for
from taskq.mailstore import CapturedMail

__all__ = ["Capture", "Inbox"]

SNOOZE_S = 2.0  # until the next try when the database could not be reached
PROBE_S = 30.0  # until another look at a simulated relay that is not available
NAME = "inbox"
ACCEPTED = 250  # RFC 5321 §4.2.3

Capture = Callable[[CapturedMail], Awaitable[None]]
"""Stores one mail and returns once it is committed; concurrent calls may share a commit."""


class Inbox:
    """A transport that keeps what it is given."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture

    def __repr__(self) -> str:
        return "Inbox()"

    async def send(self, envelope: Envelope, span: Span) -> Receipt:
        """Capture one mail; see `Transport.send`."""
        act = act_for(envelope.recipient, envelope.run)
        if act is not None and act.phase is not Phase.DOT:
            raise _failure(act, envelope)
        if envelope.seal is not None:
            await envelope.seal()
        with span():
            if act is None or act.takes:
                await self._keep(envelope)
            if act is None:
                return Receipt(NAME, ACCEPTED, "captured", None)
            await asyncio.sleep(act.delay_s)
        if act.code == ACCEPTED:
            return Receipt(NAME, ACCEPTED, act.reply, None)
        raise _failure(act, envelope)

    async def close(self) -> None:
        """Do nothing: the inbox holds no connection of its own."""

    async def _keep(self, envelope: Envelope) -> None:
        mail = CapturedMail(envelope.task_id, envelope.sender, envelope.recipient, envelope.subject, envelope.message)
        try:
            await self._capture(mail)
        except StoreUnavailable as error:
            raise Snooze(f"the inbox can't store mail now ({error}): tried again soon", delay_s=SNOOZE_S) from error


def _failure(act: Act, envelope: Envelope) -> Snooze | TaskError:
    """Return what a simulated relay's answer means, and note it as a try of a relay is noted."""
    failure = SmtpFailure(act.phase, act.code, act.reply, enhanced=act.enhanced)
    verdict = failure.verdict
    if envelope.note is not None:
        envelope.note(
            {
                "relay": NAME,
                "phase": str(act.phase),
                "ruling": str(verdict.ruling),
                "scope": str(verdict.scope),
                "code": act.code if act.code >= 100 else None,
                "enhanced": act.enhanced or None,
                "text": act.reply,
                "ambiguous": verdict.ruling is Ruling.AMBIGUOUS,
            }
        )
    came = consequence_of(failure, "the inbox", probe_s=PROBE_S)
    if came.error is not None:
        return came.error
    return Snooze(
        f"the inbox {came.fact}: tried again, no attempt is used up", delay_s=came.delay_s or came.pause_s or PROBE_S
    )
