"""The HTTP contract, black box: to the letter when all is well, a helpful problem document when not, never a 500."""

import asyncio
import json
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import psycopg
import pytest
from conftest import wait_until
from gate import Gate
from hypothesis import HealthCheck, given
from hypothesis import settings as fuzz
from hypothesis import strategies as st
from rig import Answer, Program, handlers, serving

MAIL = {"To": "example@gmail.com", "subject": "Test Subject", "body": "Test E-Mail Body"}
QUICK = ("--port", "0", "--durability", "relaxed", "--body-bytes-max", "262144", "--poll-s", "0.2", "--beat-s", "0.1")
PROBLEM = {"type", "title", "status", "code", "detail"}


@pytest.fixture(scope="module")
def service(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    folder = tmp_path_factory.mktemp("service")
    with serving(folder, *QUICK, database=module_database, environment=handlers(folder)) as program:
        yield program
    logged = [json.loads(line) for line in program.errors.splitlines()]
    assert [line for line in logged if line["level"] == "error" or "exception" in line] == []


def mail(**changes: object) -> bytes:
    """A good submission with some fields changed; None leaves one out."""
    return json.dumps({name: value for name, value in (MAIL | changes).items() if value is not None}).encode()


def post(service: Program, body: bytes, **headers: str) -> Answer:
    return service.call("POST", "/task/", body, **headers)


def is_problem(answer: Answer, status: int, code: str) -> None:
    assert (answer.status, answer.json["code"]) == (status, code), answer.body
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert set(answer.json) - {"field"} == PROBLEM
    assert answer.json["status"] == status
    assert answer.json["detail"]


# -- submit


@pytest.mark.parametrize("path", ["/task/", "/task"])
def test_post_answers_201_with_exactly_the_promised_body(service: Program, path: str):
    answer = service.call("POST", path, mail())

    assert answer.status == 201
    assert answer.headers["Content-Type"].startswith("application/json")
    assert answer.body == b'{"message":"Task Created","id":%d}' % answer.json["id"]
    assert isinstance(answer.json["id"], int)


@pytest.mark.parametrize(
    "body",
    [
        mail(),
        b"  \n" + mail() + b"\n  ",
        mail(subject=""),
        mail(body=""),
        mail(subject="x" * 998),
        mail(subject="ünï \U0001f600 \u202e"),
        mail(body='a line\r\nanother\nand "kind" in it\ttab'),
        mail(To="O'Brien+tag@sub.example.com"),
        json.dumps(MAIL, ensure_ascii=True).encode(),
        json.dumps(MAIL | {"subject": "ü"}, ensure_ascii=False).encode(),
    ],
    ids=["plain", "spaces", "no-subject", "no-body", "long", "unicode", "lines", "address", "escaped", "utf-8"],
)
def test_post_accepts_every_good_mail_and_it_is_sent(service: Program, body: bytes):
    answer = post(service, body)

    assert answer.status == 201
    service.becomes(answer.json["id"], "Ok")


@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=utf-8", "text/plain", "application/x-www-form-urlencoded"]
)
def test_post_reads_the_body_as_json_whatever_it_is_called(service: Program, kind: str):
    """`curl -d` says that it sends a form."""
    assert post(service, mail(), Content_Type=kind).status == 201


def test_post_gives_every_one_of_many_callers_an_id_of_its_own(service: Program):
    async def submit_many() -> list[int]:
        ids: list[int] = []
        async with aiohttp.ClientSession() as client, asyncio.TaskGroup() as group:

            async def submit() -> None:
                async with client.post(service.url + "/task/", data=mail()) as response:
                    assert response.status == 201
                    ids.append((await response.json())["id"])

            for _ in range(300):
                group.create_task(submit())
        return ids

    ids = asyncio.run(submit_many())

    assert len(set(ids)) == 300
    for task_id in ids:
        service.becomes(task_id, "Ok")


def test_post_answers_pipelined_requests_in_their_order(service: Program):
    place = urlsplit(service.url)
    one = b"POST /task/ HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(mail()), mail())
    with socket.create_connection((place.hostname, place.port), timeout=10) as connection:
        connection.sendall(one * 3)
        received = b""
        while received.count(b"}") < 3:
            received += connection.recv(65_536)

    ids = [int(part.split(b"}")[0]) for part in received.split(b'"id":')[1:]]
    assert ids == sorted(ids)
    assert received.count(b"HTTP/1.1 201 ") == 3


