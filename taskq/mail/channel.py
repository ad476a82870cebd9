"""Replies in, commands out: the line discipline of SMTP on a transport that is already open.

aiosmtplib connects, secures and logs in; then this protocol takes over its transport, because
aiosmtplib can't have two commands under way (RFC 2920) and keeps reading after it was cancelled.
Here every reply belongs to one command by count.  A reply that no command awaits, a line that is no
reply, and more bytes than any reply needs all end the channel: a channel that is out of step is
never used again.
"""

import asyncio
import re
from collections import deque
from dataclasses import dataclass

from taskq.mail.classify import Event

__all__ = ["Broken", "Channel", "Reply"]

REPLY_OCTETS_MAX = 32_768  # of all lines of one reply; RFC 5321 §4.5.3.1.5 needs 512 a line, an EHLO a few KB
REPLY_TEXT_CHARS_MAX = 500  # kept of a reply's text: enough for an explanation and a link

_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])(.*))?", re.DOTALL)
_ENHANCED = re.compile(r"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?:\s|$)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


@dataclass(frozen=True, slots=True)
class Reply:
    """One whole reply of the server."""

    code: int
    """Three digits, 200 to 599."""
    text: str
    """All lines joined by blanks, control characters removed, shortened."""

    @classmethod
    def of(cls, code: int, text: str) -> "Reply":
        """Make a reply of what another reader took apart, its text made harmless alike."""
        return cls(code, _joined_text([b"000 " + line.encode("utf-8", "surrogateescape") for line in text.split("\n")]))

    @property
    def enhanced(self) -> str:
        """The RFC 3463 code that the text begins with; empty when it has none."""
        found = _ENHANCED.match(self.text)
        return found.group(1) if found else ""

    def __str__(self) -> str:
        return f"{self.code} {self.text}"


class Broken(Exception):
    """No reply came, and none will.

    Attributes:
        event: What came instead.
    """

    def __init__(self, event: Event, text: str) -> None:
        super().__init__(text)
        self.event = event


class Channel(asyncio.Protocol):
    """One open SMTP channel."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._buffer = b""
        self._lines: list[bytes] = []
        self._reply_octets = 0
        self._replies: deque[Reply] = deque()
        self._awaited = 0  # commands sent whose reply has not come
        self._broken: Broken | None = None
        self._waiter: asyncio.Future[None] | None = None  # of the one reader, or of the one writer
        self._writing_paused = False
        self._retiring = False
        self.closed: asyncio.Future[None] = self._loop.create_future()
        # So that resumed writing means: nothing is left to write.  Not 0, at which TLS transports never resume.
        transport.set_write_buffer_limits(high=1, low=0)
        transport.set_protocol(self)

    @property
    def facts(self) -> dict[str, object]:
        """The other end's address, and how what is said to it is encrypted."""
        peer, tls = self._transport.get_extra_info("peername"), self._transport.get_extra_info("ssl_object")
        cipher = tls.cipher() if tls else None
        return {
            "peer": f"{peer[0]}:{peer[1]}" if peer else None,
            "tls": tls.version() if tls else None,
            "cipher": cipher[0] if cipher else None,
        }

    @property
    def in_step(self) -> bool:
        """Whether the channel is open and no reply is outstanding or left over."""
        return not self._awaited and not self._replies and not self.lost

    @property
    def lost(self) -> bool:
        """Whether nothing more can be sent; known as soon as a write fails."""
        return self._broken is not None or self._transport.is_closing()

    def send(self, data: bytes, *, replies: int) -> None:
        """Write commands, or text, that `replies` replies will answer; broken channels drop it."""
        self._awaited += replies
        if self._broken is None and data:
            self._transport.write(data)

    async def reply(self, limit_s: float) -> Reply:
        """Return the next reply.

        Args:
            limit_s: Seconds to wait for it, from when everything was written.

        Raises:
            Broken: It did not come, or was none.
        """
        while not self._replies:
            if self._broken is not None:
                raise self._broken
            await self._wait(limit_s)
        self._awaited -= 1
        return self._replies.popleft()

    async def drain(self, limit_s: float) -> bool:
        """Wait until all is handed to the operating system; False when a reply came before that.

        Raises:
            Broken: The channel broke, or the limit passed.
        """
        while self._writing_paused and not self._replies and self._broken is None:
            await self._wait(limit_s)
        if self._replies:
            return False
        if self.lost:
            raise self._broken or Broken(Event.LOST, "the connection was lost")
        return True

    def abort(self) -> None:
        """Close at once and say nothing: what is under way is left unfinished."""
        self._break(Event.LOST, "the connection was closed by us")

    def retire(self, limit_s: float) -> None:
        """Say QUIT and close when the server answers, or after `limit_s` (RFC 5321 §4.1.1.10)."""
        if not self.in_step:
            self.abort()
            return
        self.send(b"QUIT\r\n", replies=1)
        timer = self._loop.call_later(limit_s, self.abort)
        self.closed.add_done_callback(lambda _: timer.cancel())
        self._retiring = True

    def data_received(self, data: bytes) -> None:
        """Cut the stream into replies."""
        if self._broken is not None:
            return
        lines = (self._buffer + data).split(b"\n")
        self._buffer = lines.pop()
        for line in lines:
            self._reply_octets += len(line)
            if not self._take_line(line.removesuffix(b"\r")):
                return
        if self._reply_octets + len(self._buffer) > REPLY_OCTETS_MAX:
            self._break(Event.GARBAGE, f"a reply is longer than {REPLY_OCTETS_MAX} octets")
            return
        if self._replies:
            self._wake()

    def eof_received(self) -> bool:
        """Let the transport close: a server that has said its last word can't take a mail."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end; replies that came before it are still read."""
        self._break(Event.LOST, f"the connection was lost ({exc})" if exc else "the server closed the connection")
        if not self.closed.done():
            self.closed.set_result(None)

    def pause_writing(self) -> None:
        """Note that bytes are waiting to be written."""
        self._writing_paused = True

    def resume_writing(self) -> None:
        """Note that none are."""
        self._writing_paused = False
        self._wake()

    def _take_line(self, line: bytes) -> bool:
        """Add one line to the current reply; False when it broke the channel."""
        found = _LINE.fullmatch(line)
        if found is None or (self._lines and line[:3] != self._lines[0][:3]):
            self._break(Event.GARBAGE, f"no SMTP reply: {_readable(line)}")
            return False
        self._lines.append(line)
        if found.group(2) == b"-":
            return True
        lines, self._lines, self._reply_octets = self._lines, [], 0
        if len(self._replies) >= self._awaited:
            self._break(Event.LOST, f"the server spoke unasked: {_readable(line)}")
            return False
        self._replies.append(Reply(int(line[:3]), _joined_text(lines)))
        if self._retiring:
            self.abort()
        return True

    def _break(self, event: Event, text: str) -> None:
        if self._broken is None:
            self._broken = Broken(event, text)
            self._transport.abort()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self, limit_s: float) -> None:
        """Wait once for any change: a reply, the end, or writing that may go on."""
        self._waiter = self._loop.create_future()
        try:
            async with asyncio.timeout(limit_s):
                await self._waiter
        except TimeoutError:
            raise Broken(Event.HUNG, f"no answer within {limit_s:g} s") from None
        finally:
            self._waiter = None


def _joined_text(lines: list[bytes]) -> str:
    """Return the text of a reply; a multi-line reply repeats its enhanced code, which is kept once."""
    texts = [_readable(line[4:]) for line in lines]
    enhanced = _ENHANCED.match(texts[0])
    if enhanced and len(texts) > 1:
        texts[1:] = [text.removeprefix(enhanced.group(1)).lstrip() for text in texts[1:]]
    return " ".join(texts)[:REPLY_TEXT_CHARS_MAX]


def _readable(octets: bytes) -> str:
    text = octets[:REPLY_TEXT_CHARS_MAX].decode("utf-8", "replace")
    return (text if text.isprintable() else _CONTROL.sub(" ", text)).strip()
