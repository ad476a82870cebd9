"""What a transport is given, what it answers, and what every transport can do.

An envelope is the mail as SMTP sees it: who sends, who receives, which bytes.  It is made of
addresses that `address` has accepted and of bytes that `compose` has made; a transport adds
nothing and changes nothing.  A receipt says that somebody else is now responsible for the mail.

A transport raises `Snooze` when the fault is its own and `TaskError` when it is the mail's, so the
handler has nothing to decide.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from taskq.errors import TaskError

__all__ = ["Envelope", "Note", "Receipt", "Refused", "Seal", "Span", "Transport"]

Span = Callable[[], AbstractContextManager[None]]
"""Opens the span whose interruption would leave the outcome unknown: `Context.uninterruptible`."""

Note = Callable[[Mapping[str, object]], None]
"""Keeps facts about one try to hand a mail over, for the record of the attempt: `Context.note`."""

Seal = Callable[[], Awaitable[None]]
"""Writes down, before the first byte of content leaves, that from here on a crash leaves the outcome
unknown: `Context.seal`."""


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
    relay: str | None = None
    """The relay that the task asks for by name; None: any."""
    envid: str = ""
    """Names the mail in delivery reports (RFC 3461 §4.4); empty: it is not to be asked for any."""
    note: Note | None = None
    """Told what happened in each try."""
    seal: Seal | None = None
    """Awaited before the content leaves, where a mail must never be sent twice."""
    sensitive: bool = False
    """Whether logs may not even hint at who it is for."""
    run: int = 1
    """Which execution of the task this is, counted from 1."""
    subject: str = ""
    """The subject of the mail, for lists of caught ones."""


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


class Refused(TaskError):
    """A server refused the mail for good.

    Attributes:
        phase: Where the transaction stood, such as `rcpt`.
        code: Reply code, such as 550.
        enhanced: Enhanced status code such as `5.1.1`; empty when the reply has none.
    """

    def __init__(self, message: str, *, phase: str, code: int, enhanced: str) -> None:
        super().__init__(message, retryable=False, reason="permanent")
        self.phase = phase
        self.code = code
        self.enhanced = enhanced


class Transport(Protocol):
    """Hands mails over: a relay, or the inbox."""

    async def send(self, envelope: Envelope, span: Span) -> Receipt:
        """Hand over one mail.

        Args:
            envelope: The mail.
            span: Entered around the moments in which nobody can know whether it was taken.

        Raises:
            Snooze: The transport is at fault; nothing is known against the mail.
            Refused: The other side refused the mail for good.
            TaskError: The mail was not taken, or its outcome is unknown.
        """
        ...

    async def close(self) -> None:
        """Let go of every connection; nothing can be sent afterwards."""
        ...
