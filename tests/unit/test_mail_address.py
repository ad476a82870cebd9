import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.mail.address import Address, Mailbox, mask_address, parse_address, parse_mailbox


@pytest.mark.parametrize(
    ("text", "local", "domain"),
    [
        ("ada@example.com", "ada", "example.com"),
        ("Ada.Lovelace+tag@Example.COM", "Ada.Lovelace+tag", "example.com"),
        ("!#$%&'*+/=?^_`{|}~-@example.com", "!#$%&'*+/=?^_`{|}~-", "example.com"),
        ("root@localhost", "root", "localhost"),
        ("a@b-c.d1.example", "a", "b-c.d1.example"),
        ("a@xn--fa-hia.de", "a", "xn--fa-hia.de"),
        ("a@r3---sn.example", "a", "r3---sn.example"),
        ("a" * 64 + "@example.com", "a" * 64, "example.com"),
    ],
)
def test_parse_accepts_a_plain_address(text: str, local: str, domain: str) -> None:
    address = parse_address(text)

    assert address == Address(local, domain)
    assert not address.smtputf8
    assert str(address) == f"{local}@{domain}"


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("u@faß.de", "xn--fa-hia.de"),
        ("u@BÜCHER.example", "xn--bcher-kva.example"),
        ("u@bücher。example", "xn--bcher-kva.example"),
        ("u@XN--BCHER-KVA.example", "xn--bcher-kva.example"),
    ],
)
def test_parse_turns_the_domain_into_idna_2008(text: str, domain: str) -> None:
    address = parse_address(text)

    assert address.domain == domain
    assert not address.smtputf8


def test_parse_flags_a_local_part_beyond_ascii() -> None:
    address = parse_address("grüße@example.com")

    assert address.smtputf8
    assert str(address) == "grüße@example.com"


