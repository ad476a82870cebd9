"""The levels of a mail, its files, and what is refused in each field."""

from datetime import UTC, datetime
from uuid import UUID

import pytest

from taskq.mail.address import parse_mailbox
from taskq.mail.compose import (
    Attachment,
    Draft,
    check_attachment,
    check_header,
    check_subject,
    check_text,
    check_unsubscribe_url,
    compose,
)

UID = UUID("01890a5d-ac96-874b-bcce-b302099a8057")
CREATED = datetime(2024, 2, 29, 7, 5, 9, tzinfo=UTC)
LOGO = Attachment("logo.png", "image/png", b"\x89PNG", "logo")
REPORT = Attachment("Übersicht.csv", "text/csv; charset=utf-8", "a;ä\n".encode())


def draft(**changes: object) -> Draft:
    values: dict[str, object] = {
        "sender": parse_mailbox('"Queue, Task" <taskq@example.com>'),
        "to": (parse_mailbox("Ada Lovelace <ada@example.org>"), parse_mailbox("b@x.test")),
        "subject": "Hello",
        "uid": UID,
        "created_at": CREATED,
        "text": "plain",
    }
    return Draft(**(values | changes))  # type: ignore[arg-type]


def test_compose_writes_every_level() -> None:
    everything = draft(
        cc=(parse_mailbox("Zoë <zoe@x.test>"),),
        reply_to=(parse_mailbox("desk@example.com"),),
        headers=(("X-Order", "12"), ("References", "<a@example.com>")),
        html='<img src="cid:logo">',
        attachments=(REPORT, LOGO),
        unsubscribe_url="https://example.com/u?t=1",
    )

    assert compose(everything).decode("ascii").split("\r\n") == [
        'From: "Queue, Task" <taskq@example.com>',
        "To: Ada Lovelace <ada@example.org>, b@x.test",
        "Cc: =?utf-8?B?Wm/Dqw==?= <zoe@x.test>",
        "Reply-To: desk@example.com",
        "Subject: Hello",
        "Date: Thu, 29 Feb 2024 07:05:09 +0000",
        "Message-ID: <01890a5d-ac96-874b-bcce-b302099a8057@example.com>",
        "Auto-Submitted: auto-generated",
        "X-Order: 12",
        "References: <a@example.com>",
        "List-Unsubscribe: <https://example.com/u?t=1>",
        "List-Unsubscribe-Post: List-Unsubscribe=One-Click",
        "MIME-Version: 1.0",
        "Content-Type: multipart/mixed;",
        ' boundary="=_01890a5dac96874bbcceb302099a8057_m"',
        "",
        "--=_01890a5dac96874bbcceb302099a8057_m",
        'Content-Type: multipart/related; type="multipart/alternative";',
        ' boundary="=_01890a5dac96874bbcceb302099a8057_r"',
        "",
        "--=_01890a5dac96874bbcceb302099a8057_r",
        "Content-Type: multipart/alternative;",
        ' boundary="=_01890a5dac96874bbcceb302099a8057_a"',
        "",
        "--=_01890a5dac96874bbcceb302099a8057_a",
        "Content-Type: text/plain; charset=utf-8",
        "Content-Transfer-Encoding: 7bit",
        "",
        "plain",
        "",
        "--=_01890a5dac96874bbcceb302099a8057_a",
        "Content-Type: text/html; charset=utf-8",
        "Content-Transfer-Encoding: 7bit",
        "",
        '<img src="cid:logo">',
        "",
        "--=_01890a5dac96874bbcceb302099a8057_a--",
        "--=_01890a5dac96874bbcceb302099a8057_r",
        "Content-Type: image/png",
        "Content-Transfer-Encoding: base64",
        "Content-Disposition: inline;",
        ' filename="logo.png"',
        "Content-ID: <logo>",
        "",
        "iVBORw==",
        "--=_01890a5dac96874bbcceb302099a8057_r--",
        "--=_01890a5dac96874bbcceb302099a8057_m",
        "Content-Type: text/csv; charset=utf-8",
        "Content-Transfer-Encoding: base64",
        "Content-Disposition: attachment;",
        " filename*=utf-8''%C3%9Cbersicht.csv",
        "",
        "YTvDpAo=",
        "--=_01890a5dac96874bbcceb302099a8057_m--",
        "",
    ]


