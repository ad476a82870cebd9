"""The traps of the library below, each as a test that it is not stepped into.

All were reproduced against aiosmtplib: what it does silently, or leaves behind on a connection, would
send a mail to the wrong person, hide why one was refused, or lock an account.
"""

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import nullcontext

import pytest
from smtp_script import PATIENT, Action, Drop, Hang, Hold, envelope, outcome, relay_of, scripted

from taskq.errors import Snooze, TaskError
from taskq.mail.breaker import Breaker
from taskq.mail.envelope import Envelope
from taskq.mail.handshake import TimeLimits
from taskq.mail.options import RelayOptions
from taskq.mail.relay import Relay
from taskq.mail.server import parse_server
from taskq.mail.smtp import _stuffed

SHORT = TimeLimits(connect_s=0.3, hello_s=0.3, command_s=0.3, body_s=0.3, dot_s=0.3)
LARGE = "x" * 70 + ("\n" + "y" * 70) * 100_000  # more than the sockets on the way can hold


@pytest.mark.parametrize("phase", ["mail", "rcpt", "data", "dot"])
async def test_trap_1_cancellation_does_not_poison_the_next_mail(phase: str) -> None:
    """The late reply must never be taken for the answer to the next mail's command."""
    never = asyncio.Event()
    default = {"mail": "250 ok", "rcpt": "250 ok", "data": "354 go", "dot": "250 ok"}[phase]
    async with scripted({phase: [Hold(never, "550 5.1.1 late"), default]}) as server:
        relay = relay_of(server)
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(relay.send(envelope(), nullcontext))
            await server.reached(phase)
            sending.cancel()
        assert sending.cancelled()
        assert relay._pool.connections == 0
        never.set()
        assert await outcome(relay) is None
        await relay.close()

    assert len(server.mails) == 1
    assert server.counts["quit"] == 1  # the second connection's: the first was cut


@pytest.mark.parametrize("action", ["500 what", "421 bye", Drop(), Hang()])
async def test_trap_2_a_failing_rset_does_not_mask_the_verdict(action: Action) -> None:
    """A reset that fails must not hide why the mail before it was refused."""
    script: dict[str, Action | list[Action]] = {
        "rcpt": ["550 5.1.1 nobody", "250 ok"],
        "data": ["554 5.5.1 no valid recipients", "354 go on"],
        "rset": action,
    }
    async with scripted(script) as server:
        relay = relay_of(server, limits=SHORT if isinstance(action, Hang) else PATIENT)
        first = await outcome(relay)
        second = await outcome(relay)
        await relay.close()

    assert isinstance(first, TaskError)
    assert not first.retryable
    assert second is None
    assert server.connections_total == 2


@pytest.mark.parametrize("phase", ["mail", "rcpt", "data"])
async def test_trap_3_a_malformed_reply_does_not_poison_the_next_mail(phase: str) -> None:
    """The bytes that were no reply must not be read again."""
    default = {"mail": "250 ok", "rcpt": "250 ok", "data": "354 go"}[phase]
    async with scripted({phase: [b"garbage\r\n250 ok\r\n", default]}) as server:
        relay = relay_of(server)
        first = await outcome(relay)
        relay._breaker = Breaker()  # MAIL opens it for a second
        second = await outcome(relay)
        await relay.close()

    assert first is not None
    assert second is None
    assert server.connections_total == 2
    assert len(server.mails) == 1


@pytest.mark.parametrize(
    "recipient", ["b@x.test NOTIFY=NEVER", "b@x.test>\r\nRCPT TO:<c@x.test", "b@x.test\x00", "<b@x.test>"]
)
async def test_trap_4_addresses_are_not_mangled_but_refused(recipient: str) -> None:
    """aiosmtplib would repair it silently."""
    async with scripted() as server:
        relay = relay_of(server)
        with pytest.raises(ValueError, match=r"mail\.address"):
            await relay.send(Envelope("a@x.test", recipient, b"m\r\n", False, 7), nullcontext)
        assert await outcome(relay) is None
        await relay.close()

    assert server.counts["mail"] == 1


