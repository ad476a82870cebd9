"""The routes below `/mail`, against the service as a program: the suppression list and delivery reports."""

import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlsplit

import psycopg
import pytest
from conftest import wait_until
from hypothesis import HealthCheck, given
from hypothesis import settings as fuzz
from hypothesis import strategies as st
from reports import report_of
from rig import Answer, Program, serving

from taskq.uid import uid_of

QUICK = ("--port", "0", "--durability", "relaxed", "--poll-s", "0.2", "--beat-s", "0.1")
RFC822 = {"Content-Type": "message/rfc822"}


@pytest.fixture(scope="module")
def service(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    with serving(tmp_path_factory.mktemp("service"), *QUICK, database=module_database) as program:
        yield program
    logged = [json.loads(line) for line in program.errors.splitlines()]
    assert [line for line in logged if line["level"] == "error" or "exception" in line] == []


@pytest.fixture(autouse=True)
def nobody_suppressed(module_database: str) -> None:
    with psycopg.connect(module_database, autocommit=True) as connection:
        connection.execute("delete from taskq.suppression")


def send(service: Program, to: str) -> Answer:
    return service.call("POST", "/task/", json.dumps({"To": to, "subject": "Hi", "body": "text"}).encode())


def sent(service: Program, to: str) -> int:
    """The id of a mail that was sent."""
    task_id = send(service, to).json["id"]
    wait_until(lambda: service.call("GET", f"/task/{task_id}").json["status"] == "Ok")
    return task_id


def suppress(service: Program, address: str, **fields: Any) -> Answer:
    entry = {"address": address, "reason": "asked us"} | fields
    return service.call("POST", "/mail/suppressions", json.dumps(entry).encode())


def lift(service: Program, address: str) -> Answer:
    return service.call("DELETE", f"/mail/suppressions/{quote(address, safe='')}")


def entries(service: Program, query: str = "") -> Any:
    return service.call("GET", f"/mail/suppressions{query}").json["suppressions"]


def bounce(service: Program, message: bytes, **headers: str) -> Answer:
    return service.call("POST", "/mail/bounce", message, **(headers or RFC822))


def name_of(database: str, task_id: int) -> str:
    """The envelope id of a task's mail."""
    with psycopg.connect(database) as connection:
        (installation,) = connection.execute("select id from taskq.installation").fetchall()[0]
    return uid_of(task_id, installation).hex


def is_problem(answer: Answer, status: int, code: str) -> None:
    assert (answer.status, answer.json["code"]) == (status, code), answer.body
    assert answer.headers["Content-Type"] == "application/problem+json"


# -- the list


def test_address_on_the_list_is_refused_until_it_is_taken_off(service: Program) -> None:
    before = send(service, "ada@ok.test")
    added = suppress(service, "Ada@OK.test")
    refused = send(service, "ada@ok.test")
    lifted = lift(service, "ada@ok.test")
    after = send(service, "ada@ok.test")

    assert (before.status, added.status, lifted.status, after.status) == (201, 200, 204, 201)
    is_problem(refused, 422, "suppressed")
    assert "ada@ok.test is on the suppression list" in refused.json["detail"]
    assert "DELETE /mail/suppressions/ada%40ok.test" in refused.json["detail"]
    assert added.json == entries_like(added, address="A***@ok.test", reason="asked us", source="manual")


def entries_like(answer: Answer, **fields: object) -> dict[str, object]:
    return {"until": None, "task": None, "added_at": answer.json["added_at"]} | fields


def test_mail_named_as_kind_is_refused_too(service: Program) -> None:
    suppress(service, "ada@ok.test")
    payload = {"to": "ada@ok.test", "subject": "Hi", "body": "text"}

    answer = service.call("POST", "/task/", json.dumps({"kind": "email", "payload": payload}).encode())

    is_problem(answer, 422, "suppressed")


def test_mail_enqueued_by_sql_fails_when_it_is_to_be_sent(service: Program, module_database: str) -> None:
    suppress(service, "ada@ok.test")
    payload = json.dumps({"to": "ada@ok.test", "subject": "Hi", "body": "text"})

    with psycopg.connect(module_database, autocommit=True) as connection:
        (task_id,) = connection.execute("select taskq.enqueue('email', %s::jsonb)", [payload]).fetchall()[0]
    wait_until(lambda: service.call("GET", f"/task/{task_id}").json["status"] == "failed")

    shown = service.call("GET", f"/task/{task_id}").json
    assert (shown["reason"], shown["attempt"]) == ("suppressed", 1)
    assert "asked us" in shown["last_error"]


def test_list_is_read_page_by_page(service: Program) -> None:
    for n in range(5):
        suppress(service, f"{n}@ok.test", reason=f"number {n}")

    first = service.call("GET", "/mail/suppressions?limit=3").json
    second = service.call("GET", f"/mail/suppressions?limit=3&after={first['after']}").json

    assert [each["reason"] for each in first["suppressions"]] == ["number 4", "number 3", "number 2"]
    assert [each["reason"] for each in second["suppressions"]] == ["number 1", "number 0"]
    assert second["after"] is None


def test_one_address_is_asked_for(service: Program) -> None:
    suppress(service, "ada@ok.test", until="2100-01-01T00:00:00+01:00")

    (found,) = entries(service, "?address=ADA%40ok.test")

    assert (found["until"], found["reason"]) == ("2099-12-31T23:00:00Z", "asked us")
    assert entries(service, "?address=bob%40ok.test") == []


@pytest.mark.parametrize("address", ["a/b@ok.test", "a%2fb@ok.test", "50%@ok.test", "ä@ok.test", "a+b?c@ok.test"])
def test_any_address_is_taken_off_by_its_name(service: Program, address: str) -> None:
    suppress(service, address)

    assert lift(service, address).status == 204
    assert entries(service) == []
    is_problem(lift(service, address), 404, "no_such_suppression")


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        ({"address": "nobody", "reason": "x"}, "address"),
        ({"address": "ada@ok.test"}, "reason"),
        ({"address": "ada@ok.test", "reason": ""}, "reason"),
        ({"address": "ada@ok.test", "reason": "x" * 201}, "reason"),
        ({"address": "ada@ok.test", "reason": "a\0b"}, "reason"),
        ({"address": "ada@ok.test", "reason": "x", "until": "2001-01-01T00:00:00Z"}, "until"),
        ({"address": "ada@ok.test", "reason": "x", "until": "2100-01-01T00:00:00"}, "until"),
        ({"address": "ada@ok.test", "reason": "x", "for": 1}, "for"),
        ([], ""),
    ],
)
def test_unfit_entry_is_refused_and_names_its_field(service: Program, entry: object, field: str) -> None:
    answer = service.call("POST", "/mail/suppressions", json.dumps(entry).encode())

    is_problem(answer, 422, "invalid_payload")
    assert answer.json.get("field", "") == field
    assert entries(service) == []


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/mail/suppressions?limit=0", 400, "invalid_query"),
        ("GET", "/mail/suppressions?limit=101", 400, "invalid_query"),
        ("GET", "/mail/suppressions?after=x", 400, "invalid_query"),
        ("GET", "/mail/suppressions?after=99999999999999999999", 400, "invalid_query"),
        ("GET", "/mail/suppressions?address=nobody", 422, "invalid_payload"),
        ("DELETE", "/mail/suppressions/nobody", 422, "invalid_payload"),
        ("DELETE", "/mail/suppressions", 405, "method_not_allowed"),
        ("GET", "/mail/bounces/x", 400, "invalid_id"),
        ("GET", "/mail/bounce", 405, "method_not_allowed"),
    ],
)
def test_unfit_request_is_refused(service: Program, method: str, path: str, status: int, code: str) -> None:
    is_problem(service.call(method, path), status, code)


