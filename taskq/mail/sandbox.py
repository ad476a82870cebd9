"""Jinja2, made safe to run inside the service: a template can compute a text and nothing else.

Templates are written by whoever runs the service, their variables come from callers.  So variables
are only ever data: a dot names a key of an object, never an attribute of Python, and nothing can be
called but macros, loops, blocks and `range`.  On top of it lies Jinja's own immutable sandbox.

A mistake in a template, or a number or a list from a caller that its author didn't expect, must not
hold up or fill up the process.  What can repeat (loops, calls, filters, includes) looks at the
processor time used, and what can make a text longer (output, `~`, `*`, `join`, `replace`, `format`)
asks first whether it may.  Filters are those of a list; the others are not needed in mails, or could
be told to make a billion characters.
"""

import functools
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.filters import FILTERS, do_batch, do_format, do_join, do_replace
from jinja2.runtime import BlockReference, Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from taskq.errors import TaskqError, shown

__all__ = ["NAME", "MadeTooMuch", "Sandbox", "TemplateFault"]

TEMPLATE_BYTES_MAX = 262_144  # of one file
COMPILED_MAX = 256  # files kept compiled; the least used go first
RENDER_CPU_S_MAX = 0.2  # of one text: a thousand times what most take
MADE_CHARS_MAX = 4_000_000  # of all texts made on the way to one
WIDTH_MAX = 99  # that a format may pad to
INTEGER_BITS_MAX = 256

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}(?:\.[A-Za-z0-9_-]{1,64}){0,3}")
"""Names of files: no folders, no hidden ones."""

FAULTS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,  # nested too deeply, or a circle of links
    SyntaxError,
    TypeError,
    ValueError,
)
"""What a template can bring about."""


class TemplateFault(TaskqError):
    """A template can't be rendered; says where, what and the remedy.

    Attributes:
        missing: Whether a variable is missing, so that the caller is at fault.
    """

    def __init__(self, message: str, *, missing: bool) -> None:
        super().__init__(message)
        self.missing = missing


class MadeTooMuch(jinja2.TemplateRuntimeError):
    """A bound is reached."""


class Sandbox:
    """Compiles and renders the files of one folder.

    Args:
        folder: Where they are; links may lead around inside of it, not out of it.
    """

    def __init__(self, folder: Path) -> None:
        self._environment = _Environment(folder)

    def render(self, name: str, variables: Mapping[str, object], chars_max: int) -> str:
        """Return one file filled in.

        Args:
            name: Of the file; HTML is escaped where it ends with `.html`.
            variables: As JSON gives them.
            chars_max: What the result may have.

        Raises:
            TemplateFault: It is not possible.
        """
        token = _METER.set(_Meter())
        try:
            pieces: list[str] = []
            length = 0
            for piece in self._environment.get_template(name).generate(variables):
                length += len(piece)
                _METER.get().make(len(piece))
                if length > chars_max:
                    raise MadeTooMuch(f"the result has more than {chars_max:,} characters: make it shorter")
                pieces.append(piece)
            return "".join(pieces)
        except FAULTS as error:
            raise TemplateFault(_sentence(name, error), missing=isinstance(error, jinja2.UndefinedError)) from error
        finally:
            _METER.reset(token)


class _Meter:
    """What one rendering has used."""

    def __init__(self) -> None:
        self._until = time.thread_time() + RENDER_CPU_S_MAX
        self._made = 0

    def tick(self) -> None:
        """Go on if there is time."""
        if time.thread_time() > self._until:
            raise MadeTooMuch(
                f"it takes more than {RENDER_CPU_S_MAX:g} s of processor time: loop less, or send shorter lists"
            )

    def make(self, chars: int) -> None:
        """Make a text of so many characters if there is room."""
        self._made += chars
        if self._made > MADE_CHARS_MAX:
            raise MadeTooMuch(f"it makes more than {MADE_CHARS_MAX:,} characters on the way: make it shorter")


_METER: ContextVar[_Meter] = ContextVar("meter")


class _Missing(jinja2.StrictUndefined):
    """A variable that is used and not there."""

    @property
    def _undefined_message(self) -> str:
        if self._undefined_hint:
            return self._undefined_hint
        name, parent = shown(str(self._undefined_name)), cast("object", self._undefined_obj)
        if parent is jinja2.utils.missing:
            return f"the variable {name} is missing: send it in variables"
        if isinstance(parent, Mapping):
            known = ", ".join(map(str, cast("Mapping[str, object]", parent))) or "nothing"
            return f"{name} is missing in an object that has {shown(known)}: send it in variables"
        return f"{_sort(parent)} has no part {name}: correct the template, or send an object in variables"