def talk(service: Program, sent: bytes, *, until: bytes) -> bytes:
    """What comes back for `sent`, up to the bytes `until` or the end."""
    place = urlsplit(service.url)
    with socket.create_connection((place.hostname, place.port), timeout=10) as connection:
        connection.sendall(sent)
        received = b""
        while until not in received and (got := connection.recv(65_536)):
            received += got
    return received


def head_of(answer: bytes) -> tuple[bytes, dict[str, str]]:
    status, *lines = answer.partition(b"\r\n\r\n")[0].split(b"\r\n")
    return status, dict(line.decode().split(": ", 1) for line in lines)


def asking(*headers: bytes, body: bytes, version: bytes = b"1.1") -> bytes:
    """A submission as it goes over the wire."""
    return b"\r\n".join((b"POST /task/ HTTP/" + version, b"Host: x", *headers, b"", body))


LENGTH = b"Content-Length: %d" % len(mail())


def test_post_answers_on_the_wire_as_aiohttp_does(service: Program):
    """A connection that stays open is answered by a block of ours, one that is closed by aiohttp."""
    stays = talk(service, asking(LENGTH, body=mail()), until=b"}")
    closes = talk(service, asking(LENGTH, b"Connection: close", body=mail()), until=b"no such bytes")

    status, headers = head_of(stays)
    assert (status, list(headers)) == (b"HTTP/1.1 201 Created", ["Content-Type", "Content-Length", "Date", "Server"])
    assert int(headers["Content-Length"]) == len(stays.partition(b"\r\n\r\n")[2])
    other_status, other = head_of(closes)
    assert other_status == status
    assert other.pop("Connection") == "close"
    assert list(other) == list(headers)
    assert all(other[name] == headers[name] for name in ("Content-Type", "Server"))
    assert abs(parsedate_to_datetime(other["Date"]) - parsedate_to_datetime(headers["Date"])) < timedelta(seconds=9)


def test_post_closes_the_connection_of_http_1_0(service: Program):
    answer = talk(service, asking(LENGTH, body=mail(), version=b"1.0"), until=b"no such bytes")

    assert answer.startswith(b"HTTP/1.0 201 Created\r\n")


@pytest.mark.parametrize("cut", [1, 40, len(mail()) - 1])
def test_post_takes_a_body_that_comes_in_pieces(service: Program, cut: int):
    """The pieces are separate packets: the second is sent when the first has been read."""
    place = urlsplit(service.url)
    with socket.create_connection((place.hostname, place.port), timeout=10) as connection:
        for _ in range(2):
            connection.sendall(asking(LENGTH, body=mail()[:cut]))
            service.call("GET", "/health/live")
            connection.sendall(mail()[cut:])

            assert connection.recv(65_536).startswith(b"HTTP/1.1 201 ")


def test_post_takes_a_body_in_chunks(service: Program):
    half = len(mail()) // 2
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (mail()[:half], mail()[half:], b""))
    chunked = asking(b"Transfer-Encoding: chunked", body=chunks)

    assert talk(service, chunked, until=b"}").startswith(b"HTTP/1.1 201 ")


def test_post_tells_a_client_that_asks_first_to_send_its_body(service: Program):
    place = urlsplit(service.url)
    with socket.create_connection((place.hostname, place.port), timeout=10) as connection:
        connection.sendall(asking(LENGTH, b"Expect: 100-continue", body=b""))

        assert connection.recv(65_536) == b"HTTP/1.1 100 Continue\r\n\r\n"

        connection.sendall(mail())
        assert connection.recv(65_536).startswith(b"HTTP/1.1 201 ")


def test_post_refuses_a_body_that_is_too_large_before_it_is_sent(service: Program):
    answer = talk(service, asking(b"Content-Length: 262145", b"Expect: 100-continue", body=b""), until=b"}")

    assert answer.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("lingers", [0, 1], ids=["end", "reset"])
