"""A scripted SMTP server: for each phase what it answers, or how it fails.

A script maps a phase (`banner ehlo starttls auth rset mail rcpt data body dot quit idle`) to an
action or to a list of actions, one for each time that the phase is reached, the last one repeated.
An action is a reply (text, sent with CRLF), raw octets, or one of the failures below.  `body` acts
when the text begins to arrive, `idle` right after the reply to a dot.

`served_max` bounds the connections that are served; one more is refused as large providers do it.
The server counts connections and keeps what it accepted, and `reached` lets a test wait for an
event instead of sleeping.  At the end stands what a test needs to send one mail to it.
"""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from uuid import UUID

from taskq.errors import Snooze, TaskError
from taskq.mail.address import parse_mailbox
from taskq.mail.compose import Draft, compose
from taskq.mail.envelope import Envelope
from taskq.mail.handshake import TimeLimits
from taskq.mail.options import RelayOptions
from taskq.mail.pool import PoolLimits
from taskq.mail.relay import Relay
from taskq.mail.server import parse_server

WAIT_S = 60.0  # of a wait that is over in a moment, or never
UID = UUID("01890a5d-ac96-774b-bcce-b302099a8057")
CREATED = datetime(2024, 2, 29, 7, 5, 9, tzinfo=UTC)
PATIENT = TimeLimits(connect_s=20, hello_s=20, command_s=20, body_s=20, dot_s=20)


@dataclass(frozen=True)
class Drop:
    """Close, after a last reply where there is one."""

    reply: str = ""


@dataclass(frozen=True)
class Reset:
    """Close with a TCP RST."""


@dataclass(frozen=True)
class Hang:
    """Say nothing and keep the connection open."""


@dataclass(frozen=True)
class Hold:
    """Go on with `reply`, or without one where it is empty, once the event is set."""

    event: asyncio.Event
    reply: str


Action = str | bytes | Drop | Reset | Hang | Hold

DEFAULTS: dict[str, Action] = {
    "banner": "220 script.test ESMTP",
    "starttls": "220 go ahead",
    "auth": "235 2.7.0 welcome",
    "rset": "250 2.0.0 cleared",
    "mail": "250 2.1.0 sender fine",
    "rcpt": "250 2.1.5 recipient fine",
    "data": "354 go on",
    "dot": "250 2.0.0 Ok: queued as SCRIPT1",
    "quit": "221 2.0.0 bye",
}


@dataclass
class Mail:
    sender: str
    recipient: str
    message: bytes
    connection: int


class _Over(Exception):
    """This connection is finished."""


@dataclass
class ScriptedServer:
    script: Mapping[str, Action | list[Action]] = field(default_factory=dict)
    extensions: tuple[str, ...] = ("PIPELINING", "SIZE 1000000", "ENHANCEDSTATUSCODES")
    starttls: ssl.SSLContext | None = None
    tls: ssl.SSLContext | None = None
    port: int = 0
    commands: list[str] = field(default_factory=list)
    mails: list[Mail] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    connections: int = 0
    connections_peak: int = 0
    connections_total: int = 0
    served_max: int | None = None
    served: int = 0
    served_peak: int = 0
    refused: int = 0

    def __post_init__(self) -> None:
        self._changed = asyncio.Condition()
        self._servers: list[asyncio.Server] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._handlers: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"smtp://127.0.0.1:{self.port}"

    async def start(self) -> None:
        # Named as TCP, because asyncio turns Nagle's algorithm off only then.
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)  # so that a large upload fills the pipe
        listening.bind(("127.0.0.1", self.port))
        server = await asyncio.start_server(self._serve, sock=listening, ssl=self.tls)
        self._servers.append(server)
        self.port = server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse connections and cut those that are open."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        for handler in tuple(self._handlers):
            handler.cancel()
        if self._handlers:
            await asyncio.wait(self._handlers, timeout=WAIT_S)

    async def reached(self, what: str, count: int = 1) -> None:
        """Wait until a phase was reached (or `connected`, `disconnected` happened) so many times."""
        async with asyncio.timeout(WAIT_S), self._changed:
            await self._changed.wait_for(lambda: self.counts[what] >= count)

    async def settled(self, connections: int = 0) -> None:
        """Wait until no more than so many connections are open."""
        async with asyncio.timeout(WAIT_S), self._changed:
            await self._changed.wait_for(lambda: self.connections <= connections)

    async def _note(self, what: str) -> int:
        async with self._changed:
            self.counts[what] += 1
            self._changed.notify_all()
        return self.counts[what]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        self.connections += 1
        self.connections_total += 1
        self.connections_peak = max(self.connections_peak, self.connections)
        await self._note("connected")
        try:
            await self._serve_some(_Session(self, reader, writer, self.connections_total))
        except (_Over, ConnectionError, asyncio.IncompleteReadError, ssl.SSLError, TimeoutError):
            pass
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            self.connections -= 1
            self._handlers.discard(task)
            writer.transport.abort()
            await self._note("disconnected")

    async def _serve_some(self, session: "_Session") -> None:
        if self.served_max is not None and self.served >= self.served_max:
            self.refused += 1
            session.writer.write(b"421 4.7.0 too many connections\r\n")
            await session.writer.drain()
            return
        self.served += 1
        self.served_peak = max(self.served_peak, self.served)
        try:
            await session.run()
        finally:
            self.served -= 1

    def action(self, phase: str, count: int) -> Action:
        scripted = self.script.get(phase)
        if isinstance(scripted, list):
            scripted = scripted[min(count, len(scripted)) - 1]
        if scripted is None:
            return "\r\n".join(self._hello()) if phase == "ehlo" else DEFAULTS[phase]
        return scripted

    def _hello(self) -> list[str]:
        extensions = [*self.extensions, *(["STARTTLS"] if self.starttls else [])]
        lines = ["script.test", *extensions]
        return [f"250{' ' if at == len(lines) - 1 else '-'}{line}" for at, line in enumerate(lines)]


