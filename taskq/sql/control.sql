-- What people do to a task: call it off, run it again, wait for its end.

-- name: cancel
-- Call a task off: at once while it is pending, by a wish to the instance that runs it otherwise; say its status.
select taskq.cancel(:id) as status;

-- name: wished
-- List the runs of :owner that somebody wishes to be called off.
select t.id, t.run
  from taskq.cancel_request c
  join taskq.task t on t.id = c.task_id
 where t.status = 1 and t.owner = :owner;

-- name: fulfil
-- Call off the tasks that came back to pending with a wish still standing; forget the wishes of those that ended.
with standing as materialized (
    select c.task_id, t.status
      from taskq.cancel_request c
      left join taskq.task t on t.id = c.task_id
     where t.status is distinct from 1
     limit 1000),
forgotten as (
    delete from taskq.cancel_request c
     using standing s
     where c.task_id = s.task_id and s.status is distinct from 0)
select s.task_id, taskq.cancel(s.task_id) as status
  from standing s
 where s.status = 0;

-- name: retry
-- Make a task that failed or was cancelled pending again, with one attempt more if it has none left; one that
-- waits for its time is due now.  No row: it is in progress, ended Ok, its content was erased, or it is not there.
update taskq.task t
   set status       = 0,
       due_at       = now(),
       finished_at  = null,
       reason       = null,
       crashes      = 0,
       max_attempts = greatest(t.max_attempts, t.attempt + 1)
 where t.id = :id and t.status in (0, 3, 4) and t.erased_at is null
returning t.id;

-- name: ended
-- List which of :ids have ended, or are not there.
select u.id
  from unnest(:ids::bigint[]) as u (id)
  left join taskq.task t on t.id = u.id
 where t.status is null or t.status >= 2;
