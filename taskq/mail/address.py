"""One strict e-mail address, `local@domain`, and the mailbox that puts a display name before it.

Accepted as an address is the form that every relay treats alike: a dot-atom, an `@` and a domain name (RFC 5321
§4.1.2).  Refused are quoted local parts, comments, display names, source routes, domain literals,
lists, encoded words, blanks and control characters: each has been used to smuggle a second recipient or a command
past a more generous parser.  Domains leave here as lower-case A-labels by IDNA 2008, because the
standard library's IDNA 2003 codec turns `faß.de` into another domain.  Characters beyond ASCII in
the local part are allowed; such an address needs a relay that offers SMTPUTF8 (RFC 6531).

A mailbox is an address, `Name <address>` or `"Name" <address>`.  Without quotes a name may hold
nothing that a header gives a meaning of its own (commas, parentheses, another @), so that no parser
can read two mailboxes where this one reads one.
"""

import functools
import re
import unicodedata
from dataclasses import dataclass

import idna

from taskq.errors import shown

__all__ = ["Address", "Mailbox", "mask_address", "parse_address", "parse_mailbox", "quote_name"]

ADDRESS_OCTETS_MAX = 254  # RFC 5321 §4.5.3.1.3: a path of 256 holds the two angle brackets as well
LOCAL_OCTETS_MAX = 64  # RFC 5321 §4.5.3.1.1
DOMAIN_OCTETS_MAX = 255  # RFC 5321 §4.5.3.1.2
NAME_CHARS_MAX = 255  # of a display name: encoded and with its address it stays under a line's 998 octets
MAILBOX_CHARS_MAX = 2 * NAME_CHARS_MAX + ADDRESS_OCTETS_MAX + 16  # every character of the name escaped
CACHE_MAX = 1_024  # one mail's address is read when submitted, when run and when sent

_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_PLAIN = re.compile(rf"({_ATEXT}+(?:\.{_ATEXT}+)*)@((?:{_LABEL}\.)*({_LABEL}))")
_ENCODED_WORD = re.compile(r"=\?[^?]*\?[bq]\?.*\?=", re.IGNORECASE)
_BLANK = re.compile(r"[\x00-\x20\x7f-\xa0\u2028\u2029]")
_NOT_ATEXT = re.compile(rf"(?!{_ATEXT})[\x00-\x7f]")
_CATEGORIES_REFUSED = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs"})
_REMEDY = "write one bare address such as ada@example.com"
_MAILBOX = re.compile(r'(?:"((?:[^"\\]|\\.)*)" *|([^"<>]*))<([^<>]*)>', re.DOTALL)
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)
_NAME_SPECIAL = re.compile(r'[()\[\]:;@\\,"<>]')
_NAME_REFUSED = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_MAILBOX_REMEDY = 'write "Ada Lovelace <ada@example.com>" or a bare address'


@dataclass(frozen=True, slots=True)
class Address:
    """An accepted address."""

    local: str
    """What stands before the `@`, as written (composed by Unicode NFC)."""
    domain: str
    """A-labels in lower case."""

    def __str__(self) -> str:
        return f"{self.local}@{self.domain}"

    @property
    def smtputf8(self) -> bool:
        """Whether only a relay that offers SMTPUTF8 can take it."""
        return not self.local.isascii()


@dataclass(frozen=True, slots=True)
class Mailbox:
    """A display name and an address.

    Raises:
        ValueError: No header can show the name; the message states fact, value and remedy.
    """

    name: str
    """What people see before the address; may be empty."""
    address: Address

    def __post_init__(self) -> None:
        if self.name:
            _check_name(self.name)

    def __str__(self) -> str:
        if not self.name:
            return str(self.address)
        if _NAME_SPECIAL.search(self.name):
            return f"{quote_name(self.name)} <{self.address}>"
        return f"{self.name} <{self.address}>"


@functools.lru_cache(maxsize=CACHE_MAX)
def parse_address(text: str) -> Address:
    """Return the one address that `text` is.

    Raises:
        ValueError: It is anything else; the message states fact, value and remedy.
    """
    plain = _PLAIN.fullmatch(text) if len(text) <= ADDRESS_OCTETS_MAX else None
    if plain is not None:
        local, domain, last = plain.groups()
        unusual = len(local) > LOCAL_OCTETS_MAX or last.isdigit() or "=?" in local
        if not unusual and "xn--" not in (domain := domain.lower()):
            return Address(local, domain)
    return _parse_unusual(text)