class _Metered(NodeTransformer):
    """Puts the meter into loops and into `~`, which Jinja doesn't let an environment see."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802 - the name is Jinja's
        """Count the turns of a loop."""
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "(turns)", [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:  # noqa: N802
        """Measure before putting together."""
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, "join", [], [], None, None, lineno=node.lineno)


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, narrowed as the head of this module says."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, folder: Path) -> None:
        super().__init__(
            autoescape=_is_html,
            cache_size=COMPILED_MAX,
            finalize=_shown,
            loader=_Folder(folder),
            optimized=False,  # nothing is computed before there is a meter
            undefined=_Missing,
        )
        self._range = self.globals["range"]
        self.globals: dict[str, Any] = {"range": self._range}
        self.filters = {"(turns)": _turns} | {name: _metered(_FILTERS[name]) for name in _FILTERS}

    def concat(self, texts: Iterable[str]) -> str:  # type: ignore[override] - Jinja has a function there
        """Put together what a macro or a block has made."""
        made = list(texts)
        _METER.get().make(sum(map(len, made)))
        return "".join(made)

    def join_path(self, template: str, parent: str) -> str:
        """Let a template use those of its own sort only: a text would come into HTML unescaped."""
        _METER.get().tick()
        suffix = parent.rpartition(".")[2]
        if template.rpartition(".")[2] != suffix:
            raise MadeTooMuch(f"{shown(template)} can't be used here: files named .{suffix} use only such")
        return template

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Read what stands behind a dot."""
        if isinstance(obj, Mapping):
            return self.getitem(obj, attribute)
        if isinstance(obj, _WITH_PARTS):
            return super().getattr(obj, attribute)
        return self.getitem(obj, None) if isinstance(obj, jinja2.Undefined) else self.undefined(obj=obj, name=attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Read what stands in brackets; an attribute never."""
        if isinstance(obj, Mapping | list | tuple | str | jinja2.Undefined):
            try:
                return cast("Any", obj)[argument]  # what is missing says so
            except (LookupError, TypeError):
                pass
        return self.undefined(obj=obj, name=argument)

    def is_safe_callable(self, obj: Any) -> bool:
        """Allow what templates define themselves, and to count."""
        _METER.get().tick()
        return obj is self._range or isinstance(obj, _CALLED)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute with numbers; lengthen texts and lists if there is room."""
        meter = _METER.get()
        match operator, left, right:
            case "+", int() | float(), int() | float():
                pass
            case "+", str() | list(), str() | list():
                meter.make(len(cast("list[object]", left)) + len(cast("list[object]", right)))
            case "*", int(), int() if left.bit_length() + right.bit_length() <= INTEGER_BITS_MAX:
                pass
            case "*", int() | float(), int() | float() if isinstance(left, float) or isinstance(right, float):
                pass
            case "*", str(), int():
                meter.make(len(left) * max(right, 0))
            case "%", int() | float(), int() | float():
                pass
            case _:
                raise MadeTooMuch(
                    f"{operator} can't be used between {_sort(left)} and {_sort(right)}, or not of this size: compute "
                    "it before, and send the result in variables"
                )
        return super().call_binop(context, operator, left, right)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Metered().visit(super()._parse(source, name, filename))


class _Folder(jinja2.BaseLoader):
    """Reads templates from one folder and from nowhere else."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get_source(self, environment: jinja2.Environment, template: str) -> tuple[str, str, Callable[[], bool]]:  # noqa: ARG002 - Jinja's
        """Return the text of a file, its path, and what tells whether it is still the same."""
        if NAME.fullmatch(template) is None:
            raise jinja2.TemplateNotFound(template, f"{shown(template)} is no name of a file in the templates folder")
        try:
            folder = self._folder.resolve(strict=True)
            path = (folder / template).resolve(strict=True)
            seen = path.stat()
            if not path.is_relative_to(folder) or not stat.S_ISREG(seen.st_mode):
                raise jinja2.TemplateNotFound(template, f"{template} is no file of the templates folder: put it there")
            if seen.st_size > TEMPLATE_BYTES_MAX:
                raise MadeTooMuch(
                    f"{template} has {seen.st_size:,} bytes: at most {TEMPLATE_BYTES_MAX:,} are read, shorten it"
                )
            source = path.read_text(encoding="utf-8")
        except OSError as error:
            raise jinja2.TemplateNotFound(
                template, f"{template} can't be read ({type(error).__name__}): put the file into the templates folder"
            ) from error
        except UnicodeDecodeError as error:
            raise MadeTooMuch(f"{template} is no UTF-8 text at byte {error.start}: save it as UTF-8") from error
        written = str(self._folder / template)

        def current() -> bool:
            try:
                now = os.stat(written)  # noqa: PTH116 - for every file of every mail: half the time of Path.stat
            except OSError:
                return False
            return (now.st_dev, now.st_ino, now.st_mtime_ns, now.st_size) == was

        was = (seen.st_dev, seen.st_ino, seen.st_mtime_ns, seen.st_size)
        return source, str(path), current


def _sentence(name: str, error: Exception) -> str:
    """Say where and what."""
    if isinstance(error, jinja2.TemplateSyntaxError):
        said = (error.message or "").rstrip(".")
        return f"{error.name or name}, line {error.lineno}: {said}: correct the template"
    if isinstance(error, RecursionError):
        return f"{name}: it is nested too deeply, or it includes itself: correct the template"
    at, line = name, 0
    trace = error.__traceback__
    while trace is not None:
        if "__jinja_template__" in trace.tb_frame.f_globals or trace.tb_frame.f_code.co_filename.endswith(_SUFFIXES):
            at, line = Path(trace.tb_frame.f_code.co_filename).name, trace.tb_lineno
        trace = trace.tb_next
    place = f"{at}, line {line}" if line else at
    said = str(error.message or error) if isinstance(error, jinja2.TemplateError) else str(error)
    remedy = "" if isinstance(error, MadeTooMuch | jinja2.UndefinedError) or ": " in said else ": correct the template"
    return f"{place}: {said}{remedy}"


@jinja2.pass_context  # with a context it is not called before there is one
def _shown(_context: Context, value: object) -> object:
    """Let through what a reader can read."""
    if isinstance(value, str | int | float | jinja2.Undefined):
        return value
    raise MadeTooMuch(f"{_sort(value)} can't be shown: name a part of it, or write what stands there instead")


def _is_html(name: str | None) -> bool:
    return name is not None and name.endswith(".html")


def _turns(items: Iterable[object]) -> Iterator[object]:
    meter = _METER.get()
    for item in items:
        meter.tick()
        yield item


def _metered(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def filter_(*arguments: Any, **options: Any) -> Any:
        _METER.get().tick()
        return function(*arguments, **options)

    return filter_


def _sort(value: object) -> str:
    """Name the sort of a value as JSON does."""
    match value:
        case str():
            return "a text"
        case bool():
            return "a truth value"
        case int() | float():
            return "a number"
        case Mapping():
            return "an object"
        case list():
            return "a list"
        case None:
            return "null"
        case _:
            return f"a {type(value).__name__.lower()}"


@jinja2.pass_eval_context
def _join(context: nodes.EvalContext, items: Iterable[object], separator: str = "") -> str:
    texts = [_shown(cast("Any", None), item) for item in items]
    _METER.get().make(sum(len(str(text)) for text in texts) + len(texts) * len(separator))
    return cast("str", do_join(context, texts, separator))


@jinja2.pass_eval_context
def _replace(context: nodes.EvalContext, text: str, old: str, new: str) -> str:
    _METER.get().make(len(text) + text.count(old) * len(new))
    return do_replace(context, text, old, new)


def _format(pattern: str, *values: object) -> str:
    if re.search(rf"\d{{{len(str(WIDTH_MAX)) + 1}}}|\*", pattern):
        raise MadeTooMuch(f"the format {shown(pattern)} is too wide: at most {WIDTH_MAX} are filled up")
    _METER.get().make(len(pattern) + pattern.count("%") * (WIDTH_MAX + sum(len(str(value)) for value in values)))
    return do_format(pattern, *values)


def _batch(items: Iterable[object], size: int) -> Iterator[list[object]]:
    return do_batch(list(items), size)


def _round(value: float, digits: int = 0) -> float:
    return round(value, min(max(digits, 0), 15))


_SUFFIXES = (".html", ".txt")
_WITH_PARTS = (LoopContext, jinja2.runtime.TemplateReference, jinja2.environment.TemplateModule)
_CALLED = (Macro, LoopContext, BlockReference, jinja2.Undefined)

_FILTERS: dict[str, Callable[..., Any]] = {
    name: FILTERS[name]
    for name in (
        *("abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "groupby"),
        *("int", "items", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse"),
        *("safe", "select", "selectattr", "sort", "striptags", "sum", "title", "trim", "truncate", "unique", "upper"),
        *("urlencode", "wordcount"),
    )
} | {"batch": _batch, "format": _format, "join": _join, "replace": _replace, "round": _round}
