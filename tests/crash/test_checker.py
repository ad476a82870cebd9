"""The history checker must see what it is there for: each lie of a witness is found, by itself."""

import json
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from checker import check

pytestmark = pytest.mark.crash

TASK = """
insert into taskq.task (id, kind, payload, status, run, attempt, owner, finished_at, reason)
values (%(id)s, 'email', jsonb_build_object('to', %(to)s::text), %(status)s, %(run)s, %(run)s,
        case when %(status)s = 1 then 1 end, case when %(status)s >= 2 then now() end, %(reason)s)
"""
LOST = """
insert into taskq.attempt (task_id, run, attempt, owner, started_at, outcome) values (%s, %s, 1, 1, now(), 'lost')
"""
COUNT = "insert into taskq.minute_count values (date_trunc('minute', now()), 1, 'default', 'email', 2, %s)"


class World:
    """Two mails, sent once each, as all witnesses tell it; a test then makes one of them lie."""

    def __init__(self, dsn: str, place: Path) -> None:
        self.dsn = dsn
        self.history = [{"to": f"{n}@example.com", "outcome": "stored", "id": n} for n in (1, 2)]
        self.journal = [{"recipient": f"{n}@example.com", "message_id": f"<{n}>", "sha256": f"{n}"} for n in (1, 2)]
        self._place = place
        for number in (1, 2):
            self.add_task(number)
        self.tell(COUNT, 2)

    def add_task(self, number: int, *, status: int = 2, run: int = 1, reason: str | None = None) -> None:
        values = {"id": number, "to": f"{number}@example.com", "status": status, "run": run, "reason": reason}
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(TASK, values)

    def tell(self, statement: str, *values: object) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(statement.encode(), values or None)

    def violations(self, *, sealed: str = "") -> list[str]:
        for name, lines in (("history", self.history), ("journal", self.journal)):
            (self._place / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return check(self._place / "history", self.dsn, [self._place / "journal"], sealed=sealed).violations


@pytest.fixture
def world(database: str, tmp_path: Path) -> World:
    return World(database, tmp_path)


def test_checker_is_content_when_all_agree(world: World) -> None:
    assert world.violations() == []


def test_checker_accepts_a_copy_that_a_lost_run_explains(world: World) -> None:
    world.tell("update taskq.task set run = 2, attempt = 2 where id = 1")
    world.tell(LOST, 1, 1)
    world.journal.append(world.journal[0])

    assert world.violations() == []


def _lose_a_task(world: World) -> None:
    world.tell("delete from taskq.task where id = 1")


def _store_twice(world: World) -> None:
    world.add_task(3)
    world.tell('update taskq.task set payload = \'{"to": "1@example.com"}\' where id = 3')


def _store_the_refused(world: World) -> None:
    world.history[0] = {"to": "1@example.com", "outcome": "refused"}


def _claim_ok_without_sending(world: World) -> None:
    world.journal.pop()


def _send_twice(world: World) -> None:
    world.journal.append(world.journal[0])


def _send_other_bytes(world: World) -> None:
    world.tell("update taskq.task set run = 2, attempt = 2 where id = 1")
    world.tell(LOST, 1, 1)
    world.journal.append(world.journal[0] | {"sha256": "other"})


def _accept_a_superseded_result(world: World) -> None:
    world.tell(LOST, 1, 1)


def _leave_a_task_behind(world: World) -> None:
    world.history.append({"to": "3@example.com", "outcome": "stored", "id": 3})
    world.add_task(3, status=1)


def _poison_an_innocent(world: World) -> None:
    world.history.append({"to": "3@example.com", "outcome": "stored", "id": 3})
    world.add_task(3, status=3, reason="poisoned")
    world.tell("insert into taskq.minute_count values (date_trunc('minute', now()), 1, 'default', 'email', 3, 1)")


def _miscount(world: World) -> None:
    world.tell("update taskq.minute_count set n = n + 1")


@pytest.mark.parametrize(
    ("lie", "found"),
    [
        (_lose_a_task, "acknowledged and is lost"),
        (_store_twice, "submitted once and stored 2 times"),
        (_store_the_refused, "was refused"),
        (_claim_ok_without_sending, "nothing arrived"),
        (_send_twice, "unexplained duplicate"),
        (_send_other_bytes, "differ"),
        (_accept_a_superseded_result, "superseded"),
        (_leave_a_task_behind, "stuck"),
        (_poison_an_innocent, "innocent"),
        (_miscount, "counters"),
    ],
)
def test_checker_finds_the_lie(world: World, lie: Callable[[World], None], found: str) -> None:
    lie(world)

    assert any(found in violation for violation in world.violations())


def test_checker_accepts_a_sealed_task_whose_outcome_is_unknown(world: World) -> None:
    world.history.append({"to": "3@example.com", "outcome": "stored", "id": 3})
    world.add_task(3, status=3, reason="outcome_unknown")
    world.tell(LOST, 3, 1)
    world.tell(COUNT.replace("2, %s", "3, %s"), 1)

    assert world.violations(sealed="3") == []
    assert any("failed: outcome_unknown" in each for each in world.violations())


def test_checker_excuses_no_second_copy_of_a_sealed_task(world: World) -> None:
    world.tell(LOST, 1, 1)
    world.tell("update taskq.task set run = 2, attempt = 2 where id = 1")
    world.journal.append(world.journal[0])

    assert world.violations() == []
    assert any(each.startswith("unexplained duplicate") for each in world.violations(sealed="1"))
