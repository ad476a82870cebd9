"""Several relays: who is asked next, and when nobody else may be asked."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace

import pytest
from smtp_script import Action, Drop, Reset, ScriptedServer, envelope, scripted

from taskq.errors import Snooze, TaskError
from taskq.mail.breaker import Breaker
from taskq.mail.envelope import Envelope
from taskq.mail.inbox import CapturedMail
from taskq.mail.routes import Routes, transport_from_url

Script = Mapping[str, Action | list[Action]]


async def capture(_mail: CapturedMail) -> None: ...


@asynccontextmanager
async def two_relays(
    script: Script | None = None, other: Script | None = None, *, user: str = "", **options: object
) -> AsyncIterator[tuple[Routes, ScriptedServer, ScriptedServer]]:
    """A relay that follows the script, and one for when it can't be used."""
    async with scripted(script, **options) as main, scripted(other) as backup:
        first = f"smtp://{user}127.0.0.1:{main.port}?name=main"
        routes = transport_from_url(f"{first} {backup.url}?name=backup&order=2", capture)
        assert isinstance(routes, Routes)
        yield routes, main, backup
        await routes.close()


async def send(routes: Routes, mail: Envelope | None = None) -> Snooze | TaskError | str:
    """The relay that took the mail, or what the task is told."""
    try:
        return (await routes.send(mail or envelope(), nullcontext)).relay
    except (Snooze, TaskError) as error:
        return error


def mend(routes: Routes) -> None:
    """Let every relay be asked again at once."""
    for relay in routes._relays.values():
        relay._breaker = Breaker()


OF_THE_RELAY: list[tuple[str, str, Action]] = [
    ("banner 421", "banner", "421 4.3.2 busy"),
    ("banner dropped", "banner", Drop()),
    ("EHLO reset", "ehlo", Reset()),
    ("MAIL 421", "mail", "421 4.3.2 shutting down"),
    ("MAIL dropped", "mail", Drop()),
    ("MAIL 454 throttling", "mail", "454 4.7.0 throttling"),
    ("MAIL 530", "mail", "530 5.7.0 authenticate"),
    ("RCPT 421", "rcpt", "421 4.3.2 shutting down"),
    ("DATA 421", "data", "421 4.3.2 shutting down"),
    ("MAIL 552: its size limit", "mail", "552 5.3.4 too big"),
]


@pytest.mark.parametrize(("phase", "action"), [row[1:] for row in OF_THE_RELAY], ids=[row[0] for row in OF_THE_RELAY])
async def test_a_failure_of_the_relay_before_the_dot_leads_to_the_next(phase: str, action: Action) -> None:
    async with two_relays({phase: action}) as (routes, main, backup):
        notes: list[Mapping[str, object]] = []
        assert await send(routes, replace(envelope(), note=notes.append)) == backup.url

    assert (len(main.mails), len(backup.mails)) == (0, 1)
    assert [note["relay"] for note in notes] == ["main", "backup"]
    assert [note["ruling"] == "accepted" for note in notes] == [False, True]


NOT_ELSEWHERE: list[tuple[str, str, Action]] = [
    ("MAIL 550 sender not authorised", "mail", "550 5.7.1 not you"),
    ("MAIL 450", "mail", "450 4.1.8 odd"),
    ("RCPT 550", "rcpt", "550 5.1.1 nobody"),
    ("RCPT 450 greylisted", "rcpt", "450 4.2.0 greylisted"),
    ("RCPT dropped", "rcpt", Drop()),
    ("dot 451", "dot", "451 4.3.0 later"),
    ("dot 451 rate", "dot", "451 4.7.1 rate exceeded"),
    ("dot 552", "dot", "552 5.3.4 too big"),
    ("dot EOF", "dot", Drop()),
    ("dot garbage", "dot", b"\x00\r\n"),
]


