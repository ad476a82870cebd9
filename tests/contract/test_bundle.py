"""Submissions that become more than one plain row, black box: one answer, one document, content up to the limit."""

import base64
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from conftest import wait_until
from gate import Gate
from rig import CLONE, Answer, Program, serving

QUICK = ("--port", "0", "--durability", "relaxed", "--poll-s", "0.2", "--beat-s", "0.1", "--sweep-s", "0.1")
IN_FLIGHT = 20_000_000
HANDLERS = '''
import base64
import hashlib
import json
from datetime import datetime, timedelta, timezone
from typing import Any

from gate import pass_gate

from taskq import Blob, Bundle, Context, NewTask, RetryPolicy, TaskError, handler


def letters(payload: dict[str, Any]) -> Bundle | None:
    """One task for each recipient; plain when there is nothing to say but whom to write to."""
    if payload.keys() <= {"to"} and len(payload["to"]) == 1:
        return None
    blobs = [Blob(base64.b64decode(payload["content"]))] if "content" in payload else []
    fields = {"tags": tuple(payload.get("tags", ())), "blobs": tuple(blob.digest for blob in blobs)}
    if "metadata" in payload:
        fields["metadata"] = json.dumps(payload["metadata"])
    for name in ("due", "expires"):
        if f"{name}_in_s" in payload:
            fields[f"{name}_at"] = datetime.now(timezone.utc) + timedelta(seconds=payload[f"{name}_in_s"])
    tasks = [
        NewTask("letter", json.dumps({"to": [to], "digest": blobs[0].digest if blobs else None}), **fields)
        for to in payload["to"]
    ]
    return Bundle(tasks, list(payload["to"]), blobs, payload.get("grouped", False))


@handler("letter", policy=RetryPolicy(0.05, 0.1, 0.01), max_attempts=2, bundle=letters)
async def letter(payload: dict[str, Any], context: Context) -> None:
    """Do what the name of the recipient says."""
    if payload.get("digest"):
        content = await context.blob(payload["digest"])
        if hashlib.sha256(content).hexdigest() != payload["digest"]:
            raise TaskError("the content is not what it was", retryable=False)
    to = payload["to"][0]
    if to == "nobody":
        raise TaskError("there is no such person", retryable=False)
    if to == "busy":
        raise TaskError("later", retry_after_s=600)
    if to.startswith("gate:"):
        await pass_gate(int(to[5:]))
'''


