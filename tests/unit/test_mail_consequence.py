import pytest

from taskq.errors import Snooze, TaskError
from taskq.mail.classify import Event, Phase
from taskq.mail.consequence import consequence_of
from taskq.mail.failure import SmtpFailure

# phase, code, text (its enhanced code first) -> what follows
TABLE = """
CONNECT LOST      | refused                             | snooze shut elsewhere
CONNECT 554       | 5.7.1 not you                       | snooze shut300 elsewhere
AUTH    454       | 4.7.0 later                         | snooze shut60 elsewhere
AUTH    535       | 5.7.8 bad password                  | snooze shut300 elsewhere
MAIL    421       | 4.3.2 shutting down                 | snooze shut elsewhere
MAIL    421       | 4.7.0 slow down                     | snooze shut slower elsewhere
MAIL    421       | too many mails                      | snooze shut slower elsewhere
MAIL    421       | 4.3.2 too many mails                | snooze shut slower elsewhere
MAIL    432       | 4.3.2 concurrent connections        | snooze slower elsewhere
MAIL    454       | 4.7.0 throttling                    | snooze slower elsewhere
MAIL    454       | 4.7.0 try again in 2 minutes        | snooze shut130 slower elsewhere
MAIL    454       | 4.7.0 try again in 5 seconds        | snooze slower elsewhere
MAIL    454       | Daily message quota exceeded        | snooze shut600 slower elsewhere
MAIL    550       | 5.7.1 not you                       | fail
MAIL    552       | 5.3.4 too big                       | fail elsewhere
RCPT    421       | 4.3.2 not this one                  | snooze elsewhere
RCPT    421       |                                     | snooze slower elsewhere
RCPT    450       | 4.7.1 greylisted                    | retry
RCPT    550       | 5.1.1 nobody                        | fail
RCPT    553       | 5.6.7 no SMTPUTF8                   | fail elsewhere
BODY    LOST      |                                     | retry
BODY    552       | 5.3.4 too big                       | fail elsewhere
DOT     LOST      |                                     | retry
DOT     451       | 4.7.1 rate exceeded                 | snooze slower
DOT     552       | 5.3.4 too big                       | fail
"""


def rows() -> list[list[str]]:
    return [[part.strip() for part in line.split("|")] for line in TABLE.strip().splitlines()]


@pytest.mark.parametrize(("where", "text", "expected"), rows(), ids=[" ".join(row[:2]) for row in rows()])
def test_what_follows(where: str, text: str, expected: str) -> None:
    phase, code = where.split()
    enhanced = text.split(" ", maxsplit=1)[0] if text[1:2] == "." else ""
    number = Event[code] if code.isalpha() else int(code)

    what = consequence_of(SmtpFailure(Phase[phase], number, text, enhanced=enhanced), "relay", probe_s=300.0)

    words = [("fail" if not what.error.retryable else "retry") if isinstance(what.error, TaskError) else "snooze"]
    if what.shuts:
        words.append(f"shut{what.pause_s:g}" if what.pause_s else "shut")
    words += ["slower"] * what.slows + ["elsewhere"] * what.elsewhere
    assert " ".join(words) == expected


def test_the_mail_is_told_the_servers_own_words() -> None:
    what = consequence_of(SmtpFailure(Phase.RCPT, 550, "5.1.1 nobody", enhanced="5.1.1"), "relay", probe_s=300.0)

    assert not isinstance(what.error, Snooze)
    assert "relay refused the recipient at RCPT: 550 5.1.1 nobody" in str(what.error)
