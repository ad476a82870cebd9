"""Delivery reports as mail servers write them, for the tests that read or post one."""

REPORT = """\
Return-Path: <>
Date: Tue, 27 Feb 2024 07:05:10 +0000 (UTC)
From: MAILER-DAEMON@relay.ok.test (Mail Delivery System)
Subject: Undelivered Mail Returned to Sender
To: shop@ok.test
Auto-Submitted: auto-replied
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status;
\tboundary="4TkY.1709017510/relay.ok.test"

This is a MIME-encapsulated message.

--4TkY.1709017510/relay.ok.test
Content-Type: text/plain; charset=us-ascii

I'm sorry to have to inform you that your message could not be delivered.

--4TkY.1709017510/relay.ok.test
Content-Type: message/delivery-status

Reporting-MTA: dns; relay.ok.test
Original-Envelope-Id: {envid}
X-Postfix-Queue-ID: 4TkY
Arrival-Date: Tue, 27 Feb 2024 07:05:09 +0000 (UTC)

Final-Recipient: rfc822; {recipient}
Original-Recipient: rfc822;{original}
Action: {action}
Status: {status}
Diagnostic-Code: {diagnostic}

--4TkY.1709017510/relay.ok.test
Content-Type: text/rfc822-headers

Return-Path: <shop@ok.test>
Message-ID: <{message_id}@ok.test>
From: shop@ok.test
Subject: Hi

--4TkY.1709017510/relay.ok.test--
"""

FIELDS = {
    "envid": "",
    "recipient": "ada@ok.test",
    "original": "ada@ok.test",
    "action": "failed",
    "status": "5.1.1",
    "diagnostic": "smtp; 550 5.1.1 <ada@ok.test>: Recipient address\n    rejected: this mailbox is gone",
    "message_id": "stranger",
}


def report_of(**fields: str) -> bytes:
    """Return a report, with some fields changed."""
    return REPORT.format(**(FIELDS | fields)).replace("\n", "\r\n").encode()
