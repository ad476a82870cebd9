"""Which relays may take a mail, and in which order they are asked.

A mail that names a relay goes there and nowhere else.  Otherwise the relays that name its sender's
domain are asked, and where none does those that name no domain; first those with the lowest order,
and of equal order in a sequence that the task's id decides, each relay in front as often as its
weight asks.  The sequence is the same at every attempt and on every instance (rendezvous hashing), so
a mail that is tried again meets the relay that it met before.
"""

import asyncio
import hashlib
import math
from collections.abc import Sequence

from taskq.errors import ConfigError, TaskError, shown
from taskq.mail.consequence import unknown_relay
from taskq.mail.envelope import Envelope, Receipt, Span, Transport
from taskq.mail.failover import Failover
from taskq.mail.inbox import Capture, Inbox
from taskq.mail.options import parse_relays
from taskq.mail.pool import PoolLimits
from taskq.mail.relay import Relay

__all__ = ["Routes", "described", "transport_from_url"]


def transport_from_url(url: str, capture: Capture, *, pool: PoolLimits | None = None) -> Transport:
    """Make the transport that the setting names: relays, or the inbox for `inbox:` and for nothing.

    Args:
        url: One URL, or several separated by blanks or commas; see `parse_relays`.
        capture: Stores a mail in the inbox.
        pool: Bounds of a relay whose URL names none.

    Raises:
        ConfigError: A URL can't be used; the message never shows its password.
    """
    if url.strip() in {"", "inbox:"}:
        return Inbox(capture)
    relays = [Relay(server, options=options) for server, options in parse_relays(url, pool or PoolLimits())]
    if len(relays) == 1 and not relays[0].options.from_domains:
        return relays[0]
    return Routes(relays)


def described(url: str) -> str:
    """Return the relays that the setting names, without their passwords, for a banner."""
    return ", ".join(str(server) for server, _ in parse_relays(url, PoolLimits()))


class Routes:
    """A transport that hands mails to several relays.

    Args:
        relays: At least one, their names differ.
    """

    def __init__(self, relays: Sequence[Relay]) -> None:
        if not relays:
            raise ConfigError("TASKQ_SMTP_URL names no relay: write one, as in smtp://user:password@mail.example.com")
        self._relays = {relay.name: relay for relay in relays}
        self._for_all = tuple(relay for relay in relays if not relay.options.from_domains)
        domains = {domain for relay in relays for domain in relay.options.from_domains}
        self._for_domain = {
            domain: tuple(relay for relay in relays if domain in relay.options.from_domains) for domain in domains
        }
        self._failover = Failover()

    def __repr__(self) -> str:
        return f"Routes({list(self._relays.values())!r})"

    @property
    def names(self) -> tuple[str, ...]:
        """What mails can ask for."""
        return tuple(self._relays)

    async def send(self, envelope: Envelope, span: Span) -> Receipt:
        """Hand over one mail; see `Transport.send`."""
        return await self._failover.send(self.candidates(envelope), envelope, span)

    async def close(self) -> None:
        """Close the idle connections of every relay."""
        async with asyncio.TaskGroup() as group:
            for relay in self._relays.values():
                group.create_task(relay.close())

    def candidates(self, envelope: Envelope) -> Sequence[Relay]:
        """Return the relays that may take a mail, in the order of asking.

        Raises:
            TaskError: There is none.
        """
        if envelope.relay is not None:
            relay = self._relays.get(envelope.relay)
            if relay is None:
                raise unknown_relay(envelope.relay, self._relays)
            return (relay,)
        domain = envelope.sender.rpartition("@")[2]
        relays = self._for_domain.get(domain, self._for_all)
        if not relays:
            raise TaskError(
                f"no relay takes mails from {shown(domain)}: add from={domain[:80]} to one in TASKQ_SMTP_URL, or a "
                f"relay without from="
            )
        if len(relays) == 1:
            return relays
        return sorted(relays, key=lambda relay: (relay.options.order, _distance(envelope.task_id, relay)))


def _distance(task_id: int, relay: Relay) -> float:
    """Return a task's distance from a relay, fixed and at random: the nearest of several is so by their weights."""
    digest = hashlib.blake2b(f"{task_id} {relay.name}".encode(), digest_size=8).digest()
    draw = (int.from_bytes(digest) + 1) / (2**64 + 1)  # 0 < draw < 1
    return -math.log(draw) / relay.options.weight
