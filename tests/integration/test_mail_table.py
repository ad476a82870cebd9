"""Every row of the table of SMTP failures, in every phase: reply, drop, reset, silence, garbage.

What is checked is what the task is told, what the record of the try says, whether the relay is shut
to others, and that no connection is kept that might not be at rest.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace

import pytest
from smtp_script import PATIENT, Action, Drop, Hang, Hold, Reset, ScriptedServer, envelope, scripted

from taskq.errors import Snooze, TaskError
from taskq.mail.handshake import TimeLimits
from taskq.mail.relay import Relay
from taskq.mail.server import parse_server

SHORT = TimeLimits(connect_s=0.3, tls_s=0.3, hello_s=0.3, command_s=0.3, body_s=0.3, body_octets_per_s=1e9, dot_s=0.3)
GARBAGE = b"\x00\x01 SSH-2.0\r\n"
LARGE = "x" * 70 + ("\n" + "y" * 70) * 100_000  # more than the sockets on the way can hold

# What happens, by the phase of the script; what the record says: scope, ruling, phase.
ROWS: list[tuple[str, str, Action, str]] = [
    ("banner 421: fewer connections", "banner", "421 4.3.2 busy", "relay transient connect"),
    ("banner 450", "banner", "450 4.3.2 busy", "relay transient connect"),
    ("banner 554: alert, never fail the mails", "banner", "554 no", "relay config connect"),
    ("banner dropped", "banner", Drop(), "relay transient connect"),
    ("banner reset", "banner", Reset(), "relay transient connect"),
    ("no banner", "banner", Hang(), "relay transient connect"),
    ("banner garbage", "banner", GARBAGE, "relay transient connect"),
    ("EHLO 421", "ehlo", "421 4.3.2 busy", "relay transient ehlo"),
    ("EHLO 550", "ehlo", "550 who are you", "relay transient ehlo"),
    ("EHLO dropped", "ehlo", Drop(), "relay transient ehlo"),
    ("EHLO reset", "ehlo", Reset(), "relay transient ehlo"),
    ("EHLO hangs", "ehlo", Hang(), "relay transient ehlo"),
    ("EHLO garbage", "ehlo", GARBAGE, "relay transient ehlo"),
    ("STARTTLS 454", "starttls", "454 4.7.0 not now", "relay transient tls"),
    ("STARTTLS 502", "starttls", "502 5.5.1 what", "relay config tls"),
    ("STARTTLS dropped", "starttls", Drop(), "relay transient tls"),
    ("STARTTLS reset", "starttls", Reset(), "relay transient tls"),
    ("STARTTLS hangs", "starttls", Hang(), "relay transient tls"),
    ("STARTTLS accepted, then no TLS", "starttls", "220 go", "relay config tls"),
    ("AUTH 535: a rotated password fails no mail", "auth", "535 5.7.8 bad", "relay config auth"),
    ("AUTH 534", "auth", "534 5.7.9 too weak", "relay config auth"),
    ("AUTH 538", "auth", "538 5.7.11 encrypt", "relay config auth"),
    ("AUTH 454", "auth", "454 4.7.0 later", "relay transient auth"),
    ("AUTH 421 is not masked", "auth", "421 4.7.0 bye", "relay transient auth"),
    ("AUTH dropped", "auth", Drop(), "relay transient auth"),
    ("AUTH hangs", "auth", Hang(), "relay transient auth"),
    ("MAIL 421", "mail", "421 4.3.2 shutting down", "relay transient mail"),
    ("MAIL 432 4.3.2: slower", "mail", "432 4.3.2 concurrent connections", "relay rate mail"),
    ("MAIL 450", "mail", "450 4.1.8 odd", "message transient mail"),
    ("MAIL 450 4.7.x: slower", "mail", "450 4.7.1 slow down", "relay rate mail"),
    ("MAIL 451", "mail", "451 4.3.0 later", "message transient mail"),
    ("MAIL 451 credits exceeded: much later", "mail", "451 Maximum credits exceeded", "relay rate mail"),
    ("MAIL 452", "mail", "452 4.3.1 full", "message transient mail"),
    ("MAIL 454 throttling: slower", "mail", "454 4.7.0 throttling", "relay rate mail"),
    ("MAIL 454 daily quota: much later", "mail", "454 Daily message quota exceeded", "relay rate mail"),
    ("MAIL 500", "mail", "500 what", "message permanent mail"),
    ("MAIL 501", "mail", "501 5.1.7 bad sender", "message permanent mail"),
    ("MAIL 503", "mail", "503 5.5.1 EHLO first", "message transient mail"),
    ("MAIL 530: TLS or AUTH missing", "mail", "530 5.7.0 authenticate", "relay config mail"),
    ("MAIL 550 5.7.x: sender not authorised", "mail", "550 5.7.1 not you", "message permanent mail"),
    ("MAIL 550 daily limit: much later", "mail", "550 5.4.5 Daily sending limit exceeded", "relay rate mail"),
    ("MAIL 552 too big", "mail", "552 5.3.4 too big", "message permanent mail"),
    ("MAIL 553 5.1.8", "mail", "553 5.1.8 not you", "message permanent mail"),
    ("MAIL 554 4.x.x is transient", "mail", "554 4.3.0 odd", "message transient mail"),
    ("MAIL 350 fits nowhere", "mail", "350 hm", "relay transient mail"),
    ("MAIL dropped", "mail", Drop(), "relay transient mail"),
    ("MAIL reset", "mail", Reset(), "relay transient mail"),
    ("MAIL hangs", "mail", Hang(), "relay transient mail"),
    ("MAIL garbage", "mail", GARBAGE, "relay transient mail"),
    ("RCPT 421 is not masked", "rcpt", "421 4.3.2 shutting down", "relay transient rcpt"),
    ("RCPT 450 greylisted", "rcpt", "450 4.2.0 greylisted", "recipient transient rcpt"),
    ("RCPT 451", "rcpt", "451 4.3.0 later", "recipient transient rcpt"),
    ("RCPT 452 full", "rcpt", "452 4.2.2 full", "recipient transient rcpt"),
    ("RCPT 452 4.5.3 too many", "rcpt", "452 4.5.3 too many recipients", "recipient transient rcpt"),
    ("RCPT 501 5.1.3", "rcpt", "501 5.1.3 bad syntax", "recipient permanent rcpt"),
    ("RCPT 521", "rcpt", "521 no mail here", "recipient permanent rcpt"),
    ("RCPT 550 5.1.1", "rcpt", "550 5.1.1 nobody", "recipient permanent rcpt"),
    ("RCPT 550 5.2.2 is transient", "rcpt", "550 5.2.2 over quota", "recipient transient rcpt"),
    ("RCPT 550 5.7.1 relay denied", "rcpt", "550 5.7.1 relay denied", "recipient permanent rcpt"),
    ("RCPT 551", "rcpt", "551 5.1.6 moved", "recipient permanent rcpt"),
    ("RCPT 552 is transient", "rcpt", "552 5.2.2 full", "recipient transient rcpt"),
    ("RCPT 553", "rcpt", "553 5.1.3 odd", "recipient permanent rcpt"),
    ("RCPT 556", "rcpt", "556 5.1.10 null MX", "recipient permanent rcpt"),
    ("RCPT dropped", "rcpt", Drop(), "message transient rcpt"),
    ("RCPT reset", "rcpt", Reset(), "message transient rcpt"),
    ("RCPT hangs", "rcpt", Hang(), "message transient rcpt"),
    ("RCPT garbage", "rcpt", GARBAGE, "message transient rcpt"),
    ("DATA 421", "data", "421 4.3.2 shutting down", "relay transient data"),
    ("DATA 451", "data", "451 4.3.0 later", "message transient data"),
    ("DATA 554", "data", "554 5.5.0 no", "message permanent data"),
    ("DATA 250 fits nowhere", "data", "250 what", "message transient data"),
    ("DATA dropped", "data", Drop(), "message transient data"),
    ("DATA reset", "data", Reset(), "message transient data"),
    ("DATA hangs", "data", Hang(), "message transient data"),
    ("DATA garbage", "data", GARBAGE, "message transient data"),
    ("text cut: drop", "body", Drop(), "message transient body"),
    ("text cut: reset", "body", Reset(), "message transient body"),
    ("text cut: hang", "body", Hang(), "message transient body"),
    ("dot 421", "dot", "421 4.3.2 shutting down", "message transient dot"),
    ("dot 451", "dot", "451 4.3.0 later", "message transient dot"),
    ("dot 451 rate", "dot", "451 4.7.1 rate exceeded", "relay rate dot"),
    ("dot 452 full", "dot", "452 4.3.1 full", "message transient dot"),
    ("dot 550 5.7.1 spam", "dot", "550 5.7.1 spam", "message permanent dot"),
    ("dot 552 too big", "dot", "552 5.3.4 too big", "message permanent dot"),
    ("dot 554 5.6.0 content", "dot", "554 5.6.0 content", "message permanent dot"),
    ("dot 354 fits nowhere", "dot", "354 what", "message ambiguous dot"),
    ("dot EOF", "dot", Drop(), "message ambiguous dot"),
    ("dot reset", "dot", Reset(), "message ambiguous dot"),
    ("dot timeout", "dot", Hang(), "message ambiguous dot"),
    ("dot garbage", "dot", GARBAGE, "message ambiguous dot"),
    ("dot half a line", "dot", b"250 half a li", "message ambiguous dot"),
    ("dot endless line", "dot", b"x" * 40_000, "message ambiguous dot"),
]


def _relay(server: ScriptedServer, phase: str, action: Action) -> Relay:
    user = "user:secret@" if phase == "auth" else ""
    query = "?tls=starttls" if phase == "starttls" else ""
    quick = not isinstance(action, str | Drop | Reset)
    limits = SHORT if quick or phase == "body" else PATIENT
    return Relay(parse_server(f"smtp://{user}127.0.0.1:{server.port}{query}"), limits=limits)


def _told(error: Snooze | TaskError | None, expected: str, action: Action) -> None:
    scope, ruling, _ = expected.split()
    if scope == "relay":
        assert isinstance(error, Snooze)
        assert error.delay_s >= {"config": 300.0, "rate": 30.0}.get(ruling, 1.0)
        return
    assert isinstance(error, TaskError)
    assert error.retryable is (ruling != "permanent")
    assert error.reason == ("outcome_unknown" if ruling == "ambiguous" else "permanent")
    if ruling == "ambiguous":
        assert error.retry_after_s == 300.0
    if isinstance(action, str) and action[0] in "45":
        assert action in str(error)  # the server's own words


async def _send(relay: Relay, body: str = "text") -> tuple[Snooze | TaskError | None, list[Mapping[str, object]]]:
    notes: list[Mapping[str, object]] = []
    try:
        await relay.send(replace(envelope(body), note=notes.append), nullcontext)
    except (Snooze, TaskError) as error:
        return error, notes
    return None, notes


@pytest.mark.parametrize("pipelining", [("PIPELINING",), ()], ids=["pipelined", "one by one"])
@pytest.mark.parametrize(("phase", "action", "expected"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
async def test_row(
    phase: str, action: Action, expected: str, pipelining: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    extensions = (*pipelining, "AUTH PLAIN", *(["STARTTLS"] if phase == "starttls" else []))
    if phase == "body" and isinstance(action, Hang):
        action = Hold(asyncio.Event(), "")  # reads no further either
    async with scripted({phase: action}, extensions=extensions) as server:
        relay = _relay(server, phase, action)
        error, notes = await _send(relay, LARGE if phase == "body" else "text")

        _told(error, expected, action)
        (note,) = notes
        assert f"{note['scope']} {note['ruling']} {note['phase']}" == expected
        assert note["code"] == (int(action[:3]) if isinstance(action, str) and action[0] in "45" else None)
        assert note["ambiguous"] is ("ambiguous" in expected)
        alerts = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert len(alerts) == (1 if "config" in expected else 0)
        assert relay._breaker.open is _shuts(expected, error)
        refused = isinstance(action, str) and action[0] in "45" and not action.startswith("421")
        assert len(relay._pool._idle) == (1 if refused and _transacting(phase, pipelining) else 0)
        await relay.close()
        if not isinstance(action, Hold):
            await server.settled()


def _transacting(phase: str, pipelining: tuple[str, ...]) -> bool:
    """Whether a plain refusal leaves the connection at rest: DATA that was accepted after one does not."""
    return phase in {"data", "dot"} or (phase in {"mail", "rcpt"} and not pipelining)


def _shuts(expected: str, error: Snooze | TaskError | None) -> bool:
    scope, ruling, phase = expected.split()
    if scope != "relay" or (ruling == "transient" and phase in {"rcpt", "data"}):
        return False
    return ruling != "rate" or (isinstance(error, Snooze) and error.delay_s >= 600.0)


async def test_dns_failure() -> None:
    relay = Relay(parse_server("smtp://name.invalid?tls=off"))
    error, notes = await _send(relay)
    await relay.close()

    _told(error, "relay transient connect", "")
    assert "name.invalid" in str(error)
    assert notes[0]["connection"] is None


async def test_connection_refused() -> None:
    async with scripted() as server:
        relay = Relay(parse_server(server.url))
    error, _ = await _send(relay)
    await relay.close()

    _told(error, "relay transient connect", "")


async def test_connect_timeout() -> None:
    with contextlib.ExitStack() as sockets:
        full = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # more than it takes: what comes then is not answered at all
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        limits = replace(PATIENT, connect_s=0.3)
        relay = Relay(parse_server(f"smtp://127.0.0.1:{full.getsockname()[1]}"), limits=limits)
        error, _ = await _send(relay)
        await relay.close()

    _told(error, "relay transient connect", "")
    assert "did not answer within 0.3 s" in str(error)


@pytest.mark.parametrize("offer", [(), ("AUTH CRAM-MD5",)], ids=["AUTH not offered", "no suitable AUTH method"])
async def test_auth_missing(offer: tuple[str, ...]) -> None:
    async with scripted(extensions=offer) as server:
        relay = _relay(server, "auth", "")
        error, notes = await _send(relay)
        await relay.close()

    _told(error, "relay config auth", "")
    assert notes[0]["ruling"] == "config"
    assert server.counts["auth"] == 0


async def test_starttls_not_offered() -> None:
    async with scripted() as server:
        relay = _relay(server, "starttls", "")
        error, _ = await _send(relay)
        await relay.close()

    _told(error, "relay config tls", "")
    assert server.counts["mail"] == 0


async def test_implicit_tls_to_a_server_that_speaks_none() -> None:
    async with scripted() as server:
        relay = Relay(parse_server(f"smtps://127.0.0.1:{server.port}"))
        error, notes = await _send(relay)
        await relay.close()

    _told(error, "relay config tls", "")
    assert notes[0]["phase"] == "tls"


async def test_quit_fails_and_affects_no_mail() -> None:
    for action in (Drop(), Reset(), "500 what", GARBAGE):
        async with scripted({"quit": action}) as server:
            relay = Relay(parse_server(server.url))
            error, _ = await _send(relay)
            await relay.close()
            await server.settled()
        assert error is None


async def test_three_recipients_have_three_outcomes() -> None:
    script: dict[str, Action | list[Action]] = {"rcpt": ["250 ok", "450 4.2.0 later", "550 5.1.1 nobody"]}
    async with scripted(script, extensions=()) as server:
        relay = Relay(parse_server(server.url))
        outcomes = [(await _send(relay))[0] for _ in range(3)]
        await relay.close()

    assert outcomes[0] is None
    assert [isinstance(each, TaskError) and each.retryable for each in outcomes[1:]] == [True, False]
    assert len(server.mails) == 1
    assert server.connections_total == 1
