import base64
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import dkim
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from hypothesis import given, settings
from hypothesis import strategies as st

from taskq.errors import ConfigError
from taskq.mail.address import parse_mailbox
from taskq.mail.compose import Draft, compose
from taskq.mail.dkim import Signer, load_signers, signers_for

UID = UUID("01890a5d-ac96-874b-bcce-b302099a8057")
CREATED = datetime(2024, 2, 29, 7, 5, 9, tzinfo=UTC)
RSA = rsa.generate_private_key(65_537, 2_048)
ED25519 = ed25519.Ed25519PrivateKey.generate()


def pem(key: PrivateKeyTypes) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def draft(**changes: object) -> Draft:
    values: dict[str, object] = {
        "sender": parse_mailbox("Ada Lovelace <ada@example.com>"),
        "to": (parse_mailbox("b@x.test"),),
        "subject": "Grüße",
        "uid": UID,
        "created_at": CREATED,
        "text": "  one  line\t \n\nlast\n\n\n",
        "html": "<p>ä</p>",
        "unsubscribe_url": "https://example.com/u?" + "t" * 200,
    }
    return Draft(**(values | changes))  # type: ignore[arg-type]


def published(name: bytes, **_: object) -> bytes:
    rsa_key = RSA.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    edwards = ED25519.public_key().public_bytes_raw()
    records = {
        b"r1._domainkey.example.com.": b"v=DKIM1; k=rsa; p=" + base64.b64encode(rsa_key),
        b"e1._domainkey.example.com.": b"v=DKIM1; k=ed25519; p=" + base64.b64encode(edwards),
    }
    return records[name]


def verified(message: bytes, index: int = 0) -> bool:
    try:
        return dkim.DKIM(message).verify(idx=index, dnsfunc=published)
    except dkim.ValidationError:
        return False


SIGNERS = [Signer("example.com", "r1", pem(RSA)), Signer("example.com", "e1", pem(ED25519))]
each_signer = pytest.mark.parametrize("signer", SIGNERS, ids=["rsa", "ed25519"])


@each_signer
def test_signature_verifies_and_covers_the_promise(signer: Signer) -> None:
    message = compose(draft())

    signed = signer.sign(message)

    assert signed.endswith(message)
    assert signed == signer.sign(message)
    assert verified(signed)
    head = signed[: -len(message)].replace(b"\r\n ", b"").replace(b" ", b"")
    (names,) = [tag[2:].split(b":") for tag in head.split(b";") if tag.startswith(b"h=")]
    assert names.count(b"from") == names.count(b"subject") == 2
    assert {b"to", b"date", b"message-id", b"content-type", b"list-unsubscribe", b"list-unsubscribe-post"} <= set(names)
    assert b"t=%d;" % CREATED.timestamp() in head
    assert b";l=" not in head
    assert max(map(len, signed[: -len(message)].split(b"\r\n"))) <= 78


@each_signer
@pytest.mark.parametrize(
    "spoil",
    [
        lambda signed: b"From: evil@x.test\r\n" + signed,
        lambda signed: b"Subject: evil\r\n" + signed,
        lambda signed: signed.replace(b"b@x.test", b"c@x.test"),
        lambda signed: signed.replace(b"example.com/u?", b"evil.test/u?", 1),
        lambda signed: signed + b"more\r\n",
    ],
)
def test_signature_breaks_when_the_mail_is_changed(signer: Signer, spoil: Callable[[bytes], bytes]) -> None:
    assert not verified(spoil(signer.sign(compose(draft()))))


@each_signer
def test_signature_survives_what_relays_do(signer: Signer) -> None:
    signed = signer.sign(compose(draft(subject="one  two " * 10)))

    relayed = b"Received: from a by b\r\n" + signed.replace(b"two one", b"two\r\n\tone").replace(b"To:", b"to:  ")

    assert relayed != signed
    assert verified(relayed)


def test_two_signatures_stand_beside_each_other() -> None:
    message = compose(draft())
    for signer in SIGNERS:
        message = signer.sign(message)

    assert verified(message, 0)
    assert verified(message, 1)


