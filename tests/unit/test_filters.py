"""The filter language: what a text asks for, and what is said to one that can't be read."""

import contextlib
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.errors import InvalidFilter
from taskq.filters import KEYS, Filter, Term, parse_filter
from taskq.task import Status

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def test_empty_text_fits_all():
    assert parse_filter("  \n") == Filter()


@pytest.mark.parametrize(
    ("text", "term"),
    [
        ("kind:email", Term(("kind",), ("email",))),
        ("-kind:email,work", Term(("kind",), ("email", "work"), negated=True)),
        ('error:"550 5.1.1, said \\"no\\" \\\\"', Term(("error",), ('550 5.1.1, said "no" \\',))),
        ('to:"a,b",c', Term(("to",), ("a,b", "c"))),
        ("payload.order.id:17", Term(("payload", "order", "id"), ("17",))),
        ("to:a:b@c", Term(("to",), ("a:b@c",))),
        ('reason:""', Term(("reason",), ("",))),
    ],
)
def test_term_is_read(text: str, term: Term):
    assert parse_filter(text).terms == (term,)


@pytest.mark.parametrize(
    ("text", "statuses"),
    [
        ("status:failed,Cancelled", {Status.FAILED, Status.CANCELLED}),
        ("-status:ok", set(Status) - {Status.OK}),
        ("status:pending status:ok", set()),
    ],
)
def test_status_is_a_set(text: str, statuses: set[Status]):
    assert parse_filter(text).statuses == statuses


@pytest.mark.parametrize(
    ("text", "since"),
    [
        ("since:90m", NOW - timedelta(minutes=90)),
        ("since:7d", NOW - timedelta(days=7)),
        ("since:2026-11-01", datetime(2026, 11, 1, tzinfo=UTC)),
        ("since:2026-11-01T10:00+02:00", datetime(2026, 11, 1, 8, tzinfo=UTC)),
    ],
)
def test_moment_is_a_time_or_so_long_ago(text: str, since: datetime):
    assert parse_filter(text, now=NOW).since == since


def test_named_terms_are_joined_to_those_of_the_text():
    wanted = parse_filter("kind:email", {"status": "failed", "to": '"a, b"'})

    assert wanted.only_failed
    assert wanted.terms == (Term(("kind",), ("email",)), Term(("to",), ("a, b",)))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("stats:failed", "did you mean status?"),
        ("status:done", "use one of pending, in-progress, Ok, failed, cancelled"),
        ("bounced", "error:bounced"),
        ("kind:", "write key:value"),
        ('error:"open', "can't be read"),
        ("kind:a,", "can't be read"),
        ("since:yesterday", "write 90m, 7d or a time"),
        ("since:1d,2d", "takes one moment"),
        ("-since:1d", "takes one moment"),
        ("since:9999-12-31T23:59-10:00", "the year must be from 2 to 9998"),
        ("payload.:1", "is no path"),
        ("payload.a.b.c.d.e.f.g.h.i:1", "at most 8 parts"),
        ("kind:a " * 21, "at most 20"),
        ("kind:" + ",".join("a" * 51), "from 1 to 50"),
        ("x" * 2_001, "at most 2000"),
        ("kind:\0", "U+0000"),
    ],
)
def test_wrong_filter_is_refused_with_the_remedy(text: str, says: str):
    with pytest.raises(InvalidFilter, match=None) as raised:
        parse_filter(text, now=NOW)

    assert says in str(raised.value)


@given(st.text(max_size=80) | st.from_regex(r'-?[a-z.]{1,9}:("[^"]{0,9}"|[a-z0-9]{1,9})', fullmatch=True))
def test_no_text_raises_anything_else(text: str):
    with contextlib.suppress(InvalidFilter):
        assert isinstance(parse_filter(text), Filter)


@given(st.sampled_from(KEYS[1:7]), st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=20))
def test_any_value_can_be_asked_for(key: str, value: str):
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')

    assert parse_filter(f'{key}:"{quoted}"').terms == (Term((key,), (value,)),)
