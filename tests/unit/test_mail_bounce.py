"""Delivery reports: what is read out of them, what they mean, and that no bytes do harm."""

import contextlib
import time
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from reports import report_of

from taskq.mail.bounce import ACTIONS, Fate, NoReport, Report, parse_report
from taskq.mail.feedback import is_gone, never_again

UID = UUID("01890a5d-ac96-8b4b-bcce-b302099a8057")
OTHER = UUID("01890a5d-ac96-8b4b-bcce-b302099a8058")


def fate_of(message: bytes) -> Fate:
    (fate,) = parse_report(message).fates
    return fate


# -- what is read


def test_report_names_the_recipient_and_what_became_of_it() -> None:
    fate = fate_of(report_of(original="Ada@ok.test"))

    assert fate == Fate(
        "ada@ok.test",
        "Ada@ok.test",
        "failed",
        "5.1.1",
        "550 5.1.1 <ada@ok.test>: Recipient address rejected: this mailbox is gone",
    )


def test_report_names_the_mail_by_envelope_id_before_message_id() -> None:
    report = parse_report(report_of(envid=UID.hex, message_id=str(OTHER)))

    assert report.uids == (UID, OTHER)


@pytest.mark.parametrize("envid", ["", "QQ314159", UID.hex[:-1]])
def test_report_without_our_envelope_id_names_the_mail_by_its_message_id(envid: str) -> None:
    assert parse_report(report_of(envid=envid, message_id=str(UID))).uids == (UID,)


def test_report_that_returns_the_whole_mail_names_it_too() -> None:
    whole = report_of(message_id=str(UID)).replace(b"text/rfc822-headers", b"message/rfc822")

    assert parse_report(whole).uids == (UID,)


def test_report_with_bare_line_feeds_is_read() -> None:
    assert fate_of(report_of().replace(b"\r\n", b"\n")).recipient == "ada@ok.test"


def test_report_in_utf8_names_an_address_beyond_ascii() -> None:
    message = report_of(recipient="żaneta@ok.test").replace(b"delivery-status\r\n", b"global-delivery-status\r\n")
    message = message.replace(b"Final-Recipient: rfc822", b"Final-Recipient: utf-8")

    assert b"message/global-delivery-status" in message
    assert fate_of(message).recipient == "żaneta@ok.test"


def test_report_in_ascii_spells_an_address_beyond_ascii_out() -> None:
    message = report_of(recipient=r"\x{17C}aneta@ok.test").replace(b"-Recipient: rfc822; ", b"-Recipient: utf-8; ")

    assert fate_of(message).recipient == "żaneta@ok.test"


def test_report_of_several_recipients_keeps_them_apart() -> None:
    second = b"\r\nFinal-Recipient: rfc822; bob@ok.test\r\nAction: delayed\r\nStatus: 4.4.1\r\n"
    message = report_of().replace(b"gone\r\n\r\n--", b"gone\r\n" + second + b"\r\n--")

    fates = parse_report(message).fates

    assert [(fate.recipient, fate.action, fate.status) for fate in fates] == [
        ("ada@ok.test", "failed", "5.1.1"),
        ("bob@ok.test", "delayed", "4.4.1"),
    ]


def test_report_with_a_comment_behind_its_status_is_read() -> None:
    assert (
        fate_of(report_of(status="5.1.1 (bad destination mailbox address)", action="Failed (gone)")).status == "5.1.1"
    )


@pytest.mark.parametrize(
    ("message", "fact"),
    [
        (b"", "no multipart/report"),
        (b"From: ada@ok.test\r\nSubject: Hi\r\n\r\nHi", "text/plain, no multipart/report"),
        (report_of().replace(b"message/delivery-status", b"text/plain"), "no part of type message/delivery-status"),
        (report_of(action="vanished"), "no recipient with an action and a status"),
        (report_of(status="gone"), "no recipient with an action and a status"),
        (report_of(recipient=""), "no recipient with an action and a status"),
    ],
    ids=["nothing", "a mail", "no status part", "unknown action", "no status", "no recipient"],
)
def test_anything_else_is_refused_with_what_is_missing(message: bytes, fact: str) -> None:
    with pytest.raises(NoReport, match=fact):
        parse_report(message)


# -- no bytes do harm

MUTATIONS = st.lists(st.tuples(st.integers(0, 2_000), st.binary(max_size=30), st.integers(0, 30)), max_size=12)


@given(MUTATIONS)
def test_damaged_report_is_read_or_refused(mutations: list[tuple[int, bytes, int]]) -> None:
    message = report_of(envid=UID.hex)
    for at, inserted, cut in mutations:
        message = message[:at] + inserted + message[at + cut :]

    try:
        report = parse_report(message)
    except NoReport:
        return
    assert is_sound(report)


