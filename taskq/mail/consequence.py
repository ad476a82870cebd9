"""What a failure means for the mail and for its relay: pure, from a verdict to things to do.

A verdict about the relay snoozes: the mail keeps its attempts.  A verdict about the mail is a
`TaskError` with the server's own words.  Another relay may be asked only where it is certain that
this one has not taken the mail, and where the reason is this relay's alone: it does not work, or it
has a limit (size, SMTPUTF8) that others need not have.  Nothing that happened at or after the final
dot is taken elsewhere.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from taskq.errors import Snooze, TaskError, shown
from taskq.mail.classify import RATE_PAUSE_S, Phase, Ruling, Scope, says_too_fast
from taskq.mail.envelope import Refused
from taskq.mail.failure import SmtpFailure
from taskq.task import OUTCOME_UNKNOWN

__all__ = ["Consequence", "Declined", "consequence_of", "kindest", "unknown_relay"]

HANG_UP_SNOOZE_S = 30.0  # when the relay hangs up on one mail, after having accepted its sender
_OVER_THE_SIZE = "5.3.4"
_NO_SMTPUTF8 = "5.6.7"


class Declined(Exception):
    """A relay has not taken a mail.

    Attributes:
        error: What the task is told when nobody else takes it.
        elsewhere: Whether another relay may be asked.
        ambiguous: Whether it may have taken the mail all the same.
    """

    def __init__(self, error: Snooze | TaskError, *, elsewhere: bool, ambiguous: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.elsewhere = elsewhere
        self.ambiguous = ambiguous


@dataclass(frozen=True, slots=True)
class Consequence:
    """What to do after a failure."""

    error: TaskError | None = None
    """What the task is told; None: it is snoozed."""
    fact: str = ""
    """What is said of the relay where the task is snoozed."""
    delay_s: float | None = None
    """Seconds to snooze; None: until the relay is tried again."""
    shuts: bool = False
    """Whether the relay's breaker opens."""
    pause_s: float | None = None
    """Seconds that it opens for, where known."""
    slows: bool = False
    """Whether the relay was given mails too fast."""
    elsewhere: bool = False
    """Whether another relay may be asked."""


def consequence_of(failure: SmtpFailure, server: str, *, probe_s: float) -> Consequence:
    """Decide what a failure means.

    Args:
        failure: What happened.
        server: The relay, as people are told.
        probe_s: Seconds until another look at a relay that needs its operator.
    """
    verdict = failure.verdict
    before_dot = failure.phase is not Phase.DOT
    if verdict.scope is not Scope.RELAY:
        limited = failure.enhanced in {_OVER_THE_SIZE, _NO_SMTPUTF8}
        return Consequence(_error(failure, server), elsewhere=limited and before_dot)
    slows = _too_fast(failure)
    if verdict.ruling is Ruling.RATE:
        # The others may go on, slower; unless a longer wait was asked for, or a quota is spent.
        pause_s = verdict.hint_s or RATE_PAUSE_S
        shuts = pause_s > RATE_PAUSE_S
        delay_s = None if shuts else pause_s
        return Consequence(None, f"asks for fewer mails ({failure})", delay_s, shuts, pause_s, slows, before_dot)
    if failure.phase in {Phase.RCPT, Phase.DATA} and verdict.ruling is Ruling.TRANSIENT:
        # It may dislike just this mail, and would be shut to all others by it again and again.
        delay_s = verdict.hint_s or HANG_UP_SNOOZE_S
        return Consequence(None, f"hung up ({failure})", delay_s, slows=slows, elsewhere=True)
    pause_s = probe_s if verdict.ruling is Ruling.CONFIG else verdict.hint_s
    return Consequence(None, f"is not available ({failure})", None, True, pause_s, slows, before_dot)


def kindest(refusals: Iterable[Declined]) -> Declined:
    """Return, of what several relays said, what gives the mail the best chance: the soonest snooze, else a retry."""

    def rank(declined: Declined) -> tuple[int, float]:
        match declined.error:
            case Snooze(delay_s=delay_s):
                return 0, delay_s
            case TaskError(retryable=retryable):
                return (1 if retryable else 2), 0.0

    return min(refusals, key=rank)


def unknown_relay(asked: str, known: Iterable[str]) -> TaskError:
    """Return what a mail is told that asks for a relay that is not there; tried again, since settings can be mended."""
    names = ", ".join(known)
    return TaskError(
        f"no relay is named {shown(asked)}: the configured ones are {names}; ask for one of them, or add it to "
        f"TASKQ_SMTP_URL with name={asked[:64]}"
    )


def _error(failure: SmtpFailure, server: str) -> TaskError:
    verdict = failure.verdict
    said = f"{failure.code} {failure.text}" if failure.code >= 100 else failure.text
    about = f"{verdict.scope} at {failure.phase.upper()}"
    match verdict.ruling:
        case Ruling.PERMANENT:
            refused = f"{server} refused the {about}: {said}"
            return Refused(refused, phase=failure.phase, code=failure.code, enhanced=failure.enhanced)
        case Ruling.AMBIGUOUS:
            return TaskError(
                f"ambiguous: {server} may or may not have taken the mail ({said})",
                reason=OUTCOME_UNKNOWN,
                retry_after_s=verdict.hint_s,
            )
        case _:
            return TaskError(f"{server} put off the {about}: {said}", retry_after_s=verdict.hint_s)


def _too_fast(failure: SmtpFailure) -> bool:
    """Whether a failure of the relay asks for fewer mails; a 421 that speaks of the system's own state does not."""
    if failure.phase not in {Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.DOT}:
        return False  # a 454 is said of TLS and of logins too
    if failure.verdict.ruling is Ruling.RATE or says_too_fast(failure.text):
        return True
    return failure.code == 421 and not failure.enhanced.startswith(("4.3.", "4.4.2"))  # RFC 3463 §3.4, §3.5
