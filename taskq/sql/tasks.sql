-- The life of a task, in its order: insert, claim, settle, rescue, prune, show.
-- Every write of a status names the status or the owner it expects; 0 rows means "too late".

-- name: insert
-- Store a batch of submissions; the first :births rows are born in-progress, if our lease still stands.
insert into taskq.task (id, kind, queue, priority, max_attempts, payload, status, attempt, run, owner, started_at)
select nextval('taskq.task_id'), u.kind, u.queue, u.priority, u.max_attempts, u.payload::jsonb,
       case when u.n <= l.births then 1 else 0 end,
       case when u.n <= l.births then 1 else 0 end,
       case when u.n <= l.births then 1 else 0 end,
       case when u.n <= l.births then :owner::bigint end,
       case when u.n <= l.births then l.now end
  from unnest(:kinds::text[], :queues::text[], :priorities::smallint[], :max_attempts::smallint[], :payloads::text[])
       with ordinality u (kind, queue, priority, max_attempts, payload, n)
 cross join (select count(*) * :births::integer as births, now() as now from taskq.lease where id = :owner) l
 order by u.n
returning id, status, created_at;

-- name: claim
-- Claim for :owner up to :slots due tasks, lane by lane in the order given, the longest due first.
-- :lows skip the dead entries at the front of the index; a full look passes -infinity.
update taskq.task t
   set status     = 1,
       attempt    = t.attempt + 1,
       run        = t.run + 1,
       owner      = :owner,
       started_at = now()
 where t.id = any (array(
           select c.id
             from unnest(:queues::text[], :priorities::smallint[], :lows::timestamptz[])
                  with ordinality lane (queue, priority, low, n)
            cross join lateral (
                  select p.id
                    from taskq.task p
                   where p.status = 0 and p.crashes < 2
                     and p.queue = lane.queue and p.priority = lane.priority
                     and p.due_at >= lane.low and p.due_at <= now()
                   order by p.due_at, p.id
                   limit :slots::integer
                     for update skip locked) c
            limit :slots::integer))
   and exists (select from taskq.lease where id = :owner)
returning t.id, t.run, t.kind, t.attempt, t.max_attempts, t.created_at, t.payload, t.crashes,
          t.sensitive, t.queue, t.priority, t.due_at, t.expires_at - now() as expires_in;

-- name: claim_suspect
-- Claim for :owner the one task, longest due first, that was running when its process died, twice.
update taskq.task t
   set status     = 1,
       attempt    = t.attempt + 1,
       run        = t.run + 1,
       owner      = :owner,
       started_at = now()
 where t.id = any (array(
           select c.id
             from taskq.task c
            where c.status = 0 and c.crashes >= 2 and c.due_at <= now()
            order by c.due_at, c.id
            limit 1
              for update skip locked))
   and exists (select from taskq.lease where id = :owner)
returning t.id, t.run, t.kind, t.attempt, t.max_attempts, t.created_at, t.payload, t.crashes,
          t.sensitive, t.queue, t.priority, t.due_at, t.expires_at - now() as expires_in;

-- name: survey
-- List the lanes (queue, priority) that hold pending tasks, most urgent first, with the seconds until
-- the first is due; the suspects count as a lane with an empty name.
with recursive lane as (
    (select t.queue, t.priority
       from taskq.task t
      where t.status = 0 and t.crashes < 2
      order by t.queue, t.priority
      limit 1)
    union all
    select n.queue, n.priority
      from lane
     cross join lateral (
           select t.queue, t.priority
             from taskq.task t
            where t.status = 0 and t.crashes < 2 and (t.queue, t.priority) > (lane.queue, lane.priority)
            order by t.queue, t.priority
            limit 1) n)
select lane.queue, lane.priority,
       extract(epoch from (
           select t.due_at
             from taskq.task t
            where t.status = 0 and t.crashes < 2 and t.queue = lane.queue and t.priority = lane.priority
            order by t.due_at, t.id
            limit 1) - clock_timestamp())::float8 as due_in_s
  from lane
 union all
select '' as queue, 0::smallint as priority,
       extract(epoch from first.due_at - clock_timestamp())::float8 as due_in_s
  from (select t.due_at
          from taskq.task t
         where t.status = 0 and t.crashes >= 2
         order by t.due_at, t.id
         limit 1) first
 order by priority, queue;

