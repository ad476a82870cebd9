"""Run one task: find its handler, check its payload, turn whatever happens into an outcome.

The worker never touches the database and never raises: a result, an exception, an unknown kind or a
payload that does not fit all become a value that `task.settle` understands.  This is the only place
where any exception is caught, since a handler may raise anything.  Only a cancellation passes
through: the dispatcher, which asked for it, knows what it means (a time-out, a stop, a lost lease).
"""

import asyncio
import logging
import traceback
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import orjson

from taskq.context import Context
from taskq.errors import InvalidPayload, Snooze, TaskError
from taskq.facts import detail_of, mask_addresses
from taskq.kinds.registry import Kind, Registry
from taskq.task import (
    OUTCOME_UNKNOWN,
    Cancelled,
    Change,
    Done,
    Expired,
    Failed,
    Outcome,
    Released,
    RetryPolicy,
    Run,
    Snoozed,
    Status,
    of_sealed,
    settle,
)

__all__ = ["Execution", "Worker"]

logger = logging.getLogger("taskq.worker")

UNKNOWN_KIND_POLICY = RetryPolicy()

_DONE = Done()


class Worker:
    """Runs tasks by the kinds of a registry."""

    def __init__(
        self,
        registry: Registry,
        installation: uuid.UUID,
        seal: Callable[[Run], Awaitable[None]] | None = None,
        blobs: Callable[[str], Awaitable[bytes]] | None = None,
    ) -> None:
        """Prepare a worker.

        Args:
            registry: The kinds.
            installation: Names this installation; with a task's id it names the task in the world.
            seal: Stores that the outcome of a run may become unknown; raises `Snooze` when it can't.
            blobs: Reads the content of a digest.
        """
        self._registry = registry
        self._installation = installation
        self._seal = seal
        self._blobs = blobs

    def kind(self, run: Run) -> Kind | None:
        """Return the kind of a run, if this process knows it."""
        return self._registry.find(run.kind)

    def context(self, run: Run) -> Context:
        """Make what the handler may know about its run."""
        return Context(run, self._installation, self._seal, self._blobs)

    async def run(self, run: Run, kind: Kind | None, context: Context) -> Outcome:
        """Run the handler; return what came of it."""
        if run.expires_at is not None and run.expires_at <= datetime.now(UTC):
            return Expired()
        if kind is None:
            return Failed(f"the kind {run.kind} is unknown to this process: import the module that declares it")
        try:
            payload = kind.parse(run.payload)
            await (kind.handler(payload, context) if kind.wants_context else kind.handler(payload))
        except InvalidPayload as error:
            message = f"the payload does not fit the kind {kind.name}: {error}"
            return Failed(message, retryable=False, reason="invalid_payload")
        except Snooze as error:
            return Snoozed(str(error), error.delay_s)
        except TaskError as error:
            return Failed(str(error), error.retryable, error.reason, error.retry_after_s)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return _crashed(run, error)  # nobody cancelled this run: the handler awaited something that was
        except Exception as error:  # noqa: BLE001 - a handler may raise anything; it is reported, not lost
            return _crashed(run, error)
        return _DONE


@dataclass(slots=True)
class Execution:
    """A run under way."""

    run: Run
    kind: Kind | None
    context: Context
    deadline: float
    """Monotonic seconds after which it has run too long."""
    task: asyncio.Task[None] | None = None
    ended_as: Outcome | None = None
    called_off: bool = False
    """Whether somebody wishes that the task does not run again."""

    def end(self, outcome: Outcome) -> None:
        """Cancel the run; what it then comes to is `outcome`."""
        if self.task is not None and self.ended_as is None:
            self.ended_as = outcome
            self.task.cancel()

    def change(self, outcome: Outcome) -> Change:
        """Decide what the run's outcome makes of its task, and what is kept of the run and of the payload."""
        kind, context = self.kind, self.context
        if context.sealed:
            outcome = of_sealed(outcome)
        change = settle(self.run, outcome, kind.policy if kind else UNKNOWN_KIND_POLICY)
        if self.called_off and change.status is Status.PENDING:
            change = settle(self.run, Cancelled(), UNKNOWN_KIND_POLICY)
        privacy = kind.privacy if kind else None
        if context.facts and not isinstance(outcome, Released):
            change.detail = detail_of(context.facts, private=privacy is not None)
        if privacy is not None:
            change.error = change.error and mask_addresses(change.error)
            if change.status.final and (self.run.sensitive or privacy.content_days == 0):
                change.keeps = orjson.dumps(privacy.keeps).decode()
        return change

    def outcome_unknown(self, change: Change) -> bool:
        """Tell, and log, whether the run may have had its effect without our knowing."""
        unknown = change.reason == OUTCOME_UNKNOWN or any(fact.get("ambiguous") for fact in self.context.facts)
        if unknown:
            error = mask_addresses(change.error or "")
            facts = {"task_id": self.run.id, "kind": self.run.kind, "attempt": self.run.attempt, "error": error}
            logger.warning("it is not known whether the run had its effect", extra=facts)
        return unknown


def _crashed(run: Run, error: BaseException) -> Failed:
    facts = {"task_id": run.id, "kind": run.kind, "attempt": run.attempt, "error": mask_addresses(repr(error))}
    logger.info("handler raised", extra=facts)
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{last.filename.rpartition('/')[2]}:{last.lineno} in {last.name}"
    return Failed(f"{type(error).__name__}: {error} (at {place})", reason=OUTCOME_UNKNOWN)
