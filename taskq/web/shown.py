"""How a task is shown: its row, its attempts, and the timeline that follows from both.

Nothing is stored as an event.  What happened to a task follows from its row and from the record of
its attempts, so the timeline is right whenever they are, and costs nothing until somebody looks.
Pure functions: the rows in, the document out.

An event has the time `at`, a name and what belongs to it, the oldest first.  What a handler noted in
an attempt (for a mail: relay, phase, code, text, times) stands under `detail` of the attempt; the
events repeat only what tells the story.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, cast

import orjson

from taskq.task import Status, Task

__all__ = ["EVENTS_MAX", "shown_row", "shown_task"]

EVENTS_MAX = 100
TOLD = ("relay", "phase", "code", "enhanced", "text", "ms")  # of what was noted, where an attempt's event tells it

Event = dict[str, Any]
Attempt = Mapping[str, Any]


def shown_task(task: Task, attempts: Sequence[Attempt]) -> dict[str, object]:
    """Return the document of a task.

    Args:
        task: Its row.
        attempts: What is kept of its attempts, oldest first: `attempt`, `run`, `started_at`,
            `ended_at`, `outcome`, `error`, `times` and `detail`, an object or None.
    """
    events = sorted(_events(task, attempts), key=_at)  # stable: what comes from one moment keeps its order
    left_out = max(0, len(events) - EVENTS_MAX)
    if left_out:
        events = [events[0], *events[left_out + 1 :]]  # how it began, and the newest
    return shown_row(task) | {"attempts": attempts, "events": events, "events_left_out": left_out}


def shown_row(task: Task) -> dict[str, object]:
    """Return what lists show of a task: its columns, those that few tasks have only where they are set."""
    given = {
        "expires_at": task.expires_at,
        "tags": task.tags,
        "metadata": None if task.metadata is None else orjson.Fragment(task.metadata),
        "group": task.group_id,
        "erased_at": task.erased_at,
    }
    shown: dict[str, object] = {
        "id": task.id,
        "status": task.status.label,
        "kind": task.kind,
        "queue": task.queue,
        "attempt": task.attempt,
        "max_attempts": task.max_attempts,
        "created_at": task.created_at,
        "due_at": task.due_at,
        "started_at": task.started_at,
        "finished_at": task.finished_at,
        "reason": task.reason,
        "last_error": task.last_error,
    }
    return shown | {name: value for name, value in given.items() if value is not None}


def _at(event: Event) -> datetime:
    return cast("datetime", event["at"])


def _events(task: Task, attempts: Sequence[Attempt]) -> Iterator[Event]:
    yield {"at": task.created_at, "event": "created"}
    if task.started_at is None and task.due_at > task.created_at:
        yield {"at": task.created_at, "event": "scheduled", "due_at": task.due_at}
    for number, attempt in enumerate(attempts, 1):
        waits = number == len(attempts) and task.status is Status.PENDING
        yield from _attempt_events(attempt, task.due_at if waits else None)
    if task.status is Status.IN_PROGRESS:
        yield {"at": task.started_at, "event": "started", "attempt": task.attempt}
    if task.finished_at is not None:
        reason = {"reason": task.reason} if task.reason else {}
        yield {"at": task.finished_at, "event": task.status.label} | reason
    if task.erased_at is not None:
        yield {"at": task.erased_at, "event": "erased"}


def _attempt_events(attempt: Attempt, next_at: datetime | None) -> Iterator[Event]:
    """Tell one attempt; `next_at` is when the next may begin, where this one is the newest and the task waits."""
    at, outcome, error = attempt["ended_at"], attempt["outcome"], attempt["error"]
    detail = cast("dict[str, object]", attempt["detail"] or {})
    told = {name: detail[name] for name in TOLD if name in detail}
    why = {"error": error} if error else {}
    if outcome == "snoozed":
        yield {"at": at, "event": "deferred", "times": attempt["times"], "next_at": next_at} | why | told
        return
    yield {"at": at, "event": "attempt", "attempt": attempt["attempt"], "outcome": outcome} | why | told
    if detail.get("ambiguous"):
        yield {"at": at, "event": "ambiguous"} | {name: detail[name] for name in ("relay",) if name in detail}
    elif outcome == "Ok" and "relay" in detail:
        yield {"at": at, "event": "accepted", "relay": detail["relay"], "remote_id": detail.get("remote_id")}
    if next_at is not None:
        yield {"at": at, "event": "deferred", "next_at": next_at}
