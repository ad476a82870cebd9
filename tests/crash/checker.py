"""The history checker: three witnesses, compared after the last fault.

*Clients* wrote down what they were told, *the database* says what it holds, *the sink* wrote down
what arrived.  The checker imports nothing from taskq and reads the tables with SQL of its own, so
that a wrong idea in the program can't hide in the program's own words.

Every submission has a recipient of its own; that ties the three together.  What must hold is in
`Report.violations`; what may happen but must be explained (a second copy of a mail whose run was
lost or ended ambiguous) is counted.  A sealed task has no such excuse: it may fail with its outcome
unknown, but must never have a second copy.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

OK, FAILED, CANCELLED = 2, 3, 4
FINAL = {OK: "Ok", FAILED: "failed", CANCELLED: "cancelled"}
TASKS = """
select t.id, t.kind, t.status, t.run, t.attempt, t.max_attempts, t.crashes, t.reason, t.last_error,
       coalesce(t.payload ->> 'to', t.payload ->> 'To')
  from taskq.task t
"""
ATTEMPTS = "select task_id, run, outcome, coalesce(error, '') from taskq.attempt"
COUNTERS = "select status, sum(n)::bigint from taskq.minute_count group by status"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of `taskq.task`."""

    id: int
    kind: str
    status: int
    run: int
    attempt: int
    max_attempts: int
    crashes: int
    reason: str | None
    last_error: str | None
    recipient: str


@dataclass(slots=True)
class Report:
    """What the comparison found."""

    submitted: int = 0
    stored: int = 0
    refused: int = 0
    unknown: int = 0
    unknown_stored: int = 0
    rows: int = 0
    ok: int = 0
    failed: int = 0
    runs: int = 0
    runs_lost: int = 0
    runs_ambiguous: int = 0
    runs_handed_back: int = 0
    attempts_burnt: int = 0
    copies: int = 0
    duplicates_explained: int = 0
    duplicates_unexplained: int = 0
    outcomes_unknown: int = 0
    poisoned: list[int] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    lost: int = 0

    def table(self, title: str) -> str:
        """Return the figures as one table."""
        figures = (
            ("submissions", f"{self.submitted}: {self.stored} stored, {self.refused} refused, {self.unknown} unknown"),
            ("acknowledged lost", self.lost),
            ("unknown, of which stored", self.unknown_stored),
            ("tasks", f"{self.rows}: {self.ok} Ok, {self.failed} failed, {len(self.poisoned)} poisoned"),
            ("runs", f"{self.runs}: {self.runs_lost} lost, {self.runs_ambiguous} ambiguous"),
            ("runs handed back", self.runs_handed_back),
            ("sealed, outcome unknown", self.outcomes_unknown),
            ("copies in the sink", self.copies),
            ("duplicates explained", self.duplicates_explained),
            ("duplicates unexplained", self.duplicates_unexplained),
            ("violations", len(self.violations)),
        )
        width = max(len(name) for name, _ in figures)
        lines = [f"  {name:<{width}}  {value}" for name, value in figures]
        return "\n".join([f"== {title}", *lines, *(f"  ! {violation}" for violation in self.violations[:20])])


def check(
    history: Path, dsn: str, journals: Sequence[Path], *, poison: str = "", doomed: str = "", sealed: str = ""
) -> Report:
    """Compare the witnesses.

    Args:
        history: JSON lines of the clients: `to`, `outcome` (stored, refused or unknown), `id`.
        dsn: The database.
        journals: JSON lines of the sinks.
        poison: The kind whose tasks are meant to end poisoned.
        doomed: The kind whose tasks are meant to fail.
        sealed: What the recipients of sealed tasks begin with; empty: there are none.
    """
    told = list(_lines([history]))
    copies = list(_lines(journals))
    with psycopg.connect(dsn, autocommit=True) as connection:
        rows = [Row(*row) for row in connection.execute(TASKS)]
        attempts = connection.execute(ATTEMPTS).fetchall()
        counters = dict(connection.execute(COUNTERS).fetchall())
    report = Report()
    _check_submissions(report, told, rows)
    seals = {row.id for row in rows if sealed and row.recipient.startswith(sealed)}
    _check_rows(report, rows, poison, doomed, seals)
    _check_runs(report, rows, attempts)
    _check_copies(report, rows, [each for each in attempts if each[0] not in seals], copies)
    _check_counters(report, rows, counters)
    return report


def _lines(paths: Iterable[Path]) -> Iterable[dict[str, Any]]:
    for path in paths:
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                yield json.loads(line)