@functools.lru_cache(maxsize=CACHE_MAX)
def parse_mailbox(text: str) -> Mailbox:
    """Return the one mailbox that `text` is; `str` of it gives the canonical form, which parses to the same.

    Raises:
        ValueError: It is anything else; the message states fact, value and remedy.
    """
    if "<" not in text:
        return Mailbox("", parse_address(text))
    if len(text) > MAILBOX_CHARS_MAX:
        raise ValueError(f"the mailbox {shown(text)} has {len(text)} characters: shorten the name, {_MAILBOX_REMEDY}")
    found = _MAILBOX.fullmatch(text.strip(" "))
    if found is None:
        raise ValueError(f"the mailbox {shown(text)} is not one name and one address: {_MAILBOX_REMEDY}")
    quoted, plain, address = found.groups()
    if quoted is not None:
        return Mailbox(_QUOTED_PAIR.sub(r"\1", quoted).strip(" "), parse_address(address))
    plain = plain.strip(" ")
    if special := _NAME_SPECIAL.search(plain):
        raise ValueError(
            f"the mailbox {shown(text)} has {special.group()!r} in its name: put the name in double quotes, "
            'such as "Lovelace, Ada" <ada@example.com>'
        )
    return Mailbox(plain, parse_address(address))


def quote_name(name: str) -> str:
    """Return a display name as a quoted string (RFC 5322 §3.2.4)."""
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def mask_address(text: str) -> str:
    """Return the address as logs may show it, such as `a***@example.com`."""
    local, _, domain = text.rpartition("@")
    return f"{local[:1]}***@{domain}"


def _check_name(name: str) -> None:
    if len(name) > NAME_CHARS_MAX:
        raise ValueError(
            f"the display name {shown(name)} has {len(name)} characters: at most {NAME_CHARS_MAX} are sent, shorten it"
        )
    if found := _NAME_REFUSED.search(name):
        raise ValueError(f"the display name {shown(name)} contains {found.group()!a}, a control character: remove it")
    if name != name.strip(" "):
        raise ValueError(f"the display name {shown(name)} begins or ends with a blank: remove it")


def _parse_unusual(text: str) -> Address:
    """Parse an address that is international, too long or wrong, and say what is wrong."""
    if not text:
        raise ValueError(f"the address is empty: {_REMEDY}")
    if len(text) > ADDRESS_OCTETS_MAX:  # no longer one can become deliverable, and it is not worth looking into
        raise ValueError(
            f"the address {shown(text)} has {len(text)} characters: at most {ADDRESS_OCTETS_MAX} can be delivered"
        )
    if found := _BLANK.search(text):
        raise ValueError(
            f"the address {shown(text)} contains {found.group()!r}, a blank or control character: {_REMEDY}"
        )
    if text.count("@") != 1:
        raise ValueError(f"the address {shown(text)} contains {text.count('@')} @ signs instead of one: {_REMEDY}")
    local, _, domain = text.partition("@")
    address = Address(_checked_local(text, unicodedata.normalize("NFC", local)), _checked_domain(text, domain))
    octets = len(str(address).encode())
    if octets > ADDRESS_OCTETS_MAX:
        raise ValueError(
            f"the address {shown(text)} has {octets} octets: at most {ADDRESS_OCTETS_MAX} can be delivered"
        )
    return address


def _checked_local(text: str, local: str) -> str:
    if not local:
        raise ValueError(f"the address {shown(text)} has nothing before the @: {_REMEDY}")
    if local.startswith(".") or local.endswith(".") or ".." in local:
        raise ValueError(f"the address {shown(text)} has a misplaced dot before the @: {_REMEDY}")
    for character in local:
        category = unicodedata.category(character)
        if character != "." and (_NOT_ATEXT.match(character) or category in _CATEGORIES_REFUSED):
            raise ValueError(
                f"the address {shown(text)} has {character!r} before the @: quoted parts, comments, names and lists "
                f"are not accepted, {_REMEDY}"
            )
    if _ENCODED_WORD.search(local):  # an atom by RFC 5322, yet some programs decode it into another address
        raise ValueError(f"the address {shown(text)} has an encoded word before the @: write it decoded, {_REMEDY}")
    octets = len(local.encode())
    if octets > LOCAL_OCTETS_MAX:
        raise ValueError(
            f"the address {shown(text)} has {octets} octets before the @: at most {LOCAL_OCTETS_MAX} can be delivered"
        )
    return local


def _checked_domain(text: str, domain: str) -> str:
    if not domain:
        raise ValueError(f"the address {shown(text)} has nothing after the @: {_REMEDY}")
    try:
        encoded = idna.encode(domain, uts46=True, std3_rules=True).decode("ascii")
    except UnicodeError:
        encoded = ""
    if (
        len(encoded) > DOMAIN_OCTETS_MAX
        or _PLAIN.fullmatch(f"a@{encoded}") is None
        or encoded.rpartition(".")[2].isdigit()
    ):
        raise ValueError(
            f"the address {shown(text)} has no valid domain after the @: write a domain name such as example.com, "
            f"without brackets or a final dot"
        )
    return encoded
