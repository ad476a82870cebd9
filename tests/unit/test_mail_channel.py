import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.mail.channel import REPLY_OCTETS_MAX, Broken, Channel, Reply
from taskq.mail.classify import Event


class FakeTransport(asyncio.Transport):
    """Keeps what is written; ends like a real one."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closing = False
        self.protocol: asyncio.BaseProtocol | None = None

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert (high, low) == (1, 0)

    def write(self, data: object) -> None:
        assert isinstance(data, bytes)
        self.written += data

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.closing = True


@pytest.fixture
async def channel() -> Channel:
    return Channel(FakeTransport())


def transport(channel: Channel) -> FakeTransport:
    assert isinstance(channel._transport, FakeTransport)
    return channel._transport


async def failure(channel: Channel, limit_s: float = 1.0) -> Broken:
    with pytest.raises(Broken) as caught:
        await channel.reply(limit_s)
    return caught.value


async def test_channel_pairs_replies_with_pipelined_commands(channel: Channel) -> None:
    channel.send(b"A\r\nB\r\nC\r\n", replies=3)
    channel.data_received(b"250 one\r\n550 5.1.1 two\r\n35")
    channel.data_received(b"4 three\r\n")

    replies = [await channel.reply(1) for _ in range(3)]

    assert transport(channel).written == b"A\r\nB\r\nC\r\n"
    assert replies == [Reply(250, "one"), Reply(550, "5.1.1 two"), Reply(354, "three")]
    assert replies[1].enhanced == "5.1.1"
    assert replies[0].enhanced == ""
    assert channel.in_step


async def test_channel_wakes_a_reader_when_the_reply_comes(channel: Channel) -> None:
    channel.send(b"A\r\n", replies=1)

    async with asyncio.TaskGroup() as group:
        reading = group.create_task(channel.reply(5))
        await asyncio.sleep(0)
        assert not reading.done()
        channel.resume_writing()  # no reply, so the reader goes on waiting
        await asyncio.sleep(0)
        channel.data_received(b"250 ok\r\n")

    assert reading.result() == Reply(250, "ok")


async def test_channel_joins_a_reply_of_several_lines_and_its_enhanced_code(channel: Channel) -> None:
    channel.send(b"A\r\n", replies=1)
    channel.data_received(b"550-5.7.1 Our system\r\n550-5.7.1 thinks\r\n550 5.7.1 you\x07spam\n")

    assert await channel.reply(1) == Reply(550, "5.7.1 Our system thinks you spam")


async def test_channel_accepts_a_reply_without_text(channel: Channel) -> None:
    channel.send(b"A\r\nB\r\n", replies=2)
    channel.data_received(b"250\r\n250 \r\n")

    assert [await channel.reply(1), await channel.reply(1)] == [Reply(250, ""), Reply(250, "")]


@pytest.mark.parametrize(
    "octets",
    [
        b"hello\r\n",
        b"25 x\r\n",
        b"650 x\r\n",
        b"2500 x\r\n",
        b"\r\n",
        b"250-a\r\n251 b\r\n",
        b"\xff\xfe\n",
        b"\xb2\xb3\xb4 x\n",
    ],
)
async def test_channel_breaks_on_what_is_no_reply(channel: Channel, octets: bytes) -> None:
    channel.send(b"A\r\n", replies=1)
    channel.data_received(octets)

    assert (await failure(channel)).event is Event.GARBAGE
    assert transport(channel).closing
    assert not channel.in_step


@pytest.mark.parametrize("octets", [b"x" * 1_000, b"250-" + b"x" * 996 + b"\r\n"])
async def test_channel_breaks_on_an_endless_reply(channel: Channel, octets: bytes) -> None:
    channel.send(b"A\r\n", replies=1)
    for _ in range(REPLY_OCTETS_MAX // 1_000 + 1):
        channel.data_received(octets)

    assert (await failure(channel)).event is Event.GARBAGE


async def test_channel_breaks_when_the_server_speaks_unasked(channel: Channel) -> None:
    channel.data_received(b"421 4.4.2 idle too long\r\n")

    assert not channel.in_step
    channel.send(b"A\r\n", replies=1)
    broken = await failure(channel)
    assert broken.event is Event.LOST
    assert "idle too long" in str(broken)
    assert transport(channel).written == b""


async def test_channel_gives_the_last_reply_before_the_end(channel: Channel) -> None:
    channel.send(b"A\r\nB\r\n", replies=2)
    channel.data_received(b"421 4.3.2 shutting down\r\n")
    assert channel.eof_received() is False
    channel.connection_lost(None)

    assert (await channel.reply(1)).code == 421
    assert (await failure(channel)).event is Event.LOST
    assert channel.closed.done()


async def test_channel_names_the_error_that_ended_it(channel: Channel) -> None:
    channel.send(b"A\r\n", replies=1)
    channel.connection_lost(ConnectionResetError("reset by peer"))
    channel.connection_lost(None)

    assert "reset by peer" in str(await failure(channel))


async def test_channel_reports_a_limit(channel: Channel) -> None:
    channel.send(b"A\r\n", replies=1)

    broken = await failure(channel, 0.01)

    assert broken.event is Event.HUNG
    assert "0.01 s" in str(broken)
    assert not channel.in_step


async def test_channel_is_out_of_step_after_a_cancelled_wait(channel: Channel) -> None:
    channel.send(b"A\r\n", replies=1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await channel.reply(5)

    assert not channel.in_step


async def test_drain_waits_until_everything_is_written(channel: Channel) -> None:
    channel.pause_writing()

    async with asyncio.TaskGroup() as group:
        draining = group.create_task(channel.drain(5))
        await asyncio.sleep(0)
        assert not draining.done()
        channel.resume_writing()

    assert draining.result() is True
    assert await channel.drain(5) is True


async def test_drain_ends_when_an_early_reply_comes(channel: Channel) -> None:
    channel.send(b"text", replies=1)
    channel.pause_writing()
    channel.data_received(b"552 5.3.4 too big\r\n")

    assert await channel.drain(5) is False
    channel.connection_lost(None)
    assert await channel.drain(5) is False


async def test_drain_fails_when_the_connection_is_lost(channel: Channel) -> None:
    channel.pause_writing()
    channel.connection_lost(None)

    with pytest.raises(Broken):
        await channel.drain(5)


async def test_drain_has_a_limit(channel: Channel) -> None:
    channel.pause_writing()

    with pytest.raises(Broken) as caught:
        await channel.drain(0.01)
    assert caught.value.event is Event.HUNG


async def test_retire_says_quit_and_closes_on_the_answer(channel: Channel) -> None:
    channel.retire(60)

    assert transport(channel).written == b"QUIT\r\n"
    assert not transport(channel).closing
    channel.data_received(b"221 bye\r\n")
    assert transport(channel).closing
    channel.connection_lost(None)


async def test_retire_closes_without_an_answer_when_its_limit_passes(channel: Channel) -> None:
    channel.retire(0.01)
    async with asyncio.timeout(5):
        while not transport(channel).closing:
            await asyncio.sleep(0)


async def test_retire_says_nothing_when_out_of_step(channel: Channel) -> None:
    channel.send(b"A\r\n", replies=1)
    channel.retire(60)

    assert transport(channel).written == b"A\r\n"
    assert transport(channel).closing
    channel.data_received(b"250 late\r\n")


def test_reply_made_of_another_readers_parts_is_made_harmless_too() -> None:
    reply = Reply.of(550, "5.7.1 one\x1b[31m\n5.7.1 two\udcff" + "x" * 2_000)

    assert reply.text.startswith("5.7.1 one [31m two")
    assert len(reply.text) == 500
    assert str(reply).startswith("550 5.7.1")


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
async def test_channel_reads_the_same_however_the_stream_is_cut(octets: bytes, cuts: list[int]) -> None:
    async def read(parts: list[bytes]) -> list[object]:
        channel = Channel(FakeTransport())
        channel.send(b"", replies=1_000)
        for part in parts:
            channel.data_received(part)
        channel.connection_lost(None)
        seen: list[object] = []
        try:
            while True:
                seen.append(await channel.reply(1))
        except Broken as broken:
            return [*seen, broken.event, str(broken)]

    edges = sorted({0, len(octets), *(min(cut, len(octets)) for cut in cuts)})
    parts = [octets[a:b] for a, b in itertools.pairwise(edges)]
    assert await read(parts) == await read([octets])
