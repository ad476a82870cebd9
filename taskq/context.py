"""What a handler may know about its own run, and what it may say of it.

A handler that asks for a `Context` gets the facts of its run (id, attempt, a name for the outside
world), reads the content that stands beside its payload, notes what happened for the record of the
attempt, and marks the moments after which nothing can be taken back.
"""

import contextlib
import uuid
from collections.abc import Awaitable, Callable, Generator, Mapping
from datetime import datetime

from taskq.task import Run
from taskq.uid import uid_of

__all__ = ["Context"]

FACTS_MAX = 20  # noted in one run


class Context:
    """What a handler may know about its own run."""

    __slots__ = ("_blobs", "_installation", "_run", "_seal", "_spans", "facts", "sealed")

    def __init__(
        self,
        run: Run,
        installation: uuid.UUID,
        seal: Callable[[Run], Awaitable[None]] | None = None,
        blobs: Callable[[str], Awaitable[bytes]] | None = None,
    ) -> None:
        """Describe one run.

        Args:
            run: The run.
            installation: Names this installation; with the task's id it names the task in the world.
            seal: Writes that the outcome of the run may become unknown.
            blobs: Reads the content of a digest.
        """
        self._run = run
        self._installation = installation
        self._seal = seal
        self._blobs = blobs
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
    def run(self) -> int:
        """Executions so far, this one included, also those that gave their attempt back."""
        return self._run.run

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

    async def blob(self, digest: str) -> bytes:
        """Return content that was stored with the task, by its digest."""
        if self._blobs is None:
            raise LookupError(f"the blob {digest} can't be read: this run has no store")
        return await self._blobs(digest)

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
