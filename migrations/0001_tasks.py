"""Tasks, leases, attempts, counters and the inbox.

One statement per step: several in one simple query can't be prepared, and some PostgreSQL
distributions refuse them.  No triggers on our own tables, no foreign keys between them, every
identity a bigint: the same schema then runs as one shard of many.

Status: 0 pending, 1 in-progress, 2 Ok, 3 failed, 4 cancelled.

The order of the columns of `task` is the order of the WAL: what a claim and a settle change lies
together behind the id, what never changes lies at the end, so that an update on the same page
(fillfactor 50 keeps room for it) logs only the bytes between.

Ids run through partitions of 10,000,000.  The sweeper keeps two empty ones ahead and drops a full
one when its last task has outlived the retention; until then deletes reuse the room.
"""

from yoyo import step

__depends__: set[str] = set()

HOT = "fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0.05"


def partition(n: int) -> object:
    low, high = n * 10_000_000, (n + 1) * 10_000_000
    return step(
        f"create table taskq.task_{n} partition of taskq.task for values from ({low}) to ({high}) with ({HOT})",
        f"drop table if exists taskq.task_{n}",
    )


steps = [
    step("create sequence taskq.task_id as bigint", "drop sequence taskq.task_id"),
    step(
        """
        create table taskq.task (
            id           bigint      not null,
            owner        bigint,
            due_at       timestamptz not null default now(),
            started_at   timestamptz,
            finished_at  timestamptz,
            run          integer     not null default 0,
            status       smallint    not null default 0,
            attempt      smallint    not null default 0,
            crashes      smallint    not null default 0,
            priority     smallint    not null default 0,
            max_attempts smallint    not null default 10,
            created_at   timestamptz not null default now(),
            queue        text        not null default 'default',
            kind         text        not null,
            reason       text,
            last_error   text,
            payload      jsonb       not null,
            primary key (id),
            constraint task_status_known check (status between 0 and 4),
            constraint task_owned_in_progress check ((status = 1) = (owner is not null)),
            constraint task_finished_when_final check ((status >= 2) = (finished_at is not null))
        ) partition by range (id)
        """,
        "drop table taskq.task",
    ),
    step(
        "create index task_pending on taskq.task (queue, priority, due_at, id) where status = 0 and crashes < 2",
        "drop index taskq.task_pending",
    ),
    step(
        "create index task_suspect on taskq.task (due_at, id) where status = 0 and crashes >= 2",
        "drop index taskq.task_suspect",
    ),
    step(
        "create index task_running on taskq.task (owner, id) where status = 1",
        "drop index taskq.task_running",
    ),
    step(
        "create index task_failed on taskq.task (finished_at, id) where status = 3",
        "drop index taskq.task_failed",
    ),
    partition(0),
    partition(1),
    partition(2),
    step(
        """
        create table taskq.lease (
            id         bigint      generated always as identity primary key,
            instance   uuid        not null,
            host       text        not null,
            namespace  text,
            pid        integer     not null,
            pid_start  bigint,
            url        text,
            started_at timestamptz not null default now(),
            beat_at    timestamptz not null default now()
        ) with (fillfactor = 20)
        """,
        "drop table taskq.lease",
    ),
    step(
        """
        create table taskq.attempt (
            task_id    bigint      not null,
            run        integer     not null,
            attempt    smallint    not null,
            owner      bigint      not null,
            started_at timestamptz not null,
            ended_at   timestamptz not null default now(),
            outcome    text        not null,
            error      text,
            primary key (task_id, run)
        )
        """,
        "drop table taskq.attempt",
    ),
    step(
        """
        create table taskq.minute_count (
            minute timestamptz not null,
            owner  bigint      not null,
            queue  text        not null,
            kind   text        not null,
            status smallint    not null,
            n      bigint      not null,
            primary key (minute, owner, queue, kind, status)
        ) with (fillfactor = 50)
        """,
        "drop table taskq.minute_count",
    ),
    step(
        """
        create table taskq.inbox (
            id          bigint      generated always as identity primary key,
            task_id     bigint      not null,
            sender      text        not null,
            recipient   text        not null,
            captured_at timestamptz not null default now(),
            message     bytea       not null
        )
        """,
        "drop table taskq.inbox",
    ),
    step(
        "create table taskq.installation (id uuid primary key default gen_random_uuid(), created_at timestamptz not null default now())",
        "drop table taskq.installation",
    ),
    step("insert into taskq.installation default values", "delete from taskq.installation"),
]