@pytest.fixture(scope="module")
def service(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    folder = tmp_path_factory.mktemp("service")
    (folder / "letter_kinds.py").write_text(HANDLERS, encoding="utf-8")
    environment = {
        "TASKQ_HANDLERS": "letter_kinds",
        "PYTHONPATH": f"{folder}{os.pathsep}{CLONE / 'tests'}",
        "TASKQ_BODY_BYTES_IN_FLIGHT_MAX": str(IN_FLIGHT),
    }
    with serving(folder, *QUICK, database=module_database, environment=environment) as program:
        yield program
    logged = [json.loads(line) for line in program.errors.splitlines()]
    assert [line for line in logged if line["level"] == "error" or "exception" in line] == []


def letter(*to: str, **fields: Any) -> bytes:
    return json.dumps({"kind": "letter", "payload": {"to": to, **fields}}).encode()


def post(service: Program, *to: str, **fields: Any) -> Answer:
    return service.call("POST", "/task/", letter(*to, **fields))


# -- answers


@pytest.mark.parametrize("fields", [{}, {"tags": ["a"]}], ids=["plain", "with more"])
def test_post_of_one_task_answers_as_ever(service: Program, fields: dict[str, Any]):
    answer = post(service, "ada", **fields)

    assert answer.status == 201
    assert answer.body == b'{"message":"Task Created","id":%d}' % answer.json["id"]
    assert "group" not in service.becomes(answer.json["id"], "Ok")


def test_post_of_several_answers_with_the_id_of_each(service: Program):
    answer = post(service, "ada", "bea", "cea")

    document = answer.json
    assert answer.status == 201
    assert answer.headers["Content-Type"].startswith("application/json")
    assert list(document) == ["message", "id", "recipients"]
    assert document["message"] == "Task Created"
    assert [each["to"] for each in document["recipients"]] == ["ada", "bea", "cea"]
    for each in document["recipients"]:
        task = service.becomes(each["id"], "Ok")
        assert (task["group"], task["kind"]) == (document["id"], "letter")


def test_post_of_one_that_is_to_be_shown_as_a_group_answers_as_several(service: Program):
    document = post(service, "ada", grouped=True).json

    assert len(document["recipients"]) == 1
    assert service.becomes(document["id"], "Ok")["recipients"][0]["id"] == document["recipients"][0]["id"]


# -- groups


def test_group_is_ok_when_all_are(service: Program):
    made = post(service, "ada", "bea", "cea").json

    group = service.becomes(made["id"], "Ok")

    assert (group["id"], group["kind"]) == (made["id"], "letter")
    assert group["created_at"].endswith("Z")
    assert group["counts"] == {"pending": 0, "in-progress": 0, "Ok": 3, "failed": 0, "cancelled": 0}
    assert [(each["to"], each["id"]) for each in group["recipients"]] == [
        (each["to"], each["id"]) for each in made["recipients"]
    ]
    assert {(each["status"], each["reason"], each["last_error"]) for each in group["recipients"]} == {
        ("Ok", None, None)
    }


def test_group_is_failed_when_one_failed_and_none_is_open(service: Program):
    made = post(service, "ada", "nobody", "cea").json

    group = service.becomes(made["id"], "failed")

    assert group["counts"] == {"pending": 0, "in-progress": 0, "Ok": 2, "failed": 1, "cancelled": 0}
    failed = group["recipients"][1]
    assert (failed["to"], failed["status"]) == ("nobody", "failed")
    assert (failed["reason"], failed["last_error"]) == ("permanent", "there is no such person")


def test_group_is_open_while_one_is(service: Program):
    gate = Gate()
    made = post(service, f"gate:{gate.port}", "nobody", "busy").json
    gate.wait_for()
    wait_until(lambda: service.shown(made["id"])["counts"]["failed"])
    wait_until(lambda: service.shown(made["id"])["recipients"][2]["last_error"])

    running = service.shown(made["id"])
    gate.open()
    waiting = service.becomes(made["id"], "pending")

    assert (running["status"], running["counts"]["in-progress"]) == ("in-progress", 1)
    assert waiting["counts"] == {"pending": 1, "in-progress": 0, "Ok": 1, "failed": 1, "cancelled": 0}


# -- what is shown of a task


def test_task_shows_what_it_was_given(service: Program):
    task_id = post(service, "ada", tags=["otp", "ü"], metadata={"order": 5}, due_in_s=600, expires_in_s=900).json["id"]

    task = service.shown(task_id)

    assert (task["status"], task["tags"], task["metadata"]) == ("pending", ["otp", "ü"], {"order": 5})
    assert task["created_at"] < task["due_at"] < task["expires_at"]
    assert datetime.fromisoformat(task["expires_at"]) - datetime.now(UTC) < timedelta(seconds=901)


def test_plain_task_shows_nothing_more_than_before(service: Program):
    task = service.becomes(post(service, "ada").json["id"], "Ok")

    assert not task.keys() & {"expires_at", "tags", "metadata", "group"}


def test_task_that_expires_while_it_waits_is_failed(service: Program):
    task = service.becomes(post(service, "ada", due_in_s=600, expires_in_s=0.3).json["id"], "failed")

    assert (task["reason"], task["attempt"]) == ("expired", 0)


def test_retry_after_the_expiry_is_not_waited_for(service: Program):
    task = service.becomes(post(service, "busy", expires_in_s=60).json["id"], "failed")

    assert (task["reason"], task["attempt"], task["last_error"]) == ("expired", 1, "later")


# -- content


def test_post_takes_content_of_ten_megabytes_for_several(service: Program, module_database: str):
    content = os.urandom(10_000_000)

    answer = post(service, "ada", "bea", content=base64.b64encode(content).decode())

    assert answer.status == 201
    service.becomes(answer.json["id"], "Ok")
    digest = hashlib.sha256(content).digest()
    with psycopg.connect(module_database) as connection:
        kept = connection.execute("select size, content = %s from taskq.blob where digest = %s", (content, digest))
        assert kept.fetchall() == [(10_000_000, True)]


def test_task_fails_when_its_content_is_gone(service: Program, module_database: str):
    content = os.urandom(100)
    made = post(service, "ada", content=base64.b64encode(content).decode(), due_in_s=600).json
    with psycopg.connect(module_database, autocommit=True) as connection:
        connection.execute("delete from taskq.blob where digest = %s", (hashlib.sha256(content).digest(),))
        connection.execute("update taskq.task set due_at = now() where id = %s", (made["id"],))

    task = service.becomes(made["id"], "failed")

    assert (task["reason"], task["attempt"]) == ("content_missing", 1)


# -- limits


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        (letter("ada", content="A" * 16_777_216), 413, "body_too_large", "16777216"),
        (letter("ada", "A" * 4_200_000), 422, "invalid_payload", "at most 4,194,304"),
        (letter(*["A" * 9_000] * 999, "A" * 4_000_000), 201, "", ""),
        (letter(*"a" * 1_001), 422, "invalid_payload", "makes 1,001 tasks: must be 1 to 1,000"),
        (letter(), 422, "invalid_payload", "makes 0 tasks"),
    ],
    ids=["body", "payload", "whole", "tasks", "none"],
)
def test_post_has_limits(service: Program, body: bytes, status: int, code: str, words: str):
    answer = service.call("POST", "/task/", body)

    assert answer.status == status
    assert status == 201 or answer.json["code"] == code
    assert status == 201 or words in answer.json["detail"]


