"""What a transport is given, what it answers, and what every transport can do.

An envelope is the mail as SMTP sees it: who sends, who receives, which bytes.  It is made of
addresses that `address` has accepted and of bytes that `compose` has made; a transport adds
nothing and changes nothing.  A receipt says that somebody else is now responsible for the mail.

A transport raises `Snooze` when the fault is its own and `TaskError` when it is the mail's, so the
handler has nothing to decide.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Envelope", "Receipt", "Span", "Transport"]

Span = Callable[[], AbstractContextManager[None]]
"""Opens the span whose interruption would leave the outcome unknown: `Context.uninterruptible`."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """One mail to one recipient, ready to be handed over."""

    sender: str
    """Address that bounces return to."""
    recipient: str
    """Address that receives it."""
    message: bytes
    """The composed mail: lines end with CRLF, the last one too."""
    smtputf8: bool
    """Whether an address holds characters beyond ASCII, so that the relay must offer SMTPUTF8."""
    task_id: int
    """The task it belongs to, for logs and for the inbox."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """The other side's word that the mail is now its own."""

    relay: str
    """Which transport took it, without secrets."""
    code: int
    """Reply code, such as 250."""
    text: str
    """Reply text as the server wrote it, its control characters removed."""
    remote_id: str | None
    """The name under which the relay knows the mail, where its reply gives one."""


class Transport(Protocol):
    """Hands mails over: a relay, or the inbox."""

    async def send(self, envelope: Envelope, span: Span) -> Receipt:
        """Hand over one mail.

        Args:
            envelope: The mail.
            span: Entered around the moments in which nobody can know whether it was taken.

        Raises:
            Snooze: The transport is at fault; nothing is known against the mail.
            TaskError: The mail was refused, or its outcome is unknown.
        """
        ...

    async def close(self) -> None:
        """Let go of every connection; nothing can be sent afterwards."""
        ...
