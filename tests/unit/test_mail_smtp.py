"""One transaction against a transport that never blocks: what can't be timed against a real server."""

import asyncio
from contextlib import nullcontext

import pytest
from smtp_script import scripted

from taskq.mail import handshake
from taskq.mail.channel import Channel
from taskq.mail.classify import Phase, Ruling, Scope
from taskq.mail.envelope import Envelope
from taskq.mail.failure import SmtpFailure
from taskq.mail.handshake import TimeLimits
from taskq.mail.server import Server, Tls
from taskq.mail.smtp import Connection
from taskq.mail.trace import Trace

ENVELOPE = Envelope("a@x.test", "b@x.test", b"From: a@x.test\r\n\r\ntext\r\n", False, 1)


class FakeTransport(asyncio.Transport):
    """Answers each write from a list; None instead of an answer fails the write, as a reset does."""

    def __init__(self, answers: list[bytes | None]) -> None:
        super().__init__()
        self.answers = answers
        self.protocol: asyncio.Protocol | None = None
        self.written: list[bytes] = []
        self.closing = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self.protocol = protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def write(self, data: object) -> None:
        assert isinstance(data, bytes)
        self.written.append(data)
        answer = self.answers.pop(0)
        if answer is None:
            self.abort()
        elif self.protocol:
            self.protocol.data_received(answer)

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.closing = True


def connection_of(answers: list[bytes | None]) -> tuple[Connection, FakeTransport]:
    transport = FakeTransport(answers)
    return Connection(Channel(transport), {"pipelining": ""}, TimeLimits()), transport


async def test_a_mail_costs_two_writes() -> None:
    connection, transport = connection_of([b"250 a\r\n250 b\r\n354 c\r\n", b"250 taken\r\n"])

    reply = await connection.transact(ENVELOPE, nullcontext, Trace())

    assert reply.text == "taken"
    assert transport.written == [
        b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nDATA\r\n",
        b"From: a@x.test\r\n\r\ntext\r\n.\r\n",
    ]
    assert connection.usable


async def test_a_dot_that_was_never_written_is_not_ambiguous() -> None:
    connection, _ = connection_of([b"250 a\r\n250 b\r\n354 c\r\n", None])

    with pytest.raises(SmtpFailure) as caught:
        await connection.transact(ENVELOPE, nullcontext, Trace())

    assert caught.value.phase is Phase.BODY
    assert caught.value.verdict.ruling is Ruling.TRANSIENT
    assert not connection.usable


async def test_a_connection_lost_before_the_text_is_not_ambiguous() -> None:
    connection, transport = connection_of([b"250 a\r\n250 b\r\n354 c\r\n"])
    span_entered = False

    def span() -> nullcontext[None]:
        nonlocal span_entered
        span_entered = True
        return nullcontext()

    write = transport.write

    def write_and_lose(data: object) -> None:
        write(data)
        transport.abort()

    transport.write = write_and_lose  # type: ignore[method-assign]
    with pytest.raises(SmtpFailure) as caught:
        await connection.transact(ENVELOPE, span, Trace())

    assert caught.value.phase is Phase.BODY
    assert not span_entered


async def test_a_server_that_is_gone_as_soon_as_it_has_greeted_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    async def greeted(*_: object) -> None:
        """Leave the client as it is after a connection that has been lost meanwhile."""

    monkeypatch.setattr(handshake, "_set_up", greeted)
    async with scripted() as server:
        place = Server("127.0.0.1", server.port, Tls.OFF)
        with pytest.raises(SmtpFailure) as caught:
            await Connection.open(place, None, name="x.test", limits=TimeLimits(), trace=Trace())

    assert caught.value.verdict.scope is Scope.RELAY
