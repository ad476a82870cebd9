from collections import Counter

import pytest

from taskq.errors import ConfigError, Snooze, TaskError
from taskq.mail.consequence import Declined, kindest
from taskq.mail.envelope import Envelope
from taskq.mail.inbox import CapturedMail
from taskq.mail.relay import Relay
from taskq.mail.routes import Routes, described, transport_from_url


async def capture(_mail: CapturedMail) -> None: ...


def routes_of(urls: str) -> Routes:
    transport = transport_from_url(urls, capture)
    assert isinstance(transport, Routes)
    return transport


def asked(routes: Routes, task_id: int = 1, sender: str = "a@x.test", relay: str | None = None) -> list[str]:
    envelope = Envelope(sender, "b@x.test", b"m\r\n", False, task_id, relay=relay)
    return [each.name for each in routes.candidates(envelope)]


async def test_a_mail_that_names_a_relay_goes_there_and_nowhere_else() -> None:
    routes = routes_of("smtp://a.test?name=main smtp://b.test?name=bulk&from=x.test")

    assert asked(routes, relay="main") == ["main"]
    assert routes.names == ("main", "bulk")


@pytest.mark.parametrize("urls", ["smtp://a.test?name=main smtp://b.test?name=bulk", "smtp://a.test?name=main"])
async def test_a_relay_that_is_not_there_is_an_error_that_names_those_that_are(urls: str) -> None:
    transport = transport_from_url(urls, capture)

    with pytest.raises(TaskError, match=r"no relay is named 'main2'.* main") as caught:
        await transport.send(Envelope("a@x.test", "b@x.test", b"m\r\n", False, 1, relay="main2"), None)  # type: ignore[arg-type]

    assert caught.value.retryable  # settings can be mended
    await transport.close()


async def test_a_sender_decides_by_its_domain() -> None:
    routes = routes_of("smtp://a.test smtp://b.test?from=x.test,y.test smtp://c.test?from=y.test")

    assert asked(routes, sender="a@x.test") == ["b.test"]
    assert sorted(asked(routes, sender="a@y.test")) == ["b.test", "c.test"]
    assert asked(routes, sender="a@z.test") == ["a.test"]


async def test_a_sender_that_no_relay_takes_is_an_error() -> None:
    with pytest.raises(TaskError, match=r"mails from 'z\.test'"):
        asked(routes_of("smtp://b.test?from=x.test"), sender="a@z.test")


async def test_relays_are_asked_by_their_order() -> None:
    routes = routes_of("smtp://c.test?order=3 smtp://a.test smtp://b.test?order=2")

    assert {tuple(asked(routes, number)) for number in range(100)} == {("a.test", "b.test", "c.test")}


async def test_relays_of_equal_order_share_the_mails_by_weight() -> None:
    routes = routes_of("smtp://a.test?weight=3 smtp://b.test smtp://c.test?order=2")

    first = Counter(asked(routes, number)[0] for number in range(4_000))

    assert first["c.test"] == 0
    assert first["a.test"] == pytest.approx(3_000, abs=150)


async def test_a_mail_meets_the_same_relay_on_every_instance_and_with_another_relay_added() -> None:
    one = routes_of("smtp://a.test smtp://b.test")
    two = routes_of("smtp://b.test smtp://a.test")
    more = routes_of("smtp://a.test smtp://b.test smtp://c.test")

    for number in range(200):
        assert asked(one, number) == asked(two, number)
        assert [name for name in asked(more, number) if name != "c.test"] == asked(one, number)


async def test_one_relay_without_domains_needs_no_routes() -> None:
    transport = transport_from_url(" smtp://u:secret@a.test?rate=5/s ", capture)

    assert isinstance(transport, Relay)
    await transport.close()


def test_no_relay_is_no_setting() -> None:
    with pytest.raises(ConfigError, match="names no relay"):
        transport_from_url(",", capture)


def test_a_banner_shows_relays_without_their_passwords() -> None:
    assert described("smtp://u:secret@a.test smtps://b.test?name=x") == "smtp://u:***@a.test:587, smtps://b.test:465"


def test_what_a_mail_is_told_after_several_relays_is_its_best_chance() -> None:
    never = Declined(TaskError("too big", retryable=False), elsewhere=True)
    later = Declined(TaskError("put off"), elsewhere=True)
    soon, late = (Declined(Snooze("down", delay_s=delay_s), elsewhere=True) for delay_s in (3.0, 300.0))

    assert kindest([never, late, soon, later]) is soon
    assert kindest([never, later]) is later
    assert kindest([never]) is never
