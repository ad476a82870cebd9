"""Whatever a draft holds comes out of the standard library's parser as it went in, or is refused.

Where the parser is wrong about display names (Python 3.11 keeps the blank between two encoded words),
its parts are asked: `getaddresses` splits, `decode_header` decodes.
"""

import email
import email.policy
import re
from datetime import UTC, datetime
from email.header import decode_header, make_header
from email.message import Message
from email.utils import getaddresses
from urllib.parse import unquote

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mail_texts import (
    CASES,
    UID,
    addresses,
    any_text,
    field_names,
    filenames,
    files,
    mailboxes,
    one_line,
    several_lines,
    types,
    urls,
)

from taskq.mail.address import Mailbox, parse_address, parse_mailbox
from taskq.mail.compose import Attachment, Draft, compose

CREATED = datetime(2024, 2, 29, 7, 5, 9, 123_456, tzinfo=UTC)


def unique(pairs: list[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple({name: (name, value) for name, value in pairs}.values())


@st.composite
def drafts(
    draw: st.DrawFn, lines: st.SearchStrategy[str] = one_line, texts: st.SearchStrategy[str] = several_lines
) -> Draft:
    html = draw(st.none() | texts)
    text = draw(texts if html is None else st.none() | texts)
    attachments = {attachment.content_id or number: attachment for number, attachment in enumerate(draw(files))}
    return Draft(
        sender=draw(mailboxes),
        to=tuple(draw(st.lists(mailboxes, min_size=1, max_size=5))),
        subject=draw(lines),
        uid=UID,
        created_at=CREATED,
        text=text,
        html=html,
        cc=tuple(draw(st.lists(mailboxes, max_size=2))),
        reply_to=tuple(draw(st.lists(mailboxes, max_size=1))),
        headers=unique(draw(st.lists(st.tuples(field_names, lines), max_size=3))),
        attachments=tuple(each for each in attachments.values() if each.content_id is None or html is not None),
        unsubscribe_url=draw(st.none() | urls),
        unsubscribe_mailto=draw(st.none() | addresses.map(parse_address)),
    )


def fields_of(message: bytes) -> list[tuple[str, str]]:
    """Unfold the header without any parser."""
    fields: list[tuple[str, str]] = []
    for line in message.partition(b"\r\n\r\n")[0].decode().split("\r\n"):
        if line.startswith(" "):
            assert line.strip(" ")
            fields[-1] = (fields[-1][0], fields[-1][1] + line)
        else:
            name, colon, value = line.partition(":")
            assert colon
            fields.append((name, value.removeprefix(" ")))
    return fields


def decoded(value: str) -> str:
    return str(make_header(decode_header(value)))


def expected_fields(draft: Draft) -> list[str]:
    added = [name for name, _ in draft.headers]
    return [
        *["From", "To"],
        *(["Cc"] if draft.cc else []),
        *(["Reply-To"] if draft.reply_to else []),
        *["Subject", "Date", "Message-ID"],
        *([] if "Auto-Submitted" in added else ["Auto-Submitted"]),
        *added,
        *(["List-Unsubscribe"] if draft.unsubscribe_url or draft.unsubscribe_mailto else []),
        *(["List-Unsubscribe-Post"] if draft.unsubscribe_url else []),
        *["MIME-Version", "Content-Type"],
    ]


def leaves_of(parsed: Message) -> list[tuple[str | None, str | None, str | None, bytes]]:
    leaves: list[tuple[str | None, str | None, str | None, bytes]] = []
    for part in parsed.walk():
        assert part.defects == []
        if not part.is_multipart():
            content = part.get_payload(decode=True)
            assert isinstance(content, bytes)
            leaves.append((part["Content-Type"], part.get_filename(), part["Content-ID"], content))
    return leaves


def expected_leaves(draft: Draft) -> list[tuple[str | None, str | None, str | None, bytes]]:
    leaves: list[tuple[str | None, str | None, str | None, bytes]] = []
    for subtype, text in (("plain", draft.text), ("html", draft.html)):
        if text is not None:
            lines = re.sub("\r\n|\r", "\n", text)
            lines = lines if lines.endswith("\n") else lines + "\n"
            content = lines.replace("\n", "\r\n").encode()
            leaves.append((f"text/{subtype}; charset=utf-8", None, None, content))
    for one in sorted(draft.attachments, key=lambda one: one.content_id is None):  # stable: pictures first
        identity = None if one.content_id is None else f"<{one.content_id}>"
        leaves.append((one.content_type, one.filename, identity, one.content))
    return leaves


def levels_of(parsed: Message) -> list[str]:
    return [part.get_content_subtype() for part in parsed.walk() if part.is_multipart()]


def expected_levels(draft: Draft) -> list[str]:
    inline = [one for one in draft.attachments if one.content_id is not None]
    return [
        *(["mixed"] if len(inline) < len(draft.attachments) else []),
        *(["related"] if inline else []),
        *(["alternative"] if draft.text is not None and draft.html is not None else []),
    ]


def check(draft: Draft) -> None:
    message = compose(draft)

    head = message.partition(b"\r\n\r\n")[0]
    assert message == compose(draft)
    assert message.endswith(b"\r\n")
    assert message.count(b"\r") == message.count(b"\n") == message.count(b"\r\n")
    assert max(map(len, message.split(b"\r\n"))) <= 998
    assert message.isascii() or (draft.smtputf8 and message[len(head) :].isascii())
    fields = fields_of(message)
    assert [name for name, _ in fields if name != "Content-Transfer-Encoding"] == expected_fields(draft)
    values = dict(fields)
    assert decoded(values["Subject"]) == draft.subject
    for name, value in draft.headers:
        assert decoded(values[name]) == value
    if draft.unsubscribe_url is not None:
        assert f"\r\nList-Unsubscribe: <{draft.unsubscribe_url}>".encode() in message
    if draft.unsubscribe_mailto is not None:
        mailto = values["List-Unsubscribe"].rpartition("<mailto:")[2]
        assert unquote(mailto) == f"{draft.unsubscribe_mailto}?subject=unsubscribe>"
    for name, shown in (("From", (draft.sender,)), ("To", draft.to), ("Cc", draft.cc), ("Reply-To", draft.reply_to)):
        if shown:
            found = [(decoded(text), address) for text, address in getaddresses([values[name]])]
            assert found == [(mailbox.name, str(mailbox.address)) for mailbox in shown]
    parsed = email.message_from_bytes(message)
    assert leaves_of(parsed) == expected_leaves(draft)
    assert levels_of(parsed) == expected_levels(draft)


@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
@given(drafts())
def test_compose_keeps_every_draft(draft: Draft) -> None:
    check(draft)


@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_compose_keeps_or_refuses_any_text(data: st.DataObject) -> None:
    refused = ""
    try:
        named = Mailbox(data.draw(any_text | one_line), parse_address("ada@example.com"))
        attachment = Attachment(
            data.draw(any_text | filenames),
            data.draw(types | any_text),
            b"content",
            data.draw(st.sampled_from([None, "i1"]) | any_text),
        )
        header = (data.draw(field_names | any_text), data.draw(any_text | one_line))
        draft = Draft(
            sender=named,
            to=(parse_mailbox(data.draw(addresses | any_text)), named),
            subject=data.draw(any_text | one_line),
            uid=UID,
            created_at=CREATED,
            text=data.draw(any_text | several_lines),
            html=data.draw(any_text | several_lines),
            headers=(header,) if data.draw(st.booleans()) else (),
            attachments=(attachment,) if data.draw(st.booleans()) else (),
            unsubscribe_url=data.draw(st.none() | urls | any_text),
        )
        compose(draft)
    except ValueError as error:
        refused = f"{type(error).__name__} {error}"

    if refused:
        assert re.match(r"ValueError the .*[:,] ", refused)
        assert refused.isascii()
    else:
        check(draft)


@settings(max_examples=CASES, deadline=None)
@given(st.builds(lambda name, address: f"{name}<{address}>", any_text, addresses | any_text) | any_text)
def test_mailbox_is_one_or_refused(text: str) -> None:
    try:
        mailbox = parse_mailbox(text)
    except ValueError:
        return

    assert parse_mailbox(str(mailbox)) == mailbox
    assert str(parse_address(str(mailbox.address))) == str(mailbox.address)
    if mailbox.address.local.isascii() and "xn--" not in mailbox.address.domain:
        header = email.message_from_bytes(
            compose(Draft(mailbox, (mailbox,), "", UID, CREATED, "")), policy=email.policy.SMTP
        )
        assert [each.addr_spec for each in header["To"].addresses] == [str(mailbox.address)]
