"""What a captured mail holds: ours as they were meant, others' as well as they can be read."""

import base64
import json
from email.message import EmailMessage

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.mail.reader import decode_words, read_mail, subject_of

HEAD = b"From: a@x.test\r\nSubject: Hi\r\n"


def by_library() -> bytes:
    message = EmailMessage()
    message["From"] = "Ada <ada@x.test>"
    message["Subject"] = "Grüße aus Köln – 長い件名 " * 3
    message.set_content("Bitte bestätigen: https://x.test/confirm?t=1&u=2.\n")
    message.add_alternative(
        '<p><a href="https://x.test/a?b=1&amp;c=2">ja</a> <img src="cid:logo@x"></p>', subtype="html"
    )
    html: EmailMessage = message.get_payload(1)
    html.add_related(b"\x89PNG", "image", "png", cid="<logo@x>")
    message.add_attachment(b"%PDF", maintype="application", subtype="pdf", filename="Rechnung März.pdf")
    message.add_attachment("a,b\n", subtype="csv", filename="list.csv")
    return bytes(message).replace(b"\n", b"\r\n")


def test_reading_takes_a_mail_apart() -> None:
    reading = read_mail(by_library())

    assert reading.header("subject") == subject_of(by_library()) == ("Grüße aus Köln – 長い件名 " * 3).strip()
    assert reading.text.strip() == "Bitte bestätigen: https://x.test/confirm?t=1&u=2."
    assert reading.html.startswith("<p>")
    assert [(each.filename, each.content_type, each.content_id, each.content) for each in reading.attachments] == [
        ("", "image/png", "logo@x", b"\x89PNG"),
        ("Rechnung März.pdf", "application/pdf", "", b"%PDF"),
        ("list.csv", "text/csv", "", b"a,b\r\n"),
    ]
    assert reading.links == ["https://x.test/a?b=1&c=2", "https://x.test/confirm?t=1&u=2"]


def test_reading_shows_headers_in_their_order() -> None:
    reading = read_mail(b"B: 1\r\nA: =?utf-8?q?=C3=A4?=\r\n =?utf-8?q?_b?=\r\nb: 2\r\n\r\nx")

    assert reading.headers == [("B", "1"), ("A", "ä b"), ("b", "2")]
    assert (reading.header("b"), reading.header("c")) == ("1", "")


@pytest.mark.parametrize(
    ("raw", "subject"),
    [
        (b"Subject: plain\r\n\r\n", "plain"),
        (b"sUBJECT:plain\r\n\r\n", "plain"),
        (b"X-Subject: no\r\nSubject: yes\r\nSubject: second\r\n\r\n", "yes"),
        (b"A: b\r\n\r\nSubject: in the text\r\n", ""),
        (b"Subject: folded\r\n over\r\n\tlines\r\n\r\n", "folded over\tlines"),
        (b"Subject: =?utf-8?B?R3LDvMOf?= =?utf-8?B?ZQ==?=\r\n\r\n", "Grüße"),
        (b"Subject: =?iso-8859-1?Q?K=F6ln_=3D?= and =?x?Q?y?=\r\n\r\n", "Köln = and y"),
        (b"Subject: =?utf-8?B?!?=\r\n\r\n", ""),
        (b"Subject: =?utf-8?B?A?=\r\n\r\n", "=?utf-8?B?A?="),
        (b"Subject: =?punycode?Q?aaaa?=\r\n\r\n", "aaaa"),
        ("Subject: raw ä\r\n\r\n".encode(), "raw ä"),
        (b"Subject: latin \xe4\r\n\r\n", "latin \ufffd"),
        (b"Subject: a\0b\r\n\r\n", "a\ufffdb"),
        (b"Subject:\r\n\r\n", ""),
        (b"Subject: no end", "no end"),
        (b"", ""),
    ],
)
def test_subject_is_read_from_any_header(raw: bytes, subject: str) -> None:
    assert subject_of(raw) == subject


