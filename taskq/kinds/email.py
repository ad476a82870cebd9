"""The kind `email`: one plain-text mail to one recipient.

The payload is checked when it is submitted, completely: whatever passes can be composed and put
into an envelope, so a run fails only for what a mail system answers.  The handler composes, hands
over and returns; what a relay's answer means for the task was decided below, by the exception.
"""

import asyncio
import logging
from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field

from taskq.errors import ConfigError
from taskq.mail.address import Mailbox, parse_address
from taskq.mail.compose import Draft, check_subject, check_text, compose
from taskq.mail.dkim import Signer, signers_for
from taskq.mail.envelope import Envelope, Transport
from taskq.mail.headers import SUBJECT_CHARS_MAX
from taskq.task import Context

__all__ = ["Email", "EmailPayload"]

BODY_CHARS_MAX = 1_000_000  # far above any text worth reading; larger content belongs behind a link
THREAD_CHARS_MIN = 256 * 1024  # composing takes about 10 ms per MB: beyond this it would stall the event loop

logger = logging.getLogger("taskq.kinds.email")


def _check_address(text: str) -> str:
    return str(parse_address(text))


def _check_subject(text: str) -> str:
    check_subject(text)
    return text


def _check_body(text: str) -> str:
    check_text(text, "body")
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
        envelope = Envelope(
            str(self._sender.address), payload.to, message, draft.smtputf8, context.task_id, run=context.run
        )
        await self._transport.send(envelope, context.uninterruptible)

    def _compose(self, draft: Draft) -> bytes:
        message = compose(draft)
        for signer in self._signers:
            message = signer.sign(message)
        return message
