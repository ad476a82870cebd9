"""Mail: from the arguments of a task to bytes that a relay has accepted.

Read in this order: `address` (one strict address), `compose` (deterministic bytes), `envelope`
(what a transport is given and what it answers), `classify` (what a reply means), `server`,
`handshake`, `channel` and `smtp` (where, one connection, one transaction), `pool`, `attempt`,
`consequence`, `breaker`, `rate` and `relay` (a relay in use), `options`, `failover` and `routes`
(several), `inbox` (capture instead of sending).

The one promise: a mail is repeated only if it was refused, or if the connection broke in the one
span where nobody can know (after the final dot, before its reply); and then with the same bytes
and the same Message-ID.
"""
