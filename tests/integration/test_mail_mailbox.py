"""Waiting for a mail: woken by what this process and others capture, never by asking again and again."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from rig import running, says

from taskq.config import Settings
from taskq.errors import StoreRefused, StoreUnavailable, TooManyWaiters
from taskq.mail import mailbox as module
from taskq.mail.mailbox import CHANNEL, Mailbox
from taskq.mailstore import CapturedMail, MailStore, StoredMail, Wanted

HANG_S = 60.0  # of a wait that is over in a moment, or never


def mail(to: str = "ada@x.test", subject: str = "Hi", message: bytes = b"mail") -> CapturedMail:
    return CapturedMail(None, "a@x.test", to, subject, message)


class Counting(MailStore):
    """Counts how often those who wait are looked for, and between which ids."""

    def __init__(self, mails: MailStore) -> None:
        super().__init__(mails._captures, mails._reads)
        self.looks: list[tuple[int, int]] = []
        self.broken = 0

    async def awaited(self, waiting: Any, low: int, high: int) -> list[tuple[int, int]]:
        self.looks.append((low, high))
        if self.broken:
            self.broken -= 1
            raise StoreUnavailable("gone")
        return await super().awaited(waiting, low, high)


@pytest.fixture
def store(mails: MailStore) -> Counting:
    return Counting(mails)


@contextlib.asynccontextmanager
async def open_mailbox(store: MailStore, **options: Any) -> AsyncIterator[tuple[Mailbox, list[tuple[str, str]]]]:
    told: list[tuple[str, str]] = []
    mailbox = Mailbox(
        store,
        waiters_max=options.get("waiters_max", 10),
        tell_others=lambda channel, text: told.append((channel, text)),
    )
    async with asyncio.TaskGroup() as group:
        runner = group.create_task(mailbox.run())
        yield mailbox, told
        runner.cancel()


async def placed(mailbox: Mailbox, store: Counting, eventually: Any, count: int = 1) -> None:
    """Wait until so many callers wait and have looked once."""
    await eventually(says(lambda: mailbox.waiting == count and len(store.looks) >= count))


async def test_mail_that_is_there_is_returned_at_once(store: Counting):
    async with open_mailbox(store) as (mailbox, _):
        await mailbox.capture(mail("bob@x.test"), mail(), mail())

        found = await mailbox.wait(Wanted(recipient="ada@x.test"), after=0, timeout_s=HANG_S)
        assert found is not None
        second = await mailbox.wait(Wanted(recipient="ada@x.test"), after=found.id, timeout_s=HANG_S)

    assert second is not None
    assert second.id > found.id


async def test_mail_wakes_exactly_those_it_is_for(store: Counting, eventually: Callable[..., Any]):
    async with open_mailbox(store) as (mailbox, _), asyncio.TaskGroup() as group:
        ada = group.create_task(mailbox.wait(Wanted(recipient="ada@x.test"), after=0, timeout_s=HANG_S))
        again = group.create_task(mailbox.wait(Wanted(subject="hi"), after=0, timeout_s=HANG_S))
        bob = group.create_task(mailbox.wait(Wanted(recipient="bob@x.test"), after=0, timeout_s=HANG_S))
        await placed(mailbox, store, eventually, 3)

        await mailbox.capture(mail())

        assert (await ada) == (await again) != None  # noqa: E711
        assert not bob.done()
        await mailbox.capture(mail("bob@x.test", "Ho"))
        found = await bob

    assert isinstance(found, StoredMail)
    assert found.subject == "Ho"


async def test_one_look_at_the_new_ids_serves_all_who_wait(store: Counting, eventually: Callable[..., Any]):
    async with open_mailbox(store, waiters_max=20) as (mailbox, _), asyncio.TaskGroup() as group:
        await mailbox.capture(*[mail("old@x.test")] * 5)
        waits = [
            group.create_task(mailbox.wait(Wanted(recipient=f"{n}@x.test"), after=0, timeout_s=HANG_S))
            for n in range(20)
        ]
        await placed(mailbox, store, eventually, 20)
        store.looks.clear()

        await mailbox.capture(*[mail(f"{n}@x.test") for n in range(20)])
        found = [await wait for wait in waits]

    ids = [each.id for each in found if each is not None]
    assert len(ids) == 20
    assert store.looks == [(min(ids), max(ids))]


async def test_nobody_who_waits_costs_no_look(store: Counting):
    async with open_mailbox(store) as (mailbox, _):
        for _ in range(5):
            await mailbox.capture(mail())

    assert store.looks == []


async def test_wait_ends_with_none_when_its_time_is_over(store: Counting):
    async with open_mailbox(store) as (mailbox, _):
        await mailbox.capture(mail("bob@x.test"))

        assert await mailbox.wait(Wanted(recipient="ada@x.test"), after=0, timeout_s=0.05) is None
        assert mailbox.waiting == 0


async def test_mail_whose_notification_was_lost_is_found_when_time_is_over(
    store: Counting, eventually: Callable[..., Any]
):
    async with open_mailbox(store) as (mailbox, _), asyncio.TaskGroup() as group:
        waiting = group.create_task(mailbox.wait(Wanted(), after=0, timeout_s=0.5))
        await placed(mailbox, store, eventually)

        await store.capture([mail()])  # another instance, of which nothing is heard

        assert (await waiting) is not None


async def test_mail_of_another_instance_wakes_when_heard_of(store: Counting, eventually: Callable[..., Any]):
    async with open_mailbox(store) as (mailbox, _), asyncio.TaskGroup() as group:
        waiting = group.create_task(mailbox.wait(Wanted(), after=0, timeout_s=HANG_S))
        await placed(mailbox, store, eventually)
        low, high = await store.capture([mail()])

        mailbox.heard(f"{low} {high}")

        assert (await waiting) is not None


@pytest.mark.parametrize("payload", ["", "x", "1", "1 2 3", "-1 5", "²  3"])
async def test_unclear_news_make_it_look_at_everything(store: Counting, eventually: Callable[..., Any], payload: str):
    async with open_mailbox(store) as (mailbox, _), asyncio.TaskGroup() as group:
        waiting = group.create_task(mailbox.wait(Wanted(), after=0, timeout_s=HANG_S))
        await placed(mailbox, store, eventually)
        await store.capture([mail()])

        mailbox.heard(payload)

        assert (await waiting) is not None


async def test_look_that_fails_is_repeated(
    store: Counting, eventually: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "LOOK_AGAIN_S", 0.01)
    async with open_mailbox(store) as (mailbox, _), asyncio.TaskGroup() as group:
        waiting = group.create_task(mailbox.wait(Wanted(), after=0, timeout_s=HANG_S))
        await placed(mailbox, store, eventually)
        store.broken = 3

        await mailbox.capture(mail())

        assert (await waiting) is not None


async def test_waiters_are_bounded_and_freed(store: Counting, eventually: Callable[..., Any]):
    async with open_mailbox(store, waiters_max=1) as (mailbox, _), asyncio.TaskGroup() as group:
        waiting = group.create_task(mailbox.wait(Wanted(), after=0, timeout_s=HANG_S))
        await placed(mailbox, store, eventually)

        with pytest.raises(TooManyWaiters, match="1 callers wait for mails already"):
            await mailbox.wait(Wanted(), after=0, timeout_s=HANG_S)
        waiting.cancel()
        await eventually(says(lambda: mailbox.waiting == 0))

        assert await mailbox.wait(Wanted(), after=0, timeout_s=0) is None


async def test_wait_ends_when_the_caller_is_gone(
    store: Counting, eventually: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "ALIVE_EVERY_S", 0.01)
    there = True
    async with open_mailbox(store) as (mailbox, _), asyncio.TaskGroup() as group:
        waiting = group.create_task(mailbox.wait(Wanted(), after=0, timeout_s=HANG_S, alive=lambda: there))
        await placed(mailbox, store, eventually)

        there = False

        assert await waiting is None
        assert mailbox.waiting == 0


async def test_closing_sends_those_who_wait_away(store: Counting, eventually: Callable[..., Any]):
    async with open_mailbox(store) as (mailbox, _), asyncio.TaskGroup() as group:
        waiting = group.create_task(mailbox.wait(Wanted(), after=0, timeout_s=HANG_S))
        await placed(mailbox, store, eventually)

        mailbox.close()

        assert await waiting is None


async def test_large_mails_are_stored_in_parts(store: Counting, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "BATCH_BYTES_MAX", 25)
    async with open_mailbox(store) as (mailbox, told):
        await mailbox.capture(*[mail(message=b"x" * 10)] * 5, mail(message=b"y" * 100))

    assert [(channel, text.split()) for channel, text in told] == [
        (CHANNEL, ["1", "2"]), (CHANNEL, ["3", "4"]), (CHANNEL, ["5", "5"]), (CHANNEL, ["6", "6"]),
    ]  # fmt: skip


async def test_mails_that_cannot_be_stored_are_told_to_their_caller(store: Counting):
    async with open_mailbox(store) as (mailbox, told):
        with pytest.raises(StoreRefused):
            await mailbox.capture(mail(subject="a\0b"))

    assert told == []


async def test_capture_of_one_instance_wakes_who_waits_on_another(settings: Settings, eventually: Callable[..., Any]):
    async with running(settings) as one, running(settings) as other, asyncio.TaskGroup() as group:
        await eventually(says(lambda: one.listener.peers == other.listener.peers == 1))
        waiting = group.create_task(
            one.mailroom.mailbox.wait(Wanted(recipient="ada@x.test"), after=0, timeout_s=HANG_S)
        )
        await eventually(says(lambda: one.mailroom.mailbox.waiting == 1))
        began = asyncio.get_running_loop().time()

        await other.mailroom.mailbox.capture(mail())

        assert (await waiting) is not None
        assert asyncio.get_running_loop().time() - began < HANG_S / 2
