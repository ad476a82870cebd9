"""The nouns of the queue and its pure rules; no clock, no database, no network.

A task is stored in one of five states (`Status`).  A *run* is one execution of it: the claim adds
one to `run` (the fence: only the newest run may settle) and to `attempt` (what `max_attempts`
limits).  A run ends as an `Outcome`, a value.  `settle` turns the outcome into a `Change`, the only
thing the store writes back.  A snoozed or released run gives its attempt back, never its run
number, so a late result of an old run can't be mistaken for the new one.

Delays are relative seconds: the database adds them to its own clock, which is the only one that
stored times come from.
"""

import contextlib
import random
import uuid
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import assert_never

from taskq.uid import uid_of

__all__ = [
    "OUTCOME_UNKNOWN",
    "Change",
    "Context",
    "Done",
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
FACTS_MAX = 20  # noted in one run
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
    erased_at: datetime | None = None
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


Outcome = Done | Failed | Snoozed | Released


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
        case Failed(error, _, reason) if reason == OUTCOME_UNKNOWN:
            return Failed(error, retryable=False, reason=OUTCOME_UNKNOWN)
        case _:
            return outcome


def settle(run: Run, outcome: Outcome, policy: RetryPolicy, draw: float | None = None) -> Change:
    """Decide what a run's outcome makes of its task.

    Args:
        draw: Jitter of the back-off, 0 ≤ draw < 1; drawn here when omitted.
    """
    match outcome:
        case Done():
            return Change(run.id, run.run, run.owner, Status.OK)
        case Failed():
            return _failed(run, outcome, policy, random.random() if draw is None else draw)  # noqa: S311 - jitter is no secret
        case Snoozed(error, delay_s):
            return Change(run.id, run.run, run.owner, Status.PENDING, _bounded(delay_s), _storable(error), None, 1)
        case Released():
            return Change(run.id, run.run, run.owner, Status.PENDING, 0.0, None, None, 1)
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


def _bounded(delay_s: float) -> float:
    return min(DELAY_S_MAX, max(0.0, delay_s))  # in this order not-a-number becomes 0


class Context:
    """What a handler may know about its own run."""

    __slots__ = ("_installation", "_run", "_seal", "_spans", "facts", "sealed")

    def __init__(self, run: Run, installation: uuid.UUID, seal: Callable[[Run], Awaitable[None]] | None = None) -> None:
        """Describe `run` of a task of this `installation`; `seal` writes that its outcome may become unknown."""
        self._run = run
        self._installation = installation
        self._seal = seal
        self._spans = 0
        self.facts: list[Mapping[str, object]] = []
        """What the handler noted, oldest first."""
        self.sealed = False
        """Whether this run may never be followed by another unless it says itself that nothing happened."""

    @property
    def task_id(self) -> int:
        """Id of the task."""
        return self._run.id

    @property
    def attempt(self) -> int:
        """Attempts so far, this one included."""
        return self._run.attempt

    @property
    def max_attempts(self) -> int:
        """Attempts before the task is failed."""
        return self._run.max_attempts

    @property
    def created_at(self) -> datetime:
        """When the task was stored."""
        return self._run.created_at

    @property
    def uid(self) -> uuid.UUID:
        """Names the task in the outside world, equal on every attempt and on every instance."""
        return uid_of(self._run.id, self._installation)

    def note(self, facts: Mapping[str, object]) -> None:
        """Keep facts about this run, values that JSON knows, for the record of the attempt; at most 20 times."""
        if len(self.facts) < FACTS_MAX:
            self.facts.append(facts)

    async def seal(self) -> None:
        """Write down that from here on a crash leaves the outcome unknown; return once that is committed.

        A sealed run that is lost, cut off or ends with an unexpected exception is failed as
        `outcome_unknown` and never repeated.  Where it ends with a `TaskError` or a `Snooze`, nothing
        happened, and the next run begins unsealed.

        Raises:
            Snooze: It can't be stored, or the run is no longer ours; nothing may leave.
        """
        if self._seal is not None and not self.sealed:
            await self._seal(self._run)
            self.sealed = True

    @property
    def interruptible(self) -> bool:
        """Whether the run may be cancelled now."""
        return self._spans == 0

    @contextlib.contextmanager
    def uninterruptible(self) -> Generator[None]:
        """Mark a span whose interruption would leave the effect unknown (a mail past its final dot).

        A time-out and a graceful stop wait for the span instead of cancelling it.  The span must
        bound its own time.
        """
        self._spans += 1
        try:
            yield
        finally:
            self._spans -= 1
