"""The nouns of the queue and its pure rules; no database, no network.

A task is stored in one of five states (`Status`).  A *run* is one execution of it: the claim adds
one to `run` (the fence: only the newest run may settle) and to `attempt` (what `max_attempts`
limits).  A run ends as an `Outcome`, a value.  `settle` turns the outcome into a `Change`, the only
thing the store writes back.  A snoozed or released run gives its attempt back, never its run
number, so a late result of an old run can't be mistaken for the new one.

Delays are relative seconds: the database adds them to its own clock, which is the only one that
stored times come from.  A run knows when its task expires on this machine's clock; the store has put
it there, so that clocks that differ make no task late or early.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import assert_never

__all__ = [
    "DELAY_S_MAX",
    "OUTCOME_UNKNOWN",
    "Blob",
    "Bundle",
    "Cancelled",
    "Change",
    "Done",
    "Expired",
    "Failed",
    "NewTask",
    "Outcome",
    "Released",
    "RetryPolicy",
    "Run",
    "Snoozed",
    "Status",
    "Task",
    "of_sealed",
    "settle",
]

ERROR_CHARS_MAX = 2_000  # of an error text kept per attempt: enough for an SMTP reply or a traceback's end
EXPIRED = "expired"
OUTCOME_UNKNOWN = "outcome_unknown"
"""The reason of a failure that may have had its effect all the same."""
DELAY_S_MAX = 10 * 366 * 86_400.0  # whatever a handler asks for: a time that PostgreSQL can store


class Status(IntEnum):
    """The five stored states; the number is what the table holds, `label` what users see."""

    PENDING = 0
    IN_PROGRESS = 1
    OK = 2
    FAILED = 3
    CANCELLED = 4

    @property
    def final(self) -> bool:
        """Whether nothing but a wish of somebody's moves a task on from it."""
        return self >= Status.OK

    @property
    def label(self) -> str:
        """The word of the public contract, such as `in-progress` or `Ok`."""
        return _LABELS[self]


_LABELS = ("pending", "in-progress", "Ok", "failed", "cancelled")


@dataclass(slots=True)
class NewTask:
    """A submission that passed validation."""

    kind: str
    payload: str
    """JSON of the validated payload."""
    queue: str = "default"
    priority: int = 0
    """Lower runs first."""
    max_attempts: int = 10
    due_at: datetime | None = None
    """When it may first run, aware; None: at once."""
    expires_at: datetime | None = None
    """When it has lost its use, aware: it is then failed instead of run; None: never."""
    tags: tuple[str, ...] = ()
    """Words to find it by."""
    metadata: str | None = None
    """JSON object of the submitter's own, kept and shown, never sent."""
    blobs: tuple[str, ...] = ()
    """Digests of the blobs it needs."""
    sensitive: bool = False
    """Whether its payload is dropped as soon as it is done, and never shown."""

    @property
    def plain(self) -> bool:
        """Whether it is one row of the hot road: due at once, for ever, with nothing beside its payload."""
        return not (self.due_at or self.expires_at or self.tags or self.metadata or self.blobs or self.sensitive)


@dataclass(frozen=True, slots=True)
class Blob:
    """Content that a task needs beside its payload, named by what it holds."""

    content: bytes

    @property
    def digest(self) -> str:
        """SHA-256 of the content, hexadecimal."""
        return hashlib.sha256(self.content).hexdigest()


@dataclass(slots=True)
class Bundle:
    """What one submission becomes when it is more than one plain row."""

    tasks: list[NewTask]
    labels: list[str]
    """What each task is called in the answer, such as its recipient."""
    blobs: list[Blob]
    grouped: bool = False
    """Whether the tasks are shown as one, under an id of their own, even when there is only one."""


@dataclass(slots=True)
class Run:
    """One execution of a task by this instance, from its claim to its settling."""

    id: int
    run: int
    """Fence number: grows by one with every claim, never goes back."""
    owner: int
    """The lease under which it was claimed."""
    kind: str
    attempt: int
    """Executions counted so far, this one included."""
    max_attempts: int
    created_at: datetime
    payload: str
    crashes: int = 0
    """How often a process died while running it."""
    sensitive: bool = False
    """Whether its content is erased as soon as it is final."""
    expires_at: datetime | None = None
    """When it loses its use, by this machine's clock; None: never."""


@dataclass(frozen=True, slots=True)
class Task:
    """A stored task as shown to users."""

    id: int
    kind: str
    queue: str
    status: Status
    attempt: int
    max_attempts: int
    created_at: datetime
    due_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    reason: str | None
    last_error: str | None
    expires_at: datetime | None
    tags: Sequence[str] | None
    metadata: str | None
    """JSON object."""
    group_id: int | None
    """The id under which it is shown together with others."""
    erased_at: datetime | None
    """When the content of its payload was erased."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Full-jitter exponential back-off: a random share of a span that doubles with each attempt.

    The randomness spreads a thousand tasks that failed together; `floor_s` keeps a lucky draw from
    hitting a server that has just refused.
    """

    base_s: float = 15.0
    """Seconds: span after the first failure."""
    cap_s: float = 3_600.0
    """Seconds: the span grows no further."""
    floor_s: float = 1.0
    """Seconds: the shortest delay."""

    def delay_s(self, attempt: int, draw: float) -> float:
        """Return the seconds until the next try.

        Args:
            attempt: Attempts made so far, from 1.
            draw: A random number, 0 ≤ draw < 1.
        """
        span = min(self.cap_s, self.base_s * 2.0 ** min(attempt - 1, 60))
        return max(self.floor_s, span * draw)


