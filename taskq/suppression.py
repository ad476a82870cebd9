"""Who may not be written to, and the delivery reports that came back.

An address gets on the list because a mail server said that it does not exist, because a delivery
report said so, or because somebody put it there.  The list is asked twice.  At sending, the database
answers: nothing goes to an address that stood on the list at that moment, and concurrent mails share
one query.  At submission, an early word saves the caller a task that would fail: a copy of the hashes
in memory lets everybody through who is not in it, without a query, and only who is in it is looked up.
The copy of another process may be a minute old; what it lets through is stopped at sending.

The list holds the SHA-256 of addresses, so it tells nobody's address to those who don't know it, and
goes on protecting a person whose data is erased.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from urllib.parse import quote

from taskq import sql
from taskq.batch import Batch
from taskq.database import Sessions
from taskq.errors import StoreRefused, StoreUnavailable, Suppressed
from taskq.mail.address import mask_address, parse_address

__all__ = ["Bounces", "Entry", "Source", "Suppressions", "address_hash"]

LOOKUPS_MAX = 500  # requests answered by one query
PRUNE_BATCH = 5_000
BOUNCES_PER_TASK_MAX = 20
DIAGNOSTIC_CHARS_MAX = 500
HASH_OCTETS = 32

_SQL = sql.load("suppression")

Source = Literal["bounce", "report", "manual"]
"""What put an address on the list: a relay's refusal, a delivery report, or somebody."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An address that may not be written to."""

    id: int
    """Grows with every new address: the list's order."""
    shown: str
    """The address as people may see it, such as `a***@example.com`."""
    reason: str
    """Why, in a few words; of a server's refusal only its codes."""
    source: str
    """See `Source`."""
    added_at: datetime
    until: datetime | None
    """When it ends; None: never."""
    task_id: int | None
    """The task whose mail came back, where there was one."""


def address_hash(text: str) -> bytes:
    """Return the SHA-256 of an address in its normal form; raises `ValueError` when it is none.

    Upper and lower case are the same here, though a server may tell them apart (RFC 5321 §2.4): none
    that people use does, and a list that misses an address is worse than one that is a bit wide.
    """
    return hashlib.sha256(str(parse_address(text)).lower().encode()).digest()