def test_malformed_entry_is_refused(service: Program) -> None:
    is_problem(service.call("POST", "/mail/suppressions", b"{"), 400, "malformed_json")
    is_problem(service.call("POST", "/mail/suppressions", b" " * 5_000), 413, "body_too_large")


@pytest.mark.parametrize(
    "sent_as", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b"]
)
def test_body_that_a_browser_sends_unasked_is_refused(service: Program, sent_as: str) -> None:
    entry = b'{"address": "ada@ok.test", "reason": "x"}'

    is_problem(service.call("POST", "/mail/suppressions", entry, Content_Type=sent_as), 415, "unfit_content_type")
    is_problem(service.call("POST", "/mail/bounce", report_of(), Content_Type=sent_as), 415, "unfit_content_type")
    assert entries(service) == []


# -- reports


def test_report_finds_its_task_and_suppresses_who_is_gone(service: Program, module_database: str) -> None:
    task_id = sent(service, "ada@ok.test")
    message = report_of(envid=name_of(module_database, task_id), recipient="Ada@ok.test")

    answer = bounce(service, message)

    assert answer.status == 200
    expected = {"task": task_id, "recipient": "ada@ok.test", "action": "failed", "status": "5.1.1", "suppressed": True}
    assert answer.json == expected
    (entry,) = entries(service)
    assert (entry["source"], entry["reason"], entry["task"]) == ("report", "5.1.1", task_id)
    (kept,) = service.call("GET", f"/mail/bounces/{task_id}").json["bounces"]
    assert kept["diagnostic"] == "550 5.1.1 <ada@ok.test>: Recipient address rejected: this mailbox is gone"
    is_problem(send(service, "ada@ok.test"), 422, "suppressed")


