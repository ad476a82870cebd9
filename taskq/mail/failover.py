"""One mail offered to several relays, one after the other, until one takes it.

The next one is asked only where it is certain that the one before has not taken the mail and where
the reason is that relay's alone.  A mail that a relay may have taken goes to the same relay again,
whose own measures against repetition are the only ones that can help: this process remembers which
one, for the last ten thousand such mails.  After a restart, or on another instance, the same choice
by the task's id leads there, unless that mail had been taken over from another relay.
"""

from collections.abc import Sequence

from taskq.mail.consequence import Declined, kindest
from taskq.mail.envelope import Envelope, Receipt, Span
from taskq.mail.relay import Relay

__all__ = ["Failover"]

PINS_MAX = 10_000


class Failover:
    """Offers mails to relays in turn, and remembers who may have taken one."""

    def __init__(self) -> None:
        self._pins: dict[int, Relay] = {}

    async def send(self, relays: Sequence[Relay], envelope: Envelope, span: Span) -> Receipt:
        """Offer one mail to at least one relay, in this order; see `Transport.send`."""
        pinned = self._pins.get(envelope.task_id)
        refusals: list[Declined] = []
        for relay in relays if pinned is None else (pinned,):
            try:
                receipt = await relay.hand_over(envelope, span)
            except Declined as declined:
                refusals.append(declined)
                if declined.ambiguous:
                    self._pin(envelope.task_id, relay)
                if not declined.elsewhere:
                    raise declined.error from declined.__cause__
            else:
                self._pins.pop(envelope.task_id, None)
                return receipt
        best = kindest(refusals)
        raise best.error from best.__cause__

    def _pin(self, task_id: int, relay: Relay) -> None:
        if len(self._pins) >= PINS_MAX and task_id not in self._pins:
            del self._pins[next(iter(self._pins))]
        self._pins[task_id] = relay
