"""From the body of a submission to what is to be stored.

A body is a mail (`{"To", "subject", "body"}`) or any other kind of work (`{"kind", "payload"}` and
options).  What it becomes is one plain row, nearly always, or a bundle.  Nothing is stored here and
nothing waits: a body that is wrong is refused with the name of the field, whoever brought it.
"""

import difflib
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, cast

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, Strict, ValidationError, model_validator
from pydantic_core import from_json, to_json

from taskq.errors import InvalidPayload
from taskq.kinds.mailing import MAIL
from taskq.kinds.registry import Registry, check_depth
from taskq.task import DELAY_S_MAX, Bundle, NewTask

__all__ = ["Work", "read_submission"]

QUEUE = r"^[A-Za-z0-9_.\-]{1,64}$"
METADATA_BYTES_MAX = 4_096

Moment = Annotated[AwareDatetime, Strict(strict=False)]
Tag = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f]+$")]


class Work(BaseModel):
    """A submission of any kind, with its options."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    kind: str = Field(description="Kind of work; a handler of that name must be registered.")
    payload: Any = Field(description="What the handler is given; its kind says what fits.")
    queue: str = Field("default", pattern=QUEUE, description="1 to 64 letters, digits, `_`, `.` and `-`.")
    priority: int = Field(0, ge=-100, le=100, description="From -100, which runs first, to 100.")
    max_attempts: int | None = Field(None, ge=1, le=100, description="Attempts before it is failed; else its kind's.")
    due_at: Moment | None = Field(None, description="When it may run first, with a time zone.")
    delay_s: float | None = Field(None, ge=0, le=DELAY_S_MAX, description="Seconds until it may run first.")
    expires_at: Moment | None = Field(None, description="When it loses its use and is failed instead of run.")
    ttl_s: float | None = Field(None, gt=0, le=DELAY_S_MAX, description="Seconds until it loses its use.")
    tags: list[Tag] = Field([], max_length=10, description="At most 10 words of at most 64 characters to find it by.")
    metadata: dict[str, JsonValue] | None = Field(None, description="An object of your own, at most 4,096 bytes.")

    @model_validator(mode="after")
    def _check_together(self) -> "Work":
        for one, other in (("due_at", "delay_s"), ("expires_at", "ttl_s")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise ValueError(f"{one} and {other} say the same: send one of them")
        if self.metadata is not None and len(to_json(self.metadata)) > METADATA_BYTES_MAX:
            raise ValueError(f"metadata takes {len(to_json(self.metadata))} bytes: at most {METADATA_BYTES_MAX}")
        return self

    def apply(self, new: NewTask, now: datetime) -> None:
        """Put the options that were given onto a task; `now` is what spans of seconds count from."""
        given = self.model_fields_set
        if "queue" in given:
            new.queue = self.queue
        if "priority" in given:
            new.priority = self.priority
        if self.max_attempts is not None:
            new.max_attempts = self.max_attempts
        new.due_at = _moment(self.due_at, self.delay_s, now) or new.due_at
        new.expires_at = _moment(self.expires_at, self.ttl_s, now) or new.expires_at
        new.tags = tuple(self.tags) or new.tags
        new.metadata = to_json(self.metadata).decode() if self.metadata else new.metadata


def read_submission(registry: Registry, body: bytes) -> NewTask | Bundle:
    """Check a body; return what is to be stored.

    Raises:
        InvalidPayload: It is no JSON, or does not fit its kind.
        UnknownKind: No handler is registered for it.
    """
    work = _work(body) if b'"kind"' in body else None
    kind = registry.get(work.kind if work else MAIL)
    prepared = kind.prepare(to_json(work.payload) if work else body)
    taken = prepared if isinstance(prepared, Bundle) else NewTask(kind.name, prepared, max_attempts=kind.max_attempts)
    if work:
        now = datetime.now(UTC)
        for new in taken.tasks if isinstance(taken, Bundle) else (taken,):
            work.apply(new, now)
    return taken


def _work(body: bytes) -> Work | None:
    """Read a submission of any kind; None when the word "kind" only stood somewhere inside a mail."""
    try:
        document = from_json(body)  # not by orjson, which rounds whole numbers beyond 64 bits
    except ValueError as error:
        raise InvalidPayload(str(error), malformed=True) from None
    if not isinstance(document, dict) or "kind" not in document:
        return None
    check_depth(cast("Any", document))
    try:
        return Work.model_validate(document)
    except ValidationError as error:
        raise _refusal(error) from None


def _refusal(error: ValidationError) -> InvalidPayload:
    detail = error.errors(include_url=False, include_context=False)[0]
    name = str(detail["loc"][0]) if detail["loc"] else ""
    message = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, Work.model_fields, 1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"the fields are {', '.join(Work.model_fields)}"
        message = f"{name} is no field of a task: {hint}"
    elif detail["type"] == "missing":
        message = f"{name} is missing: send kind and payload"
    elif detail["type"] == "timezone_aware":
        message = f"{name} has no time zone: write it as 2026-11-24T10:00Z"
    elif name:
        place = "".join(f"[{part}]" for part in detail["loc"][1:] if isinstance(part, int))
        message = f"{name}{place}: {message}"
    return InvalidPayload(message, field=name)


def _moment(at: datetime | None, in_s: float | None, now: datetime) -> datetime | None:
    return now + timedelta(seconds=in_s) if in_s is not None else at