def test_client_that_hangs_up_in_its_body_is_no_error_of_ours(service: Program, lingers: int):
    """The log is looked at again when all is over."""
    place = urlsplit(service.url)
    with socket.create_connection((place.hostname, place.port), timeout=10) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", lingers, 0))
        connection.sendall(asking(LENGTH, body=mail()[:9]))
        service.call("GET", "/health/live")

    service.call("GET", "/health/live")
    assert '"level": "error"' not in service.errors


BAD_BODIES = {
    "empty": (b"", 400, "malformed_json"),
    "not-json": (b"To=a@b.example", 400, "malformed_json"),
    "half": (mail()[:-1], 400, "malformed_json"),
    "trailing": (mail() + b"x", 400, "malformed_json"),
    "two": (mail() + mail(), 400, "malformed_json"),
    "single-quotes": (b"{'To': 'a@b.example'}", 400, "malformed_json"),
    "utf-16": (mail().decode().encode("utf-16"), 400, "malformed_json"),
    "bom": (b"\xef\xbb\xbf" + mail(), 400, "malformed_json"),
    "not-utf-8": (mail().replace(b"Test Subject", b"\xff\xfe"), 400, "malformed_json"),
    "overlong-utf-8": (mail().replace(b"Test Subject", b"\xc0\x80"), 400, "malformed_json"),
    "lone-surrogate": (mail().replace(b"Test Subject", b"\\ud800"), 400, "malformed_json"),
    "deep-list": (b"[" * 100_000, 400, "malformed_json"),
    "deep-object": (b'{"a":' * 40_000, 400, "malformed_json"),
    "deep-closed": (b"[" * 50_000 + b"]" * 50_000, 400, "malformed_json"),
    "raw-control": (mail().replace(b"Test Subject", b"a\x00b"), 400, "malformed_json"),
    "null": (b"null", 422, "invalid_payload"),
    "list": (b"[]", 422, "invalid_payload"),
    "text": (b'"mail"', 422, "invalid_payload"),
    "number": (b"1", 422, "invalid_payload"),
    "huge-number": (b"9" * 5_000, 400, "malformed_json"),
    "nothing": (b"{}", 422, "invalid_payload"),
    "no-to": (mail(To=None), 422, "invalid_payload"),
    "no-subject": (mail(subject=None), 422, "invalid_payload"),
    "no-body": (mail(body=None), 422, "invalid_payload"),
    "unknown": (mail(ccc="a@b.example"), 422, "invalid_payload"),
    "to-number": (mail(To=5), 422, "invalid_payload"),
    "to-null": (mail().replace(b'"example@gmail.com"', b"null"), 422, "invalid_payload"),
    "to-list": (mail(To=["a@b.example", "c"]), 422, "invalid_payload"),
    "subject-object": (mail(subject={}), 422, "invalid_payload"),
    "body-bool": (mail(body=True), 422, "invalid_payload"),
    "to-empty": (mail(To=""), 422, "invalid_payload"),
    "to-word": (mail(To="example"), 422, "invalid_payload"),
    "to-two": (mail(To="a@b.example,c@d.example"), 422, "invalid_payload"),
    "to-name": (mail(To="A, B <a@b.example>"), 422, "invalid_payload"),
    "to-command": (mail(To="a@b.example>\r\nRCPT TO:<c@d.example"), 422, "invalid_payload"),
    "to-long": (mail(To="a" * 300 + "@b.example"), 422, "invalid_payload"),
    "to-nul": (mail(To="a\0@b.example"), 422, "invalid_payload"),
    "subject-nul": (mail(subject="a\0b"), 422, "invalid_payload"),
    "subject-lines": (mail(subject="a\r\nBcc: c@d.example"), 422, "invalid_payload"),
    "subject-long": (mail(subject="x" * 999), 422, "invalid_payload"),
    "body-nul": (mail(body="a\0b"), 422, "invalid_payload"),
    "oversize": (mail(body="x" * 262_144), 413, "body_too_large"),
    "kind-unknown": (b'{"kind":"emial","payload":{}}', 422, "unknown_kind"),
    "kind-number": (b'{"kind":5,"payload":{}}', 422, "invalid_payload"),
    "kind-null": (b'{"kind":null,"payload":{}}', 422, "invalid_payload"),
    "kind-nul": (b'{"kind":"a\\u0000b","payload":{}}', 422, "invalid_payload"),
    "kind-alone": (b'{"kind":"work"}', 422, "invalid_payload"),
    "kind-half": (b'{"kind":"work"', 400, "malformed_json"),
    "kind-more": (b'{"kind":"work","payload":{},"priorty":1}', 422, "invalid_payload"),
    "payload-text": (b'{"kind":"work","payload":"x"}', 422, "invalid_payload"),
    "payload-null": (b'{"kind":"work","payload":null}', 422, "invalid_payload"),
    "payload-nul": (b'{"kind":"work","payload":{"a":"\\u0000"}}', 422, "invalid_payload"),
    "payload-nul-key": (b'{"kind":"work","payload":{"\\u0000":1}}', 422, "invalid_payload"),
    "payload-deep": (b'{"kind":"work","payload":' + b'{"a":' * 40 + b"1" + b"}" * 41, 422, "invalid_payload"),
    "payload-too-large-number": (b'{"kind":"work","payload":{"a":[1e999]}}', 422, "invalid_payload"),
    "payload-too-low-number": (b'{"kind":"work","payload":{"a":-1e999}}', 422, "invalid_payload"),
    "payload-nan": (b'{"kind":"work","payload":{"a":NaN}}', 422, "invalid_payload"),
    "payload-infinity": (b'{"kind":"work","payload":{"a":{"b":-Infinity}}}', 422, "invalid_payload"),
    "payload-endless-number": (b'{"kind":"work","payload":{"a":' + b"9" * 5_000 + b"}}", 400, "malformed_json"),
    "payload-surrogate": (b'{"kind":"work","payload":{"a":"\\udfff"}}', 400, "malformed_json"),
}


