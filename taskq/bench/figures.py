"""Figures and their targets as data: what a round's samples make of them, and whether that is enough.

A sample is a number under a name such as `http.idle.rate`; a round gives each at most once.  A figure
is one of them or made of several (the ratio of two, a difference).  Its value is made of the medians
over the rounds, its range of the single rounds.  Rounds in which other programs took part in the
measure are left out while a quiet one is left.  The targets are those of the project's list, each
beside what it judges; `beyond` is what would be better still.

The names of other systems stand for what they did on two cores of an AMD EPYC with PostgreSQL 15.18
on 2026-11-24: they tell the order of magnitude, the ratios to the floors decide.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from taskq.errors import TaskqError

__all__ = ["FIGURES", "BenchFailed", "Figure", "Result", "judge"]

Sample = dict[str, float]
Form = Literal["plain", "ratio", "difference"]

QUIET_CORES = 0.3  # that other programs may use during a quiet measure


class BenchFailed(TaskqError):
    """A run was no measurement: a count is wrong, or a process ended early."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the result."""

    title: str
    unit: str
    of: tuple[str, ...]
    """Names of the samples it is made of."""
    form: Form = "plain"
    """How: the first alone, divided by the second, or less all others."""
    least: float | None = None
    """The target, where more is better."""
    most: float | None = None
    """The target, where less is better."""
    beyond: float | None = None
    """Better still."""

    @property
    def group(self) -> str:
        """The group of measures that it belongs to."""
        return self.of[0].partition(".")[0]

    def value(self, sample: Sample) -> float | None:
        """Make the figure of one sample; None when something is missing."""
        parts = [sample[name] for name in self.of if name in sample]
        if len(parts) < len(self.of):
            return None
        match self.form:
            case "plain":
                return parts[0]
            case "ratio":
                return parts[0] / parts[1]
            case "difference":
                return parts[0] - sum(parts[1:])

    def quiet(self, sample: Sample) -> bool:
        """Tell whether other programs left the measures of a round alone."""
        names = (f"{name.rpartition('.')[0]}.foreign_cores" for name in self.of)
        return all(sample.get(name, 0.0) <= QUIET_CORES for name in names)

    def reached(self, value: float, target: float | None) -> bool | None:
        """Tell whether a value is good enough; None when nothing is asked."""
        if target is None:
            return None
        return value <= target if self.most is not None else value >= target


