"""`python run.py` as a program: what it prints, how it ends, and what it refuses to start with."""

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from conftest import wait_until
from gate import Gate
from rig import Program, await_url, handlers, run_program, serving

MAIL = b'{"To":"example@gmail.com","subject":"Test Subject","body":"Test E-Mail Body"}'
QUICK = ("--port", "0", "--durability", "relaxed", "--poll-s", "0.2", "--beat-s", "0.1")


def refusal(folder: Path, *flags: str, code: int = 2, **options: object) -> str:
    """The one line that a start which can't be prints."""
    program = run_program(folder, *flags, **options)  # pyright: ignore[reportArgumentType]
    assert program.wait() == code, program.errors
    assert program.printed == ""
    [line] = [line for line in program.errors.splitlines() if not line.startswith("{")]
    assert line.startswith("taskq: ")
    return line


def status_of(program: Program, task_id: int) -> str:
    return program.call("GET", f"/task/{task_id}").json["status"]


def tasks(database: str) -> list[tuple[object, ...]]:
    with psycopg.connect(database) as connection:
        return connection.execute("select status, attempt, run, crashes from taskq.task order by id").fetchall()


def busy_port() -> socket.socket:
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    return taken


# -- a good start


def test_run_with_nothing_configured_serves_a_mail_from_a_database_of_its_own(tmp_path_factory: pytest.TempPathFactory):
    import shutil
    import tempfile

    data = Path(tempfile.mkdtemp(prefix="taskq-test-"))
    data.chmod(0o755)
    folder = tmp_path_factory.mktemp("run")
    try:
        with serving(folder, "--port", "0", environment={"TASKQ_DATA_DIR": str(data)}) as program:
            task_id = program.call("POST", "/task/", MAIL).json["id"]
            wait_until(lambda: status_of(program, task_id) == "Ok")
            program.signal()

            assert program.wait() == 0
    finally:
        shutil.rmtree(data, ignore_errors=True)


def test_banner_says_where_everything_is(database: str, tmp_path: Path):
    with serving(tmp_path, *QUICK, database=database) as program:
        banner = program.printed

    assert program.lines[0].startswith("taskq ")
    for word in (
        "HTTP      http://127.0.0.1:",
        "database  ",
        "mails     caught in the local inbox",
        "try       curl -d",
    ):
        assert word in banner
    assert f"{program.url}/task/" in banner


def test_banner_hides_passwords(database: str, tmp_path: Path):
    parts = urlsplit(database)
    secret = parts._replace(netloc=parts.netloc.replace("@", ":hush@")).geturl()

    with serving(tmp_path, *QUICK, "--smtp-url", "smtp://u:hush@127.0.0.1:1", database=secret) as program:
        assert "hush" not in program.printed + program.errors
        assert ":***@" in program.printed


def test_test_installation_says_who_gets_mail_and_writes_to_nobody_else(database: str, tmp_path: Path):
    only = ("--mail-only-to", "*@example.com", "--smtp-url", "smtp://127.0.0.1:1")

    with serving(tmp_path, *QUICK, *only, database=database) as program:
        task_id = program.call("POST", "/task/", MAIL).json["id"]
        wait_until(lambda: status_of(program, task_id) == "Ok")
        [mail] = program.call("GET", "/inbox").json["mails"]

    assert (mail["task_id"], mail["to"]) == (task_id, "example@gmail.com")
    assert "to *@example.com; those to others are caught in the local inbox" in program.printed


def test_mails_are_redirected_to_one_address(database: str, tmp_path: Path):
    with serving(tmp_path, *QUICK, "--mail-redirect-to", "team@example.com", database=database) as program:
        task_id = program.call("POST", "/task/", MAIL).json["id"]
        wait_until(lambda: status_of(program, task_id) == "Ok")
        [mail] = program.call("GET", "/inbox").json["mails"]
        message = program.call("GET", f"/inbox/{mail['id']}/raw").body

    assert mail["to"] == "team@example.com"
    assert message.startswith(b"X-Original-To: example@gmail.com\r\nFrom: ")


def test_banner_warns_of_a_server_that_can_lose_commits(database: str, tmp_path: Path):
    with psycopg.connect(database) as connection:
        unsafe = connection.execute("show fsync").fetchone() == ("off",)
    if not unsafe:
        pytest.skip("the server is safe")

    with serving(tmp_path, *QUICK, database=database) as program:
        assert "WARNING   fsync=off" in program.printed


def test_example_of_the_banner_works(database: str, tmp_path: Path):
    with serving(tmp_path, *QUICK, database=database) as program:
        command = next(line for line in program.lines if "curl" in line).split("try", 1)[1]

        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)

    assert json.loads(done.stdout)["message"] == "Task Created"


def test_log_is_json_when_nobody_looks(database: str, tmp_path: Path):
    with serving(tmp_path, *QUICK, database=database) as program:
        program.signal()
        program.wait()

    lines = [json.loads(line) for line in program.errors.splitlines()]
    assert {"stopping"} <= {line["event"] for line in lines}
    assert all({"event", "level", "logger", "timestamp"} <= set(line) for line in lines)


