"""The trigger kit: `taskq.enqueue_on` makes a trigger that turns the rows of another application's table into tasks.

    select taskq.enqueue_on('shop.orders', 'insert', 'email',
        '{"to": "{email}", "subject": "Order {id}", "body": "Thank you."}', condition => 'new.total > 0');

The template is translated once, into the expression that a hand-written trigger would hold; nothing
is parsed when rows come.  Inserts and deletes fire once a statement, whatever its number of rows, and
so notify once.  Updates fire once a row, as only there the old and the new row are known to belong
together; within a transaction PostgreSQL makes one notification of them.

What is made belongs to the caller: creating it needs what a trigger of one's own would need, and the
application that writes the table needs nothing.  Tasks are made by `taskq.enqueue_many` in the
transaction of the write: rolled back with it, committed with it.
"""

from yoyo import step

__depends__ = {"0007_control"}

steps = [
    step(
        r"""
        create function taskq.template_text(template text, alias text, columns text[]) returns text
        language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
        declare
            part  text[];
            whole text[] := regexp_match(template, '^\{([^{}]+)\}$');
            parts text[] := array[]::text[];
        begin
            for part in select regexp_matches(template, '\{\{|\}\}|\{([^{}]*)\}|([^{}]+)|([{}])', 'g') loop
                if part[3] is not null then
                    raise exception 'the template has a single "%" in %: write % for the character itself',
                        part[3], quote_literal(template), repeat(part[3], 2) using errcode = 'invalid_parameter_value';
                elsif part[1] is not null and part[1] <> all (columns) then
                    raise exception 'the template names {%}, which is no column of the table: use one of %',
                        part[1], array_to_string(columns, ', ') using errcode = 'undefined_column';
                end if;
            end loop;
            if whole is not null then
                return format('to_jsonb(%I.%I)', alias, whole[1]);
            end if;
            for part in
                select array[m[1], m[2], m[3]]
                  from regexp_matches(template, '(\{\{|\}\})|\{([^{}]+)\}|([^{}]+)', 'g') m loop
                parts := parts || case when part[2] is not null then format('%I.%I', alias, part[2])
                                       else quote_literal(coalesce(left(part[1], 1), part[3])) end;
            end loop;
            return case when cardinality(parts) = 0 then '''""''::jsonb'
                        else format('to_jsonb(concat(%s))', array_to_string(parts, ', ')) end;
        end
        $f$
        """,
        "drop function taskq.template_text(text, text, text[])",
    ),
    step(
        """
        create function taskq.template_expression(template jsonb, alias text, columns text[]) returns text
        language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
        declare
            inside text;
        begin
            case jsonb_typeof(template)
                when 'object' then
                    if (select count(*) from jsonb_object_keys(template)) > 50 then
                        raise exception 'the template has an object of more than 50 fields: nest them, or write a trigger by hand'
                            using errcode = 'invalid_parameter_value';
                    end if;
                    select string_agg(format('%L, %s', e.key, taskq.template_expression(e.value, alias, columns)), ', ')
                      into inside
                      from jsonb_each(template) e;
                    return format('jsonb_build_object(%s)', inside);
                when 'array' then
                    select string_agg(taskq.template_expression(e.value, alias, columns), ', ' order by e.ordinality)
                      into inside
                      from jsonb_array_elements(template) with ordinality e;
                    return format('jsonb_build_array(%s)', inside);
                when 'string' then
                    return taskq.template_text(template #>> '{}', alias, columns);
                else
                    return format('%L::jsonb', template);
            end case;
        end
        $f$
        """,
        "drop function taskq.template_expression(jsonb, text, text[])",
    ),
    step(
        """
        create function taskq.trigger_name(event text, kind text) returns text
        language sql immutable set search_path = pg_catalog, pg_temp as $f$
            select 'taskq_' || trigger_name.event || '_' || left(trigger_name.kind, 30) || '_' || left(md5(trigger_name.kind), 6)
        $f$
        """,
        "drop function taskq.trigger_name(text, text)",
    ),
    step(
        """
        create function taskq.enqueue_on(
            "table"      regclass,
            event        text,
            kind         text,
            template     jsonb,
            condition    text    default null,
            queue        text    default 'default',
            priority     integer default 0,
            max_attempts integer default 10
        ) returns text
        language plpgsql set search_path = pg_catalog, pg_temp as $f$
        declare
            of_rows  text := case enqueue_on.event when 'delete' then 'old' else 'new' end;
            columns  text[];
            name     text;
            made     text;
            payload  text;
            limits   text;
        begin
            if enqueue_on.event is null or enqueue_on.event not in ('insert', 'update', 'delete') then
                raise exception 'event is %: must be insert, update or delete', coalesce(quote_literal(enqueue_on.event), 'null')
                    using errcode = 'invalid_parameter_value';
            end if;
            if enqueue_on.template is null or jsonb_typeof(enqueue_on.template) <> 'object' then
                raise exception 'template is %: must be a JSON object', coalesce(jsonb_typeof(enqueue_on.template), 'null')
                    using errcode = 'invalid_parameter_value';
            end if;
            if enqueue_on.kind is null or enqueue_on.kind !~ '^[a-z][a-z0-9_.-]{0,63}$' then
                raise exception 'kind is %: must be a name of 1 to 64 of a-z, 0-9, "_", "." and "-", beginning with a letter',
                    coalesce(quote_literal(enqueue_on.kind), 'null') using errcode = 'invalid_parameter_value';
            end if;
            select array_agg(a.attname::text order by a.attnum) into columns
              from pg_attribute a
             where a.attrelid = enqueue_on."table" and a.attnum > 0 and not a.attisdropped;
            name := taskq.trigger_name(enqueue_on.event, enqueue_on.kind);
            select format('%I.%I', n.nspname, name || '_' || c.oid) into made
              from pg_class c join pg_namespace n on n.oid = c.relnamespace
             where c.oid = enqueue_on."table";
            payload := taskq.template_expression(enqueue_on.template, of_rows, columns);
            limits  := format('%L, %s, null, %s', enqueue_on.queue, enqueue_on.priority, enqueue_on.max_attempts);
            perform taskq.enqueue_many(enqueue_on.kind, array[]::jsonb[], enqueue_on.queue, enqueue_on.priority, null,
                                       enqueue_on.max_attempts);  -- refuses now what it would refuse at each row
            if enqueue_on.event = 'update' then
                execute format(
                    'create or replace function %s() returns trigger language plpgsql security definer '
                    'set search_path = pg_catalog, pg_temp as $t$ begin '
                    'perform taskq.enqueue(%L, %s, %s); return null; end $t$',
                    made, enqueue_on.kind, payload, limits);
                execute format(
                    'create or replace trigger %I after update on %s for each row when (%s) execute function %s()',
                    name, enqueue_on."table", coalesce(enqueue_on.condition, 'true'), made);
            else
                execute format(  -- refuses now what the function would refuse at the first row
                    'select %s from (select * from %s limit 0) as %s where (%s)',
                    payload, enqueue_on."table", of_rows, coalesce(enqueue_on.condition, 'true'));
                execute format(
                    'create or replace function %s() returns trigger language plpgsql security definer '
                    'set search_path = pg_catalog, pg_temp as $t$' || chr(10) || '#variable_conflict use_column' || chr(10) ||
                    'declare batch jsonb[]; begin '
                    'for batch in select array_agg(made.payload) from (select %s as payload, '
                    '(row_number() over () - 1) / 10000 as n from taskq_rows as %s where (%s)) made group by made.n loop '
                    'perform taskq.enqueue_many(%L, batch, %s); end loop; return null; end $t$',
                    made, payload, of_rows, coalesce(enqueue_on.condition, 'true'), enqueue_on.kind, limits);
                execute format(
                    'create or replace trigger %I after %s on %s referencing %s table as taskq_rows '
                    'for each statement execute function %s()',
                    name, enqueue_on.event, enqueue_on."table", of_rows, made);
            end if;
            execute format('revoke execute on function %s() from public', made);
            return name;
        end
        $f$
        """,
        "drop function taskq.enqueue_on(regclass, text, text, jsonb, text, text, integer, integer)",
    ),
    step(
        """
        create function taskq.drop_enqueue_on("table" regclass, event text, kind text) returns boolean
        language plpgsql set search_path = pg_catalog, pg_temp as $f$
        declare
            name text := taskq.trigger_name(drop_enqueue_on.event, drop_enqueue_on.kind);
            made text;
        begin
            select t.tgfoid::regprocedure::text into made
              from pg_trigger t
             where t.tgrelid = drop_enqueue_on."table" and t.tgname = name;
            if not found then
                return false;
            end if;
            execute format('drop trigger %I on %s', name, drop_enqueue_on."table");
            execute format('drop function %s', made);
            return true;
        end
        $f$
        """,
        "drop function taskq.drop_enqueue_on(regclass, text, text)",
    ),
    *(
        step(
            f"revoke execute on function taskq.{signature} from public",
            f"grant execute on function taskq.{signature} to public",
        )
        for signature in (
            "template_text(text, text, text[])",
            "template_expression(jsonb, text, text[])",
            "trigger_name(text, text)",
            "enqueue_on(regclass, text, text, jsonb, text, text, integer, integer)",
            "drop_enqueue_on(regclass, text, text)",
        )
    ),
]
