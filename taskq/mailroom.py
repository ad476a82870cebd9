"""What mails need, built from the settings: where they go, the inbox, the kind of work.

Outgoing, from the handler down: the kind `email` → staging, where it is asked for → the suppression
list → the relays, or the inbox.  Incoming: other programs' mails by the receiver → the mailbox.  The
service runs the parts that have a `run`, and closes the rest.
"""

import functools
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from taskq.config import Settings
from taskq.facts import Privacy
from taskq.kinds.email import Email
from taskq.kinds.mailing import MAIL, Mailing, Senders
from taskq.kinds.recipients import recipients_of
from taskq.kinds.registry import Kind, make_kind
from taskq.listener import Listener
from taskq.mail.dkim import load_signers
from taskq.mail.envelope import Transport
from taskq.mail.inbox import Inbox
from taskq.mail.mailbox import CHANNEL, Mailbox
from taskq.mail.pool import PoolLimits
from taskq.mail.receiver import Receiver
from taskq.mail.relay import Relay
from taskq.mail.routes import Routes, described, transport_from_url
from taskq.mail.staging import Staging
from taskq.mail.suppressing import Suppressing
from taskq.mail.template import Templates
from taskq.mailstore import MailStore
from taskq.store import Store
from taskq.suppression import Bounces, Suppressions
from taskq.task import NewTask, RetryPolicy

__all__ = ["Mailroom", "where_mails_go"]

DAY_S = 86_400.0
KEEPS = ("to", "cc", "recipient")  # of a payload when its content is erased


@dataclass(frozen=True, slots=True)
class Mailroom:
    """The parts of one process that have to do with mail."""

    store: MailStore
    mailbox: Mailbox
    receiver: Receiver | None
    transport: Transport
    suppressions: Suppressions
    bounces: Bounces
    kind: Kind
    """The kind `email`."""
    prunes: tuple[Callable[[], Awaitable[None]], ...]
    """What is done at each pruning, in small steps."""

    @classmethod
    def open(cls, settings: Settings, store: Store, listener: Listener) -> "Mailroom":
        """Build the parts; raises `ConfigError` where a setting can't be used."""
        mails = MailStore(store.session("inbox"), store.reads)
        mailbox = Mailbox(mails, waiters_max=settings.inbox_waiters_max, tell_others=listener.tell_others)
        listener.hear(CHANNEL, mailbox.heard)
        receiver = None if settings.inbox_smtp_port is None else Receiver(settings.inbox_smtp_port, mailbox)
        sends = transport_from_url(
            settings.smtp_url.get_secret_value(),
            mailbox.capture,
            pool=PoolLimits(connections_max=settings.smtp_connections_max),
        )
        suppressions = Suppressions(
            store.reads, copied_max=settings.suppressions_copied_max, automatic_s=settings.suppression_days * DAY_S
        )
        bounces = Bounces(store.reads, retention_s=settings.retention_days * DAY_S)
        transport = _guarded(sends, suppressions, settings, mailbox)
        kind = _kind(settings, transport, _names(sends))
        keep, days = settings.inbox_mails_max, settings.mail_content_days
        prune_inbox = functools.partial(mails.prune, keep=keep, content_days=days)
        prunes = (prune_inbox, suppressions.prune, bounces.prune, suppressions.refresh)
        return cls(mails, mailbox, receiver, transport, suppressions, bounces, kind, prunes)

    def running(self) -> list[tuple[str, Coroutine[Any, Any, None]]]:
        """Return the parts that run for ever, by name."""
        return [
            ("inbox", self.mailbox.run()),
            ("suppressions", self.suppressions.run()),
            *([] if self.receiver is None else [("receiver", self.receiver.run())]),
        ]

    async def admit(self, tasks: Sequence[NewTask]) -> None:
        """Let tasks pass before they are stored; raises `Suppressed` where one is a mail to a suppressed address."""
        if self.suppressions.empty:
            return
        addresses = [each for new in tasks if new.kind == MAIL for each in recipients_of(new.payload)]
        if addresses:
            await self.suppressions.check(addresses)

    async def close(self) -> None:
        """Let go of every connection."""
        await self.transport.close()
        await self.store.close()


def _guarded(sends: Transport, suppressions: Suppressions, settings: Settings, mailbox: Mailbox) -> Transport:
    """Put in front of what sends whatever keeps mails from being sent."""
    if isinstance(sends, Inbox):  # nobody is hurt by it, and what it says of an address is play
        transport = Suppressing(sends, suppressions.hint, None)
    else:
        transport = Suppressing(sends, suppressions.lookup, suppressions.learn)
    if settings.mail_only_to or settings.mail_redirect_to:
        return Staging(transport, Inbox(mailbox.capture), settings.mail_only_to, settings.mail_redirect_to)
    return transport


def _names(transport: Transport) -> frozenset[str]:
    """Return the relays that mails may ask for."""
    match transport:
        case Routes():
            return frozenset(transport.names)
        case Relay():
            return frozenset({transport.name})
        case _:
            return frozenset()


def _kind(settings: Settings, transport: Transport, relays: frozenset[str]) -> Kind:
    senders = Senders(settings.mail_from, settings.mail_from_domains)
    mailing = Mailing(
        senders,
        bytes_max=settings.mail_bytes_max,
        recipients_max=settings.mail_recipients_max,
        max_attempts=settings.max_attempts,
        knows_relay=relays.__contains__,
        templates=Templates(settings.templates_dir) if settings.templates_dir else None,
    )
    return make_kind(
        MAIL,
        Email(transport, senders, load_signers(settings.dkim)),
        RetryPolicy(settings.retry_base_s, settings.retry_cap_s, min(1.0, settings.retry_base_s)),
        settings.mail_timeout_s,
        max_attempts=settings.max_attempts,
        ack_each=not _catches(settings),
        bundle=mailing.bundle,
        privacy=Privacy(KEEPS, settings.mail_content_days),
    )


def _catches(settings: Settings) -> bool:
    return settings.smtp_url.get_secret_value().strip() in ("", "inbox:")


def where_mails_go(settings: Settings) -> str:
    """Say for people where mails go, without secrets."""
    if _catches(settings):
        return "caught in the local inbox, none leaves this machine (set smtp_url to send)"
    sent = f"sent by {described(settings.smtp_url.get_secret_value())} from {settings.mail_from}"
    if not settings.mail_only_to and not settings.mail_redirect_to:
        return sent
    others = f"redirected to {settings.mail_redirect_to}" if settings.mail_redirect_to else "caught in the local inbox"
    return f"{sent} to {', '.join(settings.mail_only_to) or 'nobody'}; those to others are {others}"
