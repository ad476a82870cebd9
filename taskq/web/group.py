"""Show a group: the tasks that one submission became, under one id.

    {"id": 12, "status": "failed", "kind": "email", "created_at": "…",
     "counts": {"pending": 0, "in-progress": 0, "Ok": 2, "failed": 1, "cancelled": 0},
     "recipients": [{"to": "ada@example.com", "id": 13, "status": "Ok", "reason": null, "last_error": null}, …]}

Its status is one of the five.  While any of its tasks is open it is `in-progress` if one runs, else
`pending`; then `failed` if one failed, `cancelled` if one was cancelled, and `Ok` only if all are.
"""

from collections.abc import Collection

from taskq.bundles import Group
from taskq.task import Status

__all__ = ["shown_group", "status_of"]

_FIRST_WINS = (Status.IN_PROGRESS, Status.PENDING, Status.FAILED, Status.CANCELLED, Status.OK)


def status_of(statuses: Collection[Status]) -> Status:
    """Return the status of a group by those of its tasks, of which there is at least one."""
    return next(status for status in _FIRST_WINS if status in statuses)


def shown_group(group: Group) -> dict[str, object]:
    """Make the document of a group."""
    statuses = [member.status for member in group.members]
    return {
        "id": group.id,
        "status": status_of(statuses).label,
        "kind": group.kind,
        "created_at": group.created_at,
        "counts": {status.label: statuses.count(status) for status in Status},
        "recipients": [
            {
                "to": member.label,
                "id": member.id,
                "status": member.status.label,
                "reason": member.reason,
                "last_error": member.last_error,
            }
            for member in group.members
        ],
    }
