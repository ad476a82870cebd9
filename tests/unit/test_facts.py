"""What is kept of a run: bounded, storable whatever was noted, and without addresses where it is private."""

import json
import math
from enum import IntEnum, StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.facts import DETAIL_BYTES_MAX, TEXT_CHARS_MAX, detail_of, mask_addresses

ACCEPTED = {"relay": "smtp://relay:587", "phase": "dot", "code": 250, "text": "2.0.0 Ok: queued as 4XYZ", "ms": 12.5}


class Word(StrEnum):
    DOT = "dot"


class Number(IntEnum):
    LOST = -1


class Mute:
    def __str__(self) -> str:
        raise RuntimeError("no")


def detail(*facts: dict[str, Any], private: bool = False) -> dict[str, Any]:
    stored = detail_of(facts, private=private)
    assert stored is not None
    return json.loads(stored)


def test_nothing_noted_is_nothing_stored():
    assert detail_of([]) is None


def test_one_note_is_stored_as_it_is():
    assert detail(ACCEPTED) == ACCEPTED


def test_the_last_note_is_on_top_and_the_others_follow():
    first, second = {"relay": "a", "code": 451}, {"relay": "b", "code": 421}

    assert detail(first, second, ACCEPTED) == {**ACCEPTED, "earlier": [first, second]}


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (None, None),
        (True, True),
        (Word.DOT, "dot"),
        (Number.LOST, -1),
        (2**64, str(2**64)),
        (math.nan, "nan"),
        (b"raw", "b'raw'"),
        ("nul \0 and\r\nline", "nul   and line"),
        ("half \ud800", "half \\ud800"),
        (("a", 1), ["a", 1]),
        (Mute(), "a Mute that has no text: RuntimeError"),
        ([[[["too deep"]]]], [[["['too deep']"]]]),
    ],
)
def test_values_that_json_does_not_know_are_told_in_words(value: object, stored: object):
    assert detail({"value": value})["value"] == stored


def test_long_texts_are_cut():
    assert detail({"text": "x" * 10_000}) == {"text": "x" * TEXT_CHARS_MAX}


def test_oldest_notes_are_left_out_first_and_counted():
    notes = [{"try": n, "text": "x" * 490} for n in range(20)]

    kept = detail(*notes)

    assert kept["try"] == 19
    assert [each["try"] for each in kept["earlier"]] == list(range(kept["left_out"], 19))
    assert kept["left_out"] > 0


def test_fields_of_the_last_note_are_left_out_when_it_is_too_large_itself():
    kept = detail({f"field{n}": "x" * 490 for n in range(40)})

    assert next(iter(kept)) == "field0"
    assert kept["left_out"] + len(kept) - 1 == 40


@given(
    st.lists(
        st.dictionaries(
            st.text(),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
                lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
                max_leaves=8,
            ),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_anything_becomes_a_bounded_object_without_nul(facts: list[dict[str, Any]]):
    stored = detail_of(facts)

    assert stored is not None
    assert len(stored.encode()) <= DETAIL_BYTES_MAX
    assert isinstance(json.loads(stored), dict)
    assert "\\u0000" not in stored


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("550 5.1.1 <ada@example.com>: user unknown", "550 5.1.1 <a***@example.com>: user unknown"),
        ("ada.l+x@example.com, bob@[192.0.2.1]", "a***@example.com, b***@[192.0.2.1]"),
        ("RCPT TO:<jürgen@example.com>", "RCPT TO:<j***@example.com>"),
        ("to='ada@example.com'", "to='a***@example.com'"),
        ("a @ b, 5@ 6", "a @ b, 5@ 6"),
        ("nothing to hide", "nothing to hide"),
    ],
)
def test_addresses_in_texts_are_masked(text: str, masked: str):
    assert mask_addresses(text) == masked


def test_private_facts_hold_no_address_but_keep_names():
    facts = {"text": "<ada@example.com> ok", "remote_id": "77@relay.example.com", "peers": [{"to": "ada@example.com"}]}

    assert detail(facts, private=True) == {
        "text": "<a***@example.com> ok",
        "remote_id": "77@relay.example.com",
        "peers": [{"to": "a***@example.com"}],
    }
    assert detail(facts)["text"] == "<ada@example.com> ok"
