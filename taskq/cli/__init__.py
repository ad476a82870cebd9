"""The `taskq` command; `python run.py` is the same program.

Without a command it is `taskq run`.  What the operator must mend is one line on standard error and
exit code 2; a defect of ours keeps its traceback and is exit code 1.
"""

import sys
from typing import Any

import click

from taskq import __version__
from taskq.cli.bench import bench
from taskq.cli.config import config
from taskq.cli.run import run
from taskq.errors import ConfigError

__all__ = ["main"]

USAGE = 2


class _Commands(click.Group):
    """A group whose command may be left out: `taskq --port 9000` is `taskq run --port 9000`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ("--help", "-h", "--version")):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, message="taskq %(version)s")
def cli() -> None:
    """A task queue service on PostgreSQL: submit over HTTP or SQL, run, retry until done.

    Without a command: run the service.  Nothing needs to be configured: `taskq` starts a database of
    its own and catches mails in a local inbox.
    """


cli.add_command(run)
cli.add_command(bench)
cli.add_command(config)


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line; see the head of this module for the exit codes."""
    try:
        return cli.main(arguments, prog_name="taskq", standalone_mode=True)
    except ConfigError as error:
        click.echo(f"taskq: {error}", err=True)
        sys.exit(USAGE)
