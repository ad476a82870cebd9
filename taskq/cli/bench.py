"""`taskq bench`: measure this machine; see `taskq.bench` for the method.

A missed target is a result, not an error.  A wrong count is an error: exit code 1.
"""

import sys

import click

from taskq.bench import GROUP_NAMES
from taskq.cli.options import given
from taskq.cli.run import run_loop
from taskq.config import load_settings
from taskq.errors import StoreUnavailable

__all__ = ["bench"]

ASKED = "million"


@click.command()
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True, help="Rounds; medians are shown.")
@click.option("--quick", is_flag=True, help="One short round: proves that all works, measures little.")
@click.option(
    "--only",
    type=click.Choice(GROUP_NAMES),
    multiple=True,
    help="Measure this group; may be repeated.  Without: all but million, which takes minutes.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--database-url", help="Server to measure on; it must let us make databases. [default: the setting]")
@click.option("--embedded", is_flag=True, help="Measure on an embedded PostgreSQL even if a server is set.")
def bench(
    rounds: int,
    only: tuple[str, ...],
    *,
    quick: bool,
    as_json: bool,
    database_url: str | None,
    embedded: bool,
) -> None:
    """Measure taskq on this machine, beside what nothing can beat.

    It makes databases of its own and removes them; the tasks of a queue are never touched.  A whole
    run takes about twelve minutes and should have the machine to itself.
    """
    from taskq.bench.figures import BenchFailed  # noqa: PLC0415 - what only the bench needs would slow every start
    from taskq.bench.report import measure  # noqa: PLC0415

    settings = load_settings(given({"database_url": database_url}))
    if embedded:
        settings = settings.model_copy(update={"database_url": None})
    names = only or tuple(name for name in GROUP_NAMES if name != ASKED)
    try:
        report = run_loop(measure(settings, names, 1 if quick else rounds, quick=quick))
    except (BenchFailed, StoreUnavailable) as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(report.json())
    elif sys.stdout.isatty():
        report.print_table()
    else:
        click.echo(report.text())
