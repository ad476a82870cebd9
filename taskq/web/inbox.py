"""Read captured mails.

`GET /inbox` lists them, newest first; `GET /inbox/{id}` returns one as it would have been sent.
Where mails go to a relay the inbox stays empty.
"""

from datetime import datetime
from email import message_from_bytes, policy

from aiohttp import web

from taskq.store import Store
from taskq.web.answer import ID_MAX, id_of, json_answer
from taskq.web.problem import problem
from taskq.web.router import Router

__all__ = ["InboxPages"]

INBOX_PAGE_MAX = 100


class InboxPages:
    """The handlers of the inbox routes."""

    def __init__(self, store: Store) -> None:
        """Prepare the handlers, which read from `store`."""
        self._store = store

    def add_routes(self, router: Router) -> None:
        """Add the routes."""
        router.add("GET", "/inbox", self.list_inbox)
        router.add("GET", "/inbox/{id}", self.show_mail)

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
        return json_answer({"mails": [_mail(*row) for row in rows]})

    async def show_mail(self, _request: web.BaseRequest, argument: str) -> web.Response:
        """Return a captured mail as it would have been sent."""
        mail_id = id_of(argument)
        if isinstance(mail_id, web.Response):
            return mail_id
        row = await self._store.inbox_mail(mail_id) if mail_id <= ID_MAX else None
        if row is None:
            return problem(404, "no_such_mail", f"there is no captured mail {mail_id}")
        headers = {"Content-Disposition": f'attachment; filename="{mail_id}.eml"', "X-Content-Type-Options": "nosniff"}
        return web.Response(body=row[5], content_type="message/rfc822", headers=headers)


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