def test_log_is_for_people_when_asked(database: str, tmp_path: Path):
    with serving(tmp_path, *QUICK, "--log-format", "human", database=database) as program:
        program.signal()
        program.wait()

    assert "stopping" in program.errors
    assert not program.errors.startswith("{")


def test_settings_come_from_a_file_beside(database: str, tmp_path: Path):
    (tmp_path / "taskq.toml").write_text('port = 0\ndurability = "relaxed"\n', encoding="utf-8")

    with serving(tmp_path, database=database) as program:
        assert program.call("GET", "/health/live").status == 200


# -- a start that can't be


def test_busy_port_is_one_line(database: str, tmp_path: Path):
    with busy_port() as taken:
        port = str(taken.getsockname()[1])

        line = refusal(tmp_path, *QUICK, "--port", port, database=database)

    assert f"port {port} on 127.0.0.1 is in use by another program" in line
    assert "--port" in line


@pytest.mark.parametrize(
    "address",
    ["postgresql://127.0.0.1:1/x", "postgresql://u:hush@127.0.0.1:1/x", "postgresql:///x?host=/nowhere/at-all"],
)
def test_unreachable_database_is_one_line(tmp_path: Path, address: str):
    line = refusal(tmp_path, *QUICK, database=address)

    assert "the database can't be reached" in line
    assert "database_url" in line
    assert "hush" not in line


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--concurrency", "0"), "concurrency is '0': "),
        (("--port", "http"), "port is 'http': "),
        (("--lease-s", "1", "--beat-s", "1"), "lease_s is 1: must be at least twice beat_s"),
        (("--host", "0.0.0.0"), "host is 0.0.0.0: anyone who reaches it could submit mail"),  # noqa: S104
        (("--mail-from", "nobody"), "TASKQ_MAIL_FROM"),
        (("--smtp-url", "http://x"), "smtp"),
        (("--handlers", "no.such.module"), "handlers names no.such.module"),
    ],
)
def test_bad_setting_is_one_line(database: str, tmp_path: Path, flags: tuple[str, ...], words: str):
    assert words in refusal(tmp_path, *QUICK, *flags, database=database)


def test_unknown_variable_is_one_line(tmp_path: Path):
    line = refusal(tmp_path, environment={"TASKQ_CONCURENCY": "5"})

    assert "did you mean TASKQ_CONCURRENCY?" in line


def test_unknown_flag_is_a_usage_error(tmp_path: Path):
    program = run_program(tmp_path, "--concurency", "5")

    assert program.wait() == 2
    assert "--concurrency" in program.errors


def test_server_that_can_lose_commits_is_refused(database: str, tmp_path: Path):
    name = urlsplit(database).path[1:]
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(f"alter database {name} set synchronous_commit = off")  # pyright: ignore[reportArgumentType]

    line = refusal(tmp_path, "--port", "0", database=database)

    assert "synchronous_commit=off" in line
    assert "--durability relaxed" in line


def test_defect_of_ours_keeps_its_traceback(database: str, tmp_path: Path):
    (tmp_path / "broken_kinds.py").write_text("1 / 0\n", encoding="utf-8")
    environment = {"PYTHONPATH": str(tmp_path), "TASKQ_HANDLERS": "broken_kinds"}

    program = run_program(tmp_path, *QUICK, database=database, environment=environment)

    assert program.wait() == 1
    assert "ZeroDivisionError" in program.errors


# -- the end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_is_clean(database: str, tmp_path: Path, number: signal.Signals):
    with serving(tmp_path, *QUICK, database=database) as program:
        program.call("POST", "/task/", MAIL)

        program.signal(number)

        assert program.wait() == 0
    with psycopg.connect(database) as connection:
        assert connection.execute("select count(*) from taskq.lease").fetchone() == (0,)


@contextlib.contextmanager
def stopping(database: str, folder: Path, *flags: str) -> Iterator[tuple[Program, Gate]]:
    """A program that was asked to stop while a task runs, which waits at the gate."""
    gate = Gate()
    with serving(folder, *QUICK, *flags, database=database, environment=handlers(folder)) as program:
        program.submit(gate=gate.port)
        gate.wait_for()
        program.signal()
        wait_until(lambda: "waiting for running tasks" in program.errors)
        yield program, gate
    gate.open()


def test_stop_waits_for_what_runs(database: str, tmp_path: Path):
    with stopping(database, tmp_path) as (program, gate):
        gate.open()

        assert program.wait() == 0
    assert tasks(database) == [(2, 1, 1, 0)]


def test_stop_refuses_new_submissions_meanwhile(database: str, tmp_path: Path):
    with stopping(database, tmp_path) as (program, gate):
        answer = program.call("POST", "/task/", MAIL)

        assert (answer.status, answer.json["code"], answer.headers["Retry-After"]) == (503, "stopping", "1")
        gate.open()
        assert program.wait() == 0