@settings(deadline=None, max_examples=100)
@given(
    st.text("a \t\r\nä=", max_size=60),
    st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp")), max_size=200),
)
def test_signature_verifies_for_any_text(text: str, subject: str) -> None:
    assert verified(SIGNERS[1].sign(compose(draft(text=text, subject=subject, html=None))))


def test_bodies_are_relaxed_in_linear_time() -> None:
    body = b"\r\n" * 500_000

    signed = SIGNERS[1].sign(b"From: ada@example.com\r\nSubject: x\r\n\r\na" + body)

    assert verified(signed)


def test_settings_name_several_keys(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    short = rsa.generate_private_key(65_537, 1_024)  # noqa: S505 - the key that is warned about
    for name, key in (("r.pem", RSA), ("e.pem", ED25519), ("s.pem", short)):
        (tmp_path / name).write_bytes(pem(key))

    signers = load_signers(
        f"Example.com:r1:{tmp_path}/r.pem bücher.example:e1:{tmp_path}/e.pem\n mail.example.com:s1:{tmp_path}/s.pem"
    )

    assert [(each.domain, each.selector, each.algorithm) for each in signers] == [
        ("example.com", "r1", "rsa-sha256"),
        ("xn--bcher-kva.example", "e1", "ed25519-sha256"),
        ("mail.example.com", "s1", "rsa-sha256"),
    ]
    assert [record.message for record in caplog.records] == ["DKIM key is short: make one of 2,048 bits"]
    assert load_signers("") == ()
    assert [each.selector for each in signers_for(signers, "mail.example.com")] == ["r1", "s1"]
    assert [each.selector for each in signers_for(signers, "example.com")] == ["r1"]
    assert signers_for(signers, "notexample.com") == signers_for(signers, "com") == ()


@pytest.mark.parametrize(
    ("spec", "fact"),
    [
        ("example.com", "is not of the form domain:selector:/path/key.pem"),
        ("example.com:r1:", "is not of the form domain:selector:/path/key.pem"),
        ("example.com:r1:FOLDER/absent.pem", "can't be read (No such file or directory)"),
        ("example.com:r1:FOLDER", "can't be read (Is a directory)"),
        ("exa_mple.com:r1:FOLDER/rsa.pem", "the domain 'exa_mple.com' is not valid"),
        ("example.com:r;1:FOLDER/rsa.pem", "the selector 'r;1' is not valid"),
        ("example.com:r1:FOLDER/weak.pem", "512 bits"),
        ("example.com:r1:FOLDER/curve.pem", "is of type ECPrivateKey"),
        ("example.com:r1:FOLDER/public.pem", "no private key in PEM"),
        ("example.com:r1:FOLDER/locked.pem", "no private key in PEM without a password"),
        ("example.com:r1:FOLDER/rsa.pem example.com:r1:FOLDER/rsa.pem", "twice"),
    ],
)
def test_settings_refuse_what_cannot_sign(tmp_path: Path, spec: str, fact: str) -> None:
    files = {
        "rsa.pem": pem(RSA),
        "curve.pem": pem(ec.generate_private_key(ec.SECP256R1())),
        "public.pem": RSA.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
        "locked.pem": RSA.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
        ),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    if "weak" in spec:
        if shutil.which("openssl") is None:
            pytest.skip("openssl is not installed")
        subprocess.run(["openssl", "genrsa", "-out", tmp_path / "weak.pem", "512"], check=True, capture_output=True)

    with pytest.raises(ConfigError) as caught:
        load_signers(spec.replace("FOLDER", str(tmp_path)))

    assert str(caught.value).startswith("TASKQ_DKIM ")
    assert fact in str(caught.value)


def test_settings_name_the_extra_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rsa.pem").write_bytes(pem(RSA))
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)

    with pytest.raises(ConfigError, match=r"install taskq\[dkim\]"):
        load_signers(f"example.com:r1:{tmp_path}/rsa.pem")
