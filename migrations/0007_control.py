"""Ask about a task and call it off, from SQL: `taskq.status` and `taskq.cancel`.

A pending task is cancelled at once, in the caller's transaction.  One in progress belongs to the
instance that runs it, so the wish is written down and that instance is told: it ends the run where
nothing is lost by it.  A notification only says "look": who may write the wish is decided by EXECUTE
on the function, and a wish whose notification was lost is found by the next sweep.
"""

from yoyo import step

__depends__ = {"0006_facts"}

steps = [
    step(
        """
        create table taskq.cancel_request (
            task_id  bigint      primary key,
            asked_at timestamptz not null default now()
        )
        """,
        "drop table taskq.cancel_request",
    ),
    step(
        """
        create function taskq.status(id bigint) returns text
        language sql stable security definer set search_path = pg_catalog, pg_temp as $f$
            select (array['pending', 'in-progress', 'Ok', 'failed', 'cancelled'])[t.status + 1]
              from taskq.task t
             where t.id = status.id
        $f$
        """,
        "drop function taskq.status(bigint)",
    ),
    step(
        """
        create function taskq.cancel(id bigint) returns text
        language plpgsql security definer set search_path = pg_catalog, pg_temp as $f$
        declare
            called_off record;
            now_is     smallint;
        begin
            update taskq.task t
               set status = 4, finished_at = clock_timestamp(), reason = 'cancelled'
             where t.id = cancel.id and t.status = 0
            returning t.queue, t.kind into called_off;
            if found then
                insert into taskq.minute_count as m (minute, owner, queue, kind, status, n)
                values (date_trunc('minute', now()), 0, called_off.queue, called_off.kind, 4, 1)
                on conflict (minute, owner, queue, kind, status) do update set n = m.n + 1;
                return 'cancelled';
            end if;
            select t.status into now_is from taskq.task t where t.id = cancel.id;
            if now_is = 1 then
                insert into taskq.cancel_request (task_id) values (cancel.id) on conflict do nothing;
                perform pg_notify('taskq_cancel', '');
            end if;
            return taskq.status(cancel.id);
        end
        $f$
        """,
        "drop function taskq.cancel(bigint)",
    ),
    step(
        "revoke execute on function taskq.status(bigint) from public",
        "grant execute on function taskq.status(bigint) to public",
    ),
    step(
        "revoke execute on function taskq.cancel(bigint) from public",
        "grant execute on function taskq.cancel(bigint) to public",
    ),
]
