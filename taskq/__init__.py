"""taskq: a task queue service on PostgreSQL.

Submit over HTTP or SQL; a task that was accepted is committed, runs, is retried and ends in exactly
one final state, through any crash.  `taskq.handler` declares what a kind of work does; everything
else is the service that `taskq run` starts.
"""

from importlib.metadata import PackageNotFoundError, version

from taskq.context import Context
from taskq.errors import Snooze, TaskError
from taskq.facts import Privacy
from taskq.kinds.registry import handler
from taskq.task import Blob, Bundle, NewTask, RetryPolicy

__all__ = [
    "Blob",
    "Bundle",
    "Context",
    "NewTask",
    "Privacy",
    "RetryPolicy",
    "Snooze",
    "TaskError",
    "__version__",
    "handler",
]

try:
    __version__ = version("taskq")
except PackageNotFoundError:  # run from a clone that was not installed
    __version__ = "0+unknown"
