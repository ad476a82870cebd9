"""One flag for each setting, made from the fields of `config.Settings`: text, type, default."""

import typing
from collections.abc import Callable
from typing import Any, Literal

import click
from pydantic.fields import FieldInfo

from taskq.config import Settings

__all__ = ["given", "settings_options"]

Command = Callable[..., Any]


def settings_options(command: Command) -> Command:
    """Add a flag for every setting to a click command."""
    for name, field in reversed(Settings.model_fields.items()):
        flag = f"--{name.replace('_', '-')}"
        if field.annotation is bool:
            command = click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=_help(field))(command)
            continue
        command = click.option(flag, name, type=_type(field), metavar=_metavar(field), default=None, help=_help(field))(
            command
        )
    return command


def given(flags: dict[str, Any]) -> dict[str, Any]:
    """Keep the flags that were given."""
    return {name: value for name, value in flags.items() if value is not None}


def _type(field: FieldInfo) -> Any:
    if typing.get_origin(field.annotation) is Literal:
        return click.Choice(typing.get_args(field.annotation))
    return str  # pydantic reads and checks it: one source of error texts


def _metavar(field: FieldInfo) -> str | None:
    names = {int: "N", float: "SECONDS"}
    return names.get(
        typing.cast("type", field.annotation), None if typing.get_origin(field.annotation) is Literal else "TEXT"
    )


def _help(field: FieldInfo) -> str:
    default = field.get_default()
    shown = "" if default in (None, (), False) else f"  [default: {_plain(default)}]"
    return f"{field.description}{shown}"


def _plain(value: object) -> str:
    secret = getattr(value, "get_secret_value", None)
    return str(secret() if secret else f"{value:g}" if isinstance(value, float) else value)
