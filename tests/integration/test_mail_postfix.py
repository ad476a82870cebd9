"""A real Postfix: real replies, and the bytes that really arrive."""

from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from clusters import open_folder
from postfix import Postfix, running_postfix

from taskq.context import Context
from taskq.errors import Snooze, TaskError
from taskq.kinds.email import Email, EmailPayload
from taskq.mail.address import parse_mailbox
from taskq.mail.breaker import Breaker
from taskq.mail.compose import Attachment, Draft, compose
from taskq.mail.envelope import Envelope
from taskq.mail.relay import Relay
from taskq.mail.server import parse_server
from taskq.task import Run

SENDER = "taskq@ok.test"


@pytest.fixture(scope="module")
def postfix() -> Iterator[Postfix]:
    with open_folder() as folder, running_postfix(folder) as server:  # others' runs close pytest's own folder
        yield server


def context() -> Context:
    created_at = datetime(2024, 2, 29, 7, 5, 9, tzinfo=UTC)
    return Context(Run(1, 1, 1, "email", 1, 10, created_at, ""), uuid4())


def composed(payload: EmailPayload, run: Context) -> bytes:
    sender, recipient = parse_mailbox(SENDER), parse_mailbox(payload["to"])
    return compose(Draft(sender, (recipient,), payload["subject"], run.uid, run.created_at, payload["body"]))


def as_sent(delivered: bytes) -> bytes:
    """Undo what a final delivery does: trace headers in front (RFC 5321 §4.4), local line ends."""
    _, begin, rest = delivered.partition(b"\nFrom: ")
    return (begin[1:] + rest).replace(b"\n", b"\r\n")


@pytest.mark.parametrize(
    ("subject", "body"),
    [
        ("plain", "one line"),
        ("dots", ".\n..\n.leading\nend."),
        ("Grüße aus Köln " * 20, "Zeile mit ä und =\n" * 30),
        ("Привет", "Привет, мир\n" * 200),
        ("large", ("y" * 70 + "\n") * 8_000),
        ("one long line", "x" * 5_000),
        ("", ""),
    ],
)
async def test_postfix_delivers_the_composed_bytes(postfix: Postfix, subject: str, body: str) -> None:
    relay = Relay(parse_server(postfix.url))
    run = context()
    payload = EmailPayload(to="ada@ok.test", subject=subject, body=body)

    await Email(relay, SENDER)(payload, run)
    await relay.close()

    assert as_sent(postfix.delivered(str(run.uid).encode())) == composed(payload, run)


async def test_postfix_delivers_to_an_international_address(postfix: Postfix) -> None:
    relay = Relay(parse_server(postfix.url))
    run = context()
    payload = EmailPayload(to="grüße@ok.test", subject="hi", body="text")

    await Email(relay, SENDER)(payload, run)
    await relay.close()

    assert as_sent(postfix.delivered(str(run.uid).encode())) == composed(payload, run)


@pytest.mark.parametrize("local", ["a+b", "grüße"])
async def test_postfix_understands_what_its_reports_are_to_say(postfix: Postfix, local: str) -> None:
    """It writes the original recipient, decoded, on top of what it delivers."""
    relay = Relay(parse_server(postfix.url))
    uid = uuid4()
    (sender, to), created_at = (parse_mailbox(text) for text in (SENDER, f"{local}@ok.test")), datetime.now(UTC)
    draft = Draft(sender, (to,), "hi", uid, created_at, "text")
    mail = Envelope(str(sender), str(to), compose(draft), draft.smtputf8, 7, envid=f"id={uid}+1")

    await relay.send(mail, nullcontext)
    await relay.close()

    delivered = postfix.delivered(str(uid).encode())
    assert f"X-Original-To: {local}@ok.test".encode() in delivered.split(b"\n\n")[0]