-- name: seal
-- Write that the content of these runs is about to leave, each guarded by id, owner and run.
update taskq.task t
   set sealed = t.run
  from unnest(:ids::bigint[], :runs::integer[], :owners::bigint[]) as o (id, run, owner)
 where t.id = any (:ids::bigint[]) and t.id = o.id and t.owner = o.owner and t.run = o.run
returning t.id, t.run;

-- name: settle
-- Write the outcomes of finished runs, each guarded by id, owner and run; keep the error of each
-- counted attempt that failed, and what any run noted; erase the content where `keeps` says so; count the final
-- ones by the minute.  Runs that were put off share the row of run 0.  The sums of now() and an interval (null
-- where it does not apply) stand in for CASE, which may not hold now() on a sharded database.
with outcome as materialized (
    select *
      from unnest(:ids::bigint[], :runs::integer[], :owners::bigint[], :statuses::smallint[], :delays_s::float8[],
                  :finals::interval[], :attempts_back::smallint[], :reasons::text[], :errors::text[],
                  :details::text[], :keeps::text[], :erasures::interval[])
           as o (id, run, owner, status, delay_s, final, attempt_back, reason, error, detail, keeps, erasure)),
settled as (
    update taskq.task t
       set status      = o.status,
           owner       = null,
           due_at      = greatest(t.due_at, now() + o.delay_s * interval '1 second'),
           finished_at = now() + o.final,
           attempt     = t.attempt - o.attempt_back,
           reason      = o.reason,
           last_error  = coalesce(o.error, t.last_error),
           payload     = case when o.keeps is null then t.payload else taskq.erased(t.payload, o.keeps::jsonb) end,
           erased_at   = now() + o.erasure
      from outcome o
     where t.id = any (:ids::bigint[]) and t.id = o.id and t.owner = o.owner and t.run = o.run
    returning t.id, t.run, t.queue, t.kind, t.status, o.owner, t.attempt, o.attempt_back, t.started_at, o.error,
              o.detail),
counted as (
    insert into taskq.minute_count as m (minute, owner, queue, kind, status, n)
    select date_trunc('minute', now()), s.owner, s.queue, s.kind, s.status, count(*)
      from settled s
     where s.status >= 2
     group by s.owner, s.queue, s.kind, s.status
    on conflict (minute, owner, queue, kind, status) do update set n = m.n + excluded.n),
kept as (
    insert into taskq.attempt as a (task_id, run, attempt, owner, started_at, outcome, error, detail)
    select s.id, case when s.status = 0 and s.attempt_back = 1 then 0 else s.run end, s.attempt, s.owner, s.started_at,
           case when s.status = 2 then 'Ok' when s.status = 3 then 'failed' when s.attempt_back = 1 then 'snoozed'
                else 'retry' end,
           s.error, s.detail::jsonb
      from settled s
     where s.detail is not null or s.error is not null and s.attempt_back = 0
    on conflict (task_id, run) do update
       set attempt    = excluded.attempt,
           owner      = excluded.owner,
           started_at = excluded.started_at,
           ended_at   = excluded.ended_at,
           error      = excluded.error,
           detail     = excluded.detail,
           times      = a.times + 1
     where a.run = 0)
select id, run from settled;

-- name: settle_ok
-- The settle of a batch in which every run ended Ok: the hot case, without what only failures need.
with settled as (
    update taskq.task t
       set status      = 2,
           owner       = null,
           finished_at = now()
      from unnest(:ids::bigint[], :runs::integer[]) as o (id, run)
     where t.id = o.id and t.owner = :owner and t.run = o.run
    returning t.id, t.queue, t.kind),
counted as (
    insert into taskq.minute_count as m (minute, owner, queue, kind, status, n)
    select date_trunc('minute', now()), :owner, s.queue, s.kind, 2, count(*)
      from settled s
     group by s.queue, s.kind
    on conflict (minute, owner, queue, kind, status) do update set n = m.n + excluded.n)
select count(*) from settled;

-- name: owned
-- List the runs that the table says :owner has in progress.
select id, run
  from taskq.task
 where status = 1 and owner = :owner;