@dataclass(frozen=True, slots=True)
class Result:
    """A figure after all rounds."""

    figure: Figure
    value: float
    low: float
    high: float
    rounds: int
    """Rounds it was made of."""
    quiet: bool
    """Whether other programs left them alone."""

    @property
    def target(self) -> float | None:
        """What is asked."""
        return self.figure.least if self.figure.most is None else self.figure.most

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached; None when there is none."""
        return self.figure.reached(self.value, self.target)

    @property
    def beyond(self) -> bool | None:
        """Whether it is better still."""
        return self.figure.reached(self.value, self.figure.beyond)


def judge(rounds: Sequence[Sample]) -> list[Result]:
    """Make every figure that the samples of the rounds allow, in the order of `FIGURES`."""
    results: list[Result] = []
    for figure in FIGURES:
        complete = [sample for sample in rounds if figure.value(sample) is not None]
        quiet = [sample for sample in complete if figure.quiet(sample)]
        used = quiet or complete
        value = figure.value({name: median(sample[name] for sample in used) for name in figure.of}) if used else None
        if value is not None:
            single = [each for sample in used if (each := figure.value(sample)) is not None]
            results.append(Result(figure, value, min(single), max(single), len(used), bool(quiet)))
    return results


_RIVER_STEADY = 3_760

FIGURES: tuple[Figure, ...] = (
    # HTTP
    Figure("bare aiohttp handler, 64 connections", "/s", ("http.hello.rate",)),
    Figure("one durable INSERT + NOTIFY per request, pool of 16", "/s", ("http.insert.rate",)),
    Figure("POST /task/, worker idle", "/s", ("http.idle.rate",)),
    Figure("… of the bare handler", "×", ("http.idle.rate", "http.hello.rate"), "ratio", least=0.8, beyond=1.1),
    Figure("… of INSERT + NOTIFY per request", "×", ("http.idle.rate", "http.insert.rate"), "ratio", least=4),
    Figure("… p50", "ms", ("http.idle.p50_ms",)),
    Figure("… p99", "ms", ("http.idle.p99_ms",)),
    Figure("… p99 of the bare handler's", "×", ("http.idle.p99_ms", "http.hello.p99_ms"), "ratio", most=1.5, beyond=1),
    Figure("… CPU of the service per request", "µs", ("http.idle.app_us",)),
    Figure("… CPU of the server per request", "µs", ("http.idle.server_us",)),
    Figure("CPU of the bare handler per request", "µs", ("http.hello.app_us",)),
    Figure("POST no-ops while they run in the same process", "/s", ("http.noop.rate",), least=2.5 * _RIVER_STEADY),
    Figure("… of the bare handler", "×", ("http.noop.rate", "http.hello.rate"), "ratio", least=0.5),
    Figure("… p99", "ms", ("http.noop.p99_ms",)),
    Figure("… settled, until the last one", "/s", ("http.noop.settled",)),
    Figure("POST mails while the inbox takes them", "/s", ("http.mail.rate",)),
    Figure("… of the bare handler", "×", ("http.mail.rate", "http.hello.rate"), "ratio", least=0.5),
    Figure("… settled, until the last one", "/s", ("http.mail.settled",)),
    Figure("one connection: p50 of the bare handler", "ms", ("http.hello_one.p50_ms",)),
    Figure("one connection: p50 of one durable commit", "ms", ("http.commit.p50_ms",)),
    Figure("one connection: p50 of POST /task/", "ms", ("http.one.p50_ms",)),
    Figure(
        "… added over bare handler and commit",
        "ms",
        ("http.one.p50_ms", "http.hello_one.p50_ms", "http.commit.p50_ms"),
        "difference",
        most=0.3,
    ),
    # Submitting
    Figure("asyncpg, grouped INSERT, 64 callers", "/s", ("submit.grouped.rate",)),
    Figure("submit in process, 64 callers", "/s", ("submit.tasks.rate",), least=27_600, beyond=46_000),
    Figure("… of grouped INSERT", "×", ("submit.tasks.rate", "submit.grouped.rate"), "ratio"),
    Figure("… p50", "ms", ("submit.tasks.p50_ms",)),
    Figure("… p99", "ms", ("submit.tasks.p99_ms",), most=6.2, beyond=2.5),
    Figure("… CPU of process and server per task", "µs", ("submit.tasks.cpu_us",)),
    Figure("taskq.enqueue() per call, 1 connection", "/s", ("sql.one.rate",)),
    Figure("taskq.enqueue() per call, 16 connections", "/s", ("sql.many.rate",)),
    Figure("taskq.enqueue_many() of a set", "/s", ("sql.bulk.rate",), least=75_800, beyond=113_700),
    # Working
    Figure("drain of waiting no-op tasks", "/s", ("drain.rate",), least=29_000, beyond=46_600),
    Figure("… CPU of process and server per task", "µs", ("drain.cpu_us",), most=65),
    Figure("… CPU of the process", "µs", ("drain.app_us",)),
    Figure("… CPU of the server", "µs", ("drain.server_us",)),
    Figure("… log per task", "B", ("drain.wal_bytes",)),
    Figure("… peak memory of the process", "MiB", ("drain.memory_mib",), most=75, beyond=58),
    Figure("submit call → handler, same process, p50", "ms", ("wake.here.p50_ms",), most=1.5, beyond=1),
    Figure("… p99", "ms", ("wake.here.p99_ms",), most=5),
    Figure("SQL call elsewhere → handler, p50", "ms", ("wake.there.p50_ms",), most=1.9, beyond=1.5),
    Figure("… p99", "ms", ("wake.there.p99_ms",), most=4.7),
    Figure("submit → run → settled, 64 callers", "/s", ("steady.born.rate",), least=11_000, beyond=18_800),
    Figure("… CPU of process and server per task", "µs", ("steady.born.cpu_us",)),
    Figure("… log per task born in progress", "B", ("steady.born.wal_bytes",), most=850),
    Figure("… commits per task", "", ("steady.born.commits",), most=0.1),
    Figure("the same, each task claimed", "/s", ("steady.claimed.rate",)),
    Figure("… log per task", "B", ("steady.claimed.wal_bytes",), most=1_250),
    Figure("… commits per task", "", ("steady.claimed.commits",), most=0.1),
    # Sending mails
    Figure("aiosmtplib, EmailMessage, a connection for each mail, 10 at once", "/s", ("mail.alone.rate",)),
    Figure("… CPU per mail", "µs", ("mail.alone.app_us",)),
    Figure("aiosmtplib, EmailMessage, 10 connections kept", "/s", ("mail.few.rate",)),
    Figure("… CPU per mail", "µs", ("mail.few.app_us",)),
    Figure("waiting mails sent and settled, 10 connections", "/s", ("mail.taskq.rate",)),
    Figure("… of a connection for each", "×", ("mail.taskq.rate", "mail.alone.rate"), "ratio", least=5, beyond=10),
    Figure("… of connections kept", "×", ("mail.taskq.rate", "mail.few.rate"), "ratio"),
    Figure("… CPU of the process per mail", "µs", ("mail.taskq.app_us",), most=300, beyond=150),
    Figure("… CPU of the server per mail", "µs", ("mail.taskq.server_us",)),
    Figure("relay that answers after 20 ms: a connection for each", "/s", ("mail.far_alone.rate",)),
    Figure("… connections kept", "/s", ("mail.far_few.rate",)),
    Figure("… waiting mails sent and settled", "/s", ("mail.far_taskq.rate",)),
    Figure("… of a connection for each", "×", ("mail.far_taskq.rate", "mail.far_alone.rate"), "ratio", least=2.5),
    Figure("… of connections kept", "×", ("mail.far_taskq.rate", "mail.far_few.rate"), "ratio"),
    Figure("EmailMessage, text and HTML, 1 KB: bytes made", "µs", ("mail.compose.message_us",)),
    Figure("the composer", "µs", ("mail.compose.draft_us",)),
    Figure("… times as fast", "×", ("mail.compose.message_us", "mail.compose.draft_us"), "ratio", least=50),
    Figure("EmailMessage with a file of 1 MB", "ms", ("mail.compose.message_file_ms",)),
    Figure("the composer", "ms", ("mail.compose.draft_file_ms",)),
    # Living
    Figure("start on a database with nothing to migrate", "s", ("start.again",), most=1),
    Figure("start with embedded PostgreSQL, made before", "s", ("start.embedded",), most=1),
    Figure("first start with embedded PostgreSQL", "s", ("start.first",), most=4),
    Figure("claim with a million waiting, of few", "×", ("million.claim", "million.claim_few"), "ratio", least=1 / 1.2),
    Figure(
        "submit with a million waiting, of none", "×", ("million.submit", "million.submit_few"), "ratio", least=1 / 1.2
    ),
    Figure(
        "read with a million waiting, time of none", "×", ("million.read_ms", "million.read_few_ms"), "ratio", most=1.2
    ),
    Figure(
        "memory with a million waiting, beyond few",
        "MiB",
        ("million.memory_mib", "million.memory_few_mib"),
        "difference",
        most=100,
    ),
)
