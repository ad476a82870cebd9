"""Lists of tasks: `GET /tasks?filter=…`, the newest first.

Each term of the filter language may also be a parameter of its own: `/tasks?status=failed&to=ada`.
A page holds `next` until the list is at its end; that may be so for a page with no task in it, where
many rows had to be looked at.
"""

from aiohttp import web

from taskq.filters import KEYS, parse_filter
from taskq.listing import LIMIT_MAX, Listing
from taskq.web.answer import json_answer
from taskq.web.problem import problem
from taskq.web.router import Router
from taskq.web.shown import shown_row

__all__ = ["TaskList"]


class TaskList:
    """The handler of the list."""

    def __init__(self, listing: Listing) -> None:
        """Prepare; `listing` reads the pages."""
        self._listing = listing

    def add_routes(self, router: Router) -> None:
        """Add the route."""
        router.add("GET", "/tasks", self.list_tasks)

    async def list_tasks(self, request: web.BaseRequest, _argument: str) -> web.Response:
        """Answer a page of tasks that fit the filter."""
        query = request.query
        limit = query.get("limit", "50")
        if not (limit.isascii() and limit.isdecimal() and len(limit) <= 4 and 1 <= int(limit) <= LIMIT_MAX):
            return problem(400, "invalid_query", f"limit must be a whole number from 1 to {LIMIT_MAX}", field="limit")
        named: dict[str, str] = {}
        for name, value in query.items():
            if name in KEYS or name.startswith("payload."):
                named[name] = value
            elif name not in ("filter", "limit", "after"):
                return problem(
                    400,
                    "invalid_query",
                    f"{name} is no parameter of /tasks: use filter, limit and after, or a term such as status",
                    field=name,
                )
        wanted = parse_filter(query.get("filter", ""), named)
        page = await self._listing.page(wanted, after=query.get("after"), limit=int(limit))
        return json_answer({"tasks": [shown_row(task) for task in page.tasks], "next": page.next})
