"""Sending mails: by taskq, and by what most programs do with the same library.

The two others are aiosmtplib with a message of the standard library: a connection for each mail, and
a connection for each worker.  They have nothing to read and nothing to settle; taskq takes its mails
from waiting tasks and writes each outcome down, and its time runs until storage shows the last one.
All say the same: a text and HTML of a kilobyte together.
"""

import asyncio
import time
import uuid
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from typing import Any
from urllib.parse import urlsplit

import aiosmtplib
import orjson

from taskq import sql
from taskq.bench.jobs import LATE_S, bench_session, only_submitting, until_finished
from taskq.bench.usage import Meter, cpu_here_s
from taskq.mail.address import Mailbox, parse_address
from taskq.mail.compose import Attachment, Draft, compose

__all__ = ["compose_mails", "drain_mails", "send_each_alone", "send_on_few"]

CONNECTIONS = 10
SENDER, RECIPIENT = "taskq@example.com", "ada@example.com"
SUBJECT = "Your order has been shipped"
TEXT = "Dear customer, your order has been shipped and will arrive in two or three days.\n" * 6
HTML = f"<html><body><h1>{SUBJECT}</h1>{'<p>Your order has been shipped, see it there.</p>' * 9}</body></html>"
FILE_BYTES = 1_000_000
COMPOSED_S = 0.3  # of each way, several times in turn, of which the fastest counts
COMPOSED_TIMES = 3

_Worker = Callable[[str, int, Callable[[], bool]], Coroutine[Any, Any, None]]
"""Sends to a host and a port for as long as it is told that a mail is left."""

_SQL = sql.load("bench")


def _mail_payload() -> dict[str, Any]:
    """Return what a mail of the bench is submitted as."""
    return {"to": RECIPIENT, "subject": SUBJECT, "body": TEXT, "html": HTML}


async def drain_mails(url: str, mails: int, dsn: str) -> dict[str, float]:
    """Send waiting mails by the parts of the service, until storage shows all of them Ok."""
    session = bench_session(dsn)
    await session.fetch(_SQL["fill_mails"], tasks=mails, payload=orjson.dumps(_mail_payload()).decode())
    await session.fetch(_SQL["analyze"])
    async with only_submitting(dsn, smtp_url=url, smtp_connections_max=CONNECTIONS, mail_from=SENDER) as parts:
        meter = Meter(session)
        await meter.start()
        dispatching = parts.group.create_task(parts.dispatcher.run())
        await until_finished(session)
        found = await meter.stop(mails)
        await parts.dispatcher.drain(LATE_S, asyncio.Event())
        await dispatching
    await session.close()
    return found | {"tasks": mails}


async def send_each_alone(url: str, mails: int) -> dict[str, float]:
    """Open a connection for each mail."""

    async def work(host: str, port: int, take: Callable[[], bool]) -> None:
        while take():
            await aiosmtplib.send(_message(), hostname=host, port=port, start_tls=False)

    return await _send(url, mails, work)


async def send_on_few(url: str, mails: int) -> dict[str, float]:
    """Open a connection for each worker, and send its mails on it."""

    async def work(host: str, port: int, take: Callable[[], bool]) -> None:
        async with aiosmtplib.SMTP(hostname=host, port=port, start_tls=False) as client:
            while take():
                await client.send_message(_message())

    return await _send(url, mails, work)


async def compose_mails() -> dict[str, float]:
    """Make the bytes of mails, by the standard library and by ours, with and without a file."""
    file = bytes(range(256)) * (FILE_BYTES // 256 + 1)
    ways: dict[str, Callable[[], object]] = {
        "message_us": lambda: _message().as_bytes(policy=SMTP),
        "draft_us": lambda: compose(_draft()),
        "message_file_us": lambda: _message(file[:FILE_BYTES]).as_bytes(policy=SMTP),
        "draft_file_us": lambda: compose(_draft(file[:FILE_BYTES])),
    }
    took = dict.fromkeys(ways, float("inf"))
    for _ in range(COMPOSED_TIMES):
        for name, make in ways.items():
            took[name] = min(took[name], _time_us(make))
    return {"message_us": took["message_us"], "draft_us": took["draft_us"]} | {
        "message_file_ms": took["message_file_us"] / 1e3,
        "draft_file_ms": took["draft_file_us"] / 1e3,
    }


async def _send(url: str, mails: int, work: _Worker) -> dict[str, float]:
    """Let workers send until `mails` are sent."""
    place, left = urlsplit(url), mails

    def take() -> bool:
        nonlocal left
        left -= 1
        return left >= 0

    began, cpu_before_s = time.perf_counter(), cpu_here_s()
    async with asyncio.TaskGroup() as group:
        for _ in range(CONNECTIONS):
            group.create_task(work(str(place.hostname), place.port or 0, take))
    return {
        "rate": mails / (time.perf_counter() - began),
        "app_us": (cpu_here_s() - cpu_before_s) / mails * 1e6,
        "tasks": mails,
    }


def _time_us(make: Callable[[], object]) -> float:
    times, began = 0, time.process_time()
    while (used := time.process_time() - began) < COMPOSED_S:
        make()
        times += 1
    return used / times * 1e6


def _message(file: bytes | None = None) -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = SENDER, RECIPIENT, SUBJECT
    message["Date"], message["Message-ID"] = datetime.now(UTC), f"<{uuid.uuid4()}@example.com>"
    message.set_content(TEXT)
    message.add_alternative(HTML, subtype="html")
    if file is not None:
        message.add_attachment(file, maintype="application", subtype="pdf", filename="invoice.pdf")
    return message


def _draft(file: bytes | None = None) -> Draft:
    sender, to = Mailbox("", parse_address(SENDER)), (Mailbox("", parse_address(RECIPIENT)),)
    draft = Draft(sender, to, SUBJECT, uuid.uuid4(), datetime.now(UTC), TEXT, HTML)
    if file is not None:
        draft.attachments = (Attachment("invoice.pdf", "application/pdf", file, None),)
    return draft
