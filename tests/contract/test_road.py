"""The main job from outside: a mail goes in over HTTP and lies in the inbox; what is wrong is refused."""

import json
import signal
from pathlib import Path

import pytest
from conftest import wait_until
from gate import Gate
from rig import Program, await_url, handlers, run_program, serving

MAIL = b'{"To":"example@gmail.com","subject":"Test Subject","body":"Test E-Mail Body"}'
QUICK = (
    "--port",
    "0",
    "--durability",
    "relaxed",
    "--body-bytes-max",
    "262144",
    "--poll-s",
    "0.2",
    "--sweep-s",
    "0.1",
    "--beat-s",
    "0.2",
)


@pytest.fixture(scope="module")
def service(module_database: str, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("service")
    with serving(folder, *QUICK, database=module_database, environment=handlers(folder)) as program:
        yield program


@pytest.mark.parametrize("path", ["/task/", "/task"])
def test_post_answers_to_the_letter_and_the_mail_arrives(service: Program, path: str):
    answer = service.call("POST", path, MAIL)

    assert answer.status == 201
    task_id = answer.json["id"]
    assert answer.body == b'{"message":"Task Created","id":%d}' % task_id
    assert service.becomes(task_id, "Ok")["attempt"] == 1
    mails = [mail for mail in service.call("GET", "/inbox").json["mails"] if mail["task_id"] == task_id]
    assert [(mail["to"], mail["subject"], mail["body"]) for mail in mails] == [
        ("example@gmail.com", "Test Subject", "Test E-Mail Body\r\n")
    ]


def refused(**changes: object) -> bytes:
    return json.dumps(json.loads(MAIL) | changes).encode()


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "malformed_json"),
        (b"", 400, "malformed_json"),
        (b"[" * 5_000, 400, "malformed_json"),
        (b'{"To":"a@b.example","subject":"\\ud800","body":"x"}', 400, "malformed_json"),
        (b'{"To":"a@b.example","subject":"\xff","body":"x"}', 400, "malformed_json"),
        (b"[]", 422, "invalid_payload"),
        (b"null", 422, "invalid_payload"),
        (b'{"To":"a@b.example"}', 422, "invalid_payload"),
        (refused(To=1), 422, "invalid_payload"),
        (refused(subject=["x"]), 422, "invalid_payload"),
        (refused(subjct="x"), 422, "invalid_payload"),
        (refused(To="a b@c.example"), 422, "invalid_payload"),
        (refused(To="a@b.example, c@d.example"), 422, "invalid_payload"),
        (refused(To="a@b.example\r\nRCPT TO:<c@d.example>"), 422, "invalid_payload"),
        (refused(subject="a\0b"), 422, "invalid_payload"),
        (refused(body="a\0b"), 422, "invalid_payload"),
        (refused(body="x" * 300_000), 413, "body_too_large"),
        (b'{"kind":"nothing","payload":{}}', 422, "unknown_kind"),
        (b'{"kind":"work"}', 422, "invalid_payload"),
        (b'{"kind":"work","payload":{"text":"a\\u0000b"}}', 422, "invalid_payload"),
        (b'{"kind":"work","payload":{},"qeue":"x"}', 422, "invalid_payload"),
        (b'{"kind":"work","payload":{"x":' + b'{"x":' * 40 + b"1" + b"}" * 41 + b"}", 422, "invalid_payload"),
    ],
)
def test_post_refuses_with_a_problem_that_helps(service: Program, body: bytes, status: int, code: str):
    answer = service.call("POST", "/task/", body)

    assert (answer.status, answer.json["code"]) == (status, code)
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json["detail"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/task/999999999", 404),
        ("GET", "/task/99999999999999999999", 404),
        ("GET", "/task/-1", 400),
        ("GET", "/task/twelve", 400),
        ("GET", "/nowhere", 404),
        ("GET", "/task/", 405),
        ("POST", "/inbox", 405),
        ("GET", "/inbox?limit=1000000", 400),
        ("GET", "/inbox?before=x", 400),
        ("GET", "/inbox/999999999", 404),
    ],
)
def test_addresses_that_lead_nowhere_say_so(service: Program, method: str, path: str, status: int):
    answer = service.call(method, path)

    assert answer.status == status
    assert answer.json["detail"]


