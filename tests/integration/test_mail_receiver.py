"""The SMTP listener with real clients: what they send lies in the inbox, committed."""

import asyncio
import contextlib
import shutil
import smtplib
import socket
from collections.abc import AsyncIterator
from email.message import EmailMessage
from typing import Any

import aiosmtplib
import pytest

from taskq.errors import ConfigError
from taskq.mail import receiver as module
from taskq.mail.mailbox import Mailbox
from taskq.mail.receiver import Receiver
from taskq.mailstore import MailStore, StoredMail, Wanted

LAST = 2**63 - 1
SMTP_SOURCE = "/usr/sbin/smtp-source"


@contextlib.asynccontextmanager
async def receiving(mails: MailStore) -> AsyncIterator[tuple[str, int]]:
    mailbox = Mailbox(mails, waiters_max=10, tell_others=lambda _channel, _text: None)
    receiver = Receiver(0, mailbox)
    host, _, port = receiver.place.partition(":")
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(mailbox.run()), group.create_task(receiver.run())]
        yield host, int(port)
        for task in running:
            task.cancel()


@pytest.fixture
async def place(mails: MailStore):
    async with receiving(mails) as place:
        yield place


async def inbox(mails: MailStore) -> list[StoredMail]:
    return list(reversed(await mails.search(Wanted(), before=LAST, limit=100)))


def message() -> EmailMessage:
    made = EmailMessage()
    made["From"] = "Shop <shop@x.test>"
    made["To"] = "ada@x.test"
    made["Subject"] = "Grüße"
    made.set_content(".dot\n..\nüber\n")
    return made


async def test_smtplib_delivers_to_every_recipient(mails: MailStore, place: tuple[str, int]):
    def send() -> None:
        with smtplib.SMTP(*place, timeout=20) as client:
            client.send_message(message(), "shop@x.test", ["ada@x.test", "bob@x.test"])
            client.send_message(message(), "shop@x.test", ["eve@x.test"])

    await asyncio.to_thread(send)

    stored = await inbox(mails)
    assert [(each.task_id, each.sender, each.recipient, each.subject) for each in stored] == [
        (None, "shop@x.test", "ada@x.test", "Grüße"),
        (None, "shop@x.test", "bob@x.test", "Grüße"),
        (None, "shop@x.test", "eve@x.test", "Grüße"),
    ]
    assert stored[0].message.endswith(b"\r\n.dot\r\n..\r\n=C3=BCber\r\n") or b"\r\n.dot\r\n..\r\n" in stored[0].message


async def test_aiosmtplib_delivers(mails: MailStore, place: tuple[str, int]):
    errors, text = await aiosmtplib.send(message(), hostname=place[0], port=place[1], start_tls=False)

    assert (errors, text) == ({}, "2.0.0 captured")
    assert [each.recipient for each in await inbox(mails)] == ["ada@x.test"]


async def test_postfix_own_client_delivers_many(mails: MailStore, place: tuple[str, int]):
    if shutil.which(SMTP_SOURCE) is None:
        pytest.skip("smtp-source is not installed: it comes with postfix")
    process = await asyncio.create_subprocess_exec(
        SMTP_SOURCE,
        "-s",
        "5",
        "-m",
        "200",
        "-l",
        "1000",
        "-f",
        "a@x.test",
        "-t",
        "ada@x.test",
        f"{place[0]}:{place[1]}",
    )

    assert await process.wait() == 0
    stored = await inbox(mails)
    assert len(stored) == 100
    assert {(each.sender, each.recipient) for each in stored} == {("a@x.test", "ada@x.test")}
    assert len(await mails.search(Wanted(), before=stored[0].id, limit=100)) == 100


async def converse(place: tuple[str, int], octets: bytes) -> list[bytes]:
    """Write everything at once, as no client should; return the replies until the end."""
    reader, writer = await asyncio.open_connection(*place)
    writer.write(octets)
    await writer.drain()
    replies = (await reader.read()).splitlines()
    writer.close()
    await writer.wait_closed()
    return replies


