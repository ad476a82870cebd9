"""A transport before another: what it guards is never given a mail to an address on the suppression list.

It asks right before each mail, whatever was asked at submission: mails wait, are stored by SQL, and
are sent by processes that have not heard of an entry yet.  Concurrent mails share the query that
`lookup` makes.  A list that can't be read snoozes the mail, as a relay that is down does: sending to
an address that is known to be gone costs the sender's good name, waiting costs seconds.

It also learns: a relay's refusal of the recipient that means "there is no such mailbox" puts the
address on the list for a while (see `feedback`).
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from taskq.errors import Snooze, StoreRefused, StoreUnavailable, TaskError
from taskq.mail.address import mask_address
from taskq.mail.classify import Phase
from taskq.mail.envelope import Envelope, Receipt, Refused, Span, Transport
from taskq.mail.feedback import never_again

__all__ = ["Learn", "Lookup", "Suppressing"]

SNOOZE_S = 2.0  # until the next try when the list could not be read

_log = logging.getLogger("taskq.mail")

Lookup = Callable[[str], Awaitable[str | None]]
"""Says why an address may not be written to and what can be done, or None when it may."""


class Learn(Protocol):
    """Puts an address on the list."""

    async def __call__(self, address: str, *, reason: str, task_id: int) -> object:
        """Put it there, and return once that is stored."""
        ...


class Suppressing:
    """A transport that asks the suppression list first.

    Args:
        transport: Where other mails go.
        lookup: Asks the list.
        learn: Adds to it; None: nothing is learned from what the other side says.
    """

    def __init__(self, transport: Transport, lookup: Lookup, learn: Learn | None) -> None:
        self._transport = transport
        self._lookup = lookup
        self._learn = learn

    def __repr__(self) -> str:
        return f"Suppressing({self._transport!r})"

    async def send(self, envelope: Envelope, span: Span) -> Receipt:
        """Hand over one mail; see `Transport.send`."""
        try:
            suppressed = await self._lookup(envelope.recipient)
        except StoreUnavailable as error:
            raise Snooze(
                f"the suppression list can't be read now ({error}): tried again soon", delay_s=SNOOZE_S
            ) from error
        if suppressed is not None:
            raise TaskError(f"not sent: {suppressed}", retryable=False, reason="suppressed")
        try:
            return await self._transport.send(envelope, span)
        except Refused as refused:
            if self._learn and refused.phase == Phase.RCPT and never_again(refused.code, refused.enhanced):
                await self._note(self._learn, envelope, refused)
            raise

    async def close(self) -> None:
        """Close the transport behind."""
        await self._transport.close()

    async def _note(self, learn: Learn, envelope: Envelope, refused: Refused) -> None:
        """Put the recipient on the list; where that fails, the next mail to it is refused again, and tells us then."""
        reason = f"{refused.code} {refused.enhanced}".strip()
        facts = {"task_id": envelope.task_id, "to": mask_address(envelope.recipient), "reply": reason}
        try:
            await learn(envelope.recipient, reason=reason, task_id=envelope.task_id)
        except (StoreUnavailable, StoreRefused) as error:
            _log.warning("suppression_not_stored", extra=facts | {"error": str(error)})
        else:
            _log.info("recipient_suppressed", extra=facts)
