import json

import pytest
from mail_payloads import Mailer, mail

from taskq.errors import InvalidPayload
from taskq.kinds.email import EmailPayload

THREE = b'{"To":"example@gmail.com","subject":"Test Subject","body":"Test E-Mail Body"}'
FILE = {"filename": "a.txt", "content_type": "text/plain", "content": "YWJj"}


def checked(**changes: object) -> dict[str, object]:
    """What is stored of a mail."""
    return json.loads(Mailer().kind.check(json.dumps(mail(**changes)).encode()))


def refusal(**changes: object) -> tuple[str, str]:
    with pytest.raises(InvalidPayload) as caught:
        Mailer().kind.check(json.dumps(mail(**changes)).encode())
    return caught.value.field, str(caught.value)


def test_three_fields_are_stored_as_these_three() -> None:
    kind = Mailer().kind

    stored = kind.check(THREE)

    assert stored == '{"to":"example@gmail.com","subject":"Test Subject","body":"Test E-Mail Body"}'
    assert kind.check(stored.encode()) == stored
    assert kind.bundle is not None
    assert kind.bundle(kind.parse(stored)) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"to": "Ada Lovelace <ada@example.com>"},
        {"to": ["ada@example.com", '"Lovelace, Ada" <b@x.test>']},
        {"cc": [], "bcc": "b@x.test", "reply_to": ["c@x.test", "D <d@x.test>"]},
        {"from": "Ada <ada@mail.test>"},
        {"subject": "Grüße\u00a0😀", "body": "tab\t, vt\v, 😀\r\n"},
        {"body": ..., "html": "<p>hi"},
        {"html": "<p>hi"},
        {"headers": {"X-Order": "12", "References": "<a@x.test>"}},
        {"attachments": [FILE | {"content_id": "logo"}, FILE], "html": "<img src=cid:logo>"},
        {"attachments": []},
        {"unsubscribe_url": "https://x.test/u?t=1", "unsubscribe_mailto": "leave@x.test"},
        {"send_at": "2030-01-01T00:00:00Z", "expires_at": "2030-01-01T00:00:00.500000Z"},
        {"send_at": "2030-01-01T00:00:00+05:30", "ttl": 1},
        {"tags": ["otp", "größe"] * 5},
        {"metadata": {"order": 12, "nested": {"list": [1.5, None, True]}}},
        {"priority": -100},
        {"priority": 100},
        {"relay": "second"},
        {"dry_run": True, "on_ambiguous": "fail", "sensitive": False},
    ],
    ids=",".join,
)
def test_good_fields_are_stored_as_given(changes: dict[str, object]) -> None:
    assert checked(**changes) == mail(**changes)


@pytest.mark.parametrize(
    ("changes", "stored"),
    [
        ({"to": "u@FASS.example"}, {"to": "u@fass.example"}),
        ({"to": "u@faß.de"}, {"to": "u@xn--fa-hia.de"}),
        ({"to": "  Ada  <u@faß.de>"}, {"to": "Ada <u@xn--fa-hia.de>"}),
        ({"to": {"name": "B, C", "email": "x@y.test"}}, {"to": '"B, C" <x@y.test>'}),
        ({"cc": [{"email": "x@y.test"}]}, {"cc": ["x@y.test"]}),
        ({"to": ..., "To": ["x@y.test"]}, {"to": ["x@y.test"]}),
        ({"body": ..., "text": "the same"}, {"body": "the same"}),
    ],
)
def test_other_ways_to_say_it_are_stored_in_one(changes: dict[str, object], stored: dict[str, object]) -> None:
    assert checked(**changes) == mail(**stored)


