"""From the body of a submission to what is to be stored.

A body is a mail (`{"To", "subject", "body"}`) or any other kind of work (`{"kind", "payload"}`).  What
it becomes is one plain row, nearly always, or a bundle.  Nothing is stored here and nothing waits: a
body that is wrong is refused with the name of the field, whoever brought it.
"""

from typing import Any, cast

from pydantic_core import from_json, to_json

from taskq.errors import InvalidPayload
from taskq.kinds.registry import Kind, Registry, check_depth
from taskq.task import Bundle, NewTask

__all__ = ["read_submission"]

MAIL = "email"


def read_submission(registry: Registry, body: bytes) -> NewTask | Bundle:
    """Check a body; return what is to be stored.

    Raises:
        InvalidPayload: It is no JSON, or does not fit its kind.
        UnknownKind: No handler is registered for it.
    """
    other = _other_kind(registry, body) if b'"kind"' in body else None
    kind, payload = other or (registry.get(MAIL), body)
    prepared = kind.prepare(payload)
    if isinstance(prepared, Bundle):
        return prepared
    return NewTask(kind.name, prepared, max_attempts=kind.max_attempts)


def _other_kind(registry: Registry, body: bytes) -> tuple[Kind, bytes] | None:
    """Read `{"kind", "payload"}`; None when the word "kind" only stood somewhere inside a mail."""
    try:
        document = from_json(body)  # not by orjson, which rounds whole numbers beyond 64 bits
    except ValueError as error:
        raise InvalidPayload(str(error), malformed=True) from None
    if not isinstance(document, dict) or "kind" not in document:
        return None
    fields = cast("dict[str, Any]", document)
    for name in fields:
        if name not in ("kind", "payload"):
            raise InvalidPayload(f"{name} is no field of a task: send kind and payload", field=name)
    kind = registry.get(fields["kind"] if isinstance(fields["kind"], str) else repr(fields["kind"]))
    if "payload" not in fields:
        raise InvalidPayload(f"payload is missing: the kind {kind.name} needs it", field="payload")
    check_depth(fields["payload"])
    return kind, to_json(fields["payload"])