async def test_everything_may_come_in_one_write(mails: MailStore, place: tuple[str, int]):
    one = b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nDATA\r\nSubject: Hi\r\n\r\nx\r\n.\r\n"

    replies = await converse(place, b"HELO me\r\n" + one * 3 + b"QUIT\r\n")

    assert [reply[:3] for reply in replies] == [b"220", b"250", *[b"250", b"250", b"354", b"250"] * 3, b"221"]
    assert [each.message for each in await inbox(mails)] == [b"Subject: Hi\r\n\r\nx\r\n"] * 3


async def test_reply_comes_after_the_commit(mails: MailStore, place: tuple[str, int], connection: Any):
    lock = connection.transaction()
    await lock.start()
    await connection.execute("lock table taskq.inbox")
    reader, writer = await asyncio.open_connection(*place)
    writer.write(b"HELO me\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nDATA\r\n")
    for _ in range(5):
        await reader.readline()
    writer.write(b"x\r\n.\r\n")

    reply = asyncio.ensure_future(reader.readline())
    done, _ = await asyncio.wait({reply}, timeout=0.3)
    assert not done
    await lock.rollback()

    assert (await reply).startswith(b"250 ")
    writer.close()
    await writer.wait_closed()


async def test_mail_is_put_off_while_the_database_refuses(mails: MailStore, place: tuple[str, int], connection: Any):
    await connection.execute("alter table taskq.inbox add constraint never check (recipient <> 'b@x.test')")

    replies = await converse(
        place, b"HELO me\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nDATA\r\nx\r\n.\r\nQUIT\r\n"
    )

    await connection.execute("alter table taskq.inbox drop constraint never")
    assert replies[-2].startswith(b"451 4.3.0 ")
    assert await inbox(mails) == []


async def test_connections_are_bounded_and_freed(
    mails: MailStore, place: tuple[str, int], monkeypatch: pytest.MonkeyPatch, eventually: Any
):
    monkeypatch.setattr(module, "CONNECTIONS_MAX", 1)
    first = await asyncio.open_connection(*place)
    assert (await first[0].readline()).startswith(b"220 ")

    assert (await converse(place, b"")) == [
        f"421 4.3.2 {socket.gethostname()}: 1 connections are open already".encode()
    ]
    first[1].close()
    await first[1].wait_closed()

    async def free() -> bool:
        return (await converse(place, b"QUIT\r\n"))[0].startswith(b"220 ")

    await eventually(free)


async def test_silent_client_is_sent_away(place: tuple[str, int], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "IDLE_S", 0.05)

    replies = await converse(place, b"")

    assert replies[1].startswith(b"421 4.3.2 ")
    assert b"nothing came for 0.05 s" in replies[1]


async def test_client_that_hangs_up_in_a_text_leaves_nothing(mails: MailStore, place: tuple[str, int]):
    reader, writer = await asyncio.open_connection(*place)
    writer.write(b"HELO me\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nDATA\r\nhalf a text\r\n")
    for _ in range(5):
        await reader.readline()
    writer.transport.abort()

    await converse(place, b"QUIT\r\n")

    assert await inbox(mails) == []


async def test_large_mail_arrives_whole(mails: MailStore, place: tuple[str, int]):
    made = message()
    made.add_attachment(bytes(range(256)) * 20_000, maintype="application", subtype="x", filename="x")

    await aiosmtplib.send(made, hostname=place[0], port=place[1], start_tls=False)

    [stored] = await inbox(mails)
    assert len(stored.message) > 5_000_000


def test_port_in_use_is_said_at_start(mails: MailStore):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        with pytest.raises(ConfigError, match=f"can't take mails on 127.0.0.1:{port} .*: change inbox_smtp_port"):
            Receiver(port, Mailbox(mails, waiters_max=1, tell_others=lambda _channel, _text: None))


async def test_listening_ends_with_the_service(mails: MailStore, eventually: Any):
    async with receiving(mails) as place:
        reader, writer = await asyncio.open_connection(*place)
        await reader.readline()

    assert await reader.read() == b""
    writer.close()

    async def refused() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(place) != 0

    await eventually(refused)
