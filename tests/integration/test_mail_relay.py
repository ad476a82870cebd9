"""A relay in use: what it refuses to say, and how it behaves while its server does not work."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
from smtp_script import CREATED, PATIENT, UID, Action, Drop, Hold, envelope, outcome, relay_of, scripted

from taskq.context import Context
from taskq.errors import Snooze, TaskError
from taskq.kinds.email import Email, EmailPayload
from taskq.mail.breaker import Breaker
from taskq.mail.envelope import Envelope
from taskq.mail.relay import Relay
from taskq.mail.server import parse_server
from taskq.task import Run

EIGHT_BIT_NAMES = ("PIPELINING", "SMTPUTF8", "8BITMIME")


async def test_the_span_covers_exactly_the_dot_and_its_reply() -> None:
    inside = False

    @contextmanager
    def span() -> Iterator[None]:
        nonlocal inside
        inside = True
        yield
        inside = False

    gates = {phase: asyncio.Event() for phase in ("mail", "data", "dot")}
    replies = {"mail": "250 ok", "data": "354 go", "dot": "250 ok"}
    seen: dict[str, bool] = {}
    async with scripted({phase: Hold(gates[phase], replies[phase]) for phase in gates}, extensions=()) as server:
        relay = relay_of(server)
        async with asyncio.TaskGroup() as group:
            group.create_task(relay.send(envelope(), span))
            for phase, gate in gates.items():
                await server.reached(phase)
                seen[phase] = inside
                gate.set()
        await relay.close()

    assert seen == {"mail": False, "data": False, "dot": True}
    assert inside is False


async def test_the_handler_is_uninterruptible_only_past_the_dot() -> None:
    gate = asyncio.Event()
    context = Context(Run(7, 1, 1, "email", 1, 10, CREATED, ""), UID)
    async with scripted({"dot": Hold(gate, "250 ok")}) as server:
        relay = relay_of(server)
        payload = EmailPayload(to="ada@ok.test", subject="hi", body="text")
        async with asyncio.TaskGroup() as group:
            group.create_task(Email(relay, "taskq@example.com")(payload, context))
            await server.reached("dot")
            depth = not context.interruptible
            gate.set()
        await relay.close()

    assert depth
    assert context.interruptible


async def test_a_mail_larger_than_the_relay_takes_is_refused_before_anything_is_said() -> None:
    async with scripted(extensions=("PIPELINING", "SIZE 1000")) as server:
        relay = relay_of(server)
        error = await outcome(relay, envelope("x" * 2_000))
        fine = await outcome(relay, envelope("x"))
        await relay.close()

    assert isinstance(error, TaskError)
    assert not error.retryable
    assert "552" in str(error)
    assert fine is None
    assert server.counts["mail"] == 1
    assert server.connections_total == 1


@pytest.mark.parametrize("size", ["SIZE", "SIZE 0", "SIZE much"])
async def test_a_relay_without_a_stated_size_takes_any(size: str) -> None:
    async with scripted(extensions=("PIPELINING", size)) as server:
        relay = relay_of(server)
        assert await outcome(relay, envelope("x" * 2_000)) is None
        await relay.close()

    assert "SIZE=" in server.commands[1]


async def test_an_international_address_is_announced() -> None:
    mail = envelope(recipient="grüße@ok.test")
    async with scripted(extensions=EIGHT_BIT_NAMES) as server:
        relay = relay_of(server)
        assert await outcome(relay, mail) is None
        await relay.close()

    assert server.commands[1].endswith("BODY=8BITMIME SMTPUTF8")
    assert server.mails[0].recipient == "grüße@ok.test"
    assert server.mails[0].message == mail.message


@pytest.mark.parametrize("message", [b"a\nb\r\n", b"a\rb\r\n", b"no end", b"a\n.\nMAIL FROM:<x@x.test>\r\n", b""])
async def test_a_message_with_bare_line_ends_is_never_sent(message: bytes) -> None:
    async with scripted() as server:
        relay = relay_of(server)
        with pytest.raises(ValueError, match="CRLF"):
            await relay.send(Envelope("a@x.test", "b@x.test", message, False, 7), nullcontext)
        await relay.close()

    assert server.counts["mail"] == 0


async def test_a_message_that_begins_with_a_dot_arrives_unchanged() -> None:
    async with scripted() as server:
        relay = relay_of(server)
        await relay.send(Envelope("a@x.test", "b@x.test", b".x\r\n.\r\n", False, 7), nullcontext)
        await relay.close()

    assert server.mails[0].message == b".x\r\n.\r\n"


async def test_a_relay_that_is_down_snoozes_and_is_asked_rarely() -> None:
    async with scripted() as server:
        relay = Relay(parse_server(server.url), breaker=Breaker(floor_s=120, cap_s=120))
    errors = [await outcome(relay) for _ in range(200)]
    await relay.close()

    assert all(isinstance(error, Snooze) for error in errors)
    delays = sorted(error.delay_s for error in errors if isinstance(error, Snooze))
    assert delays[0] > 60
    assert delays[-1] - delays[0] > 0.5  # they don't come back at once
    assert relay._breaker._failures == 1


async def test_a_relay_that_comes_back_is_used_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "taskq.mail")
    async with scripted() as server:
        relay = Relay(parse_server(server.url), breaker=Breaker(floor_s=0.05, cap_s=0.05))
        await server.stop()
        assert isinstance(await outcome(relay), Snooze)
        await server.start()
        async with asyncio.timeout(5):
            while await outcome(relay) is not None:
                await asyncio.sleep(0)
        await relay.close()

    assert len(server.mails) == 1
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0].startswith("relay_unavailable")
    assert messages[-1] == "relay_available"


async def test_mails_that_fail_together_are_one_failure_of_the_relay(caplog: pytest.LogCaptureFixture) -> None:
    gate = asyncio.Event()
    async with scripted({"mail": Hold(gate, "421 4.3.2 shutting down")}) as server:
        relay = relay_of(server)
        async with asyncio.TaskGroup() as group:
            sending = [group.create_task(outcome(relay)) for _ in range(5)]
            await server.reached("mail", 5)
            gate.set()
        await relay.close()

    delays = [task.result().delay_s for task in sending if isinstance(task.result(), Snooze)]
    assert len(delays) == 5
    assert max(delays) < 2.5  # the first opening of 1 s, and its spread
    assert len([record for record in caplog.records if record.name == "taskq.mail"]) == 1


async def test_a_hang_up_on_one_mail_does_not_shut_the_relay() -> None:
    async with scripted({"rcpt": ["421 4.3.0 not this one", "250 ok"]}) as server:
        relay = relay_of(server)
        first = await outcome(relay)
        second = await outcome(relay)
        await relay.close()

    assert isinstance(first, Snooze)
    assert first.delay_s >= 30.0
    assert second is None


async def test_a_name_that_does_not_exist_snoozes() -> None:
    relay = Relay(parse_server("smtp://name.invalid?tls=off"))

    error = await outcome(relay)
    await relay.close()

    assert isinstance(error, Snooze)
    assert "name.invalid" in str(error)


@pytest.mark.parametrize(
    ("extensions", "script", "attempts"),
    [
        (("AUTH CRAM-MD5",), {}, 0),
        ((), {}, 0),
        (("AUTH PLAIN",), {"auth": "454 4.7.0 later"}, 1),
        (("AUTH PLAIN",), {"auth": Drop("421 4.7.0 bye")}, 1),
        (("AUTH PLAIN",), {"auth": Drop()}, 1),
        (("AUTH LOGIN",), {"auth": "535 5.7.8 bad"}, 1),
    ],
)
async def test_a_failing_login_snoozes(
    extensions: tuple[str, ...], script: dict[str, Action | list[Action]], attempts: int
) -> None:
    async with scripted(script, extensions=extensions) as server:
        relay = Relay(parse_server(f"smtp://user:secret@127.0.0.1:{server.port}"), limits=PATIENT)
        error = await outcome(relay)
        await relay.close()

    assert isinstance(error, Snooze)
    assert server.counts["auth"] == attempts
    assert server.counts["mail"] == 0


@pytest.mark.parametrize("method", ["PLAIN", "LOGIN"])
async def test_a_right_password_is_sent(method: str) -> None:
    script: dict[str, Action | list[Action]] = {"auth": "334 UGFzc3dvcmQ6" if method == "LOGIN" else "235 ok"}
    async with scripted(script, extensions=(f"AUTH {method}",)) as server:
        relay = Relay(parse_server(f"smtp://user:secret@127.0.0.1:{server.port}"), limits=PATIENT)
        if method == "LOGIN":
            server.script = {**script, "c2vjcmv0": "235 ok"}  # the password's line, lower-cased as a verb
        assert await outcome(relay) is None
        await relay.close()


async def test_a_closed_relay_snoozes() -> None:
    async with scripted() as server:
        relay = relay_of(server)
        await relay.close()

        assert isinstance(await outcome(relay), Snooze)
    assert server.connections_total == 0


@pytest.mark.parametrize(
    ("text", "remote_id"),
    [
        ("2.0.0 Ok: queued as 64C6F1A", "64C6F1A"),
        ("OK id=1xVabc-0000", "1xVabc-0000"),
        ("Ok 0102018f0d6a-4b-000000", "0102018f0d6a-4b-000000"),
        ("2.0.0 OK fine", None),
    ],
)
async def test_the_receipt_names_the_mail_at_the_relay(text: str, remote_id: str | None) -> None:
    async with scripted({"dot": f"250 {text}"}) as server:
        relay = relay_of(server)
        receipt = await relay.send(envelope(), nullcontext)
        await relay.close()

    assert (receipt.text, receipt.remote_id) == (text, remote_id)


async def test_logs_mask_addresses_and_hold_no_text(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "taskq.mail")
    async with scripted() as server:
        relay = relay_of(server)
        await outcome(relay, envelope("a very private text", recipient="ada@ok.test"))
        await relay.close()

    (record,) = [record for record in caplog.records if record.getMessage() == "mail_accepted"]
    assert record.__dict__["to"] == "a***@ok.test"
    assert "private" not in str(record.__dict__)
