"""The document of a task: its timeline follows from its row and its attempts."""

from datetime import UTC, datetime, timedelta
from typing import Any

from taskq.task import Status, Task
from taskq.web.shown import EVENTS_MAX, shown_task

BORN = datetime(2026, 1, 1, 12, tzinfo=UTC)


def after(minutes: float) -> datetime:
    return BORN + timedelta(minutes=minutes)


def a_task(status: Status, **fields: Any) -> Task:
    values: dict[str, Any] = {
        "id": 7, "kind": "email", "queue": "default", "attempt": 0, "max_attempts": 10, "created_at": BORN,
        "due_at": BORN, "started_at": None, "finished_at": None, "reason": None, "last_error": None,
            "expires_at": None, "tags": None, "metadata": None, "group_id": None, "erased_at": None,
    }  # fmt: skip
    return Task(status=status, **values | fields)


def an_attempt(number: int, outcome: str, ended: float, error: str | None = None, **detail: Any) -> dict[str, Any]:
    return {
        "attempt": number, "run": number, "started_at": after(ended), "ended_at": after(ended), "outcome": outcome,
        "error": error, "times": detail.pop("times", 1), "detail": detail or None,
    }  # fmt: skip


def story(task: Task, *attempts: dict[str, Any]) -> list[dict[str, Any]]:
    """The events, their times as minutes since the birth."""
    events: Any = shown_task(task, attempts)["events"]
    return [each | {"at": (each["at"] - BORN) / timedelta(minutes=1)} for each in events]


def test_task_that_waits_was_created():
    assert story(a_task(Status.PENDING)) == [{"at": 0, "event": "created"}]


def test_task_for_later_is_scheduled():
    assert story(a_task(Status.PENDING, due_at=after(60)))[1:] == [{"at": 0, "event": "scheduled", "due_at": after(60)}]


def test_task_that_runs_was_started():
    task = a_task(Status.IN_PROGRESS, attempt=1, started_at=after(1))

    assert story(task)[1:] == [{"at": 1, "event": "started", "attempt": 1}]


def test_task_that_went_well_without_a_word_is_ok():
    task = a_task(Status.OK, attempt=1, started_at=after(1), finished_at=after(2))

    assert story(task)[1:] == [{"at": 2, "event": "Ok"}]


def test_mail_that_was_accepted_says_by_whom():
    task = a_task(Status.OK, attempt=1, started_at=after(1), finished_at=after(2))
    noted = {"relay": "main", "phase": "dot", "code": 250, "text": "2.0.0 Ok", "ms": {"data": 4}, "remote_id": "4X"}

    assert story(task, an_attempt(1, "Ok", 2, **noted, tls="TLSv1.3"))[1:] == [
        {
            "at": 2, "event": "attempt", "attempt": 1, "outcome": "Ok", "relay": "main", "phase": "dot", "code": 250,
            "text": "2.0.0 Ok", "ms": {"data": 4},
        },
        {"at": 2, "event": "accepted", "relay": "main", "remote_id": "4X"},
        {"at": 2, "event": "Ok"},
    ]  # fmt: skip


def test_failed_attempt_says_when_the_next_begins():
    task = a_task(Status.PENDING, attempt=2, due_at=after(30), started_at=after(5), last_error="450 later")

    assert story(task, an_attempt(1, "retry", 1, "450 soon"), an_attempt(2, "retry", 5, "450 later", code=450))[1:] == [
        {"at": 1, "event": "attempt", "attempt": 1, "outcome": "retry", "error": "450 soon"},
        {"at": 5, "event": "attempt", "attempt": 2, "outcome": "retry", "error": "450 later", "code": 450},
        {"at": 5, "event": "deferred", "next_at": after(30)},
    ]


def test_relay_that_is_down_defers_without_an_attempt():
    task = a_task(Status.PENDING, due_at=after(9), started_at=after(8))

    assert story(task, an_attempt(0, "snoozed", 8, "relay down", times=37, relay="main", phase="connect"))[1:] == [
        {
            "at": 8, "event": "deferred", "times": 37, "next_at": after(9), "error": "relay down", "relay": "main",
            "phase": "connect",
        },
    ]  # fmt: skip


def test_deferral_that_is_over_waits_for_nothing():
    task = a_task(Status.OK, attempt=1, started_at=after(9), finished_at=after(9))

    assert story(task, an_attempt(0, "snoozed", 8, times=2, relay="main"))[1]["next_at"] is None


def test_unknown_outcome_is_told_before_the_end():
    task = a_task(Status.FAILED, attempt=1, started_at=after(1), finished_at=after(2), reason="outcome_unknown")

    assert story(task, an_attempt(1, "failed", 2, "?", ambiguous=True, relay="main"))[1:] == [
        {"at": 2, "event": "attempt", "attempt": 1, "outcome": "failed", "error": "?", "relay": "main"},
        {"at": 2, "event": "ambiguous", "relay": "main"},
        {"at": 2, "event": "failed", "reason": "outcome_unknown"},
    ]


def test_erased_content_is_told():
    task = a_task(Status.OK, attempt=1, started_at=after(1), finished_at=after(2), erased_at=after(99))

    assert story(task)[-1] == {"at": 99, "event": "erased"}
    assert shown_task(task, [])["erased_at"] == after(99)


def test_events_come_in_the_order_of_time():
    """The record of the runs put off carries the time of the newest of them."""
    task = a_task(Status.FAILED, attempt=2, started_at=after(6), finished_at=after(7), reason="permanent")
    attempts = (an_attempt(0, "snoozed", 5, times=3), an_attempt(1, "lost", 2), an_attempt(2, "failed", 7))

    assert [each["at"] for each in story(task, *attempts)] == [0, 2, 5, 7, 7]


def test_long_story_keeps_its_beginning_and_its_end():
    task = a_task(Status.FAILED, attempt=100, started_at=after(200), finished_at=after(200), reason="permanent")
    attempts = [an_attempt(n, "retry", n, ambiguous=True) for n in range(1, 101)]

    shown = shown_task(task, attempts)
    events: Any = shown["events"]

    assert len(events) == EVENTS_MAX
    assert shown["events_left_out"] == 202 - EVENTS_MAX
    assert (events[0]["event"], events[-1]["event"]) == ("created", "failed")
