"""Submit and show tasks.

`POST /task/` takes a mail (`{"To", "subject", "body"}`) or any other kind of work
(`{"kind", "payload"}`); it answers when the row is committed.  `GET /task/{id}` shows it.
"""

from typing import Any, cast

from aiohttp import HttpVersion11, hdrs, web
from pydantic_core import from_json, to_json

from taskq.errors import InvalidPayload
from taskq.intake import Intake
from taskq.kinds.recipients import recipients_of
from taskq.kinds.registry import Registry, check_depth
from taskq.store import Store
from taskq.suppression import Suppressions
from taskq.task import NewTask, Task
from taskq.web.answer import ID_MAX, id_of, json_answer
from taskq.web.created import created
from taskq.web.problem import problem
from taskq.web.router import Router

__all__ = ["Api"]

ATTEMPTS_SHOWN_MAX = 100
MAIL = "email"


class Api:
    """The handlers of the task routes."""

    def __init__(self, store: Store, registry: Registry, intake: Intake, suppressions: Suppressions) -> None:
        """Prepare the handlers.

        Args:
            store: What is shown.
            registry: Kinds of work that may be submitted.
            intake: Where submissions go.
            suppressions: Whom no mail is taken for.
        """
        self._store = store
        self._registry = registry
        self._intake = intake
        self._suppressions = suppressions
        self.stopping = False

    def add_routes(self, router: Router) -> None:
        """Add the routes."""
        router.add("GET", "/task/{id}", self.show_task)
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
        if new.kind == MAIL and not self._suppressions.empty:
            await self._suppressions.check(recipients_of(new.payload))
        task_id = await self._intake.submit(new)
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

    async def show_task(self, _request: web.BaseRequest, argument: str) -> web.Response:
        """Show a task with the attempts that did not end Ok."""
        task_id = id_of(argument)
        if isinstance(task_id, web.Response):
            return task_id
        task = await self._store.get(task_id) if task_id <= ID_MAX else None
        if task is None:
            return problem(
                404, "no_such_task", f"there is no task {task_id}: it was never stored, or its retention is over"
            )
        attempts = await self._store.attempts(task_id, limit=ATTEMPTS_SHOWN_MAX) if task.last_error else []
        return json_answer(_shown(task) | {"attempts": attempts})


async def _arriving(request: web.BaseRequest) -> bytes:
    """Read a body of which a part is still on its way; a client that asks first is told to send it."""
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.version == HttpVersion11:
        if (request.content_length or 0) > request.client_max_size:
            raise web.HTTPRequestEntityTooLarge(request.client_max_size)
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # of the answer, nothing is written yet
    return await request.read()


def _shown(task: Task) -> dict[str, object]:
    return {
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
