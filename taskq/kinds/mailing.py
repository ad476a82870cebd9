"""From a checked payload to the tasks that it becomes, and from a stored one to the mail of one recipient.

A mail to several becomes one task for each recipient, because a relay answers for each: every one has
a status, retries and a bounce of its own, and one bad address keeps nobody's mail back.  All of them
show the same To and Cc; who is only in bcc is in no stored payload but their own.

An address named twice, in one list or in two, is one recipient: the first mention counts, so Ada in
to and cc gets one mail whose header shows both.  Refusing it would lose a mail whose meaning is plain.

A payload that asks nothing of the queue stays one plain row, the hot road.  Files leave the payload:
they are kept once, named by what they hold, however many recipients need them.

A template is filled in here, first of all: what is stored is the mail, so that later changes of the
template don't change it, and that its caller hears what is wrong.
"""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta

from pydantic_core import to_json

from taskq.context import Context
from taskq.errors import ConfigError, InvalidPayload, shown
from taskq.kinds.mail_fields import EmailPayload, FilePayload
from taskq.mail.address import Mailbox, parse_address, parse_mailbox
from taskq.mail.compose import Attachment, Draft
from taskq.mail.plain import text_from_html
from taskq.mail.template import Templates
from taskq.task import Blob, Bundle, NewTask

__all__ = ["MAIL", "Mailing", "Senders", "draft_of", "recipient_of"]

MAIL = "email"
"""The kind of work that sends a mail."""
AHEAD_MAX = timedelta(days=366)  # a later time is a typing error
STORED_OCTETS_MAX = 16 * 1024 * 1024  # of the payloads of one submission: each recipient's task holds the texts

_OF_QUEUE = frozenset({"bcc", "send_at", "expires_at", "ttl", "tags", "metadata", "priority", "sensitive"})
"""Fields that a submission turns into something else than a payload."""
_OF_TEXTS = frozenset({"template", "variables", "text_from_html"})
"""Fields that a submission turns into subject, body and html."""


class Senders:
    """Who mails may be from.

    Args:
        mail_from: The mailbox that mails are from unless they say otherwise.
        domains: Those that `from` may be of, besides its own.

    Raises:
        ConfigError: One of them is not valid; the message names the setting.
    """

    def __init__(self, mail_from: str, domains: Iterable[str] = ()) -> None:
        try:
            self.default = parse_mailbox(mail_from)
        except ValueError as error:
            raise ConfigError(f"TASKQ_MAIL_FROM can't be used: {error}") from error
        try:
            others = [parse_address(f"postmaster@{domain}").domain for domain in domains]
        except ValueError as error:
            raise ConfigError(f"TASKQ_MAIL_FROM_DOMAINS can't be used: {error}") from error
        self.domains = frozenset({self.default.address.domain, *others})

    def of(self, payload: EmailPayload) -> Mailbox:
        """Return who a mail is from; raises `InvalidPayload` when it may not be from them."""
        if "from" not in payload:
            return self.default
        sender = parse_mailbox(payload["from"])
        if sender.address.domain not in self.domains:
            raise InvalidPayload(
                f"from: mails may not be from {sender.address.domain}: use an address of "
                f"{', '.join(sorted(self.domains))}, or add the domain to mail_from_domains",
                field="from",
            )
        return sender


