"""Take submissions: `POST /task/`.

The answer comes when the row is committed, or all that the submission has become (`Bundle`): several
tasks are answered with the id of their group and theirs.  With `Prefer: wait=N` it comes when the task
has ended, or after N seconds, and tells the status.
"""

import asyncio
import contextlib

from aiohttp import hdrs, web

from taskq.budget import Budget
from taskq.config import Settings
from taskq.control import Control
from taskq.errors import InvalidPayload
from taskq.intake import Intake
from taskq.kinds.registry import Registry
from taskq.submission import read_submission
from taskq.task import NewTask
from taskq.web.answer import json_answer, preferred_wait_s
from taskq.web.body import read_body
from taskq.web.created import created, created_group
from taskq.web.problem import problem
from taskq.web.router import Router

__all__ = ["Api"]

THREAD_BYTES_MIN = 262_144  # checking takes about 3 ms per MB: beyond this it would stall the event loop


class Api:
    """The handler of submissions."""

    def __init__(self, registry: Registry, intake: Intake, control: Control, settings: Settings) -> None:
        """Prepare the handler.

        Args:
            registry: Kinds of work that may be submitted.
            intake: Where submissions go.
            control: Waits for the end of a task.
            settings: Bounds of bodies and waits.
        """
        self._registry = registry
        self._intake = intake
        self._control = control
        self._wait_s_max = settings.wait_s_max
        self._budget = Budget(settings.body_bytes_in_flight_max)
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
        with contextlib.ExitStack() as until_answered:
            try:
                if request.content.is_eof():
                    body = request.content.read_nowait()
                else:
                    body = await read_body(request, self._budget, until_answered)
            except TimeoutError:
                return problem(408, "body_too_slow", "the body did not arrive in time: send it again, faster")
            except (OSError, web.RequestPayloadError):
                raise InvalidPayload("the connection or a chunk of it broke off", malformed=True) from None
            return await self._take(request, body)

    async def _take(self, request: web.BaseRequest, body: bytes) -> web.StreamResponse:
        if len(body) > request.client_max_size:
            raise web.HTTPRequestEntityTooLarge(request.client_max_size)
        if len(body) < THREAD_BYTES_MIN:
            taken = read_submission(self._registry, body)
        else:
            taken = await asyncio.to_thread(read_submission, self._registry, body)
        if isinstance(taken, NewTask):
            return await self._created(request, await self._intake.submit(taken))
        stored = await self._intake.submit_bundle(taken)
        if stored.group_id is None:
            return await self._created(request, stored.ids[0])
        return created_group(stored.group_id, zip(taken.labels, stored.ids, strict=True))

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