def test_compose_encodes_a_text_that_holds_the_boundary() -> None:
    message = compose(draft(text=f"--=_{UID.hex}_a", html="<p>x</p>"))

    assert message.count(b"\r\n--=_" + UID.hex.encode()) == 3
    assert f"--=3D_{UID.hex}_a".encode() in message


def test_compose_takes_an_auto_submitted_of_ones_own() -> None:
    message = compose(draft(headers=(("auto-submitted", "auto-replied"),)))

    assert message.lower().count(b"\r\nauto-submitted:") == 1
    assert b"auto-submitted: auto-replied\r\n" in message


def test_compose_folds_between_addresses_only() -> None:
    names = [f'"Surname {number}, Given Name of some length" <a{number}@example.com>' for number in range(40)]

    head = compose(draft(to=tuple(map(parse_mailbox, names)))).partition(b"\r\nSubject:")[0].decode()

    lines = head.split("\r\n")[1:]
    assert len(lines) == 40
    assert lines[0] == f"To: {names[0]},"
    assert lines[1:] == [f" {name}," for name in names[1:-1]] + [f" {names[-1]}"]


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"to": ()}, "no recipient in to"),
        ({"text": None}, "neither text nor html"),
        ({"text": "a\0"}, "the text contains a NUL"),
        ({"text": "a\ud800"}, "the text contains '\\ud800', half of a surrogate pair, at character 1"),
        ({"html": "ä\0"}, "the html contains a NUL"),
        ({"subject": "a\r\nBcc: evil@x.test"}, "the subject contains '\\r'"),
        ({"headers": (("Bcc", "evil@x.test"),)}, "the header Bcc can't be set"),
        ({"headers": (("X-A", "1"), ("x-a", "2"))}, "the header x-a is set twice"),
        (
            {"headers": (("List-Unsubscribe", "<x>"),), "unsubscribe_url": "https://x.test"},
            "the header list-unsubscribe is set twice",
        ),
        ({"unsubscribe_url": "http://x.test"}, "the unsubscribe URL 'http://x.test' is not valid"),
        ({"attachments": (LOGO,)}, "the mail has no html"),
        ({"attachments": (LOGO, LOGO), "html": "x"}, "logo, logo are not different"),
        ({"attachments": (Attachment("a/b", "image/png", b""),)}, "the file name 'a/b' contains '/'"),
    ],
)
def test_compose_refuses_what_is_no_mail(changes: dict[str, object], fact: str) -> None:
    with pytest.raises(ValueError) as caught:
        compose(draft(**changes))

    assert type(caught.value) is ValueError
    assert fact in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "fact"),
    [
        ("", "x", "the header name '' is not valid"),
        ("X A", "x", "the header name 'X A' is not valid"),
        ("X-A\r\nBcc", "x", "is not valid"),
        ("X:", "x", "is not valid"),
        ("X-Ä", "x", "is not valid"),
        ("x" * 65, "x", "is not valid"),
        ("X-A", "a\r\nBcc: evil@x.test", "contains '\\r'"),
        ("X-A", "a\tb", "contains '\\t'"),
        ("X-A", "a\x7f", "contains '\\x7f'"),
        ("X-A", "a\0", "contains '\\x00'"),
        ("X-A", "a\u2028", "contains '\\u2028'"),
        ("X-A", "a\ud800", "contains '\\ud800'"),
        ("X-A", " a", "begins or ends with a blank"),
        ("X-A", "a" * 994, "994 characters: at most 993 fit"),
    ],
)
def test_header_is_refused(name: str, value: str, fact: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_header(name, value)

    assert fact in str(caught.value)
    assert str(caught.value).isascii()


@pytest.mark.parametrize(
    "name",
    [
        *[
            "From",
            "To",
            "Cc",
            "BCC",
            "Subject",
            "Date",
            "Message-ID",
            "message-id",
            "Sender",
            "Return-Path",
            "Received",
        ],
        *["MIME-Version", "Content-Type", "Content-Anything", "DKIM-Signature", "Resent-To", "ARC-Seal", "Reply-To"],
        *["Authentication-Results", "Delivered-To"],
    ],
)
def test_header_that_overrules_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"the header {name} can't be set: "):
        check_header(name, "x")


