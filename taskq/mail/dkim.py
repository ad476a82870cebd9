"""DKIM: signatures over composed mails (RFC 6376, RFC 8463), for senders whose relay doesn't sign.

A signer works on the final bytes, relaxed on both sides, because relays fold headers and trim lines.
It signs the whole body (no `l=`: what follows a signed beginning could be anything) and names From
and Subject once more than they occur, so that a second one added on the way breaks the signature.
List-Unsubscribe and its Post are signed, as RFC 8058 asks.  The time of the signature is the Date of
the mail: a retry sends the same bytes.

Keys are RSA of 2,048 bits or Ed25519.  The setting may name several: every verifier takes the
signature that it can check, and few check Ed25519 yet, so RSA should be among them.
"""

import base64
import email.utils
import hashlib
import logging
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from taskq.errors import ConfigError
from taskq.mail.address import parse_address

__all__ = ["Signer", "load_signers", "signers_for"]

RSA_BITS_MIN = 1_024  # RFC 8301 §3.2: shorter keys are taken for no signature
RSA_BITS_WANTED = 2_048  # RFC 8301 §3.2
SIGNERS_MAX = 100
LINE_WANTED = 72  # of the signature's own header

OVERSIGNED = (b"from", b"subject")
SIGNED = (
    b"to",
    b"cc",
    b"reply-to",
    b"date",
    b"message-id",
    b"in-reply-to",
    b"references",
    b"mime-version",
    b"content-type",
    b"content-transfer-encoding",
    b"list-id",
    b"list-unsubscribe",
    b"list-unsubscribe-post",
)
"""Signed where they occur (RFC 6376 §5.4.1); what a list or a relay adds is not."""

logger = logging.getLogger("taskq.mail.dkim")

_SELECTOR = re.compile(
    r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)
_BLANKS = re.compile(rb"[ \t\r\n]+")
_BODY_BLANKS = re.compile(rb"[ \t]+")
_BODY_TRAILING = re.compile(rb"[ \t]+(?=\r\n|\Z)")


class Signer:
    """Signs mails for one domain with one key.

    Args:
        domain: Whose name the signature is in.
        selector: Where below `_domainkey` of the domain the public key stands.
        key_pem: The private key, RSA or Ed25519, without a password.

    Raises:
        ValueError: One of them can't be used; the message states fact, value and remedy.
    """

    def __init__(self, domain: str, selector: str, key_pem: bytes) -> None:
        if _SELECTOR.fullmatch(selector) is None:
            raise ValueError(
                f"the selector {selector!a} is not valid: write letters, digits and hyphens, such as mail1"
            )
        try:
            self.domain = parse_address(f"postmaster@{domain}").domain
        except ValueError as error:
            raise ValueError(f"the domain {domain!a} is not valid: write a domain name such as example.com") from error
        self.selector = selector
        self.algorithm, self.bits, self._sign = _load_key(key_pem)

    def sign(self, message: bytes) -> bytes:
        """Return the message with its signature in front; the same for the same message.

        Args:
            message: Composed: lines end with CRLF.
        """
        head, _, body = message.partition(b"\r\n\r\n")
        fields = _fields(head)
        names = [name for name in OVERSIGNED for _ in range(len(fields.get(name, ())) + 1)]
        names += [name for name in SIGNED for _ in fields.get(name, ())]
        digest = base64.b64encode(hashlib.sha256(_relaxed_body(body)).digest()).decode("ascii")
        unsigned = (
            f"v=1; a={self.algorithm}; c=relaxed/relaxed;\r\n"
            f" d={self.domain}; s={self.selector};{_time(fields)}\r\n"
            f" h={_folded_names(names)};\r\n"
            f" bh={digest};\r\n"
            " b="
        )
        lines = [*_signed_fields(fields, names), _relaxed_field(b"dkim-signature", unsigned.encode("ascii"))]
        signature = base64.b64encode(self._sign(b"\r\n".join(lines))).decode("ascii")
        folded = "\r\n ".join(signature[at : at + LINE_WANTED] for at in range(0, len(signature), LINE_WANTED))
        return b"".join((f"DKIM-Signature: {unsigned}{folded}\r\n".encode("ascii"), message))


