"""Kinds of work: a name, a handler, the schema of its payload and the limits of one run.

The one extension point.  A handler is an async function whose first parameter says what its payload
is, and whose second, if it has one, is the run's `Context`:

    @handler("resize", timeout_s=60)
    async def resize(payload: Resize, context: Context) -> None: ...

The payload is any type pydantic can check (a model, a TypedDict, `dict[str, Any]`); it is checked at
submission, so that the caller sees the error, and again before the run, since SQL callers bypass
the first check.
"""

import difflib
import importlib
import inspect
import itertools
import math
import re
import typing
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic import PydanticUndefinedAnnotation, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, SchemaError, from_json

from taskq.context import Context
from taskq.errors import ConfigError, InvalidPayload, UnknownKind
from taskq.facts import Privacy
from taskq.task import Bundle, RetryPolicy

__all__ = ["Kind", "Registry", "check_depth", "declared", "handler", "make_kind"]

Handler = Callable[..., Awaitable[object]]

NAME = re.compile(r"[a-z][a-z0-9_.-]{0,63}")
DEPTH_MAX = 32  # of a payload: deeper ones are refused rather than met by a recursion limit later
BUNDLE_TASKS_MAX = 1_000
BUNDLE_CHARS_MAX = 33_554_432  # of the payloads of one bundle
PAYLOAD_CHARS_MAX = 4_194_304  # of one task: a claim reads hundreds of them at once