async def test_trap_5_an_address_beyond_ascii_is_refused_before_mail_is_sent() -> None:
    """The connection stays at rest, for the next mail."""
    mail = envelope(recipient="grüße@ok.test")
    async with scripted() as server:
        relay = relay_of(server)
        error = await outcome(relay, mail)
        assert server.connections_total == 1
        assert await outcome(relay) is None
        await relay.close()

    assert isinstance(error, TaskError)
    assert not error.retryable
    assert "SMTPUTF8" in str(error)
    assert server.connections_total == 1


async def test_trap_6_a_relay_without_starttls_gets_neither_password_nor_mail() -> None:
    """aiosmtplib's default would go on in plaintext."""
    async with scripted(extensions=("AUTH PLAIN",)) as server:
        relay = Relay(parse_server(f"smtp://user:secret@127.0.0.1:{server.port}?tls=starttls"), limits=PATIENT)
        error = await outcome(relay)
        await relay.close()

    assert isinstance(error, Snooze)
    assert "does not offer STARTTLS" in str(error)
    assert [command.split(" ")[0] for command in server.commands] == ["EHLO"]


async def test_trap_7_a_wrong_password_is_tried_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Three tries with each connection would lock the account."""
    caplog.set_level(logging.DEBUG)
    async with scripted(
        {"auth": "535 5.7.8 bad credentials"}, extensions=("PIPELINING", "AUTH CRAM-MD5 PLAIN LOGIN")
    ) as server:
        relay = Relay(parse_server(f"smtp://user:topsecret@127.0.0.1:{server.port}"), limits=PATIENT)
        errors = [await outcome(relay) for _ in range(20)]
        await relay.close()

    assert all(isinstance(error, Snooze) and error.delay_s > 290 for error in errors)
    assert [command.split(" ")[1] for command in server.commands if command.startswith("AUTH")] == ["PLAIN"]
    alerts = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(alerts) == 1
    assert "535" in alerts[0].getMessage()
    assert "topsecret" not in caplog.text
    assert "topsecret" not in "".join(map(str, errors))


async def test_trap_8_the_wait_for_the_dot_does_not_include_the_upload() -> None:
    """A slow reader costs upload time, not answer time."""
    release = asyncio.Event()
    async with scripted({"body": Hold(release, "")}, extensions=("PIPELINING",)) as server:
        relay = Relay(parse_server(server.url), limits=TimeLimits(body_s=10, dot_s=0.3))
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(relay.send(envelope(LARGE), nullcontext))
            await server.reached("body")
            asyncio.get_running_loop().call_later(0.6, release.set)
        await relay.close()

    assert sending.result().code == 250
    assert len(server.mails[0].message) > len(LARGE)


async def test_trap_9_name_and_tls_context_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name lookup in a thread, and 43 ms for a context, are no part of a connection."""
    made: list[object] = []
    make = ssl.create_default_context

    def counted(*args: object, **options: object) -> ssl.SSLContext:
        made.append(args)
        return make(*args, **options)  # type: ignore[arg-type]

    def asked(_name: str = "") -> str:
        raise AssertionError("the own name was looked up")

    monkeypatch.setattr(ssl, "create_default_context", counted)
    monkeypatch.setattr(socket, "getfqdn", asked)
    async with scripted() as server:
        relay = relay_of(server, age_s=0.0)
        assert [await outcome(relay) for _ in range(3)] == [None] * 3
        await relay.close()
        relay = Relay(parse_server(f"smtps://127.0.0.1:{server.port}"), options=RelayOptions(probe_s=0.0))
        errors = [await outcome(relay) for _ in range(3)]
        await relay.close()

    assert all(isinstance(error, Snooze) for error in errors)
    assert server.connections_total == 6
    assert len(made) == 1


def test_trap_10_doubling_dots_costs_no_more_than_a_few_copies() -> None:
    """aiosmtplib takes 11 ms per MB, on the event loop."""
    message = (b"." + b"x" * 74 + b"\r\n") * 130_000  # 10 MB, each line to be changed

    def cpu_s(function: Callable[[], object]) -> float:
        before = time.thread_time()
        function()
        return time.thread_time() - before

    plain_s = min(cpu_s(lambda: message.replace(b"\r\n.", b"\r\n..")) for _ in range(5))
    ours_s = min(cpu_s(lambda: _stuffed(message)) for _ in range(5))

    assert ours_s < 5 * plain_s + 0.01
