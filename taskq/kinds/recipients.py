"""Whom a stored mail is for: the addresses of its envelope, read back from its payload.

Asked where a mail's recipients matter outside of its run: at submission, against the suppression
list, and when a delivery report claims that one of them can't be reached.  A task that was made for
one of several recipients says which in `recipient`; otherwise `to` and `cc` name them.
"""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import orjson

from taskq.mail.address import parse_mailbox

__all__ = ["recipients_of"]


def recipients_of(payload: str) -> list[str]:
    """Return the addresses that a mail with this payload, as JSON, goes to; unreadable ones are left out."""
    fields = cast("Mapping[str, Any]", orjson.loads(payload))
    if isinstance(recipient := fields.get("recipient"), str):
        return list(_addresses(recipient))
    return list(dict.fromkeys([*_addresses(fields.get("to")), *_addresses(fields.get("cc"))]))


def _addresses(written: object) -> Iterator[str]:
    for each in cast("list[object]", written) if isinstance(written, list) else [written]:
        if isinstance(each, str):
            try:
                yield str(parse_mailbox(each).address)
            except ValueError:  # stored past the checks, by SQL: its run will say so
                continue
