"""What one try was: when it began, how long each stage took, how far it came.

The modules that speak SMTP tell it the stage and the phase that they enter; a try that is over is
written out as a flat mapping of values that JSON knows, for the record of the attempt.  It holds
nothing of the mail; the server's own words may quote its recipient.
"""

import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from taskq.mail.classify import Phase, Ruling, Scope
from taskq.mail.failure import SmtpFailure

__all__ = ["Trace"]

TEXT_CHARS_MAX = 500  # kept of what was said


class Trace:
    """One try as it goes.

    Stages are coarser than phases: `connect` (name lookup to EHLO), `tls`, `auth`, `envelope` (RSET
    to DATA) and `data` (the content and its final dot).
    """

    __slots__ = ("_began_at", "_stages", "phase")

    def __init__(self) -> None:
        self._began_at = time.monotonic()
        self._stages: list[tuple[str, float]] = []
        self.phase = Phase.CONNECT
        """Where it stands."""

    def enter(self, stage: str) -> None:
        """Note that a stage begins, and that the one before is over."""
        self._stages.append((stage, time.monotonic()))

    def accepted(self, reply: tuple[int, str], enhanced: str, remote_id: str | None) -> dict[str, object]:
        """Return the facts of a mail that the relay took, with these words."""
        self.phase = Phase.DOT
        return self._facts(Ruling.ACCEPTED, None, reply, enhanced, remote_id)

    def failed(self, failure: SmtpFailure) -> dict[str, object]:
        """Return the facts of a try that ended otherwise; there is no code where there was no reply."""
        self.phase, verdict = failure.phase, failure.verdict
        return self._facts(verdict.ruling, verdict.scope, (failure.code, failure.text), failure.enhanced)

    def cut(self, why: str) -> dict[str, object]:
        """Return the facts of a try that we ended ourselves: past the dot nobody knows what became of it."""
        ruling = Ruling.AMBIGUOUS if self.phase is Phase.DOT else None
        return self._facts(ruling, None, (0, why), "")

    def _facts(
        self,
        ruling: Ruling | None,
        scope: Scope | None,
        said: tuple[int, str],
        enhanced: str,
        remote_id: str | None = None,
    ) -> dict[str, object]:
        self.enter("end")
        ended_at = datetime.now(UTC)
        took_s = self._stages[-1][1] - self._began_at
        code, text = said
        return {
            "started_at": (ended_at - timedelta(seconds=took_s)).isoformat(),
            "ended_at": ended_at.isoformat(),
            "ms": {name: round((end - at) * 1_000, 3) for (name, at), (_, end) in pairwise(self._stages)},
            "phase": str(self.phase),
            "ruling": ruling and str(ruling),
            "scope": scope and str(scope),
            "code": code if code >= 100 else None,
            "enhanced": enhanced or None,
            "text": text[:TEXT_CHARS_MAX],
            "remote_id": remote_id,
            "ambiguous": ruling is Ruling.AMBIGUOUS,
        }