-- name: release
-- Hand back runs of :owner that never reached its workers (the claim's answer was lost on the way).  A sealed
-- one has reached them: it waits for its rescue.
update taskq.task t
   set status  = 0,
       owner   = null,
       attempt = t.attempt - 1
  from unnest(:ids::bigint[], :runs::integer[]) as r (id, run)
 where t.id = any (:ids::bigint[]) and t.id = r.id and t.run = r.run and t.owner = :owner
   and t.sealed is distinct from t.run
returning t.id;

-- name: become_leader
-- Take the right to sweep until this transaction ends; false: another instance is at it.  The server
-- throws out a leader that falls silent (frozen, cut off) for two seconds, so that others can rescue.
select pg_try_advisory_xact_lock(1953719656, -1) as leader,
       set_config('idle_in_transaction_session_timeout', '2s', true) as patience;

-- name: expire_leases
-- End the leases of other instances that have not been beaten for :lease_s seconds.
delete from taskq.lease
 where beat_at < now() - :lease_s::float8 * interval '1 second' and id <> :own
returning id;

-- name: rescue
-- Make the tasks of ended leases pending again, at most :batch at once; a sealed run is never repeated, a task that
-- was running when its process died for the third time is failed as poisoned, one without attempts left as exhausted.
with lost as materialized (
    select t.id
      from taskq.task t
     where t.status = 1 and not exists (select from taskq.lease l where l.id = t.owner)
     order by t.id
     limit :batch
       for update of t),
verdict as materialized (
    select t.id, t.run, t.owner, t.attempt, t.started_at, t.queue, t.kind,
           case when t.sealed = t.run then 'outcome_unknown'
                when t.crashes >= 2 then 'poisoned'
                when t.attempt >= t.max_attempts then 'attempts_exhausted' end as reason
      from taskq.task t
     where t.id = any (array(select id from lost))),
rescued as (
    update taskq.task t
       set status      = case when v.reason is null then 0 else 3 end,
           owner       = null,
           crashes     = t.crashes + 1,
           finished_at = now() + case when v.reason is not null then interval '0' end,
           reason      = v.reason,
           last_error  = 'the process that ran it died or lost its lease'
      from verdict v
     where t.id = any (array(select id from lost)) and t.id = v.id
    returning t.id, t.run, t.status, v.owner, v.attempt, v.started_at, v.queue, v.kind, v.reason),
counted as (
    insert into taskq.minute_count as m (minute, owner, queue, kind, status, n)
    select date_trunc('minute', now()), r.owner, r.queue, r.kind, 3, count(*)
      from rescued r
     where r.status = 3
     group by r.owner, r.queue, r.kind
    on conflict (minute, owner, queue, kind, status) do update set n = m.n + excluded.n),
kept as (
    insert into taskq.attempt (task_id, run, attempt, owner, started_at, outcome, error, detail)
    select r.id, r.run, r.attempt, r.owner, r.started_at, 'lost', 'the process that ran it died or lost its lease',
           case r.reason when 'outcome_unknown' then '{"ambiguous": true}'::jsonb end
      from rescued r
    on conflict (task_id, run) do nothing)
select id, run, attempt, reason from rescued order by id;

-- name: expire
-- Fail at most :batch waiting tasks whose time has passed; they are counted for :own, our lease.
with late as materialized (
    select t.id
      from taskq.task t
     where t.status = 0 and t.expires_at <= now()
     order by t.expires_at, t.id
     limit :batch
       for update skip locked),
expired as (
    update taskq.task t
       set status      = 3,
           finished_at = now(),
           reason      = 'expired'
     where t.id = any (array(select l.id from late l)) and t.status = 0
    returning t.queue, t.kind),
counted as (
    insert into taskq.minute_count as m (minute, owner, queue, kind, status, n)
    select date_trunc('minute', now()), :own::bigint, e.queue, e.kind, 3, count(*)
      from expired e
     group by e.queue, e.kind
    on conflict (minute, owner, queue, kind, status) do update set n = m.n + excluded.n)
select count(*) from expired;

-- name: prune_tasks
-- Among the next :batch ids after :after, delete finished tasks older than :retention_s seconds, those of a group
-- only when all of them are, and erase the content of those past their days: :privacy says by kind what a payload
-- keeps and for how long it stays whole.  Tell which groups and which content may have lost their last task.
with batch as materialized (
    select t.id, t.group_id, t.status >= 2 and t.finished_at < now() - :retention_s::float8 * interval '1 second' as old,
           t.erased_at is not null as erased,
           t.erased_at is null and t.status >= 2
               and t.finished_at < now() - case when t.sensitive then interval '0'
                                                else (:privacy::jsonb -> t.kind ->> 'content_days')::float8 * interval '1 day'
                                           end as expired
      from taskq.task t
     where t.id > :after
     order by t.id
     limit :batch),
held as materialized (
    select distinct g.id
      from taskq.task_group g
     cross join unnest(g.task_ids) as member (id)
      join taskq.task t on t.id = member.id
     where g.id = any (array(select b.group_id from batch b where b.old and b.group_id is not null))
       and (t.status < 2 or t.finished_at >= now() - :retention_s::float8 * interval '1 second')),
gone as (
    delete from taskq.task t
     where t.id = any (array(
               select b.id
                 from batch b
                where b.old and (b.group_id is null or b.group_id <> all (array(select h.id from held h)))))
    returning t.id, t.group_id),
erased as (
    update taskq.task t
       set payload   = taskq.erased(t.payload, :privacy::jsonb -> t.kind -> 'keeps'),
           erased_at = now()
     where t.id = any (array(select b.id from batch b where b.expired and not b.old))
       and :privacy::jsonb ? t.kind
    returning t.id),
notes as (
    delete from taskq.attempt a
     where a.task_id = any (array(select g.id from gone g))),
unused as (
    delete from taskq.task_blob u
     where u.task_id = any (array(
               select g.id from gone g
                union all
               select e.id from erased e
                union all
               select b.id from batch b where b.erased))
    returning u.digest)
select max(b.id) as last, (select count(*) from gone) as gone,
       array(select distinct g.group_id from gone g where g.group_id is not null) as groups,
       array(select distinct u.digest from unused u) as digests
  from batch b;

-- name: prune_groups
-- Delete those of the groups :ids that have no task left.
delete from taskq.task_group g
 where g.id = any (:ids::bigint[])
   and not exists (select from unnest(g.task_ids) as member (id) join taskq.task t on t.id = member.id);

-- name: lock_blobs
-- Lock content that may have lost its last task, as a submission that brings the same locks it.
select digest from taskq.blob where digest = any (:digests::bytea[]) order by digest for update;

-- name: prune_blobs
-- Delete what no task needs of the content :digests, locked before.
delete from taskq.blob b
 where b.digest = any (:digests::bytea[])
   and not exists (select from taskq.task_blob u where u.digest = b.digest);

-- name: prune_counts
-- Delete minute counters older than :retention_s seconds.
delete from taskq.minute_count
 where minute < now() - :retention_s::float8 * interval '1 second';

-- name: partitions
-- Say how far the ids have come and which partitions exist.
select (select last_value from taskq.task_id) as last_id,
       array(select substr(c.relname, 6)::bigint
               from pg_inherits i
               join pg_class c on c.oid = i.inhrelid
              where i.inhparent = 'taskq.task'::regclass
              order by 1) as numbers;

-- name: partition_state
-- Say whether ids :low (inclusive) to :high (exclusive) hold an unfinished task, and when the last one ended.
select exists (select from taskq.task where id >= :low and id < :high and status in (0, 1)) as busy,
       extract(epoch from now() - (select max(finished_at) from taskq.task where id >= :low and id < :high))::float8 as idle_s;

-- name: forget_uses
-- Say for some tasks of a partition to be dropped that they need no content any more.
delete from taskq.task_blob u
 where u.task_id = any (array(
           select b.task_id
             from taskq.task_blob b
            where b.task_id >= :low and b.task_id < :high
            order by b.task_id
            limit :batch))
returning u.digest;

-- name: forget_groups
-- Delete some groups whose tasks all lie below :high, in partitions that are dropped.
delete from taskq.task_group g
 where g.id = any (array(
           select o.id
             from taskq.task_group o
            where o.id < :high and :high > all (o.task_ids)
            order by o.id
            limit :batch))
returning g.id;

-- name: prune_attempts
-- Forget the attempts of tasks whose partition was dropped.
delete from taskq.attempt where task_id >= :low and task_id < :high;

-- name: get
-- Show one task.
select id, kind, queue, status, attempt, max_attempts, created_at, due_at, started_at, finished_at, reason, last_error,
       expires_at, tags, metadata, group_id, erased_at
  from taskq.task
 where id = :id;

-- name: attempts
-- Show the attempts of one task of which something is kept, oldest first, at most :limit.
select attempt, run, started_at, ended_at, outcome, error, times, detail
  from taskq.attempt
 where task_id = :id
 order by ended_at, run
 limit :limit;

-- name: server
-- Read what decides whether a commit is durable, and who this database is.
select current_setting('server_version')     as version,
       current_setting('server_version_num')::integer as version_num,
       current_setting('fsync')              as fsync,
       current_setting('full_page_writes')   as full_page_writes,
       current_setting('synchronous_commit') as synchronous_commit,
       (select id from taskq.installation)   as installation;