@pytest.mark.parametrize(("body", "status", "code"), BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_post_refuses_what_it_can_not_take(service: Program, body: bytes, status: int, code: str):
    is_problem(post(service, body), status, code)


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        (mail(sbject="x"), "sbject", "did you mean subject?"),
        (mail(To=5), "To", "this is no mailbox"),
        (mail(To=["a@b.example", "c"]), "To", "[1]: the address"),
        (mail(subject=None), "subject", "is missing"),
        (b'{"kind":"emial","payload":{}}', "kind", "did you mean email?"),
        (b'{"kind":"work","payload":{},"queu":1}', "queu", "did you mean queue?"),
    ],
)
def test_post_names_the_field_and_the_remedy(service: Program, body: bytes, field: str, words: str):
    answer = post(service, body)

    assert answer.json["field"].lower() == field.lower()
    assert words in answer.json["detail"]


@pytest.mark.parametrize(
    "number", ["1e999", "-1e999", "NaN", "Infinity"], ids=["large", "low", "not-a-number", "infinity"]
)
def test_post_names_a_number_that_is_no_finite_double(service: Program, number: str):
    answer = post(service, b'{"kind":"work","payload":{"a":%s}}' % number.encode())

    assert f"the number {float(number)} is not finite" in answer.json["detail"]


NUMBERS = ("0", "-1", "1.5", "-0.25", str(2**63), str(2**64), str(-(2**64) - 1), str(10**30 + 1), "9" * 4_000)


def test_post_stores_numbers_exactly(service: Program, module_database: str):
    """Whole ones of any length, others as doubles."""
    document = f'{{"numbers":[{",".join(NUMBERS)}],"double":0.1,"small":1e-300,"large":1.5e300}}'

    answer = post(service, f'{{"kind":"work","payload":{document}}}'.encode())

    with psycopg.connect(module_database) as connection:
        query = "select payload = %s::jsonb, payload -> 'numbers' = %s::jsonb from taskq.task where id = %s"
        stored = connection.execute(query, (document, f"[{','.join(NUMBERS)}]", answer.json["id"])).fetchone()
    assert stored == (True, True)
    service.becomes(answer.json["id"], "Ok")


def test_post_refuses_a_compressed_body(service: Program):
    is_problem(post(service, mail(), Content_Encoding="gzip"), 415, "compressed_body")


