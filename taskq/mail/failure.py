"""How a connection or a transaction ends when no mail was accepted: one exception for all of it.

It says where the dialogue stood and what came, or that nothing came; what that means is looked up
in `classify`, so that the module that speaks and the one that judges share nothing else.
"""

from typing import Self

from taskq.mail.classify import Event, Phase, Verdict, classify

__all__ = ["SmtpFailure"]


class SmtpFailure(Exception):
    """A connection or a transaction ended otherwise than with an accepted mail.

    Attributes:
        phase: Where it stood.
        code: Reply code, or an `Event` when there was no reply.
        enhanced: Enhanced status code; may be empty.
        text: The server's words, or ours when it said nothing.
        reused: Whether the connection had served an earlier transaction.
    """

    def __init__(self, phase: Phase, code: int, text: str, *, enhanced: str = "", reused: bool = False) -> None:
        super().__init__(f"{phase}: {code} {text}" if code >= 100 else f"{phase}: {text}")
        self.phase = phase
        self.code = code
        self.enhanced = enhanced
        self.text = text
        self.reused = reused

    @classmethod
    def refusal(cls, phase: Phase, code: int, text: str, enhanced: str) -> Self:
        """Make a failure of a reply; one that neither refuses nor fits is garbage."""
        if 400 <= code < 600:
            return cls(phase, code, text, enhanced=enhanced)
        return cls(phase, Event.GARBAGE, f"unexpected reply {code} {text}", enhanced=enhanced)

    @property
    def verdict(self) -> Verdict:
        """What it means."""
        return classify(self.phase, self.code, self.enhanced, self.text, self.reused)
