-- The lease of an instance: one row, beaten every few seconds from the control thread.

-- name: register
-- Begin a lease, whose id owns the runs of this instance until it ends; count the others.
insert into taskq.lease (instance, host, namespace, pid, pid_start, url)
values (:instance, :host, :namespace, :pid, :pid_start, :url)
returning id, (select count(*) from taskq.lease) as peers;

-- name: beat
-- Say that the holder of :lease lives, and where it serves; count the others.  No row: the lease was
-- ended by another instance.
update taskq.lease
   set beat_at = now(), url = :url
 where id = :lease
returning id, (select count(*) from taskq.lease where id <> :lease) as peers;

-- name: neighbours
-- List the leases of processes of this very machine (and process namespace) other than :own.
select id, pid, pid_start from taskq.lease where namespace = :namespace and id <> :own;

-- name: end_lease
-- End a lease whose process is known to be gone, or our own at a graceful stop.
delete from taskq.lease where id = :lease;

-- name: tell
-- Notify the other instances; alone in its transaction, so that nobody waits for a flush.
select pg_notify(channel, payload)
  from unnest(:channels::text[], :payloads::text[]) as told (channel, payload);

-- name: probe
-- Send ourselves a nonce; hearing it on the listening connection proves that LISTEN works end to end.
select pg_notify(:channel, :nonce);

-- name: mask
-- Take the mask: while we look for work anyway, `taskq.wake` need not notify.
select pg_try_advisory_lock(1953719656, 'taskq'::regnamespace::oid::int);

-- name: unmask
-- Drop the mask.
select pg_advisory_unlock(1953719656, 'taskq'::regnamespace::oid::int);