def test_post_refuses_a_body_of_unknown_length_when_it_grows_too_large(service: Program):
    async def send() -> tuple[int, dict[str, Any]]:
        async def chunks():
            for _ in range(40):
                yield b"x" * 10_000

        async with (
            aiohttp.ClientSession() as client,
            client.post(service.url + "/task/", data=chunks()) as response,
        ):
            return response.status, await response.json(content_type=None)

    status, document = asyncio.run(send())

    assert (status, document["code"]) == (413, "body_too_large")


def test_refused_submissions_leave_no_trace(service: Program, module_database: str):
    with psycopg.connect(module_database, autocommit=True) as connection:
        count = "select (select count(*) from taskq.task), (select last_value from taskq.task_id)"
        before = connection.execute(count).fetchone()

        for body, _, _ in BAD_BODIES.values():
            post(service, body)

        assert connection.execute(count).fetchone() == before


# -- fuzz

words = st.text(alphabet=st.characters(exclude_categories=()), max_size=30)
leaves = st.none() | st.booleans() | st.integers(-(10**25), 10**25) | st.floats() | words
documents = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4), max_leaves=12
)
fields = st.sampled_from(["To", "to", "subject", "body", "kind", "payload", "queue"])
near_mails = st.dictionaries(fields, documents, max_size=5)
kinds = st.fixed_dictionaries({"kind": st.just("work") | words, "payload": st.dictionaries(words, documents)})
bodies = (
    st.binary(max_size=200)
    | st.builds(lambda document: json.dumps(document).encode(), documents | near_mails | kinds)
    | st.builds(lambda to, subject: mail(To=to, subject=subject), words, words)
    | st.builds(lambda at, byte: mail()[:at] + byte + mail()[at + 1 :], st.integers(0, 90), st.binary(max_size=3))
)


@fuzz(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=bodies)
def test_post_never_fails_on_any_body(service: Program, body: bytes):
    answer = post(service, body)

    assert answer.status < 500, (body, answer.body)
    assert answer.status == 201 or set(answer.json) - {"field"} == PROBLEM
    if answer.status == 201:
        assert service.shown(answer.json["id"])["id"] == answer.json["id"]


@fuzz(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.text(alphabet="/taskinbox0123456789%-+.?=&{}", max_size=20))
def test_no_address_fails(service: Program, path: str):
    answer = service.call("GET", "/" + path)

    assert answer.status < 500


@pytest.mark.parametrize(
    "request_line",
    [b"GARBAGE\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00", b"POST /task/ HTTP/1.1\r\nHost: x\r\n"],
    ids=["garbage", "version", "tls", "half"],
)
def test_broken_http_does_not_disturb_others(service: Program, request_line: bytes):
    place = urlsplit(service.url)
    with socket.create_connection((place.hostname, place.port), timeout=10) as connection:
        connection.sendall(request_line)
        connection.shutdown(socket.SHUT_WR)
        received = connection.recv(65_536)

    assert b" 500 " not in received.split(b"\r\n")[0]
    assert service.call("GET", "/health/live").status == 200


# -- show


def test_get_shows_the_life_of_a_task(service: Program):
    gate = Gate()
    task_id = service.submit(gate=gate.port)
    gate.wait_for()

    during = service.shown(task_id)
    gate.open()
    after = service.becomes(task_id, "Ok")

    assert (during["status"], during["attempt"], during["finished_at"]) == ("in-progress", 1, None)
    assert (after["id"], after["kind"], after["queue"], after["reason"]) == (task_id, "work", "default", None)
    assert after["created_at"] <= after["started_at"] <= after["finished_at"]
    assert after["created_at"].endswith("Z")


def test_get_shows_what_is_due_later_as_pending(service: Program, module_database: str):
    with psycopg.connect(module_database, autocommit=True) as connection:
        made = connection.execute("select taskq.enqueue('work', '{}', due_at => now() + interval '1 hour')").fetchone()

    task = service.shown(made[0] if made else 0)

    assert (task["status"], task["attempt"], task["attempts"]) == ("pending", 0, [])


