"""Sending past the suppression list: a scripted server behind a relay, and the list in a real database."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import nullcontext

import pytest
from rig import Connection
from smtp_script import Action, envelope, relay_of, scripted

from taskq.errors import Snooze, StoreUnavailable, TaskError
from taskq.mail.suppressing import Suppressing
from taskq.store import Store
from taskq.suppression import Suppressions

DAY_S = 86_400.0


@pytest.fixture
async def suppressions(store: Store) -> AsyncIterator[Suppressions]:
    listed = Suppressions(store.reads, copied_max=100, automatic_s=DAY_S)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(listed.run())
        yield listed
        running.cancel()


async def listed(connection: Connection) -> list[tuple[str, str, int]]:
    rows = await connection.fetch("select source, reason, task_id from taskq.suppression")
    return [(row[0], row[1], row[2]) for row in rows]


async def refusal(suppressions: Suppressions, script: dict[str, Action | list[Action]]) -> TaskError:
    """What comes of a mail to a server with this script."""
    async with scripted(script) as server:
        relay = Suppressing(relay_of(server), suppressions.lookup, suppressions.learn)
        with pytest.raises(TaskError) as caught:
            await relay.send(envelope(), nullcontext)
        await relay.close()
    return caught.value


async def test_mail_to_an_address_on_the_list_never_reaches_the_relay(suppressions: Suppressions) -> None:
    await suppressions.add("Ada@ok.test", reason="asked us", until=None)

    async with scripted({}) as server:
        relay = Suppressing(relay_of(server), suppressions.lookup, suppressions.learn)
        with pytest.raises(TaskError) as caught:
            await relay.send(envelope(), nullcontext)
        receipt = await relay.send(envelope(recipient="bob@ok.test"), nullcontext)
        await relay.close()

    assert (caught.value.retryable, caught.value.reason) == (False, "suppressed")
    assert "asked us" in str(caught.value)
    assert "DELETE /mail/suppressions/ada%40ok.test" in str(caught.value)
    assert receipt.code == 250
    assert len(server.mails) == 1


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("550 5.1.1 no such user", "550 5.1.1"),
        ("550 5.1.2 no such domain", "550 5.1.2"),
        ("550 5.1.6 moved", "550 5.1.6"),
        ("550 5.2.1 mailbox disabled", "550 5.2.1"),
        ("521 host takes no mail", "521"),
        ("556 5.1.10 domain takes no mail", "556 5.1.10"),
    ],
)
async def test_recipient_that_is_gone_is_not_written_to_again(
    suppressions: Suppressions, connection: Connection, reply: str, reason: str
) -> None:
    first = await refusal(suppressions, {"rcpt": reply})
    kept = await listed(connection)
    second = await refusal(suppressions, {})

    assert (first.retryable, first.reason) == (False, "permanent")
    assert reply in str(first)
    assert kept == [("bounce", reason, 7)]
    assert second.reason == "suppressed"


@pytest.mark.parametrize(
    "script",
    [
        {"rcpt": "550 5.7.1 relaying denied"},
        {"rcpt": "521 5.7.1 your network is blocked"},
        {"rcpt": "550 refused without a reason"},
        {"rcpt": "550 5.2.2 mailbox full"},
        {"rcpt": "450 4.1.1 not yet"},
        {"rcpt": "552 5.1.1 too much"},
        {"mail": "550 5.1.1 unknown sender"},
        {"data": "550 5.1.1 no valid recipients"},
        {"dot": "550 5.1.1 no such user"},
    ],
    ids=lambda script: " ".join(*script.items()),
)
async def test_any_other_refusal_suppresses_nobody(
    suppressions: Suppressions, connection: Connection, script: dict[str, Action | list[Action]]
) -> None:
    await refusal(suppressions, script)

    assert await listed(connection) == []


async def test_mail_waits_while_the_list_cannot_be_read(suppressions: Suppressions) -> None:
    async def away(_address: str) -> str | None:
        raise StoreUnavailable("gone")

    async with scripted({}) as server:
        relay = Suppressing(relay_of(server), away, suppressions.learn)
        with pytest.raises(Snooze, match="the suppression list can't be read"):
            await relay.send(envelope(), nullcontext)
        await relay.close()

    assert server.mails == []


async def test_refusal_keeps_its_words_when_it_cannot_be_learned(
    suppressions: Suppressions, caplog: pytest.LogCaptureFixture
) -> None:
    async def away(_address: str, *, reason: str, task_id: int) -> None:
        raise StoreUnavailable("gone")

    async with scripted({"rcpt": "550 5.1.1 no such user"}) as server:
        relay = Suppressing(relay_of(server), suppressions.lookup, away)
        with pytest.raises(TaskError, match="no such user"):
            await relay.send(envelope(), nullcontext)
        await relay.close()

    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == ["suppression_not_stored"]
