import base64
import hashlib
import json
from datetime import UTC, datetime, timedelta

import pytest
from mail_payloads import INSTALLATION, Mailer, mail

from taskq.errors import ConfigError, InvalidPayload
from taskq.kinds.mailing import Senders
from taskq.task import Blob, Bundle, NewTask
from taskq.uid import uid_of

CONTENT = b"\x00\xff" * 50
FILE = {"filename": "a.bin", "content_type": "application/octet-stream", "content": base64.b64encode(CONTENT).decode()}
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def refusal(mailer: Mailer | None = None, **changes: object) -> tuple[str, str]:
    with pytest.raises(InvalidPayload) as caught:
        (mailer or Mailer()).submit(**changes)
    return caught.value.field, str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"to": ["ada@example.com"]},
        {"to": "ada@example.com", "cc": ["Ada <ada@example.com>"]},
        {"html": "<p>", "reply_to": "b@x.test", "headers": {"X-A": "1"}, "from": "b@mail.test", "relay": "second"},
        {"dry_run": True, "on_ambiguous": "fail", "unsubscribe_url": "https://x.test"},
    ],
)
def test_mail_to_one_that_asks_nothing_of_the_queue_is_one_plain_row(changes: dict[str, object]) -> None:
    assert isinstance(Mailer().submit(**changes), str)


def test_each_recipient_gets_a_task_that_shows_the_same_header() -> None:
    bundle = Mailer().submit(to=["Ada <Ada@X.test>", "b@faß.de"], cc="c@x.test", bcc=["d@x.test"], html="<p>")

    assert isinstance(bundle, Bundle)
    assert bundle.grouped
    assert bundle.labels == ["Ada <Ada@X.test>", "b@faß.de", "c@x.test", "d@x.test"]
    shown = {"to": ["Ada <Ada@X.test>", "b@faß.de"], "cc": "c@x.test", "subject": "hi", "body": "text", "html": "<p>"}
    assert [json.loads(task.payload) for task in bundle.tasks] == [
        shown | {"recipient": recipient} for recipient in ("Ada@x.test", "b@xn--fa-hia.de", "c@x.test", "d@x.test")
    ]
    assert [task.max_attempts for task in bundle.tasks] == [7, 7, 7, 7]


async def test_each_recipient_gets_the_same_mail_and_nobody_sees_the_hidden() -> None:
    envelopes = await Mailer().send(to=["a@x.test"], cc=["B <b@x.test>"], bcc=["c@x.test", "grüße@x.test"])

    assert [envelope.recipient for envelope in envelopes] == ["a@x.test", "b@x.test", "c@x.test", "grüße@x.test"]
    assert [envelope.smtputf8 for envelope in envelopes] == [False, False, False, True]
    (message,) = {envelope.message for envelope in envelopes}
    assert b"\r\nTo: a@x.test\r\nCc: B <b@x.test>\r\n" in message
    assert b"c@x.test" not in message
    assert b"bcc" not in message.lower()


def test_address_named_twice_is_one_recipient() -> None:
    bundle = Mailer().submit(
        to=["Ada <ada@x.test>", "ada@X.TEST", "b@faß.de"], cc=["b@xn--fa-hia.de", "Ada@x.test"], bcc="ada@x.test"
    )

    assert isinstance(bundle, Bundle)
    assert bundle.labels == ["Ada <ada@x.test>", "b@faß.de", "Ada@x.test"]


def test_files_are_kept_once_beside_the_tasks() -> None:
    bundle = Mailer().submit(to=["a@x.test", "b@x.test"], attachments=[FILE, FILE | {"filename": "b.bin"}])

    assert isinstance(bundle, Bundle)
    assert bundle.blobs == [Blob(CONTENT)]
    for task in bundle.tasks:
        assert task.blobs == (DIGEST,)
        assert json.loads(task.payload)["attachments"] == [
            {"filename": name, "content_type": "application/octet-stream", "digest": DIGEST, "size": 100}
            for name in ("a.bin", "b.bin")
        ]


def test_mail_to_one_with_a_file_is_one_task_of_its_own() -> None:
    bundle = Mailer().submit(attachments=[FILE])

    assert isinstance(bundle, Bundle)
    assert not bundle.grouped
    assert bundle.labels == ["ada@example.com"]


async def test_files_come_back_from_where_they_are_kept() -> None:
    (envelope,) = await Mailer().send(attachments=[FILE])

    assert b'filename="a.bin"\r\n\r\n' + base64.encodebytes(CONTENT).replace(b"\n", b"\r\n") in envelope.message


def test_what_asks_the_queue_goes_to_the_task_and_leaves_the_payload() -> None:
    (task,) = Mailer().tasks(
        tags=["otp", "b", "otp"], metadata={"order": 12}, priority=-5, sensitive=True, send_at="2020-01-01T00:00:00Z"
    )

    assert task == NewTask(
        "email",
        '{"to":"ada@example.com","subject":"hi","body":"text","sensitive":true,"recipient":"ada@example.com"}',
        priority=-5,
        max_attempts=7,
        tags=("otp", "b"),
        metadata='{"order":12}',
        sensitive=True,
    )


