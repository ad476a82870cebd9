"""The kind `email`: one plain-text mail to one recipient.

The payload is checked when it is submitted, completely: whatever passes can be composed and put
into an envelope, so a run fails only for what a mail system answers.  The handler composes, hands
over and returns; what a relay's answer means for the task was decided below, by the exception.
"""

import asyncio
import logging
import re
from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field

from taskq.errors import ConfigError
from taskq.mail.address import Mailbox, parse_address
from taskq.mail.compose import Draft, compose
from taskq.mail.dkim import Signer, signers_for
from taskq.mail.envelope import Envelope, Transport
from taskq.task import Context

__all__ = ["Email", "EmailPayload"]

SUBJECT_CHARS_MAX = 998  # RFC 5322 §2.1.1: what one unfolded line may hold
BODY_CHARS_MAX = 1_000_000  # far above any text worth reading; larger content belongs behind a link
THREAD_CHARS_MIN = 256 * 1024  # composing takes about 10 ms per MB: beyond this it would stall the event loop

logger = logging.getLogger("taskq.kinds.email")

_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")


def _check_address(text: str) -> str:
    return str(parse_address(text))


def _check_subject(text: str) -> str:
    if not text.isprintable() and (found := _CONTROL.search(text)):
        raise ValueError(f"the subject contains {found.group()!r}: write it as one line without control characters")
    return text


def _check_body(text: str) -> str:
    if "\0" in text:
        raise ValueError("the body contains a NUL character: mail is text, remove it")
    return text


class EmailPayload(BaseModel):
    """What to send to whom."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    to: Annotated[str, AfterValidator(_check_address)] = Field(
        validation_alias=AliasChoices("to", "To"), description="One bare address, such as ada@example.com."
    )
    subject: Annotated[str, AfterValidator(_check_subject)] = Field(
        max_length=SUBJECT_CHARS_MAX, description="One line, at most 998 characters."
    )
    body: Annotated[str, AfterValidator(_check_body)] = Field(
        max_length=BODY_CHARS_MAX, description="Plain text, at most 1,000,000 characters."
    )


class Email:
    """The handler of kind `email`.

    Args:
        transport: Where mails go: a relay or the inbox.
        mail_from: The address that every mail is from.
        signers: Those of its domain or one above it sign every mail.

    Raises:
        ConfigError: `mail_from` is no address.
    """

    def __init__(self, transport: Transport, mail_from: str, signers: Iterable[Signer] = ()) -> None:
        self._transport = transport
        try:
            self._sender = Mailbox("", parse_address(mail_from))
        except ValueError as error:
            raise ConfigError(f"TASKQ_MAIL_FROM can't be used: {error}") from error
        known = tuple(signers)
        self._signers = signers_for(known, self._sender.address.domain)
        if known and not self._signers:
            logger.warning("mails are not signed: no DKIM key is for the sender's domain", extra={"from": mail_from})

    async def __call__(self, payload: EmailPayload, context: Context) -> None:
        """Compose one mail and hand it over.

        Raises:
            Snooze: The transport is at fault; the task runs later and keeps its attempt.
            TaskError: The mail was refused, or its outcome is unknown.
        """
        recipient = parse_address(payload.to)
        to = (Mailbox("", recipient),)
        draft = Draft(self._sender, to, payload.subject, context.uid, context.created_at, payload.body)
        if len(payload.body) < THREAD_CHARS_MIN:
            message = self._compose(draft)
        else:
            message = await asyncio.to_thread(self._compose, draft)
        envelope = Envelope(str(self._sender.address), payload.to, message, draft.smtputf8, context.task_id)
        await self._transport.send(envelope, context.uninterruptible)

    def _compose(self, draft: Draft) -> bytes:
        message = compose(draft)
        for signer in self._signers:
            message = signer.sign(message)
        return message
