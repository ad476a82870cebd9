"""The bytes of a mail (RFC 5322, RFC 2045), made directly and always the same.

The standard library's `EmailMessage` costs a hundred times more and folds what must not be folded
(long tokens become encoded words, addresses come out unquoted).  Here nothing depends on chance or
on the clock: a retry sends the same bytes, so that a receiver can tell a repeated mail by its
Message-ID.  The result is 7-bit with CRLF line ends in lines of at most 998, so no relay converts
it on the way (one exception stands in `headers`).

A mail of one text is that text.  With HTML beside it the two become an alternative, pictures named
by the HTML make it related, files make it mixed: alternative ⊂ related ⊂ mixed, only the levels
that are needed.  Boundaries come from the mail's uid; a text that holds them is encoded so that it
no longer does.

Whatever a draft holds, it comes out as the mail that was meant or not at all: what could add a
header or a recipient is refused here as well, not only when a task is submitted.
"""

import urllib.parse
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from taskq.mail.address import Address, Mailbox
from taskq.mail.attachment import Attachment, check_attachment, encode_attachment
from taskq.mail.body import Part, check_text, encode_text, multipart
from taskq.mail.headers import (
    FOLD,
    check_header,
    check_subject,
    check_unsubscribe_url,
    format_date,
    write_mailboxes,
    write_text,
)

__all__ = [
    "Attachment",
    "Draft",
    "check_attachment",
    "check_header",
    "check_subject",
    "check_text",
    "check_unsubscribe_url",
    "compose",
]

_AUTO_SUBMITTED = "Auto-Submitted: auto-generated\r\n"  # RFC 3834: holiday replies and the like leave it unanswered


@dataclass(slots=True)  # frozen, it would cost several times as much to make, and every mail makes one
class Draft:
    """What a mail says, before it has bytes."""

    sender: Mailbox
    """Who it is from; the address's domain also names the mail."""
    to: tuple[Mailbox, ...]
    """Who it is for, at least one."""
    subject: str
    """One line; no control characters, no lone surrogates."""
    uid: UUID
    """Names the mail for ever: equal on every attempt."""
    created_at: datetime
    """When it was submitted, aware; the Date of every attempt."""
    text: str | None = None
    """Plain text; any line ends, no NUL, no lone surrogates. At least one of `text` and `html` is there."""
    html: str | None = None
    """The same as HTML."""
    cc: tuple[Mailbox, ...] = ()
    """Who else it is shown to be for."""
    reply_to: tuple[Mailbox, ...] = ()
    """Who answers go to; nobody: the sender."""
    headers: tuple[tuple[str, str], ...] = ()
    """Names and values that `check_header` accepts, each name once."""
    attachments: tuple[Attachment, ...] = ()
    """Files; those with a content id need `html`."""
    unsubscribe_url: str | None = None
    """Where a mail program posts to when its user unsubscribes with one click (RFC 8058)."""
    unsubscribe_mailto: Address | None = None
    """Who a mail program writes to when its user unsubscribes (RFC 2369 §3.2)."""

    @property
    def smtputf8(self) -> bool:
        """Whether a header shows an address that only a relay with SMTPUTF8 can take."""
        for shown in (self.sender, *self.to, *self.cc, *self.reply_to):  # noqa: SIM110 - any() costs twice as much
            if not shown.address.local.isascii():
                return True
        return False


