"""From a body to what is to be stored: options reach the task, wrong ones are named with the remedy."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from taskq.errors import InvalidPayload, UnknownKind
from taskq.kinds.registry import Registry, make_kind
from taskq.submission import read_submission
from taskq.task import Bundle, NewTask, RetryPolicy


async def work(_payload: dict[str, Any]) -> None:
    """Do nothing."""


def split(payload: dict[str, Any]) -> Bundle | None:
    """One task for each of `to`."""
    names = payload.get("to")
    if names is None:
        return None
    return Bundle([NewTask("work", "{}", queue="own", tags=("own",)) for _ in names], names, [], grouped=True)


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    registry.add(make_kind("work", work, RetryPolicy(), 10, max_attempts=7, ack_each=False, bundle=split))
    return registry


def read(registry: Registry, payload: Any = None, **options: Any) -> NewTask:
    taken = read_submission(registry, json.dumps({"kind": "work", "payload": payload or {}} | options).encode())
    assert isinstance(taken, NewTask)
    return taken


def test_submission_without_options_has_the_defaults_of_its_kind(registry: Registry):
    assert read(registry, {"a": 1}) == NewTask("work", '{"a":1}', max_attempts=7)


def test_options_reach_the_task(registry: Registry):
    new = read(registry, queue="Q.1_-", priority=-100, max_attempts=1, tags=["a b", "ü"], metadata={"n": 2**70})

    assert (new.queue, new.priority, new.max_attempts, new.tags) == ("Q.1_-", -100, 1, ("a b", "ü"))
    assert json.loads(new.metadata or "") == {"n": 2**70}


def test_moments_are_given_as_times_or_in_seconds(registry: Registry):
    at = datetime(2030, 1, 1, 10, tzinfo=UTC)

    given = read(registry, due_at="2030-01-01T12:00+02:00", expires_at="2030-01-01T10:00:00Z")
    began = datetime.now(UTC)
    spans = read(registry, delay_s=60, ttl_s=3600.5)
    ended = datetime.now(UTC)

    assert (given.due_at, given.expires_at) == (at, at)
    assert began <= (spans.due_at or at) - timedelta(seconds=60) <= ended
    assert began <= (spans.expires_at or at) - timedelta(seconds=3600.5) <= ended


def test_options_win_over_what_the_kind_gives_each_task_of_a_bundle(registry: Registry):
    body = {"kind": "work", "payload": {"to": ["a", "b"]}, "priority": 5, "tags": ["given"]}

    bundle = read_submission(registry, json.dumps(body).encode())

    assert isinstance(bundle, Bundle)
    assert [(new.queue, new.priority, new.tags) for new in bundle.tasks] == [("own", 5, ("given",))] * 2


@pytest.mark.parametrize(
    ("options", "field", "says"),
    [
        ({"queu": 1}, "queu", "did you mean queue?"),
        ({"zzz": 1}, "zzz", "the fields are kind, payload, queue"),
        ({"queue": "a b"}, "queue", "pattern"),
        ({"queue": ""}, "queue", "pattern"),
        ({"queue": "a\n"}, "queue", "pattern"),
        ({"priority": 101}, "priority", "less than or equal to 100"),
        ({"priority": True}, "priority", "valid integer"),
        ({"max_attempts": 0}, "max_attempts", "greater than or equal to 1"),
        ({"due_at": "2030-01-01T10:00"}, "due_at", "no time zone"),
        ({"due_at": "tomorrow"}, "due_at", "due_at: "),
        ({"due_at": "2030-01-01T10:00Z", "delay_s": 1}, "", "due_at and delay_s say the same"),
        ({"expires_at": "2030-01-01T10:00Z", "ttl_s": 1}, "", "expires_at and ttl_s say the same"),
        ({"delay_s": -1}, "delay_s", "greater than or equal to 0"),
        ({"delay_s": 1e12}, "delay_s", "less than or equal to"),
        ({"ttl_s": 0}, "ttl_s", "greater than 0"),
        ({"tags": ["a"] * 11}, "tags", "at most 10"),
        ({"tags": ["a", ""]}, "tags", "tags[1]: "),
        ({"tags": ["a\nb"]}, "tags", "tags[0]: "),
        ({"metadata": {"a": "x" * 4_096}}, "", "metadata takes 4104 bytes: at most 4096"),
        ({"metadata": []}, "metadata", "valid dictionary"),
        ({"payload": {"a": "\0"}}, "", "U+0000"),
    ],
)
def test_wrong_option_is_named_with_the_remedy(registry: Registry, options: dict[str, Any], field: str, says: str):
    with pytest.raises(InvalidPayload) as raised:
        read(registry, **options)

    assert raised.value.field == field
    assert says in str(raised.value)


def test_kind_that_is_not_there_is_told_apart(registry: Registry):
    with pytest.raises(UnknownKind, match="did you mean work"):
        read_submission(registry, b'{"kind":"wrok","payload":{}}')
