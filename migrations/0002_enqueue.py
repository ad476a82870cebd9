"""The SQL road in: `taskq.enqueue` and `taskq.enqueue_many` for other applications, in their own transactions.

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
        create function taskq.check_task(kind text, queue text, priority integer, max_attempts integer) returns void
        language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
        begin
            if check_task.kind is null or check_task.kind !~ '^[a-z][a-z0-9_.-]{0,63}$' then
                raise exception 'kind is %: must be a name of 1 to 64 of a-z, 0-9, "_", "." and "-", beginning with a letter',
                    coalesce(quote_literal(check_task.kind), 'null') using errcode = 'invalid_parameter_value';
            end if;
            if check_task.queue is null or check_task.queue !~ '^[A-Za-z0-9_.-]{1,64}$' then
                raise exception 'queue is %: must be a name of 1 to 64 letters, digits, "_", "." and "-"',
                    coalesce(quote_literal(check_task.queue), 'null') using errcode = 'invalid_parameter_value';
            end if;
            if check_task.priority is null or check_task.priority not between -100 and 100 then
                raise exception 'priority is %: must be from -100 (first) to 100 (last)',
                    coalesce(check_task.priority::text, 'null') using errcode = 'invalid_parameter_value';
            end if;
            if check_task.max_attempts is null or check_task.max_attempts not between 1 and 100 then
                raise exception 'max_attempts is %: must be from 1 to 100', coalesce(check_task.max_attempts::text, 'null')
                    using errcode = 'invalid_parameter_value';
            end if;
        end
        $f$
        """,
        "drop function taskq.check_task(text, text, integer, integer)",
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
            perform taskq.check_task(enqueue.kind, enqueue.queue, enqueue.priority, enqueue.max_attempts);
            if enqueue.payload is null or jsonb_typeof(enqueue.payload) <> 'object' then
                raise exception 'payload is %: must be a JSON object', coalesce(jsonb_typeof(enqueue.payload), 'null')
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
        """
        create function taskq.enqueue_many(
            kind         text,
            payloads     jsonb[],
            queue        text        default 'default',
            priority     integer     default 0,
            due_at       timestamptz default null,
            max_attempts integer     default 10
        ) returns setof bigint
        language plpgsql security definer set search_path = pg_catalog, pg_temp as $f$
        declare
            bad record;
        begin
            perform taskq.check_task(enqueue_many.kind, enqueue_many.queue, enqueue_many.priority, enqueue_many.max_attempts);
            if enqueue_many.payloads is null or cardinality(enqueue_many.payloads) > 100000 then
                raise exception 'payloads has % elements: must be an array of at most 100000; call it several times',
                    coalesce(cardinality(enqueue_many.payloads)::text, 'no') using errcode = 'invalid_parameter_value';
            end if;
            select p.n, coalesce(jsonb_typeof(p.payload), 'null') as type into bad
              from unnest(enqueue_many.payloads) with ordinality p (payload, n)
             where jsonb_typeof(p.payload) is distinct from 'object'
             order by p.n
             limit 1;
            if found then
                raise exception 'payloads[%] is %: must be a JSON object', bad.n, bad.type
                    using errcode = 'invalid_parameter_value';
            end if;
            return query
                insert into taskq.task (id, kind, payload, queue, priority, due_at, max_attempts)
                select nextval('taskq.task_id'), enqueue_many.kind, p.payload, enqueue_many.queue, enqueue_many.priority,
                       coalesce(enqueue_many.due_at, transaction_timestamp()), enqueue_many.max_attempts
                  from unnest(enqueue_many.payloads) with ordinality p (payload, n)
                 order by p.n
                returning id;
            if found and (enqueue_many.due_at is null or enqueue_many.due_at <= transaction_timestamp()) then
                perform taskq.wake();
            end if;
        end
        $f$
        """,
        "drop function taskq.enqueue_many(text, jsonb[], text, integer, timestamptz, integer)",
    ),
    step(
        "revoke execute on function taskq.check_task(text, text, integer, integer) from public",
        "grant execute on function taskq.check_task(text, text, integer, integer) to public",
    ),
    step(
        "revoke execute on function taskq.enqueue_many(text, jsonb[], text, integer, timestamptz, integer) from public",
        "grant execute on function taskq.enqueue_many(text, jsonb[], text, integer, timestamptz, integer) to public",
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