def compose(draft: Draft) -> bytes:
    """Return the mail as it goes over the wire, before dot-stuffing; the same for the same draft.

    Raises:
        ValueError: The draft can't be a mail; the message states fact, value and remedy.
    """
    check_subject(draft.subject)
    if not draft.to:
        raise ValueError("the mail has no recipient in to: name at least one")
    if draft.html is None and draft.text is not None and not draft.attachments:
        content, chunks = encode_text(draft.text, "plain")
    else:
        content, chunks = _content(draft)
    head = (
        f"{write_mailboxes('From', (draft.sender,))}"
        f"{write_mailboxes('To', draft.to)}"
        f"{write_mailboxes('Cc', draft.cc) if draft.cc else ''}"
        f"{write_mailboxes('Reply-To', draft.reply_to) if draft.reply_to else ''}"
        f"{write_text('Subject', draft.subject)}"
        f"Date: {format_date(draft.created_at)}\r\n"
        f"Message-ID: <{draft.uid}@{draft.sender.address.domain}>\r\n"
        f"{_added(draft) if draft.headers or _unsubscribes(draft) else _AUTO_SUBMITTED}"
        "MIME-Version: 1.0\r\n"
        f"{content}"
        "\r\n"
    )
    return b"".join((head.encode(), *chunks))


def _unsubscribes(draft: Draft) -> bool:
    return draft.unsubscribe_url is not None or draft.unsubscribe_mailto is not None


def _added(draft: Draft) -> str:
    """Return the fields that not every mail has."""
    names = [name.lower() for name, _ in draft.headers]
    if _unsubscribes(draft):
        names += ["list-unsubscribe", "list-unsubscribe-post"]
    if repeated := next((name for place, name in enumerate(names) if name in names[:place]), None):
        raise ValueError(f"the header {repeated} is set twice: set it once")
    fields = [] if "auto-submitted" in names else [_AUTO_SUBMITTED]
    for name, value in draft.headers:
        check_header(name, value)
        fields.append(write_text(name, value))
    ways: list[str] = []
    if draft.unsubscribe_url is not None:
        check_unsubscribe_url(draft.unsubscribe_url)
        ways.append(f"<{draft.unsubscribe_url}>")
    if draft.unsubscribe_mailto is not None:
        ways.append(f"<mailto:{urllib.parse.quote(str(draft.unsubscribe_mailto), safe='@')}?subject=unsubscribe>")
    if ways:
        fields.append(f"List-Unsubscribe: {f',{FOLD}'.join(ways)}\r\n")
    if draft.unsubscribe_url is not None:
        fields.append("List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n")
    return "".join(fields)


def _content(draft: Draft) -> Part:
    """Return the body with its headers, of as many levels as it needs."""
    for attachment in draft.attachments:
        check_attachment(attachment.filename, attachment.content_type, attachment.content_id)
    stem = f"=_{draft.uid.hex}"  # "=_" occurs in no quoted-printable and no base64 (RFC 2045 §6.7)
    texts: list[Part] = []
    if draft.text is not None:
        texts.append(encode_text(draft.text, "plain", stem))
    if draft.html is not None:
        texts.append(encode_text(draft.html, "html", stem))
    if not texts:
        raise ValueError("the mail has neither text nor html: write at least one")
    whole = texts[0] if len(texts) == 1 else multipart("alternative", f"{stem}_a", texts)
    root = "text/html" if len(texts) == 1 else "multipart/alternative"
    inline = [attachment for attachment in draft.attachments if attachment.content_id is not None]
    if inline:
        _check_inline(draft, inline)
        whole = multipart(f'related; type="{root}"', f"{stem}_r", [whole, *map(encode_attachment, inline)])
    if len(inline) < len(draft.attachments):
        beside = [encode_attachment(attachment) for attachment in draft.attachments if attachment.content_id is None]
        whole = multipart("mixed", f"{stem}_m", [whole, *beside])
    head, chunks = whole
    if len(texts) > 1 or draft.attachments:
        chunks.append(b"\r\n")
    return head, chunks


def _check_inline(draft: Draft, inline: list[Attachment]) -> None:
    if draft.html is None:
        raise ValueError(
            f"the file {inline[0].filename!a} has the content id {inline[0].content_id}, but the mail has no html that "
            "could show it: remove the content id"
        )
    names = [attachment.content_id for attachment in inline]
    if len(set(names)) < len(names):
        raise ValueError(f"the content ids {', '.join(map(str, names))} are not different: give each file its own")
