"""What a captured mail holds, for people and for tests: subject, text, HTML, attachments, links.

Our own mails are well-formed; those that other programs send to the SMTP listener may be anything.
So nothing here trusts a mail: whatever can't be decoded is shown as well as it can be, no charset
is looked up that is not one for mail (some of Python's codecs take quadratic time), and no mail
raises.  What leaves here is valid Unicode without NUL, fit for PostgreSQL and JSON.

The standard library splits the parts; header words are decoded here, because its parser keeps the
blank between two encoded words (RFC 2047 §6.2).
"""

import binascii
import codecs
import html
import re
from dataclasses import dataclass
from email import message_from_bytes
from email.message import Message

__all__ = ["Attached", "Reading", "decode_words", "read_mail", "subject_of"]

SUBJECT_CHARS_MAX = 2_000
LINKS_MAX = 200
LINK_CHARS_MAX = 2_048

_PLAIN_SUBJECT = re.compile(rb"\r\nSubject: ([ -<>-~]*)\r\n(?![ \t])")  # as most are: found without reading on
_SUBJECT = re.compile(rb"^subject:(.*(?:\r?\n[ \t].*)*)", re.IGNORECASE | re.MULTILINE)
_FOLD = re.compile(r"\r?\n(?=[ \t])")
_WORD = re.compile(r"=\?([^?\s*]{1,40})(?:\*[^?\s]{1,40})?\?([BbQq])\?([^?\s]*)\?=")
_BETWEEN_WORDS = re.compile(r"(\?=)\s+(?==\?[^?\s]{1,80}\?[BbQq]\?)")
_UNFIT = re.compile("[\0\ud800-\udfff]")
_HREF = re.compile(r"\bhref\s{0,8}=\s{0,8}(?:\"([^\"<>]{1,2048})\"|'([^'<>]{1,2048})')", re.IGNORECASE)
_URL = re.compile(r"\bhttps?://[^\s<>\"]{1,2040}", re.IGNORECASE)
_TRAILING = ".,;:!?)]}'"
_PARSER_ERRORS = (LookupError, TypeError, ValueError)  # of the library, over parameters that are none (RFC 2231)
_CHARSETS = frozenset(
    (
        *("ascii", "utf-8", "utf-16", "utf-16-le", "utf-16-be", "koi8-r", "koi8-u", "iso2022_jp", "shift_jis"),
        *("euc_jp", "euc_kr", "gb2312", "gbk", "gb18030", "big5"),
        *(f"iso8859-{n}" for n in (*range(1, 12), *range(13, 17))),
        *(f"cp125{n}" for n in range(9)),
    )
)


@dataclass(frozen=True, slots=True)
class Attached:
    """A part of a mail that is neither its text nor its HTML."""

    filename: str
    """As the mail names it; may be empty."""
    content_type: str
    """Such as `image/png`."""
    content_id: str
    """By which the HTML shows it; empty: it doesn't."""
    content: bytes


@dataclass(frozen=True, slots=True)
class Reading:
    """A mail taken apart."""

    headers: list[tuple[str, str]]
    """Names and decoded values, in the order of the mail."""
    text: str
    """The first plain-text part; empty: there is none."""
    html: str
    """The first HTML part; empty: there is none."""
    attachments: list[Attached]
    """Every other part, in the order of the mail."""
    links: list[str]
    """Web addresses of the HTML and the text, each once, at most 200."""

    def header(self, name: str) -> str:
        """Return the first value of a header, in any case; empty: there is none."""
        return next((value for each, value in self.headers if each.lower() == name), "")


def subject_of(message: bytes) -> str:
    """Return the decoded subject, one line; empty: there is none."""
    end = message.find(b"\r\n\r\n")
    end = end + 2 if end >= 0 else len(message)
    start = message.find(b"\r\nSubject: ", 0, end)
    if start >= 0 and (plain := _PLAIN_SUBJECT.match(message, start, end)):
        return plain.group(1).decode("ascii").strip()[:SUBJECT_CHARS_MAX]
    found = _SUBJECT.search(message, 0, end)
    if found is None:
        return ""
    return decode_words(_text(found.group(1), "utf-8"))[:SUBJECT_CHARS_MAX]


