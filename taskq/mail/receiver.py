"""The SMTP listener of the inbox: what other programs of this machine send lands there too.

It listens on the loopback only, without a password: whoever can reach it can already reach the
inbox.  A reply of 250 means that the mail is committed.  `dialogue` decides what is said; here are
the sockets, the time limits and the number of connections.

Octets are read only while the dialogue has use for them, so a client that sends faster than
PostgreSQL stores is slowed down by TCP.
"""

import asyncio
import contextlib
import logging
import socket

from taskq.errors import ConfigError, StoreRefused, StoreUnavailable
from taskq.mail.dialogue import Dialogue, Received
from taskq.mail.mailbox import Mailbox
from taskq.mail.reader import subject_of
from taskq.mailstore import CapturedMail

__all__ = ["Receiver"]

logger = logging.getLogger("taskq.mail.receiver")

HOST = "127.0.0.1"
CONNECTIONS_MAX = 20
IDLE_S = 300.0  # RFC 5321 §4.5.3.2.7
WRITE_S = 60.0
READ_OCTETS = 256 * 1024


class Receiver:
    """Takes mails over SMTP and captures them."""

    def __init__(self, port: int, mailbox: Mailbox) -> None:
        """Take the port.

        Args:
            port: Where to listen; 0 picks a free one.
            mailbox: Where mails go.

        Raises:
            ConfigError: The port can't be used.
        """
        self._mailbox = mailbox
        self._open = 0
        try:
            self._listening = socket.create_server((HOST, port), family=socket.AF_INET)
        except OSError as error:
            raise ConfigError(
                f"can't take mails on {HOST}:{port} ({error.strerror}): change inbox_smtp_port, 0 picks a free one"
            ) from None

    @property
    def place(self) -> str:
        """Where it listens, such as `127.0.0.1:1025`."""
        host, port = self._listening.getsockname()
        return f"{host}:{port}"

    async def run(self) -> None:
        """Serve until cancelled; sessions under way are cut."""
        async with asyncio.TaskGroup() as sessions:

            def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                sessions.create_task(self._serve(reader, writer))

            server = await asyncio.start_server(connected, sock=self._listening, limit=READ_OCTETS)
            try:
                await asyncio.get_running_loop().create_future()  # which nobody resolves
            finally:
                server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hold one session."""
        self._open += 1
        dialogue = Dialogue(socket.gethostname())
        try:
            if self._open > CONNECTIONS_MAX:
                await _write(writer, dialogue.end(f"{CONNECTIONS_MAX} connections are open already").octets)
            else:
                await self._converse(dialogue, reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            logger.debug("SMTP session was cut", extra={"error": str(error)})
        finally:
            self._open -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _converse(self, dialogue: Dialogue, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            last = await self._answer(dialogue, writer)
            if last:
                return
            try:
                async with asyncio.timeout(IDLE_S):
                    octets = await reader.read(READ_OCTETS)
            except TimeoutError:
                await _write(writer, dialogue.end(f"nothing came for {IDLE_S:g} s").octets)
                return
            if not octets:
                return
            dialogue.feed(octets)

    async def _answer(self, dialogue: Dialogue, writer: asyncio.StreamWriter) -> bool:
        """Do all that can be done now, with one write for replies that may go together; True: it is over."""
        replies = bytearray()
        while (step := dialogue.step()) is not None:
            if isinstance(step, Received):
                step = dialogue.stored(kept=await self._store(step))
            replies += step.octets
            if step.last:
                await _write(writer, replies)
                return True
        if replies:
            await _write(writer, replies)
        return False

    async def _store(self, mail: Received) -> bool:
        subject = subject_of(mail.message)
        mails = [CapturedMail(None, mail.sender, to, subject, mail.message) for to in mail.recipients]
        try:
            await self._mailbox.capture(*mails)
        except (StoreUnavailable, StoreRefused) as error:
            logger.warning("a mail could not be captured", extra={"error": str(error)})
            return False
        return True


async def _write(writer: asyncio.StreamWriter, octets: bytes | bytearray) -> None:
    writer.write(octets)
    async with asyncio.timeout(WRITE_S):
        await writer.drain()
