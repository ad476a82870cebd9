"""The inbox transport: mail is captured instead of sent, so that a first run needs no relay.

It looks like a relay to the handler and takes every mail.  Capturing means awaiting one function
that the service gives it (the store writes the row); this module knows no SQL.  When the database
can't be reached the mail is snoozed, as with any relay that is down.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from taskq.errors import Snooze, StoreUnavailable
from taskq.mail.envelope import Envelope, Receipt, Span

__all__ = ["Capture", "CapturedMail", "Inbox"]

SNOOZE_S = 2.0  # until the next try when the database could not be reached


@dataclass(frozen=True, slots=True)
class CapturedMail:
    """A mail as the inbox keeps it."""

    task_id: int
    """The task that sent it."""
    sender: str
    """Envelope sender."""
    recipient: str
    """Envelope recipient."""
    message: bytes
    """The whole mail as a relay would have received it."""


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
        mail = CapturedMail(envelope.task_id, envelope.sender, envelope.recipient, envelope.message)
        try:
            with span():
                await self._capture(mail)
        except StoreUnavailable as error:
            raise Snooze(f"the inbox can't store mail now ({error}): tried again soon", delay_s=SNOOZE_S) from error
        return Receipt("inbox", 250, "captured", None)

    async def close(self) -> None:
        """Do nothing: the inbox holds no connection of its own."""
