"""Submit and show tasks; read captured mails.

`POST /task/` takes a mail (`{"To", "subject", "body"}`) or any other kind of work
(`{"kind", "payload"}`); it answers when the row is committed.  `GET /task/{id}` shows it.
"""

from datetime import datetime
from email import message_from_bytes, policy
from typing import Any, cast

import orjson
from aiohttp import HttpVersion11, hdrs, web
from pydantic_core import from_json, to_json

from taskq.errors import InvalidPayload
from taskq.intake import Intake
from taskq.kinds.registry import Registry, check_depth
from taskq.store import Store
from taskq.task import NewTask, Task
from taskq.web.created import created
from taskq.web.problem import problem
from taskq.web.router import Router

__all__ = ["Api"]

ID_MAX = 2**63 - 1
ATTEMPTS_SHOWN_MAX = 100
INBOX_PAGE_MAX = 100
MAIL = "email"


class Api:
    """The handlers of the task and inbox routes."""

    def __init__(self, store: Store, registry: Registry, intake: Intake) -> None:
        """Prepare the handlers.

        Args:
            store: What is shown.
            registry: Kinds of work that may be submitted.
            intake: Where submissions go.
        """
        self._store = store
        self._registry = registry
        self._intake = intake
        self.stopping = False

    def add_routes(self, router: Router) -> None:
        """Add the routes."""
        router.add("GET", "/task/{id}", self.show_task)
        router.add("GET", "/inbox", self.list_inbox)
        router.add("GET", "/inbox/{id}", self.show_mail)
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
        task_id = _id(argument)
        if isinstance(task_id, web.Response):
            return task_id
        task = await self._store.get(task_id) if task_id <= ID_MAX else None
        if task is None:
            return problem(
                404, "no_such_task", f"there is no task {task_id}: it was never stored, or its retention is over"
            )
        attempts = await self._store.attempts(task_id, limit=ATTEMPTS_SHOWN_MAX) if task.last_error else []
        return _json(_shown(task) | {"attempts": attempts})

    async def list_inbox(self, request: web.BaseRequest, _argument: str) -> web.Response:
        """List captured mails, newest first; `?before=ID` goes on, `?limit=N` bounds the page."""
        try:
            before = int(request.query.get("before", ID_MAX))
            limit = int(request.query.get("limit", 20))
        except ValueError:
            return problem(400, "invalid_query", "before and limit must be whole numbers")
        if not (1 <= limit <= INBOX_PAGE_MAX and 0 <= before <= ID_MAX):
            return problem(400, "invalid_query", f"limit must be from 1 to {INBOX_PAGE_MAX}, before a mail's id")
        rows = await self._store.inbox(before=before, limit=limit)
        return _json({"mails": [_mail(*row) for row in rows]})

    async def show_mail(self, _request: web.BaseRequest, argument: str) -> web.Response:
        """Return a captured mail as it would have been sent."""
        mail_id = _id(argument)
        if isinstance(mail_id, web.Response):
            return mail_id
        row = await self._store.inbox_mail(mail_id) if mail_id <= ID_MAX else None
        if row is None:
            return problem(404, "no_such_mail", f"there is no captured mail {mail_id}")
        headers = {"Content-Disposition": f'attachment; filename="{mail_id}.eml"', "X-Content-Type-Options": "nosniff"}
        return web.Response(body=row[5], content_type="message/rfc822", headers=headers)


async def _arriving(request: web.BaseRequest) -> bytes:
    """Read a body of which a part is still on its way; a client that asks first is told to send it."""
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.version == HttpVersion11:
        if (request.content_length or 0) > request.client_max_size:
            raise web.HTTPRequestEntityTooLarge(request.client_max_size)
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # of the answer, nothing is written yet
    return await request.read()


def _id(text: str) -> int | web.Response:
    if not (text.isascii() and text.isdigit() and len(text) <= 30):
        return problem(400, "invalid_id", f"{text[:40]!r} is no id: it must be a whole number such as 12")
    return int(text)


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


def _mail(
    mail_id: int, task_id: int, sender: str, recipient: str, captured_at: datetime, message: bytes
) -> dict[str, object]:
    parsed = message_from_bytes(message, policy=policy.default)
    text = parsed.get_body(("plain",))
    return {
        "id": mail_id,
        "task_id": task_id,
        "from": sender,
        "to": recipient,
        "subject": str(parsed["Subject"]),
        "body": text.get_content() if text is not None else "",
        "message_id": str(parsed["Message-ID"]),
        "captured_at": captured_at,
    }


def _json(document: object) -> web.Response:
    return web.Response(body=orjson.dumps(document, option=orjson.OPT_UTC_Z), content_type="application/json")
