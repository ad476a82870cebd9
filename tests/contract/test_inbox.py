"""The inbox from outside: search, one mail taken apart, waiting, and mails of other programs by SMTP."""

import json
import re
import smtplib
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from conftest import wait_until
from rig import Program, serving

QUICK = ("--port", "0", "--durability", "relaxed", "--poll-s", "0.2", "--sweep-s", "0.1", "--beat-s", "0.2")
WAIT_S = 20.0


@pytest.fixture(scope="module")
def service(module_database: str, tmp_path_factory: pytest.TempPathFactory):
    flags = (*QUICK, "--inbox-smtp-port", "0", "--inbox-waiters-max", "5")
    with serving(tmp_path_factory.mktemp("service"), *flags, database=module_database) as program:
        yield program


@pytest.fixture(autouse=True)
def _emptied(service: Program):
    service.call("DELETE", "/inbox")


def send(program: Program, to: str, subject: str = "Hi", body: str = "text") -> int:
    answer = program.call("POST", "/task/", json.dumps({"To": to, "subject": subject, "body": body}).encode())
    assert answer.status == 201
    return answer.json["id"]


def smtp_port(program: Program) -> int:
    return int(re.findall(r"^ +SMTP +127\.0\.0\.1:(\d+), caught in the inbox$", program.printed, re.MULTILINE)[0])


def deliver(program: Program, message: bytes) -> dict[str, Any]:
    """Send a mail as another program does; return it as the inbox shows it."""
    with smtplib.SMTP("127.0.0.1", smtp_port(program), timeout=20) as client:
        client.sendmail("shop@x.test", ["ada@x.test"], message)
    newest = program.call("GET", "/inbox?limit=1").json["mails"][0]
    return program.call("GET", f"/inbox/{newest['id']}").json


def invoice() -> bytes:
    message = EmailMessage()
    message["From"] = "Shop <shop@x.test>"
    message["Subject"] = "Rechnung für März"
    message["Message-ID"] = "<1@shop.x.test>"
    message.set_content("Zahlen: https://x.test/pay?n=1\n")
    message.add_alternative('<a href="https://x.test/pay?n=1&amp;m=2">Zahlen</a>', subtype="html")
    message.add_attachment(b"<script>alert(1)</script>", maintype="text", subtype="html", filename='a"b\u00e4.html')
    return bytes(message).replace(b"\n", b"\r\n")


def test_mail_of_another_program_is_taken_apart(service: Program):
    mail = deliver(service, invoice())

    assert (mail["task_id"], mail["from"], mail["to"], mail["subject"]) == (
        None, "shop@x.test", "ada@x.test", "Rechnung für März",
    )  # fmt: skip
    assert mail["text"] == mail["body"] == "Zahlen: https://x.test/pay?n=1\r\n"
    assert mail["html"].strip() == '<a href="https://x.test/pay?n=1&amp;m=2">Zahlen</a>'
    assert mail["links"] == ["https://x.test/pay?n=1&m=2", "https://x.test/pay?n=1"]
    assert mail["message_id"] == "<1@shop.x.test>"
    assert {"name": "Subject", "value": "Rechnung für März"} in mail["headers"]
    assert mail["attachments"] == [
        {
            "filename": 'a"bä.html', "content_type": "text/html", "content_id": "", "size": 25,
            "url": f"/inbox/{mail['id']}/attachment?number=1",
        }
    ]  # fmt: skip


def test_attachment_is_never_shown_by_a_browser(service: Program):
    mail = deliver(service, invoice())

    answer = service.call("GET", mail["attachments"][0]["url"])

    assert answer.body == b"<script>alert(1)</script>"
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Disposition"] == (
        "attachment; filename=\"a_b_.html\"; filename*=UTF-8''a%22b%C3%A4.html"
    )


def test_raw_mail_is_what_was_sent(service: Program):
    sent = invoice()
    mail = deliver(service, sent)

    answer = service.call("GET", f"/inbox/{mail['id']}/raw")

    assert answer.body == sent
    assert answer.headers["Content-Type"] == "message/rfc822"
    assert answer.headers["Content-Disposition"].startswith(f'attachment; filename="{mail["id"]}.eml"')