def test_get_shows_what_waits_for_its_retry_as_pending(service: Program):
    task_id = service.submit(do="retry", after_s=600)
    wait_until(lambda: service.shown(task_id)["last_error"])

    task = service.shown(task_id)

    assert (task["status"], task["attempt"], task["max_attempts"]) == ("pending", 1, 3)
    assert task["due_at"] > task["created_at"]
    assert [(each["attempt"], each["outcome"], each["error"]) for each in task["attempts"]] == [(1, "retry", "not yet")]


def test_get_shows_why_a_task_failed(service: Program):
    task = service.becomes(service.submit(do="fail"), "failed")

    assert (task["reason"], task["last_error"]) == ("permanent", "no such luck")


def test_head_is_get_without_a_body(service: Program):
    answer = service.call("HEAD", f"/task/{post(service, mail()).json['id']}")

    assert (answer.status, answer.body) == (200, b"")


BAD_ADDRESSES = {
    "unknown": ("GET", "/task/999999999", 404, "no_such_task"),
    "zero": ("GET", "/task/0", 404, "no_such_task"),
    "largest": ("GET", f"/task/{2**63 - 1}", 404, "no_such_task"),
    "too-large": ("GET", f"/task/{2**63}", 404, "no_such_task"),
    "far-too-large": ("GET", "/task/" + "9" * 30, 404, "no_such_task"),
    "endless": ("GET", "/task/" + "9" * 31, 400, "invalid_id"),
    "negative": ("GET", "/task/-1", 400, "invalid_id"),
    "plus": ("GET", "/task/+1", 400, "invalid_id"),
    "word": ("GET", "/task/one", 400, "invalid_id"),
    "float": ("GET", "/task/1.0", 400, "invalid_id"),
    "space": ("GET", "/task/1%20", 400, "invalid_id"),
    "nul": ("GET", "/task/1%00", 400, "invalid_id"),
    "fullwidth": ("GET", "/task/%EF%BC%91", 400, "invalid_id"),
    "sub": ("GET", "/task/1/x", 404, "no_such_route"),
    "nowhere": ("GET", "/nowhere", 404, "no_such_route"),
    "root-of-tasks": ("GET", "/task/", 405, "method_not_allowed"),
    "put": ("PUT", "/task/1", 405, "method_not_allowed"),
    "post-health": ("POST", "/health/live", 405, "method_not_allowed"),
    "mail-unknown": ("GET", "/inbox/999999999", 404, "no_such_mail"),
    "mail-too-large": ("GET", f"/inbox/{2**63}", 404, "no_such_mail"),
    "mail-word": ("GET", "/inbox/x", 400, "invalid_id"),
    "page-word": ("GET", "/inbox?limit=x", 400, "invalid_query"),
    "page-none": ("GET", "/inbox?limit=0", 400, "invalid_query"),
    "page-large": ("GET", "/inbox?limit=101", 400, "invalid_query"),
    "page-negative": ("GET", "/inbox?before=-1", 400, "invalid_query"),
    "page-too-large": ("GET", f"/inbox?before={2**63}", 400, "invalid_query"),
    "page-digits": ("GET", "/inbox?before=" + "9" * 5_000, 400, "invalid_query"),
}


@pytest.mark.parametrize(("method", "path", "status", "code"), BAD_ADDRESSES.values(), ids=BAD_ADDRESSES.keys())
def test_addresses_that_lead_nowhere_say_so(service: Program, method: str, path: str, status: int, code: str):
    is_problem(service.call(method, path), status, code)


def test_wrong_method_is_told_the_right_one(service: Program):
    assert service.call("PUT", "/task/").headers["Allow"] == "POST"
    assert service.call("POST", "/task/1").headers["Allow"] == "DELETE, GET, HEAD"


def test_inbox_shows_what_was_sent_newest_first(service: Program):
    ids = [post(service, mail(subject=f"Mail {n}")).json["id"] for n in range(3)]
    for task_id in ids:
        service.becomes(task_id, "Ok")

    page = service.call("GET", "/inbox?limit=2").json["mails"]
    rest = service.call("GET", f"/inbox?limit=100&before={page[-1]['id']}").json["mails"]

    assert [each["id"] for each in page + rest] == sorted((each["id"] for each in page + rest), reverse=True)
    sent = {each["task_id"]: each for each in page + rest}
    assert set(ids) <= set(sent)
    assert (sent[ids[1]]["to"], sent[ids[1]]["subject"], sent[ids[1]]["body"].strip()) == (
        "example@gmail.com",
        "Mail 1",
        "Test E-Mail Body",
    )


