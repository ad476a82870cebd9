"""The server's side of one SMTP session as a pure state machine: octets in, replies and mails out.

It speaks RFC 5321 with PIPELINING (RFC 2920), SIZE (RFC 1870), 8BITMIME (RFC 6152), SMTPUTF8 (RFC
6531) and ENHANCEDSTATUSCODES (RFC 2034), to programs on this machine: no TLS, no AUTH, no relaying.
It knows no clock and no socket, so that a test may feed it anything, cut anywhere.

Lines end with CRLF and nothing else does.  A lone CR or LF is refused, in a command and in a text,
and the only end of a text is CRLF, dot, CRLF: a server that was more generous could be talked into
taking one mail for two (SMTP smuggling).  Every bound has a reply: octets of a line and of a
message, recipients, mistakes.

`feed` takes what arrived; `step` returns what to do next, until None asks for more octets.  After a
`Received` nothing goes on before `stored` has said whether the mail is kept.
"""

import re
from dataclasses import dataclass
from enum import Enum, auto

from taskq.errors import shown
from taskq.mail.address import parse_address

__all__ = ["Dialogue", "Received", "Reply"]

LINE_OCTETS_MAX = 2_048  # RFC 5321 §4.5.3.1.4 asks for 512 and more for each extension
MESSAGE_OCTETS_MAX = 16 * 1024 * 1024  # an attachment of 10 MiB, encoded, and room for the rest
RECIPIENTS_MAX = 100  # RFC 5321 §4.5.3.1.8
MISTAKES_MAX = 20