def test_list_shows_text_and_attachments_of_what_fits(service: Program):
    deliver(service, invoice())
    task_id = send(service, "bob@x.test")
    wait_until(lambda: len(service.call("GET", "/inbox").json["mails"]) == 2)

    def found(query: str) -> list[str]:
        return [mail["to"] for mail in service.call("GET", f"/inbox?{query}").json["mails"]]

    assert found("") == ["bob@x.test", "ada@x.test"]
    assert found("to=ADA@x.test") == found("subject=M%C3%A4rz") == found("from=shop@x.test") == ["ada@x.test"]
    assert found(f"task={task_id}") == ["bob@x.test"]
    assert found(f"task={task_id}&to=ada@x.test") == []
    [mail] = service.call("GET", "/inbox?to=ada@x.test").json["mails"]
    assert (mail["text"], len(mail["attachments"]), "headers" in mail) == (
        "Zahlen: https://x.test/pay?n=1\r\n",
        1,
        False,
    )


def test_mails_are_deleted_one_by_one_and_all_at_once(service: Program):
    ids = [deliver(service, invoice())["id"] for _ in range(3)]

    assert service.call("DELETE", f"/inbox/{ids[0]}").json == {"deleted": 1}
    assert service.call("DELETE", f"/inbox/{ids[0]}").status == 404
    assert service.call("DELETE", "/inbox").json == {"deleted": 2}
    assert service.call("GET", "/inbox").json == {"mails": []}


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/inbox?subjet=x", 400, "invalid_query"),
        ("/inbox?to=a%00b", 400, "invalid_query"),
        ("/inbox?task=x", 400, "invalid_query"),
        ("/inbox?timeout=1", 400, "invalid_query"),
        ("/inbox/wait?timeout=61", 400, "invalid_query"),
        ("/inbox/wait?timeout=nan", 400, "invalid_query"),
        ("/inbox/wait?timeout=-1", 400, "invalid_query"),
        ("/inbox/wait?after=x", 400, "invalid_query"),
        ("/inbox/wait?limit=1", 400, "invalid_query"),
        ("/inbox/x/raw", 400, "invalid_id"),
        ("/inbox/999999999/raw", 404, "no_such_mail"),
        ("/inbox/999999999/attachment", 404, "no_such_mail"),
        (f"/inbox/{2**63}/raw", 404, "no_such_mail"),
        ("/inbox/1/html", 404, "no_such_route"),
        ("/inbox//raw", 404, "no_such_route"),
    ],
)
def test_what_makes_no_sense_is_refused(service: Program, path: str, status: int, code: str):
    answer = service.call("GET", path)

    assert (answer.status, answer.json["code"]) == (status, code)


@pytest.mark.parametrize(("number", "status"), [("1", 200), ("2", 404), ("0", 400), ("x", 400)])
def test_attachment_is_found_by_its_number(service: Program, number: str, status: int):
    mail = deliver(service, invoice())

    assert service.call("GET", f"/inbox/{mail['id']}/attachment?number={number}").status == status


def test_wait_answers_with_a_mail_that_comes(service: Program):
    with ThreadPoolExecutor() as callers:
        began = time.monotonic()
        waiting = callers.submit(service.call, "GET", f"/inbox/wait?to=ada@x.test&subject=welc&timeout={WAIT_S}")
        send(service, "bob@x.test", "Welcome")
        send(service, "ada@x.test", "Another")
        task_id = send(service, "ada@x.test", "Welcome", "https://x.test/c")
        answer = waiting.result()

    assert (answer.status, answer.json["task_id"], answer.json["links"]) == (200, task_id, ["https://x.test/c"])
    assert time.monotonic() - began < WAIT_S / 2


def test_wait_answers_with_a_mail_that_is_there(service: Program):
    deliver(service, invoice())

    assert service.call("GET", "/inbox/wait?to=ada@x.test&timeout=0").json["subject"] == "Rechnung für März"


def test_wait_says_what_came_instead(service: Program):
    mail = deliver(service, invoice())

    answer = service.call("GET", "/inbox/wait?to=bob@x.test&subject=Hi&from=a@x.test&task=7&timeout=0.1")
    nothing = service.call("GET", f"/inbox/wait?after={mail['id']}&timeout=0.1")

    assert (answer.status, answer.json["code"]) == (404, "no_mail_came")
    assert answer.json["detail"] == (
        "no mail to bob@x.test from a@x.test with 'Hi' in its subject of task 7 was captured within 0.1 s; "
        f"there are 1 others: {mail['id']} to ada@x.test: 'Rechnung für März'"
    )
    assert nothing.json["detail"].startswith(
        f"no mail after {mail['id']} was captured within 0.1 s, and no other one either"
    )


def one_who_waits(program: Program) -> socket.socket:
    place = urlsplit(program.url)
    connection = socket.create_connection((place.hostname, place.port), timeout=WAIT_S)
    connection.sendall(b"GET /inbox/wait?to=nobody@x.test&timeout=60 HTTP/1.1\r\nHost: x\r\n\r\n")
    return connection


