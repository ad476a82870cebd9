-- Who may not be written to, and the delivery reports that came back.

-- name: find
-- Find which of these addresses may not be written to now.
select hash, id, shown, reason, source, added_at, until, task_id
  from taskq.suppression
 where hash = any (:hashes::bytea[])
   and (until is null or until > now());

-- name: known
-- Read the hashes of at most :most entries, joined into one value.
select coalesce(string_agg(s.hash, ''::bytea), ''::bytea) as hashes
  from (select hash from taskq.suppression limit :most::bigint) s;

-- name: add
-- Put an address on the list for :for_s seconds or until :until (neither: for ever); what the list says by itself
-- never shortens what it says already.
insert into taskq.suppression as s (hash, shown, reason, source, until, task_id)
values (:hash, :shown, :reason, :source,
        coalesce(:until::timestamptz, now() + :for_s::float8 * interval '1 second'), :task_id)
on conflict (hash) do update
   set reason = excluded.reason, source = excluded.source, added_at = now(),
       until = excluded.until, task_id = excluded.task_id
 where excluded.source = 'manual' or s.until < excluded.until
returning hash, id, shown, reason, source, added_at, until, task_id;

-- name: remove
-- Take an address off the list.
delete from taskq.suppression
 where hash = :hash
returning until is null or until > now() as stood;

-- name: entries
-- List entries that stand, newest first, :limit of those before id :before.
select hash, id, shown, reason, source, added_at, until, task_id
  from taskq.suppression
 where id < :before
   and (until is null or until > now())
 order by id desc
 limit :limit;

-- name: prune
-- Delete at most :batch entries whose time is over.
delete from taskq.suppression
 where hash = any (array(
           select hash
             from taskq.suppression
            where until < now()
            order by until
            limit :batch::bigint))
   and until < now();

-- name: recipients
-- Read whom a mail was for, as JSON.
select jsonb_build_object('recipient', payload -> 'recipient', 'to', payload -> 'to', 'cc', payload -> 'cc') as payload
  from taskq.task
 where id = :id
   and kind = 'email';

-- name: record_bounce
-- Keep what a delivery report says of one recipient; of a task at most :most of them.
insert into taskq.bounce (task_id, hash, action, status, shown, diagnostic)
select :task_id::bigint, :hash::bytea, :action::text, :status::text, :shown::text, :diagnostic::text
 where (select count(*) from taskq.bounce where task_id = :task_id::bigint) < :most::bigint
on conflict (task_id, hash, action, status) do nothing;

-- name: bounces
-- Show the delivery reports of one task, oldest first.
select reported_at, shown, action, status, diagnostic
  from taskq.bounce
 where task_id = :task_id
 order by reported_at, action, status;

-- name: prune_bounces
-- Delete at most :batch delivery reports older than :retention_s seconds.
delete from taskq.bounce
 where (task_id, hash, action, status) in (
           select task_id, hash, action, status
             from taskq.bounce
            where reported_at < now() - :retention_s::float8 * interval '1 second'
            order by reported_at
            limit :batch::bigint);
