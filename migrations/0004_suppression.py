"""Who may not be written to, and the delivery reports that came back.

An address is kept as its SHA-256 alone, beside a form such as `a***@example.com` for people: the list
outlives what is erased of a person, and must not become a list of persons itself.  Whoever asks for an
address must know it.

A task's reports are told apart by what they say, so the same one counts once however often it arrives.
"""

from yoyo import step

__depends__ = {"0003_bundle"}

steps = [
    step(
        """
        create table taskq.suppression (
            hash     bytea       primary key,
            id       bigint      generated always as identity,
            shown    text        not null,
            reason   text        not null,
            source   text        not null,
            added_at timestamptz not null default now(),
            until    timestamptz,
            task_id  bigint,
            constraint suppression_hash_is_sha256 check (octet_length(hash) = 32),
            constraint suppression_source_known check (source in ('bounce', 'report', 'manual'))
        )
        """,
        "drop table taskq.suppression",
    ),
    step(
        "create unique index suppression_listed on taskq.suppression (id)",
        "drop index taskq.suppression_listed",
    ),
    step(
        "create index suppression_ending on taskq.suppression (until) where until is not null",
        "drop index taskq.suppression_ending",
    ),
    step(
        """
        create table taskq.bounce (
            task_id     bigint      not null,
            hash        bytea       not null,
            action      text        not null,
            status      text        not null,
            reported_at timestamptz not null default now(),
            shown       text        not null,
            diagnostic  text        not null,
            primary key (task_id, hash, action, status)
        )
        """,
        "drop table taskq.bounce",
    ),
    step(
        "create index bounce_reported on taskq.bounce (reported_at)",
        "drop index taskq.bounce_reported",
    ),
]