def test_stop_answers_submissions_under_way(database: str, tmp_path: Path):
    with (
        serving(tmp_path, *QUICK, database=database) as program,
        psycopg.connect(database) as other,
        psycopg.connect(database, autocommit=True) as watch,
        ThreadPoolExecutor(1) as caller,
    ):
        other.execute("lock table taskq.task")
        call = caller.submit(program.call, "POST", "/task/", MAIL)
        waits = (
            "select count(*) from pg_stat_activity"
            " where application_name = 'taskq insert' and wait_event_type = 'Lock' and datname = current_database()"
        )
        wait_until(lambda: watch.execute(waits).fetchone() == (1,))

        program.signal()
        wait_until(lambda: '"stopping"' in program.errors)
        other.rollback()

        assert call.result().status == 201
        assert program.wait() == 0
    assert len(tasks(database)) == 1


def test_stop_hands_back_what_outlives_the_grace(database: str, tmp_path: Path):
    with stopping(database, tmp_path, "--grace-s", "0.2") as (program, _):
        assert program.wait() == 0
    assert tasks(database) == [(0, 0, 1, 0)]


def test_second_signal_ends_the_grace(database: str, tmp_path: Path):
    with stopping(database, tmp_path, "--grace-s", "600") as (program, _):
        program.signal()

        assert program.wait() == 0
    assert tasks(database) == [(0, 0, 1, 0)]


def test_stop_works_while_the_database_is_away(database: str, postgres: str, tmp_path: Path):
    name = urlsplit(database).path[1:]
    with (
        serving(tmp_path, *QUICK, database=database) as program,
        psycopg.connect(postgres, autocommit=True) as server,
    ):
        server.execute(f"alter database {name} allow_connections false")  # pyright: ignore[reportArgumentType]
        server.execute("select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = %s", (name,))

        program.signal()

        assert program.wait() == 0
        assert "Traceback" not in program.errors


def test_killed_instance_is_replaced_at_once_on_the_same_machine(database: str, tmp_path: Path):
    gate = Gate()
    flags = ("--port", "0", "--durability", "relaxed")  # the lease itself would take 20 s
    first = await_url(run_program(tmp_path / "1", *flags, database=database, environment=handlers(tmp_path)))
    task_id = first.submit(gate=gate.port)
    gate.wait_for()

    first.signal(signal.SIGKILL)
    first.wait()
    gate.open()
    with serving(tmp_path / "2", *flags, database=database, environment=handlers(tmp_path)) as second:
        wait_until(lambda: status_of(second, task_id) == "Ok")

    assert tasks(database) == [(2, 2, 2, 1)]


# -- several


def test_second_instance_joins_on_another_port_when_none_was_asked_for(database: str, tmp_path: Path):
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 8080)) == 0:
            pytest.skip("something else serves on the default port")
    flags = ("--durability", "relaxed")  # the second one must not depend on the first one's next beat

    with (
        serving(tmp_path / "1", *flags, database=database) as first,
        serving(tmp_path / "2", *flags, database=database) as second,
    ):
        task_id = second.call("POST", "/task/", MAIL).json["id"]
        wait_until(lambda: status_of(first, task_id) == "Ok")

        ports = [urlsplit(each.url).port for each in (first, second)]

    assert ports[0] == 8080
    assert ports[1] not in (None, 8080)


def test_instances_share_the_work(database: str, tmp_path: Path):
    environment = handlers(tmp_path)
    flags = (*QUICK, "--concurrency", "1")
    gate = Gate()
    with (
        serving(tmp_path / "1", *flags, database=database, environment=environment) as first,
        serving(tmp_path / "2", *flags, database=database, environment=environment),
    ):
        for _ in range(2):
            first.submit(gate=gate.port)

        gate.wait_for(2)  # one slot each: both must run one
        gate.open()
        wait_until(lambda: [status for status, *_ in tasks(database)] == [2, 2])


def test_roles_split_submitting_and_running(database: str, tmp_path: Path):
    environment = handlers(tmp_path)
    with serving(tmp_path / "1", *QUICK, "--role", "api", database=database, environment=environment) as api:
        task_id = api.submit()
        assert status_of(api, task_id) == "pending"

        with serving(tmp_path / "2", *QUICK, "--role", "worker", database=database, environment=environment) as worker:
            wait_until(lambda: status_of(api, task_id) == "Ok")
            assert worker.call("GET", "/health/ready").status == 200
            assert worker.call("POST", "/task/", MAIL).status == 404
            assert "(worker)" in worker.lines[0]


def test_no_file_is_left_open_for_handlers_children(database: str, tmp_path: Path):
    with serving(tmp_path, *QUICK, database=database) as program:
        folder = Path(f"/proc/{program.process.pid}/fdinfo")
        if not folder.is_dir():
            pytest.skip("needs /proc")
        inherited = [
            each.name
            for each in folder.iterdir()
            if int(each.name) > 2 and not int(each.read_text().split("flags:")[1].split()[0], 8) & os.O_CLOEXEC
        ]

    assert inherited == []