_NO_SCHEMA = (PydanticUserError, PydanticUndefinedAnnotation, SchemaError)
_NUL = "a text holds the character U+0000, which PostgreSQL can't store: remove it"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of work."""

    name: str
    handler: Handler
    payload: TypeAdapter[Any]
    wants_context: bool
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    timeout_s: float = 300.0
    """Seconds that one run may take."""
    max_attempts: int = 10
    ack_each: bool = False
    """Write each outcome before its slot is used again: for effects whose repeat is expensive."""
    bundle: Callable[[Any], Bundle | None] | None = None
    """Says what a checked payload becomes; None, or its answer None: one plain row."""
    privacy: Privacy | None = None
    """None: payloads are kept whole as long as their tasks, and records of runs may hold addresses."""

    def prepare(self, body: bytes) -> str | Bundle:
        """Check a submitted payload; return the JSON of one plain row, or the bundle that it becomes.

        Raises:
            InvalidPayload: It does not fit; names the field.
        """
        value = self._checked(body)
        bundle = self.bundle(value) if self.bundle else None
        if bundle is None:
            return _bounded(self._stored(value, body))
        if not 1 <= len(bundle.tasks) <= BUNDLE_TASKS_MAX:
            raise InvalidPayload(
                f"the payload makes {len(bundle.tasks):,} tasks: must be 1 to {BUNDLE_TASKS_MAX:,}; split it"
            )
        for new in bundle.tasks:
            _bounded(new.payload)
        whole = sum(len(new.payload) for new in bundle.tasks)
        if whole > BUNDLE_CHARS_MAX:
            raise InvalidPayload(
                f"the {len(bundle.tasks):,} tasks of the payload take {whole:,} characters in the queue: "
                f"at most {BUNDLE_CHARS_MAX:,} at once; split it"
            )
        return bundle

    def check(self, body: bytes) -> str:
        """Check a submitted payload; return it as the JSON to store.

        Raises:
            InvalidPayload: It does not fit; names the field.
        """
        return self._stored(self._checked(body), body)

    def _checked(self, body: bytes) -> Any:
        try:
            return self.payload.validator.validate_json(body)
        except ValidationError as error:
            detail = error.errors(include_url=False, include_context=False)[0]
            message, name = self._sentence(detail)
            raise InvalidPayload(message, field=name, malformed=detail["type"] == "json_invalid") from None

    def _stored(self, value: Any, body: bytes) -> str:
        stored = self.payload.serializer.to_json(value)
        if b"null" in stored and stored.count(b"null") > body.count(b"null"):
            # a default, or a double that is not finite: read from 1e999 or "inf", and written as null
            check_depth(from_json(body))
            check_depth(self.payload.serializer.to_python(value, mode="json"))
        return stored.decode()

    def parse(self, payload: str) -> Any:
        """Read a stored payload; raises `InvalidPayload`."""
        try:
            return self.payload.validator.validate_json(payload)
        except ValidationError as error:
            detail = error.errors(include_url=False, include_context=False)[0]
            raise InvalidPayload(self._sentence(detail)[0]) from None

    def _sentence(self, detail: ErrorDetails) -> tuple[str, str]:
        """Return what is wrong, and the field of the payload that it is wrong with."""
        name = str(detail["loc"][0]) if detail["loc"] else ""
        place = name + "".join(_steps(detail["loc"][1:]))
        message = str(detail["msg"]).removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            return f"{place} is no field of the kind {self.name}: {self._hint(detail['loc'])}", name
        if detail["type"] == "missing":
            return f"{place} is missing: the kind {self.name} needs it", name
        return (f"{place}: {message}" if place else message), name

    def _hint(self, loc: tuple[int | str, ...]) -> str:
        schema = self.payload.json_schema()
        parts = [schema] if len(loc) == 1 else list(schema.get("$defs", {}).values())
        fields = [name for part in parts for name in part.get("properties", ())]
        near = difflib.get_close_matches(str(loc[-1]), fields, 1, cutoff=0.5)
        return f"did you mean {near[0]}?" if near else f"the fields are {', '.join(fields)}"


class Registry:
    """The kinds this process can run."""

    def __init__(self) -> None:
        """Begin with none."""
        self._kinds: dict[str, Kind] = {}

    def add(self, kind: Kind) -> None:
        """Add a kind; a second of the same name is a `ConfigError`, as is a payload type with an unknown part."""
        if kind.name in self._kinds:
            raise ConfigError(f"the kind {kind.name} is declared twice: rename one of the handlers")
        if not kind.payload.pydantic_complete:  # a part of it was declared after the handler, or is nowhere
            try:
                kind.payload.rebuild()
            except _NO_SCHEMA as error:
                raise _no_schema(kind.name, kind.handler, error) from None
        self._kinds[kind.name] = kind

    @property
    def private(self) -> dict[str, Privacy]:
        """The privacy of the kinds that have one, by name."""
        return {kind.name: kind.privacy for kind in self._kinds.values() if kind.privacy is not None}

    def find(self, name: str) -> Kind | None:
        """Return the kind of that name, if there is one."""
        return self._kinds.get(name)

    def get(self, name: str) -> Kind:
        """Return the kind of that name, or raise `UnknownKind` with a suggestion."""
        kind = self._kinds.get(name)
        if kind is None:
            near = difflib.get_close_matches(name, self._kinds, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(self._kinds))}"
            raise UnknownKind(f"{name!r} is no kind of work: {hint}")
        return kind

    def load(self, modules: tuple[str, ...]) -> None:
        """Import modules and add the kinds that their `@handler` functions declare."""
        for module in modules:
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise ConfigError(
                    f"handlers names {module}, which can't be imported ({error}): check PYTHONPATH"
                ) from error
        for kind in declared:
            self.add(kind)


declared: list[Kind] = []
"""Kinds declared by `@handler` in the modules imported so far."""


def handler(  # noqa: PLR0913 - one for each field of a kind
    name: str,
    *,
    timeout_s: float = 300.0,
    policy: RetryPolicy | None = None,
    max_attempts: int = 10,
    ack_each: bool = False,
    bundle: Callable[[Any], Bundle | None] | None = None,
    privacy: Privacy | None = None,
) -> Callable[[Handler], Handler]:
    """Declare an async function as the handler of a kind; see the head of this module.

    Args:
        name: 1 to 64 of a-z, 0-9, `_`, `.`, `-`, beginning with a letter.
        timeout_s: Seconds that one run may take.
        policy: Back-off between attempts.
        max_attempts: Attempts before the task is failed, 1 to 100.
        ack_each: Write each outcome before its slot is used again.
        bundle: Says what a checked payload becomes, where that is more than one plain row; it is called for
            each submission and, for large ones, on another thread.
        privacy: How long payloads are kept whole; None: as long as their tasks.
    """

    def declare(function: Handler) -> Handler:
        made = make_kind(
            name,
            function,
            policy or RetryPolicy(),
            timeout_s,
            max_attempts=max_attempts,
            ack_each=ack_each,
            bundle=bundle,
            privacy=privacy,
        )
        declared.append(made)
        return function

    return declare


def make_kind(  # noqa: PLR0913 - one for each field of a kind
    name: str,
    function: Handler,
    policy: RetryPolicy,
    timeout_s: float,
    *,
    max_attempts: int,
    ack_each: bool,
    bundle: Callable[[Any], Bundle | None] | None = None,
    privacy: Privacy | None = None,
) -> Kind:
    """Build a kind from an async callable, its payload type read from the annotations."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is no name for a kind: use 1 to 64 of a-z, 0-9, _, . and -, beginning with a letter"
        )
    call = _call(function)
    if not inspect.iscoroutinefunction(call):
        raise ConfigError(f"the handler of {name} is no async function: declare it with `async def`")
    try:
        hints = typing.get_type_hints(call, include_extras=True)
    except (NameError, AttributeError, SyntaxError, TypeError) as error:
        raise ConfigError(
            f"{_place(function)}, the handler of {name}, has an annotation that can't be read ({error}): "
            "import what it names, outside of TYPE_CHECKING too, or mend it"
        ) from None
    parameters = _parameters(function)
    if not 1 <= len(parameters) <= 2 or parameters[0].name not in hints:
        raise ConfigError(f"the handler of {name} must take an annotated payload and, if it likes, a Context")
    wants_context = len(parameters) == 2
    if wants_context and hints.get(parameters[1].name) is not Context:
        raise ConfigError(f"the second parameter of the handler of {name} must be annotated as Context")
    try:
        payload = TypeAdapter[Any](hints[parameters[0].name])
    except _NO_SCHEMA as error:
        raise _no_schema(name, function, error) from None
    return Kind(name, function, payload, wants_context, policy, timeout_s, max_attempts, ack_each, bundle, privacy)


