-- The inbox: mails that were captured instead of sent.  `search` and `awaited` mean the same by their
-- filters: an address whole, a subject in part, both without regard to case; null matches any.

-- name: capture
-- Store a batch of captured mails.
insert into taskq.inbox (task_id, sender, recipient, subject, message)
select task_id, sender, recipient, subject, message
  from unnest(:task_ids::bigint[], :senders::text[], :recipients::text[], :subjects::text[], :messages::bytea[])
       as m (task_id, sender, recipient, subject, message)
returning id;

-- name: search
-- List captured mails before id :before, newest first: :limit at most, the first :bytes of them and one more.
with found as (
    select id, task_id, sender, recipient, subject, captured_at, message,
           sum(octet_length(message)) over (order by id desc) - octet_length(message) as bytes_before
      from (select id, task_id, sender, recipient, subject, captured_at, message
              from taskq.inbox
             where id < :before
               and (:recipient::text is null or lower(recipient) = lower(:recipient))
               and (:sender::text is null or lower(sender) = lower(:sender))
               and (:subject::text is null or strpos(lower(subject), lower(:subject)) > 0)
               and (:task_id::bigint is null or task_id = :task_id)
             order by id desc
             limit :limit) as page
)
select id, task_id, sender, recipient, subject, captured_at, message
  from found
 where bytes_before <= :bytes::bigint
 order by id desc;

-- name: mail
-- Read one captured mail.
select id, task_id, sender, recipient, subject, captured_at, message
  from taskq.inbox
 where id = :id;

-- name: awaited
-- For each of those who wait, find the first mail after :afters that fits, among the ids :low to :high.
select w.number, m.id
  from unnest(:numbers::bigint[], :afters::bigint[], :recipients::text[], :senders::text[], :subjects::text[],
              :task_ids::bigint[])
       as w (number, after, recipient, sender, subject, task_id)
 cross join lateral (
       select id
         from taskq.inbox
        where id > w.after and id between :low and :high
          and (w.recipient is null or lower(inbox.recipient) = lower(w.recipient))
          and (w.sender is null or lower(inbox.sender) = lower(w.sender))
          and (w.subject is null or strpos(lower(inbox.subject), lower(w.subject)) > 0)
          and (w.task_id is null or inbox.task_id = w.task_id)
        order by id
        limit 1) as m;

-- name: recent
-- Say what was captured after id :after, newest first, :limit at most, and how many there are in all.
select id, recipient, subject, count(*) over () as mails
  from taskq.inbox
 where id > :after
 order by id desc
 limit :limit;

-- name: discard
-- Forget one captured mail.
delete from taskq.inbox
 where id = :id
returning id;

-- name: clear
-- Forget every mail captured so far.
with gone as (
    delete from taskq.inbox
    returning id
)
select count(*) as mails
  from gone;

-- name: prune
-- Keep the newest :keep captured mails, none longer than :content_days days.
delete from taskq.inbox
 where id <= (select max(id) from taskq.inbox) - :keep::bigint
    or captured_at < now() - :content_days::float8 * interval '1 day';
