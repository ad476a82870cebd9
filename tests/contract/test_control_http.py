"""What people do to a task over HTTP: cancel it, run it again, wait for its end; on the instance at hand or another."""

import json
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any

import psycopg
import pytest
from gate import Gate
from rig import Answer, Program, handlers, serving

QUICK = ("--port", "0", "--durability", "relaxed", "--poll-s", "0.2", "--beat-s", "0.1", "--sweep-s", "0.1")
LONG_S = 30


@pytest.fixture(scope="module")
def service(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    folder = tmp_path_factory.mktemp("service")
    with serving(folder, *QUICK, database=module_database, environment=handlers(folder)) as program:
        yield program


@pytest.fixture(scope="module")
def other(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """An instance that only takes requests: what it is asked about runs elsewhere."""
    folder = tmp_path_factory.mktemp("other")
    with serving(folder, *QUICK, "--role", "api", database=module_database, environment=handlers(folder)) as program:
        yield program


def due_later(database: str) -> int:
    with psycopg.connect(database, autocommit=True) as connection:
        row = connection.execute("select taskq.enqueue('work', '{}', due_at => now() + interval '1 hour')").fetchone()
    return row[0] if row else 0


def held(service: Program) -> tuple[int, Gate]:
    """A task that runs until its gate is opened."""
    gate = Gate()
    task_id = service.submit(gate=gate.port)
    gate.wait_for()
    return task_id, gate


# -- cancel


def test_pending_task_is_cancelled_at_once(service: Program, module_database: str):
    task_id = due_later(module_database)

    answer = service.call("DELETE", f"/task/{task_id}")

    assert (answer.status, answer.json) == (200, {"id": task_id, "status": "cancelled"})
    task = service.shown(task_id)
    assert (task["status"], task["reason"], task["attempt"]) == ("cancelled", "cancelled", 0)
    assert task["finished_at"]


@pytest.mark.parametrize("asked", ["service", "other"])
def test_running_task_is_ended_wherever_it_runs(service: Program, other: Program, asked: str):
    task_id, gate = held(service)

    answer = {"service": service, "other": other}[asked].call("DELETE", f"/task/{task_id}")

    assert (answer.status, answer.json) == (202, {"id": task_id, "status": "in-progress"})
    assert service.becomes(task_id, "cancelled")["reason"] == "cancelled"
    gate.open()


def test_cancelling_twice_says_the_same(service: Program, module_database: str):
    task_id = due_later(module_database)

    answers = [service.call("DELETE", f"/task/{task_id}") for _ in range(2)]

    assert [(answer.status, answer.json["status"]) for answer in answers] == [(200, "cancelled")] * 2


def test_ended_task_is_not_cancelled(service: Program):
    task_id = service.submit()
    service.becomes(task_id, "Ok")

    answer = service.call("DELETE", f"/task/{task_id}")

    assert (answer.status, answer.json["code"]) == (409, "already_ended")
    assert service.shown(task_id)["status"] == "Ok"


@pytest.mark.parametrize("path", ["/task/4000000000000", f"/task/{2**80}"])
@pytest.mark.parametrize(("method", "suffix"), [("DELETE", ""), ("POST", "/retry")])
def test_task_that_is_not_there_is_told_apart(service: Program, path: str, method: str, suffix: str):
    answer = service.call(method, path + suffix)

    assert (answer.status, answer.json["code"]) == (404, "no_such_task")


# -- run again


def test_failed_task_runs_again_with_one_more_attempt(service: Program, module_database: str):
    task_id = service.submit(do="fail")
    failed = service.becomes(task_id, "failed")
    with psycopg.connect(module_database, autocommit=True) as connection:
        connection.execute("update taskq.task set payload = '{}', max_attempts = 1 where id = %s", (task_id,))

    answer = service.call("POST", f"/task/{task_id}/retry")

    assert (answer.status, answer.json) == (200, {"id": task_id, "status": "pending"})
    task = service.becomes(task_id, "Ok")
    assert (task["attempt"], task["max_attempts"], task["reason"]) == (failed["attempt"] + 1, 2, None)


def test_cancelled_task_runs_again(service: Program, module_database: str):
    task_id = due_later(module_database)
    service.call("DELETE", f"/task/{task_id}")

    service.call("POST", f"/task/{task_id}/retry")

    assert service.becomes(task_id, "Ok")["attempt"] == 1


def test_task_that_waits_for_its_time_runs_now(service: Program, module_database: str):
    task_id = due_later(module_database)

    assert service.call("POST", f"/task/{task_id}/retry").status == 200

    service.becomes(task_id, "Ok")


def test_task_is_not_run_again_while_it_runs_nor_after_it_ended_ok(service: Program):
    task_id, gate = held(service)
    during = service.call("POST", f"/task/{task_id}/retry")
    gate.open()
    service.becomes(task_id, "Ok")
    after = service.call("POST", f"/task/{task_id}/retry")

    assert [(answer.status, answer.json["code"]) for answer in (during, after)] == [(409, "not_retryable")] * 2
    assert "in-progress" in during.json["detail"]


def test_task_whose_content_was_erased_is_not_run_again(service: Program, module_database: str):
    task_id = service.submit(do="fail")
    service.becomes(task_id, "failed")
    with psycopg.connect(module_database, autocommit=True) as connection:
        connection.execute("update taskq.task set erased_at = now() where id = %s", (task_id,))

    answer = service.call("POST", f"/task/{task_id}/retry")

    assert (answer.status, answer.json["code"]) == (409, "erased")
    assert service.shown(task_id)["status"] == "failed"


# -- wait


@pytest.mark.parametrize("asked", ["service", "other"])
def test_get_waits_until_the_task_ends_wherever_it_runs(service: Program, other: Program, asked: str):
    task_id, gate = held(service)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit({"service": service, "other": other}[asked].shown, task_id, f"?wait={LONG_S}")
        gate.open()

        assert waiting.result(LONG_S - 5)["status"] == "Ok"


def test_get_answers_what_is_so_when_the_wait_is_over(service: Program):
    task_id, gate = held(service)

    task = service.shown(task_id, "?wait=0.05")
    gate.open()

    assert task["status"] == "in-progress"


@pytest.mark.parametrize("wait", ["-1", "61", "x", "nan", "1" * 30, "%C3%BC"])
def test_get_refuses_a_wait_out_of_its_range(service: Program, wait: str):
    answer = service.call("GET", f"/task/1?wait={wait}")

    assert (answer.status, answer.json["code"]) == (400, "invalid_query")


def test_get_does_not_wait_for_a_task_that_is_not_there(service: Program):
    assert service.call("GET", f"/task/4000000000000?wait={LONG_S}").status == 404


def create(service: Program, prefer: str, **payload: Any) -> Answer:
    body = json.dumps({"kind": "work", "payload": payload}).encode()
    return service.call("POST", "/task/", body, Prefer=prefer)


@pytest.mark.parametrize("prefer", [f"wait={LONG_S}", f'respond-async, Wait = "{LONG_S}"; x=1'])
def test_post_tells_how_the_task_ended_where_the_caller_prefers_to_wait(service: Program, prefer: str):
    answer = create(service, prefer)

    assert (answer.status, answer.json["message"], answer.json["status"]) == (201, "Task Created", "Ok")
    assert answer.headers["Preference-Applied"] == f"wait={LONG_S}"


def test_post_answers_after_the_wait_that_the_task_is_stored(service: Program):
    gate = Gate()

    answer = create(service, "wait=0.05", gate=gate.port)
    gate.open()

    assert (answer.status, answer.json["status"]) == (201, "in-progress")


@pytest.mark.parametrize("prefer", ["wait=soon", "wait=-1", "return=minimal", "wait=nan", "wait"])
def test_post_ignores_a_preference_that_it_does_not_know(service: Program, prefer: str):
    answer = create(service, prefer)

    assert (answer.status, set(answer.json)) == (201, {"message", "id"})


def test_more_waiters_than_the_bound_are_refused(module_database: str, place: Any, other: Program):
    with serving(place / "service", *QUICK, "--role", "api", "--waiters-max", "1", database=module_database) as service:
        task_id = due_later(module_database)
        with ThreadPoolExecutor(2) as pool:
            asked = {pool.submit(service.call, "GET", f"/task/{task_id}?wait={LONG_S - 15}") for _ in range(2)}
            refused, waiting = wait(asked, return_when=FIRST_COMPLETED)
            answer = refused.pop().result()
            other.call("DELETE", f"/task/{task_id}")

            assert (answer.status, answer.json["code"]) == (503, "too_many_waiters")
            assert answer.headers["Retry-After"] == "1"
            assert waiting.pop().result().json["status"] == "cancelled"