LINES = st.sampled_from(
    [
        "Content-Type: multipart/report; boundary=b", "Content-Type: message/delivery-status",
        "Content-Type: message/global-delivery-status", "Content-Type: message/rfc822",
        "Content-Type: multipart/report; boundary*0*=utf-8''%ff; boundary*1=b", "Content-Type: text/rfc822-headers",
        "Content-Transfer-Encoding: base64", "--b", "--b--", "", "", " folded", "Final-Recipient: utf-8; \\x{110000}@a",
        "Final-Recipient: rfc822; a@b", "Action: failed", "Status: 5.1.1", "Original-Envelope-Id: " + UID.hex,
        "Message-ID: <" + str(UID) + "@b>", "\udcff: \udcfe", ":", "\0", "Subject: =?utf-8?q?=ff?=",
    ]
)  # fmt: skip


@given(st.lists(LINES, max_size=40))
@example(
    [
        "Content-Type: multipart/report; boundary=b", "", "--b", "Content-Type: message/global-delivery-status", "",
        "Original-Envelope-Id: " + UID.hex, "", "Final-Recipient: utf-8; \\x{110000}@a", "Action: failed",
        "Status: 5.1.1", "--b--",
    ]
)  # fmt: skip
def test_lines_in_any_order_are_read_or_refused(lines: list[str]) -> None:
    try:
        report = parse_report("\r\n".join(lines).encode("utf-8", "surrogateescape"))
    except NoReport:
        return
    assert is_sound(report)


def is_sound(report: Report) -> bool:
    """Whether a report keeps what its fields promise, and can be stored."""
    return len(report.fates) >= 1 and all(
        fate.action in ACTIONS
        and fate.status[0] in "245"
        and "\0" not in fate.diagnostic
        and fate.diagnostic.encode() is not None
        and len(fate.diagnostic) <= 500
        for fate in report.fates
    )


@pytest.mark.parametrize(
    "message",
    [
        b"".join(b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n) for n in range(20_000)),
        b"Content-Type: message/rfc822\r\n\r\n" * 20_000,
        report_of() + b"--4TkY.1709017510/relay.ok.test\r\n\r\n" * 50_000,
        b"Content-Type: multipart/report; boundary=b\r\n\r\n--b\r\nContent-Type: message/delivery-status\r\n\r\n"
        + b"a: b\r\n\r\n" * 200_000,
        b"Content-Type: multipart/report;" + b" a=b;" * 100_000 + b"\r\n\r\n",
        b"Content-Type: multipart/report; boundary=b\r\n\r\n--b\r\nContent-Type: message/delivery-status\r\n\r\na: b"
        b"\r\n\r\nStatus:" + b" " * 250_000 + b"x\r\n",
    ],
    ids=["parts in parts", "mails in mails", "many parts", "many blocks", "many parameters", "blanks"],
)
def test_hostile_report_is_dealt_with_in_little_time(message: bytes) -> None:
    before = time.process_time()

    with contextlib.suppress(NoReport):
        parse_report(message)

    assert time.process_time() - before < 5.0


# -- what it means


@pytest.mark.parametrize(
    ("code", "status"),
    [(550, "5.1.1"), (550, "5.1.2"), (551, "5.1.6"), (550, "5.2.1"), (521, ""), (521, "5.3.2"), (556, "5.1.10")],
)
def test_refusal_of_a_mailbox_that_is_gone_means_never_again(code: int, status: str) -> None:
    assert never_again(code, status)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (550, "5.7.1"), (521, "5.7.1"), (556, "5.7.26"), (550, ""), (553, "5.1.3"), (552, "5.2.2"), (550, "5.1.8"),
        (554, "5.0.0"), (450, "4.1.1"), (550, "5.1.10"),
    ],
)  # fmt: skip
def test_refusal_for_another_reason_does_not(code: int, status: str) -> None:
    assert not never_again(code, status)


@pytest.mark.parametrize(
    ("status", "diagnostic"),
    [
        ("5.1.1", ""),
        ("5.2.1", "550 mailbox disabled"),
        ("5.0.0", "550 5.1.1 no such user"),
        ("5.0.0", "550-5.1.1 no such 550 5.1.1 user"),
        ("5.0.0", "556 domain takes no mail"),
    ],
)
def test_report_of_a_mailbox_that_is_gone_says_so(status: str, diagnostic: str) -> None:
    assert is_gone(Fate("ada@ok.test", "", "failed", status, diagnostic))


@pytest.mark.parametrize(
    ("action", "status", "diagnostic"),
    [
        ("failed", "5.0.0", "550 no such user"),
        ("failed", "5.7.1", "550 5.1.1 said by a policy"),
        ("failed", "5.4.7", "delivery time expired after 421 5.1.1"),
        ("failed", "5.7.1", "521 we take nothing from you"),
        ("failed", "4.4.7", "delivery time expired"),
        ("delayed", "5.1.1", ""),
        ("relayed", "2.1.5", ""),
    ],
)
def test_report_of_anything_else_does_not(action: str, status: str, diagnostic: str) -> None:
    assert not is_gone(Fate("ada@ok.test", "", action, status, diagnostic))
