-- What `taskq bench` asks of its own databases; nothing here runs in a service.
-- {name} and {template} are names that the bench made up itself, put in before the statement is sent.

-- name: create_database
-- Make an empty database.
create database "{name}";

-- name: copy_database
-- Make a database from a migrated one that nobody is connected to.
create database "{name}" template "{template}";

-- name: drop_database
-- Remove a database; the checkpoint that comes with it puts every measure on the same footing.
drop database if exists "{name}" with (force);

-- name: create_floor
-- The table that the floors write to: what any queue has at least.
create table taskq.floor (
    id         bigint      generated always as identity primary key,
    kind       text        not null,
    payload    jsonb       not null,
    status     smallint    not null default 0,
    created_at timestamptz not null default now()
);

-- name: create_floor_pending
-- The index that any queue has on it.
create index floor_pending on taskq.floor (id) where status = 0;

-- name: floor_insert
-- Store one row.
insert into taskq.floor (kind, payload) values (:kind, :payload::jsonb) returning id;

-- name: floor_insert_notify
-- Store one row and wake whoever listens.
with stored as (
    insert into taskq.floor (kind, payload) values (:kind, :payload::jsonb) returning id)
select id, pg_notify('taskq_floor', '') from stored;

-- name: floor_insert_many
-- Store a group of rows.
insert into taskq.floor (kind, payload)
select kind, payload::jsonb from unnest(:kinds::text[], :payloads::text[]) as row (kind, payload)
returning id;

-- name: floor_count
-- Count the rows of the floors.
select count(*) from taskq.floor;

-- name: fill
-- Let :tasks tasks wait, due now, without waking anyone.
insert into taskq.task (id, kind, payload)
select nextval('taskq.task_id'), 'noop', jsonb_build_object('n', n) from generate_series(1, :tasks::bigint) as n;

-- name: fill_mails
-- Let :tasks mails wait, due now, without waking anyone.
insert into taskq.task (id, kind, payload)
select nextval('taskq.task_id'), 'email', :payload::jsonb from generate_series(1, :tasks::bigint);

-- name: enqueue
-- Submit one task as another application does.
select taskq.enqueue('noop', :payload::jsonb);

-- name: enqueue_many
-- Submit :tasks tasks in one statement, as another application does.
select count(*)
  from taskq.enqueue_many('noop', array(select jsonb_build_object('n', n) from generate_series(1, :tasks::bigint) as n));

-- name: counts
-- Count the tasks stored and those that ended Ok.
select count(*), count(*) filter (where status = 2) from taskq.task;

-- name: unfinished
-- Say whether a task waits or runs.
select exists (select from taskq.task where status = 0 and crashes < 2)
    or exists (select from taskq.task where status = 1 and owner is not null);

-- name: analyze
-- Give the planner what autovacuum would give it in a minute.
analyze taskq.task;

-- name: log_position
-- Say how far the log has come, in bytes.
select (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint;

-- name: commits
-- Say how many transactions this database has committed, as far as ended connections have told.
select xact_commit from pg_stat_database where datname = current_database();

-- name: backend
-- Name our server process and the server's version.
select pg_backend_pid(), current_setting('server_version');
