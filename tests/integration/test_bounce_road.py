"""A mail that comes back, with nothing of ours at the other end: Postfix takes it, and returns a delivery report.

The report lies in the sender's mailbox; whoever reads that mailbox posts it, and it leads to its task.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import aiosmtplib
import psycopg
import pytest
from conftest import wait_until
from postfix import Postfix, running_postfix
from rig import Program, serving

from taskq.uid import uid_of

SENDER = "shop@ok.test"
GONE = "bounced@ok.test"


@pytest.fixture
def postfix(place: Path) -> Iterator[Postfix]:
    with running_postfix(place) as server:
        yield server


@pytest.fixture
def service(postfix: Postfix, database: str, tmp_path: Path) -> Iterator[Program]:
    environment = {"TASKQ_SMTP_URL": postfix.url, "TASKQ_MAIL_FROM": SENDER, "TASKQ_DURABILITY": "relaxed"}
    with serving(tmp_path / "service", "--port", "0", database=database, environment=environment) as program:
        yield program


def submit(service: Program, recipient: str) -> int:
    body = json.dumps({"To": recipient, "subject": "Hi", "body": "text"}).encode()
    answer = service.call("POST", "/task/", body)
    assert answer.status == 201, answer.body
    return answer.json["id"]


def ends(service: Program, task_id: int, status: str) -> dict[str, object]:
    wait_until(lambda: service.call("GET", f"/task/{task_id}").json["status"] == status)
    return service.call("GET", f"/task/{task_id}").json


def post(service: Program, report: bytes) -> dict[str, object]:
    answer = service.call("POST", "/mail/bounce", report, Content_Type="message/rfc822")
    assert answer.status == 200, answer.body
    return answer.json


def test_mail_that_comes_back_leads_to_its_task_and_suppresses_its_recipient(
    service: Program, postfix: Postfix
) -> None:
    task_id = submit(service, GONE)
    ends(service, task_id, "Ok")  # it was taken; that it can't arrive shows later

    told = post(service, postfix.delivered(b"report-type=delivery-status"))

    assert told == {"task": task_id, "recipient": GONE, "action": "failed", "status": "5.1.1", "suppressed": True}
    (bounce,) = service.call("GET", f"/mail/bounces/{task_id}").json["bounces"]
    assert bounce["diagnostic"] == f'unknown user: "{GONE}"'
    again = service.call("POST", "/task/", json.dumps({"To": GONE, "subject": "Hi", "body": "text"}).encode())
    assert (again.status, again.json["code"]) == (422, "suppressed")


async def test_report_leads_to_its_task_by_the_envelope_id_alone(
    service: Program, postfix: Postfix, database: str
) -> None:
    task_id = submit(service, "ada@ok.test")
    ends(service, task_id, "Ok")
    with psycopg.connect(database, autocommit=True) as connection:
        (installation,) = connection.execute("select id from taskq.installation").fetchall()[0]
        connection.execute("update taskq.task set payload = jsonb_set(payload, '{to}', %s)", [json.dumps(GONE)])
    envid = uid_of(task_id, installation).hex

    async with aiosmtplib.SMTP(hostname="127.0.0.1", port=postfix.port, start_tls=False) as client:
        await client.mail(SENDER, options=["RET=HDRS", f"ENVID={envid}"])
        await client.rcpt(GONE, options=["NOTIFY=FAILURE,DELAY", f"ORCPT=rfc822;{GONE}"])
        await client.data(b"From: shop@ok.test\r\nSubject: by hand\r\n\r\ntext\r\n")
    report = postfix.delivered(b"Original-Envelope-Id")

    assert f"Original-Envelope-Id: {envid}".encode() in report
    assert post(service, report)["task"] == task_id


def test_mailbox_that_is_gone_is_written_to_once(service: Program, postfix: Postfix) -> None:
    first = submit(service, "gone@ok.test")
    failed = ends(service, first, "failed")

    answer = service.call("GET", "/mail/suppressions?address=gone%40ok.test").json
    again = service.call("POST", "/task/", b'{"To": "gone@ok.test", "subject": "Hi", "body": "text"}')

    assert "550 5.1.1 <g***@ok.test>" in str(failed["last_error"])
    (entry,) = answer["suppressions"]
    assert (entry["source"], entry["reason"], entry["task"]) == ("bounce", "550 5.1.1", first)
    assert (again.status, again.json["code"]) == (422, "suppressed")
    assert postfix.log().count("NOQUEUE: reject") == 1
