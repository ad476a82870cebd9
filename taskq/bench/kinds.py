"""The kind of work that costs nothing: what is left is the price of the queue.

A service under measurement loads this module by its setting `handlers`, as it would a user's.
"""

from typing import Any

from taskq.kinds.registry import handler

__all__ = ["noop"]


@handler("noop", timeout_s=60.0, max_attempts=1)
async def noop(payload: dict[str, Any]) -> None:
    """Do nothing."""
