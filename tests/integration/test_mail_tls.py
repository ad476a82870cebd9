"""TLS is required, verified and never given up; and every event loop carries it."""

import asyncio
import logging
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Coroutine, Mapping
from contextlib import nullcontext
from pathlib import Path

import pytest
import uvloop
from smtp_script import PATIENT, Action, Drop, Hang, ScriptedServer, scripted

from taskq.errors import Snooze
from taskq.mail.envelope import Envelope
from taskq.mail.handshake import TimeLimits
from taskq.mail.relay import Relay
from taskq.mail.server import parse_server

SHORT = TimeLimits(connect_s=0.5, tls_s=0.5, hello_s=0.5, command_s=0.5, body_s=0.5, dot_s=0.5)
MESSAGE = b"From: a@x.test\r\n\r\n" + b"y" * 70 + b"\r\n"
LARGE = MESSAGE * 40_000
EXTENSIONS = ("PIPELINING", "AUTH PLAIN")

Certify = Callable[[str], tuple[Path, ssl.SSLContext]]
Runner = Callable[[Coroutine[object, object, None]], None]


@pytest.fixture(scope="session")
def certify(tmp_path_factory: pytest.TempPathFactory) -> Certify:
    """Make a self-signed certificate for a subject's alternative name."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("certificates")

    def make(name: str) -> tuple[Path, ssl.SSLContext]:
        certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
        if not certificate.exists():
            curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
            subject = ["-subj", "/CN=test", "-addext", f"subjectAltName={name}"]
            files = ["-keyout", str(key), "-out", str(certificate)]
            subprocess.run(
                [openssl, "req", "-x509", *curve, *subject, *files], check=True, capture_output=True, timeout=30
            )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        return certificate, context

    return make


def relay_of(
    server: ScriptedServer, scheme: str, *, options: str = "", user: str = "user:secret@", limits: TimeLimits = PATIENT
) -> Relay:
    return Relay(parse_server(f"{scheme}://{user}127.0.0.1:{server.port}?{options}"), limits=limits)


async def send(relay: Relay, message: bytes = MESSAGE) -> None:
    try:
        await relay.send(Envelope("a@x.test", "b@x.test", message, False, 1), nullcontext)
    finally:
        await relay.close()


async def refused(relay: Relay) -> Snooze:
    with pytest.raises(Snooze) as caught:
        await send(relay)
    return caught.value


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("scheme", ["plain", "smtp", "smtps"])
def test_a_verified_connection_delivers_small_and_large_mails(certify: Certify, scheme: str, runner: Runner) -> None:
    ca, context = certify("IP:127.0.0.1")

    async def run() -> None:
        tls = {"smtp": {"starttls": context}, "smtps": {"tls": context}}.get(scheme, {})
        async with scripted(extensions=EXTENSIONS, **tls) as server:
            if scheme == "plain":
                relay = relay_of(server, "smtp")
            else:
                relay = relay_of(server, scheme, options=f"ca={ca}" + ("&tls=starttls" if scheme == "smtp" else ""))
            for message in (MESSAGE, LARGE, MESSAGE):
                await relay.send(Envelope("a@x.test", "b@x.test", message, False, 1), nullcontext)
            await relay.close()
            await server.settled()

        assert [mail.message for mail in server.mails] == [MESSAGE, LARGE, MESSAGE]
        assert server.connections_total == 1
        assert server.counts["quit"] == 1
        if scheme == "smtp":  # RFC 3207 §4.2: greeted again, and no password before TLS
            verbs = [command.split(" ")[0] for command in server.commands[:4]]
            assert verbs == ["EHLO", "STARTTLS", "EHLO", "AUTH"]

    runner(run())


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_connection_cut_in_the_upload_is_unambiguous_on_every_loop(runner: Runner) -> None:
    async def run() -> None:
        async with scripted({"body": Drop()}, extensions=("PIPELINING",)) as server:
            relay = relay_of(server, "smtp", user="")
            with pytest.raises(Exception, match="BODY"):
                await send(relay, LARGE * 3)

    runner(run())


async def test_an_unknown_authority_is_refused_and_needs_attention(
    certify: Certify, caplog: pytest.LogCaptureFixture
) -> None:
    _, context = certify("IP:127.0.0.1")
    async with scripted(extensions=EXTENSIONS, starttls=context) as server:
        error = await refused(relay_of(server, "smtp", options="tls=starttls"))

    assert error.delay_s >= 300
    assert "certificate verify failed" in str(error)
    (alert,) = [record for record in caplog.records if record.name == "taskq.mail"]
    assert alert.levelno == logging.ERROR
    assert server.counts["auth"] == server.counts["mail"] == 0


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
async def test_the_record_of_a_try_says_how_it_was_encrypted(certify: Certify, scheme: str) -> None:
    ca, context = certify("IP:127.0.0.1")
    tls = {"starttls": context} if scheme == "smtp" else {"tls": context}
    notes: list[Mapping[str, object]] = []
    async with scripted(extensions=EXTENSIONS, **tls) as server:
        options = f"ca={ca}" + ("&tls=starttls" if scheme == "smtp" else "")
        relay = relay_of(server, scheme, options=options)
        await relay.send(Envelope("a@x.test", "b@x.test", MESSAGE, False, 1, note=notes.append), nullcontext)
        await relay.close()

    (note,) = notes
    assert note["tls"] in {"TLSv1.2", "TLSv1.3"}
    assert str(note["cipher"]).startswith(("TLS_", "ECDHE-"))
    assert note["peer"] == f"127.0.0.1:{server.port}"
    stages = ["connect", "tls", "auth", "envelope", "data"]
    assert list(note["ms"]) == [stage for stage in stages if scheme == "smtp" or stage != "tls"]  # type: ignore[call-overload]


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
async def test_a_certificate_for_another_name_is_refused(certify: Certify, scheme: str) -> None:
    ca, context = certify("DNS:other.test")
    tls = {"starttls": context} if scheme == "smtp" else {"tls": context}
    async with scripted(extensions=EXTENSIONS, **tls) as server:
        options = f"ca={ca}" + ("&tls=starttls" if scheme == "smtp" else "")
        error = await refused(relay_of(server, scheme, options=options))

    assert error.delay_s >= 300
    assert "IP address mismatch" in str(error)
    assert server.counts["auth"] == 0


@pytest.mark.parametrize(
    ("action", "slow"),
    [("454 4.7.0 not now", False), ("502 5.5.1 what", True), (Drop(), False), (Hang(), False), ("220 go", True)],
)
async def test_a_failing_starttls_snoozes(certify: Certify, action: Action, *, slow: bool) -> None:
    ca, context = certify("IP:127.0.0.1")
    async with scripted({"starttls": action}, extensions=EXTENSIONS, starttls=context) as server:
        if action == "220 go":  # says yes, and then speaks no TLS
            server.starttls = None
            server.extensions = (*EXTENSIONS, "STARTTLS")
        limits = SHORT if isinstance(action, Hang) else PATIENT
        error = await refused(relay_of(server, "smtp", options=f"tls=starttls&ca={ca}", limits=limits))

    assert (error.delay_s >= 300) is slow
    assert server.counts["auth"] == server.counts["mail"] == 0


async def test_a_plain_server_on_the_tls_port_needs_attention() -> None:
    async with scripted(extensions=EXTENSIONS) as server:
        error = await refused(relay_of(server, "smtps"))

    assert error.delay_s >= 300


async def test_a_server_that_closes_during_the_handshake_is_only_down() -> None:
    async with scripted({"banner": Drop()}) as server:
        error = await refused(relay_of(server, "smtps"))

    assert error.delay_s < 10


async def test_a_silent_server_on_the_tls_port_is_only_down() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        error = await refused(Relay(parse_server(f"smtps://127.0.0.1:{port}"), limits=SHORT))

    assert error.delay_s < 10
    assert "no answer within 1 s" in str(error)
