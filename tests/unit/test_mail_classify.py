import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.mail.classify import Event, Phase, Ruling, Scope, classify

PHASES = {phase.name: phase for phase in Phase}
EVENTS = {event.name: event.value for event in Event}

# phase, code or event, text (its enhanced code first), reused -> scope, ruling, hint
TABLE = """
CONNECT LOST      | name lookup failed                          | new    | relay     transient
CONNECT HUNG      | no banner                                   | new    | relay     transient
CONNECT GARBAGE   | HTTP/1.1 400                                | new    | relay     transient
CONNECT 421       | 4.3.2 too many connections                  | new    | relay     transient
CONNECT 421       | 4.7.0 try again in 3 minutes                | new    | relay     transient  190
CONNECT 554       | go away                                     | new    | relay     config     300
TLS     UNTRUSTED | certificate has expired                     | new    | relay     config     300
CONNECT UNTRUSTED | wrong version number                        | new    | relay     config     300
TLS     MISSING   | STARTTLS not offered                        | new    | relay     config     300
TLS     502       | 5.5.1 not implemented                       | new    | relay     config     300
TLS     454       | 4.7.0 TLS not available                     | new    | relay     transient
TLS     LOST      | closed                                      | new    | relay     transient
TLS     HUNG      |                                             | new    | relay     transient
EHLO    421       | shutting down                               | new    | relay     transient
EHLO    550       | who are you                                 | new    | relay     transient
EHLO    LOST      |                                             | new    | relay     transient
AUTH    535       | 5.7.8 bad password                          | new    | relay     config     300
AUTH    534       | 5.7.9 mechanism too weak                    | new    | relay     config     300
AUTH    538       | 5.7.11 encryption required                  | new    | relay     config     300
AUTH    MISSING   | no method                                   | new    | relay     config     300
AUTH    454       | 4.7.0 temporary failure                     | new    | relay     transient  60
AUTH    421       |                                             | new    | relay     transient  60
AUTH    LOST      |                                             | new    | relay     transient
RSET    LOST      |                                             | reused | relay     stale
RSET    421       |                                             | reused | relay     stale
RSET    500       |                                             | reused | relay     stale
MAIL    LOST      |                                             | reused | relay     stale
MAIL    421       | maximum message count per session reached   | reused | relay     stale
MAIL    451       | 4.4.2 timeout waiting for data from client  | reused | relay     stale
MAIL    503       | 5.5.1 nested MAIL                           | reused | relay     stale
RCPT    421       |                                             | reused | relay     stale
DATA    421       |                                             | reused | relay     stale
MAIL    LOST      |                                             | new    | relay     transient
MAIL    HUNG      |                                             | reused | relay     transient
MAIL    GARBAGE   |                                             | new    | relay     transient
MAIL    421       | 4.3.2 shutting down                         | new    | relay     transient
MAIL    451       | 4.4.2 timeout                               | new    | message   transient
MAIL    450       | 4.1.8 unknown sender domain                 | new    | message   transient
MAIL    452       | 4.3.1 insufficient storage                  | new    | message   transient
MAIL    432       | 4.3.2 STOREDRV limit                        | new    | relay     rate       30
MAIL    451       | 4.3.2 concurrent connections limit          | new    | relay     rate       30
MAIL    454       | 4.7.0 Daily message quota exceeded          | new    | relay     rate       600
MAIL    451       | Authentication failed: Maximum credits exceeded | new | relay    rate       600
MAIL    450       | 4.7.1 slow down                             | new    | relay     rate       30
MAIL    450       | too many messages, retry in 90 seconds      | new    | relay     rate       100
MAIL    550       | 5.4.5 Daily user sending limit exceeded.    | new    | relay     rate       600
RCPT    550       | 5.4.5 Daily SMTP relay limit exceeded       | new    | relay     rate       600
DOT     554       | 5.2.0 STOREDRV RecipientRateLimitExceeded   | new    | relay     rate       600
MAIL    503       | 5.5.1 EHLO first                            | new    | message   transient
MAIL    530       | 5.7.0 authentication required               | new    | relay     config     300
RCPT    530       | 5.7.0 must issue STARTTLS                   | new    | relay     config     300
MAIL    550       | 5.7.1 sender not authorised                 | new    | message   permanent
MAIL    553       | 5.1.8 sender address                        | new    | message   permanent
MAIL    552       | 5.3.4 message too big                       | new    | message   permanent
MAIL    501       | 5.1.7 bad sender syntax                     | new    | message   permanent
MAIL    550       | 4.7.1 come back                             | new    | message   transient
RCPT    450       | 4.2.0 Greylisted, see http://x              | new    | recipient transient  75
RCPT    450       | 4.2.0 Greylisted for 300 seconds            | new    | recipient transient  310
RCPT    450       | 4.7.1 policy                                | new    | recipient transient
RCPT    451       |                                             | new    | recipient transient
RCPT    452       | 4.5.3 too many recipients                   | new    | recipient transient
RCPT    552       | 5.2.2 mailbox full                          | new    | recipient transient
RCPT    550       | 5.2.2 over quota                            | new    | recipient transient
RCPT    550       | 4.1.1 odd                                   | new    | recipient transient
RCPT    550       | 5.1.1 no such user                          | new    | recipient permanent
RCPT    551       |                                             | new    | recipient permanent
RCPT    553       | 5.6.7 no SMTPUTF8                           | new    | recipient permanent
RCPT    521       |                                             | new    | recipient permanent
RCPT    556       | 5.1.10 null MX                              | new    | recipient permanent
RCPT    550       | 5.7.1 relay denied                          | new    | recipient permanent
RCPT    501       | 5.1.3 bad recipient syntax                  | new    | recipient permanent
RCPT    501       | 5.5.4 bad parameter                         | new    | message   permanent
RCPT    500       |                                             | new    | message   permanent
RCPT    503       |                                             | new    | message   transient
RCPT    421       |                                             | new    | relay     transient
RCPT    LOST      |                                             | new    | message   transient
RCPT    LOST      |                                             | reused | message   transient
RCPT    HUNG      |                                             | new    | message   transient
DATA    451       |                                             | new    | message   transient
DATA    421       |                                             | new    | relay     transient
DATA    554       | 5.5.0 no                                    | new    | message   permanent
DATA    LOST      |                                             | new    | message   transient
BODY    LOST      |                                             | reused | message   transient
BODY    HUNG      |                                             | new    | message   transient
BODY    552       | 5.3.4 too big                               | new    | message   permanent
DOT     250       | 2.0.0 Ok                                    | new    | message   accepted
DOT     LOST      |                                             | reused | message   ambiguous  300
DOT     HUNG      |                                             | new    | message   ambiguous  300
DOT     GARBAGE   |                                             | new    | message   ambiguous  300
DOT     421       | 4.3.0 later                                 | reused | message   transient
DOT     451       | 4.3.0 later                                 | new    | message   transient
DOT     451       | 4.7.1 content deferred by filter            | new    | message   transient
DOT     451       | 4.7.1 sending rate exceeded                 | new    | relay     rate       30
DOT     454       | Throttling failure: daily quota             | new    | relay     rate       600
DOT     550       | 5.7.1 spam                                  | new    | message   permanent
DOT     554       | 5.6.0 content                               | new    | message   permanent
DOT     552       | 5.3.4 too big                               | new    | message   permanent
DOT     554       | 4.3.0 odd                                   | new    | message   transient
"""