class Suppressions:
    """The list, with a copy of its hashes."""

    def __init__(self, reads: Sessions, *, copied_max: int, automatic_s: float) -> None:
        """Prepare; `run` answers lookups, `refresh` fills the copy.

        Args:
            reads: Connections to the database.
            copied_max: Entries that the copy holds; with more, every submission asks the database.
            automatic_s: Seconds that an entry stays which nobody made by hand; 0: none is made.
        """
        self._reads = reads
        self._copied_max = copied_max
        self._automatic_s = automatic_s
        self._copy: set[bytes] | None = None
        self._lookups: Batch[Sequence[bytes], list[Entry | None]] = Batch(self._look_up, size_max=LOOKUPS_MAX)

    @property
    def empty(self) -> bool:
        """Whether the copy is complete and holds nobody, so that there is nothing to check."""
        return self._copy is not None and not self._copy

    async def run(self) -> None:
        """Answer lookups for ever; ends by cancellation."""
        await self._lookups.run()

    async def find(self, addresses: Sequence[str]) -> list[Entry | None]:
        """Look addresses up in the database; return for each its entry, if it has one that stands.

        Raises:
            StoreUnavailable: The database can't be asked.
        """
        return await self._lookups.put([address_hash(address) for address in addresses])

    async def check(self, addresses: Sequence[str]) -> None:
        """Let a submission to these addresses pass.

        Raises:
            Suppressed: One of them may not be written to.
            StoreUnavailable: One of them may be on the list, and the database can't be asked.
        """
        copy = self._copy
        suspects = addresses if copy is None else [each for each in addresses if address_hash(each) in copy]
        if not suspects:
            return
        for address, entry in zip(suspects, await self.find(suspects), strict=True):
            if entry is not None:
                raise Suppressed(_sentence(address, entry))

    async def lookup(self, address: str) -> str | None:
        """Say why an address may not be written to and what can be done; None when it may."""
        entry = (await self.find([address]))[0]
        return None if entry is None else _sentence(address, entry)

    async def hint(self, address: str) -> str | None:
        """Say the same, without a query for whom the copy lets through."""
        copy = self._copy
        if copy is not None and (not copy or address_hash(address) not in copy):
            return None
        return await self.lookup(address)

    async def learn(self, address: str, *, reason: str, task_id: int, source: Source = "bounce") -> bool:
        """Put an address on the list because of a task's mail, for a while; return whether it is on it now."""
        if not self._automatic_s:
            return False
        values = {"reason": reason, "source": source, "until": None, "for_s": self._automatic_s, "task_id": task_id}
        await self._add(address, **values)
        return True

    async def add(self, address: str, *, reason: str, until: datetime | None) -> Entry:
        """Put an address on the list by hand, in place of what stood there; until None: for ever."""
        values = {"reason": reason, "source": "manual", "until": until, "for_s": None, "task_id": None}
        return _entry((await self._add(address, **values))[0])

    async def remove(self, address: str) -> bool:
        """Take an address off the list; return whether it was on it."""
        rows = await _fetch(self._reads, "remove", hash=address_hash(address))
        return bool(rows) and rows[0][0]

    async def entries(self, *, before: int, limit: int) -> list[Entry]:
        """List the entries that stand, newest first, behind the one whose id is `before`."""
        return [_entry(row) for row in await _fetch(self._reads, "entries", before=before, limit=limit)]

    async def prune(self) -> None:
        """Delete entries whose time is over, a bounded number."""
        await _fetch(self._reads, "prune", batch=PRUNE_BATCH)

    async def refresh(self) -> None:
        """Read the copy anew."""
        hashes: bytes = (await _fetch(self._reads, "known", most=self._copied_max + 1))[0][0]
        if len(hashes) > self._copied_max * HASH_OCTETS:
            self._copy = None
            return
        self._copy = {hashes[at : at + HASH_OCTETS] for at in range(0, len(hashes), HASH_OCTETS)}

    async def _add(self, address: str, **values: object) -> Sequence[Sequence[Any]]:
        digest = address_hash(address)
        rows = await _fetch(self._reads, "add", hash=digest, shown=mask_address(address), **values)
        if self._copy is not None:
            self._copy.add(digest)
            if len(self._copy) > self._copied_max:
                self._copy = None
        return rows

    async def _look_up(self, requests: list[Sequence[bytes]]) -> Sequence[list[Entry | None] | BaseException]:
        wanted = list({digest for request in requests for digest in request})
        try:
            rows = await _fetch(self._reads, "find", hashes=wanted)
        except (StoreUnavailable, StoreRefused) as error:
            return [error] * len(requests)
        found = {row[0]: _entry(row) for row in rows}
        return [[found.get(digest) for digest in request] for request in requests]


class Bounces:
    """What delivery reports said of the mails of tasks."""

    def __init__(self, reads: Sessions, *, retention_s: float) -> None:
        """Prepare.

        Args:
            reads: Connections to the database.
            retention_s: Seconds that a report is kept.
        """
        self._reads = reads
        self._retention_s = retention_s

    async def recipients(self, task_id: int) -> str | None:
        """Read, as JSON, the fields of a mail that say whom it was for; None when there is no such mail."""
        rows = await _fetch(self._reads, "recipients", id=task_id)
        return rows[0][0] if rows else None

    async def record(self, task_id: int, address: str, *, action: str, status: str, diagnostic: str) -> None:
        """Keep what a report says of one recipient; the same again is kept once, and of one task only so much."""
        await _fetch(
            self._reads,
            "record_bounce",
            task_id=task_id,
            hash=address_hash(address),
            action=action,
            status=status,
            shown=mask_address(address),
            diagnostic=diagnostic[:DIAGNOSTIC_CHARS_MAX],
            most=BOUNCES_PER_TASK_MAX,
        )

    async def of(self, task_id: int) -> list[dict[str, Any]]:
        """Read what came back of one task, oldest first."""
        names = ("reported_at", "recipient", "action", "status", "diagnostic")
        return [dict(zip(names, row, strict=True)) for row in await _fetch(self._reads, "bounces", task_id=task_id)]

    async def prune(self) -> None:
        """Delete old reports, a bounded number."""
        await _fetch(self._reads, "prune_bounces", retention_s=self._retention_s, batch=PRUNE_BATCH)


def _sentence(address: str, entry: Entry) -> str:
    return (
        f"{address} is on the suppression list since {entry.added_at:%Y-%m-%d} ({entry.source}: {entry.reason}); leave "
        f"it out, or take it off with DELETE /mail/suppressions/{quote(address, safe='')} if it can be reached again"
    )


async def _fetch(reads: Sessions, name: str, **values: object) -> Sequence[Sequence[Any]]:
    async with reads.session() as session:
        return await session.fetch(_SQL[name], **values)


def _entry(row: Sequence[Any]) -> Entry:
    return Entry(*row[1:])
