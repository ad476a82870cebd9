"""What each answer of a relay, or the lack of one, means for the task (research: mail §2.2, §2.3)."""

import asyncio
from contextlib import nullcontext

import pytest
from smtp_script import Action, Drop, Hold, Reset, envelope, outcome, relay_of, scripted

from taskq.errors import Snooze, TaskError
from taskq.mail.handshake import TimeLimits

SHORT = TimeLimits(connect_s=0.3, hello_s=0.3, command_s=0.3, body_s=0.3, dot_s=0.3)

both_paths = pytest.mark.parametrize(
    "extensions", [("PIPELINING", "SIZE 1000000"), ()], ids=["pipelined", "one-by-one"]
)


@both_paths
async def test_send_delivers_exactly_the_composed_bytes(extensions: tuple[str, ...]) -> None:
    mail = envelope("a line\n.leading dot\n..two\n.\nend" + "\nmore" * 40_000)

    async with scripted(extensions=extensions) as server:
        relay = relay_of(server)
        receipt = await relay.send(mail, nullcontext)
        await relay.close()

    assert server.mails[0].message == mail.message
    assert (server.mails[0].sender, server.mails[0].recipient) == ("taskq@example.com", "ada@ok.test")
    assert (receipt.code, receipt.text, receipt.remote_id) == (250, "2.0.0 Ok: queued as SCRIPT1", "SCRIPT1")
    assert receipt.relay == server.url
    assert server.counts["quit"] == 1


LARGE = "x" * 70 + ("\n" + "y" * 70) * 100_000  # more than the sockets on the way can hold


async def test_send_reports_a_refusal_that_comes_during_the_upload() -> None:
    gate = asyncio.Event()
    script: dict[str, Action | list[Action]] = {"body": ["552 5.3.4 enough", Hold(gate, "")]}
    async with scripted(script, extensions=("PIPELINING",)) as server:
        relay = relay_of(server)
        error = await outcome(relay, envelope(LARGE))
        await relay.close()

    assert isinstance(error, TaskError)
    assert not error.retryable
    assert "552 5.3.4 enough" in str(error)


@pytest.mark.parametrize("mail_reply", ["550 5.7.1 not you", "450 4.1.8 odd"])
async def test_send_writes_no_text_when_data_is_accepted_after_a_refused_sender(mail_reply: str) -> None:
    """The old sender's transaction would carry the new text (mail §3.3)."""
    async with scripted({"mail": [mail_reply, "250 ok"]}) as server:
        relay = relay_of(server)
        first = await outcome(relay)
        await server.settled()
        second = await outcome(relay)
        await relay.close()

    assert isinstance(first, TaskError)
    assert second is None
    assert server.counts["dot"] == 1
    assert server.connections_total == 2


async def test_send_closes_when_data_is_accepted_after_a_refused_recipient() -> None:
    async with scripted({"rcpt": ["550 5.1.1 nobody", "250 ok"]}) as server:
        relay = relay_of(server)
        first = await outcome(relay)
        await server.settled()
        second = await outcome(relay)
        await relay.close()

    assert isinstance(first, TaskError)
    assert not first.retryable
    assert second is None
    assert server.counts["dot"] == 1


@both_paths
async def test_send_clears_a_refused_transaction_before_the_next(extensions: tuple[str, ...]) -> None:
    script: dict[str, Action | list[Action]] = {
        "rcpt": ["550 5.1.1 nobody", "250 ok"],
        "data": ["554 5.5.1 no valid recipients", "354 go on"] if extensions else "354 go on",
    }
    async with scripted(script, extensions=extensions) as server:
        relay = relay_of(server)
        first = await outcome(relay)
        second = await outcome(relay)
        await relay.close()

    assert isinstance(first, TaskError)
    assert "550 5.1.1 nobody" in str(first)
    assert second is None
    assert server.connections_total == 1
    verbs = [command.split(" ")[0] for command in server.commands]
    assert verbs.index("RSET") < len(verbs) - 1 - verbs[::-1].index("MAIL")
    assert verbs.count("RSET") == 1


async def test_send_keeps_the_refusal_when_the_connection_breaks_after_it() -> None:
    async with scripted({"rcpt": Drop("550 5.1.1 nobody")}) as server:
        relay = relay_of(server)
        error = await outcome(relay)
        await relay.close()

    assert isinstance(error, TaskError)
    assert not error.retryable


STALE: list[tuple[str, dict[str, Action | list[Action]]]] = [
    ("closed while idle", {"idle": [Drop(), "250-ignored"]}),
    ("reset while idle", {"idle": [Reset(), "250-ignored"]}),
    ("spoke while idle", {"idle": [Drop("421 4.4.2 idle"), "250-ignored"]}),
    ("421 to MAIL", {"mail": ["250 ok", "421 4.3.0 maximum message count reached", "250 ok"]}),
    ("451 4.4.2 to MAIL", {"mail": ["250 ok", "451 4.4.2 timeout waiting for data from client", "250 ok"]}),
    ("dropped at MAIL", {"mail": ["250 ok", Drop(), "250 ok"]}),
    ("421 to RCPT", {"rcpt": ["250 ok", "421 4.3.0 too many", "250 ok"]}),
    ("503 to MAIL", {"mail": ["250 ok", "503 5.5.1 nested", "250 ok"]}),
]


@both_paths
@pytest.mark.parametrize(("_name", "script"), STALE, ids=[name for name, _ in STALE])
async def test_send_replaces_a_stale_connection_free_of_charge(
    _name: str, script: dict[str, Action | list[Action]], extensions: tuple[str, ...]
) -> None:
    async with scripted(script, extensions=extensions) as server:
        relay = relay_of(server)
        assert await outcome(relay) is None
        assert await outcome(relay) is None
        await relay.close()

    assert len(server.mails) == 2
    assert server.connections_total == 2


async def test_send_does_not_reopen_twice() -> None:
    async with scripted({"mail": ["250 ok", Drop()]}) as server:
        relay = relay_of(server)
        assert await outcome(relay) is None
        error = await outcome(relay)
        await relay.close()

    assert isinstance(error, Snooze)
    assert server.connections_total == 2


async def test_send_never_repeats_a_mail_by_itself_after_the_dot() -> None:
    async with scripted({"dot": ["250 ok", Drop()]}) as server:
        relay = relay_of(server)
        assert await outcome(relay) is None
        error = await outcome(relay)
        await relay.close()

    assert isinstance(error, TaskError)
    assert "ambiguous" in str(error)
    assert server.counts["dot"] == 2
