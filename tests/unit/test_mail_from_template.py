"""A submitted mail that names a template is stored as the mail that it makes."""

import json
from pathlib import Path

import pytest
from mail_payloads import Recorder

from taskq.errors import InvalidPayload
from taskq.kinds.email import Email
from taskq.kinds.mailing import Mailing, Senders, recipient_of
from taskq.kinds.registry import Kind, make_kind
from taskq.mail.template import Templates
from taskq.task import Bundle, RetryPolicy

ATTACHED = {"filename": "a.png", "content_type": "image/png", "content": "AA==", "content_id": "logo"}


def kind_with(templates: Templates | None) -> Kind:
    senders = Senders("taskq@example.com")
    mailing = Mailing(
        senders, bytes_max=9, recipients_max=5, max_attempts=7, knows_relay=lambda _name: False, templates=templates
    )
    handler = Email(Recorder(), senders)
    return make_kind(
        "email", handler, RetryPolicy(), 1.0, max_attempts=7, ack_each=False, bundle=mailing.bundle
    )  # fmt: skip


@pytest.fixture
def kind(tmp_path: Path) -> Kind:
    for name, text in (
        ("both.subject.txt", "Hi {{ name }}"),
        ("both.txt", "Dear {{ name }}"),
        ("both.html", "<p>Dear {{ name }}</p>"),
        ("page.subject.txt", "Hi"),
        ("page.html", "<h1>Hello</h1><a href='https://example.com/'>shop</a>"),
        ("note.subject.txt", "Hi"),
        ("note.txt", "null"),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
    return kind_with(Templates(tmp_path))


def submit(kind: Kind, **fields: object) -> str | Bundle:
    return kind.prepare(json.dumps({"to": "ada@example.com"} | fields).encode())


def test_what_is_stored_is_the_mail_and_not_its_template(kind: Kind):
    stored = submit(kind, template="both", variables={"name": "Ada & Bo"})

    assert isinstance(stored, str)
    assert json.loads(stored) == {
        "to": "ada@example.com",
        "subject": "Hi Ada & Bo",
        "body": "Dear Ada & Bo",
        "html": "<p>Dear Ada &amp; Bo</p>",
    }


def test_each_of_several_recipients_gets_the_mail(kind: Kind):
    bundle = submit(kind, template="both", variables={"name": "all"}, to=["ada@example.com", "bob@example.com"])

    assert isinstance(bundle, Bundle)
    assert [json.loads(task.payload)["subject"] for task in bundle.tasks] == ["Hi all", "Hi all"]
    assert not any("template" in task.payload for task in bundle.tasks)


@pytest.mark.parametrize(
    "fields", [{"template": "page"}, {"subject": "Hi", "html": "<h1>Hello</h1><a href='https://example.com/'>shop</a>"}]
)
def test_the_text_is_written_from_the_html_where_that_is_asked(kind: Kind, fields: dict[str, object]):
    stored = submit(kind, **fields, text_from_html=True)

    assert isinstance(stored, str)
    assert json.loads(stored)["body"] == "Hello\n\nshop (https://example.com/)\n"
    assert "text_from_html" not in stored
    assert "body" not in json.loads(str(submit(kind, **fields)))


@pytest.mark.parametrize(
    ("fields", "field", "said"),
    [
        ({"template": "both"}, "variables", "both.subject.txt, line 1: the variable 'name' is missing"),
        ({"template": "bth"}, "template", "did you mean both?"),
        ({"template": "both", "subject": "x"}, "subject", "the template writes it"),
        ({"template": "both", "text": "x"}, "body", "the template writes it"),
        ({"subject": "x", "body": "x", "variables": {}}, "variables", "name it in template"),
        ({"subject": "x", "body": "x", "text_from_html": True}, "text_from_html", "no html"),
        ({"body": "x", "priority": 1}, "subject", "subject is missing"),
        ({"body": "x"}, "subject", "subject is missing"),
        ({"template": "note", "attachments": [ATTACHED]}, "attachments", "no html that could show them"),
        ({"template": "both", "variables": {"name": "\0"}}, "variables", "U+0000"),
    ],
)
def test_what_makes_no_mail_is_refused_at_submission(kind: Kind, fields: dict[str, object], field: str, said: str):
    with pytest.raises(InvalidPayload) as refused:
        submit(kind, **fields)

    assert refused.value.field == field
    assert said in str(refused.value)


def test_a_template_is_refused_where_none_are_set_up():
    with pytest.raises(InvalidPayload, match="no templates are set up: set templates_dir"):
        submit(kind_with(None), template="both")


@pytest.mark.parametrize("variables", [{}, {"variables": {}}, {"variables": {}, "text_from_html": True}])
def test_a_template_stored_by_sql_is_refused_before_it_is_sent(kind: Kind, variables: dict[str, object]):
    payload = kind.parse(json.dumps({"to": "ada@example.com", "template": "both"} | variables))

    with pytest.raises(InvalidPayload, match="taken from submissions over HTTP only"):
        recipient_of(payload)
