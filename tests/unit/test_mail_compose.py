import email
import email.policy
from datetime import UTC, datetime, timedelta, timezone
from email.header import decode_header, make_header
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.mail.address import parse_mailbox
from taskq.mail.compose import Draft, compose

UID = UUID("01890a5d-ac96-774b-bcce-b302099a8057")
CREATED = datetime(2024, 2, 29, 7, 5, 9, 123_456, tzinfo=UTC)

lines = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp"), include_characters=" \t"))
subjects = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), max_size=998)
ascii_subjects = st.text(st.sampled_from("abc =?.ZQ"), max_size=998)
bodies = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=3_000)
line_ends = st.text(st.sampled_from("a.\r\n ä"), max_size=60)
wide_bodies = line_ends | st.builds("\n".join, st.lists(lines | st.text("=.ä x", max_size=1_200), max_size=6))


def draft(subject: str = "Hello", body: str = "text", **changes: object) -> Draft:
    values: dict[str, object] = {
        "sender": parse_mailbox("taskq@example.com"),
        "to": (parse_mailbox("ada@example.org"),),
        "subject": subject,
        "text": body,
        "uid": UID,
        "created_at": CREATED,
    }
    return Draft(**(values | changes))  # type: ignore[arg-type]


def normalised(body: str) -> str:
    body = body.replace("\r\n", "\n").replace("\r", "\n")
    return body if body.endswith("\n") else body + "\n"


def header(message: bytes, name: bytes) -> bytes:
    """Return the raw value of one header, folds included."""
    head = message.partition(b"\r\n\r\n")[0]
    fields: list[bytes] = []
    for line in head.split(b"\r\n"):
        if line.startswith(b" "):
            fields[-1] += b"\r\n" + line
        else:
            fields.append(line)
    (value,) = [field.partition(b":")[2] for field in fields if field.partition(b":")[0] == name]
    return value


def subject_of(message: bytes) -> str:
    value = header(message, b"Subject").replace(b"\r\n", b"").removeprefix(b" ").decode("ascii")
    return str(make_header(decode_header(value)))


def test_compose_writes_these_bytes() -> None:
    assert compose(draft("Test Subject", "Test E-Mail Body")) == (
        b"From: taskq@example.com\r\n"
        b"To: ada@example.org\r\n"
        b"Subject: Test Subject\r\n"
        b"Date: Thu, 29 Feb 2024 07:05:09 +0000\r\n"
        b"Message-ID: <01890a5d-ac96-774b-bcce-b302099a8057@example.com>\r\n"
        b"Auto-Submitted: auto-generated\r\n"
        b"MIME-Version: 1.0\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\n"
        b"Content-Transfer-Encoding: 7bit\r\n"
        b"\r\n"
        b"Test E-Mail Body\r\n"
    )


def test_compose_converts_the_date_to_utc() -> None:
    local = CREATED.astimezone(timezone(timedelta(hours=-9)))

    assert compose(draft(created_at=local)) == compose(draft())


def test_compose_omits_the_blank_of_an_empty_subject() -> None:
    assert header(compose(draft("")), b"Subject") == b""


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        ("plain", b" 7bit"),
        ("", b" 7bit"),
        ("x" * 998 + "\n" + "y" * 998, b" 7bit"),
        ("x" * 999, b" quoted-printable"),
        ("mostly ascii, one ä", b" quoted-printable"),
        ("Привет, мир", b" base64"),
    ],
)
def test_compose_chooses_the_smallest_safe_encoding(body: str, encoding: bytes) -> None:
    assert header(compose(draft("Hello", body)), b"Content-Transfer-Encoding") == encoding


def test_compose_writes_an_international_address_as_utf8() -> None:
    message = compose(draft(to=(parse_mailbox("grüße@bücher.example"),)))

    assert header(message, b"To") == " grüße@xn--bcher-kva.example".encode()


def test_compose_folds_a_long_subject_between_words() -> None:
    subject = "word " * 40 + "end"

    value = header(compose(draft(subject)), b"Subject")

    assert value.count(b"\r\n") >= 2
    assert value.replace(b"\r\n", b"") == b" " + subject.encode()
    assert max(map(len, (b"Subject:" + value).split(b"\r\n"))) <= 78


@pytest.mark.parametrize("subject", ["x" * 989, "short " + "y" * 900, "y" * 500 + "   " + "z" * 300])
def test_compose_never_breaks_a_long_token(subject: str) -> None:
    value = header(compose(draft(subject)), b"Subject")

    assert value.replace(b"\r\n", b"") == b" " + subject.encode()


@pytest.mark.parametrize("subject", ["x" * 998, "=?utf-8?q?evil?=", " leading", "trailing ", "Grüße"])
def test_compose_encodes_a_subject_that_plain_text_would_change(subject: str) -> None:
    message = compose(draft(subject))

    assert b"=?utf-8?B?" in header(message, b"Subject")
    assert subject_of(message) == subject


@given(subjects | ascii_subjects)
def test_compose_keeps_every_subject(subject: str) -> None:
    message = compose(draft(subject))

    assert subject_of(message) == subject
    for line in header(message, b"Subject").split(b"\r\n"):
        assert line.strip() or not subject
        assert len(line) <= 998 - len("Subject:")
        for word in line.split():
            if word.startswith(b"=?utf-8?B?"):
                assert len(word) <= 75
                assert len(line) <= 76


@given(subjects, bodies | wide_bodies)
def test_compose_agrees_with_the_standard_parser(subject: str, body: str) -> None:
    message = compose(draft(subject, body))

    parsed = email.message_from_bytes(message, policy=email.policy.SMTP)
    assert parsed.defects == []
    assert parsed["From"] == "taskq@example.com"
    assert parsed["To"].addresses[0].addr_spec == "ada@example.org"
    assert parsed["Date"].datetime == CREATED.replace(microsecond=0)
    assert parsed["Message-ID"] == f"<{UID}@example.com>"
    assert parsed["Auto-Submitted"] == "auto-generated"
    assert parsed.get_content_type() == "text/plain"
    decoded = parsed.get_payload(decode=True)
    assert isinstance(decoded, bytes)
    assert decoded.decode() == normalised(body).replace("\n", "\r\n")


@given(subjects, bodies | wide_bodies)
def test_compose_makes_seven_bit_lines_of_allowed_length(subject: str, body: str) -> None:
    message = compose(draft(subject, body))

    assert message.isascii()
    assert message.endswith(b"\r\n")
    assert message.count(b"\r") == message.count(b"\n") == message.count(b"\r\n")
    assert max(map(len, message.split(b"\r\n"))) <= 998
    assert message == compose(draft(subject, body))
