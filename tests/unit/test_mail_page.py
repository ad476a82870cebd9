import json
import re
from pathlib import Path

import pytest
from mail_payloads import Mailer, mail

from taskq.errors import InvalidPayload

PAGE = (Path(__file__).parents[2] / "docs" / "mail.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\w+)` \|.*\| `(.+)` \|$", PAGE, re.MULTILINE)
PARTS = re.findall(r"^\| `(\w+)` \|", PAGE.partition("## Attachments")[2], re.MULTILINE)
SCHEMA = Mailer().kind.payload.json_schema()


def test_page_names_exactly_the_fields() -> None:
    assert sorted(name for name, _ in ROWS) == sorted(SCHEMA["properties"])
    assert sorted(PARTS) == sorted(SCHEMA["$defs"]["FilePayload"]["properties"])


OTHERS = {  # what goes with an example, ... what goes without
    "text": {"body": ...},
    "template": {"subject": ..., "body": ...},
    "variables": {"subject": ..., "body": ..., "template": "welcome"},
    "text_from_html": {"body": ..., "html": "<p>Hello</p>"},
}


@pytest.mark.parametrize(("name", "example"), ROWS, ids=[name for name, _ in ROWS])
def test_example_of_the_page_is_taken(name: str, example: str) -> None:
    fields = OTHERS.get(name, {}) | {name: json.loads(example)}

    assert Mailer().kind.check(json.dumps(mail(**fields)).encode())


@pytest.mark.parametrize("field", sorted(SCHEMA["properties"]))
def test_page_says_that_null_is_no_value(field: str) -> None:
    assert "set to `null`" in PAGE
    with pytest.raises(InvalidPayload, match=field):
        Mailer().kind.check(json.dumps(mail(**{field: None})).encode())
