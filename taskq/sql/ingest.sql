-- Submissions by NOTIFY.

-- name: stand_alone
-- Take the right to listen, which ends with this connection; false: another instance has it.
select pg_try_advisory_lock(1953719656, -2) as alone;

-- name: still_there
-- Prove that the connection lives.
select 1;

-- name: reject
-- Keep what could not be taken.
insert into taskq.reject (payload, error)
select r.payload, r.error
  from unnest(:payloads::text[], :errors::text[]) as r (payload, error);

-- name: prune_rejects
-- Keep the newest :keep of them.
delete from taskq.reject
 where id <= (select max(id) from taskq.reject) - :keep::bigint;
