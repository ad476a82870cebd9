"""An SMTP server that remembers every mail it accepts, in a process of its own.

For each accepted mail one JSON line is appended to a journal, flushed and synced *before* the 250
after the final dot leaves: what a client may count on is in the journal, and a mail whose client died
is there too.  The delays make the spans wide in which a crash is interesting.

    python sink.py JOURNAL [--port N] [--text-s S] [--dot-s S]

The first line on standard output is the port.
"""

import argparse
import hashlib
import json
import os
import re
import socket
import socketserver
import sys
import threading
import time
from email import message_from_bytes
from pathlib import Path

PATH = re.compile(rb"<([^>]*)>")
GREETING = b"220 sink ESMTP\r\n"
HELLO = b"250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 SIZE 10485760\r\n"


class Journal:
    """An append-only file of JSON lines that survives every process."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")
        self._turn = threading.Lock()

    def add(self, recipient: str, message: bytes) -> None:
        line = {
            "at": time.monotonic(),
            "message_id": str(message_from_bytes(message)["Message-ID"]),
            "recipient": recipient,
            "phase": "accepted",
            "sha256": hashlib.sha256(message).hexdigest(),
        }
        with self._turn:
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())


class Delays:
    """Seconds between what a client says and what it hears."""

    def __init__(self, text_s: float, dot_s: float) -> None:
        self.text_s = text_s
        self.dot_s = dot_s
        self._never = threading.Event()

    def before_text(self) -> None:
        if self.text_s:
            self._never.wait(self.text_s)

    def after_accepting(self) -> None:
        if self.dot_s:
            self._never.wait(self.dot_s)


class Session(socketserver.StreamRequestHandler):
    """One connection: enough of RFC 5321 for a client that behaves."""

    server: "Sink"
    disable_nagle_algorithm = True

    def handle(self) -> None:
        try:
            self._converse()
        except OSError:
            return  # the client is gone: that is what this program is for

    def _converse(self) -> None:
        self.wfile.write(GREETING)
        recipient = ""
        for line in self.rfile:
            command = line[:4].upper()
            if command == b"QUIT":
                self.wfile.write(b"221 2.0.0 Bye\r\n")
                return
            if command == b"EHLO":
                self.wfile.write(HELLO)
            elif command == b"DATA":
                self._take_text(recipient)
            else:
                if command == b"RCPT" and (found := PATH.search(line)):
                    recipient = found.group(1).decode()
                self.wfile.write(b"250 2.0.0 Ok\r\n")

    def _take_text(self, recipient: str) -> None:
        self.server.delays.before_text()
        self.wfile.write(b"354 End with a dot\r\n")
        lines: list[bytes] = []
        for line in self.rfile:
            if line == b".\r\n":
                break
            lines.append(line.removeprefix(b"."))
        else:
            return  # the client died before its final dot: nothing was accepted
        self.server.journal.add(recipient, b"".join(lines))
        self.server.delays.after_accepting()
        self.wfile.write(b"250 2.0.0 Ok: queued\r\n")


class Sink(socketserver.ThreadingTCPServer):
    """The listening socket, the journal and the delays."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, journal: Journal, delays: Delays) -> None:
        super().__init__(("127.0.0.1", port), Session)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.journal = journal
        self.delays = delays


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("journal", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--text-s", type=float, default=0.0)
    parser.add_argument("--dot-s", type=float, default=0.0)
    given = parser.parse_args()
    sink = Sink(given.port, Journal(given.journal), Delays(given.text_s, given.dot_s))
    print(sink.server_address[1], flush=True)
    threading.Thread(target=sink.serve_forever, daemon=True).start()
    sys.stdin.read()  # ends with whoever started it


if __name__ == "__main__":
    main()
