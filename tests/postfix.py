"""Runs a real Postfix on a free loopback port, from a folder of its own.

It accepts mail for the domain `ok.test` only and delivers it to a maildir; `later@ok.test` is put
off with 450, `gone@ok.test` is refused with 550, `bounced@ok.test` is taken and then returned in a
delivery report, and everything else is rejected, so that no mail can leave.  Postfix's master needs
root and Postfix's own accounts; where either is missing, tests skip visibly.
"""

import contextlib
import os
import pwd
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

START_S_MAX = 20.0

MAIN = """\
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
command_directory = /usr/sbin
daemon_directory = {daemons}
mail_owner = postfix
setgid_group = postdrop
maillog_file = {folder}/maillog
maillog_file_prefixes = {folder}
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = relay.ok.test
mydestination =
mynetworks = 127.0.0.0/8
relay_domains =
default_transport = error:this server sends nothing
relay_transport = error:this server sends nothing
virtual_mailbox_domains = ok.test
virtual_mailbox_base = {folder}/mail
virtual_mailbox_maps = regexp:{folder}/mailboxes
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
virtual_minimum_uid = 1
smtpd_relay_restrictions = reject_unauth_destination
smtpd_recipient_restrictions = check_recipient_access regexp:{folder}/recipients, permit_mynetworks, reject
smtputf8_enable = yes
smtpd_tls_security_level = none
local_recipient_maps =
alias_maps =
alias_database =
notify_classes =
bounce_queue_lifetime = 0
message_size_limit = 1000000
in_flow_delay = 0
"""

RECIPIENTS = """\
/^later@ok\\.test$/ 450 4.2.0 come back later
/^gone@ok\\.test$/ 550 5.1.1 this mailbox is gone
"""

MASTER = """\
127.0.0.1:{port} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
virtual unix - n n - - virtual -o virtual_mailbox_maps=regexp:{folder}/delivered
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""


class Postfix:
    """A Postfix with its own configuration, queue and mailbox."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._config = folder / "etc"
        self.port = _free_port()
        self._write()

    @property
    def url(self) -> str:
        return f"smtp://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and return once it greets."""
        self._command("start")
        deadline = time.monotonic() + START_S_MAX
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1.0) as connection:
                    connection.settimeout(START_S_MAX)
                    assert connection.recv(3) == b"220"
                    connection.sendall(b"QUIT\r\n")
                    return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                _give_way()

    def stop(self) -> None:
        """Stop it; connections are cut, the queue stays."""
        self._command("stop")

    def delivered(self, marker: bytes) -> bytes:
        """Wait until the mail that holds `marker` lies in the mailbox and return its file."""
        deadline = time.monotonic() + START_S_MAX
        box = self._folder / "mail" / "box" / "new"
        while True:
            for file in box.glob("*"):
                if marker in (octets := file.read_bytes()):
                    return octets
            if time.monotonic() > deadline:
                raise TimeoutError(f"{marker!r} was not delivered\n{self.log()}")
            _give_way()

    def log(self) -> str:
        log = self._folder / "maillog"
        return log.read_text() if log.exists() else ""

    def _command(self, name: str) -> None:
        done = subprocess.run(
            ["/usr/sbin/postfix", "-c", str(self._config), name],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"postfix {name}: {done.stderr}{done.stdout}\n{self.log()}")

    def _write(self) -> None:
        owner = pwd.getpwnam("postfix")
        nobody = pwd.getpwnam("nobody")
        for name in ("etc", "queue", "data", "mail"):
            (self._folder / name).mkdir(parents=True)
        os.chown(self._folder / "data", owner.pw_uid, owner.pw_gid)
        os.chown(self._folder / "mail", nobody.pw_uid, nobody.pw_gid)
        daemons = next(path for path in ("/usr/lib/postfix/sbin", "/usr/libexec/postfix") if Path(path).exists())
        values = {"folder": self._folder, "daemons": daemons, "uid": nobody.pw_uid, "gid": nobody.pw_gid}
        (self._config / "main.cf").write_text(MAIN.format(**values))
        (self._config / "master.cf").write_text(MASTER.format(port=self.port, folder=self._folder))
        (self._folder / "recipients").write_text(RECIPIENTS)
        (self._folder / "mailboxes").write_text("/@ok\\.test$/ box/\n")
        (self._folder / "delivered").write_text("!/^bounced@ok\\.test$/ box/\n")


@contextlib.contextmanager
def running_postfix(folder: Path) -> Iterator[Postfix]:
    """Run a Postfix in `folder`, or skip the test where that is impossible."""
    if shutil.which("postfix", path="/usr/sbin:/usr/bin:/usr/local/sbin") is None:
        pytest.skip("postfix is not installed")
    if os.geteuid() != 0:
        pytest.skip("postfix's master needs root")
    for parent in (folder, *folder.parents):  # its daemons run under their own accounts
        if parent.stat().st_uid == os.geteuid() and str(parent) not in {"/", "/tmp"}:  # noqa: S108 - only excluded
            parent.chmod(parent.stat().st_mode | 0o011)
    postfix = Postfix(folder)
    try:
        postfix.start()
        yield postfix
    finally:
        with contextlib.suppress(RuntimeError):
            postfix.stop()


def _give_way() -> None:
    """Let other processes run between two looks of a bounded wait; there is no event to wait for."""
    select.select([], [], [], 0.01)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
