"""Kinds of work for the campaign: one that kills its process, one that is innocent, one that must not happen twice.

Those that end well append to the journal that CRASH_JOURNAL names, in the form of the SMTP sink, so
that the same checker counts their effects.
"""

import asyncio
import hashlib
import json
import os
import time
from dataclasses import dataclass

from gate import pass_gate

from taskq import Context, RetryPolicy, handler

SOON = RetryPolicy(base_s=0.1, cap_s=0.5, floor_s=0.05)


@dataclass(frozen=True, slots=True)
class Errand:
    """What to do for whom."""

    to: str
    work_s: float = 0.0
    held: bool = False
    """Whether each of the first attempts waits at its gate."""


@handler("crash.poison", policy=SOON)
async def die(payload: Errand) -> None:
    """Take the whole process along."""
    os._exit(137 if payload.to else 138)


@handler("crash.innocent", policy=SOON, ack_each=True)
async def note(payload: Errand, context: Context) -> None:
    """Work for a while, then leave a line in the journal."""
    await asyncio.sleep(payload.work_s)
    if payload.held:
        await pass_gate(int(os.environ["CRASH_GATES"].split(",")[context.attempt - 1]))
    line = {
        "at": time.monotonic(),
        "message_id": str(context.uid),
        "recipient": payload.to,
        "phase": "accepted",
        "sha256": hashlib.sha256(payload.to.encode()).hexdigest(),
    }
    descriptor = os.open(os.environ["CRASH_JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, json.dumps(line).encode() + b"\n")
    finally:
        os.close(descriptor)


@handler("crash.unprintable", policy=SOON, max_attempts=2)
async def fail(payload: Errand) -> None:
    """Fail with a text that PostgreSQL can't store."""
    raise ValueError(f"{payload.to}\0\ud800")