def rows() -> list[tuple[str, str, str, str]]:
    return [tuple(map(str.strip, line.split("|"))) for line in TABLE.strip().splitlines()]  # type: ignore[misc]


@pytest.mark.parametrize(("where", "text", "reused", "expected"), rows())
def test_classify_gives_each_row_its_verdict(where: str, text: str, reused: str, expected: str) -> None:
    phase, code = where.split()
    enhanced = text.split(" ", maxsplit=1)[0] if text[:1].isdigit() and text[1:2] == "." else ""

    verdict = classify(PHASES[phase], EVENTS.get(code) or int(code), enhanced, text, reused == "reused")

    scope, ruling, *hint = expected.split()
    assert (verdict.scope, verdict.ruling) == (scope, ruling)
    assert verdict.hint_s == (float(hint[0]) if hint else None)


codes = st.sampled_from([*Event]) | st.integers(200, 599)


@given(
    phase=st.sampled_from(Phase),
    code=codes,
    enhanced=st.sampled_from(["", "4.7.1", "5.1.1"]),
    text=st.text(max_size=40),
    reused=st.booleans(),
)
def test_classify_keeps_its_promises(phase: Phase, code: int, enhanced: str, text: str, *, reused: bool) -> None:
    verdict = classify(phase, code, enhanced, text, reused)

    if verdict.ruling is Ruling.ACCEPTED:
        assert phase is Phase.DOT
        assert 200 <= code < 300
    if verdict.ruling is Ruling.AMBIGUOUS:
        assert phase is Phase.DOT
        assert code < 100
    if verdict.ruling is Ruling.PERMANENT:
        assert 500 <= code < 600
        assert verdict.scope is not Scope.RELAY
    if verdict.ruling is Ruling.STALE:
        assert reused or phase is Phase.RSET
        assert phase in {Phase.RSET, Phase.MAIL, Phase.RCPT, Phase.DATA}
    if phase in {Phase.CONNECT, Phase.TLS, Phase.EHLO, Phase.AUTH}:
        assert verdict.scope is Scope.RELAY


def test_classify_bounds_a_delay_that_the_text_names() -> None:
    verdict = classify(Phase.RCPT, 450, "4.2.0", "4.2.0 come back in 99999 minutes", reused=False)

    assert verdict.hint_s == 3_600.0
