"""Errors as RFC 9457 problem documents: one shape for every 4xx and 5xx.

`code` is stable and meant for programs, `detail` for people: it states the fact, the value and the
remedy.  A refused submission never leaves a trace in the queue.
"""

from http import HTTPStatus

import orjson
from aiohttp import web

from taskq.errors import (
    IntakeFull,
    InvalidFilter,
    InvalidPayload,
    StoreRefused,
    StoreSlow,
    StoreUnavailable,
    Suppressed,
    TaskqError,
    TooManyWaiters,
    UnknownKind,
)

__all__ = ["problem", "problem_of"]

RETRY_AFTER_S = 1
SLOW_RETRY_AFTER_S = 5  # a database that hangs is not helped by haste


def problem(status: int, code: str, detail: str, *, field: str = "", retry_after_s: int | None = None) -> web.Response:
    """Make a problem document.

    Args:
        status: HTTP status, 4xx or 5xx.
        code: Stable name of the kind of problem.
        detail: Fact, value, remedy.
        field: The offending field, where there is one.
        retry_after_s: Seconds for the `Retry-After` header.
    """
    document: dict[str, object] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": detail,
    }
    if field:
        document["field"] = field
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return web.Response(
        status=status, body=orjson.dumps(document), content_type="application/problem+json", headers=headers
    )


def problem_of(error: TaskqError, method: str) -> web.Response:  # noqa: C901 - a table of cases
    """Make the problem document of one of our exceptions, met while answering `method`."""
    match error:
        case InvalidPayload(malformed=True):
            return problem(400, "malformed_json", f"the body can't be read as JSON: {error}")
        case InvalidPayload():
            return problem(422, "invalid_payload", str(error), field=error.field)
        case InvalidFilter():
            return problem(400, "invalid_filter", str(error), field="filter")
        case UnknownKind():
            return problem(422, "unknown_kind", str(error), field="kind")
        case Suppressed():
            return problem(422, "suppressed", str(error))
        case StoreRefused():
            return problem(422, "refused_by_database", f"PostgreSQL can't store this: {error}")
        case IntakeFull():
            return problem(503, "intake_full", str(error), retry_after_s=RETRY_AFTER_S)
        case TooManyWaiters():
            return problem(503, "too_many_waiters", str(error), retry_after_s=RETRY_AFTER_S)
        case StoreSlow():
            return problem(503, "store_slow", str(error), retry_after_s=SLOW_RETRY_AFTER_S)
        case StoreUnavailable(sent=True) if method not in ("GET", "HEAD"):
            detail = "the database went away while the task was being stored: it may or may not have been"
            return problem(503, "outcome_unknown", detail, retry_after_s=RETRY_AFTER_S)
        case StoreUnavailable():
            return problem(
                503,
                "database_unavailable",
                "the database can't be reached; nothing was changed: try again",
                retry_after_s=RETRY_AFTER_S,
            )
        case _:
            raise error
