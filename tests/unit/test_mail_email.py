import json
import uuid
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import ValidationError

from taskq.errors import ConfigError, Snooze, StoreUnavailable
from taskq.kinds.email import Email, EmailPayload
from taskq.mail.address import parse_mailbox
from taskq.mail.compose import Draft, compose
from taskq.mail.dkim import Signer
from taskq.mail.envelope import Envelope, Receipt, Span
from taskq.mail.inbox import CapturedMail, Inbox
from taskq.mail.relay import Relay
from taskq.mail.routes import transport_from_url
from taskq.task import Context, Run
from taskq.uid import uid_of

INSTALLATION = uuid.UUID("01890a5d-ac96-774b-bcce-b302099a8057")
UID = uid_of(7, INSTALLATION)
CREATED = datetime(2024, 2, 29, 7, 5, 9, tzinfo=UTC)
BODY = '{"To":"example@gmail.com","subject":"Test Subject","body":"Test E-Mail Body"}'


class Recorder:
    """A transport that keeps the envelopes and how deep their spans were."""

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []
        self.spans: list[AbstractContextManager[None]] = []

    async def send(self, envelope: Envelope, span: Span) -> Receipt:
        self.envelopes.append(envelope)
        self.spans.append(span())
        return Receipt("recorder", 250, "ok", None)

    async def close(self) -> None:
        pass


def context() -> Context:
    return Context(Run(7, 1, 1, "email", 1, 10, CREATED, ""), INSTALLATION)


def fields(**changes: object) -> dict[str, object]:
    return {"to": "ada@example.com", "subject": "hi", "body": "text"} | changes


def test_payload_reads_the_three_fields_into_canonical_json() -> None:
    payload = EmailPayload.model_validate_json(BODY)

    assert payload.model_dump_json() == (
        '{"to":"example@gmail.com","subject":"Test Subject","body":"Test E-Mail Body"}'
    )
    assert EmailPayload.model_validate_json(payload.model_dump_json()) == payload


def test_payload_keeps_the_address_as_it_will_be_used() -> None:
    assert EmailPayload(to="u@FASS.example", subject="", body="").to == "u@fass.example"
    assert EmailPayload.model_validate_json('{"To":"u@faß.de","subject":"","body":""}').to == "u@xn--fa-hia.de"


def test_payload_describes_itself_by_the_names_it_takes() -> None:
    assert list(EmailPayload.model_json_schema()["properties"]) == ["to", "subject", "body"]


@pytest.mark.parametrize(
    ("changes", "field", "fact"),
    [
        ({"to": "nobody"}, "to", "contains 0 @ signs"),
        ({"to": ["ada@example.com"]}, "to", "valid string"),
        ({"to": None}, "to", "valid string"),
        ({"subject": 5}, "subject", "valid string"),
        ({"subject": "a\r\nBcc: evil@x.test"}, "subject", "without control characters"),
        ({"subject": "a\nb"}, "subject", "without control characters"),
        ({"subject": "a\x00b"}, "subject", "without control characters"),
        ({"subject": "a\u2028b"}, "subject", "without control characters"),
        ({"subject": "x" * 999}, "subject", "at most 998"),
        ({"body": "x" * 1_000_001}, "body", "at most 1000000"),
        ({"body": "a\x00b"}, "body", "NUL"),
        ({"subjet": "typo"}, "subjet", "Extra inputs"),
        ({"To": "second@example.com"}, "To", "Extra inputs"),
    ],
)
def test_payload_refuses_and_names_the_field(changes: dict[str, object], field: str, fact: str) -> None:
    with pytest.raises(ValidationError) as caught:
        EmailPayload.model_validate_json(json.dumps(fields(**changes)))

    (error,) = caught.value.errors()
    assert error["loc"] == (field,)
    assert fact in error["msg"]