def _check_submissions(report: Report, told: list[dict[str, Any]], rows: list[Row]) -> None:
    """What clients were told is true: stored is there, refused is not, unknown is there at most once."""
    by_id = {row.id: row for row in rows}
    stored_as = Counter(row.recipient for row in rows)
    report.submitted = len(told)
    for entry in told:
        times = stored_as.get(entry["to"], 0)
        if times > 1:
            report.violations.append(f"{entry['to']} was submitted once and stored {times} times")
        match entry["outcome"]:
            case "stored":
                report.stored += 1
                row = by_id.get(entry["id"])
                if row is None or row.recipient != entry["to"]:
                    report.lost += 1
                    report.violations.append(f"task {entry['id']} for {entry['to']} was acknowledged and is lost")
            case "refused":
                report.refused += 1
                if times:
                    report.violations.append(f"{entry['to']} was refused ({entry.get('why')}) and is stored")
            case _:
                report.unknown += 1
                report.unknown_stored += times
    known = {entry["to"] for entry in told}
    strangers = [row.id for row in rows if row.recipient not in known]
    if strangers:
        report.violations.append(f"{len(strangers)} rows that nobody submitted, such as {strangers[:5]}")


def _check_rows(report: Report, rows: list[Row], poison: str, doomed: str, seals: set[int]) -> None:
    """Every task is final, none beyond its attempts; only culprits are poisoned, only the sealed may end unknown."""
    report.rows = len(rows)
    for row in rows:
        report.ok += row.status == OK
        report.failed += row.status == FAILED
        report.runs += row.run
        report.attempts_burnt += max(0, row.attempt - 1)
        if row.status not in FINAL:
            report.violations.append(f"task {row.id} is stuck in status {row.status} ({row.last_error})")
        if row.attempt > row.max_attempts or row.run < row.attempt:
            report.violations.append(f"task {row.id} has {row.attempt} attempts in {row.run} runs")
        if row.reason == "poisoned":
            report.poisoned.append(row.id)
            if row.kind != poison:
                report.violations.append(f"innocent task {row.id} ({row.kind}) was failed as poisoned")
        elif row.reason == "outcome_unknown" and row.id in seals:
            report.outcomes_unknown += 1
        elif row.status == FAILED and row.kind != doomed:
            report.violations.append(f"task {row.id} failed: {row.reason}, {row.last_error}")


def _check_runs(report: Report, rows: list[Row], attempts: list[Any]) -> None:
    """Only the newest run may have settled a task, and each run ended once."""
    ended: dict[int, dict[int, str]] = defaultdict(dict)
    for task_id, run, outcome, error in attempts:
        if run in ended[task_id]:
            report.violations.append(f"run {run} of task {task_id} ended twice")
        ended[task_id][run] = outcome
        report.runs_lost += outcome == "lost"
        report.runs_ambiguous += error.startswith("ambiguous")
    for row in rows:
        runs = ended.get(row.id, {})
        if runs and max(runs) > row.run:
            report.violations.append(f"task {row.id} is at run {row.run}, but run {max(runs)} has ended")
        final = runs.get(row.run)
        expected = {OK: (None, "Ok"), FAILED: ("failed", "lost")}.get(row.status, (None, "retry", "lost"))
        if final not in expected:
            report.violations.append(
                f"the result of a superseded run was accepted: task {row.id} is {FINAL.get(row.status)} "
                f"although its newest run {row.run} ended {final}"
            )
        report.runs_handed_back += row.run - row.attempt


def _check_copies(report: Report, rows: list[Row], attempts: list[Any], copies: list[dict[str, Any]]) -> None:
    """Ok means a copy arrived; each further copy has a lost or ambiguous run to explain it."""
    excuses: Counter[int] = Counter()
    for task_id, _, outcome, error in attempts:
        excuses[task_id] += outcome == "lost" or error.startswith("ambiguous")
    arrived: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for copy in copies:
        arrived[copy["recipient"]].append(copy)
    report.copies = len(copies)
    for row in rows:
        mine = arrived.pop(row.recipient, [])
        if row.status == OK and not mine:
            report.violations.append(f"task {row.id} is Ok, but nothing arrived for {row.recipient}")
        if len({copy["message_id"] for copy in mine}) > 1 or len({copy["sha256"] for copy in mine}) > 1:
            report.violations.append(f"the copies for {row.recipient} differ: a receiver can't tell that they are one")
        spare = max(0, len(mine) - 1)
        explained = min(spare, excuses[row.id])
        report.duplicates_explained += explained
        report.duplicates_unexplained += spare - explained
        if spare > explained:
            report.violations.append(
                f"unexplained duplicate: {len(mine)} copies for {row.recipient} (task {row.id}), "
                f"{excuses[row.id]} lost or ambiguous runs"
            )
    if arrived:
        report.violations.append(f"{len(arrived)} recipients without a task got mail, such as {list(arrived)[:3]}")


def _check_counters(report: Report, rows: list[Row], counters: dict[int, int]) -> None:
    """The counters by the minute add up to the table."""
    for status, name in FINAL.items():
        counted, there = counters.get(status, 0), sum(row.status == status for row in rows)
        if counted != there:
            report.violations.append(f"the counters say {counted} {name}, the table {there}")
