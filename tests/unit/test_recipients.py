"""Whom a stored mail is for."""

import json

import pytest

from taskq.kinds.recipients import recipients_of


@pytest.mark.parametrize(
    ("payload", "recipients"),
    [
        ({"to": "ada@ok.test"}, ["ada@ok.test"]),
        ({"to": "Ada <ada@OK.test>"}, ["ada@ok.test"]),
        ({"to": ["ada@ok.test", "Bob <bob@ok.test>"], "cc": ["ada@ok.test", "eve@ok.test"]}, ["ada", "bob", "eve"]),
        ({"to": ["ada@ok.test", "bob@ok.test"], "recipient": "bob@ok.test"}, ["bob@ok.test"]),
        ({"to": "ada@ok.test", "cc": None, "recipient": None}, ["ada@ok.test"]),
        ({"to": ["nobody", 7, "ada@ok.test"]}, ["ada@ok.test"]),
        ({"to": {"name": "Ada"}}, []),
        ({}, []),
    ],
)
def test_recipients_are_those_of_the_envelope(payload: dict[str, object], recipients: list[str]) -> None:
    named = [each if "@" in each else f"{each}@ok.test" for each in recipients]

    assert recipients_of(json.dumps(payload)) == named
