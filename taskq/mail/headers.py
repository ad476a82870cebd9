"""Header fields: text in, folded ASCII lines out (RFC 5322, RFC 2047), and what users may add.

A value is written as it is when it is ASCII that no parser would change; everything else becomes
RFC 2047 `B` words, cut between code points.  Lines are folded at 78 where words allow it; a single
word, such as a URL, is never cut and never encoded for its length.  A display name is either quoted
or encoded, never both, and between two addresses alone an address list is folded, so that the comma
inside a name can't become a comma between recipients.

The one exception to ASCII: an address with characters beyond it stands as UTF-8 (RFC 6532), because
there is no other way to write it.

Refused in what users add: control characters, whatever would overrule a field that is composed here,
and what belongs to relays and verifiers.
"""

import binascii
import functools
import re
from collections.abc import Sequence
from datetime import UTC, datetime

from taskq.errors import shown
from taskq.mail.address import Mailbox, quote_name

__all__ = [
    "check_header",
    "check_subject",
    "check_unsubscribe_url",
    "format_date",
    "write_mailboxes",
    "write_text",
]

LINE_OCTETS_MAX = 998  # RFC 5322 §2.1.1, without the CRLF
LINE_OCTETS_WANTED = 78  # RFC 5322 §2.1.1: headers are folded to this where words allow it
ENCODED_LINE_OCTETS = 76  # RFC 2047 §2: of a line that holds an encoded word
WORD_FRAME_OCTETS = 12  # of "=?utf-8?B?" and "?="
WORD_OCTETS = 45  # of UTF-8 in one encoded word: 12 of frame and 60 of base64 stay under 75 (RFC 2047 §2)
WORD_OCTETS_MIN = 15  # of UTF-8 in the word behind a very long field name, though its line then passes 76
SUBJECT_CHARS_MAX = 998  # what one unfolded line may hold
URL_CHARS_MAX = 900  # between angle brackets on one line, with the name before it
FOLD = "\r\n "
DATES_MAX = 16  # kept: mails of one second are sent together

