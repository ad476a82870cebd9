"""Submit and show tasks.

`POST /task/` takes a mail (`{"To", "subject", "body"}`) or any other kind of work
(`{"kind", "payload"}`); it answers when the row is committed.  `GET /task/{id}` shows it, with
`?wait=N` as soon as it ends; `DELETE` cancels it; `POST /task/{id}/retry` runs it once more.
"""

import math
from typing import Any, cast

from aiohttp import HttpVersion11, hdrs, web
from pydantic_core import from_json, to_json

from taskq.control import Control
from taskq.errors import InvalidPayload
from taskq.intake import Intake
from taskq.kinds.registry import Registry, check_depth
from taskq.store import Store
from taskq.task import NewTask, Status
from taskq.web.answer import ID_MAX, id_of, json_answer
from taskq.web.created import created
from taskq.web.problem import problem
from taskq.web.router import Router
from taskq.web.shown import shown_task

__all__ = ["Api"]

ATTEMPTS_SHOWN_MAX = 100
MAIL = "email"


class Api:
    """The handlers of the task routes."""

    def __init__(
        self, store: Store, registry: Registry, intake: Intake, control: Control, *, wait_s_max: float
    ) -> None:
        """Prepare the handlers.

        Args:
            store: What is shown.
            registry: Kinds of work that may be submitted.
            intake: Where submissions go.
            control: Cancels, repeats and waits.
            wait_s_max: Seconds that a caller may wait for a task to end.
        """
        self._store = store
        self._registry = registry
        self._intake = intake
        self._control = control
        self._wait_s_max = wait_s_max
        self.stopping = False

    def add_routes(self, router: Router) -> None:
        """Add the routes."""
        router.add("GET", "/task/{id}", self.show_task)
        router.add("DELETE", "/task/{id}", self.cancel_task)
        router.add("POST", "/task/{id}/retry", self.retry_task)
        router.add("POST", "/task/", self.create_task)
        router.add("POST", "/task", self.create_task)

    async def create_task(self, request: web.BaseRequest, _argument: str) -> web.StreamResponse:
        """Store a task; 201 means that it is committed and flushed."""
        if self.stopping:
            return problem(503, "stopping", "this process is stopping: submit to another one", retry_after_s=1)
        if hdrs.CONTENT_ENCODING in request.headers:
            return problem(415, "compressed_body", "the body is compressed: send it as plain JSON")
        try:
            body = request.content.read_nowait() if request.content.is_eof() else await _arriving(request)
        except (OSError, web.RequestPayloadError):
            raise InvalidPayload("the connection or a chunk of it broke off", malformed=True) from None
        if len(body) > request.client_max_size:
            raise web.HTTPRequestEntityTooLarge(request.client_max_size)
        new = self._other_kind(body) if b'"kind"' in body else None
        if new is None:
            kind = self._registry.get(MAIL)
            new = NewTask(MAIL, kind.check(body), max_attempts=kind.max_attempts)
        task_id = await self._intake.submit(new)
        if "Prefer" in request.headers and (wait_s := self._preferred_s(request.headers["Prefer"])):
            return await self._created_and_ended(task_id, wait_s)
        return created(request, task_id)

    def _other_kind(self, body: bytes) -> NewTask | None:
        """Read `{"kind", "payload"}`; None when the word "kind" only stood somewhere inside a mail."""
        try:
            document = from_json(body)  # not by orjson, which rounds whole numbers beyond 64 bits
        except ValueError as error:
            raise InvalidPayload(str(error), malformed=True) from None
        if not isinstance(document, dict) or "kind" not in document:
            return None
        fields = cast("dict[str, Any]", document)
        for name in fields:
            if name not in ("kind", "payload"):
                raise InvalidPayload(f"{name} is no field of a task: send kind and payload", field=name)
        kind = self._registry.get(fields["kind"] if isinstance(fields["kind"], str) else repr(fields["kind"]))
        if "payload" not in fields:
            raise InvalidPayload(f"payload is missing: the kind {kind.name} needs it", field="payload")
        check_depth(fields["payload"])
        return NewTask(kind.name, kind.check(to_json(fields["payload"])), max_attempts=kind.max_attempts)

    async def show_task(self, request: web.BaseRequest, argument: str) -> web.Response:
        """Show a task with the attempts that did not end Ok; `?wait=N` waits up to N seconds for its end."""
        task_id = id_of(argument)
        if isinstance(task_id, web.Response):
            return task_id
        wait_s = 0.0
        if request.raw_path.find("?") >= 0 and "wait" in request.query:
            wait_s = _seconds(request.query["wait"])
            if not 0 <= wait_s <= self._wait_s_max:
                return problem(400, "invalid_query", f"wait must be from 0 to {self._wait_s_max:g} seconds")
        task = await self._control.follow(task_id, wait_s) if task_id <= ID_MAX else None
        if task is None:
            return _no_such_task(task_id)
        attempts = await self._store.attempts(task_id, limit=ATTEMPTS_SHOWN_MAX) if task.last_error else []
        return json_answer(shown_task(task) | {"attempts": attempts})

    async def cancel_task(self, _request: web.BaseRequest, argument: str) -> web.Response:
        """Cancel a task: 200 with its status now; 202 while the run under way is being ended."""
        task_id = id_of(argument)
        if isinstance(task_id, web.Response):
            return task_id
        status = await self._control.cancel(task_id) if task_id <= ID_MAX else None
        if status is None:
            return _no_such_task(task_id)
        if status in (Status.OK.label, Status.FAILED.label):
            return problem(
                409, "already_ended", f"task {task_id} is {status}: only a task that has not ended can be cancelled"
            )
        return json_answer({"id": task_id, "status": status}, 202 if status == Status.IN_PROGRESS.label else 200)

    async def retry_task(self, _request: web.BaseRequest, argument: str) -> web.Response:
        """Run a task again that failed or was cancelled; let one that waits for its time run now."""
        task_id = id_of(argument)
        if isinstance(task_id, web.Response):
            return task_id
        if task_id <= ID_MAX and await self._control.retry(task_id):
            return json_answer({"id": task_id, "status": Status.PENDING.label})
        task = await self._store.get(task_id) if task_id <= ID_MAX else None
        if task is None:
            return _no_such_task(task_id)
        detail = f"task {task_id} is {task.status.label}: only one that failed, was cancelled or waits can be run again"
        return problem(409, "not_retryable", detail)

    async def _created_and_ended(self, task_id: int, wait_s: float) -> web.Response:
        task = await self._control.follow(task_id, wait_s)
        document = {"message": "Task Created", "id": task_id, "status": task.status.label if task else "pending"}
        answer = json_answer(document, 201)
        answer.headers["Preference-Applied"] = f"wait={wait_s:g}"
        return answer

    def _preferred_s(self, prefer: str) -> float:
        """Return the seconds that a `Prefer` header asks to wait (RFC 7240 §4.3), within the bound; 0: none."""
        for preference in prefer.split(","):
            name, _, value = preference.partition("=")
            if name.strip().lower() == "wait":
                wait_s = _seconds(value.partition(";")[0].strip().strip('"'))
                return max(0.0, min(wait_s, self._wait_s_max)) if math.isfinite(wait_s) else 0.0
        return 0.0


def _seconds(text: str) -> float:
    """Read a number of seconds; not-a-number for anything else."""
    try:
        return float(text) if text.isascii() and len(text) <= 20 else math.nan
    except ValueError:
        return math.nan


def _no_such_task(task_id: int) -> web.Response:
    return problem(404, "no_such_task", f"there is no task {task_id}: it was never stored, or its retention is over")


async def _arriving(request: web.BaseRequest) -> bytes:
    """Read a body of which a part is still on its way; a client that asks first is told to send it."""
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.version == HttpVersion11:
        if (request.content_length or 0) > request.client_max_size:
            raise web.HTTPRequestEntityTooLarge(request.client_max_size)
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # of the answer, nothing is written yet
    return await request.read()
