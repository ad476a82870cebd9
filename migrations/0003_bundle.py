"""Submissions that are more than one plain row: groups, content beside the payload, times that pass.

The new columns stand at the end of `task` and are null for a plain row, which so costs not a byte
more: the bitmap of nulls that it has anyway holds seven bits to spare.

A group is one row that lists its tasks; its id comes from the sequence of theirs, before them, so that
an id names a task or a group and never both.  Content is stored once, under its SHA-256, and lives as
long as a task uses it.  Compressing it again would cost time for nothing (an attachment is compressed
already), hence STORAGE EXTERNAL.

Indexing what can expire reads the whole table once, and submissions wait for that.
"""

from yoyo import step

__depends__ = {"0002_enqueue"}

steps = [
    step(
        """
        alter table taskq.task
            add column expires_at timestamptz,
            add column group_id   bigint,
            add column tags       text[],
            add column metadata   jsonb,
            add column sensitive  boolean
        """,
        """
        alter table taskq.task
            drop column sensitive,
            drop column metadata,
            drop column tags,
            drop column group_id,
            drop column expires_at
        """,
    ),
    step(
        "create index task_expiring on taskq.task (expires_at, id) where status = 0 and expires_at is not null",
        "drop index taskq.task_expiring",
    ),
    step(
        """
        create table taskq.task_group (
            id         bigint      primary key,
            created_at timestamptz not null default now(),
            kind       text        not null,
            task_ids   bigint[]    not null,
            labels     text[]      not null
        )
        """,
        "drop table taskq.task_group",
    ),
    step(
        """
        create table taskq.blob (
            digest     bytea       primary key,
            size       bigint      not null,
            content    bytea       not null
        )
        """,
        "drop table taskq.blob",
    ),
    step(
        "alter table taskq.blob alter column content set storage external",
        "alter table taskq.blob alter column content set storage extended",
    ),
    step(
        """
        create table taskq.task_blob (
            task_id bigint not null,
            digest  bytea  not null,
            primary key (task_id, digest)
        )
        """,
        "drop table taskq.task_blob",
    ),
    step(
        "create index task_blob_digest on taskq.task_blob (digest)",
        "drop index taskq.task_blob_digest",
    ),
]
