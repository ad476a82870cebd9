-- Lists of tasks, for people.

-- name: page
-- Look at :window tasks before the place (:before_at, :below), the newest first (where :failed, of the failed alone,
-- the last to fail first), and show at most :limit that fit; each row says how far the look came, and over how many.
with looked as materialized (
    (select t.*
       from taskq.task t
      where not :failed::boolean and t.id < :below::bigint
      order by t.id desc
      limit :window)
    union all
    (select t.*
       from taskq.task t
      where :failed::boolean and t.status = 3 and (t.finished_at, t.id) < (:before_at::timestamptz, :below::bigint)
      order by t.finished_at desc, t.id desc
      limit :window)),
fitting as (
    select l.*
      from looked l
     where l.status = any (:statuses::smallint[])
       and (:since::timestamptz is null or l.created_at >= :since)
       and (:until::timestamptz is null or l.created_at < :until)
       and not exists (
           select
             from jsonb_to_recordset(:terms::jsonb) as term (path text[], "values" text[], negated boolean)
            where coalesce(case term.path[1]
                      when 'kind'   then l.kind = any (term."values")
                      when 'queue'  then l.queue = any (term."values")
                      when 'tag'    then l.tags && term."values"
                      when 'reason' then l.reason = any (term."values")
                      when 'to'     then exists (select from unnest(term."values") v
                                                  where strpos(lower(l.payload ->> 'to'), lower(v)) > 0)
                      when 'error'  then exists (select from unnest(term."values") v
                                                  where strpos(lower(l.last_error), lower(v)) > 0)
                      else l.payload #>> term.path[2:] = any (term."values") end, false) = term.negated)
     order by case when :failed then l.finished_at end desc, l.id desc
     limit :limit),
reached as (
    select l.finished_at, l.id, count(*) over ()::integer as n
      from looked l
     order by case when :failed then l.finished_at end, l.id
     limit 1)
select f.id, f.kind, f.queue, f.status, f.attempt, f.max_attempts, f.created_at, f.due_at, f.started_at,
       f.finished_at, f.reason, f.last_error, f.expires_at, f.tags, f.metadata, f.group_id, f.erased_at,
       r.finished_at as reached_at, r.id as reached, r.n
  from reached r
  left join fitting f on true
 order by case when :failed then f.finished_at end desc, f.id desc;
