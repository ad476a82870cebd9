"""The kind of work that costs nothing: what is left is the price of the queue."""

from typing import Any

from taskq.kinds.registry import Handler, Kind, handler, make_kind
from taskq.task import RetryPolicy

__all__ = ["noop_kind"]

TIMEOUT_S = 60.0


@handler("noop", timeout_s=TIMEOUT_S, max_attempts=1)
async def noop(payload: dict[str, Any]) -> None:
    """Do nothing; a service loads this module by its setting `handlers`."""


def noop_kind(function: Handler) -> Kind:
    """Make a kind `noop` that calls `function`, for parts that run in this process."""
    return make_kind("noop", function, RetryPolicy(), TIMEOUT_S, max_attempts=1, ack_each=False)
