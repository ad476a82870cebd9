"""The pure parts of bundles: what a kind makes of a payload, what a group comes to, what bodies may take."""

import asyncio
import json
from typing import Any

import pytest

from taskq import Blob, Bundle, NewTask
from taskq.budget import Budget
from taskq.errors import IntakeFull, InvalidPayload
from taskq.kinds import registry as registry_module
from taskq.kinds.registry import Kind, Registry, make_kind
from taskq.task import RetryPolicy, Status
from taskq.web import body as body_module
from taskq.web.api import Api
from taskq.web.app import Site
from taskq.web.group import status_of

PENDING, RUNNING, OK, FAILED, CANCELLED = Status


def made(count: int, payload: str = "{}") -> Bundle:
    return Bundle([NewTask("work", payload)] * count, ["x"] * count, [])


def kind_of(bundle: Any) -> Kind:
    async def work(_payload: dict[str, int]) -> None:
        """Do nothing."""

    return make_kind("work", work, RetryPolicy(), 1.0, max_attempts=1, ack_each=False, bundle=bundle)


# -- kinds


def test_blob_is_named_by_what_it_holds():
    assert Blob(b"abc").digest == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_kind_asks_what_a_checked_payload_becomes():
    seen: list[dict[str, int]] = []
    bundle = made(2)

    def becomes(payload: dict[str, int]) -> Bundle:
        seen.append(payload)
        return bundle

    assert kind_of(becomes).prepare(b'{"n": 5}') is bundle
    assert seen == [{"n": 5}]


@pytest.mark.parametrize("bundle", [None, lambda _payload: None], ids=["no bundles", "not this time"])
def test_kind_makes_a_plain_row_where_nothing_else_is_asked_for(bundle: Any):
    kind = kind_of(bundle)

    assert kind.prepare(b'{ "n": 5 }') == kind.check(b'{ "n": 5 }') == '{"n":5}'


def test_kind_asks_nothing_about_a_payload_that_does_not_fit():
    def never(_payload: Any) -> None:
        raise AssertionError

    with pytest.raises(InvalidPayload, match="n"):
        kind_of(never).prepare(b'{"n": "five"}')


@pytest.mark.parametrize("count", [0, 1_001])
def test_kind_refuses_a_bundle_of_no_tasks_or_too_many(count: int):
    with pytest.raises(InvalidPayload, match=rf"makes {count:,} tasks: must be 1 to 1,000"):
        kind_of(lambda _payload: made(count)).prepare(b"{}")


def test_kind_refuses_payloads_too_large_for_the_queue(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(registry_module, "PAYLOAD_CHARS_MAX", 20)
    monkeypatch.setattr(registry_module, "BUNDLE_CHARS_MAX", 50)

    assert kind_of(lambda _payload: made(2, "1" * 20)).prepare(b"{}")
    for bundle, words in (
        (made(1, "1" * 21), "takes 21 characters in the queue: at most 20"),
        (made(3, "1" * 20), "take 60 characters in the queue: at most 50"),
        (None, "takes 30 characters in the queue: at most 20"),
    ):
        with pytest.raises(InvalidPayload, match=words):
            kind_of(lambda _payload, bundle=bundle: bundle).prepare(json.dumps({"n" * 24: 1}).encode())


@pytest.mark.parametrize(
    "beyond",
    [
        {"due_at": 1},
        {"expires_at": 1},
        {"tags": ("a",)},
        {"metadata": "{}"},
        {"blobs": ("a",)},
        {"sensitive": True},
    ],
    ids=lambda beyond: next(iter(beyond)),
)
def test_task_with_anything_beyond_is_not_plain(beyond: dict[str, Any]):
    assert NewTask("work", "{}", "queue", 5, 3).plain
    assert not NewTask("work", "{}", **beyond).plain


# -- groups


@pytest.mark.parametrize(
    ("statuses", "status"),
    [
        ([OK, OK], OK),
        ([OK, PENDING, FAILED], PENDING),
        ([PENDING, RUNNING, FAILED], RUNNING),
        ([OK, RUNNING], RUNNING),
        ([OK, FAILED, CANCELLED], FAILED),
        ([OK, CANCELLED], CANCELLED),
        ([FAILED], FAILED),
    ],
)
def test_status_of_a_group(statuses: list[Status], status: Status):
    assert status_of(statuses) is status
    assert status_of(statuses[::-1]) is status


# -- bodies


def test_budget_holds_what_fits_and_gives_it_back():
    budget = Budget(100)

    with budget.hold(60):
        with budget.hold(40), pytest.raises(IntakeFull, match="100 of 100 bytes"), budget.hold(1):
            pass
        with pytest.raises(IntakeFull), budget.hold(41):
            pass
        assert budget.held == 60

    assert budget.held == 0


def test_budget_gives_back_what_a_failure_held():
    budget = Budget(100)

    with pytest.raises(ZeroDivisionError), budget.hold(60):
        raise ZeroDivisionError

    assert budget.held == 0


async def test_body_that_does_not_arrive_in_time_gives_its_room_back(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(body_module, "BODY_WAIT_S", 0.05)
    budget = Budget(1_000)
    api = Api(Registry(), None, None, budget, wait_s_max=1, admit=None)  # pyright: ignore[reportArgumentType] - never reached
    site = Site([api], lambda: (True, {}), body_bytes_max=1_000)
    host, port = (await site.serve("127.0.0.1", 0)).removeprefix("http://").split(":")

    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /task/ HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n{")
    answer = await reader.readuntil(b"}")

    writer.close()
    await site.close()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"body_too_slow"' in answer
    assert budget.held == 0
