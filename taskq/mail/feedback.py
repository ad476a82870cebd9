"""What a refusal or a delivery report says of an address: is it worth writing to again?

Only words about the mailbox itself count: it does not exist (5.1.1), its domain does not (5.1.2), it
has moved without a trace (5.1.6), it is shut (5.2.1), its host takes no mail at all (521, 556;
RFC 7504).  A policy (5.7.x) is about the sender or the mail, and a full mailbox (5.2.2) is emptied
one day: neither ever puts an address on the suppression list.
"""

import re

from taskq.mail.bounce import Fate

__all__ = ["is_gone", "never_again"]

_GONE = frozenset({"5.1.1", "5.1.2", "5.1.6", "5.2.1"})
_GONE_CODES = frozenset({521, 556})
_POLICY = "5.7."
_VAGUE = re.compile(r"5\.\d+\.0")  # a class with no detail, which the server's own words may give
_REPLY = re.compile(r"\b(5\d\d)(?:[ -]+(5\.\d{1,3}\.\d{1,3})\b)?", re.ASCII)


def never_again(code: int, status: str) -> bool:
    """Whether a refusal of a recipient means that nothing sent to that address can arrive.

    Args:
        code: Reply code, such as 550; 0 when there is none.
        status: Enhanced status code, such as `5.1.1`; empty when there is none.
    """
    return status in _GONE or (code in _GONE_CODES and not status.startswith(_POLICY))


def is_gone(fate: Fate) -> bool:
    """Whether a report means that nothing sent to that recipient can arrive.

    A server that passes on what another said may give a class alone as its status (`5.0.0`); then the
    reply that it quotes decides.
    """
    if fate.action != "failed" or not fate.status.startswith("5."):
        return False
    reply = _REPLY.match(fate.diagnostic)
    code = int(reply.group(1)) if reply else 0
    quoted = (reply.group(2) or "") if reply else ""
    return never_again(code, quoted if quoted and _VAGUE.fullmatch(fate.status) else fate.status)
