"""Read captured mails, and wait for one.

`GET /inbox` lists them, newest first; `GET /inbox/{id}` shows one taken apart, `/inbox/{id}/raw` as
it would have been sent.  `GET /inbox/wait` answers as soon as a mail that fits is captured.  Where
mails go to a relay the inbox stays empty.

A mail's content is never served as anything a browser would show: JSON, or a download.
"""

import asyncio
import math
from collections.abc import Sequence
from urllib.parse import quote

from aiohttp import web

from taskq.mail.mailbox import Mailbox
from taskq.mail.reader import Reading, read_mail
from taskq.mailstore import MailStore, StoredMail, Wanted
from taskq.web.answer import ID_MAX, id_of, json_answer
from taskq.web.problem import problem
from taskq.web.router import Router

__all__ = ["InboxPages"]

INBOX_PAGE_MAX = 100
WAIT_S, WAIT_S_MAX = 10.0, 60.0
OTHERS_SHOWN_MAX = 5  # of the mails that came instead of the one waited for
THREAD_OCTETS_MIN = 256 * 1024  # taking a mail apart would stall the event loop
DOWNLOAD = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox; default-src 'none'"}
FILTERS = ("to", "from", "subject", "task")


class InboxPages:
    """The handlers of the inbox routes."""

    def __init__(self, store: MailStore, mailbox: Mailbox) -> None:
        """Prepare the handlers.

        Args:
            store: What is shown.
            mailbox: What is waited for.
        """
        self._store = store
        self._mailbox = mailbox

    def add_routes(self, router: Router) -> None:
        """Add the routes."""
        router.add("GET", "/inbox", self.list_inbox)
        router.add("DELETE", "/inbox", self.clear_inbox)
        router.add("GET", "/inbox/wait", self.wait_for_mail)
        router.add("GET", "/inbox/{id}", self.show_mail)
        router.add("DELETE", "/inbox/{id}", self.delete_mail)
        router.add("GET", "/inbox/{id}/raw", self.download_mail)
        router.add("GET", "/inbox/{id}/attachment", self.download_attachment)

    async def list_inbox(self, request: web.BaseRequest, _argument: str) -> web.Response:
        """List captured mails, newest first; `?before=ID` goes on, `?limit=N` bounds the page."""
        try:
            wanted = _wanted(request, "before", "limit")
            before = _whole(request, "before", ID_MAX, low=0, high=ID_MAX)
            limit = _whole(request, "limit", 20, low=1, high=INBOX_PAGE_MAX)
        except ValueError as error:
            return problem(400, "invalid_query", str(error))
        mails = await self._store.search(wanted, before=before, limit=limit)
        return json_answer({"mails": [_summary(mail, reading) for mail, reading in await _read(mails)]})

    async def clear_inbox(self, _request: web.BaseRequest, _argument: str) -> web.Response:
        """Forget every captured mail."""
        return json_answer({"deleted": await self._store.clear()})

    async def wait_for_mail(self, request: web.BaseRequest, _argument: str) -> web.Response:
        """Answer with the first mail after `?after=ID` that fits, within `?timeout=S` seconds."""
        try:
            wanted = _wanted(request, "after", "timeout")
            after = _whole(request, "after", 0, low=0, high=ID_MAX)
            timeout_s = _seconds(request)
        except ValueError as error:
            return problem(400, "invalid_query", str(error))
        mail = await self._mailbox.wait(
            wanted, after=after, timeout_s=timeout_s, alive=lambda: request.transport is not None
        )
        if mail is not None:
            return json_answer(await _document(mail))
        if self._mailbox.closed:
            return problem(503, "stopping", "the service is being stopped: try again in a moment", retry_after_s=1)
        others = await self._store.recent(after=after, limit=OTHERS_SHOWN_MAX)
        return problem(404, "no_mail_came", _what_came(wanted, after, timeout_s, *others))

    async def show_mail(self, _request: web.BaseRequest, argument: str) -> web.Response:
        """Show a captured mail taken apart."""
        mail = await self._find(argument)
        return mail if isinstance(mail, web.Response) else json_answer(await _document(mail))

    async def delete_mail(self, _request: web.BaseRequest, argument: str) -> web.Response:
        """Forget a captured mail."""
        mail_id = id_of(argument)
        if isinstance(mail_id, web.Response):
            return mail_id
        if mail_id <= ID_MAX and await self._store.discard(mail_id):
            return json_answer({"deleted": 1})
        return _no_such_mail(mail_id)

    async def download_mail(self, _request: web.BaseRequest, argument: str) -> web.Response:
        """Return a captured mail as it would have been sent."""
        mail = await self._find(argument)
        if isinstance(mail, web.Response):
            return mail
        return _download(mail.message, f"{mail.id}.eml", "message/rfc822")

    async def download_attachment(self, request: web.BaseRequest, argument: str) -> web.Response:
        """Return the attachment `?number=N`, counted from 1."""
        mail = await self._find(argument)
        if isinstance(mail, web.Response):
            return mail
        try:
            number = _whole(request, "number", 1, low=1, high=ID_MAX)
        except ValueError as error:
            return problem(400, "invalid_query", str(error))
        [(_, reading)] = await _read([mail])
        if number > len(reading.attachments):
            detail = f"the mail {mail.id} has {len(reading.attachments)} attachments, not {number}"
            return problem(404, "no_such_attachment", detail)
        attached = reading.attachments[number - 1]
        return _download(attached.content, attached.filename or f"{mail.id}-{number}", "application/octet-stream")

    async def _find(self, argument: str) -> StoredMail | web.Response:
        mail_id = id_of(argument)
        if isinstance(mail_id, web.Response):
            return mail_id
        mail = await self._store.mail(mail_id) if mail_id <= ID_MAX else None
        return mail or _no_such_mail(mail_id)