def load_signers(spec: str) -> tuple[Signer, ...]:
    """Return the signers that `TASKQ_DKIM` names: `domain:selector:/path/key.pem`, several separated by blanks.

    Raises:
        ConfigError: One can't be used; the message names the setting.
    """
    signers: list[Signer] = []
    for entry in spec.split():
        try:
            signer = _load_signer(entry)
        except ValueError as error:
            raise ConfigError(f"TASKQ_DKIM can't be used: {error}") from error
        if any((known.domain, known.selector) == (signer.domain, signer.selector) for known in signers):
            raise ConfigError(
                f"TASKQ_DKIM names {signer.domain}:{signer.selector} twice: one selector has one key, remove one"
            )
        if signer.algorithm == "rsa-sha256" and signer.bits < RSA_BITS_WANTED:
            logger.warning(
                "DKIM key is short: make one of 2,048 bits",
                extra={"domain": signer.domain, "selector": signer.selector, "bits": signer.bits},
            )
        signers.append(signer)
    if len(signers) > SIGNERS_MAX:
        raise ConfigError(f"TASKQ_DKIM names {len(signers)} keys: at most {SIGNERS_MAX} are kept")
    return tuple(signers)


def signers_for(signers: Iterable[Signer], domain: str) -> tuple[Signer, ...]:
    """Return those whose domain is the sender's or above it, so that the signature is aligned (RFC 7489 §3.1.1)."""
    return tuple(signer for signer in signers if f".{domain}".endswith(f".{signer.domain}"))


def _load_signer(entry: str) -> Signer:
    domain, _, rest = entry.partition(":")
    selector, _, path = rest.partition(":")
    if not path:
        raise ValueError(f"{entry!a} is not of the form domain:selector:/path/key.pem: write all three")
    try:
        key_pem = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(
            f"the key {path} can't be read ({error.strerror}): name a file that this user may read"
        ) from error
    try:
        return Signer(domain, selector, key_pem)
    except ValueError as error:
        raise ValueError(f"{entry!a}: {error}") from error


def _load_key(key_pem: bytes) -> tuple[str, int, Callable[[bytes], bytes]]:
    """Return the algorithm's name, the key's length and what signs."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 - an extra, absent where nobody signs
        from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa  # noqa: PLC0415
    except ImportError as error:
        raise ValueError("signing needs the package cryptography: install taskq[dkim]") from error
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ValueError(
            "the key is no private key in PEM without a password: write one with openssl genpkey"
        ) from error
    match key:
        case rsa.RSAPrivateKey():
            if key.key_size < RSA_BITS_MIN:
                raise ValueError(f"the RSA key has {key.key_size} bits: receivers ignore it, make one of 2,048 bits")
            pkcs1, sha256 = padding.PKCS1v15(), hashes.SHA256()
            return "rsa-sha256", key.key_size, lambda data: key.sign(data, pkcs1, sha256)
        case ed25519.Ed25519PrivateKey():  # signs the hash, RFC 8463 §3
            return "ed25519-sha256", 256, lambda data: key.sign(hashlib.sha256(data).digest())
        case _:
            raise ValueError(f"the key is of type {type(key).__name__}: make an RSA or Ed25519 key")


def _fields(head: bytes) -> dict[bytes, list[bytes]]:
    """Return the values of the header, folds included, by lower-case name."""
    fields: dict[bytes, list[bytes]] = {}
    values: list[bytes] = []
    for line in head.split(b"\r\n"):
        if line[:1] in {b" ", b"\t"}:
            values[-1] += b"\r\n" + line
        else:
            name, _, value = line.partition(b":")
            values = fields.setdefault(name.lower(), [])
            values.append(value)
    return fields


def _signed_fields(fields: dict[bytes, list[bytes]], names: list[bytes]) -> list[bytes]:
    """Return the signed fields in relaxed form; of several the last first, of those that aren't there nothing."""
    left = {name: list(values) for name, values in fields.items()}
    return [_relaxed_field(name, left[name].pop()) for name in names if left.get(name)]


def _relaxed_field(name: bytes, value: bytes) -> bytes:
    """RFC 6376 §3.4.2, without the line end."""
    return name + b":" + _BLANKS.sub(b" ", value).strip(b" ")


def _relaxed_body(body: bytes) -> bytes:
    """RFC 6376 §3.4.4."""
    if b"  " in body or b"\t" in body:
        body = _BODY_BLANKS.sub(b" ", body)
    if b" \r\n" in body or body.endswith(b" "):
        body = _BODY_TRAILING.sub(b"", body)
    body = body.rstrip(b"\r\n")
    return body + b"\r\n" if body else b""


def _folded_names(names: list[bytes]) -> str:
    lines: list[str] = []
    line = ""
    for place, name in enumerate(names, 1):
        token = name.decode("ascii") + (":" if place < len(names) else "")
        if len(line) + len(token) > LINE_WANTED:
            lines.append(line)
            line = ""
        line += token
    return "\r\n  ".join((*lines, line))


def _time(fields: dict[bytes, list[bytes]]) -> str:
    """Return the tag of the signature's time, taken from the mail's own Date."""
    for date in fields.get(b"date", ()):
        moment = email.utils.parsedate_to_datetime(date.decode("ascii"))
        return f" t={int(moment.timestamp())};"
    return ""
