import pytest

from taskq.errors import ConfigError
from taskq.mail.options import RelayOptions, parse_relays
from taskq.mail.pool import PoolLimits
from taskq.mail.presets import PRESETS
from taskq.mail.server import Tls

DEFAULTS = PoolLimits()


def options(url: str, defaults: PoolLimits = DEFAULTS) -> RelayOptions:
    ((_, found),) = parse_relays(url, defaults)
    return found


@pytest.mark.parametrize("between", [" ", ",", ", ", "\n  ", "  ,smtp://c.test:25 "])
def test_relays_stand_beside_each_other(between: str) -> None:
    found = parse_relays(f" smtp://u:p,a@a.test?name=one{between}smtps://b.test?name=two ", DEFAULTS)

    assert [found[0][0].host, found[-1][0].host] == ["a.test", "b.test"]
    assert found[0][0].password == "p,a"  # noqa: S105
    assert [found[0][1].name, found[-1][1].name] == ["one", "two"]
    assert found[-1][0].tls is Tls.IMPLICIT


def test_every_option_is_read() -> None:
    found = options(
        "smtp://a.test?name=main&connections=5&messages=20&idle_s=3.5&age_s=60&rate=30/min&order=2&weight=3"
        "&from=example.com,b%C3%BCcher.example&from=Example.NET&probe_s=0.2&tls=off"
    )

    assert (found.name, found.order, found.weight, found.probe_s) == ("main", 2, 3, 0.2)
    assert (found.pool.connections_max, found.pool.messages_max) == (5, 20)
    assert (found.pool.idle_s, found.pool.age_s) == (3.5, 60.0)
    assert found.rate_per_s == 0.5
    assert found.from_domains == ("example.com", "xn--bcher-kva.example", "example.net")


def test_a_relay_without_options_is_as_the_settings_say() -> None:
    found = options("smtp://a.test", PoolLimits(connections_max=7))

    assert found == RelayOptions("a.test", PoolLimits(connections_max=7))


@pytest.mark.parametrize(("rate", "per_s"), [("14/s", 14.0), ("0.5/s", 0.5), ("600/min", 10.0), ("36/h", 0.01)])
def test_a_rate_is_mails_in_a_span(rate: str, per_s: float) -> None:
    assert options(f"smtp://a.test?rate={rate}").rate_per_s == pytest.approx(per_s)


@pytest.mark.parametrize(
    ("query", "fact", "remedy"),
    [
        ("conections=3", "'conections'", "did you mean connections?"),
        ("wieght=3", "'wieght'", "did you mean weight?"),
        ("zzz=3", "'zzz'", "the known ones are"),
        ("connections=0", "connections='0'", "from 1 to 1,000"),
        ("connections=many", "connections='many'", "whole number"),
        ("connections=%C2%B2", "connections='\\xb2'", "whole number"),
        ("messages=99999999999", "messages='99999999999'", "whole number"),
        ("idle_s=-1", "idle_s='-1'", "seconds from 0"),
        ("age_s=1e9", "age_s='1e9'", "seconds from 0"),
        ("probe_s=0", "probe_s='0'", "seconds from 0.01"),
        ("rate=14", "rate='14'", "rate=14/s"),
        ("rate=0/s", "rate='0/s'", "rate=14/s"),
        ("rate=5/day", "rate='5/day'", "rate=14/s"),
        ("from=", "from=''", "from=example.com"),
        ("from=a%20b", "from='a b'", "from=example.com"),
        ("name=a/b", "name='a/b'", "name=main"),
        ("name=", "name=''", "name=main"),
        ("order=1&order=2", "order='1,2'", "say it once"),
    ],
)
def test_a_wrong_option_is_refused_with_its_remedy(query: str, fact: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_relays(f"smtp://user:topsecret@a.test?{query}", DEFAULTS)

    message = str(caught.value)
    assert "TASKQ_SMTP_URL" in message
    assert fact in message
    assert remedy in message
    assert "topsecret" not in message


@pytest.mark.parametrize(
    ("urls", "fact"),
    [
        ("smtp://a.test smtp://a.test:2525", "2 relays named a.test"),
        ("smtp://a.test smtp://b.test?name=a.test", "2 relays named a.test"),
        ("smtp://a.test, b.test", "scheme"),
        ("smtp://a.test inbox:", "scheme 'inbox'"),
        (" ".join(f"smtp://h{number}.test" for number in range(51)), "51 relays"),
    ],
)
def test_relays_that_do_not_fit_together_are_refused(urls: str, fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        parse_relays(urls, DEFAULTS)


def test_a_preset_applies_where_the_url_says_nothing() -> None:
    known = options("smtp://u:p@smtp.office365.com")
    explicit = options("smtp://u:p@SMTP.Office365.com.?connections=2&rate=10/min")
    lower = options("smtp://u:p@smtp.office365.com", PoolLimits(connections_max=1))

    assert (known.pool.connections_max, known.rate_per_s) == (3, 0.5)
    assert (explicit.pool.connections_max, explicit.rate_per_s) == (2, pytest.approx(1 / 6))
    assert lower.pool.connections_max == 1


@pytest.mark.parametrize(
    "host", ["smtp.office365.com.evil.test", "evilsmtp.resend.com", "amazonaws.com", "email-smtp.evil.test"]
)
def test_a_preset_is_for_its_provider_only(host: str) -> None:
    assert options(f"smtp://{host}") == RelayOptions(host, DEFAULTS)


@pytest.mark.parametrize(("provider", "pattern", "preset"), PRESETS, ids=[preset[0] for preset in PRESETS])
def test_each_preset_is_made_of_options_that_change_something(
    provider: str, pattern: str, preset: dict[str, str]
) -> None:
    host = pattern.replace("*", ".eu-west-1" if "amazon" in pattern else "")
    query = "&".join(f"{name}={value}" for name, value in preset.items())

    assert options(f"smtp://{host}") == options(f"smtp://{host}?{query}"), provider
    assert options(f"smtp://{host}", PoolLimits(connections_max=100)) != RelayOptions(
        host, PoolLimits(connections_max=100)
    )
