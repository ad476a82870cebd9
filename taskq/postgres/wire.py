"""Just enough of PostgreSQL's protocol (version 3.0) to log in and say one sentence.

Only a login proves that a server serves: files lie after a crash, and a socket's file outlives its
server.  The drivers are not used here: this code blocks, must work with any PostgreSQL's programs (some
wheels have no working psql), and a login costs a millisecond instead of a process.
Messages are documented at PostgreSQL's manual §54.7.
"""

import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Protocol

__all__ = ["Refusal", "log_in"]

_PROTOCOL = 3 << 16
_MESSAGE_BYTES_MAX = 1 << 20


class Refusal(Exception):
    """The server answered with an error.

    Attributes:
        sqlstate: Its code, as in `3D000`: no such database.
        text: Its message.
    """

    def __init__(self, sqlstate: str, text: str) -> None:
        super().__init__(text)
        self.sqlstate = sqlstate
        self.text = text


def log_in(directory: Path, database: str, *, then: str = "", timeout_s: float) -> str:
    """Log in as `taskq` and execute one statement, if any; return the server's version, as in `18.6`.

    Raises:
        Refusal: The server answered with an error.
        OSError: Nobody answers, or not in time, or not in this protocol.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_s)
        connection.connect(str(directory / ".s.PGSQL.5432"))
        with connection.makefile("rwb") as stream:
            words = ("user", "taskq", "database", database, "application_name", "taskq start", "")
            _send(stream, b"", struct.pack("!i", _PROTOCOL) + b"".join(word.encode() + b"\0" for word in words))
            version = _until_ready(stream)
            if then:
                _send(stream, b"Q", then.encode() + b"\0")
                _until_ready(stream)
            with suppress(OSError):
                connection.sendall(b"X\0\0\0\4")  # goodbye
    return version.split(" ", 1)[0]


class _Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...
    def write(self, data: bytes, /) -> int: ...
    def flush(self) -> None: ...


def _send(stream: _Stream, kind: bytes, body: bytes) -> None:
    stream.write(kind + struct.pack("!i", len(body) + 4) + body)
    stream.flush()


def _until_ready(stream: _Stream) -> str:
    """Read up to ReadyForQuery; return the server's version if it was told on the way."""
    version = ""
    while True:
        head = stream.read(5)
        if len(head) < 5:
            raise ConnectionResetError("the server closed the connection")
        kind, size = struct.unpack("!ci", head)
        if not 4 <= size <= _MESSAGE_BYTES_MAX:
            raise ConnectionResetError("the other side doesn't speak PostgreSQL's protocol")
        body = stream.read(size - 4)
        match kind:
            case b"Z":
                return version
            case b"E":
                fields = {field[:1]: field[1:].decode(errors="replace") for field in body.split(b"\0") if field}
                raise Refusal(fields.get(b"C", ""), fields.get(b"M", ""))
            case b"S" if body.startswith(b"server_version\0"):
                version = body.split(b"\0")[1].decode()
            case b"R" if body[:4] != bytes(4):
                raise Refusal("28000", "the server asks for a password")
            case _:
                pass