@pytest.mark.parametrize(
    "name", ["X-From", "To-Do", "Contents", "References", "Received-SPF-Test", "X-" + "y" * 62, "7"]
)
def test_header_of_ones_own_is_accepted(name: str) -> None:
    check_header(name, "a" * (996 - len(name)))


def test_long_token_in_a_header_stays_whole() -> None:
    token = "https://example.com/" + "t" * 900

    message = compose(draft(headers=(("X-Link", token), ("X-Links", f"{token} b"))))

    assert f"\r\nX-Link: {token}\r\n".encode() in message
    assert f"\r\nX-Links: {token}\r\n b\r\n".encode() in message


@pytest.mark.parametrize(
    ("filename", "content_type", "content_id", "fact"),
    [
        ("", "a/b", None, "names no file"),
        ("..", "a/b", None, "names no file"),
        ("../x", "a/b", None, "contains '/'"),
        ("C:\\x", "a/b", None, "contains '\\\\'"),
        ("a\r\nX: y", "a/b", None, "contains '\\r'"),
        ("a\0", "a/b", None, "contains '\\x00'"),
        ("exe\u202efdp", "a/b", None, "contains '\\u202e'"),
        ("a\ud800", "a/b", None, "contains '\\ud800'"),
        ("a ", "a/b", None, "begins or ends with a blank"),
        ("ä" * 128, "a/b", None, "256 octets: at most 255"),
        ("a", "", None, "the content type '' is not valid"),
        ("a", "text", None, "is not valid"),
        ("a", "text/plain\r\nX: y", None, "is not valid"),
        ("a", "text/plain;", None, "is not valid"),
        ("a", "text/plain; charset", None, "is not valid"),
        ("a", "text/plain; a=b c", None, "is not valid"),
        ("a", 'text/plain; a="b', None, "is not valid"),
        ("a", "text/plain; a*=utf-8''x", None, "is not valid"),
        ("a", "té/xt", None, "is not valid"),
        ("a", "a/" + "b" * 300, None, "is not valid"),
        ("a", "text/plain; a=b; A=c", None, "has one parameter twice"),
        ("a", "text/plain; name=x", None, "names the file: use filename"),
        ("a", "multipart/mixed", None, "holds further parts"),
        ("a", "Message/rfc822", None, "holds further parts"),
        ("a", "a/b", "", "the content id '' is not valid"),
        ("a", "a/b", "<x>", "is not valid"),
        ("a", "a/b", "x y", "is not valid"),
        ("a", "a/b", "x>\r\nX: y", "is not valid"),
        ("a", "a/b", "x" * 201, "is not valid"),
    ],
)
def test_attachment_is_refused(filename: str, content_type: str, content_id: str | None, fact: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_attachment(filename, content_type, content_id)

    assert fact in str(caught.value)
    assert str(caught.value).isascii()


@pytest.mark.parametrize("content_type", ["text/csv;charset=utf-8", 'text/calendar; method=REQUEST; x="a; b"', "x/y+z"])
def test_attachment_is_accepted(content_type: str) -> None:
    check_attachment("Übersicht (2).pdf", content_type, "logo.1@example.com")


@pytest.mark.parametrize(
    "url",
    [
        *["http://x.test/", "https:/x.test", "https://", "https://x.test/a b", "https://x.test/>", "https://x.test/ä"],
        *["https://u@x.test/", "javascript:x", "https://x.test/\r\n", "mailto:x@x.test", "https://x.test/" + "x" * 900],
    ],
)
def test_unsubscribe_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="the unsubscribe URL"):
        check_unsubscribe_url(url)


def test_checks_accept_what_is_sent() -> None:
    check_unsubscribe_url("https://x.test:8443/u?t=a,b;c&d=%C3%A4#e")
    check_subject("Grüße \x92")
    check_text("any\r\ntext \t\x0b長い", "text")
    with pytest.raises(ValueError, match="the subject has 999 characters: at most 998"):
        check_subject("x" * 999)