def test_parse_composes_a_decomposed_local_part() -> None:
    assert parse_address("gru\u0308n@example.com").local == "grün"


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("", "is empty"),
        ("ada", "contains 0 @ signs"),
        ("a@b@example.com", "contains 2 @ signs"),
        ("@example.com", "nothing before the @"),
        ("ada@", "nothing after the @"),
        (" ada@example.com", "blank or control"),
        ("ada@example.com ", "blank or control"),
        ("ada @example.com", "blank or control"),
        ("ada@exa\u00a0mple.com", "blank or control"),
        ("ada@example.com\r\nRCPT TO:<x@x.test>", "blank or control"),
        ("ada@example.com\x00", "blank or control"),
        ("ada@example.com\n", "blank or control"),
        ("ada\x7f@example.com", "blank or control"),
        ("ada\u2028@example.com", "blank or control"),
        (".ada@example.com", "misplaced dot"),
        ("ada.@example.com", "misplaced dot"),
        ("a..b@example.com", "misplaced dot"),
        ('"ada"@example.com', "not accepted"),
        ("<ada@example.com>", "not accepted"),
        ("ada(x)@example.com", "not accepted"),
        ("a,b@example.com", "not accepted"),
        ("a;b@example.com", "not accepted"),
        ("a\\b@example.com", "not accepted"),
        ("=?utf-8?q?=61=40evil.test=3e=00?=@x.test", "encoded word"),
        ("e=?UTF-8?B?YQ==?=f@x.test", "encoded word"),
        ("a\u202eb@example.com", "not accepted"),
        ("a\u200db@example.com", "not accepted"),
        ("a\ud800b@example.com", "not accepted"),
        ("ada@[127.0.0.1]", "no valid domain"),
        ("ada@127.0.0.1", "no valid domain"),
        ("ada@example.com.", "no valid domain"),
        ("ada@.example.com", "no valid domain"),
        ("ada@example..com", "no valid domain"),
        ("ada@-example.com", "no valid domain"),
        ("ada@exam_ple.com", "no valid domain"),
        ("ada@example.com>", "no valid domain"),
        ("ada@ex\uff1eample.com", "no valid domain"),
        ("ada@\ud800.example", "no valid domain"),
        ("ada@xn--a.example", "no valid domain"),
        ("ada@" + "a" * 64 + ".example", "no valid domain"),
        ("a" * 65 + "@example.com", "65 octets before the @"),
        ("ü" * 33 + "@example.com", "66 octets before the @"),
        ("a" * 60 + "@" + ".".join(["b" * 60] * 4), "304 characters"),
        ("ä" * 30 + "@" + ".".join(["ö" * 44] * 4), "octets: at most 254"),
    ],
)
def test_parse_refuses_and_says_why(text: str, fact: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_address(text)

    message = str(caught.value)
    assert fact in message
    assert message.isascii()
    assert message.isprintable()


def test_parse_shows_only_the_beginning_of_a_long_value() -> None:
    with pytest.raises(ValueError) as caught:
        parse_address("a," * 5_000 + "@example.com")

    assert len(str(caught.value)) < 400


@given(st.text(max_size=300) | st.from_regex(r"[ -~]{1,70}@[ -~]{1,40}", fullmatch=True))
def test_parse_accepts_only_what_is_safe_in_a_command(text: str) -> None:
    try:
        address = parse_address(text)
    except ValueError:
        return

    shown = str(address)
    assert shown.count("@") == 1
    assert not set(shown) & set(' \t\r\n\0<>,;:"()[]\\')
    assert len(shown.encode()) <= 254
    assert address.domain.isascii()
    assert parse_address(shown) == address


def test_mask_hides_the_local_part() -> None:
    assert mask_address("ada.lovelace@example.com") == "a***@example.com"


@pytest.mark.parametrize(
    ("text", "name", "canonical"),
    [
        ("ada@example.com", "", "ada@example.com"),
        ("<ada@example.com>", "", "ada@example.com"),
        ("Ada Lovelace <ada@EXAMPLE.com>", "Ada Lovelace", "Ada Lovelace <ada@example.com>"),
        ("  Ada<ada@example.com> ", "Ada", "Ada <ada@example.com>"),
        ('"Lovelace, Ada" <ada@example.com>', "Lovelace, Ada", '"Lovelace, Ada" <ada@example.com>'),
        ('"Ada" <ada@example.com>', "Ada", "Ada <ada@example.com>"),
        ('"a \\"b\\" \\\\ <c>" <ada@example.com>', 'a "b" \\ <c>', '"a \\"b\\" \\\\ <c>" <ada@example.com>'),
        ("J. Zoë 長い 😀 O'Neil <ada@example.com>", "J. Zoë 長い 😀 O'Neil", "J. Zoë 長い 😀 O'Neil <ada@example.com>"),
        ("=?utf-8?q?x?= <ada@example.com>", "=?utf-8?q?x?=", "=?utf-8?q?x?= <ada@example.com>"),
    ],
)
def test_mailbox_is_read(text: str, name: str, canonical: str) -> None:
    mailbox = parse_mailbox(text)

    assert mailbox == Mailbox(name, parse_address("ada@example.com"))
    assert str(mailbox) == canonical
    assert parse_mailbox(canonical) == mailbox


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("", "is empty"),
        ("Ada ada@example.com", "blank or control"),
        ("ada@example.com,eve@x.test", "2 @ signs"),
        ("Ada <ada@example.com>, Eve <eve@x.test>", "not one name and one address"),
        ("Ada <ada@example.com> Eve", "not one name and one address"),
        ("Ada <ada@example.com", "not one name and one address"),
        ('"Ada <ada@example.com>', "not one name and one address"),
        ('A "da" <ada@example.com>', "not one name and one address"),
        ("<<ada@example.com>>", "not one name and one address"),
        ("Lovelace, Ada <ada@example.com>", "has ',' in its name: put the name in double quotes"),
        ("eve@x.test <ada@example.com>", "has '@' in its name"),
        ("Ada (home) <ada@example.com>", "has '(' in its name"),
        ("Group: Ada <ada@example.com>", "has ':' in its name"),
        ("Ada <>", "is empty"),
        ("Ada < ada@example.com>", "blank or control"),
        ("Ada\r\nBcc: x <ada@example.com>", "has ':' in its name"),
        ('"Ada\r\nBcc: x" <ada@example.com>', "a control character"),
        ("Ada\0 <ada@example.com>", "a control character"),
        ("Ada\u202e <ada@example.com>", "a control character"),
        ("Ada\ud800 <ada@example.com>", "a control character"),
        ("x" * 256 + " <ada@example.com>", "256 characters: at most 255"),
        (" " * 1_000 + "<", "1001 characters"),
    ],
)
def test_mailbox_is_refused(text: str, fact: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_mailbox(text)

    assert fact in str(caught.value)
    assert str(caught.value).isascii()


def test_mailbox_of_its_parts_is_checked_too() -> None:
    with pytest.raises(ValueError, match="begins or ends with a blank"):
        Mailbox(" Ada", parse_address("ada@example.com"))
