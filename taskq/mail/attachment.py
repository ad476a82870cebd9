"""Files in a mail: what they may be called, and how their headers say it (RFC 2183, RFC 2231).

A file's name is only a name: no folder, no control character, nothing that turns the direction of
reading (the trick that shows `exe.pdf` where `fdp.exe` is meant).  Its type is checked against the
grammar of RFC 2045 and RFC 6838, so nothing can be added to the header through it.  Refused are
types whose content is itself parts or a mail: those may not be base64 (RFC 2046 §5.2.1), and a
program that opens them would look for parts that were never composed here.
"""

import re
import urllib.parse
from dataclasses import dataclass

from taskq.errors import shown
from taskq.mail.body import Part, encode_file

__all__ = ["Attachment", "check_attachment", "encode_attachment"]

FILENAME_OCTETS_MAX = 255  # what file systems hold; percent-encoded it still fits one line
TYPE_CHARS_MAX = 255
CONTENT_ID_CHARS_MAX = 200

_FILENAME_REFUSED = re.compile(r"[/\\\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_PLAIN_FILENAME = re.compile(r"[A-Za-z0-9 !#$&'()+,.;=@\[\]^_`{}~-]+")  # no program reads it otherwise between quotes
_NAME = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"  # RFC 6838 §4.2
_PARAMETER = r"""; ?([A-Za-z0-9_.-]{1,64})=(?:[A-Za-z0-9!#$%&'*+^_`{|}~.-]+|"[ !#->@-\[\]-~]*")"""  # RFC 2045 §5.1
_TYPE = re.compile(rf"({_NAME})/{_NAME}(?:{_PARAMETER})*")
_EACH_PARAMETER = re.compile(_PARAMETER)
_CONTENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+.-]*(?:@[A-Za-z0-9][A-Za-z0-9.-]*)?")


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that goes with a mail."""

    filename: str
    """What the receiver sees, without a folder."""
    content_type: str
    """Such as `application/pdf` or `text/calendar; method=REQUEST`."""
    content: bytes
    content_id: str | None = None
    """What the HTML calls it after `cid:`, for a picture inside the text; None: it stands beside the text."""


def check_attachment(filename: str, content_type: str, content_id: str | None) -> None:
    """Accept what a file is called.

    Raises:
        ValueError: No header can say it; the message states fact, value and remedy.
    """
    if found := _FILENAME_REFUSED.search(filename):
        raise ValueError(
            f"the file name {shown(filename)} contains {found.group()!a}: write the bare name, without folders "
            "and control characters"
        )
    if not filename.strip(" ."):
        raise ValueError(f"the file name {shown(filename)} names no file: write a name such as invoice.pdf")
    if filename != filename.strip():
        raise ValueError(f"the file name {shown(filename)} begins or ends with a blank, which parsers drop: remove it")
    octets = len(filename.encode())
    if octets > FILENAME_OCTETS_MAX:
        raise ValueError(
            f"the file name {shown(filename)} has {octets} octets: at most {FILENAME_OCTETS_MAX} can be stored by "
            "receivers, shorten it"
        )
    _check_type(content_type)
    if content_id is not None and (len(content_id) > CONTENT_ID_CHARS_MAX or _CONTENT_ID.fullmatch(content_id) is None):
        raise ValueError(
            f"the content id {shown(content_id)} is not valid: write at most {CONTENT_ID_CHARS_MAX} letters, digits "
            "and ._+- such as logo, or logo@example.com, and cid:logo in the HTML"
        )


def encode_attachment(attachment: Attachment) -> Part:
    """Return the file as a part; its names have been checked."""
    disposition = "attachment" if attachment.content_id is None else "inline"
    if _PLAIN_FILENAME.fullmatch(attachment.filename):
        named = f'filename="{attachment.filename}"'
    else:
        named = f"filename*=utf-8''{urllib.parse.quote(attachment.filename, safe='')}"
    head = (
        f"Content-Type: {attachment.content_type}\r\n"
        "Content-Transfer-Encoding: base64\r\n"
        f"Content-Disposition: {disposition};\r\n {named}\r\n"
    )
    if attachment.content_id is not None:
        head += f"Content-ID: <{attachment.content_id}>\r\n"
    return head, [encode_file(attachment.content)]


def _check_type(content_type: str) -> None:
    found = _TYPE.fullmatch(content_type) if len(content_type) <= TYPE_CHARS_MAX else None
    if found is None:
        raise ValueError(
            f"the content type {shown(content_type)} is not valid: write a type such as application/pdf, if need be "
            "with parameters, such as text/csv; charset=utf-8"
        )
    if found.group(1).lower() in {"multipart", "message"}:
        raise ValueError(
            f"the content type {shown(content_type)} holds further parts: attach it as application/octet-stream"
        )
    names = [each.group(1).lower() for each in _EACH_PARAMETER.finditer(content_type)]
    if len(set(names)) < len(names):
        raise ValueError(f"the content type {shown(content_type)} has one parameter twice: remove one")
    if "name" in names:
        raise ValueError(f"the content type {shown(content_type)} names the file: use filename")