# -- health, and what it is like when it is bad


def test_health_says_that_all_is_well(service: Program):
    ready = service.call("GET", "/health/ready")

    assert service.call("GET", "/health/live").status == 200
    assert (ready.status, ready.json["status"], ready.json["listener"]) == (200, "ready", "up")
    assert ready.json["pid"] == service.process.pid
    assert ready.headers["Cache-Control"] == "no-store"


def test_database_away_is_a_503_that_says_when_to_try_again(database: str, postgres: str, tmp_path: Path):
    with (
        serving(tmp_path, *QUICK, database=database, environment=handlers(tmp_path)) as service,
        psycopg.connect(postgres, autocommit=True) as server,
    ):
        before = post(service, mail()).json["id"]
        name = urlsplit(database).path[1:]
        server.execute(f"alter database {name} allow_connections false")  # pyright: ignore[reportArgumentType]
        server.execute("select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = %s", (name,))

        away = post(service, mail())
        read = service.call("GET", f"/task/{before}")
        wait_until(lambda: service.call("GET", "/health/ready").status == 503)
        live = service.call("GET", "/health/live")
        server.execute(f"alter database {name} allow_connections true")  # pyright: ignore[reportArgumentType]
        wait_until(lambda: service.call("GET", "/health/ready").status == 200)
        back = post(service, mail())

        assert (away.status, int(away.headers["Retry-After"]) >= 1) == (503, True)
        assert (read.status, int(read.headers["Retry-After"]) >= 1) == (503, True)
        assert live.status == 200
        assert back.status == 201
        assert service.becomes(before, "Ok")["attempt"] == 1
        service.becomes(back.json["id"], "Ok")


def test_too_many_waiting_is_a_503_that_says_when_to_try_again(database: str, tmp_path: Path):
    flags = (*QUICK, "--intake-waiting-max", "2")
    with (
        serving(tmp_path, *flags, database=database) as service,
        psycopg.connect(database) as other,
        ThreadPoolExecutor(8) as callers,
    ):
        other.execute("lock table taskq.task")
        calls = [callers.submit(post, service, mail()) for _ in range(8)]
        wait_until(lambda: sum(call.done() for call in calls) == 6)
        other.rollback()
        answers = [call.result() for call in calls]

    full = [answer for answer in answers if answer.status == 503]
    assert [answer.status for answer in answers].count(201) == 2
    assert [(answer.json["code"], answer.headers["Retry-After"]) for answer in full] == [("intake_full", "1")] * 6


def test_database_that_says_nothing_is_a_503_before_its_time_out(database: str, tmp_path: Path):
    flags = (*QUICK, "--submit-timeout-s", "0.3")
    with serving(tmp_path, *flags, database=database) as service, psycopg.connect(database) as other:
        other.execute("lock table taskq.task")
        slow = [post(service, mail()) for _ in range(2)]
        live = service.call("GET", "/health/live")
        other.rollback()
        wait_until(lambda: len(service.call("GET", "/inbox").json["mails"]) == 2)

    assert live.status == 200
    for answer in slow:
        is_problem(answer, 503, "store_slow")
        assert "within 0.3 s: it may be stored" in answer.json["detail"]
        assert int(answer.headers["Retry-After"]) >= 1


def test_client_that_hangs_up_loses_nothing(database: str, tmp_path: Path):
    with serving(tmp_path, *QUICK, database=database) as service, psycopg.connect(database) as other:
        place = urlsplit(service.url)
        other.execute("lock table taskq.task")
        request = b"POST /task/ HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(mail()), mail())
        for _ in range(5):
            with socket.create_connection((place.hostname, place.port), timeout=10) as connection:
                connection.sendall(request)
        other.rollback()

        wait_until(lambda: len(service.call("GET", "/inbox").json["mails"]) == 5)