@pytest.mark.parametrize(
    ("changes", "field", "fact"),
    [
        ({"to": "nobody"}, "to", "to: the address 'nobody' contains 0 @ signs"),
        ({"to": "a@x.test, b@x.test"}, "to", "to: the address"),
        ({"to": "a@x.test\r\nBcc: evil@x.test"}, "to", "blank or control character"),
        ({"to": "A\r\nBcc: evil@x.test <a@x.test>"}, "to", "to: "),
        ({"to": ["a@x.test", "b@x.test", "c@x.test", "nobody"]}, "to", "to[3]: the address 'nobody'"),
        ({"to": [["a@x.test"]]}, "to", "to[0]: this is no mailbox"),
        ({"to": []}, "to", "to: the list is empty"),
        ({"to": None}, "to", "to: this is no mailbox"),
        ({"to": 5}, "to", "to: this is no mailbox"),
        ({"to": {"name": "Ada"}}, "to", "to: this is no mailbox"),
        ({"to": {"name": None, "email": "a@x.test"}}, "to", "to: this is no mailbox"),
        ({"to": {"email": "a@x.test", "nmae": "A"}}, "to", "to: this is no mailbox"),
        ({"to": {"email": "A <a@x.test>"}}, "to", "to: the address"),
        ({"to": [{"name": "A\nB", "email": "a@x.test"}]}, "to", "to[0]: the display name"),
        ({"to": ...}, "to", "to is missing: the kind email needs it"),
        ({"To": "second@example.com"}, "To", "To is no field of the kind email: did you mean to?"),
        ({"cc": ["a@x.test", 5]}, "cc", "cc[1]: this is no mailbox"),
        ({"bcc": "nobody"}, "bcc", "bcc: the address"),
        ({"reply_to": None}, "reply_to", "reply_to: this is no mailbox"),
        ({"from": ["a@x.test"]}, "from", "from: this is no mailbox"),
        ({"subject": ...}, "subject", "subject is missing: the kind email needs it"),
        ({"subject": 5}, "subject", "valid string"),
        ({"subject": "a\r\nBcc: evil@x.test"}, "subject", "without control characters"),
        ({"subject": "a\x00b"}, "subject", "without control characters"),
        ({"subject": "a\u2028b"}, "subject", "without control characters"),
        ({"subject": "x" * 999}, "subject", "at most 998"),
        ({"body": ...}, "body", "body: it is missing, and html is too"),
        ({"body": "x" * 1_000_001}, "body", "at most 1000000"),
        ({"body": "a\x00b"}, "body", "NUL"),
        ({"text": "x"}, "text", "text: it is another name of body"),
        ({"html": "a\x00b"}, "html", "the html contains a NUL"),
        ({"headers": {"Bcc": "evil@x.test"}}, "headers", "the header Bcc can't be set"),
        ({"headers": {"X-A\r\nBcc": "evil@x.test"}}, "headers", "is not valid"),
        ({"headers": {"X-A": "1\r\nBcc: evil@x.test"}}, "headers", "without control characters"),
        ({"headers": {"X-A": "1", "x-a": "2"}}, "headers", "the header x-a is set twice"),
        ({"headers": {"X-A": 5}}, "headers", "headers.X-A: Input should be a valid string"),
        ({"headers": {f"X-{place}": "" for place in range(51)}}, "headers", "at most 50"),
        ({"headers": [["X-A", "1"]]}, "headers", "should be an object"),
        ({"attachments": [FILE, FILE | {"filename": "../a"}]}, "attachments", "attachments[1]: the file name"),
        ({"attachments": [FILE | {"content_type": "text"}]}, "attachments", "attachments[0]: the content type"),
        ({"attachments": [FILE | {"content": "YWJ\n"}]}, "attachments", "attachments[0].content: this is no base64"),
        ({"attachments": [FILE | {"content": "YWI"}]}, "attachments", "attachments[0].content: this is no base64"),
        ({"attachments": [FILE | {"content": [1]}]}, "attachments", "attachments[0].content: this is no text"),
        ({"attachments": [FILE | {"content": "é"}]}, "attachments", "attachments[0].content: this is no base64"),
        ({"attachments": [FILE | {"contents": ""}]}, "attachments", "attachments[0].contents is no field"),
        ({"attachments": [FILE | {"contents": ""}]}, "attachments", "did you mean content?"),
        (
            {"attachments": [{"filename": "a", "content_type": "a/b"}]},
            "attachments",
            "attachments[0].content is missing",
        ),
        ({"attachments": [FILE] * 101}, "attachments", "at most 100"),
        ({"attachments": [FILE | {"content_id": "a"}]}, "attachments", "attachments[0].content_id: no html is there"),
        (
            {"attachments": [FILE | {"content_id": "a"}] * 2, "html": ""},
            "attachments",
            "attachments[1].content_id: another file has this content id",
        ),
        ({"unsubscribe_url": "http://x.test"}, "unsubscribe_url", "write one https URL"),
        ({"unsubscribe_mailto": "mailto:a@x.test?cc=b@x.test"}, "unsubscribe_mailto", "the address"),
        (
            {"unsubscribe_mailto": "a@x.test", "headers": {"list-unsubscribe": "<https://x.test>"}},
            "headers",
            "the header list-unsubscribe is written for",
        ),
        ({"send_at": "2030-01-01T00:00:00"}, "send_at", "timezone"),
        ({"send_at": "tomorrow"}, "send_at", "valid datetime"),
        ({"send_at": 1_900_000_000}, "send_at", "valid datetime"),
        ({"expires_at": "2030-01-01"}, "expires_at", "valid datetime"),
        ({"expires_at": "2030-01-01T00:00:00Z", "ttl": 5}, "ttl", "expires_at says the same"),
        (
            {"send_at": "2030-01-01T00:00:00Z", "expires_at": "2030-01-01T01:00:00+01:00"},
            "expires_at",
            "it is not after send_at",
        ),
        ({"ttl": 0}, "ttl", "greater than or equal to 1"),
        ({"ttl": "60"}, "ttl", "valid integer"),
        ({"tags": ["a"] * 11}, "tags", "at most 10"),
        ({"tags": ["a", "x" * 65]}, "tags", "tags[1]: String should have at most 64"),
        ({"tags": [""]}, "tags", "tags[0]: the tag '' is no word"),
        ({"tags": ["a\nb"]}, "tags", "tags[0]: the tag 'a\\nb' is no word"),
        ({"tags": "a"}, "tags", "valid array"),
        ({"metadata": []}, "metadata", "should be an object"),
        ({"metadata": {"a": "x" * 4_096}}, "metadata", "at most 4096"),
        ({"metadata": {"a": "\0"}}, "metadata", "U+0000"),
        ({"metadata": {"a": float("nan")}}, "metadata", "the number nan"),
        ({"priority": 101}, "priority", "less than or equal to 100"),
        ({"priority": -101}, "priority", "greater than or equal to -100"),
        ({"priority": True}, "priority", "valid integer"),
        ({"priority": 1.0}, "priority", "valid integer"),
        ({"relay": ""}, "relay", "at least 1"),
        ({"dry_run": "yes"}, "dry_run", "valid boolean"),
        ({"on_ambiguous": "maybe"}, "on_ambiguous", "'retry' or 'fail'"),
        ({"sensitive": None}, "sensitive", "valid boolean"),
        ({"subjet": "typo"}, "subjet", "did you mean subject?"),
        ({"colour": "red"}, "colour", "the fields are from, to, subject, body"),
    ],
)
def test_bad_field_is_refused_by_its_name(changes: dict[str, object], field: str, fact: str) -> None:
    named, message = refusal(**changes)

    assert named == field
    assert fact in message


@pytest.mark.parametrize("field", ["to", "subject", "body", "html", "from", "relay"])
def test_lone_surrogate_is_refused(field: str) -> None:
    assert refusal(**{field: "a\ud800@example.com"})[1].startswith("Invalid JSON")


def test_what_is_written_only_for_stored_mails_is_not_shown() -> None:
    shown = str(Mailer().kind.payload.json_schema())

    assert "recipient" in EmailPayload.__annotations__
    assert "'recipient'" not in shown
    assert "digest" not in shown
