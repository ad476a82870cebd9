"""The kind `email` as a service has it, with a transport that only keeps what it is given.

`Mailer` submits payloads and runs what they become, without a database: `submit` is the way of a
request up to the rows, `run` the way of a row up to the relay.
"""

import json
import uuid
from contextlib import AbstractContextManager
from datetime import UTC, datetime

from taskq.context import Context
from taskq.errors import TaskqError
from taskq.kinds.email import Email
from taskq.kinds.mailing import Mailing, Senders
from taskq.kinds.registry import make_kind
from taskq.mail.dkim import Signer
from taskq.mail.envelope import Envelope, Receipt, Span
from taskq.task import Bundle, NewTask, RetryPolicy, Run

INSTALLATION = uuid.UUID("01890a5d-ac96-774b-bcce-b302099a8057")
CREATED = datetime(2024, 2, 29, 7, 5, 9, tzinfo=UTC)


class Recorder:
    """A transport that keeps the envelopes and how deep their spans were."""

    def __init__(self, fails_with: TaskqError | None = None) -> None:
        self.envelopes: list[Envelope] = []
        self.spans: list[AbstractContextManager[None]] = []
        self.fails_with = fails_with

    async def send(self, envelope: Envelope, span: Span) -> Receipt:
        self.envelopes.append(envelope)
        self.spans.append(span())
        if self.fails_with is not None:
            raise self.fails_with
        return Receipt("recorder", 250, "ok", None)

    async def close(self) -> None:
        pass


class Mailer:
    """Submits and sends mails from `example.com` and `mail.test`."""

    def __init__(
        self, *, bytes_max: int = 1_000_000, fails_with: TaskqError | None = None, signers: tuple[Signer, ...] = ()
    ) -> None:
        self.transport = Recorder(fails_with)
        self.blobs: dict[str, bytes] = {}
        senders = Senders("taskq@example.com", ["Mail.test"])
        mailing = Mailing(
            senders, bytes_max=bytes_max, recipients_max=5, max_attempts=7, knows_relay=lambda name: name == "second"
        )
        self.kind = make_kind(
            "email",
            Email(self.transport, senders, signers),
            RetryPolicy(),
            1.0,
            max_attempts=7,
            ack_each=False,
            bundle=mailing.bundle,
        )

    def submit(self, **fields: object) -> str | Bundle:
        """Return the JSON to store as one plain row, or the bundle; raises as a submission does."""
        body = json.dumps(mail(**fields)).encode()
        stored = self.kind.check(body)
        bundle = self.kind.bundle(self.kind.parse(body.decode()))
        if bundle is not None:
            self.blobs |= {blob.digest: blob.content for blob in bundle.blobs}
        return stored if bundle is None else bundle

    def tasks(self, **fields: object) -> list[NewTask]:
        """Return the tasks of a bundle."""
        bundle = self.submit(**fields)
        assert isinstance(bundle, Bundle)
        return bundle.tasks

    async def run(self, payload: str) -> Context:
        """Run one stored payload; return what its handler was told."""

        async def blob(digest: str) -> bytes:
            return self.blobs[digest]

        context = Context(Run(7, 1, 1, "email", 1, 7, CREATED, payload), INSTALLATION, None, blob)
        await self.kind.handler(self.kind.parse(payload), context)
        return context

    async def send(self, **fields: object) -> list[Envelope]:
        """Submit, run everything, return the envelopes."""
        made = self.submit(**fields)
        for payload in [made] if isinstance(made, str) else [task.payload for task in made.tasks]:
            await self.run(payload)
        return self.transport.envelopes


def mail(**changes: object) -> dict[str, object]:
    """Return the three fields with changes; a field set to `...` is left out."""
    fields = {"to": "ada@example.com", "subject": "hi", "body": "text"} | changes
    return {name.removesuffix("_"): value for name, value in fields.items() if value is not ...}
