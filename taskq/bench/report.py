"""Run the bench and show what came of it: a progress bar and a table, plain lines, or one JSON object.

The bar goes to standard error, so that standard output is the result alone, and moves rarely, so that
it is not measured.
"""

import os
import platform
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from taskq import __version__
from taskq.bench.figures import Result, judge
from taskq.bench.place import open_place
from taskq.bench.rounds import FULL, GROUPS, QUICK, run_rounds
from taskq.bench.usage import cpu_model
from taskq.config import Settings

__all__ = ["Report", "measure"]

REFRESHES_PER_S = 2


async def measure(settings: Settings, names: Sequence[str], rounds: int, *, quick: bool) -> "Report":
    """Measure the groups `names`; see `rounds.run_rounds`.

    Raises:
        BenchFailed: A count is wrong.
        ConfigError: The server can't be used.
    """
    steps = rounds * sum(len(GROUPS[name].measures) for name in names)
    async with open_place(settings) as ground:
        machine = _machine(ground.version, embedded=settings.database_url is None)
        with _progress(steps) as tell:
            samples = await run_rounds(ground, QUICK if quick else FULL, names, rounds, tell)
    return Report(machine, samples, judge(samples), quick)


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured, and where."""

    machine: dict[str, Any]
    samples: list[dict[str, float]]
    """Of each round."""
    results: list[Result]
    quick: bool

    def json(self) -> bytes:
        """Return everything as one JSON object."""
        figures = [
            {"group": result.figure.group}
            | asdict(result.figure)
            | {"value": result.value, "low": result.low, "high": result.high}
            | {
                "rounds": result.rounds,
                "quiet": result.quiet,
                "reached": result.reached,
                "beyond_reached": result.beyond,
            }
            for result in self.results
        ]
        head = {"machine": self.machine, "quick": self.quick, "rounds": len(self.samples)}
        return orjson.dumps(head | {"figures": figures, "samples": self.samples}, option=orjson.OPT_INDENT_2)

    def text(self) -> str:
        """Return one line for each figure, its cells separated by tabs."""
        lines = ("\t".join(_cells(result)).rstrip() for result in self.results)
        return "\n".join([self._where(), *lines, self._verdict()])

    def print_table(self) -> None:
        """Print a table for a terminal."""
        table = Table(
            title=self._where(),
            caption=self._verdict(),
            title_justify="left",
            caption_justify="left",
            title_style="",
        )
        table.add_column("")
        for name in ("median", "lowest–highest", "target"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        for number, result in enumerate(self.results):
            if number and result.figure.group != self.results[number - 1].figure.group:
                table.add_section()
            table.add_row(*_cells(result), style={True: "green", False: "red", None: ""}[result.reached])
        Console().print(table)

    def _where(self) -> str:
        machine = self.machine
        return (
            f"taskq {machine['taskq']} on {machine['cores']} cores of {machine['cpu']}, {machine['system']}, "
            f"Python {machine['python']}, PostgreSQL {machine['postgres']} "
            f"({'embedded' if machine['embedded'] else 'configured'}), load {machine['load']:.2f} at the start"
        )

    def _verdict(self) -> str:
        told = [result.reached for result in self.results if result.reached is not None]
        rounds = "one short round: says little" if self.quick else f"medians of {len(self.samples)} rounds"
        disturbed = sum(not result.quiet for result in self.results)
        noise = f"; other programs disturbed every round of {disturbed} figures (~)" if disturbed else ""
        return f"{rounds}; {sum(told)} of {len(told)} targets reached{noise}"


def _cells(result: Result) -> tuple[str, str, str, str, str]:
    figure = result.figure
    unit = f" {figure.unit}" if figure.unit else ""
    sign = "≥" if figure.most is None else "≤"
    target = "" if result.target is None else f"{sign} {_number(result.target)}{unit}"
    verdict = {True: "reached", False: "missed", None: ""}[result.reached]
    if result.beyond:
        verdict = f"beyond {_number(figure.beyond or 0)}"
    spread = f"{_number(result.low)}–{_number(result.high)}"
    return figure.title, f"{'' if result.quiet else '~'}{_number(result.value)}{unit}", spread, target, verdict


def _number(value: float) -> str:
    size = abs(value)
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


@contextmanager
def _progress(steps: int) -> Generator[Callable[[str], None]]:
    """Show which measure is under way."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    begun = 0
    with Progress(
        *columns, console=console, transient=True, refresh_per_second=REFRESHES_PER_S, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=steps)

        def tell(name: str) -> None:
            nonlocal begun
            bar.update(task, description=name, completed=begun)
            begun += 1

        yield tell


def _machine(postgres: str, *, embedded: bool) -> dict[str, Any]:
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": os.getloadavg()[0],
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "postgres": postgres,
        "embedded": embedded,
        "taskq": __version__,
    }