class Mailing:
    """Turns submitted mails into tasks.

    Args:
        senders: Who mails may be from.
        bytes_max: Octets of all files of a mail.
        recipients_max: Recipients of one submission.
        max_attempts: Attempts of each task.
        knows_relay: Whether there is a relay of that name.
        templates: What mails can be made from; None: nothing.
    """

    def __init__(
        self,
        senders: Senders,
        *,
        bytes_max: int,
        recipients_max: int,
        max_attempts: int,
        knows_relay: Callable[[str], bool],
        templates: Templates | None = None,
    ) -> None:
        self._senders = senders
        self._bytes_max = bytes_max
        self._recipients_max = recipients_max
        self._max_attempts = max_attempts
        self._knows_relay = knows_relay
        self._templates = templates

    def bundle(self, payload: EmailPayload) -> Bundle | None:
        """Return what a checked payload becomes; None: one plain row, which has its texts now.

        Raises:
            InvalidPayload: The settings don't allow it; names the field.
        """
        if len(payload) == 3 and "body" in payload and isinstance(payload["to"], str):
            return None
        self._write_texts(payload)
        self._check(payload)
        recipients = _recipients(payload)
        if len(recipients) > self._recipients_max:
            raise InvalidPayload(
                f"the mail has {len(recipients)} recipients: at most {self._recipients_max} are taken at once, "
                "send it to the others in a further submission",
                field="to",
            )
        if len(recipients) == 1 and not payload.keys() & _OF_QUEUE and "attachments" not in payload:
            return None
        return self._bundle(payload, recipients)

    def _write_texts(self, payload: EmailPayload) -> None:
        """Put subject, body and html where a template or the HTML stands for them."""
        if "template" in payload:
            if self._templates is None:
                raise InvalidPayload(
                    "template: no templates are set up: set templates_dir to their folder, or send subject and body",
                    field="template",
                )
            made = self._templates.render(payload.pop("template"), payload.pop("variables", {}))
            payload["subject"] = made.subject
            if made.text is not None:
                payload["body"] = made.text
            if made.html is not None:
                payload["html"] = made.html
            elif any("content_id" in file for file in payload.get("attachments", ())):
                raise InvalidPayload(
                    "attachments: the template has no html that could show them: remove the content ids, or add it",
                    field="attachments",
                )
        if payload.pop("text_from_html", False) and "body" not in payload:
            payload["body"] = text_from_html(payload.get("html", ""))

    def _check(self, payload: EmailPayload) -> None:
        if "recipient" in payload:
            raise InvalidPayload(
                f"recipient is no field of the kind {MAIL}: name recipients in to, cc and bcc", field="recipient"
            )
        self._senders.of(payload)
        relay = payload.get("relay")
        if relay is not None and not self._knows_relay(relay):
            raise InvalidPayload(f"relay: {shown(relay)} is no relay that is set up: leave it out", field="relay")
        octets = 0
        for place, file in enumerate(payload.get("attachments", ())):
            if "content" not in file or "digest" in file or "size" in file:
                raise InvalidPayload(
                    f"attachments[{place}]: a file is named by its content only: send that", field="attachments"
                )
            octets += len(file["content"])
        if octets > self._bytes_max:
            raise InvalidPayload(
                f"attachments: they have {octets} octets in all: at most {self._bytes_max} fit, send links",
                field="attachments",
            )

    def _bundle(self, payload: EmailPayload, recipients: dict[str, str]) -> Bundle:
        left_out = _OF_QUEUE - {"sensitive"}  # which the handler must know too
        stored: dict[str, object] = {name: value for name, value in payload.items() if name not in left_out}
        blobs: dict[str, Blob] = {}
        if "attachments" in payload:
            stored["attachments"] = [_described(file, blobs) for file in payload["attachments"]]
        due_at, expires_at = _times(payload, datetime.now(UTC))
        if len(to_json(stored)) * len(recipients) > STORED_OCTETS_MAX:
            raise InvalidPayload(
                f"the mail to {len(recipients)} recipients takes more than {STORED_OCTETS_MAX} octets to store: "
                "shorten its texts, or name fewer recipients at once",
                field="to",
            )
        metadata = payload.get("metadata")
        tasks = [
            NewTask(
                MAIL,
                to_json(stored | {"recipient": address}).decode(),
                priority=payload.get("priority", 0),
                max_attempts=self._max_attempts,
                due_at=due_at,
                expires_at=expires_at,
                tags=tuple(dict.fromkeys(payload.get("tags", ()))),
                metadata=None if metadata is None else to_json(metadata).decode(),
                blobs=tuple(blobs),
                sensitive=payload.get("sensitive", False),
            )
            for address in recipients
        ]
        return Bundle(tasks, list(recipients.values()), list(blobs.values()), grouped=len(tasks) > 1)