@pytest.mark.parametrize("missing", ["to", "subject", "body"])
def test_payload_needs_each_field(missing: str) -> None:
    values = fields()
    del values[missing]

    with pytest.raises(ValidationError) as caught:
        EmailPayload.model_validate_json(json.dumps(values))
    assert [error["loc"] for error in caught.value.errors()] == [(missing,)]


@pytest.mark.parametrize("field", ["to", "subject", "body"])
def test_payload_refuses_a_lone_surrogate(field: str) -> None:
    with pytest.raises(ValidationError):
        EmailPayload.model_validate_json(json.dumps(fields(**{field: "a\ud800@example.com"})))
    with pytest.raises(ValidationError):
        EmailPayload.model_validate(fields(**{field: "a\ud800@example.com"}))


def test_payload_accepts_unicode_in_subject_and_body() -> None:
    payload = EmailPayload.model_validate(fields(subject="Grüße\u00a0😀 \t".strip(), body="tab\t, vt\v, 😀\r\n"))

    assert payload.subject == "Grüße\u00a0😀"


async def test_handler_composes_and_hands_over() -> None:
    transport = Recorder()
    payload = EmailPayload(to="ada@example.com", subject="hi", body="text")

    await Email(transport, "taskq@example.com")(payload, context())

    (envelope,) = transport.envelopes
    sender, recipient = parse_mailbox("taskq@example.com"), parse_mailbox("ada@example.com")
    draft = Draft(sender, (recipient,), "hi", UID, CREATED, "text")
    assert envelope == Envelope("taskq@example.com", "ada@example.com", compose(draft), False, 7)


async def test_handler_signs_for_its_domain(caplog: pytest.LogCaptureFixture) -> None:
    transport = Recorder()
    key = ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    ours, other = Signer("example.com", "s1", key), Signer("x.test", "s2", key)
    payload = EmailPayload(to="ada@example.com", subject="hi", body="text")

    await Email(transport, "taskq@mail.example.com", [other, ours])(payload, context())
    await Email(transport, "taskq@example.com", [other])(payload, context())

    signed, plain = (envelope.message for envelope in transport.envelopes)
    assert signed == ours.sign(signed.partition(b"=\r\n")[2])
    assert plain.startswith(b"From: ")
    assert [record.message for record in caplog.records] == [
        "mails are not signed: no DKIM key is for the sender's domain"
    ]


async def test_handler_sends_the_same_bytes_on_every_attempt() -> None:
    transport = Recorder()
    payload = EmailPayload(to="ada@example.com", subject="Grüße", body="x" * 300_000)
    email = Email(transport, "taskq@example.com")

    await email(payload, context())
    await email(payload, Context(Run(7, 2, 1, "email", 2, 10, CREATED, ""), INSTALLATION))

    first, second = transport.envelopes
    assert first == second


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

    await Email(transport, sender)(EmailPayload(to=recipient, subject="", body=""), context())

    assert transport.envelopes[0].smtputf8 is smtputf8


async def test_handler_gives_the_span_of_its_own_run() -> None:
    transport = Recorder()
    run = context()

    await Email(transport, "taskq@example.com")(EmailPayload(to="ada@example.com", subject="", body=""), run)

    with transport.spans[0]:
        assert not run.interruptible


def test_handler_refuses_a_sender_that_is_no_address() -> None:
    with pytest.raises(ConfigError, match=r"TASKQ_MAIL_FROM.*contains 0 @ signs"):
        Email(Recorder(), "nobody")


@pytest.mark.parametrize("url", ["", "inbox:"])
async def test_transport_is_the_inbox_when_no_relay_is_named(url: str) -> None:
    captured: list[CapturedMail] = []

    async def capture(mail: CapturedMail) -> None:
        captured.append(mail)

    transport = transport_from_url(url, capture)
    receipt = await transport.send(Envelope("a@x.test", "b@x.test", b"m\r\n", False, 7), nullcontext)
    await transport.close()

    assert captured == [CapturedMail(7, "a@x.test", "b@x.test", b"m\r\n")]
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
