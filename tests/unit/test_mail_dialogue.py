"""The server's side of an SMTP session, octet by octet: no socket, no clock."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.mail import dialogue as module
from taskq.mail.dialogue import Dialogue, Received, Reply

HELLO = b"EHLO me\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\n"
REPLY = re.compile(rb"(?:\d{3}-[^\r\n]*\r\n)*\d{3} [\x20-\x7e]*\r\n")


class Session:
    """What came out of a session that was fed."""

    def __init__(self) -> None:
        self.dialogue = Dialogue("host.test")
        self.replies: list[bytes] = []
        self.mails: list[Received] = []
        self.ended = False

    def say(self, octets: bytes, *, kept: bool = True) -> list[int]:
        """Feed; return the reply codes that came."""
        before = len(self.replies)
        self.dialogue.feed(octets)
        while (step := self.dialogue.step()) is not None:
            if isinstance(step, Received):
                self.mails.append(step)
                assert self.dialogue.step() is None, "nothing goes on before the mail is stored"
                step = self.dialogue.stored(kept=kept)
            self._keep(step)
        return [int(reply[:3]) for reply in self.replies[before:]]

    def _keep(self, reply: Reply) -> None:
        assert not self.ended
        assert REPLY.fullmatch(reply.octets), reply.octets
        self.replies.append(reply.octets)
        self.ended = reply.last


@pytest.fixture
def session() -> Session:
    opened = Session()
    assert opened.say(b"") == [220]
    return opened


def test_mail_is_received_as_it_was_meant(session: Session) -> None:
    assert session.say(HELLO + b"DATA\r\n") == [250, 250, 250, 354]
    assert session.say(b"Subject: Hi\r\n\r\n..dot\r\nx..\r\n.\r\nQUIT\r\n") == [250, 221]

    assert session.mails == [Received("a@x.test", ("b@x.test",), b"Subject: Hi\r\n\r\n.dot\r\nx..\r\n")]
    assert session.ended


def test_hello_offers_what_is_kept(session: Session) -> None:
    session.say(b"EHLO me\r\n")

    offered = session.replies[-1].decode().split("\r\n")[1:-1]
    assert [line[4:] for line in offered] == [
        "PIPELINING", f"SIZE {module.MESSAGE_OCTETS_MAX}", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES",
    ]  # fmt: skip


def test_second_mail_begins_anew(session: Session) -> None:
    session.say(HELLO + b"RCPT TO:<c@x.test>\r\nDATA\r\none\r\n.\r\n")

    assert session.say(b"RCPT TO:<b@x.test>\r\n") == [503]
    assert session.say(b"MAIL FROM:<>\r\nRCPT TO:<d@x.test>\r\nDATA\r\n.\r\n") == [250, 250, 354, 250]
    assert [(mail.sender, mail.recipients, mail.message) for mail in session.mails] == [
        ("a@x.test", ("b@x.test", "c@x.test"), b"one\r\n"),
        ("", ("d@x.test",), b""),
    ]


def test_mail_that_is_not_kept_is_put_off(session: Session) -> None:
    assert session.say(HELLO + b"DATA\r\none\r\n.\r\n", kept=False)[-1] == 451


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (b"MAIL FROM: <a@x.test>", 250),
        (b"mail from:<A@X.test> body=8bitmime smtputf8 size=12", 250),
        ("MAIL FROM:<grüße@bücher.test>".encode(), 250),
        (b"MAIL FROM:<>", 250),
        (b"MAIL FROM:a@x.test", 501),
        (b"MAIL FROM:<a@x.test", 501),
        (b"MAIL TO:<a@x.test>", 501),
        (b"MAIL", 501),
        (b"MAIL FROM:<a b@x.test>", 553),
        (b"MAIL FROM:<a@x.test> SIZE=99999999999", 552),
        (b"MAIL FROM:<a@x.test> SIZE=-1", 555),
        (b"MAIL FROM:<a@x.test> AUTH=<>", 555),
        (b"RCPT TO:<b@x.test>", 503),
        (b"DATA", 503),
        (b"DATA now", 501),
        (b"RSET", 250),
        (b"NOOP x", 250),
        (b"VRFY ada", 252),
        (b"EHLO", 501),
        (b"EHLO again", 250),
        (b"HELO again", 250),
        (b"STARTTLS", 502),
        (b"AUTH PLAIN AGEAYg==", 502),
        (b"", 502),
        (b"\xff\xfe", 500),
        (b"NOOP \r", 500),
        (b"NOOP a\rb", 500),
        (b"NOOP " + b"x" * 3_000, 500),
    ],
)
def test_command_is_answered(session: Session, command: bytes, code: int) -> None:
    session.say(b"EHLO me\r\n")

    assert session.say(command + b"\r\n") == [code]


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (b"MAIL FROM:<c@x.test>", 503),
        (b"RCPT TO:<c@x.test>", 250),
        (b"RCPT TO:<>", 553),
        (b"RCPT TO:<c@x.test> NOTIFY=NEVER", 555),
        (b"RCPT FROM:<c@x.test>", 501),
        (b"RCPT TO:<c@x.test,d@x.test>", 553),
        (b"RCPT TO:<@relay.test:c@x.test>", 553),
    ],
)
def test_command_within_a_mail_is_answered(session: Session, command: bytes, code: int) -> None:
    session.say(HELLO)

    assert session.say(command + b"\r\n") == [code]


def test_nothing_goes_before_the_greeting(session: Session) -> None:
    assert session.say(b"MAIL FROM:<a@x.test>\r\n") == [503]


def test_line_ends_with_crlf_alone(session: Session) -> None:
    assert session.say(b"EHLO me\n") == [500]
    assert session.say(b"EHLO me\r\n") == [250]


# What a generous server takes for the end of a text, and what follows for a second mail.
SMUGGLING = (
    b"\n.\n",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\r.\r",
    b"\r\n.\r",
    b"\r.\r\n",
    b"\n.\r",
    b"\r\r\n.\r\r\n",
    b"\r\n\0.\r\n",
)


@pytest.mark.parametrize("end", SMUGGLING)
def test_nothing_but_crlf_dot_crlf_ends_a_text(session: Session, end: bytes) -> None:
    session.say(HELLO + b"DATA\r\n")

    codes = session.say(b"one" + end + b"MAIL FROM:<evil@x.test>\r\nRCPT TO:<b@x.test>\r\nDATA\r\ntwo\r\n.\r\n")

    assert codes == ([550] if end != SMUGGLING[-1] else [250])
    assert [mail.sender for mail in session.mails] == ["a@x.test"] * (codes == [250])
    assert session.say(b"NOOP\r\n") == [250]


def test_large_text_is_refused_and_not_kept(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MESSAGE_OCTETS_MAX", 1_000)
    session.say(HELLO + b"DATA\r\n")

    for _ in range(100):
        assert session.say(b"x" * 98 + b"\r\n") == []
        assert len(session.dialogue._buffer) <= 1_200
    assert session.say(b".\r\n") == [552]

    assert session.mails == []
    assert session.say(HELLO[9:] + b"DATA\r\nfits\r\n.\r\n") == [250, 250, 354, 250]


@pytest.mark.parametrize("octets", [1_000, 1_001])
def test_text_may_be_as_large_as_offered(session: Session, monkeypatch: pytest.MonkeyPatch, octets: int) -> None:
    monkeypatch.setattr(module, "MESSAGE_OCTETS_MAX", 1_000)
    session.say(HELLO + b"DATA\r\n")

    assert session.say(b"x" * (octets - 2) + b"\r\n.\r\n") == [250 if octets == 1_000 else 552]


def test_recipients_are_bounded(session: Session) -> None:
    session.say(b"EHLO me\r\nMAIL FROM:<a@x.test>\r\n")

    codes = session.say(b"".join(b"RCPT TO:<b%d@x.test>\r\n" % n for n in range(101)))

    assert codes == [250] * 100 + [452]
    session.say(b"DATA\r\n.\r\n")
    assert len(session.mails[0].recipients) == 100


def test_recipient_named_twice_is_one(session: Session) -> None:
    session.say(HELLO + b"RCPT TO:<b@X.test>\r\nDATA\r\n.\r\n")

    assert session.mails[0].recipients == ("b@x.test",)


def test_endless_line_ends_the_session(session: Session) -> None:
    codes = [code for _ in range(30) if not session.ended for code in session.say(b"x" * 100)]

    assert (codes, session.ended) == ([421], True)


def test_many_mistakes_end_the_session(session: Session) -> None:
    codes = session.say(b"WHAT\r\n" * 30)

    assert codes == [502] * 19 + [421]
    assert session.ended


pieces = st.lists(
    st.sampled_from(
        [
            b"EHLO me\r\n", b"MAIL FROM:<a@x.test>\r\n", b"RCPT TO:<b@x.test>\r\n", b"DATA\r\n", b"RSET\r\n",
            b"\r\n.\r\n", b".", b"\r", b"\n", b"..", b"text", b"QUIT\r\n", b"\0", b"\xff", b"<", b">", b" ",
        ]
    ) | st.binary(max_size=20),
    max_size=40,
).map(b"".join)  # fmt: skip


@given(octets=pieces, cuts=st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_session_is_the_same_however_it_is_cut(octets: bytes, cuts: list[int]) -> None:
    whole, cut = Session(), Session()

    whole.say(octets)
    rest, n = octets, 0
    cut.say(b"")
    while rest:
        size = cuts[n % len(cuts)]
        cut.say(rest[:size])
        rest, n = rest[size:], n + 1

    assert (cut.replies, cut.mails, cut.ended) == (whole.replies, whole.mails, whole.ended)


lines = st.lists(st.sampled_from([b"", b".", b"..", b".x", b"x", b"a.b", b"\xe4\0"]) | st.binary(max_size=9)).map(
    lambda lines: b"".join(re.sub(rb"[\r\n]", b"", line) + b"\r\n" for line in lines)
)


@given(text=lines)
def test_any_text_arrives_as_it_was_sent(text: bytes) -> None:
    session = Session()
    stuffed = (b"\r\n" + text).replace(b"\r\n.", b"\r\n..")[2:]

    session.say(HELLO + b"DATA\r\n" + stuffed + b".\r\n")

    assert [mail.message for mail in session.mails] == [text]


def test_end_from_this_side_says_why(session: Session) -> None:
    reply = session.dialogue.end("nothing came for 300 s")

    assert reply == Reply(b"421 4.3.2 host.test: nothing came for 300 s\r\n", last=True)
    assert session.say(b"NOOP\r\n") == []