def test_health_tells_the_state(service: Program):
    assert service.call("GET", "/health/live").json == {"status": "live"}
    assert service.call("GET", "/health/ready").json["status"] == "ready"


def test_task_that_waits_for_its_retry_is_pending(service: Program):
    task_id = service.submit(do="retry", after_s=600)

    wait_until(lambda: service.shown(task_id)["last_error"])
    task = service.shown(task_id)

    assert (task["status"], task["attempt"], task["last_error"]) == ("pending", 1, "not yet")
    assert str(task["due_at"]) > str(task["started_at"])


def test_task_that_fails_for_good_says_why(service: Program):
    task = service.becomes(service.submit(do="fail"), "failed")

    assert (task["reason"], task["attempt"], task["last_error"]) == ("permanent", 1, "no such luck")


def test_task_out_of_attempts_fails_with_each_error_kept(service: Program):
    task = service.becomes(service.submit(do="crash", text="bang"), "failed")

    assert (task["reason"], task["attempt"]) == ("attempts_exhausted", 3)
    assert [each["outcome"] for each in task["attempts"]] == ["retry", "retry", "failed"]
    assert "ValueError: bang" in str(task["last_error"])


def test_snoozed_task_keeps_its_attempt(service: Program):
    task_id = service.submit(do="snooze")

    wait_until(lambda: service.shown(task_id)["last_error"])

    assert (service.shown(task_id)["status"], service.shown(task_id)["attempt"]) == ("pending", 0)


def test_killed_process_loses_nothing(database: str, tmp_path: Path):
    gate = Gate()
    first = await_url(run_program(tmp_path / "1", *QUICK, database=database, environment=handlers(tmp_path)))
    task_id = first.submit(gate=gate.port)
    gate.wait_for()

    first.signal(signal.SIGKILL)
    first.wait()
    with serving(tmp_path / "2", *QUICK, database=database, environment=handlers(tmp_path)) as second:
        wait_until(lambda: second.shown(task_id)["attempt"] == 2)
        gate.open()
        task = second.becomes(task_id, "Ok")

    assert [each["outcome"] for each in task["attempts"]] == ["lost"]


def test_stop_hands_back_what_runs_without_burning_its_attempt(database: str, tmp_path: Path):
    gate = Gate()
    first = await_url(
        run_program(tmp_path / "1", *QUICK, "--grace-s", "0.1", database=database, environment=handlers(tmp_path))
    )
    task_id = first.submit(gate=gate.port)
    gate.wait_for()

    first.signal()
    assert first.wait() == 0
    gate.open()
    with serving(tmp_path / "2", *QUICK, database=database, environment=handlers(tmp_path)) as second:
        task = second.becomes(task_id, "Ok")

    assert (task["attempt"], task["attempts"]) == (1, [])


def test_second_instance_runs_what_the_first_can_not(database: str, tmp_path: Path):
    with (
        serving(tmp_path / "1", *QUICK, "--role", "api", database=database, environment=handlers(tmp_path)) as api,
        serving(
            tmp_path / "2", *QUICK, "--role", "worker", database=database, environment=handlers(tmp_path)
        ) as worker,
    ):
        task_id = api.submit()

        api.becomes(task_id, "Ok")
        assert worker.call("POST", "/task/", MAIL).status == 404


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--port", "abc"), "port is 'abc'"),
        (("--concurrency", "0"), "concurrency is '0'"),
        (("--host", "0.0.0.0"), "allow_remote"),  # noqa: S104 - it is refused
        (("--database-url", "postgresql://nobody:secret@127.0.0.1:1/none"), "can't be reached"),
        (("--smtp-url", "http://relay.example"), "relay.example"),
    ],
)
def test_wrong_setting_ends_with_one_clear_line(tmp_path: Path, flags: tuple[str, ...], text: str, database: str):
    program = run_program(tmp_path, *flags, database=None if "--database-url" in flags else database)

    assert program.wait() == 2
    last = program.errors.splitlines()[-1]
    assert last.startswith("taskq: ")
    assert text in last
    assert "secret" not in program.errors
    assert "Traceback" not in program.errors


def test_unsafe_server_is_refused(database: str, tmp_path: Path):
    program = run_program(tmp_path, "--port", "0", database=database)

    assert program.wait() == 2
    assert "fsync=off" in program.errors.splitlines()[-1]