def recipient_of(payload: EmailPayload) -> str:
    """Return the one address that a stored payload is for.

    Raises:
        InvalidPayload: It was stored past `Mailing.bundle`, by SQL, and one row can't be what it asks for.
    """
    if "recipient" in payload:
        return payload["recipient"]
    if len(payload) == 3 and "body" in payload and isinstance(payload["to"], str):  # nearly every mail
        return str(parse_mailbox(payload["to"]).address)
    if asked := payload.keys() & (_OF_QUEUE | _OF_TEXTS):
        raise InvalidPayload(
            f"{min(asked)} is taken from submissions over HTTP only: leave it out, see the arguments of enqueue"
        )
    recipients = list(_recipients(payload))
    if len(recipients) > 1:
        raise InvalidPayload(
            f"to and cc name {len(recipients)} recipients: enqueue one task for each, or submit it over HTTP"
        )
    return recipients[0]


def draft_of(payload: EmailPayload, sender: Mailbox, files: Iterable[Attachment], context: Context) -> Draft:
    """Return the mail that a stored payload says, which is the same for each of its recipients."""
    draft = Draft(
        sender,
        _mailboxes(payload["to"]),
        payload.get("subject", ""),
        context.uid,
        context.created_at,
        payload.get("body"),
    )
    if len(payload) > 3 or draft.text is None:
        draft.html = payload.get("html")
        draft.cc = _mailboxes(payload.get("cc", []))
        draft.reply_to = _mailboxes(payload.get("reply_to", []))
        draft.headers = tuple(payload.get("headers", {}).items())
        draft.attachments = tuple(files)
        draft.unsubscribe_url = payload.get("unsubscribe_url")
        if "unsubscribe_mailto" in payload:
            draft.unsubscribe_mailto = parse_address(payload["unsubscribe_mailto"])
    return draft


def _mailboxes(written: str | list[str]) -> tuple[Mailbox, ...]:
    return (parse_mailbox(written),) if isinstance(written, str) else tuple(map(parse_mailbox, written))


def _recipients(payload: EmailPayload) -> dict[str, str]:
    """Return each recipient's address with how it was written, in the order of to, cc and bcc."""
    recipients: dict[str, str] = {}
    for written in (payload["to"], payload.get("cc", []), payload.get("bcc", [])):
        for each in [written] if isinstance(written, str) else written:
            recipients.setdefault(str(parse_mailbox(each).address), each)
    return recipients


def _described(file: FilePayload, blobs: dict[str, Blob]) -> dict[str, object]:
    """Return a file as it is stored, its content moved into the blobs."""
    content = file.get("content", b"")
    blob = Blob(content)
    digest = blob.digest
    blobs[digest] = blob
    described = {name: value for name, value in file.items() if name != "content"}
    return described | {"digest": digest, "size": len(content)}


def _times(payload: EmailPayload, now: datetime) -> tuple[datetime | None, datetime | None]:
    """Return when to send a mail (None: at once) and when it has lost its use (None: never)."""
    send_at, expires_at = payload.get("send_at"), payload.get("expires_at")
    for name, moment in (("send_at", send_at), ("expires_at", expires_at)):
        if moment is not None and moment - now > AHEAD_MAX:
            raise InvalidPayload(f"{name}: it is more than {AHEAD_MAX.days} days ahead: check the year", field=name)
    if expires_at is not None and expires_at <= now:
        raise InvalidPayload(
            "expires_at: it is past, so the mail would never be sent: set a later time", field="expires_at"
        )
    due_at = None if send_at is None or send_at <= now else send_at
    if "ttl" in payload:
        expires_at = (due_at or now) + timedelta(seconds=payload["ttl"])
    return due_at, expires_at
