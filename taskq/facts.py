"""What is kept, and what is not: the facts that a handler noted, as one bounded JSON object, and no addresses.

The last note is what the run came to (a relay's verdict, say), so its fields stand at the top; the
notes before it follow under `earlier`.  Whatever a handler notes can be stored: values that JSON does
not know become texts, texts are cut, and what is beyond the bound is left out and counted.  Nothing
here ever raises, for a record must not cost the outcome that it belongs to.

An address in the words of a server ("550 <ada@example.com>: user unknown") would outlive the mail
that it belongs to.  Records of private kinds therefore never hold one.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import orjson

__all__ = ["Privacy", "detail_of", "mask_addresses"]

DETAIL_BYTES_MAX = 8_192
TEXT_CHARS_MAX = 500
ITEMS_MAX = 50  # of an object or a list
DEPTH_MAX = 4
WHOLE_MAX = 2**53  # beyond it a reader in another language loses digits

_ADDRESS = re.compile(r"[^\s<>@\"'(),:;\\\[\]]+@(?=[\w\[])")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")


@dataclass(frozen=True, slots=True)
class Privacy:
    """How long the payloads of a kind are kept whole, and what of them afterwards."""

    keeps: tuple[str, ...]
    """Fields that outlive the content: texts, with the addresses in them masked."""
    content_days: float
    """Days after the final status; 0: not at all."""


def mask_addresses(text: str) -> str:
    """Return a text with every mail address in it as `a***@example.com`."""
    return _ADDRESS.sub(lambda found: f"{found.group()[0]}***@", text) if "@" in text else text


def detail_of(facts: Sequence[Mapping[str, object]], *, private: bool = False) -> str | None:
    """Return the JSON to store for what was noted in one run, oldest first; None when nothing was.

    Args:
        facts: The notes.
        private: Whether addresses in them are masked; in a field whose name ends with `_id` a name
            such as `<77@relay.example.com>` is no address and stays.
    """
    if not facts:
        return None
    *earlier, last = [cast("dict[str, object]", _plain(each, private, DEPTH_MAX)) for each in facts]
    left_out = 0
    while True:
        document = {**last, "earlier": earlier} if earlier else dict(last)
        if left_out:
            document["left_out"] = left_out
        stored = orjson.dumps(document)
        if len(stored) <= DETAIL_BYTES_MAX:
            return stored.decode()
        left_out += 1
        if earlier:
            del earlier[0]
        else:
            last.popitem()


def _plain(value: object, private: bool, depth: int, name: str = "") -> object:  # noqa: FBT001 - its own caller
    """Return a value that JSON and PostgreSQL's jsonb can hold, at most so deep."""
    match value:
        case bool() | None:
            return value
        case int() if -WHOLE_MAX <= value <= WHOLE_MAX:
            return int(value)
        case float() if math.isfinite(value):
            return float(value)
        case Mapping() if depth:
            items = list(cast("Mapping[object, object]", value).items())[:ITEMS_MAX]
            return {_text(key): _plain(item, private, depth - 1, str(key)) for key, item in items}
        case list() | tuple() if depth:
            return [_plain(item, private, depth - 1, name) for item in cast("Sequence[object]", value)[:ITEMS_MAX]]
        case _:
            text = _text(value)
            return mask_addresses(text) if private and not name.endswith("_id") else text


def _text(value: object) -> str:
    try:
        text = str(value)[:TEXT_CHARS_MAX]
    except Exception as error:  # noqa: BLE001 - a handler's value may do anything when it is asked for its text
        text = f"a {type(value).__name__} that has no text: {type(error).__name__}"
    return _CONTROL.sub(" ", text).encode("utf-8", "backslashreplace").decode()[:TEXT_CHARS_MAX]
