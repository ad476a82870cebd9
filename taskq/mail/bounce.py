"""Reads a delivery report (RFC 3464): which mail it is about, and what became of each recipient.

Pure, and fed by strangers: whatever the bytes, the answer is a `Report` or a `NoReport`.  Only the
beginning is read, since what comes after the first lines of the returned mail decides nothing; so a
report that returns a whole mail costs no more than one that returns its headers.  What a report says
is a claim: whoever acts on it checks first that the mail and the recipient are his own.

A report is a `multipart/report` whose second part, `message/delivery-status`, holds blocks of fields
apart by blank lines: the first about the mail, each further one about a recipient.  The third part
returns the mail or its headers.  Addresses beyond ASCII come as `message/global-delivery-status`
(RFC 6533), the same in UTF-8.
"""

import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email import message_from_bytes
from email.message import Message
from email.parser import HeaderParser
from typing import cast

__all__ = ["ACTIONS", "Fate", "NoReport", "Report", "parse_report"]

OCTETS_READ_MAX = 131_072  # some servers explain at length, in HTML, before they report
FATES_MAX = 50
TEXT_CHARS_MAX = 500

_STATUS_TYPES = {"message/delivery-status", "message/global-delivery-status"}
_RETURNED_TYPES = {"message/rfc822", "message/global", "text/rfc822-headers", "message/global-headers"}
_REMEDY = "send the whole mail that came back, as it was received"

ACTIONS = ("failed", "delayed", "delivered", "relayed", "expanded")
"""What can have become of a recipient (RFC 3464 §2.3.3)."""

_ACTION = re.compile(rf"\s*({'|'.join(ACTIONS)})\b", re.IGNORECASE)
_STATUS = re.compile(r"\s*([245]\.\d{1,3}\.\d{1,3})\b", re.ASCII)  # RFC 3464 §2.3.4; a comment may follow
_TYPED = re.compile(r"\s*([\w-]{1,40})\s*;\s*(.*)", re.ASCII | re.DOTALL)
_ESCAPED = re.compile(r"\\x\{([0-9A-Fa-f]{2,6})\}")  # RFC 6533 §3
_UID = re.compile(r"[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]+")


class NoReport(ValueError):
    """The bytes are no delivery report; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one recipient."""

    recipient: str
    """Final-Recipient: the address that the reporting server dealt with."""
    original: str
    """Original-Recipient: the address that the sender wrote; empty when it is not said."""
    action: str
    """One of `ACTIONS`."""
    status: str
    """Such as `5.1.1` (RFC 3463)."""
    diagnostic: str
    """What the server said, on one line; may be empty."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a delivery report says."""

    uids: tuple[uuid.UUID, ...]
    """Names that the mail may have: from its envelope id, then from its Message-ID."""
    fates: tuple[Fate, ...]
    """At least one."""


def parse_report(message: bytes) -> Report:
    """Read a delivery report.

    Args:
        message: The mail as it was received, headers first.

    Raises:
        NoReport: It is something else, or says nothing of any recipient.
    """
    try:
        parsed = message_from_bytes(message[:OCTETS_READ_MAX])
    except RecursionError:  # parts in parts, hundreds deep
        raise NoReport(f"its parts are nested too deep for a delivery report: {_REMEDY}") from None
    if parsed.get_content_type() != "multipart/report":
        raise NoReport(f"it is {_plain(parsed.get_content_type())}, no multipart/report: {_REMEDY}")
    blocks: list[Mapping[str, str]] = []
    returned: Mapping[str, str] = {}
    for part in _children(parsed):
        kind = part.get_content_type()
        if kind in _STATUS_TYPES and not blocks:
            blocks = _blocks(part)
        elif kind in _RETURNED_TYPES:
            returned = _returned(part)
    if not blocks:
        raise NoReport(f"it has no part of type message/delivery-status: {_REMEDY}")
    fates = tuple(_fates(blocks[1 : FATES_MAX + 1]))
    if not fates:
        raise NoReport(f"it names no recipient with an action and a status: {_REMEDY}")
    names = (blocks[0].get("original-envelope-id", ""), returned.get("message-id", ""))
    return Report(tuple(uuid.UUID(found.group()) for name in names if (found := _UID.search(name))), fates)


def _blocks(part: Message) -> list[Mapping[str, str]]:
    """Return the fields of each block; the parser has taken the ASCII form apart, of the other only the first block."""
    found = _children(part)
    if part.get_content_type() == "message/global-delivery-status" and found:
        rest = re.split(r"(?:\r?\n){2,}", _text(found[0]).strip("\r\n"), maxsplit=FATES_MAX)
        found += map(HeaderParser().parsestr, rest)
    return [fields for each in found if (fields := _fields(each))]


def _returned(part: Message) -> Mapping[str, str]:
    """Return the headers of the mail that came back."""
    children = _children(part)
    return _fields(children[0] if children else HeaderParser().parsestr(_text(part)))


def _children(message: Message) -> list[Message]:
    payload = message.get_payload()
    return cast("list[Message]", payload) if isinstance(payload, list) else []


def _text(part: Message) -> str:
    content = part.get_payload(decode=True)
    return content.decode("utf-8", "replace") if isinstance(content, bytes) else ""


def _fates(blocks: Iterable[Mapping[str, str]]) -> Iterable[Fate]:
    for fields in blocks:
        action, status = _ACTION.match(fields.get("action", "")), _STATUS.match(fields.get("status", ""))
        recipient = _address(fields.get("final-recipient", ""))
        if recipient and action and status:
            original = _address(fields.get("original-recipient", ""))
            said = _TYPED.match(fields.get("diagnostic-code", ""))
            diagnostic = said.group(2) if said else ""
            yield Fate(recipient, original, action.group(1).lower(), status.group(1), _plain(diagnostic))


def _address(field: str) -> str:
    """Return the address of a typed field such as `rfc822; ada@example.com`; empty when it holds none."""
    typed = _TYPED.match(field)
    if typed is None or typed.group(1).lower() not in {"rfc822", "utf-8"}:
        return ""
    address = typed.group(2).strip().removeprefix("<").removesuffix(">")
    return _ESCAPED.sub(_unescaped, address) if typed.group(1).lower() == "utf-8" else address


def _unescaped(match: re.Match[str]) -> str:
    code = int(match.group(1), 16)
    return chr(code) if code < 0x110000 else match.group()


def _fields(message: Message) -> Mapping[str, str]:
    """Return the first field of each name, unfolded; octets beyond ASCII are read as UTF-8."""
    fields: dict[str, str] = {}
    for name, value in message.raw_items():
        text = str(value).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        fields.setdefault(name.lower(), re.sub(r"\r?\n(?=[ \t])", "", text))
    return fields


def _plain(text: str) -> str:
    return " ".join(_CONTROL.sub(" ", text[: 2 * TEXT_CHARS_MAX]).split())[:TEXT_CHARS_MAX]
