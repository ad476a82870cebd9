"""Who runs PostgreSQL: the user who runs taskq, or the account that root must give way to.

PostgreSQL refuses to run as root.  As root, the account is the one named by the setting, else the owner
of the data that is already there, else the first of `taskq`, `postgres`, `nobody` that exists.  No account
is ever created, and no mode or owner changed of anything that is not taskq's own.
"""

import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path

from taskq.errors import ConfigError

__all__ = ["Account", "choose_account", "client_name", "make_private"]


@dataclass(frozen=True, slots=True)
class Account:
    """The operating system's account under which PostgreSQL's programs run.

    Attributes:
        name: Its name, or `uid 1234` if it has none.
        uid: Its number.
        gid: Its group.
        dropped: Whether taskq is root and must become it.
    """

    name: str
    uid: int
    gid: int
    dropped: bool


def client_name() -> str:
    """Return the name of the user who runs taskq: the one that `peer` authentication sees.

    Raises:
        ConfigError: The user has no name.
    """
    uid = os.geteuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        raise ConfigError(
            f"user id {uid} has no entry in /etc/passwd, and PostgreSQL admits users by name: "
            f"add an entry, or set DATABASE_URL to a server of your own"
        ) from None


def choose_account(data: Path, server_user: str | None) -> Account:
    """Return the account for the server whose data is (or will be) in `data`.

    Raises:
        ConfigError: The wanted account doesn't exist, is root, or doesn't own the data.
    """
    uid = os.geteuid()
    try:
        owner = data.stat().st_uid
    except FileNotFoundError:
        owner = None
    if uid == 0:
        account = _named(server_user) if server_user else _default(data, owner)
    else:
        account = Account(client_name(), uid, os.getegid(), dropped=False)
        if server_user not in {None, account.name}:
            raise ConfigError(f"TASKQ_PG_USER is {server_user}, but only root can become another user: unset it")
    if owner not in {None, account.uid}:
        raise ConfigError(
            f"{data} belongs to user id {owner}, but PostgreSQL would run as {account.name} ({account.uid}): "
            f"run taskq as the owner, or chown -R the directory"
        )
    return account


def make_private(path: Path, account: Account) -> None:
    """Make a directory that nobody but the account may enter, or check that it is one.

    Raises:
        ConfigError: The path can't be made, or belongs to somebody else or is open to others.
    """
    try:
        path.mkdir(mode=0o700)
        if account.dropped:
            os.chown(path, account.uid, account.gid, follow_symlinks=False)
    except FileExistsError:
        pass
    except OSError as error:
        raise ConfigError(f"directory {path} can't be made: {error.strerror}; make it, or free its place") from error
    state = path.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != account.uid or state.st_mode & 0o077:
        raise ConfigError(
            f"{path} is no private directory of {account.name} (user id {state.st_uid}, mode {state.st_mode:o}), "
            f"so somebody else may have put it there: remove it"
        )


def _named(name: str) -> Account:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise ConfigError(f"TASKQ_PG_USER is {name}, which doesn't exist: name an existing account") from None
    if entry.pw_uid == 0:
        raise ConfigError(f"TASKQ_PG_USER is {name}, which is root: PostgreSQL refuses to run as root; name another")
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, dropped=True)


def _default(data: Path, owner: int | None) -> Account:
    if owner == 0:
        raise ConfigError(f"{data} belongs to root, as whom PostgreSQL refuses to run: chown -R it to another account")
    if owner is not None:
        try:
            return _named(pwd.getpwuid(owner).pw_name)
        except KeyError:
            return Account(f"uid {owner}", owner, data.stat().st_gid, dropped=True)
    for name in ("taskq", "postgres", "nobody"):
        try:
            return _named(name)
        except ConfigError:
            continue
    raise ConfigError(
        "taskq runs as root, and none of the accounts taskq, postgres, nobody exists for PostgreSQL: "
        "name one by TASKQ_PG_USER, or run taskq as an ordinary user"
    )
