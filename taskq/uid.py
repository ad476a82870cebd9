"""A task's name in the outside world: a UUID that only this installation can turn back into the task.

The name must be equal on every attempt and every instance, tell strangers neither the number of
tasks nor which came first, and lead back to its task without a table, so that a bounce which quotes
our Message-ID finds what it is about.  It is therefore computed: a 58-bit check value, which is a
keyed hash of the task's id, and the id itself, hidden behind a keyed hash of the check value (the
two rounds of a synthetic initialisation vector, RFC 5297).  The key is the installation's own UUID.

Somebody else's UUID passes the check once in 2⁵⁸ tries; two tasks never share a name, because the id
can be computed back from each.  The version is 8, which leaves the bits to the maker (RFC 9562 §5.8).
"""

import functools
import hashlib
from uuid import UUID

__all__ = ["task_id_of", "uid_of"]

ID_OCTETS = 8  # PostgreSQL's bigint, which is never negative here
INSTALLATIONS_MAX = 16  # keys kept ready; a process serves one

_ID = (1 << 64) - 1
_CHECK = (1 << 58) - 1
_LOW = (1 << 62) - 1  # the bits behind the variant
_MIDDLE = 0xFFF  # between version and variant
_VERSION_AND_VARIANT = 8 << 76 | 2 << 62


def uid_of(task_id: int, installation: UUID) -> UUID:
    """Return the name of a task: the same for ever, another in every installation."""
    keyed_check, keyed_mask = _keyed(installation)
    check, mask = keyed_check.copy(), keyed_mask.copy()
    check.update(task_id.to_bytes(ID_OCTETS, "big"))
    checked = int.from_bytes(check.digest(), "big") & _CHECK
    mask.update(checked.to_bytes(ID_OCTETS, "big"))
    hidden = int.from_bytes(mask.digest(), "big") ^ task_id
    free = checked << 64 | hidden
    return UUID(int=(free >> 74) << 80 | (free >> 62 & _MIDDLE) << 64 | free & _LOW | _VERSION_AND_VARIANT)


def task_id_of(uid: UUID, installation: UUID) -> int | None:
    """Return the id of the task that has this name; None if it's no name that this installation gave."""
    bits = uid.int
    free = (bits >> 80) << 74 | (bits >> 64 & _MIDDLE) << 62 | bits & _LOW
    checked, hidden = free >> 64, free & _ID
    mask = _keyed(installation)[1].copy()
    mask.update(checked.to_bytes(ID_OCTETS, "big"))
    task_id = int.from_bytes(mask.digest(), "big") ^ hidden
    return task_id if uid_of(task_id, installation) == uid else None


@functools.lru_cache(maxsize=INSTALLATIONS_MAX)
def _keyed(installation: UUID) -> tuple["hashlib.blake2b", "hashlib.blake2b"]:
    """Return the two hashes, fed with the key."""
    key = installation.bytes
    return (
        hashlib.blake2b(key=key, digest_size=ID_OCTETS, person=b"taskq uid check"),
        hashlib.blake2b(key=key, digest_size=ID_OCTETS, person=b"taskq uid mask"),
    )
