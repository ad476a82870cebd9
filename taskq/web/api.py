"""Take submissions: `POST /task/`.

The answer comes when the row is committed, or all that the submission has become (`Bundle`): several
tasks are answered with the id of their group and theirs.  With `Prefer: wait=N` it comes when the task
has ended, or after N seconds, and tells the status.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

from aiohttp import hdrs, web

from taskq.budget import Budget
from taskq.bundles import Stored
from taskq.control import Control
from taskq.intake import Intake
from taskq.kinds.registry import Registry
from taskq.submission import read_submission
from taskq.task import NewTask
from taskq.web.answer import json_answer, preferred_wait_s
from taskq.web.body import arrived_body, read_body
from taskq.web.created import created, created_group
from taskq.web.problem import problem
from taskq.web.router import Router

__all__ = ["Api"]

THREAD_BYTES_MIN = 262_144  # checking takes about 3 ms per MB: beyond this it would stall the event loop


Admit = Callable[[Sequence[NewTask]], Awaitable[None]]


class Api:
    """The handler of submissions."""

    def __init__(
        self, registry: Registry, intake: Intake, control: Control, budget: Budget, *, wait_s_max: float, admit: Admit
    ) -> None:
        """Prepare the handler.

        Args:
            registry: Kinds of work that may be submitted.
            intake: Where submissions go.
            control: Waits for the end of a task.
            budget: Bytes of the larger bodies under way.
            wait_s_max: Seconds that a caller may wait for a task to end.
            admit: Lets tasks pass before they are stored, or raises a `SubmissionError`.
        """
        self._registry = registry
        self._intake = intake
        self._control = control
        self._wait_s_max = wait_s_max
        self._budget = budget
        self._admit = admit
        self.stopping = False

    def add_routes(self, router: Router) -> None:
        """Add the routes."""
        router.add("POST", "/task/", self.create_task)
        router.add("POST", "/task", self.create_task)

    async def create_task(self, request: web.BaseRequest, _argument: str) -> web.StreamResponse:
        """Store a task; 201 means that it is committed and flushed."""
        if self.stopping:
            return problem(503, "stopping", "this process is stopping: submit to another one", retry_after_s=1)
        if hdrs.CONTENT_ENCODING in request.headers:
            return problem(415, "compressed_body", "the body is compressed: send it as plain JSON")
        if request.content.is_eof():
            stored, labels = await self._store(arrived_body(request))
        else:
            with contextlib.ExitStack() as until_stored:
                stored, labels = await self._store(await read_body(request, self._budget, until_stored))
        if stored.group_id is None:
            return await self._created(request, stored.ids[0])
        return created_group(stored.group_id, zip(labels, stored.ids, strict=True))

    async def _store(self, body: bytes) -> tuple[Stored, list[str]]:
        """Store what a body asks for; return what it has become, with the names of its tasks."""
        if len(body) < THREAD_BYTES_MIN:
            taken = read_submission(self._registry, body)
        else:
            taken = await asyncio.to_thread(read_submission, self._registry, body)
        del body  # large, and needed no more
        await self._admit([taken] if isinstance(taken, NewTask) else taken.tasks)
        if isinstance(taken, NewTask):
            return Stored([await self._intake.submit(taken)], None), []
        return await self._intake.submit_bundle(taken), taken.labels

    async def _created(self, request: web.BaseRequest, task_id: int) -> web.StreamResponse:
        if "Prefer" not in request.headers:
            return created(request, task_id)
        wait_s = preferred_wait_s(request.headers["Prefer"], self._wait_s_max)
        if not wait_s:
            return created(request, task_id)
        task = await self._control.follow(task_id, wait_s)
        document = {"message": "Task Created", "id": task_id, "status": task.status.label if task else "pending"}
        answer = json_answer(document, 201)
        answer.headers["Preference-Applied"] = f"wait={wait_s:g}"
        return answer
