"""Bundles in the database: several tasks of one submission, the group they are shown as, their content.

Everything of a bundle is stored by one statement, and so by one transaction: a process or a server that
dies at any moment leaves all of it or nothing.  Bundles that come at the same time share a statement.
The ids are given out before, since the statement names them more than once; those of a transaction
that failed are left out for ever.

Content is stored once, whoever needs it, under the SHA-256 of what it holds, and never in the row of a
task: a claim reads hundreds of those.
"""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

import orjson

from taskq import sql
from taskq.database import Session, Sessions
from taskq.errors import Snooze, StoreUnavailable, TaskError
from taskq.task import Bundle, NewTask, Status

__all__ = ["Bundles", "Group", "Member", "Packed", "Stored", "pack"]

THREAD_BYTES_MIN = 262_144  # hashing takes about 1 ms per MB, and more without the processor's help
TASK_BYTES = 512  # that a row takes beside its payload, about
RECENT_BYTES_MAX = 33_554_432  # of content kept for the next task that needs it
READ_WAIT_S = 30.0
UNREAD_DELAY_S = 2.0


@dataclass(frozen=True, slots=True)
class Packed:
    """A bundle ready to be stored."""

    bundle: Bundle
    contents: dict[str, bytes]
    """Its content by digest, each once."""
    size: int
    """Bytes to store, about."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What a bundle has become."""

    ids: list[int]
    """Of its tasks, in their order."""
    group_id: int | None
    """Under which they are shown as one."""


@dataclass(frozen=True, slots=True)
class Member:
    """A task of a group."""

    id: int
    label: str
    """What the submission called it, such as its recipient."""
    status: Status
    reason: str | None
    last_error: str | None


@dataclass(frozen=True, slots=True)
class Group:
    """Tasks that are shown as one."""

    id: int
    kind: str
    created_at: datetime
    members: list[Member]
    """Never empty, in the order of the submission."""


async def pack(bundle: Bundle) -> Packed:
    """Make a bundle ready to be stored; large content is hashed on another thread.

    Raises:
        ValueError: It contradicts itself: a defect of its kind.
    """
    size = sum(len(blob.content) for blob in bundle.blobs)
    contents = await asyncio.to_thread(_by_digest, bundle) if size > THREAD_BYTES_MIN else _by_digest(bundle)
    if len(bundle.labels) != len(bundle.tasks):
        raise ValueError(f"{len(bundle.tasks)} tasks have {len(bundle.labels)} labels: give each one")
    lacking = {digest for new in bundle.tasks for digest in new.blobs} - contents.keys()
    if lacking:
        raise ValueError(f"a task needs the content {lacking.pop()}, which is not in its bundle: add it to the blobs")
    return Packed(bundle, contents, size + sum(len(new.payload) + TASK_BYTES for new in bundle.tasks))


def _by_digest(bundle: Bundle) -> dict[str, bytes]:
    return {blob.digest: blob.content for blob in bundle.blobs}


