"""What a verdict means for the task: a pure step from `classify` to the exception a transport raises.

The relay's fault snoozes the task, which keeps its attempt.  The mail's or the recipient's fault
fails the run, for good or until the time that the reply named.  Not knowing whether the mail was
taken is said as that; it is sent again, late enough for the receiver to recognise the Message-ID.
"""

from taskq.errors import Snooze, TaskError
from taskq.mail.classify import Phase, Ruling, Scope, Verdict

__all__ = ["consequence"]

SNOOZE_S = 30.0  # where a verdict about a relay names no time


def consequence(verdict: Verdict, who: str, phase: Phase, code: int, text: str) -> Snooze | TaskError:
    """Return what to raise for a mail that was not accepted.

    Args:
        verdict: What the reply means; not "accepted".
        who: The relay, without secrets.
        phase: Where the transaction stood.
        code: Reply code, or an `Event` where there was no reply.
        text: The server's words, its enhanced code included.
    """
    said = f"{code} {text}" if code >= 100 else text
    if verdict.scope is Scope.RELAY:
        fact = f"{who} is not available ({phase}: {said}): tried again, no attempt is used up"
        return Snooze(fact, delay_s=verdict.hint_s or SNOOZE_S)
    about = f"{verdict.scope} at {phase.upper()}"
    match verdict.ruling:
        case Ruling.PERMANENT:
            return TaskError(f"{who} refused the {about}: {said}", retryable=False, reason="permanent")
        case Ruling.AMBIGUOUS:
            return TaskError(
                f"ambiguous: {who} may or may not have taken the mail ({said}); it is sent again with the same "
                f"Message-ID",
                reason="outcome_unknown",
                retry_after_s=verdict.hint_s,
            )
        case _:
            return TaskError(f"{who} put off the {about}: {said}", retry_after_s=verdict.hint_s)
