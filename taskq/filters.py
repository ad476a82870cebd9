r"""The one language in which tasks are picked: by people in a search field, by programs in an address.

    status:failed,cancelled kind:email queue:default to:ada@example.com tag:receipt
    error:"550 5.1.1" since:7d until:2026-11-24T10:00Z payload.order.id:17 -kind:work

Terms are joined by "and", values with commas by "or"; a `-` before a term turns it round.  A value
with blanks, commas or quotes stands in double quotes, in which `\"` and `\\` are the quote and the
backslash.  A wrong term is refused by name, with what was probably meant.

This module is pure: text in, `Filter` out; the statement that takes one stands in `sql/listing.sql`.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from taskq.errors import InvalidFilter, shown
from taskq.task import Status

__all__ = ["KEYS", "Filter", "Term", "parse_filter"]

FILTER_CHARS_MAX = 2_000
TERMS_MAX = 20
VALUES_MAX = 50
PATH_PARTS_MAX = 8
YEARS_MAX_S = 100 * 366 * 86_400

KEYS = ("status", "kind", "queue", "tag", "reason", "to", "error", "since", "until")
"""What can be asked for; besides them `payload.PATH`."""

_LABELS = {status.label.lower(): status for status in Status}
_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_AGO = re.compile(r"(\d{1,9})([smhdw])")
_TERM = re.compile(
    r"""(?P<not>-?)(?P<key>[A-Za-z_][A-Za-z0-9_.-]*):(?P<values>(?:"(?:[^"\\]|\\["\\])*"|[^\s",]+)(?:,(?:"(?:[^"\\]|\\["\\])*"|[^\s",]+))*)(?=\s|$)"""
)
_VALUE = re.compile(r'"((?:[^"\\]|\\["\\])*)"|([^\s",]+)')
_ESCAPE = re.compile(r'\\(["\\])')


@dataclass(frozen=True, slots=True)
class Term:
    """One condition on a text."""

    path: tuple[str, ...]
    """Where the text stands: `("error",)`, or a path in the payload."""
    values: tuple[str, ...]
    """Any of them."""
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Filter:
    """What a task must be like; an empty one fits all."""

    statuses: frozenset[Status] = frozenset(Status)
    since: datetime | None = None
    until: datetime | None = None
    terms: tuple[Term, ...] = field(default=())

    @property
    def only_failed(self) -> bool:
        """Whether it asks for failed tasks and no others, which have an index of their own."""
        return self.statuses == frozenset({Status.FAILED})


def parse_filter(text: str, named: Mapping[str, str] | None = None, *, now: datetime | None = None) -> Filter:
    """Read a filter.

    Args:
        text: Terms as above, at most 2,000 characters and 20 terms.
        named: Further terms by key, each with the values as they would stand behind the colon.
        now: What `since:7d` counts back from; the present when omitted.

    Raises:
        InvalidFilter: A term can't be read or names no field.
    """
    if len(text) > FILTER_CHARS_MAX:
        raise InvalidFilter(f"the filter has {len(text)} characters: at most {FILTER_CHARS_MAX} are read")
    found = [*_terms(text), *((key, False, _values(value, key)) for key, value in (named or {}).items())]
    if len(found) > TERMS_MAX:
        raise InvalidFilter(f"the filter has {len(found)} terms: at most {TERMS_MAX} are read")
    moment = now or datetime.now(UTC)
    statuses, since, until, terms = frozenset(Status), None, None, list[Term]()
    for key, negated, values in found:
        match key:
            case "status":
                asked = frozenset(_status(value) for value in values)
                statuses &= frozenset(Status) - asked if negated else asked
            case "since" | "until":
                at = _moment(key, negated, values, moment)
                since, until = (at, until) if key == "since" else (since, at)
            case _:
                terms.append(Term(_path(key), values, negated))
    return Filter(statuses, since, until, tuple(terms))


def _terms(text: str) -> list[tuple[str, bool, tuple[str, ...]]]:
    found: list[tuple[str, bool, tuple[str, ...]]] = []
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        match = _TERM.match(text, at)
        if match is None:
            word = text[at:].split(None, 1)[0]
            raise InvalidFilter(
                f"{shown(word)} can't be read: write key:value, such as error:{word.strip(':-') or 'word'}"
            )
        found.append((match["key"], bool(match["not"]), _values(match["values"], match["key"])))
        at = match.end()
    return found


def _values(text: str, key: str) -> tuple[str, ...]:
    values = tuple(_ESCAPE.sub(r"\1", quoted) if plain == "" else plain for quoted, plain in _VALUE.findall(text))
    if not values or len(values) > VALUES_MAX:
        raise InvalidFilter(f"{key} has {len(values)} values: from 1 to {VALUES_MAX} are read")
    if any("\0" in value for value in values):
        raise InvalidFilter(f"{key} holds the character U+0000, which no stored text holds: remove it")
    return values


def _status(value: str) -> Status:
    status = _LABELS.get(value.lower())
    if status is None:
        raise InvalidFilter(f"status is {shown(value)}: use one of {', '.join(each.label for each in Status)}")
    return status


def _moment(key: str, negated: bool, values: tuple[str, ...], now: datetime) -> datetime:  # noqa: FBT001 - as read
    if negated or len(values) != 1:
        raise InvalidFilter(f"{key} takes one moment and no minus: use since and until")
    text = values[0]
    if ago := _AGO.fullmatch(text):
        return now - timedelta(seconds=min(int(ago[1]) * _UNITS_S[ago[2]], YEARS_MAX_S))
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidFilter(f"{key} is {shown(text)}: write 90m, 7d or a time such as 2026-11-24T10:00Z") from None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    if not 1 < at.year < 9_999:
        raise InvalidFilter(f"{key} is {shown(text)}: the year must be from 2 to 9998")
    return at


def _path(key: str) -> tuple[str, ...]:
    if key in KEYS:
        return (key,)
    if key.startswith("payload."):
        parts = tuple(key.split("."))
        if not all(parts) or len(parts) > PATH_PARTS_MAX + 1:
            raise InvalidFilter(f"{shown(key)} is no path: write payload.order.id, at most {PATH_PARTS_MAX} parts")
        return parts
    near = difflib.get_close_matches(key, [*KEYS, "payload."], 1)
    hint = f"did you mean {near[0]}?" if near else f"use {', '.join(KEYS)} or payload.PATH"
    raise InvalidFilter(f"{shown(key)} is nothing to filter by: {hint}")