@pytest.mark.parametrize(("phase", "action"), [row[1:] for row in NOT_ELSEWHERE], ids=[row[0] for row in NOT_ELSEWHERE])
async def test_a_failure_of_the_mail_or_after_the_dot_leads_nowhere_else(phase: str, action: Action) -> None:
    async with two_relays({phase: action}) as (routes, _, backup):
        assert isinstance(await send(routes), Snooze | TaskError)

    assert backup.connections_total == 0


async def test_a_wrong_password_leads_to_the_next() -> None:
    async with two_relays({"auth": "535 5.7.8 bad"}, user="u:secret@", extensions=("AUTH PLAIN",)) as (
        routes,
        main,
        backup,
    ):
        assert await send(routes) == backup.url
        assert await send(routes) == backup.url

    assert main.counts["auth"] == 1  # the breaker remembers


async def test_a_relay_that_is_too_small_leads_to_a_larger_one() -> None:
    async with two_relays(extensions=("SIZE 1000",)) as (routes, main, backup):
        assert await send(routes, envelope("x" * 2_000)) == backup.url
        assert await send(routes) == main.url

    assert len(backup.mails) == 1


async def test_an_international_address_leads_to_a_relay_that_takes_it() -> None:
    async with two_relays() as (routes, _, backup):
        backup.extensions = ("SMTPUTF8", "8BITMIME")
        assert await send(routes, envelope(recipient="grüße@ok.test")) == backup.url


async def test_a_mail_that_is_too_large_for_all_is_failed() -> None:
    async with two_relays(extensions=("SIZE 1000",)) as (routes, _, backup):
        backup.extensions = ("SIZE 1000",)
        error = await send(routes, envelope("x" * 2_000))

    assert isinstance(error, TaskError)
    assert not error.retryable


async def test_a_mail_that_only_the_relay_that_is_down_could_take_waits_for_it() -> None:
    async with two_relays({"banner": Drop()}) as (routes, _, backup):
        backup.extensions = ("SIZE 1000",)
        error = await send(routes, envelope("x" * 2_000))

    assert isinstance(error, Snooze)


async def test_when_no_relay_works_the_mail_is_snoozed_until_the_first_is_tried_again() -> None:
    async with two_relays({"banner": "554 no"}, {"banner": "421 4.3.2 busy"}) as (routes, _, _backup):
        error = await send(routes)

    assert isinstance(error, Snooze)
    assert error.delay_s < 3.0


async def test_a_mail_that_names_its_relay_is_not_sent_over_another() -> None:
    async with two_relays({"banner": Drop()}) as (routes, _, backup):
        assert isinstance(await send(routes, replace(envelope(), relay="main")), Snooze)
        assert await send(routes, replace(envelope(), relay="backup")) == backup.url

    assert len(backup.mails) == 1


async def test_a_mail_that_may_have_been_taken_goes_to_the_same_relay_again() -> None:
    """It was taken over by the backup, which is silent after the dot: main, back again, must not send it too."""
    script: dict[str, Action | list[Action]] = {"banner": [Drop(), "220 back"]}
    async with two_relays(script, {"dot": [Drop(), "250 ok"]}) as (routes, main, backup):
        first = await send(routes)
        mend(routes)
        assert isinstance(first, TaskError)
        assert first.reason == "outcome_unknown"

        assert await send(routes) == backup.url
        assert await send(routes) == main.url  # what happened is over


async def test_a_mail_that_may_have_been_taken_waits_for_its_relay() -> None:
    script: dict[str, Action | list[Action]] = {"dot": [Drop(), "250 ok"], "banner": ["220 hi", Drop(), "220 hi"]}
    async with two_relays(script) as (routes, main, backup):
        assert isinstance(await send(routes), TaskError)
        assert isinstance(await send(routes), Snooze)
        other = await send(routes, replace(envelope(), task_id=8))
        mend(routes)
        assert await send(routes) == main.url

    assert other == backup.url
    assert len(backup.mails) == 1
