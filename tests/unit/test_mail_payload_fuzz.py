"""Whatever is submitted is refused in our words, or goes to exactly those it names, as it was meant.

The way is the whole one of a payload: submission, tasks, stored JSON, handler, envelope.  What comes
out is read by the standard library's parser.
"""

import base64
import email
import re
from email.utils import getaddresses

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mail_payloads import Mailer
from mail_texts import CASES, addresses, any_text, field_names, filenames, one_line, several_lines, types, urls

from taskq.errors import SubmissionError
from taskq.kinds.email import EmailPayload
from taskq.mail.address import Mailbox, parse_address, parse_mailbox

OURS = frozenset(
    {
        *["from", "to", "cc", "reply-to", "subject", "date", "message-id", "auto-submitted", "mime-version"],
        *["list-unsubscribe", "list-unsubscribe-post", "content-type", "content-transfer-encoding"],
    }
)

few = st.sampled_from(["a@x.test", "A@x.test", "b@X.test"])  # so that recipients are named twice
mailboxes = st.one_of(
    few, addresses, st.builds(lambda name, address: {"name": name, "email": address}, one_line, addresses | few)
)


def some(each: st.SearchStrategy[object], least: int = 0) -> st.SearchStrategy[object]:
    return each | st.lists(each, min_size=least, max_size=3)


def files(names: st.SearchStrategy[str], kinds: st.SearchStrategy[str]) -> st.SearchStrategy[list[object]]:
    content = st.binary(max_size=60).map(lambda data: base64.b64encode(data).decode())
    return st.lists(st.fixed_dictionaries({"filename": names, "content_type": kinds, "content": content}), max_size=3)


payloads = st.fixed_dictionaries(
    {"to": some(mailboxes, 1), "subject": one_line, "body": several_lines},
    optional={
        "html": several_lines,
        "cc": some(mailboxes),
        "bcc": some(mailboxes),
        "reply_to": some(mailboxes),
        "from": st.sampled_from(["A <a@example.com>", "b@mail.test"]),
        "headers": st.dictionaries(field_names, one_line, max_size=3),
        "attachments": files(filenames, types),
        "unsubscribe_url": urls,
        "unsubscribe_mailto": addresses,
        "ttl": st.just(60),
        "sensitive": st.booleans(),
    },
)
anything = st.one_of(
    any_text,
    some(any_text),
    some(st.builds(lambda name, address: f"{name} <{address}>", any_text, addresses)),
    some(st.builds(lambda name, address: {"name": name, "email": address}, any_text, addresses | any_text)),
    st.dictionaries(field_names | any_text, any_text, max_size=2),
    files(any_text, types | any_text),
    st.none() | st.booleans() | st.integers() | st.floats() | st.just([]),
    st.sampled_from(["2020-01-01T00:00:00Z", "2030-01-01T00:00:00+01:00", "9999-12-31T23:59:59-23:59"]),
)
surprises = st.dictionaries(
    st.sampled_from([*EmailPayload.__annotations__, "To", "x"]), anything, min_size=1, max_size=2
)


def addresses_of(fields: dict[str, object], *names: str) -> list[str]:
    """Return the addresses in fields that were taken, in our own way."""
    found: list[str] = []
    for name in names:
        field = fields.get(name, [])
        for entry in field if isinstance(field, list) else [field]:
            mailbox = Mailbox("", parse_address(entry["email"])) if isinstance(entry, dict) else parse_mailbox(entry)
            found.append(str(mailbox.address))
    return found


def check_message(message: bytes, fields: dict[str, object]) -> None:
    assert message.count(b"\r") == message.count(b"\n") == message.count(b"\r\n")
    assert max(map(len, message.split(b"\r\n"))) <= 998
    names = [name.lower() for name in email.message_from_bytes(message)]
    assert len(set(names)) == len(names)
    assert set(names) <= {*OURS, *(name.lower() for name in fields.get("headers", {}))}
    for field, given_in in (("from", ["from"]), ("to", ["to", "To"]), ("cc", ["cc"]), ("reply-to", ["reply_to"])):
        shown = [address for _, address in getaddresses([header_of(message, field)])]
        assert shown == (addresses_of(fields, *given_in) or (["taskq@example.com"] if field == "from" else []))
    hidden = {*addresses_of(fields, "bcc")} - {*addresses_of(fields, "from", "to", "To", "cc", "reply_to")}
    assert not [address for address in hidden if f"<{address}>" in head_of(message)]


async def check(fields: dict[str, object]) -> None:
    mailer = Mailer()
    try:
        made = mailer.submit(**{"to": ..., "body": ...} | fields)
    except SubmissionError as error:
        refused = str(error)
    else:
        refused = ""
        for payload in [made] if isinstance(made, str) else [task.payload for task in made.tasks]:
            await mailer.run(payload)

    envelopes = mailer.transport.envelopes
    assert bool(refused) is not bool(envelopes)
    if envelopes:
        assert [each.recipient for each in envelopes] == [*dict.fromkeys(addresses_of(fields, "to", "To", "cc", "bcc"))]
        assert len({each.message for each in envelopes}) == 1
        assert all(each.smtputf8 or (each.message.isascii() and each.recipient.isascii()) for each in envelopes)
        check_message(envelopes[0].message, fields)


def head_of(message: bytes) -> str:
    return message.partition(b"\r\n\r\n")[0].decode()


def header_of(message: bytes, name: str) -> str:
    found = re.search(rf"^{name}: ((?:.|\r\n )*?)\r\n(?! )", head_of(message) + "\r\n", re.IGNORECASE | re.MULTILINE)
    return found.group(1).replace("\r\n", "") if found else ""


@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
@given(payloads)
async def test_payload_goes_to_those_it_names_and_says_what_it_says(fields: dict[str, object]) -> None:
    await check(fields)


@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
@given(payloads, surprises)
async def test_any_payload_is_sent_as_meant_or_refused(fields: dict[str, object], others: dict[str, object]) -> None:
    await check(fields | others)
