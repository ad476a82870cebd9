"""Every statement that the process runs, by name, read once from the `.sql` files beside this one.

A file is a list of statements, each under a line `-- name: claim` and a sentence that says what it
does.  Parameters are written `:slots` in the text and passed by keyword; they become `$1, $2, …` in
the order of their first appearance.  Three tests keep the files honest: each statement prepares
against the migrated schema, each has a caller, and the plans of the hot ones use their index.
"""

import re
from dataclasses import dataclass
from importlib.resources import files

__all__ = ["Statement", "load"]

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_COMMENT = re.compile(r"^--.*\n?", re.MULTILINE)
_PARAMETER = re.compile(r"(?<![:\w]):([a-z_]+)")


@dataclass(frozen=True, slots=True)
class Statement:
    """One named statement."""

    name: str
    text: str
    """SQL with `$n` placeholders."""
    parameters: tuple[str, ...]
    """Names in the order of the placeholders."""


def load(file: str) -> dict[str, Statement]:
    """Read the statements of `file` (without its ending), keyed by name."""
    text = files(__name__).joinpath(f"{file}.sql").read_text(encoding="utf-8")
    _, *parts = _NAME.split(text)
    return {name: _parse(name, body) for name, body in zip(parts[::2], parts[1::2], strict=True)}


def _parse(name: str, body: str) -> Statement:
    order: dict[str, int] = {}

    def placeholder(match: re.Match[str]) -> str:
        return f"${order.setdefault(match.group(1), len(order) + 1)}"

    text = _PARAMETER.sub(placeholder, _COMMENT.sub("", body)).strip().rstrip(";")
    return Statement(name, text, tuple(order))
