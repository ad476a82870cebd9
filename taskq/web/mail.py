"""Who may not be written to, and the reports of mails that came back.

`GET`, `POST /mail/suppressions` and `DELETE /mail/suppressions/{address}` read and change the list.
`POST /mail/bounce` takes a delivery report as it was received, and `GET /mail/bounces/{task}` shows
what came back of a task's mail.

A report is written by strangers, so it is believed only what can do no harm: it must name a task of
this installation, by the name that only its mail carries, and a recipient of that task; whoever
forges one can at most suppress an address that this very mail went to.

Bodies come as JSON or as a mail.  A page in somebody's browser can send neither without asking first,
which nothing here allows.
"""

import asyncio
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

from aiohttp import hdrs, web
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from taskq.errors import InvalidPayload, shown
from taskq.kinds.recipients import recipients_of
from taskq.mail.address import parse_address
from taskq.mail.bounce import Fate, NoReport, parse_report
from taskq.mail.feedback import is_gone
from taskq.suppression import Bounces, Entry, Suppressions, address_hash
from taskq.uid import task_id_of
from taskq.web.answer import ID_MAX, id_of, json_answer
from taskq.web.problem import problem
from taskq.web.router import Router

__all__ = ["MailPages"]

PAGE_MAX = 100
REPORT_BYTES_MAX = 1_048_576  # servers cut what they return far below
ENTRY_BYTES_MAX = 4_096
BODY_S = 30.0
REASON_CHARS_MAX = 200
REPORT_TYPES = ("message/rfc822", "multipart/report")


class _NewEntry(BaseModel):
    """What somebody puts on the list."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    address: Annotated[str, AfterValidator(lambda text: str(parse_address(text)))]
    reason: str = Field(min_length=1, max_length=REASON_CHARS_MAX, pattern=r"^[^\x00-\x1f\x7f]*$")
    until: AwareDatetime | None = None


class MailPages:
    """The handlers of the routes below `/mail`."""

    def __init__(self, suppressions: Suppressions, bounces: Bounces, installation: uuid.UUID) -> None:
        """Prepare the handlers.

        Args:
            suppressions: The list.
            bounces: The reports.
            installation: Whose tasks reports may name.
        """
        self._suppressions = suppressions
        self._bounces = bounces
        self._installation = installation

    def add_routes(self, router: Router) -> None:
        """Add the routes."""
        router.add("GET", "/mail/suppressions", self.list_entries)
        router.add("POST", "/mail/suppressions", self.add_entry)
        router.add("DELETE", "/mail/suppressions/{id}", self.remove_entry)
        router.add("POST", "/mail/bounce", self.take_report)
        router.add("GET", "/mail/bounces/{id}", self.list_bounces)

    async def list_entries(self, request: web.BaseRequest, _argument: str) -> web.Response:
        """List who may not be written to, newest first; `?address=` asks for one, `?after=` goes on."""
        if (address := request.query.get("address")) is not None:
            entry = (await self._suppressions.find([_address(address)]))[0]
            return json_answer({"suppressions": [] if entry is None else [_shown(entry)], "after": None})
        after, limit = request.query.get("after", str(ID_MAX)), request.query.get("limit", "20")
        if not (_is_number(after) and int(after) <= ID_MAX and _is_number(limit) and 1 <= int(limit) <= PAGE_MAX):
            asked = f"limit must be from 1 to {PAGE_MAX}, after what the page before gave as after"
            return problem(400, "invalid_query", asked)
        entries = await self._suppressions.entries(before=int(after), limit=int(limit))
        last = entries[-1].id if len(entries) == int(limit) else None
        return json_answer({"suppressions": [_shown(entry) for entry in entries], "after": last})

    async def add_entry(self, request: web.BaseRequest, _argument: str) -> web.Response:
        """Put an address on the list, in place of what stood there."""
        if request.content_type != "application/json":
            return _unfit(request, ("application/json",))
        body = await _body(request, ENTRY_BYTES_MAX)
        if isinstance(body, web.Response):
            return body
        new = _new_entry(body)
        entry = await self._suppressions.add(new.address, reason=new.reason, until=new.until)
        return json_answer(_shown(entry))

    async def remove_entry(self, _request: web.BaseRequest, argument: str) -> web.Response:
        """Take an address off the list."""
        if not await self._suppressions.remove(_address(argument)):
            return problem(404, "no_such_suppression", f"{shown(argument)} is not on the suppression list")
        return web.Response(status=204)

    async def take_report(self, request: web.BaseRequest, _argument: str) -> web.Response:
        """Take a delivery report: keep it with its task and, if it says that the address is gone, suppress that."""
        if request.content_type not in REPORT_TYPES:
            return _unfit(request, REPORT_TYPES)
        message = await _body(request, REPORT_BYTES_MAX)
        if isinstance(message, web.Response):
            return message
        if request.content_type == "multipart/report":  # the header with its boundary came as the request's
            head = f"{hdrs.CONTENT_TYPE}: {request.headers[hdrs.CONTENT_TYPE]}\r\n\r\n"
            message = head.encode("utf-8", "surrogateescape") + message
        try:
            report = await asyncio.to_thread(parse_report, message)
        except NoReport as error:
            return problem(422, "no_delivery_report", f"this is no delivery report: {error}")
        task_id, recipients = await self._mail_of(report.uids)
        if not recipients:
            what = "it names no mail that this installation has sent, or the retention of its task is over"
            return problem(422, "no_such_task", f"the report can't be used: {what}")
        fate = _about_one_of(recipients, report.fates)
        if fate is None:
            what = f"its recipient {shown(report.fates[0].recipient)} is none of task {task_id}"
            return problem(422, "other_recipient", f"the report can't be used: {what}")
        return await self._record(task_id, fate, recipients)

    async def list_bounces(self, _request: web.BaseRequest, argument: str) -> web.Response:
        """List what came back of a task's mail, oldest first."""
        task_id = id_of(argument)
        if isinstance(task_id, web.Response):
            return task_id
        return json_answer({"bounces": await self._bounces.of(task_id) if task_id <= ID_MAX else []})

    async def _mail_of(self, uids: Sequence[uuid.UUID]) -> tuple[int, dict[bytes, str]]:
        """Return the first task of ours that has one of these names, with the hashes of its recipients."""
        for uid in uids:
            task_id = task_id_of(uid, self._installation)
            payload = await self._bounces.recipients(task_id) if task_id is not None else None
            if task_id is not None and payload is not None:
                return task_id, {address_hash(address): address for address in recipients_of(payload)}
        return 0, {}

    async def _record(self, task_id: int, fate: Fate, recipients: dict[bytes, str]) -> web.Response:
        final = _hash(fate.recipient)
        recipient = recipients.get(final) or recipients[_hash(fate.original)]
        await self._bounces.record(
            task_id, recipient, action=fate.action, status=fate.status, diagnostic=fate.diagnostic
        )
        # Where an alias was followed, another address is gone than the one that we know.
        suppressed = (
            final in recipients
            and is_gone(fate)
            and await self._suppressions.learn(recipient, reason=fate.status, task_id=task_id, source="report")
        )
        told = {"task": task_id, "recipient": recipient, "action": fate.action, "status": fate.status}
        return json_answer(told | {"suppressed": suppressed})


