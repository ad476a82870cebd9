"""What is kept of each run, the seal of runs that must not be repeated, and the erasing of content.

`attempt.detail` is what a handler noted: a mail's relay, phase, reply and times.  Runs that were put
off through no fault of the task would fill the table while a relay is down, so all of them share the
row of run 0, which counts them in `times` and keeps the newest.

`task.sealed` is the number of the run whose content may have left.  A run is sealed when it equals
`run`, so the next claim, which adds one to `run`, ends it without a write.  `task.erased_at` says that
the payload holds only what outlives the content.  Both stand at the end and are null in ordinary
tasks, which pay nothing for them.
"""

from yoyo import step

__depends__ = {"0005_inbox"}

steps = [
    step(
        "alter table taskq.attempt add column detail jsonb, add column times integer not null default 1",
        "alter table taskq.attempt drop column times, drop column detail",
    ),
    step(
        """
        alter table taskq.task
            add column sealed integer,
            add column erased_at timestamptz
        """,
        "alter table taskq.task drop column erased_at, drop column sealed",
    ),
    step(
        """
        create function taskq.erased(payload jsonb, keeps jsonb) returns jsonb
        language sql immutable parallel safe set search_path = pg_catalog, pg_temp as $f$
            select jsonb_build_object('erased', true) || coalesce(
                       jsonb_object_agg(k.name, regexp_replace(
                           erased.payload ->> k.name, '([^[:space:]<>@])[^[:space:]<>@]*@', '\\1***@', 'g')),
                       '{}')
              from jsonb_array_elements_text(erased.keeps) k (name)
             where jsonb_typeof(erased.payload -> k.name) = 'string'
        $f$
        """,
        "drop function taskq.erased(jsonb, jsonb)",
    ),
    step(
        "revoke execute on function taskq.erased(jsonb, jsonb) from public",
        "grant execute on function taskq.erased(jsonb, jsonb) to public",
    ),
]
