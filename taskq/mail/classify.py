"""What a reply means: a pure table from (phase, code, enhanced code, text, reused) to a verdict.

A verdict answers two questions.  *Whose* fault: the relay's (then no task loses an attempt and the
relay's breaker may open), the message's or the recipient's.  *What now*: accepted; transient, try
again; permanent, never again; ambiguous, the relay may or may not have taken it; stale, a reused
connection had died and nothing was lost, open another at once; config, somebody must change a
setting; rate, we were too fast.

Rules are data, read from the top; the first that matches decides.  The first digit of the code
decides in the end, unless the enhanced code (RFC 3463) contradicts it: a 5xx of class 4 is
transient.  What is no reply at all has a code below 100: see `Event`.
"""

import re
from dataclasses import dataclass
from enum import IntEnum, StrEnum, auto

__all__ = ["Event", "Phase", "Ruling", "Scope", "Verdict", "classify", "says_too_fast"]


class Phase(StrEnum):
    """Where a transaction stood when something happened."""

    CONNECT = auto()
    """From the name lookup to the banner."""
    TLS = auto()
    EHLO = auto()
    AUTH = auto()
    RSET = auto()
    """Clears what an earlier refused transaction left behind; always on a reused connection."""
    MAIL = auto()
    RCPT = auto()
    DATA = auto()
    """The command, not the text."""
    BODY = auto()
    """The text up to the final dot, exclusive: the mail can't have been taken."""
    DOT = auto()
    """From writing the final dot to reading its reply: the mail may have been taken."""


class Event(IntEnum):
    """What can happen instead of a reply; smaller than any code."""

    LOST = 1
    """Refused, reset or closed."""
    HUNG = 2
    """Nothing came within the limit of the phase."""
    GARBAGE = 3
    """Something came that is no reply, or none that fits here."""
    MISSING = 4
    """The relay lacks an extension that we need."""
    UNTRUSTED = 5
    """No TLS session that we may trust."""


class Scope(StrEnum):
    """Whose fault it is."""

    RELAY = auto()
    MESSAGE = auto()
    RECIPIENT = auto()


