"""The whole road with nothing of ours at its end: HTTP, the service as a program, a real Postfix, a maildir.

What is compared with what was composed are the bytes of the file that Postfix delivered; what
Postfix adds, it adds in front (RFC 5321 §4.4).
"""

import json
import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from conftest import wait_until
from postfix import Postfix, running_postfix
from rig import Program, serving

from taskq.mail.address import parse_mailbox
from taskq.mail.compose import Draft, compose
from taskq.uid import uid_of

SENDER = "shop@ok.test"
CROWD = 500
OUTAGE_S = float(os.environ.get("TASKQ_TEST_OUTAGE_S", "0"))  # seconds that the relay stays away, after all have tried
WAITING_FOR_A_RETRY = {"status": "pending", "attempt": 1}


@pytest.fixture
def postfix(place: Path) -> Iterator[Postfix]:
    with running_postfix(place) as server:
        yield server


@pytest.fixture
def service(postfix: Postfix, database: str, tmp_path: Path) -> Iterator[Program]:
    environment = {
        "TASKQ_SMTP_URL": postfix.url,
        "TASKQ_MAIL_FROM": SENDER,
        "TASKQ_RETRY_BASE_S": "2",
        "TASKQ_DURABILITY": "relaxed",  # the tests' server runs without fsync
    }
    with serving(tmp_path / "service", "--port", "0", database=database, environment=environment) as program:
        yield program


def submit(service: Program, recipient: str, subject: str = "Hi", body: str = "text") -> int:
    answer = service.call("POST", "/task/", json.dumps({"To": recipient, "subject": subject, "body": body}).encode())
    assert answer.status == 201, answer.body
    return answer.json["id"]


def reaches(service: Program, task_id: int, **wanted: object) -> dict[str, object]:
    """Wait until the task shows these values; return all of it."""
    wait_until(lambda: wanted.items() <= service.call("GET", f"/task/{task_id}").json.items(), 30)
    return service.call("GET", f"/task/{task_id}").json


def mailbox(folder: Path, count: int) -> list[bytes]:
    """Wait until so many mails are delivered and return their files."""
    box = folder / "mail" / "box" / "new"
    wait_until(lambda: len(list(box.glob("*"))) >= count, 30)
    return [file.read_bytes() for file in box.iterdir()]


def count(database: str, condition: str) -> int:
    with psycopg.connect(database) as connection:
        return connection.execute(f"select count(*) from taskq.task where {condition}").fetchall()[0][0]


def composed(database: str, task_id: int, recipient: str, subject: str, body: str) -> bytes:
    """The mail of a task, made again from what its row says."""
    with psycopg.connect(database) as connection:
        row = connection.execute(
            "select i.id, t.created_at from taskq.task t, taskq.installation i where t.id = %s", [task_id]
        ).fetchall()[0]
    uid = uid_of(task_id, row[0])
    return compose(Draft(parse_mailbox(SENDER), (parse_mailbox(recipient),), subject, uid, row[1], body))


@pytest.mark.parametrize(
    ("subject", "body"),
    [
        ("Test Subject", "Test E-Mail Body"),
        ("Grüße aus Köln " * 10, "Zeile mit ä und =\n.ein Punkt\n.\n" * 30),
        ("長い件名 " * 20, "本文です。" * 500),
    ],
    ids=["plain", "quoted-printable", "base64"],
)
def test_mail_arrives_byte_for_byte(service: Program, database: str, place: Path, subject: str, body: str) -> None:
    task_id = submit(service, "ada@ok.test", subject, body)

    reaches(service, task_id, status="Ok", attempt=1)
    delivered = mailbox(place, 1)[0].replace(b"\n", b"\r\n")

    assert delivered.endswith(b"\r\n" + composed(database, task_id, "ada@ok.test", subject, body))
    assert delivered.startswith(b"Return-Path: <" + SENDER.encode())


def test_mail_put_off_is_tried_again_until_it_is_taken(service: Program, postfix: Postfix, place: Path) -> None:
    task_id = submit(service, "later@ok.test")
    waiting = reaches(service, task_id, **WAITING_FOR_A_RETRY)

    postfix.stop()
    (place / "recipients").write_text("")
    postfix.start()
    ended = reaches(service, task_id, status="Ok")

    assert "450 4.2.0 <l***@ok.test>: Recipient address rejected: come back later" in str(waiting["last_error"])
    assert ended["attempts"][0]["outcome"] == "retry"
    assert b"To: later@ok.test" in mailbox(place, 1)[0]


def test_each_of_three_recipients_has_a_status_of_its_own(service: Program, postfix: Postfix, place: Path) -> None:
    mail = {"to": ["box@ok.test", "later@ok.test", "gone@ok.test"], "subject": "Three", "body": "text", "priority": -1}

    made = service.call("POST", "/task/", json.dumps(mail).encode()).json

    taken, later, gone = (each["id"] for each in made["recipients"])
    reaches(service, taken, status="Ok")
    reaches(service, gone, status="failed", reason="permanent", attempt=1)
    reaches(service, later, **WAITING_FOR_A_RETRY)
    reaches(service, made["id"], status="pending")
    postfix.stop()
    (place / "recipients").write_text("")
    postfix.start()
    reaches(service, made["id"], status="failed")
    counts = service.call("GET", f"/task/{made['id']}").json["counts"]
    assert counts == {"pending": 0, "in-progress": 0, "Ok": 2, "failed": 1, "cancelled": 0}
    assert all(b"To: box@ok.test, later@ok.test, gone@ok.test" in each for each in mailbox(place, 2))


def test_mail_refused_fails_at_once_with_the_words_of_the_server_and_no_address(service: Program) -> None:
    task_id = submit(service, "gone@ok.test")

    failed = reaches(service, task_id, status="failed")

    assert failed["reason"] == "permanent"
    assert failed["attempt"] == 1
    assert "550 5.1.1 <g***@ok.test>: Recipient address rejected: this mailbox is gone" in str(failed["last_error"])


@pytest.mark.timeout(240)
def test_mails_wait_for_a_relay_that_is_away_and_none_pays_for_it(
    service: Program, postfix: Postfix, database: str, place: Path
) -> None:
    postfix.stop()
    with ThreadPoolExecutor(16) as callers:
        ids = list(callers.map(lambda n: submit(service, "ada@ok.test", f"number {n}"), range(CROWD)))

    wait_until(lambda: count(database, "run >= 1 and status = 0") == CROWD, 60)
    threading.Event().wait(OUTAGE_S)
    burnt = count(database, "attempt > 0")
    postfix.start()
    wait_until(lambda: count(database, "status = 2") == CROWD, 120)
    delivered = mailbox(place, CROWD)

    assert burnt == 0
    assert count(database, "attempt = 1") == CROWD == len(set(ids))
    assert sorted(
        int(found) for each in delivered for found in re.findall(rb"(?m)^Subject: number (\d+)", each)
    ) == list(range(CROWD))
