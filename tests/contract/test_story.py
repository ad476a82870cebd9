"""What `GET /task/{id}` tells of a task's life: its attempts with what was noted, and a timeline."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from conftest import wait_until
from rig import Program, handlers, serving

QUICK = ("--port", "0", "--durability", "relaxed", "--poll-s", "0.2", "--beat-s", "0.1", "--sweep-s", "0.2")
ACCEPTED = {"relay": "main", "phase": "dot", "code": 250, "text": "2.0.0 Ok", "remote_id": "4X", "bytes": 812}


@pytest.fixture(scope="module")
def service(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    folder = tmp_path_factory.mktemp("service")
    with serving(folder, *QUICK, database=module_database, environment=handlers(folder)) as program:
        yield program


def names(task: dict[str, Any]) -> list[str]:
    return [event["event"] for event in task["events"]]


def test_task_that_noted_where_its_mail_went_says_so(service: Program):
    task = service.becomes(service.submit(note=[{"relay": "spare", "code": 421}, ACCEPTED]), "Ok")

    assert names(task) == ["created", "attempt", "accepted", "Ok"]
    assert task["events"][2] | {"at": 0} == {"at": 0, "event": "accepted", "relay": "main", "remote_id": "4X"}
    [attempt] = task["attempts"]
    assert (attempt["outcome"], attempt["attempt"], attempt["error"]) == ("Ok", 1, None)
    assert attempt["detail"] == ACCEPTED | {"earlier": [{"relay": "spare", "code": 421}]}
    assert all(event["at"].endswith("Z") for event in task["events"])


def test_task_that_noted_nothing_has_no_attempts_and_a_short_story(service: Program):
    task = service.becomes(service.submit(), "Ok")

    assert (names(task), task["attempts"], task["events_left_out"]) == (["created", "Ok"], [], 0)


def test_task_that_failed_tells_every_attempt(service: Program):
    task = service.becomes(service.submit(do="crash", note=[{"code": 450}]), "failed")

    assert names(task) == ["created", "attempt", "attempt", "attempt", "failed"]
    assert [event.get("code") for event in task["events"]] == [None, 450, 450, 450, None]
    assert task["events"][-1]["reason"] == "attempts_exhausted"


def test_task_that_waits_tells_until_when(service: Program):
    retried, snoozed = service.submit(do="retry", after_s=600), service.submit(do="snooze", note=[{"relay": "main"}])
    wait_until(lambda: service.shown(retried)["last_error"] and service.shown(snoozed)["last_error"])

    first, second = service.shown(retried), service.shown(snoozed)

    assert (names(first), names(second)) == (["created", "attempt", "deferred"], ["created", "deferred"])
    assert first["events"][-1]["next_at"] == first["due_at"]
    assert (second["events"][-1]["next_at"], second["events"][-1]["times"]) == (second["due_at"], 1)


def test_task_for_later_tells_when_it_is_due(service: Program, module_database: str):
    with psycopg.connect(module_database, autocommit=True) as connection:
        made = connection.execute("select taskq.enqueue('work', '{}', due_at => now() + interval '1 hour')").fetchone()

    task = service.shown(made[0] if made else 0)

    assert names(task) == ["created", "scheduled"]
    assert task["events"][1]["due_at"] == task["due_at"]


def test_content_is_erased_when_none_is_kept_and_the_task_says_so(database: str, tmp_path_factory: Any):
    folder = tmp_path_factory.mktemp("private")
    with (
        serving(folder, *QUICK, "--mail-content-days", "0", database=database) as service,
        psycopg.connect(database, autocommit=True) as connection,
    ):
        sent = service.call("POST", "/task/", b'{"To": "ada@example.com", "subject": "Code", "body": "Secret 4711"}')
        task = service.becomes(sent.json["id"], "Ok")
        stored = connection.execute("select payload from taskq.task").fetchall()

    assert names(task)[-1] == "erased"
    assert task["erased_at"] >= task["finished_at"]
    assert stored == [({"to": "a***@example.com", "erased": True},)]


def test_health_tells_how_many_outcomes_are_unknown(service: Program):
    before = service.call("GET", "/health/ready").json["outcomes_unknown"]

    service.becomes(service.submit(note=[{"ambiguous": True}]), "Ok")

    assert service.call("GET", "/health/ready").json["outcomes_unknown"] == before + 1
