"""A transport that keeps a test installation from writing to real people.

It stands in front of the transport that sends.  Mails to those whom `only_to` names go through.
Every other mail goes to `redirect_to` instead, with the one whom it was for in `X-Original-To`; where
nobody is named to redirect to, it is caught in the inbox.  Nothing is refused and nothing is lost, so
what is tested behaves as it will: the task ends Ok, and its note says `caught` or `redirected`.

The envelope decides, not the header: To and Cc stay as they will be seen.  The added field stands in
front of a signature, which does not cover it.
"""

import dataclasses
import fnmatch
import re
from collections.abc import Sequence

from taskq.errors import ConfigError, shown
from taskq.mail.address import parse_address
from taskq.mail.envelope import Envelope, Receipt, Span, Transport

__all__ = ["Staging"]


class Staging:
    """Lets mails through to the few, and no other.

    Args:
        transport: What sends.
        inbox: What catches.
        only_to: Patterns of addresses, such as `*@example.com`; `*` stands for anything.
        redirect_to: Who gets the mails of everybody else; empty: the inbox.

    Raises:
        ConfigError: A pattern or the address is not valid; the message names the setting.
    """

    def __init__(self, transport: Transport, inbox: Transport, only_to: Sequence[str], redirect_to: str) -> None:
        self._transport = transport
        self._inbox = inbox
        for pattern in only_to:
            if pattern.count("@") != 1:
                raise ConfigError(
                    f"TASKQ_MAIL_ONLY_TO names {shown(pattern)}, which no address is like: write patterns of whole "
                    "addresses, such as *@example.com"
                )
        try:
            self._redirect_to = str(parse_address(redirect_to)) if redirect_to else ""
        except ValueError as error:
            raise ConfigError(f"TASKQ_MAIL_REDIRECT_TO can't be used: {error}") from error
        self._allowed = re.compile("|".join(fnmatch.translate(pattern.lower()) for pattern in only_to) or r"(?!)")

    def __repr__(self) -> str:
        return f"Staging({self._transport!r})"

    async def send(self, envelope: Envelope, span: Span) -> Receipt:
        """Send, redirect or catch one mail; see `Transport.send`."""
        if self._allowed.match(envelope.recipient.lower()):
            return await self._transport.send(envelope, span)
        if not self._redirect_to:
            _note(envelope, "caught")
            return dataclasses.replace(await self._inbox.send(envelope, span), text="caught")
        _note(envelope, "redirected")
        redirected = dataclasses.replace(
            envelope,
            recipient=self._redirect_to,
            message=b"X-Original-To: %b\r\n%b" % (envelope.recipient.encode(), envelope.message),
            smtputf8=envelope.smtputf8 or not self._redirect_to.isascii(),
        )
        receipt = await self._transport.send(redirected, span)
        return dataclasses.replace(receipt, text=f"redirected: {receipt.text}")

    async def close(self) -> None:
        """Close both transports."""
        await self._transport.close()
        await self._inbox.close()


def _note(envelope: Envelope, what: str) -> None:
    if envelope.note is not None:
        envelope.note({"staging": what})