def test_refused_bundle_leaves_no_trace(service: Program, module_database: str):
    with psycopg.connect(module_database, autocommit=True) as connection:
        counts = (
            "select (select count(*) from taskq.task), (select count(*) from taskq.task_group),"
            " (select count(*) from taskq.blob)"
        )
        before = connection.execute(counts).fetchone()

        answer = post(service, "ada", "bea", content=base64.b64encode(os.urandom(9)).decode(), tags=["a\0b"])

        assert answer.status == 422
        assert connection.execute(counts).fetchone() == before


def begin_upload(service: Program, size: int) -> tuple[socket.socket, bytes]:
    """A client that says how much it will send and takes its time; with the first answer."""
    place = urlsplit(service.url)
    client = socket.create_connection((place.hostname, place.port), timeout=20)
    client.sendall(b"POST /task/ HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n" % size)
    return client, client.recv(100).splitlines()[0]


def test_large_bodies_wait_their_turn_and_small_ones_pass(service: Program):
    large = letter("ada", content=base64.b64encode(bytes(6_000_000)).decode())
    slow, told = begin_upload(service, 15_000_000)

    refused, small = service.call("POST", "/task/", large), post(service, "ada")
    slow.close()
    wait_until(lambda: service.call("POST", "/task/", large).status == 201)

    assert told == b"HTTP/1.1 100 Continue"
    assert (refused.status, refused.json["code"], refused.headers["Retry-After"]) == (503, "intake_full", "1")
    assert "body_bytes_in_flight_max" in refused.json["detail"]
    assert small.status == 201


def test_upload_that_was_refused_for_its_length_holds_nothing(service: Program):
    refused, told = begin_upload(service, IN_FLIGHT)
    refused.close()

    assert told.startswith(b"HTTP/1.1 413 ")
    assert post(service, "ada", content=base64.b64encode(bytes(10_000_000)).decode()).status == 201


def test_body_of_untold_length_is_taken_in_parts(service: Program):
    body = letter("ada", content=base64.b64encode(os.urandom(1_000_000)).decode())
    place = urlsplit(service.url)
    with socket.create_connection((place.hostname, place.port), timeout=20) as client:
        client.sendall(b"POST /task/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for start in range(0, len(body), 100_000):
            part = body[start : start + 100_000]
            client.sendall(b"%x\r\n%s\r\n" % (len(part), part))
        client.sendall(b"0\r\n\r\n")

        assert client.recv(100).startswith(b"HTTP/1.1 201 ")