def test_times_are_the_tasks_and_a_ttl_counts_from_when_it_is_due() -> None:
    now = datetime.now(UTC)
    send_at = (now + timedelta(days=3)).replace(microsecond=0)
    expires_at = send_at + timedelta(hours=1)

    (later,) = Mailer().tasks(send_at=send_at.isoformat(), ttl=3_600)
    (explicit,) = Mailer().tasks(send_at=send_at.isoformat(), expires_at=expires_at.isoformat())
    (soon,) = Mailer().tasks(ttl=3_600)

    assert (later.due_at, later.expires_at) == (explicit.due_at, explicit.expires_at) == (send_at, expires_at)
    assert soon.due_at is None
    assert soon.expires_at is not None
    assert timedelta(0) <= soon.expires_at - now - timedelta(hours=1) < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("changes", "field", "fact"),
    [
        ({"to": [f"a{place}@x.test" for place in range(6)]}, "to", "the mail has 6 recipients: at most 5"),
        ({"to": [f"a{n}@x.test" for n in range(3)], "bcc": [f"b{n}@x.test" for n in range(3)]}, "to", "at most 5"),
        (
            {"to": ["a@x.test", *[f"b{n}@x.test" for n in range(4)]], "html": "ä" * 10**6, "body": "ä" * 10**6},
            "to",
            "store",
        ),
        ({"from": "ada@x.test"}, "from", "mails may not be from x.test: use an address of example.com, mail.test"),
        ({"from": "ada@sub.example.com"}, "from", "may not be from sub.example.com"),
        ({"relay": "thrid"}, "relay", "relay: 'thrid' is no relay that is set up"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at", "it is past"),
        ({"send_at": "2926-01-01T00:00:00Z"}, "send_at", "more than 366 days ahead"),
        ({"expires_at": "9999-12-31T23:59:59-23:00"}, "expires_at", "more than 366 days ahead"),
        ({"recipient": "evil@x.test"}, "recipient", "recipient is no field of the kind email"),
        (
            {"attachments": [{"filename": "a", "content_type": "a/b", "digest": DIGEST, "size": 100}]},
            "attachments",
            "attachments[0]: a file is named by its content only",
        ),
    ],
)
def test_submission_is_refused_by_the_settings(changes: dict[str, object], field: str, fact: str) -> None:
    named, message = refusal(**changes)

    assert named == field
    assert fact in message


def test_files_have_a_bound_in_all() -> None:
    assert Mailer(bytes_max=200).tasks(attachments=[FILE, FILE])
    assert refusal(Mailer(bytes_max=199), attachments=[FILE, FILE]) == (
        "attachments",
        "attachments: they have 200 octets in all: at most 199 fit, send links",
    )


async def test_mail_is_from_whom_it_says() -> None:
    (envelope,) = await Mailer().send(**{"from": "Ada L. <ada@mail.test>"})

    assert envelope.sender == "ada@mail.test"
    assert envelope.message.startswith(b'From: "Ada L." <ada@mail.test>\r\n')
    assert f"Message-ID: <{uid_of(7, INSTALLATION)}@mail.test>".encode() in envelope.message


def test_senders_name_the_setting_that_is_wrong() -> None:
    assert str(Senders("Ada <ada@example.com>").default) == "Ada <ada@example.com>"
    with pytest.raises(ConfigError, match=r"TASKQ_MAIL_FROM can't.*0 @ signs"):
        Senders("nobody")
    with pytest.raises(ConfigError, match=r"TASKQ_MAIL_FROM_DOMAINS.*no valid domain"):
        Senders("ada@example.com", ["*.example.com"])


async def test_payload_stored_by_sql_is_sent_like_any_other() -> None:
    mailer = Mailer()

    await mailer.run(json.dumps(mail(to=["ada@example.com"], html="<p>", attachments=[FILE])))

    (envelope,) = mailer.transport.envelopes
    assert base64.b64encode(CONTENT)[:70] in envelope.message


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"to": ["a@x.test", "b@x.test"]}, "2 recipients"),
        ({"cc": "b@x.test"}, "2 recipients"),
        ({"bcc": "b@x.test"}, "bcc is taken from submissions over HTTP only"),
        ({"send_at": "2030-01-01T00:00:00Z"}, "send_at is taken from submissions over HTTP only"),
        ({"from": "ada@x.test"}, "may not be from x.test"),
    ],
)
async def test_payload_stored_by_sql_is_refused_when_one_row_cannot_be_it(
    changes: dict[str, object], fact: str
) -> None:
    with pytest.raises(InvalidPayload, match=fact):
        await Mailer().run(json.dumps(mail(**changes)))
