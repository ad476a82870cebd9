"""One task or group that is there: show it, wait for its end, cancel it, run it once more.

`GET /task/{id}` shows it, with `?wait=N` as soon as it has ended or N seconds are over;
`DELETE /task/{id}` cancels what has not ended; `POST /task/{id}/retry` runs once more what failed.  A
group is its tasks: each is waited for, cancelled, run again.
"""

import asyncio

from aiohttp import web

from taskq.bundles import Group
from taskq.control import Control
from taskq.store import Store
from taskq.task import Status
from taskq.web.answer import ID_MAX, id_of, json_answer, seconds_of
from taskq.web.group import shown_group, status_of
from taskq.web.problem import problem
from taskq.web.router import Router
from taskq.web.shown import shown_task

__all__ = ["TaskPages"]

ATTEMPTS_SHOWN_MAX = 101  # a counted one for each of at most 100 attempts, and one for all that were put off


class TaskPages:
    """The handlers for what is there."""

    def __init__(self, store: Store, control: Control, *, wait_s_max: float) -> None:
        """Prepare the handlers.

        Args:
            store: What is shown.
            control: Cancels, repeats and waits.
            wait_s_max: Seconds that a caller may wait.
        """
        self._store = store
        self._control = control
        self._wait_s_max = wait_s_max

    def add_routes(self, router: Router) -> None:
        """Add the routes."""
        router.add("GET", "/task/{id}", self.show)
        router.add("DELETE", "/task/{id}", self.cancel)
        router.add("POST", "/task/{id}/retry", self.retry)

    async def show(self, request: web.BaseRequest, argument: str) -> web.Response:
        """Show a task with what is kept of its attempts and its timeline, or a group; `?wait=N` waits for its end."""
        task_id = id_of(argument)
        if isinstance(task_id, web.Response):
            return task_id
        wait_s = 0.0
        if "?" in request.raw_path and "wait" in request.query:
            wait_s = seconds_of(request.query["wait"])
            if not 0 <= wait_s <= self._wait_s_max:
                return problem(400, "invalid_query", f"wait must be from 0 to {self._wait_s_max:g} seconds")
        task = await self._control.follow(task_id, wait_s) if task_id <= ID_MAX else None
        if task is None:
            group = await self._group(task_id, wait_s)
            return json_answer(shown_group(group)) if group else _no_such_task(task_id)
        attempts = await self._store.attempts(task_id, limit=ATTEMPTS_SHOWN_MAX) if task.started_at else []
        return json_answer(shown_task(task, attempts))

    async def cancel(self, _request: web.BaseRequest, argument: str) -> web.Response:
        """Cancel what has not ended: 200 with the status now, 202 while a run is being ended."""
        task_id = id_of(argument)
        if isinstance(task_id, web.Response):
            return task_id
        label = await self._control.cancel(task_id) if task_id <= ID_MAX else None
        if label is None:
            group = await self._group(task_id)
            if group is None:
                return _no_such_task(task_id)
            for member in group.members:
                if not member.status.final:
                    await self._control.cancel(member.id)
            label = await self._group_label(task_id)
        if label in (Status.OK.label, Status.FAILED.label):
            return problem(409, "already_ended", f"task {task_id} is {label}: only what has not ended can be cancelled")
        return json_answer({"id": task_id, "status": label}, 202 if label == Status.IN_PROGRESS.label else 200)

    async def retry(self, _request: web.BaseRequest, argument: str) -> web.Response:
        """Run once more what failed or was cancelled; let what waits for its time run now."""
        task_id = id_of(argument)
        if isinstance(task_id, web.Response):
            return task_id
        if task_id <= ID_MAX and await self._control.retry(task_id):
            return json_answer({"id": task_id, "status": Status.PENDING.label})
        task = await self._store.get(task_id) if task_id <= ID_MAX else None
        if task is None:
            group = await self._group(task_id)
            if group is None:
                return _no_such_task(task_id)
            again = [member.id for member in group.members if await self._control.retry(member.id)]
            label = await self._group_label(task_id)
            if again:
                return json_answer({"id": task_id, "status": label})
        elif task.erased_at is not None:
            return problem(409, "erased", f"the content of task {task_id} was erased: submit it again")
        else:
            label = task.status.label
        detail = f"task {task_id} is {label}: only what failed, was cancelled or waits can be run again"
        return problem(409, "not_retryable", detail)

    async def _group(self, group_id: int, wait_s: float = 0.0) -> Group | None:
        """Read a group, with `wait_s` once all its tasks have ended or that time is over."""
        if group_id > ID_MAX:
            return None
        group = await self._store.bundles.group(group_id)
        if group is None or not wait_s:
            return group
        until = asyncio.get_running_loop().time() + wait_s
        for member in group.members:
            left_s = until - asyncio.get_running_loop().time()
            if not member.status.final and left_s > 0:
                await self._control.follow(member.id, left_s)
        return await self._store.bundles.group(group_id)

    async def _group_label(self, group_id: int) -> str:
        group = await self._store.bundles.group(group_id)
        return status_of([member.status for member in group.members]).label if group else Status.CANCELLED.label


def _no_such_task(task_id: int) -> web.Response:
    return problem(404, "no_such_task", f"there is no task {task_id}: it was never stored, or its retention is over")
