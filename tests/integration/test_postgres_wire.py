"""The few words of PostgreSQL's protocol that decide whether a server serves, against scripted servers."""

import socket
import struct
import threading
from pathlib import Path

import pytest

from taskq.errors import ConfigError
from taskq.postgres.server import is_serving


def message(kind: str, body: bytes) -> bytes:
    return kind.encode() + struct.pack("!i", len(body) + 4) + body


LET_IN = message("R", bytes(4)) + message("S", b"server_version\x0018.6 (Debian)\0") + message("Z", b"I")
REFUSAL = "SFATAL\0C{}\0Mwords of the server\0\0"


def serve(place: Path, *answers: bytes) -> threading.Thread:
    """Answer one connection after the other with these bytes, then end."""
    listening = socket.socket(socket.AF_UNIX)
    listening.settimeout(10)
    listening.bind(str(place / ".s.PGSQL.5432"))
    listening.listen()

    def run() -> None:
        with listening:
            for answer in answers:
                connection, _ = listening.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(answer)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_version_is_told_by_a_server_that_lets_us_in(place: Path) -> None:
    serving = serve(place, LET_IN)

    assert is_serving(place) == "18.6"
    serving.join()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        message("R", bytes(4)),
        message("E", REFUSAL.format("57P03").encode()),
        message("E", REFUSAL.format("53300").encode()),
    ],
)
def test_server_does_not_serve_yet_when_it_says_anything_else(place: Path, answer: bytes) -> None:
    serving = serve(place, answer)

    assert is_serving(place) is None
    serving.join()


def test_nobody_serves_where_there_is_no_socket(place: Path) -> None:
    assert is_serving(place) is None


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (message("R", struct.pack("!i", 10) + b"SCRAM-SHA-256\0\0"), "asks for a password"),
        (message("E", REFUSAL.format("28000").encode()), "words of the server"),
    ],
)
def test_start_is_refused_for_good_by_a_server_that_does_not_know_us(place: Path, answer: bytes, said: str) -> None:
    serving = serve(place, answer)

    with pytest.raises(ConfigError, match=said):
        is_serving(place)
    serving.join()
