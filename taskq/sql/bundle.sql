-- Submissions that are more than one plain row: how they come in, what is read of them.

-- name: reserve_ids
-- Give out :count ids of tasks and groups.
select nextval('taskq.task_id') as id from generate_series(1, :count::integer);

-- name: store_bundles
-- Store the content, groups, tasks and uses of content of some bundles: one statement, so all or nothing.
-- Content known already is "updated", which locks it: a prune under way waits for us and then sees our
-- use of it, or we wait for the prune and store it anew.  The digests come sorted, so that nobody waits in a ring.
with kept as (
    insert into taskq.blob (digest, size, content)
    select c.digest, length(c.content), c.content
      from unnest(:digests::bytea[], :contents::bytea[]) as c (digest, content)
    on conflict (digest) do update set size = excluded.size),
used as (
    insert into taskq.task_blob (task_id, digest)
    select u.task_id, u.digest from unnest(:users::bigint[], :used::bytea[]) as u (task_id, digest)),
grouped as (
    insert into taskq.task_group (id, kind, task_ids, labels)
    select m.group_id, min(m.kind), array_agg(m.id order by m.id), array_agg(m.label order by m.id)
      from unnest(:ids::bigint[], :group_ids::bigint[], :kinds::text[], :labels::text[]) as m (id, group_id, kind, label)
     where m.group_id is not null
     group by m.group_id)
insert into taskq.task (id, kind, queue, priority, max_attempts, payload, due_at,
                        expires_at, group_id, tags, metadata, sensitive)
select u.id, u.kind, u.queue, u.priority, u.max_attempts, u.payload::jsonb, coalesce(u.due_at, l.now),
       u.expires_at, u.group_id,
       case when u.tags is not null then array(select jsonb_array_elements_text(u.tags::jsonb)) end,
       u.metadata::jsonb, u.sensitive
  from unnest(:ids::bigint[], :kinds::text[], :queues::text[], :priorities::smallint[], :max_attempts::smallint[],
              :payloads::text[], :due_ats::timestamptz[], :expires_ats::timestamptz[], :group_ids::bigint[],
              :tags::text[], :metadata::text[], :sensitive::boolean[])
       as u (id, kind, queue, priority, max_attempts, payload, due_at, expires_at, group_id, tags, metadata, sensitive)
 cross join (select now() as now) l;

-- name: group
-- Show the tasks of a group in their order.
select g.kind, g.created_at, member.id, member.label, t.status, t.reason, t.last_error
  from taskq.task_group g
 cross join unnest(g.task_ids, g.labels) with ordinality as member (id, label, n)
  join taskq.task t on t.id = member.id
 where g.id = :id
 order by member.n;

-- name: blob
-- Read content by its digest.
select content from taskq.blob where digest = :digest;
