"""What mails are made of, for property tests: texts that have broken composers and parsers, and plain ones.

`TASKQ_TEST_CASES` sets how many cases each property test tries; 100,000 need `--timeout=0` as well.
"""

import os
import re
from uuid import UUID

from hypothesis import strategies as st

from taskq.mail.address import Mailbox, parse_address
from taskq.mail.compose import Attachment

CASES = int(os.environ.get("TASKQ_TEST_CASES", "100"))
UID = UUID("01890a5d-ac96-874b-bcce-b302099a8057")
UNWANTED = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
BRICKS = (
    "\r\nBcc: evil@x.test", "\n\nbody", "\r", "\0", "=?utf-8?q?evil?=", "=?", "?=", "=", '"', "\\", ",", ";", ":", "<",
    ">", "<evil@x.test>", "@", "(", ")", " ", "  ", "\t", ".", "\r\n.\r\n", f"--=_{UID.hex}_a", f"--=_{UID.hex}_m--",
    "From ", "ä", "長い", "\U0001f600", "a\u0301", "\u202e", "\ud800", "word ", "x" * 80, "=20", "'", "%", "*", "/",
)  # fmt: skip

any_text = st.lists(st.sampled_from(BRICKS) | st.text(max_size=12), max_size=8).map("".join)
one_line = any_text.map(lambda text: UNWANTED.sub("", text).strip(" "))
several_lines = any_text.map(lambda text: re.sub("[\0\ud800-\udfff]", "", text)) | st.text("ab =.\r\nä", max_size=2_500)
addresses = st.sampled_from(
    [
        "ada@example.com",
        "b.c+d@x.test",
        "e=?f@x.test",
        "u@bücher.example",
        "grüße@x.test",
        f"{'l' * 64}@{'d' * 60}.test",
    ]
)
names = st.one_of(one_line, st.just("")).map(lambda text: text[:255].strip(" "))
mailboxes = st.builds(Mailbox, names, addresses.map(parse_address))
field_names = st.sampled_from(["X-Order", "References", "List-Id", "Auto-Submitted", "X-" + "y" * 62, "Feedback-ID"])
urls = st.sampled_from(["https://x.test/u?t=" + "abc=?" * 60, "https://x.test", "https://x.test:8443/#a,b;c"])
types = st.sampled_from(
    [
        "text/plain",
        "text/csv; charset=utf-8",
        'text/calendar; method=REQUEST; name2="a; b"',
        "application/pdf",
        "image/png",
    ]
)
filenames = one_line.map(lambda text: re.sub(r"[/\\]", "", text)[:60].strip()).map(
    lambda text: text if text.strip(" .") else "f"
)
contents = st.binary(max_size=200) | several_lines.map(lambda text: text.encode())
files = st.lists(
    st.builds(Attachment, filenames, types, contents, st.sampled_from([None, None, "i1", "i2@x.test"])), max_size=4
)