def _about_one_of(recipients: dict[bytes, str], fates: Sequence[Fate]) -> Fate | None:
    """Return the first fate of a recipient; the final address counts before the one that was written first."""
    finals = [fate for fate in fates if _hash(fate.recipient) in recipients]
    return next(iter(finals + [fate for fate in fates if _hash(fate.original) in recipients]), None)


def _hash(address: str) -> bytes:
    """Return the hash of an address, and of what is none a value that no address has."""
    try:
        return address_hash(address)
    except ValueError:
        return b""


def _address(text: str) -> str:
    try:
        return str(parse_address(text))
    except ValueError as error:
        raise InvalidPayload(str(error), field="address") from None


def _new_entry(body: bytes) -> _NewEntry:
    try:
        new = _NewEntry.model_validate_json(body)
    except ValidationError as error:
        detail = error.errors(include_url=False, include_context=False)[0]
        name = str(detail["loc"][0]) if detail["loc"] else ""
        said = str(detail["msg"]).removeprefix("Value error, ")
        remedy = 'send {"address", "reason"} and, where it ends one day, "until"'
        malformed = detail["type"] == "json_invalid"
        raise InvalidPayload(f"{name or 'the entry'}: {said}; {remedy}", field=name, malformed=malformed) from None
    if new.until is not None and new.until <= datetime.now(UTC):
        raise InvalidPayload(f"until is {new.until.isoformat()}, which is past: name a later time", field="until")
    return new


async def _body(request: web.BaseRequest, most: int) -> bytes | web.Response:
    """Read a body of at most `most` bytes; the answer to give when that is not possible."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > most:
                    told = f"the body is larger than the {most} bytes allowed: shorten it"
                    return problem(413, "body_too_large", told)
    except (TimeoutError, OSError, web.RequestPayloadError):
        return problem(400, "body_incomplete", f"the body did not arrive whole within {BODY_S:g} s: send it again")
    return bytes(body)


def _unfit(request: web.BaseRequest, wanted: Sequence[str]) -> web.Response:
    asked = f"the body is {shown(request.content_type)}: send it with Content-Type: {' or '.join(wanted)}"
    return problem(415, "unfit_content_type", asked)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 19


def _shown(entry: Entry) -> dict[str, object]:
    return {
        "address": entry.shown,
        "reason": entry.reason,
        "source": entry.source,
        "added_at": entry.added_at,
        "until": entry.until,
        "task": entry.task_id,
    }
