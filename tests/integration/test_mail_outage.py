"""A relay that does not work while a thousand mails wait: none fails, none loses an attempt, all arrive."""

import json
import logging
from collections.abc import Awaitable, Callable

import pytest
from pydantic import SecretStr
from rig import Connection, all_are, running, says
from smtp_script import Action, scripted

from taskq.config import Settings
from taskq.task import Status

CROWD = 1_000
PAYLOAD = json.dumps({"to": "ada@ok.test", "subject": "hi", "body": "text"})
Eventually = Callable[..., Awaitable[None]]


async def submit(connection: Connection, count: int) -> None:
    await connection.execute(
        "insert into taskq.task (id, kind, payload)"
        " select nextval('taskq.task_id'), 'email', $1 from generate_series(1, $2)",
        PAYLOAD,
        count,
    )


BROKEN: dict[str, tuple[str, Action, int]] = {
    "wrong password": ("auth", "535 5.7.8 bad credentials", logging.ERROR),
    "relay that refuses us": ("banner", "554 5.7.1 not you", logging.ERROR),
    "relay that is going down": ("banner", "421 4.3.2 not now", logging.WARNING),
}


@pytest.mark.parametrize("broken", BROKEN)
async def test_a_thousand_mails_outlast_a_broken_relay(
    broken: str,
    settings: Settings,
    connection: Connection,
    eventually: Eventually,
    caplog: pytest.LogCaptureFixture,
) -> None:
    phase, action, level = BROKEN[broken]
    await submit(connection, CROWD)
    async with scripted({phase: action}, extensions=("PIPELINING", "AUTH PLAIN")) as server:
        url = SecretStr(f"smtp://user:topsecret@127.0.0.1:{server.port}?name=main&probe_s=0.2")
        async with running(settings, smtp_url=url):
            tried = "select count(*) from taskq.task where run > 0"

            async def all_were_tried() -> bool:
                return await connection.fetchval(tried) == CROWD

            await eventually(all_were_tried)
            await eventually(says(lambda: server.counts["connected"] >= 3))  # it was looked at again
            counted = await connection.fetch("select distinct attempt, status from taskq.task where status <> 1")
            assert [tuple(each) for each in counted] == [(0, Status.PENDING)]
            alerts = [record for record in caplog.records if record.name == "taskq.mail"]
            assert [record.levelno for record in alerts] == [level]
            assert "topsecret" not in caplog.text

            server.script = {}
            await eventually(all_are(connection, {Status.OK: CROWD}))
            assert await connection.fetchval("select max(attempt) from taskq.task") == 1

    assert len(server.mails) == CROWD