@dataclass(frozen=True, slots=True)
class Done:
    """The handler finished."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The handler failed; see `errors.TaskError` for the fields."""

    error: str
    retryable: bool = True
    reason: str = "permanent"
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Snoozed:
    """The handler asked to run later, through no fault of the task."""

    error: str
    delay_s: float


@dataclass(frozen=True, slots=True)
class Released:
    """The process stops and hands the run back unfinished."""


@dataclass(frozen=True, slots=True)
class Expired:
    """The task had lost its use before the handler was called."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Somebody called the task off while it ran."""


Outcome = Done | Failed | Snoozed | Released | Expired | Cancelled


@dataclass(slots=True)
class Change:
    """What the store writes for one finished run, guarded by id, owner and run."""

    id: int
    run: int
    owner: int
    status: Status
    delay_s: float | None = None
    """Seconds until it may be claimed again; None when the status is final."""
    error: str | None = None
    reason: str | None = None
    attempt_back: int = 0
    """1: this run does not count as an attempt."""
    detail: str | None = None
    """JSON of what the handler noted; see `facts.detail_of`."""
    keeps: str | None = None
    """JSON array of the fields that the payload keeps: the rest is erased; None: it stays whole."""


def of_sealed(outcome: Outcome) -> Outcome:
    """Return what an outcome means for a sealed run: not to know it is final, as it must never run twice.

    A handler that says itself what failed (`TaskError`, `Snooze`) knows that nothing happened, and is
    believed, unless its reason is `outcome_unknown`.
    """
    match outcome:
        case Released():
            error = "the process stopped after the content may have left: it is not run again"
            return Failed(error, retryable=False, reason=OUTCOME_UNKNOWN)
        case Cancelled():
            error = "it was called off after the content may have left"
            return Failed(error, retryable=False, reason=OUTCOME_UNKNOWN)
        case Failed(error, _, reason) if reason == OUTCOME_UNKNOWN:
            return Failed(error, retryable=False, reason=OUTCOME_UNKNOWN)
        case _:
            return outcome


def settle(run: Run, outcome: Outcome, policy: RetryPolicy, draw: float | None = None) -> Change:
    """Decide what a run's outcome makes of its task.

    Args:
        draw: Jitter of the back-off, 0 ≤ draw < 1; drawn here when omitted.
    """
    change = _settled(run, outcome, policy, draw)
    if change.delay_s and run.expires_at and _in(change.delay_s) >= run.expires_at:
        # A wait that nothing can follow is no wait: whoever submitted it learns at once.
        return replace(change, status=Status.FAILED, delay_s=None, reason=EXPIRED)
    return change


def _settled(run: Run, outcome: Outcome, policy: RetryPolicy, draw: float | None) -> Change:
    match outcome:
        case Done():
            return Change(run.id, run.run, run.owner, Status.OK)
        case Failed():
            return _failed(run, outcome, policy, random.random() if draw is None else draw)  # noqa: S311 - jitter is no secret
        case Snoozed(error, delay_s):
            return Change(run.id, run.run, run.owner, Status.PENDING, _bounded(delay_s), _storable(error), None, 1)
        case Released():
            return Change(run.id, run.run, run.owner, Status.PENDING, 0.0, None, None, 1)
        case Expired():  # nothing was tried, so nothing counts, and what the last try said stays
            return Change(run.id, run.run, run.owner, Status.FAILED, None, None, EXPIRED, 1)
        case Cancelled():
            return Change(run.id, run.run, run.owner, Status.CANCELLED, None, None, "cancelled")
        case _:
            assert_never(outcome)


def _failed(run: Run, outcome: Failed, policy: RetryPolicy, draw: float) -> Change:
    error = _storable(outcome.error)
    if not outcome.retryable:
        return Change(run.id, run.run, run.owner, Status.FAILED, None, error, _storable(outcome.reason))
    if run.attempt >= run.max_attempts:
        return Change(run.id, run.run, run.owner, Status.FAILED, None, error, "attempts_exhausted")
    delay_s = policy.delay_s(run.attempt, draw) if outcome.retry_after_s is None else outcome.retry_after_s
    return Change(run.id, run.run, run.owner, Status.PENDING, _bounded(delay_s), error)


def _storable(text: str) -> str:
    """Shorten a handler's text, and spell out what a PostgreSQL text can't hold."""
    plain = text[:ERROR_CHARS_MAX].replace("\0", "\\0")
    return plain.encode("utf-8", "backslashreplace").decode()[:ERROR_CHARS_MAX]


def _in(delay_s: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=delay_s)


def _bounded(delay_s: float) -> float:
    return min(DELAY_S_MAX, max(0.0, delay_s))  # in this order not-a-number becomes 0
