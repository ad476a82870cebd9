"""Tasks as documents: what `GET /task/{id}` and the lists show of one.

Pure functions from what the store read to what JSON can say; times stay times until the answer is
written, which puts them into UTC.
"""

import orjson

from taskq.task import Task

__all__ = ["shown_task"]


def shown_task(task: Task) -> dict[str, object]:
    """Show the columns of a task."""
    given = {
        "expires_at": task.expires_at,
        "tags": task.tags,
        "metadata": None if task.metadata is None else orjson.Fragment(task.metadata),
        "group": task.group_id,
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
