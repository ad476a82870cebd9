"""Captured mails in PostgreSQL: what is stored, what a search finds, what is forgotten."""

import json
from typing import Any

import pytest
from rig import Connection

from taskq import mailstore as module
from taskq.errors import StoreRefused
from taskq.mailstore import CapturedMail, MailStore, Wanted

LAST = 2**63 - 1


def mail(task_id: int | None = 1, to: str = "to@b.test", subject: str = "Hi", **changes: Any) -> CapturedMail:
    return CapturedMail(task_id, changes.get("sender", "from@a.test"), to, subject, changes.get("message", b"mail"))


async def tasks_found(mails: MailStore, *, before: int = LAST, limit: int = 10, **wanted: Any) -> list[int | None]:
    return [each.task_id for each in await mails.search(Wanted(**wanted), before=before, limit=limit)]


async def test_capture_keeps_a_mail_as_it_is(mails: MailStore):
    octets = bytes(range(256))

    low, high = await mails.capture([mail(7, message=octets), mail(None, "", "grüße")])

    stored = await mails.mail(low)
    other = await mails.mail(high)
    assert stored is not None
    assert other is not None
    assert (stored.task_id, stored.sender, stored.recipient, stored.subject, stored.message) == (
        7, "from@a.test", "to@b.test", "Hi", octets,
    )  # fmt: skip
    assert (other.task_id, other.recipient, other.subject) == (None, "", "grüße")
    assert await mails.mail(high + 1) is None


async def test_capture_of_a_batch_is_all_or_nothing(mails: MailStore):
    with pytest.raises(StoreRefused):
        await mails.capture([mail(), mail(subject="a\0b")])

    assert await tasks_found(mails) == []


async def test_search_goes_from_the_newest_page_by_page(mails: MailStore):
    await mails.capture([mail(n) for n in (7, 8, 9)])

    page = await mails.search(Wanted(), before=LAST, limit=2)

    assert [each.task_id for each in page] == [9, 8]
    assert await tasks_found(mails, before=page[-1].id) == [7]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({}, [4, 3, 2, 1]),
        ({"recipient": "ADA@x.test"}, [2, 1]),
        ({"recipient": "da@x.test"}, []),
        ({"sender": "Shop@x.test"}, [3]),
        ({"subject": "ORDER"}, [3, 1]),
        ({"subject": "%"}, [4]),
        ({"subject": "üBER"}, [4]),  # beyond ASCII, case is what the locale of the database says
        ({"task_id": 2}, [2]),
        ({"recipient": "ada@x.test", "subject": "order"}, [1]),
        ({"recipient": "ada@x.test", "task_id": 3}, []),
    ],
)
async def test_search_finds_what_fits_every_filter(mails: MailStore, wanted: dict[str, Any], found: list[int]):
    await mails.capture(
        [
            mail(1, "ada@x.test", "Your order 12"),
            mail(2, "Ada@x.test", "Welcome"),
            mail(3, "bob@x.test", "order", sender="shop@x.test"),
            mail(4, "bob@x.test", "10 % Rabatt über alles"),
        ]
    )

    assert await tasks_found(mails, **wanted) == found


async def test_search_reads_a_bounded_number_of_bytes(mails: MailStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "PAGE_BYTES_MAX", 25)
    await mails.capture([mail(n, message=b"x" * 10) for n in range(5)])

    first = await mails.search(Wanted(), before=LAST, limit=10)

    assert [each.task_id for each in first] == [4, 3, 2]
    assert await tasks_found(mails, before=first[-1].id) == [1, 0]


async def test_search_shows_a_mail_that_is_larger_than_a_page(mails: MailStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "PAGE_BYTES_MAX", 5)
    await mails.capture([mail(n, message=b"x" * 10) for n in range(2)])

    assert await tasks_found(mails) == [1]


async def test_awaited_is_the_first_that_fits_for_each(mails: MailStore):
    low, _ = await mails.capture([mail(n, "ada@x.test", f"Mail {n}") for n in range(4)])
    ada = Wanted(recipient="ADA@x.test")

    found = await mails.awaited(
        [(10, 0, ada), (11, low, ada), (12, 0, Wanted(subject="mail 3")), (13, 0, Wanted(task_id=9))], 0, LAST
    )

    assert sorted(found) == [(10, low), (11, low + 1), (12, low + 3)]
    assert await mails.awaited([(10, 0, ada)], low + 2, low + 2) == [(10, low + 2)]


async def test_recent_counts_all_and_shows_the_newest(mails: MailStore):
    low, high = await mails.capture([mail(n, subject=f"Mail {n}") for n in range(4)])

    assert await mails.recent(after=low, limit=2) == (
        3,
        [(high, "to@b.test", "Mail 3"), (high - 1, "to@b.test", "Mail 2")],
    )
    assert await mails.recent(after=high, limit=2) == (0, [])


async def test_mails_can_be_forgotten_one_by_one_and_all_at_once(mails: MailStore):
    low, _ = await mails.capture([mail(n) for n in range(4)])

    assert (await mails.discard(low), await mails.discard(low)) == (True, False)
    assert await tasks_found(mails) == [3, 2, 1]
    assert (await mails.clear(), await mails.clear()) == (3, 0)


async def test_prune_keeps_no_mail_longer_than_its_days(mails: MailStore, connection: Connection):
    await mails.capture([mail(n) for n in range(3)])
    await connection.execute("update taskq.inbox set captured_at = now() - interval '8 days' where task_id = 1")

    await mails.prune(keep=100, content_days=7)

    assert [tuple(each) for each in await connection.fetch("select task_id from taskq.inbox order by 1")] == [
        (0,),
        (2,),
    ]


async def test_prune_keeps_the_newest(mails: MailStore):
    await mails.capture([mail(n) for n in range(5)])

    await mails.prune(keep=2, content_days=7)

    assert await tasks_found(mails) == [4, 3]


async def test_wait_for_mail_reads_only_the_ids_that_are_new(mails: MailStore, connection: Connection):
    await mails.capture([mail(n) for n in range(2_000)])
    low, high = await mails.capture([mail()])
    await connection.execute("vacuum analyze taskq.inbox")
    statement = mails._sql["awaited"]
    values = {"numbers": [1], "afters": [0], "recipients": ["x@y.test"], "senders": [None], "subjects": [None]}
    values |= {"task_ids": [None], "low": low, "high": high}  # pyright: ignore[reportAssignmentType]

    await connection.execute("set enable_seqscan = off")  # as every session of the process
    plan = await connection.fetchval(
        "explain (analyze, buffers, format json) " + statement.text, *[values[name] for name in statement.parameters]
    )

    top = json.loads(plan)[0]["Plan"]
    assert top["Shared Hit Blocks"] + top["Shared Read Blocks"] <= 10
