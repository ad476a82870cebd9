"""What several routes read and answer alike: an id in the address, a document as JSON.

An id is a whole number in the address.  Anything else is answered with a problem that says so, and a
number beyond what PostgreSQL can hold is left to the caller, which knows what was not found.
"""

import orjson
from aiohttp import web

from taskq.web.problem import problem

__all__ = ["ID_MAX", "id_of", "json_answer"]

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
