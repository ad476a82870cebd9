import pytest

from taskq.errors import ConfigError
from taskq.mail.server import Server, Tls, parse_server


@pytest.mark.parametrize(
    ("url", "server"),
    [
        (
            "smtp://user:p%40ss%2Fw%3A@relay.example.com",
            Server("relay.example.com", 587, Tls.STARTTLS, "user", "p@ss/w:"),
        ),
        ("smtp://relay.example.com:2525/", Server("relay.example.com", 2525, Tls.STARTTLS)),
        ("smtps://u%40x:p@relay.example.com", Server("relay.example.com", 465, Tls.IMPLICIT, "u@x", "p")),
        ("smtp://127.0.0.1:25", Server("127.0.0.1", 25, Tls.OFF)),
        ("smtp://u:p@localhost:25", Server("localhost", 25, Tls.OFF, "u", "p")),
        ("smtp://[::1]:25", Server("::1", 25, Tls.OFF)),
        ("smtp://localhost?tls=starttls", Server("localhost", 587, Tls.STARTTLS)),
        ("smtp://relay.lan?tls=off", Server("relay.lan", 587, Tls.OFF)),
        ("smtps://relay.lan?ca=/etc/ca.pem", Server("relay.lan", 465, Tls.IMPLICIT, ca_file="/etc/ca.pem")),
    ],
)
def test_parse_reads_a_relay(url: str, server: Server) -> None:
    assert parse_server(url) == server


@pytest.mark.parametrize(
    ("url", "fact"),
    [
        ("http://secret:secret@relay.test", "scheme"),
        ("relay.test:25", "scheme"),
        ("smtp://secret:secret@relay.test:99999", "no URL"),
        ("smtp://secret:secret@relay.test:port", "no URL"),
        ("smtp://", "host ''"),
        ("smtp://a..b", "host 'a..b'"),
        ("smtp://re lay", "host 're lay'"),
        ("smtp://relay.test/path", "after the port"),
        ("smtp://relay.test#x", "after the port"),
        ("smtp://relay.test?auth=no", "option 'auth'"),
        ("smtp://relay.test?tls=maybe", "tls=maybe"),
        ("smtp://relay.test?tls=implicit", "tls=implicit"),
        ("smtps://relay.test?tls=off", "always uses TLS"),
        ("smtp://secret@relay.test", "without a password"),
        ("smtp://:secret@relay.test", "without a password"),
        ("smtp://secret:secret%00@relay.test", "without a password"),
        ("smtp://secret:secret@relay.test?tls=off", "in the clear"),
    ],
)
def test_parse_refuses_and_never_shows_the_password(url: str, fact: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_server(url)

    message = str(caught.value)
    assert "TASKQ_SMTP_URL" in message
    assert fact in message
    assert "secret" not in message


def test_server_shows_itself_without_its_password() -> None:
    server = parse_server("smtps://user:topsecret@[::1]:4650")

    assert str(server) == "smtps://user:***@[::1]:4650"
    assert "topsecret" not in repr(server)