def read_mail(message: bytes) -> Reading:
    """Take a mail apart; megabytes take tens of milliseconds each."""
    try:
        parsed = message_from_bytes(message)
        parts = [part for part in parsed.walk() if not part.is_multipart()]
    except RecursionError:  # parts inside of parts, hundreds deep: nobody's mail
        return Reading([], _text(message, "utf-8"), "", [], [])
    text = html_text = None
    attachments: list[Attached] = []
    for part in parts:
        kind = "text/plain" if part.get_content_maintype() == "multipart" else part.get_content_type()
        content = _content(part)
        inline = part.get_content_disposition() != "attachment" and not _filename(part)
        if inline and kind == "text/plain" and text is None:
            text = _text(content, _charset(part))
        elif inline and kind == "text/html" and html_text is None:
            html_text = _text(content, _charset(part))
        else:
            attachments.append(_attached(part, kind, content))
    return Reading(_headers(parsed), text or "", html_text or "", attachments, _links(html_text or "", text or ""))


def decode_words(value: str) -> str:
    """Return a header's value as one line, its encoded words decoded (RFC 2047)."""
    line = _FOLD.sub("", value).strip()
    if "=?" in line:
        line = _WORD.sub(_decode_word, _BETWEEN_WORDS.sub(r"\1", line))
    return _fit(line)


def _decode_word(word: re.Match[str]) -> str:
    charset, encoding, coded = word.groups()
    octets = coded.encode("utf-8", "surrogateescape")
    try:
        if encoding in "Bb":
            return _text(binascii.a2b_base64(octets + b"=" * (-len(octets) % 4)), charset)
        return _text(binascii.a2b_qp(octets, header=True), charset)
    except binascii.Error:
        return word.group()


def _headers(message: Message) -> list[tuple[str, str]]:
    return [(_fit(name), decode_words(_unescaped(str(value)))) for name, value in message.raw_items()]


def _unescaped(value: str) -> str:
    """Read the raw octets that the parser kept as surrogates: UTF-8 more often than not."""
    return _text(value.encode("utf-8", "surrogateescape"), "utf-8") if _UNFIT.search(value) else value


def _content(part: Message) -> bytes:
    content = part.get_payload(decode=True)
    return content if isinstance(content, bytes) else b""


def _attached(part: Message, kind: str, content: bytes) -> Attached:
    content_id = _fit(_unescaped(str(part.get("Content-ID", "")))).strip().removeprefix("<").removesuffix(">")
    return Attached(_filename(part), _fit(kind), content_id, content)


def _filename(part: Message) -> str:
    try:
        return decode_words(_unescaped(part.get_filename() or ""))
    except _PARSER_ERRORS:
        return ""


def _charset(part: Message) -> str:
    try:
        return part.get_content_charset("utf-8")
    except _PARSER_ERRORS:
        return "utf-8"


def _text(octets: bytes, charset: str) -> str:
    """Decode octets; what the charset forbids, or a charset that is none, costs single characters only."""
    try:
        name = codecs.lookup(charset).name
    except (LookupError, UnicodeError, ValueError):
        name = "utf-8"
    return _fit(octets.decode(name if name in _CHARSETS else "utf-8", "replace"))


def _fit(text: str) -> str:
    return _UNFIT.sub("\ufffd", text)


def _links(html_text: str, text: str) -> list[str]:
    hrefs = (html.unescape(first or second).strip() for first, second in _HREF.findall(html_text))
    found = [href for href in hrefs if href.lower().startswith(("http://", "https://"))]
    found += [url.rstrip(_TRAILING) for url in _URL.findall(text)]
    return [link[:LINK_CHARS_MAX] for link in dict.fromkeys(found)][:LINKS_MAX]
