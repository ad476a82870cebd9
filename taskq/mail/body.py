"""Bodies: text and files as 7-bit lines, and parts put together (RFC 2045, RFC 2046).

Text travels as it is when it is ASCII in short lines, else as quoted-printable or base64, whichever
is smaller.  Files are always base64, those of text types too: a relay that mends line ends or
trailing blanks must not change a file.

A part is its header lines and its chunks of bytes; chunks are joined once, for the whole mail, so
that a large file isn't copied at every level.
"""

import binascii
import itertools
import struct
from collections.abc import Sequence

__all__ = ["Part", "check_text", "encode_file", "encode_text", "multipart"]

LINE_OCTETS_MAX = 998  # RFC 5322 §2.1.1, without the CRLF
BASE64_LINE = 76  # RFC 2045 §6.8

Part = tuple[str, list[bytes]]
"""Header lines, each with its line end, and the body in pieces."""

_LINES = struct.Struct(f"{BASE64_LINE}s" * 128)  # cuts a file into lines twice as fast as slices do
_ASCII = bytes(range(128))
_FIELDS = {"plain": "text", "html": "html"}  # what users call them, for errors


def check_text(text: str, what: str) -> None:
    """Accept a text of a mail.

    Raises:
        ValueError: It is no Unicode text; the message states fact, value and remedy.
    """
    if "\0" in text:
        raise ValueError(f"the {what} contains a NUL character: mail is text, remove it")
    if not text.isascii():
        _encode(text, what)


def encode_text(text: str, subtype: str, boundary: str | None = None) -> Part:
    """Return a text as a part whose body ends with CRLF.

    Args:
        subtype: `plain` or `html`.
        boundary: What must not stand in the body.
    """
    if "\0" in text:
        check_text(text, _FIELDS[subtype])
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.endswith("\n"):
        text += "\n"
    data = text.encode() if text.isascii() else _encode(text, _FIELDS[subtype])
    data = data.replace(b"\n", b"\r\n")
    if text.isascii() and not _has_long_line(text) and (boundary is None or boundary not in text):
        encoding, body = "7bit", data
    else:
        encoding, body = _encode_lines(data)
    return f"Content-Type: text/{subtype}; charset=utf-8\r\nContent-Transfer-Encoding: {encoding}\r\n", [body]


def encode_file(content: bytes) -> bytes:
    """Return base64 in lines, the last without its line end."""
    flat = memoryview(binascii.b2a_base64(content, newline=False))
    whole = len(flat) // _LINES.size * _LINES.size
    lines = list(itertools.chain.from_iterable(_LINES.iter_unpack(flat[:whole])))
    lines += [flat[at : at + BASE64_LINE] for at in range(whole, len(flat), BASE64_LINE)]
    return b"\r\n".join(lines)


def multipart(kind: str, boundary: str, parts: Sequence[Part]) -> Part:
    """Return parts as one.

    The line end before a delimiter belongs to the delimiter (RFC 2046 §5.1.1), so that a text keeps
    its own.

    Args:
        kind: Subtype, with its parameters if it needs any.
        boundary: Occurs in no part, also not as the beginning of a line.
    """
    chunks: list[bytes] = []
    opening = f"--{boundary}\r\n"
    for head, body in parts:
        chunks.append(f"{opening}{head}\r\n".encode("ascii"))
        chunks.extend(body)
        opening = f"\r\n--{boundary}\r\n"
    chunks.append(f"\r\n--{boundary}--".encode("ascii"))
    return f'Content-Type: multipart/{kind};\r\n boundary="{boundary}"\r\n', chunks


def _has_long_line(text: str) -> bool:
    """Look only at the last line end of each stretch that one line may fill."""
    start = 0
    while len(text) - start > LINE_OCTETS_MAX + 1:
        end = text.rfind("\n", start, start + LINE_OCTETS_MAX + 1)
        if end < 0:
            return True
        start = end + 1
    return False


def _encode_lines(data: bytes) -> tuple[str, bytes]:
    escaped = len(data.translate(None, _ASCII)) + data.count(b"=")
    if escaped * 2 > len(data) // 3:  # each escaped octet grows by two, base64 grows everything by a third
        return "base64", encode_file(data) + b"\r\n"
    return "quoted-printable", binascii.b2a_qp(data, istext=True)


def _encode(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the {what} contains {text[error.start]!a}, half of a surrogate pair, at character {error.start}: "
            "write the whole character"
        ) from error
