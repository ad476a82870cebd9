"""Where a relay is and how it must be spoken to, read from one URL.

    smtp://user:password@relay.example.com:587    STARTTLS, required and verified
    smtps://user:password@relay.example.com:465   TLS from the first byte, verified
    smtp://127.0.0.1:2525                         plaintext, allowed to the loopback only

`?tls=off` allows plaintext to another host, but never with a password; `?tls=starttls` asks for
TLS on the loopback too; `?ca=/path/to/ca.pem` trusts one authority instead of the system's.  User
and password are percent-encoded.  Neither `str` nor `repr` shows the password.
"""

import difflib
import ipaddress
import re
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from taskq.errors import ConfigError, shown

__all__ = ["SERVER_OPTIONS", "Server", "Tls", "parse_server", "query_of"]

SERVER_OPTIONS = frozenset({"tls", "ca"})

_HOST = re.compile(
    r"(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.?"
)
_EXAMPLE = "smtp://user:password@relay.example.com:587"
_PORTS = {"smtp": 587, "smtps": 465}  # RFC 6409 §3.1, RFC 8314 §3.3


class Tls(StrEnum):
    """When a connection becomes encrypted."""

    OFF = "off"
    STARTTLS = "starttls"
    IMPLICIT = "implicit"


@dataclass(frozen=True, slots=True)
class Server:
    """A relay's address and the terms of talking to it."""

    host: str
    """Name or IP address; the certificate must match it."""
    port: int
    tls: Tls
    user: str = ""
    """Empty: no AUTH."""
    password: str = field(default="", repr=False)
    ca_file: str = ""
    """File of the trusted authorities; empty: those of the system."""

    def __str__(self) -> str:
        scheme = "smtps" if self.tls is Tls.IMPLICIT else "smtp"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{f'{self.user}:***@' if self.user else ''}{host}:{self.port}"


def parse_server(url: str, *, also: frozenset[str] = frozenset()) -> Server:
    """Read a relay's URL.

    Args:
        url: As at the top of this module.
        also: Options that may stand beside `tls` and `ca`, for others to read.

    Raises:
        ConfigError: It can't be used, or would send a password or mail in the clear.
    """
    parts, port = _split(url)
    host = parts.hostname or ""
    if not _is_host(host):
        raise ConfigError(f"TASKQ_SMTP_URL names the host {host!r}: write a host name or IP address, as in {_EXAMPLE}")
    if parts.path not in {"", "/"} or parts.fragment:
        raise ConfigError(f"TASKQ_SMTP_URL has something after the port: end it there, as in {_EXAMPLE}")
    options = _options(parts.query, SERVER_OPTIONS | also)
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if "\0" in user + password or bool(user) != bool(password):
        raise ConfigError("TASKQ_SMTP_URL has a user without a password or the reverse: give both or none")
    tls = _tls(parts.scheme, host, options.get("tls"))
    if user and tls is Tls.OFF and not _is_loopback(host):
        raise ConfigError(
            f"TASKQ_SMTP_URL would send the password to {host} in the clear: remove ?tls=off, or the user and password"
        )
    return Server(host, port or _PORTS[parts.scheme], tls, user, password, options.get("ca", ""))


def query_of(url: str) -> dict[str, list[str]]:
    """Return the options of a URL that `parse_server` has accepted."""
    return parse_qs(urlsplit(url).query, keep_blank_values=True)


def _split(url: str) -> tuple[SplitResult, int | None]:
    """Split a URL; what is wrong with one is said without showing it, since it may hold a password."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"TASKQ_SMTP_URL is no URL ({error}): write it as in {_EXAMPLE}") from None
    if parts.scheme not in _PORTS:
        raise ConfigError(f"TASKQ_SMTP_URL has the scheme {parts.scheme!r}: use smtp, smtps or inbox, as in {_EXAMPLE}")
    return parts, port


def _options(query: str, known: frozenset[str]) -> dict[str, str]:
    options = parse_qs(query, keep_blank_values=True)
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"the known ones are {', '.join(sorted(known))}"
            raise ConfigError(f"TASKQ_SMTP_URL has the option {shown(name)}: {hint}")
    return {name: values[-1] for name, values in options.items()}


def _tls(scheme: str, host: str, option: str | None) -> Tls:
    if scheme == "smtps":
        if option is not None:
            raise ConfigError(f"TASKQ_SMTP_URL has tls={option} with smtps, which always uses TLS: remove the option")
        return Tls.IMPLICIT
    if option is None:
        return Tls.OFF if _is_loopback(host) else Tls.STARTTLS
    if option not in {Tls.OFF, Tls.STARTTLS}:
        raise ConfigError(f"TASKQ_SMTP_URL has tls={option}: use off or starttls, or the scheme smtps")
    return Tls(option)


def _is_host(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return len(host) <= 253 and _HOST.fullmatch(host) is not None
    return True


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in {"localhost", "localhost."}
