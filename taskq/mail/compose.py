"""The bytes of a mail (RFC 5322, RFC 2045, RFC 2047), made directly and always the same.

The standard library's `EmailMessage` costs a hundred times more and folds what must not be folded
(long tokens become encoded words, addresses come out unquoted).  Here a header value is either
plain ASCII or RFC 2047 `B` words cut between code points, a line is folded only between words, and
nothing depends on chance or on the clock: a retry sends the same bytes, so that a receiver can tell
a repeated mail by its Message-ID.

The result is 7-bit with CRLF line ends, so no relay converts it on the way.  The one exception: an
address with characters beyond ASCII stands in its header as UTF-8 (RFC 6532), because there is no
other way to write it; such a mail needs SMTPUTF8.
"""

import binascii
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from taskq.mail.address import Address

__all__ = ["Draft", "compose"]

LINE_OCTETS_MAX = 998  # RFC 5322 §2.1.1, without the CRLF
LINE_OCTETS_WANTED = 78  # RFC 5322 §2.1.1: headers are folded to this where words allow it
WORD_OCTETS = 45  # of UTF-8 in one encoded word: 12 of frame and 60 of base64 stay under 75 (RFC 2047 §2)
FIRST_WORD_OCTETS = 39  # of UTF-8 in the word that shares its line of at most 76 with "Subject: "

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("", "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_ASCII = bytes(range(128))


@dataclass(frozen=True, slots=True)
class Draft:
    """What a mail says, before it has bytes."""

    sender: Address
    """Who it is from; its domain also names the mail."""
    recipient: Address
    """Who it is for."""
    subject: str
    """One line; no control characters, no lone surrogates."""
    body: str
    """Plain text; any line ends, no NUL, no lone surrogates."""
    uid: UUID
    """Names the mail for ever: equal on every attempt."""
    created_at: datetime
    """When it was submitted, aware; the Date of every attempt."""


def compose(draft: Draft) -> bytes:
    """Return the mail as it goes over the wire, before dot-stuffing; the same for the same draft."""
    encoding, body = _encode_body(draft.body)
    head = (
        f"From: {draft.sender}\r\n"
        f"To: {draft.recipient}\r\n"
        f"Subject:{_encode_subject(draft.subject)}\r\n"
        f"Date: {_format_date(draft.created_at)}\r\n"
        f"Message-ID: <{draft.uid}@{draft.sender.domain}>\r\n"
        "Auto-Submitted: auto-generated\r\n"  # RFC 3834: holiday replies and the like leave it unanswered
        "MIME-Version: 1.0\r\n"
        "Content-Type: text/plain; charset=utf-8\r\n"
        f"Content-Transfer-Encoding: {encoding}\r\n"
        "\r\n"
    )
    return head.encode() + body


def _encode_subject(subject: str) -> str:
    """Return the field's value with its leading blank, folded."""
    if not subject:
        return ""
    if subject.isascii() and subject.isprintable() and "=?" not in subject and subject == subject.strip(" "):
        if len(subject) <= LINE_OCTETS_WANTED - len("Subject: "):
            return f" {subject}"
        folded = _fold(f"Subject: {subject}")
        if folded is not None:
            return folded.removeprefix("Subject:")
    return " " + "\r\n ".join(_encoded_words(subject.encode()))


def _fold(line: str) -> str | None:
    """Break a long header between words; None if a single word is too long for any line.

    A break stands before a blank that a word follows, so that unfolding (removing the CRLF) gives
    the text back exactly and no line is blank (RFC 5322 §2.2.3).
    """
    lines: list[str] = []
    while len(line) > LINE_OCTETS_WANTED:
        at = _last_break(line, LINE_OCTETS_WANTED)
        if at < 0:
            break
        lines.append(line[:at])
        line = line[at:]
    lines.append(line)
    return "\r\n".join(lines) if max(map(len, lines)) <= LINE_OCTETS_MAX else None


def _last_break(line: str, limit: int) -> int:
    """Return where to break: the last fitting blank before a word, else the first one; -1 for none."""
    start = len("Subject: ") if line.startswith("Subject: ") else len(line) - len(line.lstrip(" "))
    blanks = [at for at in range(start, len(line) - 1) if line[at] == " " and line[at + 1] != " "]
    return max((at for at in blanks if at <= limit), default=blanks[0] if blanks else -1)


def _encoded_words(text: bytes) -> list[str]:
    """Cut UTF-8 between code points into RFC 2047 words of at most 75 characters."""
    words: list[str] = []
    start, room = 0, FIRST_WORD_OCTETS
    while start < len(text):
        end = min(start + room, len(text))
        while end < len(text) and text[end] & 0xC0 == 0x80:  # not inside a code point
            end -= 1
        words.append(f"=?utf-8?B?{binascii.b2a_base64(text[start:end], newline=False).decode('ascii')}?=")
        start, room = end, WORD_OCTETS
    return words


def _format_date(moment: datetime) -> str:
    """Return an RFC 5322 §3.3 date in UTC."""
    if moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    return (
        f"{_DAYS[moment.weekday()]}, {moment.day:02d} {_MONTHS[moment.month]} {moment.year:04d} "
        f"{moment.hour:02d}:{moment.minute:02d}:{moment.second:02d} +0000"
    )


def _encode_body(text: str) -> tuple[str, bytes]:
    """Return the content transfer encoding and the encoded text, ending with CRLF."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.endswith("\n"):
        text += "\n"
    if text.isascii() and (len(text) <= LINE_OCTETS_MAX or max(map(len, text.split("\n"))) <= LINE_OCTETS_MAX):
        return "7bit", text.replace("\n", "\r\n").encode("ascii")
    data = text.replace("\n", "\r\n").encode()
    escaped = len(data.translate(None, _ASCII)) + data.count(b"=")
    if escaped * 2 > len(data) // 3:  # each escaped octet grows by two, base64 grows everything by a third
        return "base64", _base64_lines(data)
    return "quoted-printable", binascii.b2a_qp(data, istext=True)


def _base64_lines(data: bytes) -> bytes:
    """Return base64 in lines of 76 (RFC 2045 §6.8)."""
    flat = binascii.b2a_base64(data, newline=False)
    return b"".join([flat[at : at + 76] + b"\r\n" for at in range(0, len(flat), 76)])