def _wanted(request: web.BaseRequest, *others: str) -> Wanted:
    """Read the filters.

    Raises:
        ValueError: The query holds something else, or can't be stored.
    """
    query = request.query
    for name, value in query.items():
        if name not in (*FILTERS, *others):
            raise ValueError(f"{name} is nothing to ask for here: use {', '.join((*FILTERS, *others))}")
        if "\0" in value:
            raise ValueError(f"{name} holds a NUL, as no mail does: remove it")
    task_id = _whole(request, "task", 0, low=0, high=ID_MAX) if "task" in query else None
    return Wanted(query.get("to"), query.get("from"), query.get("subject"), task_id)


def _whole(request: web.BaseRequest, name: str, default: int, *, low: int, high: int) -> int:
    text = request.query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 20 and low <= int(text) <= high):
        bound = f"from {low} to {high}" if high < ID_MAX else f"of at least {low}"
        raise ValueError(f"{name} is {text[:40]!r}: must be a whole number {bound}")
    return int(text)


def _seconds(request: web.BaseRequest) -> float:
    text = request.query.get("timeout", str(WAIT_S))
    try:
        seconds = float(text) if text.isascii() and len(text) <= 20 else math.nan
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= WAIT_S_MAX:
        raise ValueError(f"timeout is {text[:40]!r}: must be from 0 to {WAIT_S_MAX:g} seconds")
    return seconds


async def _read(mails: Sequence[StoredMail]) -> list[tuple[StoredMail, Reading]]:
    def read() -> list[tuple[StoredMail, Reading]]:
        return [(mail, read_mail(mail.message)) for mail in mails]

    large = sum(len(mail.message) for mail in mails) >= THREAD_OCTETS_MIN
    return await asyncio.to_thread(read) if large else read()


async def _document(mail: StoredMail) -> dict[str, object]:
    [(_, reading)] = await _read([mail])
    headers = [{"name": name, "value": value} for name, value in reading.headers]
    return _summary(mail, reading) | {"links": reading.links, "headers": headers}


def _summary(mail: StoredMail, reading: Reading) -> dict[str, object]:
    return {
        "id": mail.id,
        "task_id": mail.task_id,
        "from": mail.sender,
        "to": mail.recipient,
        "subject": mail.subject,
        "body": reading.text,
        "text": reading.text,
        "html": reading.html,
        "attachments": [
            {
                "filename": attached.filename,
                "content_type": attached.content_type,
                "content_id": attached.content_id,
                "size": len(attached.content),
                "url": f"/inbox/{mail.id}/attachment?number={number}",
            }
            for number, attached in enumerate(reading.attachments, 1)
        ],
        "message_id": reading.header("message-id"),
        "captured_at": mail.captured_at,
    }


def _what_came(wanted: Wanted, after: int, timeout_s: float, count: int, newest: list[tuple[int, str, str]]) -> str:
    asked = [
        f"to {wanted.recipient}" if wanted.recipient is not None else "",
        f"from {wanted.sender}" if wanted.sender is not None else "",
        f"with {wanted.subject!r} in its subject" if wanted.subject is not None else "",
        f"of task {wanted.task_id}" if wanted.task_id is not None else "",
        f"after {after}" if after else "",
    ]
    fact = " ".join(["no mail", *filter(None, asked), f"was captured within {timeout_s:g} s"])
    if not count:
        return f"{fact}, and no other one either: is it sent at all, and is smtp_url unset?"
    shown = "; ".join(f"{mail_id} to {recipient}: {subject[:80]!r}" for mail_id, recipient, subject in newest)
    return f"{fact}; there are {count} others: {shown}{'; …' if count > len(newest) else ''}"


def _download(content: bytes, filename: str, content_type: str) -> web.Response:
    plain = "".join(each if (each.isalnum() and each.isascii()) or each in " .-_" else "_" for each in filename)
    named = f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"  # RFC 6266
    return web.Response(body=content, content_type=content_type, headers={"Content-Disposition": named} | DOWNLOAD)


def _no_such_mail(mail_id: int) -> web.Response:
    return problem(404, "no_such_mail", f"there is no captured mail {mail_id}: it never was, or others took its place")