_END = b"\r\n.\r\n"
_PATH = re.compile(r"(FROM|TO):[ ]?<([^<>]*)>((?: [^ ]+)*) *", re.IGNORECASE)
_OFFER = ("PIPELINING", f"SIZE {MESSAGE_OCTETS_MAX}", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES")


@dataclass(frozen=True, slots=True)
class Reply:
    """Octets for the client."""

    octets: bytes
    last: bool = False
    """Whether the connection is to be closed behind them."""


@dataclass(frozen=True, slots=True)
class Received:
    """A mail to be stored; answered with `Dialogue.stored`."""

    sender: str
    """Envelope sender; empty for a report."""
    recipients: tuple[str, ...]
    """At least one, each once."""
    message: bytes
    """The text as the client meant it: without the dots that were put before its dots."""


class _State(Enum):
    GREETING = auto()
    COMMAND = auto()
    TEXT = auto()
    STORING = auto()
    OVER = auto()


class Dialogue:
    """One session, from the banner to its end."""

    def __init__(self, name: str) -> None:
        """Begin; the first step is the banner.

        Args:
            name: What the server calls itself.
        """
        self._name = name
        self._state = _State.GREETING
        self._buffer = bytearray()
        self._searched = 0  # octets of the buffer that hold no end
        self._size = 0  # of a text of which the beginning was thrown away
        self._mistakes = 0
        self._greeted = False
        self._sender: str | None = None
        self._recipients: dict[str, None] = {}

    def feed(self, octets: bytes) -> None:
        """Take what arrived."""
        self._buffer += octets

    def step(self) -> Reply | Received | None:
        """Return what to do next; None: more octets are needed, or `stored`, or the session is over."""
        match self._state:
            case _State.GREETING:
                self._state = _State.COMMAND
                return _reply(220, f"{self._name} ESMTP taskq inbox")
            case _State.COMMAND:
                return self._command()
            case _State.TEXT:
                return self._text()
            case _State.STORING | _State.OVER:
                return None

    def stored(self, *, kept: bool) -> Reply:
        """Go on after a `Received`; return the reply to its text."""
        self._state = _State.COMMAND
        if kept:
            return _reply(250, "2.0.0 captured")
        return _reply(451, "4.3.0 the inbox can't store mail now: try again")

    def end(self, why: str) -> Reply:
        """End the session from this side, as when time is over (RFC 5321 §3.8)."""
        self._state = _State.OVER
        return _reply(421, f"4.3.2 {self._name}: {why}", last=True)

    def _command(self) -> Reply | None:
        end = self._buffer.find(b"\n", self._searched)
        if end < 0:
            self._searched = len(self._buffer)
            return self.end("the line is too long") if len(self._buffer) > LINE_OCTETS_MAX else None
        line = bytes(self._buffer[: end + 1])
        del self._buffer[: end + 1]
        self._searched = 0
        if len(line) > LINE_OCTETS_MAX:
            return self._mistake(500, "5.5.2 the line is too long")
        if _bare(line):
            return self._mistake(500, "5.5.2 a lone CR or LF ends no line: send CRLF")
        try:
            text = line[:-2].decode("utf-8")
        except UnicodeDecodeError:
            return self._mistake(500, "5.5.2 the line is no UTF-8")
        verb, _, rest = text.partition(" ")
        return self._obey(verb.upper(), rest)

    def _obey(self, verb: str, rest: str) -> Reply:
        match verb:
            case "EHLO" | "HELO":
                return self._hello(verb, rest)
            case "MAIL":
                return self._mail(rest)
            case "RCPT":
                return self._rcpt(rest)
            case "DATA":
                return self._data(rest)
            case "RSET":
                self._forget()
                return _reply(250, "2.0.0 forgotten")
            case "NOOP":
                return _reply(250, "2.0.0 nothing done")
            case "VRFY":
                return _reply(252, "2.5.0 send it and see")  # RFC 5321 §3.5.3
            case "QUIT":
                self._state = _State.OVER
                return _reply(221, "2.0.0 bye", last=True)
            case _:
                return self._mistake(502, f"5.5.1 {shown(verb)} is no command here")

    def _hello(self, verb: str, rest: str) -> Reply:
        if not rest.strip():
            return self._mistake(501, f"5.5.4 say who you are: {verb} name")
        self._forget()  # RFC 5321 §4.1.4
        self._greeted = True
        if verb == "HELO":
            return _reply(250, self._name)
        lines = (self._name, *_OFFER)
        marks = ["-"] * (len(lines) - 1) + [" "]
        return Reply("".join(f"250{mark}{line}\r\n" for mark, line in zip(marks, lines, strict=True)).encode())

    def _mail(self, rest: str) -> Reply:
        if not self._greeted:
            return self._mistake(503, "5.5.1 say EHLO first")
        if self._sender is not None:
            return self._mistake(503, "5.5.1 a mail is under way: end it, or send RSET")
        path = _PATH.fullmatch(rest)
        if path is None or path.group(1).upper() != "FROM":
            return self._mistake(501, "5.5.4 write MAIL FROM:<address>")
        for parameter in path.group(3).split():
            name, _, value = parameter.upper().partition("=")
            if name == "SIZE" and value.isdecimal() and value.isascii() and len(value) <= 20:
                if int(value) > MESSAGE_OCTETS_MAX:
                    return _reply(552, f"5.3.4 at most {MESSAGE_OCTETS_MAX} octets are taken")
            elif parameter.upper() not in ("SMTPUTF8", "BODY=7BIT", "BODY=8BITMIME"):
                return self._mistake(555, f"5.5.4 {shown(parameter)} is no parameter here")  # RFC 5321 §4.1.1.11
        if path.group(2):
            address = _address(path.group(2))
            if isinstance(address, Reply):
                return address
            self._sender = address
        else:
            self._sender = ""  # RFC 5321 §4.5.5
        return _reply(250, "2.1.0 sender fine")

    def _rcpt(self, rest: str) -> Reply:
        if self._sender is None:
            return self._mistake(503, "5.5.1 name the sender first: MAIL FROM:<address>")
        path = _PATH.fullmatch(rest)
        if path is None or path.group(1).upper() != "TO":
            return self._mistake(501, "5.5.4 write RCPT TO:<address>")
        if path.group(3):
            return self._mistake(555, f"5.5.4 {shown(path.group(3).strip())} is no parameter here")
        if len(self._recipients) >= RECIPIENTS_MAX:
            return _reply(452, f"4.5.3 at most {RECIPIENTS_MAX} recipients: send the others apart")
        address = _address(path.group(2))
        if isinstance(address, Reply):
            return address
        self._recipients[address] = None
        return _reply(250, "2.1.5 recipient fine")

    def _data(self, rest: str) -> Reply:
        if rest.strip():
            return self._mistake(501, "5.5.4 DATA stands alone")
        if not self._recipients:
            return self._mistake(503, "5.5.1 no recipient: name one by RCPT TO:<address>")
        self._state = _State.TEXT
        # The CRLF of the command itself is before the first line: a lone dot may come at once.
        self._buffer[:0] = b"\r\n"
        self._searched = self._size = 0
        return _reply(354, "send the text, then a line with a dot")

    def _text(self) -> Reply | Received | None:
        end = self._buffer.find(_END, max(0, self._searched - len(_END) + 1))
        if end < 0:
            self._searched = len(self._buffer)
            if len(self._buffer) > MESSAGE_OCTETS_MAX + len(_END):
                self._size += len(self._buffer) - len(_END)
                del self._buffer[: -len(_END)]
                self._searched = len(self._buffer)
            return None
        text = bytes(self._buffer[2 : end + 2])
        del self._buffer[: end + len(_END)]
        self._searched = 0
        sender, recipients = self._sender or "", tuple(self._recipients)
        self._forget()
        self._state = _State.COMMAND
        if self._size or len(text) > MESSAGE_OCTETS_MAX:
            return _reply(552, f"5.3.4 at most {MESSAGE_OCTETS_MAX} octets are taken")
        if _bare(text):
            return self._mistake(550, "5.6.0 the text holds a lone CR or LF: end lines with CRLF")
        self._state = _State.STORING
        if text.startswith(b"."):
            text = text[1:]
        return Received(sender, recipients, text.replace(b"\r\n.", b"\r\n"))  # RFC 5321 §4.5.2

    def _forget(self) -> None:
        self._sender = None
        self._recipients = {}

    def _mistake(self, code: int, text: str) -> Reply:
        self._mistakes += 1
        return _reply(code, text) if self._mistakes < MISTAKES_MAX else self.end(f"too many mistakes, the last: {text}")


def _bare(octets: bytes) -> bool:
    """Whether a CR or LF stands alone; counted, since a search takes ten times as long."""
    return not octets.count(b"\r") == octets.count(b"\n") == octets.count(b"\r\n")


def _address(text: str) -> str | Reply:
    try:
        return str(parse_address(text))
    except ValueError as error:
        return _reply(553, f"5.1.3 {error}")


def _reply(code: int, text: str, *, last: bool = False) -> Reply:
    return Reply(f"{code} {text}\r\n".encode("ascii", "backslashreplace"), last=last)
