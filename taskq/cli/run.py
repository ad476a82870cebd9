"""`taskq run`: the service."""

import asyncio
import sys
from typing import Any, cast

import click

from taskq.cli.options import given, settings_options
from taskq.config import load_settings
from taskq.service import Banner, run_service
from taskq.telemetry import set_up_logging

__all__ = ["run", "run_loop"]


@click.command()
@settings_options
def run(**flags: Any) -> None:
    """Run the service: take tasks over HTTP and SQL, run them.

    Settings: these flags, then TASKQ_… in the environment, then taskq.toml, then the default.
    """
    settings = load_settings(given(flags))
    set_up_logging(settings.log_format, settings.log_level)
    run_loop(run_service(settings, _announce))


def run_loop(main: Any) -> Any:
    """Run a coroutine on the fastest event loop there is; unwrap what a TaskGroup wrapped."""
    try:
        import uvloop  # noqa: PLC0415 - absent on Windows

        factory = uvloop.new_event_loop
    except ImportError:
        factory = asyncio.new_event_loop
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(main)
    except BaseExceptionGroup as group:
        raise _only(group) from None


def _only(error: BaseException) -> BaseException:
    """Unwrap groups that hold one exception."""
    inner = cast("tuple[BaseException, ...]", getattr(error, "exceptions", ()))
    return _only(inner[0]) if len(inner) == 1 else error


def _announce(banner: Banner) -> None:
    lines = [
        f"taskq {banner.version}" + ("" if banner.role == "all" else f" ({banner.role})"),
        f"  HTTP      {banner.url}",
        f"  database  {banner.database}",
        f"  mails     {banner.mails}",
        *([f"  SMTP      {banner.receives}, caught in the inbox"] if banner.receives else []),
        *(f"  WARNING   {warning}" for warning in banner.warnings),
    ]
    if banner.role != "worker":
        mail = '{"To":"example@gmail.com","subject":"Test Subject","body":"Test E-Mail Body"}'
        lines.append(f"  try       curl -d '{mail}' {banner.url}/task/")
    click.echo("\n".join(lines), file=sys.stdout)
    sys.stdout.flush()
