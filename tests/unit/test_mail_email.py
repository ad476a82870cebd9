import base64
import json
import logging
import threading
from contextlib import nullcontext

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from mail_payloads import CREATED, INSTALLATION, Mailer, Recorder

from taskq.context import Context
from taskq.errors import ConfigError, Snooze, StoreUnavailable
from taskq.kinds import email as email_kind
from taskq.kinds.email import Email, EmailPayload
from taskq.mail.address import parse_mailbox
from taskq.mail.compose import Draft, compose
from taskq.mail.dkim import Signer
from taskq.mail.envelope import Envelope, Receipt
from taskq.mail.inbox import Inbox
from taskq.mail.relay import Relay
from taskq.mail.routes import transport_from_url
from taskq.mailstore import CapturedMail
from taskq.task import Run
from taskq.uid import uid_of

UID = uid_of(7, INSTALLATION)
MAIL = b"Subject: Hi\r\n\r\ntext\r\n"


def context() -> Context:
    return Context(Run(7, 1, 1, "email", 1, 10, CREATED, ""), INSTALLATION)


def mail(**changes: object) -> EmailPayload:
    """A stored payload."""
    return EmailPayload(to="ada@example.com", subject="hi", body="text") | changes


async def test_handler_composes_and_hands_over() -> None:
    transport = Recorder()
    run = context()

    await Email(transport, "taskq@example.com")(mail(), run)

    (envelope,) = transport.envelopes
    sender, recipient = parse_mailbox("taskq@example.com"), parse_mailbox("ada@example.com")
    draft = Draft(sender, (recipient,), "hi", UID, CREATED, "text")
    assert envelope == Envelope(
        "taskq@example.com", "ada@example.com", compose(draft), False, 7, envid=UID.hex, note=run.note, subject="hi"
    )


async def test_handler_signs_for_its_domain(caplog: pytest.LogCaptureFixture) -> None:
    transport = Recorder()
    key = ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    ours, other = Signer("example.com", "s1", key), Signer("x.test", "s2", key)

    await Email(transport, "taskq@mail.example.com", [other, ours])(mail(), context())
    await Email(transport, "taskq@example.com", [other])(mail(), context())

    signed, plain = (envelope.message for envelope in transport.envelopes)
    assert signed == ours.sign(signed.partition(b"=\r\n")[2])
    assert plain.startswith(b"From: ")
    assert [record.message for record in caplog.records] == [
        "mails are not signed: no DKIM key is for the sender's domain"
    ]


async def test_handler_sends_the_same_bytes_on_every_attempt() -> None:
    transport = Recorder()
    payload = mail(subject="Grüße", body="x" * 300_000)
    email = Email(transport, "taskq@example.com")

    await email(payload, context())
    await email(payload, Context(Run(7, 2, 1, "email", 2, 10, CREATED, ""), INSTALLATION))

    first, second = transport.envelopes
    assert first.message == second.message
    assert first.envid == second.envid


@pytest.mark.parametrize(
    ("sender", "recipient", "smtputf8"),
    [
        ("taskq@example.com", "grüße@example.com", True),
        ("grüße@example.com", "ada@example.com", True),
        ("taskq@example.com", "ada@faß.de", False),
    ],
)
async def test_handler_asks_for_smtputf8_only_for_local_parts(sender: str, recipient: str, *, smtputf8: bool) -> None:
    transport = Recorder()

    await Email(transport, sender)(mail(to=recipient), context())

    assert transport.envelopes[0].smtputf8 is smtputf8


async def test_handler_gives_the_span_of_its_own_run() -> None:
    transport = Recorder()
    run = context()

    await Email(transport, "taskq@example.com")(mail(), run)

    with transport.spans[0]:
        assert not run.interruptible


async def test_dry_run_composes_and_sends_nothing() -> None:
    mailer = Mailer()

    run = await mailer.run(json.dumps(mail(dry_run=True)))
    await mailer.run(json.dumps(mail(dry_run=False)))

    (envelope,) = mailer.transport.envelopes
    assert run.facts == [{"dry_run": True, "bytes": len(envelope.message)}]


@pytest.mark.parametrize(("on_ambiguous", "sealed"), [("retry", False), ("fail", True)])
async def test_only_a_mail_that_must_not_be_sent_twice_is_sealed(on_ambiguous: str, *, sealed: bool) -> None:
    (envelope,) = await Mailer().send(on_ambiguous=on_ambiguous, relay="second")

    assert (envelope.seal is not None) is sealed
    assert envelope.relay == "second"
    assert envelope.envid == UID.hex


async def test_relay_that_is_down_keeps_a_mail_that_says_fail() -> None:
    with pytest.raises(Snooze):
        await Mailer(fails_with=Snooze("down", delay_s=1.0)).send(on_ambiguous="fail")


async def test_sensitive_mail_says_so_to_the_transport_and_leaves_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    (envelope,) = await Mailer().send(sensitive=True, to=["ada@example.com"], subject="your code")

    assert envelope.sensitive
    assert caplog.records == []


async def test_large_file_is_composed_away_from_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    plain = email_kind.compose

    def noting(draft: Draft) -> bytes:
        threads.append(threading.current_thread().name)
        return plain(draft)

    monkeypatch.setattr(email_kind, "compose", noting)
    for size in (1_000, 1_000_000):
        content = base64.b64encode(b"x" * size).decode()
        await Mailer().send(attachments=[{"filename": "a", "content_type": "a/b", "content": content}])

    assert threads[0] == threading.main_thread().name
    assert threads[1] != threading.main_thread().name


def test_handler_refuses_a_sender_that_is_no_address() -> None:
    with pytest.raises(ConfigError, match=r"TASKQ_MAIL_FROM.*contains 0 @ signs"):
        Email(Recorder(), "nobody")


@pytest.mark.parametrize("url", ["", "inbox:"])
async def test_transport_is_the_inbox_when_no_relay_is_named(url: str) -> None:
    captured: list[CapturedMail] = []

    async def capture(mail: CapturedMail) -> None:
        captured.append(mail)

    transport = transport_from_url(url, capture)
    receipt = await transport.send(Envelope("a@x.test", "b@x.test", MAIL, False, 7, subject="Hi"), nullcontext)
    await transport.close()

    assert captured == [CapturedMail(7, "a@x.test", "b@x.test", "Hi", MAIL)]
    assert receipt == Receipt("inbox", 250, "captured", None)
    assert repr(transport) == "Inbox()"


async def test_transport_is_a_relay_for_its_url() -> None:
    async def capture(_mail: CapturedMail) -> None: ...

    transport = transport_from_url("smtps://user:topsecret@relay.example.com", capture)

    assert isinstance(transport, Relay)
    assert repr(transport) == "Relay('smtps://user:***@relay.example.com:465')"
    await transport.close()


async def test_transport_names_a_ca_file_that_cannot_be_read() -> None:
    async def capture(_mail: CapturedMail) -> None: ...

    with pytest.raises(ConfigError, match=r"missing\.pem"):
        transport_from_url("smtps://relay.example.com?ca=missing.pem", capture)


async def test_inbox_snoozes_when_the_database_cannot_be_reached() -> None:
    async def capture(_mail: CapturedMail) -> None:
        raise StoreUnavailable("the connection broke")

    with pytest.raises(Snooze, match="the connection broke") as caught:
        await Inbox(capture).send(Envelope("a@x.test", "b@x.test", b"m\r\n", False, 7), nullcontext)
    assert caught.value.delay_s > 0