def test_report_that_names_the_mail_by_its_message_id_finds_its_task(service: Program, module_database: str) -> None:
    task_id = sent(service, "ada@ok.test")
    captured = next(mail for mail in service.call("GET", "/inbox").json["mails"] if mail["task_id"] == task_id)

    answer = bounce(service, report_of(message_id=captured["message_id"][1:].partition("@")[0]))

    assert (answer.json["task"], answer.json["suppressed"]) == (task_id, True)


def test_report_posted_as_parts_is_read_by_the_boundary_of_the_request(service: Program, module_database: str) -> None:
    task_id = sent(service, "ada@ok.test")
    head, _, parts = report_of(envid=name_of(module_database, task_id)).partition(b"\r\n\r\n")
    boundary = head.rpartition(b"boundary=")[2].decode()

    answer = bounce(service, parts, Content_Type=f"multipart/report; report-type=delivery-status; boundary={boundary}")

    assert answer.json["task"] == task_id


@pytest.mark.parametrize(
    "fields",
    [
        {"action": "delayed", "status": "4.4.1"},
        {"status": "5.7.1"},
        {"status": "5.2.2"},
        {"recipient": "alias@elsewhere.test"},
    ],
    ids=["delayed", "policy", "full", "behind an alias"],
)
def test_report_of_anything_but_a_mailbox_that_is_gone_is_only_kept(
    service: Program, module_database: str, fields: dict[str, str]
) -> None:
    task_id = sent(service, "ada@ok.test")

    answer = bounce(service, report_of(envid=name_of(module_database, task_id), **fields))

    assert (answer.json["recipient"], answer.json["suppressed"]) == ("ada@ok.test", False)
    assert entries(service) == []
    (kept,) = service.call("GET", f"/mail/bounces/{task_id}").json["bounces"]
    assert (kept["recipient"], kept["status"]) == ("a***@ok.test", fields.get("status", "5.1.1"))


def test_report_never_suppresses_a_stranger(service: Program, module_database: str) -> None:
    task_id = sent(service, "ada@ok.test")
    forged = {"recipient": "bob@ok.test", "original": "bob@ok.test"}

    is_problem(bounce(service, report_of(envid=name_of(module_database, task_id), **forged)), 422, "other_recipient")
    is_problem(bounce(service, report_of(envid="0" * 32)), 422, "no_such_task")
    is_problem(bounce(service, report_of(envid=name_of(module_database, 10**9))), 422, "no_such_task")
    assert entries(service) == []
    assert service.call("GET", f"/mail/bounces/{task_id}").json == {"bounces": []}


def test_same_report_again_changes_nothing(service: Program, module_database: str) -> None:
    task_id = sent(service, "ada@ok.test")
    message = report_of(envid=name_of(module_database, task_id))

    assert bounce(service, message).json == bounce(service, message).json
    assert len(service.call("GET", f"/mail/bounces/{task_id}").json["bounces"]) == 1


@pytest.mark.parametrize(
    ("message", "status", "code"),
    [
        (b"", 422, "no_delivery_report"),
        (b"From: ada@ok.test\r\n\r\nI am on holiday.", 422, "no_delivery_report"),
        (b"x" * 1_048_577, 413, "body_too_large"),
    ],
    ids=["nothing", "an answer", "too large"],
)
def test_what_is_no_report_is_refused(service: Program, message: bytes, status: int, code: str) -> None:
    is_problem(bounce(service, message), status, code)


def test_report_that_breaks_off_is_answered(service: Program) -> None:
    address = urlsplit(service.url)
    with socket.create_connection((address.hostname, address.port), 20) as connection:
        head = b"POST /mail/bounce HTTP/1.1\r\nHost: x\r\nContent-Type: message/rfc822\r\nContent-Encoding: gzip\r\n"
        connection.sendall(head + b"Content-Length: 8\r\n\r\nno gzip!")
        answer = connection.recv(4_096)

    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))


@fuzz(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.binary(max_size=300), st.integers(0, 1_200))
def test_no_report_makes_the_service_fail(service: Program, junk: bytes, at: int) -> None:
    message = report_of()

    assert bounce(service, message[:at] + junk + message[at:]).status in (200, 422)