async def test_postfix_delivers_every_part_as_composed(postfix: Postfix) -> None:
    relay = Relay(parse_server(postfix.url))
    run = context()
    draft = Draft(
        parse_mailbox('"Queue, Task" <taskq@ok.test>'),
        (parse_mailbox("Ada Lovelace <ada@ok.test>"), parse_mailbox("Zoë Grüße <grüße@ok.test>")),
        "Grüße aus Köln " * 20,
        run.uid,
        run.created_at,
        text=".\n..\nFrom a dot\n" * 200,
        html="<p>ä</p><img src='cid:logo'>" + "<p>one long line</p>" * 500,
        cc=tuple(parse_mailbox(f'"Surname {number}, Given" <cc{number}@ok.test>') for number in range(30)),
        headers=(("X-Link", "https://example.com/" + "t" * 900), ("X-Note", "größer " * 30 + "end")),
        attachments=(
            Attachment("logo.png", "image/png", bytes(range(256)), "logo"),
            Attachment("Übersicht 2.csv", "text/csv; charset=utf-8", "a;ä\r\nb\n".encode() * 20_000),
        ),
        unsubscribe_url="https://example.com/u?t=" + "a" * 300,
    )
    message = compose(draft)

    for recipient in draft.to:
        await relay.send(Envelope(SENDER, str(recipient.address), message, draft.smtputf8, 1), nullcontext)
    await relay.close()

    assert as_sent(postfix.delivered(str(run.uid).encode())) == message


async def test_postfix_puts_off_and_refuses_in_its_own_words(postfix: Postfix) -> None:
    relay = Relay(parse_server(postfix.url))
    email = Email(relay, SENDER)

    with pytest.raises(TaskError, match=r"450 4\.2\.0 .*come back later") as later:
        await email(EmailPayload(to="later@ok.test", subject="", body=""), context())
    with pytest.raises(TaskError, match=r"550 5\.1\.1 .*this mailbox is gone") as gone:
        await email(EmailPayload(to="gone@ok.test", subject="", body=""), context())
    with pytest.raises(TaskError, match=r"554 5\.7\.1") as outside:
        await email(EmailPayload(to="ada@outside.test", subject="", body=""), context())
    await email(EmailPayload(to="ada@ok.test", subject="", body=""), context())
    opened = relay._pool.connections
    await relay.close()

    assert later.value.retryable
    assert not gone.value.retryable
    assert gone.value.reason == "permanent"
    assert not outside.value.retryable
    assert opened == 1  # refusals don't cost the connection


async def test_postfix_refuses_a_mail_above_its_size(postfix: Postfix) -> None:
    relay = Relay(parse_server(postfix.url))

    with pytest.raises(TaskError, match="552") as caught:
        await Email(relay, SENDER)(EmailPayload(to="ada@ok.test", subject="", body="ä" * 900_000), context())
    await relay.close()

    assert not caught.value.retryable


async def test_postfix_receipt_names_the_mail(postfix: Postfix) -> None:
    relay = Relay(parse_server(postfix.url))
    message = composed(EmailPayload(to="ada@ok.test", subject="", body=""), context())

    receipt = await relay.send(Envelope(SENDER, "ada@ok.test", message, False, 1), nullcontext)
    await relay.close()

    assert receipt.code == 250
    assert receipt.remote_id
    assert f"{receipt.remote_id}: " in postfix.log()


async def test_postfix_restarts_and_mail_flows_again(postfix: Postfix) -> None:
    relay = Relay(parse_server(postfix.url), breaker=Breaker(floor_s=0.01, cap_s=0.01))
    email = Email(relay, SENDER)
    payload = EmailPayload(to="ada@ok.test", subject="", body="")
    await email(payload, context())

    postfix.stop()
    with pytest.raises(Snooze):
        await email(payload, context())
    postfix.start()
    run = context()
    await email(payload, run)
    await relay.close()

    assert as_sent(postfix.delivered(str(run.uid).encode())) == composed(payload, run)