def _bounded(payload: str) -> str:
    if len(payload) > PAYLOAD_CHARS_MAX:
        raise InvalidPayload(
            f"the payload takes {len(payload):,} characters in the queue: at most {PAYLOAD_CHARS_MAX:,}; shorten it"
        )
    return payload


def _steps(loc: tuple[int | str, ...]) -> list[str]:
    """Write the way to a part of a field, such as `[3].name`, up to what only pydantic has a name for."""
    steps = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc]
    return list(itertools.takewhile(lambda step: re.fullmatch(r"\[\d+\]|\.[\w-]+", step), steps))


def _call(function: Handler) -> Handler:
    return function if inspect.isfunction(function) else function.__call__


def _parameters(function: Handler) -> list[inspect.Parameter]:
    return [each for each in inspect.signature(function).parameters.values() if each.default is each.empty]


def _place(function: Handler) -> str:
    call = _call(function)
    return f"{call.__module__}.{call.__qualname__}"


def _no_schema(name: str, function: Handler, error: Exception) -> ConfigError:
    payload = typing.get_type_hints(_call(function), include_extras=True)[_parameters(function)[0].name]
    said = " ".join(str(error).partition("\n\n")[0].split()).partition(". ")[0]
    return ConfigError(
        f"{_place(function)}, the handler of {name}, takes {payload!r}, which pydantic can't check ({said}): "
        "declare its payload as a model, a dataclass, a TypedDict or dict[str, Any]"
    )


def check_depth(value: object, depth: int = 0) -> None:
    """Raise `InvalidPayload` for JSON nested deeper than `DEPTH_MAX`, a NUL in a string or a number without end."""
    if depth > DEPTH_MAX:
        raise InvalidPayload(f"the payload is nested deeper than {DEPTH_MAX} levels: flatten it")
    if isinstance(value, dict):
        for key, item in typing.cast("dict[str, object]", value).items():
            if "\0" in key:
                raise InvalidPayload(_NUL)
            check_depth(item, depth + 1)
    elif isinstance(value, list):
        for item in typing.cast("list[object]", value):
            check_depth(item, depth + 1)
    elif isinstance(value, str):
        if "\0" in value:
            raise InvalidPayload(_NUL)
    elif isinstance(value, float) and not math.isfinite(value):
        raise InvalidPayload(f"the number {value} is not finite: send one within ±1.7e308, or a text, or leave it out")
