"""Relays as the setting names them: URLs, each with its options as query parameters.

    smtp://user:password@mail.example.com:587?name=main&connections=5&rate=14/s
    smtps://user:password@smtp.example.net?name=bulk&order=2&from=news.example.com

Several stand beside each other, separated by blanks or commas.  An option that is misspelt or out of
range ends the start with what is allowed; what a known provider allows applies where the URL does
not say otherwise (`presets`).  No message shows a password.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from taskq.errors import ConfigError, shown
from taskq.mail.address import parse_address
from taskq.mail.classify import SLOW_PROBE_S
from taskq.mail.pool import PoolLimits
from taskq.mail.presets import preset_for
from taskq.mail.server import SERVER_OPTIONS, Server, parse_server, query_of

__all__ = ["RelayOptions", "parse_relays"]

RELAYS_MAX = 50
_BETWEEN = re.compile(r"[\s,]*\s[\s,]*|,+(?=[A-Za-z][A-Za-z0-9+.-]*://)")  # a comma may also stand in a password
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RATE = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)/(s|min|h)")
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3_600.0}


@dataclass(frozen=True, slots=True)
class RelayOptions:
    """What a relay's URL says beside its server."""

    name: str = ""
    """What mails ask for it by and what their records say; empty: its host."""
    pool: PoolLimits = field(default_factory=PoolLimits)
    """Bounds of its connections."""
    rate_per_s: float | None = None
    """Mails a second at most; None: as fast as it takes them."""
    order: int = 1
    """The relays with the lowest are used; the next ones where those can't be."""
    weight: int = 1
    """Share of the mails among relays of equal order."""
    from_domains: tuple[str, ...] = ()
    """The only domains whose mails it takes; empty: those that no relay names."""
    probe_s: float = SLOW_PROBE_S
    """Seconds until another look after a failure that its operator must mend, such as a wrong password."""


def parse_relays(text: str, defaults: PoolLimits) -> list[tuple[Server, RelayOptions]]:
    """Read all relays of the setting.

    Args:
        text: URLs, separated by blanks or commas.
        defaults: Bounds where neither the URL nor its provider's preset names one.

    Raises:
        ConfigError: A URL or an option can't be used, or two relays have one name.
    """
    urls = [part for part in _BETWEEN.split(text.strip(" \t\r\n,")) if part]
    if len(urls) > RELAYS_MAX:
        raise ConfigError(f"TASKQ_SMTP_URL names {len(urls)} relays: at most {RELAYS_MAX} are possible")
    relays = [_relay(url, defaults) for url in urls]
    names = [options.name for _, options in relays]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"TASKQ_SMTP_URL has {names.count(name)} relays named {name}: give each a name= of its own"
            )
    return relays


def _relay(url: str, defaults: PoolLimits) -> tuple[Server, RelayOptions]:
    server = parse_server(url, also=frozenset(_OPTIONS))
    given = query_of(url)
    preset = preset_for(server.host)
    texts = {name: ",".join(values) for name, values in given.items() if name not in SERVER_OPTIONS}
    for name, values in given.items():
        if len(values) > 1 and name != "from":
            raise _wrong(name, texts.get(name, ""), "say it once")
    if "connections" not in texts and "connections" in preset:
        preset = {**preset, "connections": str(min(int(preset["connections"]), defaults.connections_max))}
    return server, _read({**preset, **texts}, server, defaults)


def _read(texts: Mapping[str, str], server: Server, defaults: PoolLimits) -> RelayOptions:
    pool = replace(
        defaults,
        connections_max=_whole(texts, "connections", defaults.connections_max, 1, 1_000),
        messages_max=_whole(texts, "messages", defaults.messages_max, 1, 1_000_000),
        idle_s=_number(texts, "idle_s", defaults.idle_s, 0.0, 3_600.0),
        age_s=_number(texts, "age_s", defaults.age_s, 0.0, 86_400.0),
    )
    name = texts.get("name", server.host)
    if "name" in texts and not _NAME.fullmatch(name):
        raise _wrong("name", name, "use 1 to 64 letters, digits, dots, hyphens and underscores, as in name=main")
    return RelayOptions(
        name,
        pool,
        _rate(texts),
        _whole(texts, "order", 1, 1, 1_000),
        _whole(texts, "weight", 1, 1, 1_000),
        _domains(texts),
        _number(texts, "probe_s", SLOW_PROBE_S, 0.01, 86_400.0),
    )


def _whole(texts: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    text = texts.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and least <= int(text[:10]) <= most and len(text) <= 10):
        raise _wrong(name, text, f"use a whole number from {least:,} to {most:,}, as in {name}={default}")
    return int(text)


def _number(texts: Mapping[str, str], name: str, default: float, least: float, most: float) -> float:
    text = texts.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text, re.ASCII) or not least <= float(text) <= most:
        raise _wrong(name, text, f"use seconds from {least:g} to {most:g}, as in {name}={default:g}")
    return float(text)


def _rate(texts: Mapping[str, str]) -> float | None:
    text = texts.get("rate")
    if text is None:
        return None
    found = _RATE.fullmatch(text)
    if found is None or float(found.group(1)) <= 0.0:
        raise _wrong("rate", text, "use mails per s, min or h, as in rate=14/s or rate=30/min")
    return float(found.group(1)) / _SECONDS[found.group(2)]


def _domains(texts: Mapping[str, str]) -> tuple[str, ...]:
    text = texts.get("from")
    if text is None:
        return ()
    try:
        return tuple(parse_address(f"x@{domain.strip()}").domain for domain in text.split(","))
    except ValueError as error:
        raise _wrong("from", text, f"use domains, as in from=example.com ({error})") from error


def _wrong(name: str, value: str, remedy: str) -> ConfigError:
    return ConfigError(f"TASKQ_SMTP_URL has {name}={shown(value)}: {remedy}")


_OPTIONS = ("name", "connections", "messages", "idle_s", "age_s", "rate", "order", "weight", "from", "probe_s")
