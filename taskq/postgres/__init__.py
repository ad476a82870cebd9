"""PostgreSQL inside: what `python run.py` stores its tasks in when no DATABASE_URL is given.

`EmbeddedPostgres(root).start()` finds PostgreSQL's programs, makes a cluster below `root` the first
time, starts the server (or joins the one that another taskq process started there), and leaves a
database `taskq` that `dsn` connects to.  `stop()` ends the server once its last user leaves.

One fact decides who may start a server: an exclusive flock on `server.lock`, whose descriptor every
process of the server inherits.  It is held while any of them lives, even in another container, and is
gone when the last one dies, however it dies; no pid is ever trusted.  The server listens on a socket
in a private directory only, and `peer` authentication admits none but the user who runs taskq.

Refused, with the way out: data of another major version, a root directory that others may write to or
the server's account can't reach, and a server on the same data that taskq did not start.
All of it blocks: call it by `asyncio.to_thread`.  It needs a POSIX system, and no database driver.
"""

from taskq.postgres.binaries import Binaries, find_binaries
from taskq.postgres.embedded import EmbeddedPostgres
from taskq.postgres.layout import default_root

__all__ = ["Binaries", "EmbeddedPostgres", "default_root", "find_binaries"]