def test_waiters_are_bounded_and_freed_when_they_hang_up(service: Program):
    waiting: list[socket.socket] = []

    def full() -> bool:
        waiting.append(one_who_waits(service))
        return service.call("GET", "/inbox/wait?timeout=0").status == 503

    wait_until(full)
    refused = service.call("GET", "/inbox/wait?timeout=0")
    for connection in waiting:
        connection.close()

    assert (refused.json["code"], refused.headers["Retry-After"]) == ("too_many_waiters", "1")
    wait_until(lambda: service.call("GET", "/inbox/wait?timeout=0").status == 404)


def test_wait_is_answered_when_the_service_stops(database: str, tmp_path: Path):
    with serving(tmp_path, *QUICK, "--inbox-waiters-max", "1", database=database) as service:
        with ThreadPoolExecutor() as callers:
            waiting = [callers.submit(service.call, "GET", "/inbox/wait?timeout=60") for _ in range(2)]
            wait_until(lambda: any(each.done() for each in waiting))  # one is refused: the other one waits
            service.signal()
            answers = [each.result() for each in waiting]

        assert sorted((answer.status, answer.json["code"]) for answer in answers) == [
            (503, "stopping"),
            (503, "too_many_waiters"),
        ]
        assert service.wait() == 0


def test_wait_hears_of_mails_that_another_instance_captures(database: str, tmp_path: Path):
    with (
        serving(tmp_path / "one", *QUICK, "--role", "api", database=database) as one,
        serving(tmp_path / "other", *QUICK, "--role", "all", database=database),
        ThreadPoolExecutor() as callers,
    ):
        began = time.monotonic()
        waiting = callers.submit(one.call, "GET", f"/inbox/wait?to=ada@x.test&timeout={WAIT_S}")
        task_id = send(one, "ada@x.test")
        answer = waiting.result()

    assert answer.json["task_id"] == task_id
    assert time.monotonic() - began < WAIT_S / 2


def test_bad_days_are_seen_in_the_task(service: Program):
    bounced, greylisted, lost = (send(service, f"{name}@x.test") for name in ("bounce", "greylist", "drop"))

    def shown(task_id: int) -> dict[str, Any]:
        return service.call("GET", f"/task/{task_id}").json

    wait_until(lambda: all(shown(task_id)["last_error"] for task_id in (bounced, greylisted, lost)))

    assert (shown(bounced)["status"], shown(bounced)["reason"]) == ("failed", "permanent")
    assert shown(bounced)["last_error"] == "the inbox refused the recipient at RCPT: 550 5.1.1 no such user here"
    assert (shown(greylisted)["status"], shown(greylisted)["attempt"]) == ("pending", 1)
    assert shown(lost)["last_error"].startswith("ambiguous: the inbox may or may not have taken the mail")
    assert [mail["task_id"] for mail in service.call("GET", "/inbox").json["mails"]] == [lost]


def test_bad_day_is_over_on_the_second_run(service: Program, module_database: str):
    import psycopg

    ids = [send(service, f"{name}@x.test") for name in ("greylist", "rate", "drop")]
    wait_until(lambda: all(service.call("GET", f"/task/{task_id}").json["last_error"] for task_id in ids))

    with psycopg.connect(module_database) as connection:
        connection.execute("update taskq.task set due_at = now() where id = any(%s) and status = 0", (ids,))

    wait_until(lambda: all(service.call("GET", f"/task/{task_id}").json["status"] == "Ok" for task_id in ids))
    mails = service.call("GET", "/inbox").json["mails"]
    assert sorted(mail["task_id"] for mail in mails) == sorted([*ids, ids[2]])
    assert len({mail["message_id"] for mail in mails if mail["task_id"] == ids[2]}) == 1


def test_mail_that_must_not_be_sent_twice_fails_where_nobody_knows(service: Program):
    mails = [{"to": "drop@x.test", "subject": "Hi", "body": "text", "on_ambiguous": each} for each in ("fail", "retry")]

    once, again = (service.call("POST", "/task/", json.dumps(mail).encode()).json["id"] for mail in mails)

    failed = service.call("GET", f"/task/{once}?wait={WAIT_S}").json
    wait_until(lambda: service.call("GET", f"/task/{again}").json["last_error"])
    waits = service.call("GET", f"/task/{again}").json
    assert (failed["status"], failed["reason"], failed["attempt"]) == ("failed", "outcome_unknown", 1)
    assert (waits["status"], waits["reason"]) == ("pending", None)
    for task in (failed, waits):
        assert "ambiguous" in [event["event"] for event in task["events"]]
