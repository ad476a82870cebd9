"""Captured mails in PostgreSQL: one method per statement of `sql/inbox.sql`.

Captures are written on a connection of their own, a batch by one INSERT, and never wait for a read.
Whoever writes learns between which ids the batch lies, so that those who wait for a mail need ask
for no more than these.  The subject is read from the message here, once, and stands beside it.

Every method raises `StoreUnavailable` when PostgreSQL can't be reached.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from taskq import sql
from taskq.database import Session, Sessions

__all__ = ["CapturedMail", "MailStore", "StoredMail", "Wanted"]

PAGE_BYTES_MAX = 16 * 1024 * 1024  # of messages that one page of a search reads; the last one may exceed it


@dataclass(frozen=True, slots=True)
class CapturedMail:
    """A mail as the inbox takes it."""

    task_id: int | None
    """The task that sent it; None: another program did."""
    sender: str
    """Envelope sender; empty: it is a report that must not be answered (RFC 5321 §4.5.5)."""
    recipient: str
    """Envelope recipient."""
    subject: str
    """Decoded, for search."""
    message: bytes
    """The whole mail as a relay would have received it."""


@dataclass(frozen=True, slots=True)
class StoredMail:
    """A mail as the inbox keeps it."""

    id: int
    task_id: int | None
    sender: str
    recipient: str
    subject: str
    captured_at: datetime
    message: bytes


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which mails are looked for; what is None matches any."""

    recipient: str | None = None
    """The whole address, in any case."""
    sender: str | None = None
    """The whole address, in any case."""
    subject: str | None = None
    """A part of the subject, in any case."""
    task_id: int | None = None


class MailStore:
    """Captures and finds mails."""

    def __init__(self, captures: Session, reads: Sessions) -> None:
        """Use `captures`, which becomes ours alone, for writing mails and the shared `reads` for all else."""
        self._captures = captures
        self._reads = reads
        self._sql = sql.load("inbox")

    async def capture(self, mails: Sequence[CapturedMail]) -> tuple[int, int]:
        """Store mails, at least one, in one transaction; return the lowest and the highest of their ids."""
        rows = await self._captures.fetch(
            self._sql["capture"],
            task_ids=[mail.task_id for mail in mails],
            senders=[mail.sender for mail in mails],
            recipients=[mail.recipient for mail in mails],
            subjects=[mail.subject for mail in mails],
            messages=[mail.message for mail in mails],
        )
        ids = [row[0] for row in rows]
        return min(ids), max(ids)

    async def search(self, wanted: Wanted, *, before: int, limit: int) -> list[StoredMail]:
        """Read the newest mails before id `before`; fewer than `limit` also where they are very large."""
        rows = await self._read(
            "search",
            before=before,
            recipient=wanted.recipient,
            sender=wanted.sender,
            subject=wanted.subject,
            task_id=wanted.task_id,
            limit=limit,
            bytes=PAGE_BYTES_MAX,
        )
        return [StoredMail(*row) for row in rows]

    async def mail(self, mail_id: int) -> StoredMail | None:
        """Read one mail."""
        rows = await self._read("mail", id=mail_id)
        return StoredMail(*rows[0]) if rows else None

    async def awaited(self, waiting: Sequence[tuple[int, int, Wanted]], low: int, high: int) -> list[tuple[int, int]]:
        """Find the first mail for each who waits.

        Args:
            waiting: A number of the caller's own, the id after which the mail must come, and what it must be.
            low: The lowest id to look at.
            high: The highest.

        Returns:
            Number and id of the mail, for those that have one.
        """
        rows = await self._read(
            "awaited",
            numbers=[number for number, _, _ in waiting],
            afters=[after for _, after, _ in waiting],
            recipients=[wanted.recipient for _, _, wanted in waiting],
            senders=[wanted.sender for _, _, wanted in waiting],
            subjects=[wanted.subject for _, _, wanted in waiting],
            task_ids=[wanted.task_id for _, _, wanted in waiting],
            low=low,
            high=high,
        )
        return [(row[0], row[1]) for row in rows]

    async def recent(self, *, after: int, limit: int) -> tuple[int, list[tuple[int, str, str]]]:
        """Count the mails after an id; list id, recipient and subject of the newest."""
        rows = await self._read("recent", after=after, limit=limit)
        return (rows[0][3] if rows else 0), [(row[0], row[1], row[2]) for row in rows]

    async def discard(self, mail_id: int) -> bool:
        """Forget one mail; False: it was not there."""
        return bool(await self._read("discard", id=mail_id))

    async def clear(self) -> int:
        """Forget every mail; return how many there were."""
        return (await self._read("clear"))[0][0]

    async def prune(self, *, keep: int, content_days: float) -> None:
        """Forget all but the newest `keep` mails, and those older than `content_days` days."""
        await self._read("prune", keep=keep, content_days=content_days)

    async def close(self) -> None:
        """Close the connection for captures."""
        await self._captures.close()

    async def _read(self, name: str, **values: object) -> Sequence[Sequence[Any]]:
        async with self._reads.session() as session:
            return await session.fetch(self._sql[name], **values)