class Ruling(StrEnum):
    """What follows."""

    ACCEPTED = auto()
    TRANSIENT = auto()
    PERMANENT = auto()
    AMBIGUOUS = auto()
    STALE = auto()
    CONFIG = auto()
    RATE = auto()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a reply means for the relay, the message or the recipient."""

    scope: Scope
    """Whose fault it is."""
    ruling: Ruling
    """What follows."""
    hint_s: float | None = None
    """Seconds until another try makes sense, where known."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """Matches when every condition that it states holds; then the verdict is given."""

    phases: frozenset[Phase]
    codes: frozenset[int] | None
    verdict: Verdict
    enhanced: re.Pattern[str] | None = None
    text: re.Pattern[str] | None = None
    reused: bool = False

    def matches(self, phase: Phase, code: int, enhanced: str, text: str, *, reused: bool) -> bool:
        return (
            phase in self.phases
            and (self.codes is None or code in self.codes)
            and (self.enhanced is None or self.enhanced.match(enhanced) is not None)
            and (self.text is None or self.text.search(text) is not None)
            and (reused or not self.reused)
        )


SLOW_PROBE_S = 300.0  # until the next look at a relay that needs its operator
AMBIGUOUS_RETRY_S = 300.0  # time enough for a receiver to have the first copy when the second one comes
RATE_PAUSE_S = 30.0  # when a relay says "slower" and names no time
QUOTA_PAUSE_S = 600.0  # when a daily or credit quota is spent: soon is pointless
AUTH_PAUSE_S = 60.0  # a login server that is down
GREYLIST_RETRY_S = 75.0  # most greylists open after 60 seconds
NAMED_DELAY_MARGIN_S = 10.0  # added to a delay that the text names, since clocks differ
NAMED_DELAY_S_MAX = 3_600.0


def _phases(*phases: Phase) -> frozenset[Phase]:
    return frozenset(phases)


def _codes(*parts: int | range) -> frozenset[int]:
    return frozenset(code for part in parts for code in ([part] if isinstance(part, int) else part))


_SETTING_UP = _phases(Phase.CONNECT, Phase.TLS, Phase.EHLO, Phase.AUTH)
_COMMANDS = _phases(Phase.MAIL, Phase.RCPT, Phase.DATA)
_NO_REPLY = _codes(Event.LOST, Event.HUNG, Event.GARBAGE)
_4XX = _codes(range(400, 500))
_5XX = _codes(range(500, 600))

_TOO_FAST = re.compile(r"\brate\b|too many|too fast|throttl|quota|credits exceeded", re.IGNORECASE)
_SPENT = re.compile(r"quota|credits exceeded", re.IGNORECASE)
_SPENT_FOR_TODAY = re.compile(
    r"daily \S+( \S+)? (limit|quota) exceeded|daily (limit|quota) exceeded|RecipientRateLimit", re.IGNORECASE
)
_GREYLISTED = re.compile(r"gr[ea]y-?list", re.IGNORECASE)
_NAMED_DELAY = re.compile(r"\b(\d{1,5})\s*(second|minute)s?\b", re.IGNORECASE)

_RELAY = Verdict(Scope.RELAY, Ruling.TRANSIENT)
_CONFIG = Verdict(Scope.RELAY, Ruling.CONFIG, SLOW_PROBE_S)
_STALE = Verdict(Scope.RELAY, Ruling.STALE)
_RATE = Verdict(Scope.RELAY, Ruling.RATE, RATE_PAUSE_S)
_SPENT_QUOTA = Verdict(Scope.RELAY, Ruling.RATE, QUOTA_PAUSE_S)
_AMBIGUOUS = Verdict(Scope.MESSAGE, Ruling.AMBIGUOUS, AMBIGUOUS_RETRY_S)
_MESSAGE_LATER = Verdict(Scope.MESSAGE, Ruling.TRANSIENT)
_MESSAGE_NEVER = Verdict(Scope.MESSAGE, Ruling.PERMANENT)
_RECIPIENT_LATER = Verdict(Scope.RECIPIENT, Ruling.TRANSIENT)
_RECIPIENT_NEVER = Verdict(Scope.RECIPIENT, Ruling.PERMANENT)
_ACCEPTED = Verdict(Scope.MESSAGE, Ruling.ACCEPTED)

_4 = re.compile(r"4\.")
_OF_RATE = re.compile(r"4\.7\.|4\.3\.2$")

_RULES = (
    # Setting up a connection: nothing here is about a message.
    _Rule(_phases(Phase.CONNECT), _codes(Event.UNTRUSTED) | _5XX, _CONFIG),
    _Rule(_phases(Phase.TLS, Phase.AUTH), _codes(Event.UNTRUSTED, Event.MISSING) | _5XX, _CONFIG),
    _Rule(_phases(Phase.AUTH), _codes(421, 454) | _4XX, Verdict(Scope.RELAY, Ruling.TRANSIENT, AUTH_PAUSE_S)),
    _Rule(_SETTING_UP, None, _RELAY),
    # A reused connection that had died, or that our own desynchronisation spoilt.
    _Rule(_phases(Phase.RSET), None, _STALE),
    _Rule(_phases(Phase.MAIL), _codes(Event.LOST), _STALE, reused=True),
    _Rule(_phases(Phase.MAIL), _codes(451), _STALE, enhanced=re.compile(r"4\.4\.2$"), reused=True),
    _Rule(_COMMANDS, _codes(421, 503), _STALE, reused=True),
    # The relay speaks about itself or about us.
    _Rule(_phases(Phase.MAIL), _NO_REPLY | _codes(421), _RELAY),
    _Rule(_phases(Phase.RCPT, Phase.DATA), _codes(421), _RELAY),
    _Rule(_COMMANDS, _codes(530, 535, 538), _CONFIG),
    _Rule(_phases(Phase.MAIL, Phase.DOT), _codes(range(400, 420), range(422, 500)), _SPENT_QUOTA, text=_SPENT),
    _Rule(_phases(Phase.MAIL, Phase.RCPT, Phase.DOT), _5XX, _SPENT_QUOTA, text=_SPENT_FOR_TODAY),
    _Rule(_phases(Phase.MAIL), _codes(432, 454), _RATE),
    _Rule(_phases(Phase.MAIL), _4XX, _RATE, enhanced=_OF_RATE),
    _Rule(_phases(Phase.MAIL, Phase.DOT), _4XX, _RATE, text=_TOO_FAST),
    # The one span where nobody can know.
    _Rule(_phases(Phase.DOT), _NO_REPLY, _AMBIGUOUS),
    # The recipient.
    _Rule(_phases(Phase.RCPT), _4XX, Verdict(Scope.RECIPIENT, Ruling.TRANSIENT, GREYLIST_RETRY_S), text=_GREYLISTED),
    _Rule(_phases(Phase.RCPT), _codes(552) | _4XX, _RECIPIENT_LATER),  # RFC 5321 §4.5.3.1.10: 552 means 452 here
    _Rule(_phases(Phase.RCPT), _5XX, _RECIPIENT_LATER, enhanced=re.compile(r"4\.|5\.2\.2$")),
    _Rule(_phases(Phase.RCPT), _codes(501), _RECIPIENT_NEVER, enhanced=re.compile(r"5\.1\.")),
    _Rule(_phases(Phase.RCPT), _codes(500, 501, 502, 504), _MESSAGE_NEVER),
    _Rule(_phases(Phase.RCPT), _codes(503), _MESSAGE_LATER),
    _Rule(_phases(Phase.RCPT), _5XX, _RECIPIENT_NEVER),
    # The message, by the first digit.
    _Rule(_phases(Phase.MAIL, Phase.DATA), _codes(503), _MESSAGE_LATER),
    _Rule(frozenset(Phase), _5XX, _MESSAGE_LATER, enhanced=_4),
    _Rule(frozenset(Phase), _5XX, _MESSAGE_NEVER),
    _Rule(_phases(Phase.DOT), _codes(range(200, 300)), _ACCEPTED),
)


def classify(phase: Phase, code: int, enhanced: str, text: str, reused: bool) -> Verdict:  # noqa: FBT001 - one row of a table
    """Return what a reply, or the lack of one, means.

    Args:
        phase: Where the transaction stood.
        code: Reply code, or an `Event` where there was no reply.
        enhanced: Enhanced status code such as `5.1.1`; empty when the reply has none.
        text: The server's words.
        reused: Whether the connection had served an earlier transaction.
    """
    for rule in _RULES:
        if rule.matches(phase, code, enhanced, text, reused=reused):
            verdict = rule.verdict
            break
    else:
        verdict = _MESSAGE_LATER
    if verdict.ruling in {Ruling.TRANSIENT, Ruling.RATE} and 400 <= code < 600 and (named_s := _named_delay_s(text)):
        return Verdict(verdict.scope, verdict.ruling, named_s)
    return verdict


def says_too_fast(text: str) -> bool:
    """Whether a reply's text asks for fewer mails."""
    return _TOO_FAST.search(text) is not None


def _named_delay_s(text: str) -> float | None:
    """Return the delay that a text such as "try again in 5 minutes" names, and a margin."""
    found = _NAMED_DELAY.search(text)
    if found is None:
        return None
    seconds = float(found.group(1)) * (60.0 if found.group(2).lower() == "minute" else 1.0)
    return min(seconds + NAMED_DELAY_MARGIN_S, NAMED_DELAY_S_MAX)
