"""What several routes read and answer alike: an id in the address, a document as JSON.

An id is a whole number in the address.  Anything else is answered with a problem that says so, and a
number beyond what PostgreSQL can hold is left to the caller, which knows what was not found.
"""

import math

import orjson
from aiohttp import web

from taskq.web.problem import problem

__all__ = ["ID_MAX", "id_of", "json_answer", "preferred_wait_s", "seconds_of"]

ID_MAX = 2**63 - 1


def id_of(text: str) -> int | web.Response:
    """Read an id from an address; the answer to give when it is none."""
    if not (text.isascii() and text.isdigit() and len(text) <= 30):
        return problem(400, "invalid_id", f"{text[:40]!r} is no id: it must be a whole number such as 12")
    return int(text)


def json_answer(document: object, status: int = 200) -> web.Response:
    """Answer with a document."""
    return web.Response(
        status=status, body=orjson.dumps(document, option=orjson.OPT_UTC_Z), content_type="application/json"
    )


def seconds_of(text: str) -> float:
    """Read a number of seconds; not-a-number for anything else."""
    try:
        return float(text) if text.isascii() and len(text) <= 20 else math.nan
    except ValueError:
        return math.nan


def preferred_wait_s(prefer: str, most_s: float) -> float:
    """Return the seconds that a `Prefer` header asks to wait (RFC 7240 §4.3), `most_s` at most; 0: none."""
    for preference in prefer.split(","):
        name, _, value = preference.partition("=")
        if name.strip().lower() == "wait":
            wait_s = seconds_of(value.partition(";")[0].strip().strip('"'))
            return max(0.0, min(wait_s, most_s)) if math.isfinite(wait_s) else 0.0
    return 0.0
