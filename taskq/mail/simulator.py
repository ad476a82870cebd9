"""Addresses that behave as bad days do, so that a program can be tried on them without a relay.

Where mails are caught in the inbox, these names at any domain under `test` (RFC 2606 §2: no such
domain exists) answer as a relay might, `+anything` allowed before the `@`:

    bounce@x.test  greylist@x.test  full+2@any.test  …

An act is only what the other side does: a reply, or the lack of one, in some phase.  What it means
is decided where it is decided for every relay, by `classify` and `consequence`.
"""

from dataclasses import dataclass

from taskq.mail.classify import Event, Phase

__all__ = ["ACTS", "Act", "act_for"]

SLOW_S = 3.0


@dataclass(frozen=True, slots=True)
class Act:
    """What the simulated relay does with a mail."""

    phase: Phase
    """When it does it."""
    code: int
    """Its reply code, or an `Event` where it does not reply."""
    enhanced: str
    """Its enhanced status code; may be empty."""
    text: str
    """Its words, without the codes."""
    first_only: bool = False
    """Whether the second run is accepted."""
    takes: bool = False
    """Whether the mail lies in the inbox afterwards all the same."""
    delay_s: float = 0.0
    """Seconds before it replies."""

    @property
    def reply(self) -> str:
        """Its words as a relay writes them, behind the reply code."""
        return f"{self.enhanced} {self.text}" if self.enhanced else self.text


ACTS = {
    "bounce": Act(Phase.RCPT, 550, "5.1.1", "no such user here"),
    "full": Act(Phase.RCPT, 452, "4.2.2", "the mailbox is full"),
    "greylist": Act(Phase.RCPT, 451, "4.7.1", "greylisted, try again in 5 seconds", first_only=True),
    "rate": Act(Phase.MAIL, 454, "4.7.0", "too many mails, try again in 5 seconds", first_only=True),
    "slow": Act(Phase.DOT, 250, "2.0.0", "taken, after a while", takes=True, delay_s=SLOW_S),
    "drop": Act(Phase.DOT, Event.LOST, "", "the connection was lost", first_only=True, takes=True),
    "spam": Act(Phase.DOT, 554, "5.7.1", "this looks like spam"),
}
"""By the part of the address before the `@` and before a `+`."""


def act_for(recipient: str, run: int) -> Act | None:
    """Return what happens to a mail; None: it is simply taken.

    Args:
        recipient: Envelope recipient.
        run: Which execution of its task this is, from 1.
    """
    local, _, domain = recipient.rpartition("@")
    if not domain.endswith(".test"):
        return None
    act = ACTS.get(local.partition("+")[0].lower())
    return None if act is None or (act.first_only and run > 1) else act
