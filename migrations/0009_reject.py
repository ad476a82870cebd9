"""What `NOTIFY taskq_enqueue` brought and could not be taken: kept for whoever sent it, the newest thousand."""

from yoyo import step

__depends__ = {"0008_triggers"}

steps = [
    step(
        """
        create table taskq.reject (
            id          bigint      generated always as identity primary key,
            rejected_at timestamptz not null default now(),
            payload     text        not null,
            error       text        not null
        )
        """,
        "drop table taskq.reject",
    ),
]