DENIED = {
    "arc-": "verifiers write it",
    "authentication-results": "verifiers write it",
    "bcc": "it would show who is hidden, name recipients in their own field",
    "cc": "use the field cc",
    "content-": "it is written for each part",
    "date": "it is the time of submission",
    "delivered-to": "relays write it, and take a mail that has it already for a loop",
    "dkim-signature": "the signer writes it",
    "from": "use the field from",
    "message-id": "it names the task",
    "mime-version": "it is written already",
    "received": "relays write it",
    "reply-to": "use the field reply_to",
    "resent-": "it would name other recipients",
    "return-path": "relays write it",
    "sender": "use the field from",
    "subject": "use the field subject",
    "to": "use the field to",
}
"""Names, and beginnings of names that end with a hyphen, that users can't set; each with the reason or the remedy."""

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("", "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_FIELD_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]")
_ENCODED_WORD = re.compile(r"=\?[^?]*\?[bq]\?.*\?=", re.IGNORECASE)
_PHRASE = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?: [A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_URL = re.compile(r"https://[A-Za-z0-9.-]+(?::[0-9]{1,5})?(?:[/?#][!-;=?-~]*)?")


def check_header(name: str, value: str) -> None:
    """Accept a header field that a user adds.

    Raises:
        ValueError: It can't be sent, or isn't theirs to set; the message states fact, value and remedy.
    """
    if _FIELD_NAME.fullmatch(name) is None:
        raise ValueError(
            f"the header name {shown(name)} is not valid: write 1 to 64 letters, digits and hyphens, such as X-Order"
        )
    lower = name.lower()
    denied = lower if lower in DENIED else lower[: lower.find("-") + 1]
    if remedy := DENIED.get(denied):
        raise ValueError(f"the header {name} can't be set: {remedy}")
    if found := _CONTROL.search(value):
        raise ValueError(
            f"the header {name} contains {found.group()!a}: write it as one line without control characters"
        )
    if value != value.strip(" "):
        raise ValueError(f"the header {name} begins or ends with a blank, which parsers drop: remove it")
    if len(name) + 2 + len(value) > LINE_OCTETS_MAX:
        raise ValueError(
            f"the header {name} has {len(value)} characters: at most {LINE_OCTETS_MAX - 2 - len(name)} fit one line"
        )


def check_subject(subject: str) -> None:
    """Accept a subject.

    Raises:
        ValueError: It is no line of text; the message states fact, value and remedy.
    """
    if not subject.isprintable() and (found := _CONTROL.search(subject)):
        raise ValueError(f"the subject contains {found.group()!a}: write it as one line without control characters")
    if len(subject) > SUBJECT_CHARS_MAX:
        raise ValueError(f"the subject has {len(subject)} characters: at most {SUBJECT_CHARS_MAX} can be sent")


def check_unsubscribe_url(url: str) -> None:
    """Accept the address that a mail program posts to when its user unsubscribes (RFC 8058).

    Raises:
        ValueError: It is anything else; the message states fact, value and remedy.
    """
    if _URL.fullmatch(url) is None:
        raise ValueError(
            f"the unsubscribe URL {shown(url)} is not valid: write one https URL with a host, in ASCII and without "
            "blanks or angle brackets (percent-encode them)"
        )
    if len(url) > URL_CHARS_MAX:
        raise ValueError(f"the unsubscribe URL has {len(url)} characters: at most {URL_CHARS_MAX} fit one line")


def write_mailboxes(field: str, mailboxes: Sequence[Mailbox]) -> str:
    """Return a field that lists mailboxes, with its line end."""
    if len(mailboxes) == 1 and not mailboxes[0].name:
        return f"{field}: {mailboxes[0].address}\r\n"
    lines: list[str] = []
    line = f"{field}:"
    for place, mailbox in enumerate(mailboxes, 1):
        tokens = _mailbox_tokens(mailbox, len(field) + 2 if place == 1 else 1)
        if place < len(mailboxes):
            tokens[-1] += ","
        limit = LINE_OCTETS_WANTED if len(tokens) == 1 else ENCODED_LINE_OCTETS
        for token in tokens:
            if len(line) + 1 + len(token) > limit and not line.endswith(f"{field}:"):
                lines.append(line)
                line = ""
            line += f" {token}"
    return "\r\n".join((*lines, line, ""))


def write_text(field: str, value: str) -> str:
    """Return a field that holds text, with its line end; a single word of ASCII is never cut or encoded."""
    if not value:
        return f"{field}:\r\n"
    line = f"{field}: {value}"
    if (
        value.isascii()
        and value.isprintable()
        and value[0] != " "
        and value[-1] != " "
        and ("=?" not in value or _ENCODED_WORD.search(value) is None)
    ):
        if len(line) <= LINE_OCTETS_WANTED:
            return f"{line}\r\n"
        if folded := _fold(line, len(field) + 2):
            return folded
    return f"{field}: {FOLD.join(_encoded_words(value, len(field) + 2))}\r\n"


def format_date(moment: datetime) -> str:
    """Return an RFC 5322 §3.3 date in UTC."""
    return _format_second(moment.timestamp() // 1)


def _mailbox_tokens(mailbox: Mailbox, column: int) -> list[str]:
    """Return what a line may be folded between: the encoded words of a name, and the rest."""
    name = mailbox.name
    if not name:
        return [str(mailbox.address)]
    if name.isascii() and "=?" not in name:  # many programs decode what looks encoded even between quotes
        if _PHRASE.fullmatch(name) is None:
            name = quote_name(name)
        return [f"{name} <{mailbox.address}>"]
    return [*_encoded_words(name, column), f"<{mailbox.address}>"]


def _fold(line: str, start: int) -> str | None:
    """Break a long field between words, from the column `start`; None if a word is too long for any line.

    A break stands before a blank that a word follows, so that unfolding (removing the CRLF) gives
    the text back exactly and no line is blank (RFC 5322 §2.2.3).
    """
    lines: list[str] = []
    while len(line) > LINE_OCTETS_WANTED:
        at = _last_break(line, start)
        if at < 0:
            break
        lines.append(line[:at])
        line = line[at:]
        start = len(line) - len(line.lstrip(" "))
    lines.append(line)
    return "\r\n".join((*lines, "")) if max(map(len, lines)) <= LINE_OCTETS_MAX else None


def _last_break(line: str, start: int) -> int:
    """Return where to break: the last fitting blank before a word, else the first one; -1 for none."""
    blanks = [at for at in range(start, len(line) - 1) if line[at] == " " and line[at + 1] != " "]
    return max((at for at in blanks if at <= LINE_OCTETS_WANTED), default=blanks[0] if blanks else -1)


def _encoded_words(text: str, column: int) -> list[str]:
    """Cut text between code points into RFC 2047 words of at most 75 characters, the first to stand at `column`."""
    data = text.encode()
    room = min(WORD_OCTETS, max(WORD_OCTETS_MIN, (ENCODED_LINE_OCTETS - column - WORD_FRAME_OCTETS) // 4 * 3))
    words: list[str] = []
    start = 0
    while start < len(data):
        end = min(start + room, len(data))
        while end < len(data) and data[end] & 0xC0 == 0x80:  # not inside a code point
            end -= 1
        words.append(f"=?utf-8?B?{binascii.b2a_base64(data[start:end], newline=False).decode('ascii')}?=")
        start, room = end, WORD_OCTETS
    return words


@functools.lru_cache(maxsize=DATES_MAX)
def _format_second(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, UTC)
    return (
        f"{_DAYS[moment.weekday()]}, {moment.day:02d} {_MONTHS[moment.month]} {moment.year:04d} "
        f"{moment.hour:02d}:{moment.minute:02d}:{moment.second:02d} +0000"
    )
