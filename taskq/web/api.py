"""Submit and show tasks.

`POST /task/` takes a mail (`{"To", "subject", "body"}`) or any other kind of work
(`{"kind", "payload"}`); it answers when the row is committed, or all that the submission has become
(`Bundle`): several tasks are answered with the id of their group and theirs.  `GET /task/{id}` shows
a task or a group.
"""

import asyncio
import contextlib
from typing import Any, cast

import orjson
from aiohttp import hdrs, web
from pydantic_core import from_json, to_json

from taskq.budget import Budget
from taskq.errors import InvalidPayload
from taskq.intake import Intake
from taskq.kinds.registry import Kind, Registry, check_depth
from taskq.store import Store
from taskq.task import Bundle, NewTask, Task
from taskq.web.answer import ID_MAX, id_of, json_answer
from taskq.web.body import arrived_body, read_body
from taskq.web.created import created, created_group
from taskq.web.group import shown_group
from taskq.web.problem import problem
from taskq.web.router import Router

__all__ = ["Api"]

ATTEMPTS_SHOWN_MAX = 100
MAIL = "email"
THREAD_BYTES_MIN = 262_144  # checking takes about 3 ms per MB: beyond this it would stall the event loop


class Api:
    """The handlers of the task routes."""

    def __init__(self, store: Store, registry: Registry, intake: Intake, budget: Budget) -> None:
        """Prepare the handlers.

        Args:
            store: What is shown.
            registry: Kinds of work that may be submitted.
            intake: Where submissions go.
            budget: Bytes of the larger bodies under way.
        """
        self._store = store
        self._registry = registry
        self._intake = intake
        self._budget = budget
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
        if request.content.is_eof():
            return await self._take(request, arrived_body(request))
        with contextlib.ExitStack() as until_answered:
            return await self._take(request, await read_body(request, self._budget, until_answered))

    async def _take(self, request: web.BaseRequest, body: bytes) -> web.StreamResponse:
        if len(body) < THREAD_BYTES_MIN:
            prepared = self._prepared(body)
        else:
            prepared = await asyncio.to_thread(self._prepared, body)
        del body  # large, and needed no more
        if isinstance(prepared, NewTask):
            return created(request, await self._intake.submit(prepared))
        stored = await self._intake.submit_bundle(prepared)
        if stored.group_id is None:
            return created(request, stored.ids[0])
        return created_group(stored.group_id, zip(prepared.labels, stored.ids, strict=True))

    def _prepared(self, body: bytes) -> NewTask | Bundle:
        """Check a body; return what is to be stored."""
        other = self._other_kind(body) if b'"kind"' in body else None
        kind, payload = other or (self._registry.get(MAIL), body)
        prepared = kind.prepare(payload)
        if isinstance(prepared, Bundle):
            return prepared
        return NewTask(kind.name, prepared, max_attempts=kind.max_attempts)

    def _other_kind(self, body: bytes) -> tuple[Kind, bytes] | None:
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
        return kind, to_json(fields["payload"])

    async def show_task(self, _request: web.BaseRequest, argument: str) -> web.Response:
        """Show a task with the attempts that did not end Ok, or a group."""
        task_id = id_of(argument)
        if isinstance(task_id, web.Response):
            return task_id
        task = await self._store.get(task_id) if task_id <= ID_MAX else None
        if task is None:
            group = await self._store.bundles.group(task_id) if task_id <= ID_MAX else None
            if group is not None:
                return json_answer(shown_group(group))
            return problem(
                404, "no_such_task", f"there is no task {task_id}: it was never stored, or its retention is over"
            )
        attempts = await self._store.attempts(task_id, limit=ATTEMPTS_SHOWN_MAX) if task.last_error else []
        return json_answer(_shown(task) | {"attempts": attempts})


def _shown(task: Task) -> dict[str, object]:
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