class Bundles:
    """Stores bundles and reads what is special about them."""

    def __init__(self, session: Session, reads: Sessions) -> None:
        """Prepare.

        Args:
            session: Ours alone, to store with.
            reads: Connections that whoever reads shares.
        """
        self._sql = sql.load("bundle")
        self._session = session
        self._reads = reads
        self._turn = asyncio.Lock()
        self._recent: dict[str, bytes] = {}

    async def store(self, batch: Sequence[Packed]) -> list[Stored]:
        """Store bundles, all of them or none; return what each has become, in order.

        Raises:
            StoreUnavailable: PostgreSQL is away; `sent` says whether they may be stored.
            StoreRefused: PostgreSQL refused one of them; nothing was stored.
        """
        stored = await self._numbered([packed.bundle for packed in batch])
        rows = [
            (task_id, one.group_id, new, label)
            for packed, one in zip(batch, stored, strict=True)
            for task_id, new, label in zip(one.ids, packed.bundle.tasks, packed.bundle.labels, strict=True)
        ]
        uses = [(task_id, bytes.fromhex(digest)) for task_id, _, new, _ in rows for digest in sorted({*new.blobs})]
        contents = {digest: content for packed in batch for digest, content in packed.contents.items()}
        digests = sorted(contents)
        await self._session.fetch(
            self._sql["store_bundles"],
            digests=[bytes.fromhex(digest) for digest in digests],
            contents=[contents[digest] for digest in digests],
            users=[task_id for task_id, _ in uses],
            used=[digest for _, digest in uses],
            ids=[row[0] for row in rows],
            group_ids=[row[1] for row in rows],
            labels=[row[3] for row in rows],
            **_columns([row[2] for row in rows]),
        )
        return stored

    async def _numbered(self, bundles: Sequence[Bundle]) -> list[Stored]:
        grouped = [bundle.grouped or len(bundle.tasks) > 1 for bundle in bundles]
        count = sum(len(bundle.tasks) for bundle in bundles) + sum(grouped)
        rows = await self._session.fetch(self._sql["reserve_ids"], count=count)
        ids: Iterator[int] = iter(sorted(row[0] for row in rows))
        return [
            Stored(group_id=next(ids) if shown_as_one else None, ids=list(islice(ids, len(bundle.tasks))))
            for bundle, shown_as_one in zip(bundles, grouped, strict=True)
        ]

    async def group(self, group_id: int) -> Group | None:
        """Read a group with its tasks; None when there is none, or its retention is over."""
        async with self._reads.session() as session:
            rows = await session.fetch(self._sql["group"], id=group_id)
        if not rows:
            return None
        members = [Member(row[2], row[3], Status(row[4]), row[5], row[6]) for row in rows]
        return Group(group_id, rows[0][0], rows[0][1], members)

    async def blob(self, digest: str) -> bytes:
        """Return content that a task needs; for handlers, by `Context.blob`.

        The tasks of a group start together and need the same: one reads it, the others find it in memory.

        Raises:
            TaskError: It is not stored: final, `content_missing`.
            Snooze: PostgreSQL can't be reached, which is no fault of the task.
        """
        try:
            async with asyncio.timeout(READ_WAIT_S), self._turn:
                content = self._recent.pop(digest, None) or await self._read(digest)
                self._remember(digest, content)
                return content
        except (StoreUnavailable, TimeoutError) as error:
            raise Snooze(f"the content {digest} can't be read now: {error}", delay_s=UNREAD_DELAY_S) from None

    async def _read(self, digest: str) -> bytes:
        try:
            key = bytes.fromhex(digest)
        except ValueError:
            key = b""
        async with self._reads.session() as session:
            rows = await session.fetch(self._sql["blob"], digest=key)
        if not rows:
            raise TaskError(
                f"the content {digest[:80]} is not stored: submit the task again with it",
                retryable=False,
                reason="content_missing",
            )
        return rows[0][0]

    def _remember(self, digest: str, content: bytes) -> None:
        self._recent[digest] = content
        while sum(map(len, self._recent.values())) > RECENT_BYTES_MAX:
            del self._recent[next(iter(self._recent))]

    async def close(self) -> None:
        """Close the connection that is ours."""
        await self._session.close()


def _columns(tasks: Iterable[NewTask]) -> dict[str, list[object]]:
    every = list(tasks)
    return {
        "kinds": [new.kind for new in every],
        "queues": [new.queue for new in every],
        "priorities": [new.priority for new in every],
        "max_attempts": [new.max_attempts for new in every],
        "payloads": [new.payload for new in every],
        "due_ats": [new.due_at for new in every],
        "expires_ats": [new.expires_at for new in every],
        "tags": [orjson.dumps(new.tags).decode() if new.tags else None for new in every],
        "metadata": [new.metadata for new in every],
        "sensitive": [new.sensitive or None for new in every],
    }