def test_subject_is_bounded() -> None:
    assert len(subject_of(b"Subject: " + b"x" * 10_000 + b"\r\n\r\n")) == 2_000


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"\r\nonly a body", "only a body"),
        (b"Content-Type: text/plain; charset=iso-8859-1\r\n\r\n\xe4", "ä"),
        (b"Content-Type: text/plain; charset=nonsense\r\n\r\n\xc3\xa4", "ä"),
        (b"Content-Type: text/plain; charset=unicode_escape\r\n\r\n\\d", "\\d"),
        (b"Content-Type: text/plain; charset=utf-7\r\n\r\n+2AA-", "+2AA-"),
        (b"Content-Type: text/plain\r\nContent-Transfer-Encoding: base64\r\n\r\nR3J!", "Gr"),
        (b"Content-Type: text/plain\r\nContent-Transfer-Encoding: x-uuencode\r\n\r\nbroken", "broken"),
        (b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nnever closed", "never closed"),
        (b"Content-Type: multipart/mixed\r\n\r\nno boundary", "no boundary"),
        (b"Content-Type: //\r\n\r\nx", "x"),
        (b"no header at all\r\n", "no header at all\r\n"),
        (b"Content-Type: text/plain\r\n\r\na\0b", "a\ufffdb"),
    ],
)
def test_text_of_a_broken_mail_is_shown_all_the_same(raw: bytes, text: str) -> None:
    assert read_mail(HEAD + raw if raw.startswith(b"Content") else raw).text == text


def test_parts_within_parts_without_end_are_shown_as_text() -> None:
    deep = b"".join(b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n) for n in range(2_000))

    assert read_mail(deep).text or read_mail(deep).attachments == []


def test_links_are_found_once_each_and_without_what_follows_them() -> None:
    text = "see (https://x.test/a), https://x.test/a. HTTP://y.test/b?c=d! ftp://z.test/ mailto:a@x.test"
    html = '<a HREF=\'https://h.test/1\'>x</a><a href="javascript:alert(1)">y</a><a href="https://h.test/\'2">'
    message = EmailMessage()
    message.set_content(text)
    message.add_alternative(html, subtype="html")

    assert read_mail(bytes(message)).links == [
        "https://h.test/1", "https://h.test/'2", "https://x.test/a", "HTTP://y.test/b?c=d",
    ]  # fmt: skip


@pytest.mark.parametrize("brick", [b'<a href="', b"href=", b"https://x", b"=?utf-8?q?", b"--b\r\n", b"<", b"&amp;"])
def test_reading_takes_time_in_proportion_to_the_mail(brick: bytes) -> None:
    html = b"Content-Type: text/html\r\n\r\n" + brick * (400_000 // len(brick))
    plain = b"Subject: " + brick * 2_000 + b"\r\n\r\n" + brick * (400_000 // len(brick))

    assert read_mail(html).html
    assert read_mail(plain).text


headers = st.lists(
    st.sampled_from(
        [
            b"Content-Type: multipart/mixed; boundary=b\r\n", b"Content-Type: text/html; charset=",
            b"Content-Transfer-Encoding: base64\r\n", b"Content-Transfer-Encoding: quoted-printable\r\n",
            b"Content-Disposition: attachment; filename*=utf-8''%ff; filename*1*=x\r\n", b"Content-ID: <\xff>\r\n",
            b"Content-Disposition: ;;;=\r\n", b"Subject: =?utf-8?b?", b"--b\r\n", b"--b--\r\n", b"\r\n", b"\0",
            b"Content-Type: message/rfc822\r\n", b"Content-Type: message/delivery-status\r\n", b"utf-16\r\n",
            b"\xed\xa0\x80", b"=FF=\r\n",
        ]
    ) | st.binary(max_size=12),
    max_size=25,
).map(b"".join)  # fmt: skip


@given(raw=headers)
def test_any_octets_are_read_into_what_json_can_say(raw: bytes) -> None:
    reading = read_mail(raw)

    shown = [reading.headers, reading.text, reading.html, reading.links, subject_of(raw), reading.header("message-id")]
    shown += [[each.filename, each.content_type, each.content_id] for each in reading.attachments]
    assert orjson.dumps(shown)
    assert "\\u0000" not in json.dumps(shown)


@given(text=st.text(max_size=60).filter(lambda text: text.isprintable()))
def test_encoded_words_are_read_as_they_were_written(text: str) -> None:
    word = "=?utf-8?b?" + base64.b64encode(text.encode()).decode() + "?="

    assert decode_words(word) == text
