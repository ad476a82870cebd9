"""Postfix's smtp-sink: a fast server that is not ours, in good and in bad health."""

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import UUID

import pytest

from taskq.context import Context
from taskq.errors import Snooze, TaskError
from taskq.kinds.email import Email, EmailPayload
from taskq.mail.relay import Relay
from taskq.mail.server import parse_server
from taskq.task import Run

CREATED = datetime(2024, 2, 29, 7, 5, 9, tzinfo=UTC)
INSTALLATION = UUID("01890a5d-ac96-774b-bcce-b302099a8057")
PAYLOAD = EmailPayload(to="ada@ok.test", subject="hi", body="x" * 1_000)


@asynccontextmanager
async def smtp_sink(*options: str) -> AsyncIterator[Relay]:
    program = shutil.which("smtp-sink", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    if program is None:
        pytest.skip("smtp-sink is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    account = ["-u", "nobody"] if os.geteuid() == 0 else []
    process = subprocess.Popen([program, *account, *options, f"127.0.0.1:{port}", "100"])
    relay = Relay(parse_server(f"smtp://127.0.0.1:{port}"))
    try:
        async with asyncio.timeout(60):  # until it listens
            while True:
                with socket.socket() as attempt:
                    if attempt.connect_ex(("127.0.0.1", port)) == 0:
                        break
                await asyncio.sleep(0)
        yield relay
    finally:
        await relay.close()
        process.kill()
        process.wait(10)


def context(number: int) -> Context:
    return Context(Run(number, 1, 1, "email", 1, 10, CREATED, ""), INSTALLATION)


@pytest.mark.parametrize("options", [(), ("-p",)], ids=["pipelined", "one-by-one"])
async def test_a_fast_relay_takes_every_mail_over_few_connections(options: tuple[str, ...]) -> None:
    async with smtp_sink(*options) as relay:
        email = Email(relay, "taskq@example.com")
        async with asyncio.TaskGroup() as group:
            for number in range(2_000):
                group.create_task(email(PAYLOAD, context(number)))

        assert relay._pool.connections <= 10


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (("-Q", "mail"), Snooze),
        (("-r", "rcpt"), TaskError),
        (("-q", "data"), TaskError),
        (("-q", "."), TaskError),
    ],
    ids=["421 at MAIL", "450 at RCPT", "dropped at DATA", "dropped at the dot"],
)
async def test_faults_have_their_own_consequence(options: tuple[str, ...], fault: type[Exception]) -> None:
    async with smtp_sink(*options) as relay:
        email = Email(relay, "taskq@example.com")
        with pytest.raises(fault) as caught:
            await email(PAYLOAD, context(1))

    assert ("ambiguous" in str(caught.value)) is ("." in options)
    if isinstance(caught.value, TaskError):
        assert caught.value.retryable
