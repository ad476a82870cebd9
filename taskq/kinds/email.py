"""The kind `email`: one mail to one recipient.

The payload is checked when it is submitted, completely: whatever passes can be composed and put
into an envelope, so a run fails only for what a mail system answers.  The handler composes, hands
over and returns; what a relay's answer means for the task was decided below, by the exception.

Whether the relay took the mail may be unknown.  It is then sent once more, since a second copy is
better than none, unless the mail says `"on_ambiguous": "fail"`: its run is sealed, and a sealed run
that ends without knowing is never repeated.
"""

import asyncio
import logging
from collections.abc import Iterable

from taskq.context import Context
from taskq.kinds.mail_fields import CheckedMail, EmailPayload, FilePayload
from taskq.kinds.mailing import Senders, draft_of, recipient_of
from taskq.mail.compose import Attachment, Draft, compose
from taskq.mail.dkim import Signer, signers_for
from taskq.mail.envelope import Envelope, Transport

__all__ = ["Email", "EmailPayload"]

THREAD_SIZE_MIN = 256 * 1024  # composing takes about 5 ms per MB: beyond this it would stall the event loop

logger = logging.getLogger("taskq.kinds.email")


class Email:
    """The handler of kind `email`.

    Args:
        transport: Where mails go: a relay or the inbox.
        mail_from: Who mails may be from, or the one mailbox that they are all from.
        signers: Those of the sender's domain or one above it sign a mail.

    Raises:
        ConfigError: `mail_from` is no mailbox.
    """

    def __init__(self, transport: Transport, mail_from: Senders | str, signers: Iterable[Signer] = ()) -> None:
        self._transport = transport
        self._senders = Senders(mail_from) if isinstance(mail_from, str) else mail_from
        known = tuple(signers)
        self._signers = {domain: signers_for(known, domain) for domain in self._senders.domains}
        unsigned = sorted(domain for domain, its in self._signers.items() if not its)
        if known and unsigned:
            logger.warning("mails are not signed: no DKIM key is for the sender's domain", extra={"domains": unsigned})

    async def __call__(self, payload: CheckedMail, context: Context) -> None:
        """Compose one mail and hand it over.

        Raises:
            InvalidPayload: The payload did not come through a submission, and asks for what one row can't be.
            Snooze: The transport is at fault; the task runs later and keeps its attempt.
            TaskError: The mail was refused, or its outcome is unknown.
        """
        sender = self._senders.of(payload)
        recipient = recipient_of(payload)
        files = [await _read(file, context) for file in payload["attachments"]] if "attachments" in payload else []
        draft = draft_of(payload, sender, files, context)
        if _size(draft) < THREAD_SIZE_MIN:
            message = self._compose(draft)
        else:
            message = await asyncio.to_thread(self._compose, draft)
        if payload.get("dry_run"):
            context.note({"dry_run": True, "bytes": len(message)})
            return
        envelope = Envelope(
            str(sender.address),
            recipient,
            message,
            draft.smtputf8 or not recipient.isascii(),
            context.task_id,
            payload.get("relay"),
            draft.uid.hex,
            context.note,
            context.seal if payload.get("on_ambiguous") == "fail" else None,
            sensitive=payload.get("sensitive", False),
            run=context.run,
            subject=draft.subject,
        )
        await self._transport.send(envelope, context.uninterruptible)

    def _compose(self, draft: Draft) -> bytes:
        message = compose(draft)
        for signer in self._signers[draft.sender.address.domain]:
            message = signer.sign(message)
        return message


async def _read(file: FilePayload, context: Context) -> Attachment:
    """Return a file with its content, which stands beside the payload, or in it when SQL has stored it."""
    content = file["content"] if "content" in file else await context.blob(file.get("digest", ""))
    return Attachment(file["filename"], file["content_type"], content, file.get("content_id"))


def _size(draft: Draft) -> int:
    return len(draft.text or "") + len(draft.html or "") + sum(len(file.content) for file in draft.attachments)
