"""The SQL road in: `taskq.enqueue` for other applications, in their own transactions.

Public and stable: arguments are only ever added, at the end and with a default.  The caller needs
EXECUTE and nothing else; the function runs as its owner with a fixed search path.

The wake is masked.  A NOTIFY takes one lock of the whole cluster until its transaction is flushed,
so a thousand producers that notify run one at a time.  While a dispatcher is busy looking for work
anyway it holds an advisory lock; the producer probes that lock and notifies only when nobody holds
it.  A lost wake costs at most the dispatcher's one-second poll.

1953719656 is the class of taskq's advisory locks; the object is the schema.
"""

from yoyo import step

__depends__ = {"0001_tasks"}

steps = [
    step(
        """
        create function taskq.wake() returns void
        language plpgsql security definer set search_path = pg_catalog, pg_temp as $f$
        begin
            if pg_try_advisory_lock_shared(1953719656, 'taskq'::regnamespace::oid::int) then
                perform pg_advisory_unlock_shared(1953719656, 'taskq'::regnamespace::oid::int);
                perform pg_notify('taskq_wake', '');
            end if;
        end
        $f$
        """,
        "drop function taskq.wake()",
    ),
    step(
        """
        create function taskq.enqueue(
            kind         text,
            payload      jsonb,
            queue        text        default 'default',
            priority     integer     default 0,
            due_at       timestamptz default null,
            max_attempts integer     default 10
        ) returns bigint
        language plpgsql security definer set search_path = pg_catalog, pg_temp as $f$
        declare
            made bigint;
        begin
            if enqueue.kind is null or enqueue.kind !~ '^[a-z][a-z0-9_.-]{0,63}$' then
                raise exception 'kind is %: must be a name of 1 to 64 of a-z, 0-9, "_", "." and "-", beginning with a letter',
                    coalesce(quote_literal(enqueue.kind), 'null') using errcode = 'invalid_parameter_value';
            end if;
            if enqueue.payload is null or jsonb_typeof(enqueue.payload) <> 'object' then
                raise exception 'payload is %: must be a JSON object', coalesce(jsonb_typeof(enqueue.payload), 'null')
                    using errcode = 'invalid_parameter_value';
            end if;
            if enqueue.queue is null or enqueue.queue !~ '^[A-Za-z0-9_.-]{1,64}$' then
                raise exception 'queue is %: must be a name of 1 to 64 letters, digits, "_", "." and "-"',
                    coalesce(quote_literal(enqueue.queue), 'null') using errcode = 'invalid_parameter_value';
            end if;
            if enqueue.priority is null or enqueue.priority not between -100 and 100 then
                raise exception 'priority is %: must be from -100 (first) to 100 (last)', coalesce(enqueue.priority::text, 'null')
                    using errcode = 'invalid_parameter_value';
            end if;
            if enqueue.max_attempts is null or enqueue.max_attempts not between 1 and 100 then
                raise exception 'max_attempts is %: must be from 1 to 100', coalesce(enqueue.max_attempts::text, 'null')
                    using errcode = 'invalid_parameter_value';
            end if;
            insert into taskq.task (id, kind, payload, queue, priority, due_at, max_attempts)
            values (nextval('taskq.task_id'), enqueue.kind, enqueue.payload, enqueue.queue, enqueue.priority,
                    coalesce(enqueue.due_at, transaction_timestamp()), enqueue.max_attempts)
            returning id into made;
            if enqueue.due_at is null or enqueue.due_at <= transaction_timestamp() then
                perform taskq.wake();
            end if;
            return made;
        end
        $f$
        """,
        "drop function taskq.enqueue(text, jsonb, text, integer, timestamptz, integer)",
    ),
    step(
        "revoke execute on function taskq.wake() from public",
        "grant execute on function taskq.wake() to public",
    ),
    step(
        "revoke execute on function taskq.enqueue(text, jsonb, text, integer, timestamptz, integer) from public",
        "grant execute on function taskq.enqueue(text, jsonb, text, integer, timestamptz, integer) to public",
    ),
]
