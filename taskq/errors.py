"""Every exception that taskq raises on purpose, drawn as one tree.

    TaskqError
    ├── ConfigError         at start only; names the setting and the remedy
    ├── SubmissionError     the caller's fault, a 4xx
    │   ├── UnknownKind     no handler of that name is registered
    │   ├── InvalidPayload  the payload does not fit the kind
    │   ├── InvalidFilter   tasks can't be picked by this text
    │   └── Suppressed      a recipient may not be written to
    ├── IntakeFull          too much is waiting to be stored, a 503; safe to try again
    ├── TooManyWaiters      too many callers wait for a task to end, a 503
    ├── StoreSlow           PostgreSQL has not answered yet, a 503; the task may be stored
    ├── StoreUnavailable    PostgreSQL can't be reached, a 503
    ├── StoreRefused        PostgreSQL refused the values; repeating them is useless
    ├── TaskError           from a handler: this run failed; `retryable` decides, the rest explains
    └── Snooze              from a handler: not the task's fault, run it later; burns no attempt

A message states the fact, the value and the remedy, in that order.  What decides is data on the
exception, never the wording of its message.
"""

__all__ = [
    "ConfigError",
    "IntakeFull",
    "InvalidFilter",
    "InvalidPayload",
    "Snooze",
    "StoreRefused",
    "StoreSlow",
    "StoreUnavailable",
    "SubmissionError",
    "Suppressed",
    "TaskError",
    "TaskqError",
    "TooManyWaiters",
    "UnknownKind",
    "shown",
]


class TaskqError(Exception):
    """The root: catch it to catch everything that taskq raises on purpose."""


class ConfigError(TaskqError):
    """The process can't start as configured; printed without a traceback, exit code 2."""


class SubmissionError(TaskqError):
    """The submission is refused and nothing was stored; the caller must change it."""


class UnknownKind(SubmissionError):
    """No handler is registered for this kind of work."""


class InvalidPayload(SubmissionError):
    """The payload does not fit its kind.

    Attributes:
        field: Name of the first offending field as the caller wrote it; empty when it is the whole.
        malformed: Whether it could not even be read as JSON.
    """

    def __init__(self, message: str, *, field: str = "", malformed: bool = False) -> None:
        super().__init__(message)
        self.field = field
        self.malformed = malformed


class InvalidFilter(SubmissionError):
    """The text by which tasks are to be picked can't be read."""


class Suppressed(SubmissionError):
    """A recipient is on the suppression list."""


class IntakeFull(TaskqError):
    """More submissions wait for their commit than the bound allows; nothing was stored."""


class TooManyWaiters(TaskqError):
    """More callers wait for a task to end than the bound allows."""


class StoreSlow(TaskqError):
    """PostgreSQL has not confirmed a submission in time; it goes on, so the task may be stored."""


class StoreUnavailable(TaskqError):
    """PostgreSQL can't be reached, or the connection broke.

    Attributes:
        sent: Whether the statement may have reached the server.  False: it had no effect and may
            be repeated freely.  True: its outcome is unknown, as after a cut during a commit.
    """

    def __init__(self, message: str, *, sent: bool = False) -> None:
        super().__init__(message)
        self.sent = sent


class StoreRefused(TaskqError):
    """PostgreSQL refused the values of a statement (SQLSTATE class 22, 23 or 54); nothing was written."""


class TaskError(TaskqError):
    """This run of the task failed.

    Attributes:
        retryable: True: try again by the kind's retry policy.  False: the failure is final.
        reason: Why a final failure is final, a short stable code such as `permanent`.
        retry_after_s: Seconds until the next try, where the other side named them; else the
            policy's back-off.
    """

    def __init__(
        self,
        message: str,
        *,
        retryable: bool = True,
        reason: str = "permanent",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.reason = reason
        self.retry_after_s = retry_after_s


class Snooze(TaskqError):
    """Something other than the task is at fault (a relay that is down): run it again later.

    The run gives its attempt back; the task stays `pending` until `delay_s` seconds have passed.
    """

    def __init__(self, message: str, *, delay_s: float) -> None:
        super().__init__(message)
        self.delay_s = delay_s


def shown(text: str) -> str:
    """Return a value for an error message: quoted, escaped, at most 80 characters of it."""
    return ascii(text if len(text) <= 80 else f"{text[:79]}…")