class _Session:
    def __init__(
        self, server: ScriptedServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        self.server = server
        self.reader = reader
        self.writer = writer
        self.number = number
        self.sender = ""
        self.recipient = ""

    async def run(self) -> None:
        await self.act("banner")
        while line := await self.reader.readline():
            command = line.decode("utf-8").rstrip("\r\n")
            self.server.commands.append(command)
            verb = command.split(" ")[0].lower()
            if verb == "starttls":
                await self.act("starttls")
                if self.server.starttls is None:  # promises TLS and then speaks none
                    await self.reader.read(1)
                    self.writer.write(b"250 this is no TLS record\r\n")
                    return
                await self.writer.start_tls(self.server.starttls)
                continue
            if verb == "mail":
                self.sender = command.partition("<")[2].partition(">")[0]
            elif verb == "rcpt":
                self.recipient = command.partition("<")[2].partition(">")[0]
            code = await self.act(verb)
            if verb == "quit":
                return
            if verb == "data" and code == "354":
                await self.text()

    async def text(self) -> None:
        text = bytearray()
        if "body" in self.server.script:
            text += await self.reader.read(65_536)
            await self.act("body")
        while not text.endswith(b"\r\n.\r\n"):
            chunk = await self.reader.read(65_536)
            if not chunk:
                raise _Over
            text += chunk
        body = bytes(text).removesuffix(b".\r\n")
        if body.startswith(b".."):
            body = body[1:]
        if await self.act("dot") == "250":
            message = body.replace(b"\r\n..", b"\r\n.")
            self.server.mails.append(Mail(self.sender, self.recipient, message, self.number))
        if "idle" in self.server.script:
            await self.act("idle")

    async def act(self, phase: str) -> str:
        """Do what the script says and return the code of the reply."""
        action = self.server.action(phase, await self.server._note(phase))
        if isinstance(action, Hold):
            await action.event.wait()
            action = action.reply
        match action:
            case "":
                return ""
            case str():
                self.writer.write(action.encode() + b"\r\n")
                return action[:3]
            case bytes():
                self.writer.write(action)
                return ""
            case Drop(reply):
                if reply:
                    self.writer.write(reply.encode() + b"\r\n")
                    await self.writer.drain()
                self.writer.close()
                raise _Over
            case Reset():
                raw = self.writer.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.writer.transport.abort()
                raise _Over
            case Hang():
                await self.reader.read(-1)  # until the client gives up
                raise _Over


@contextlib.asynccontextmanager
async def scripted(
    script: Mapping[str, Action | list[Action]] | None = None, **options: object
) -> AsyncIterator[ScriptedServer]:
    """Run a scripted server on a free loopback port."""
    server = ScriptedServer(script or {}, **options)  # type: ignore[arg-type]
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def envelope(body: str = "text", recipient: str = "ada@ok.test") -> Envelope:
    sender, to = parse_mailbox("taskq@example.com"), parse_mailbox(recipient)
    draft = Draft(sender, (to,), "hi", UID, CREATED, body)
    return Envelope(str(sender), str(to), compose(draft), draft.smtputf8, 7)


def relay_of(server: ScriptedServer, *, limits: TimeLimits = PATIENT, **pool: float) -> Relay:
    """A relay with patience, and the bounds of its pool by name."""
    options = RelayOptions(pool=replace(PoolLimits(), **pool))  # type: ignore[arg-type]
    return Relay(parse_server(server.url), options=options, limits=limits)


async def outcome(relay: Relay, mail: Envelope | None = None) -> Snooze | TaskError | None:
    try:
        await relay.send(mail or envelope(), contextlib.nullcontext)
    except (Snooze, TaskError) as error:
        return error
    return None
