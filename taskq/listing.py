"""Lists of tasks: the newest that fit a filter, page by page, whatever the table holds.

No count, no offset, no scan without end: a page looks at windows of rows in the order of an index,
the newest first, until it is full or its time is over, and says where the next page goes on.  So a
filter that fits nothing among millions costs each request the same as one that fits all.

Failed tasks have an index of their own; a filter for them alone walks that, the last to fail first.
"""

import asyncio
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from taskq import sql
from taskq.errors import InvalidFilter, shown
from taskq.filters import Filter
from taskq.store import Store
from taskq.task import Status, Task

__all__ = ["LIMIT_MAX", "Listing", "Page"]

LIMIT_MAX = 500
WINDOW_MIN, WINDOW_MAX = 500, 4_000  # rows looked at by one statement; a fruitless one is followed by a larger
TIME_S = 0.025  # after which a page that is not full yet is answered as it is
ID_MAX = 2**63 - 1
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LATEST = datetime(9999, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list."""

    tasks: list[Task]
    next: str | None
    """Where to go on; None: that was all."""


class Listing:
    """Reads lists."""

    def __init__(self, store: Store) -> None:
        """Prepare; the connections are those of `store`."""
        self._store = store
        self._sql = sql.load("listing")

    async def page(self, wanted: Filter, *, after: str | None, limit: int) -> Page:
        """Read a page.

        Args:
            wanted: What the tasks must be like.
            after: The `next` of the page before; None: from the newest.
            limit: Tasks at most, 1 to 500.

        Raises:
            InvalidFilter: `after` is none of ours, or of a list in another order.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + TIME_S
        failed = wanted.only_failed
        at, below = _place(after, failed=failed)
        found: list[Task] = []
        window = max(WINDOW_MIN, limit)
        while True:
            rows = await self._look(wanted, (at, below), window, limit - len(found))
            found += [Task(row[0], row[1], row[2], Status(row[3]), *row[4:17]) for row in rows if row[0] is not None]
            if not rows or (rows[0][19] < window and len(found) < limit):
                return Page(found, None)
            if len(found) >= limit:
                last = found[-1]
                return Page(found, _cursor(last.finished_at, last.id, failed=failed))
            at, below = rows[0][17], rows[0][18]
            if loop.time() >= until:
                return Page(found, _cursor(at, below, failed=failed))
            window = min(WINDOW_MAX, window * 2)

    async def _look(self, wanted: Filter, place: tuple[datetime | None, int], window: int, limit: int) -> Any:
        async with self._store.reads.session() as session:
            return await session.fetch(
                self._sql["page"],
                failed=wanted.only_failed,
                before_at=place[0] or LATEST,
                below=place[1],
                window=window,
                limit=limit,
                statuses=[int(status) for status in wanted.statuses],
                since=wanted.since,
                until=wanted.until,
                terms=orjson.dumps([asdict(term) for term in wanted.terms]).decode(),
            )


def _cursor(at: datetime | None, task_id: int, *, failed: bool) -> str:
    """Name the place behind a row: its id, for failed tasks also when it failed, in microseconds."""
    return f"{(at - EPOCH) // timedelta(microseconds=1)}-{task_id}" if failed and at else str(task_id)


def _place(cursor: str | None, *, failed: bool) -> tuple[datetime, int]:
    if cursor is None:
        return LATEST, ID_MAX
    at, dash, task_id = cursor.rpartition("-")
    good = task_id.isdecimal() and cursor.isascii() and len(cursor) <= 40 and bool(dash) == failed
    if not good or (failed and not at.isdecimal()):
        raise InvalidFilter(f"after is {shown(cursor)}: send the next of the page before, with the same filter")
    try:
        return (EPOCH + timedelta(microseconds=int(at)) if failed else LATEST), min(int(task_id), ID_MAX)
    except OverflowError:
        raise InvalidFilter(f"after is {shown(cursor)}: send the next of the page before") from None
