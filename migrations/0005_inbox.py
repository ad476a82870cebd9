"""The inbox takes mails of other programs too, and knows every mail's subject.

A mail that came over the SMTP listener belongs to no task.  The subject stands beside the mail, so
that a search reads no messages.  No index but the primary key: the inbox keeps a bounded number of
mails, a search walks them by id, and a second index would slow every capture down.
"""

from yoyo import step

__depends__ = {"0004_suppression"}

steps = [
    step(
        "alter table taskq.inbox alter column task_id drop not null, add column subject text not null default ''",
        "alter table taskq.inbox alter column task_id set not null, drop column subject",
    ),
]
