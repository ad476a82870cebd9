"""Bundles in the database: all or nothing, content once and as long as it is needed, groups as one."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from rig import NEVER, Connection, all_are, becomes, kind, new, put, row, running, says, statuses
from test_intake import Slots, taking

from taskq import bundles as bundles_module
from taskq import intake as intake_module
from taskq import sql
from taskq.bundles import Stored, pack
from taskq.config import Settings
from taskq.context import Context
from taskq.errors import IntakeFull, Snooze, StoreRefused, StoreUnavailable, TaskError
from taskq.intake import Intake
from taskq.store import Store
from taskq.task import Blob, Bundle, NewTask

NUL = '{"a": "\\u0000"}'
PICTURE, LETTER = Blob(b"\x00\xff" * 50_000), Blob(b"a letter")
OLD = datetime.now(UTC) - timedelta(days=100)
TASKS = sql.load("tasks")


def one(*blobs: Blob, **fields: Any) -> Bundle:
    """A bundle of one task that needs all the content."""
    return Bundle([new(blobs=tuple(blob.digest for blob in blobs), **fields)], ["ada"], list(blobs))


def several(*blobs: Blob, count: int = 3) -> Bundle:
    """A bundle of tasks that all need the content."""
    digests = tuple(blob.digest for blob in blobs)
    return Bundle([new(blobs=digests) for _ in range(count)], [f"r{n}" for n in range(count)], list(blobs), True)


async def keep(store: Store, *bundles: Bundle) -> list[Stored]:
    return await store.bundles.store([await pack(bundle) for bundle in bundles])


async def contents(connection: Connection) -> set[bytes]:
    return {each[0] for each in await connection.fetch("select content from taskq.blob")}


async def finish(connection: Connection, *ids: int, at: datetime = OLD) -> None:
    await connection.execute("update taskq.task set status = 2, finished_at = $1 where id = any ($2)", at, ids)


async def prune(store: Store) -> int:
    return (await store.prune_tasks(after=0, retention_s=86_400.0, privacy={}, batch=1_000))[1]


async def groups(connection: Connection) -> int:
    return await connection.fetchval("select count(*) from taskq.task_group")


@pytest.fixture
async def beside(database: str, settings: Settings) -> AsyncIterator[Store]:
    """The store of another instance."""
    opened = Store(database, settings)
    yield opened
    await opened.close()


# -- what is stored


async def test_bundle_keeps_every_field(store: Store, connection: Connection):
    due_at = datetime(2031, 1, 1, tzinfo=UTC)
    task = NewTask("resize", '{"a": "ü€"}', "images", -5, 4, due_at, due_at + timedelta(hours=1), ("a,b", '"', "ü"))
    task.metadata, task.sensitive, task.blobs = '{"order": 5}', True, (PICTURE.digest,)

    [stored] = await keep(store, Bundle([task], ["x"], [PICTURE]))

    kept = await row(connection, stored.ids[0])
    assert stored.group_id is None
    assert (kept["kind"], kept["payload"], kept["queue"], kept["priority"]) == ("resize", '{"a": "ü€"}', "images", -5)
    assert (kept["max_attempts"], kept["due_at"], kept["expires_at"]) == (4, due_at, due_at + timedelta(hours=1))
    assert (kept["tags"], kept["metadata"], kept["sensitive"]) == (["a,b", '"', "ü"], '{"order": 5}', True)
    assert (kept["status"], kept["group_id"]) == (0, None)


async def test_plain_task_in_a_bundle_is_the_row_of_the_hot_road(store: Store, connection: Connection):
    [(plain, _, _)] = await store.insert([new()], births=0, owner=0)
    [stored] = await keep(store, one())

    first, second = dict(await row(connection, plain)), dict(await row(connection, stored.ids[0]))

    for changing in ("id", "created_at", "due_at"):
        del first[changing], second[changing]
    assert first == second


async def test_bundles_stored_together_keep_their_own(store: Store, connection: Connection):
    shares = await keep(store, several(PICTURE), one(PICTURE, LETTER), several(count=2), one())

    ids = [task_id for share in shares for task_id in share.ids]
    assert [len(share.ids) for share in shares] == [3, 1, 2, 1]
    assert [share.group_id is None for share in shares] == [False, True, False, True]
    assert len({*ids, *(share.group_id for share in shares)}) == 10  # seven tasks, two groups, one None
    uses = await connection.fetch("select task_id, digest from taskq.task_blob order by task_id, digest")
    wanted = {(task_id, bytes.fromhex(PICTURE.digest)) for task_id in [*shares[0].ids, *shares[1].ids]}
    assert {tuple(use) for use in uses} == wanted | {(shares[1].ids[0], bytes.fromhex(LETTER.digest))}


async def test_group_of_several_is_shown_as_one_whether_it_asks_or_not(store: Store):
    asked, not_asked = await keep(store, several(count=1), Bundle([new(), new()], ["a", "b"], []))

    assert asked.group_id is not None
    assert not_asked.group_id is not None


async def test_bundle_with_a_task_that_can_not_be_stored_leaves_nothing(store: Store, connection: Connection):
    bad = several(PICTURE)
    bad.tasks[2].payload = NUL

    with pytest.raises(StoreRefused):
        await keep(store, bad)

    assert await statuses(connection) == {}
    assert await groups(connection) == 0
    assert await contents(connection) == set()


@pytest.mark.parametrize(
    "bundle",
    [Bundle([new()], [], []), Bundle([new(blobs=(LETTER.digest,))], ["ada"], [PICTURE])],
    ids=["labels", "content"],
)
async def test_bundle_that_contradicts_itself_is_refused(bundle: Bundle):
    with pytest.raises(ValueError, match=r"give each one|add it to the blobs"):
        await pack(bundle)


# -- content


async def test_content_is_stored_once(store: Store, beside: Store, connection: Connection):
    await keep(store, several(PICTURE, PICTURE), one(PICTURE))
    await keep(beside, one(PICTURE))

    assert await connection.fetchval("select array_agg(size) from taskq.blob") == [100_000]
    assert await connection.fetchval("select count(*) from taskq.task_blob") == 5


async def test_content_sent_again_is_not_written_again(store: Store, connection: Connection):
    await keep(store, one(PICTURE))
    position = "select (pg_current_wal_insert_lsn() - '0/0')::bigint"
    before = await connection.fetchval(position)

    await keep(store, one(PICTURE))

    assert await connection.fetchval(position) - before < 50_000


async def test_content_is_read_by_its_digest(store: Store):
    await keep(store, one(PICTURE))

    assert await store.bundles.blob(PICTURE.digest) == PICTURE.content


async def test_content_that_many_tasks_need_at_once_is_read_once(store: Store, monkeypatch: pytest.MonkeyPatch):
    await keep(store, one(PICTURE))
    borrowed: list[int] = []
    session = store.reads.session

    def counted() -> Any:
        borrowed.append(1)
        return session()

    monkeypatch.setattr(store.reads, "session", counted)

    async with asyncio.TaskGroup() as group:
        readers = [group.create_task(store.bundles.blob(PICTURE.digest)) for _ in range(50)]

    assert {reader.result() for reader in readers} == {PICTURE.content}
    assert len(borrowed) == 1


async def test_content_kept_in_memory_has_a_bound(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bundles_module, "RECENT_BYTES_MAX", 250_000)
    blobs = [Blob(os.urandom(100_000)) for _ in range(4)] + [Blob(os.urandom(300_000)), LETTER]
    await keep(store, one(*blobs))

    for each in [*blobs, *blobs]:
        assert await store.bundles.blob(each.digest) == each.content
        assert sum(map(len, store.bundles._recent.values())) <= 250_000

    assert LETTER.digest in store.bundles._recent


@pytest.mark.parametrize("digest", [LETTER.digest, "no digest", "ab", ""])
async def test_content_that_is_not_there_fails_the_task_for_good(store: Store, digest: str):
    with pytest.raises(TaskError, match="submit the task again") as caught:
        await store.bundles.blob(digest)

    assert (caught.value.retryable, caught.value.reason) == (False, "content_missing")


async def test_content_that_can_not_be_read_now_burns_no_attempt(store: Store, monkeypatch: pytest.MonkeyPatch):
    @contextlib.asynccontextmanager
    async def away() -> AsyncIterator[None]:
        raise StoreUnavailable("away")
        yield

    monkeypatch.setattr(store.reads, "session", away)

    with pytest.raises(Snooze, match="away"):
        await store.bundles.blob(PICTURE.digest)


async def test_content_that_is_read_too_slowly_burns_no_attempt(
    store: Store, database: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(bundles_module, "READ_WAIT_S", 0.05)
    await keep(store, one(PICTURE))
    other = await asyncpg.connect(database)
    async with other.transaction():
        await other.execute("lock table taskq.blob")

        with pytest.raises(Snooze):
            await store.bundles.blob(PICTURE.digest)

    await other.close()
    assert await store.bundles.blob(PICTURE.digest) == PICTURE.content


async def test_handler_reads_the_content_of_its_task(settings: Settings, connection: Connection, eventually: Any):
    read: list[bytes] = []

    async def work(payload: dict[str, str], context: Context) -> None:
        read.append(await context.blob(payload["digest"]))

    bundle = one(PICTURE, payload=json.dumps({"digest": PICTURE.digest}))
    async with running(settings, kind("work", work)) as parts:
        stored = await parts.intake.submit_bundle(bundle)
        await eventually(becomes(connection, stored.ids[0], 2))

    assert read == [PICTURE.content]


# -- prune


async def test_content_goes_with_the_last_task_that_needs_it(store: Store, connection: Connection):
    first, second = await keep(store, one(PICTURE, LETTER), one(PICTURE))
    await finish(connection, *first.ids)
    assert await prune(store) == 1
    after_first = await contents(connection)
    await finish(connection, *second.ids)

    assert await prune(store) == 1

    assert after_first == {PICTURE.content}
    assert await contents(connection) == set()
    assert await connection.fetchval("select count(*) from taskq.task_blob") == 0


async def test_group_is_kept_whole_until_all_of_it_is_old(store: Store, connection: Connection):
    [stored] = await keep(store, several(PICTURE))
    await finish(connection, *stored.ids[:2])
    open_still = await prune(store)
    await finish(connection, stored.ids[2], at=datetime.now(UTC))
    young_still = await prune(store)
    await finish(connection, stored.ids[2])

    assert await prune(store) == 3

    assert (open_still, young_still) == (0, 0)
    assert await groups(connection) == 0
    assert await contents(connection) == set()


async def test_group_goes_with_its_last_task_when_a_round_ends_inside_it(store: Store, connection: Connection):
    [stored] = await keep(store, several())
    await finish(connection, *stored.ids)

    last, gone = await store.prune_tasks(after=0, retention_s=86_400.0, privacy={}, batch=2)
    shown = await store.bundles.group(stored.group_id or 0)
    assert await store.prune_tasks(after=last or 0, retention_s=86_400.0, privacy={}, batch=2) == (stored.ids[2], 1)

    assert gone == 2
    assert shown is not None
    assert [member.id for member in shown.members] == stored.ids[2:]
    assert await groups(connection) == 0


async def test_prune_of_a_plain_task_leaves_groups_and_content_alone(store: Store, connection: Connection):
    await keep(store, several(PICTURE))
    plain = await put(connection, status=2, finished_at=OLD)

    assert await prune(store) == 1

    assert await store.get(plain) is None
    assert await groups(connection) == 1
    assert await contents(connection) == {PICTURE.content}


async def test_forgetting_a_partition_takes_groups_and_content_in_bounded_steps(store: Store, connection: Connection):
    gone = await keep(store, several(PICTURE), several(LETTER), one(LETTER))
    high = gone[-1].ids[0] + 1
    kept = await keep(store, several(PICTURE))

    steps = [await store.forget(0, high, batch=2) for _ in range(6)]

    assert steps[0] > 0
    assert steps[-1] == 0
    assert await contents(connection) == {PICTURE.content}
    assert await connection.fetchval("select array_agg(id) from taskq.task_group") == [kept[0].group_id]


async def test_group_across_a_border_outlives_its_first_partition(store: Store, connection: Connection):
    [stored] = await keep(store, several())

    await store.forget(0, stored.ids[1], batch=10)

    assert await groups(connection) == 1


# -- prune and submissions at the same moment


async def blocked(connection: Connection) -> bool:
    return await connection.fetchval(
        "select exists (select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock')"
    )


async def test_prune_spares_content_that_a_submission_is_about_to_need(
    store: Store, beside: Store, connection: Connection, eventually: Any
):
    [first] = await keep(store, one(PICTURE))
    await finish(connection, *first.ids)

    async with asyncio.TaskGroup() as group, beside.bundles._session.transaction():
        [second] = await keep(beside, one(PICTURE))
        pruning = group.create_task(prune(store))
        await eventually(lambda: blocked(connection))

    assert pruning.result() == 1
    assert await store.get(second.ids[0]) is not None
    assert await contents(connection) == {PICTURE.content}
    assert await store.bundles.blob(PICTURE.digest) == PICTURE.content


async def test_submission_stores_content_anew_that_a_prune_is_about_to_delete(
    store: Store, database: str, connection: Connection, eventually: Any
):
    [first] = await keep(store, one(PICTURE))
    digests = [bytes.fromhex(PICTURE.digest)]
    other = await asyncpg.connect(database)

    async with asyncio.TaskGroup() as group, other.transaction():
        await other.execute("delete from taskq.task_blob where task_id = $1", first.ids[0])
        await other.fetch(TASKS["lock_blobs"].text, digests)
        submitting = group.create_task(keep(store, one(PICTURE)))
        await eventually(lambda: blocked(connection))
        await other.execute(TASKS["prune_blobs"].text, digests)

    await other.close()
    assert await store.get(submitting.result()[0].ids[0]) is not None
    assert await contents(connection) == {PICTURE.content}


async def test_content_is_there_for_every_task_whatever_is_pruned_meanwhile(
    store: Store, beside: Store, database: str, connection: Connection
):
    few = [Blob(os.urandom(10_000)) for _ in range(3)]
    lacking = (
        "select count(*) from taskq.task_blob u"
        " where task_id = any ($1) and not exists (select from taskq.blob where digest = u.digest)"
    )

    async def submit(through: Store, order: int) -> None:
        own = await asyncpg.connect(database)
        for n in range(100):
            picked = [few[n % 3], few[(n + order) % 3]]
            shares = await keep(through, one(*picked), several(*picked[::-1], count=2))
            ids = [task_id for share in shares for task_id in share.ids]
            assert await own.fetchval(lacking, ids) == 0, n
            await finish(own, *ids)
        await own.close()

    async def clean() -> None:
        while True:
            await prune(store)

    async with asyncio.TaskGroup() as group:
        pruning = group.create_task(clean())
        async with asyncio.TaskGroup() as submitters:
            for through, order in ((store, 1), (beside, 2)):
                submitters.create_task(submit(through, order))
        pruning.cancel()

    await prune(store)
    assert await contents(connection) == set()
    assert await connection.fetchval("select count(*) from taskq.task_blob") == 0
    assert await groups(connection) == 0


# -- intake


async def submit_all(intake: Intake, bundles: list[Bundle]) -> list[Stored | Exception]:
    async def submit(bundle: Bundle) -> Stored | Exception:
        try:
            return await intake.submit_bundle(bundle)
        except (StoreRefused, StoreUnavailable, IntakeFull) as error:
            return error

    async with asyncio.TaskGroup() as group:
        callers = [group.create_task(submit(bundle)) for bundle in bundles]
    return [caller.result() for caller in callers]


async def test_bundles_share_a_commit(store: Store, settings: Settings, connection: Connection):
    async with taking(store, settings) as (intake, _):
        await submit_all(intake, [several() for _ in range(50)])

    assert await statuses(connection) == {0: 150}
    assert await connection.fetchval("select count(distinct created_at) from taskq.task") <= 2


async def test_bundles_are_stored_apart_where_their_bytes_end(
    store: Store, settings: Settings, connection: Connection, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(intake_module, "BUNDLE_BYTES_MAX", 250_000)
    blobs = [Blob(os.urandom(100_000)) for _ in range(6)]

    async with taking(store, settings) as (intake, _):
        await submit_all(intake, [one(blob) for blob in blobs])

    per_commit = await connection.fetch("select count(*) from taskq.task group by created_at order by min(id)")
    assert [each[0] for each in per_commit] in ([1, 2, 2, 1], [2, 2, 2])


async def test_bundle_that_is_refused_fails_alone(store: Store, settings: Settings, connection: Connection):
    bundles = [several(LETTER) for _ in range(5)]
    bundles[3].tasks[1].payload = NUL

    async with taking(store, settings) as (intake, _):
        results = await submit_all(intake, bundles)

    assert [n for n, result in enumerate(results) if isinstance(result, StoreRefused)] == [3]
    assert await statuses(connection) == {0: 12}
    assert await groups(connection) == 4


async def test_bundle_is_told_when_too_many_submissions_wait(store: Store, settings: Settings):
    async with taking(store, settings, intake_waiting_max=2) as (intake, _):
        results = await submit_all(intake, [several() for _ in range(5)])

        assert isinstance(await intake.submit_bundle(several()), Stored)

    assert [isinstance(result, IntakeFull) for result in results].count(True) == 3


async def test_bundle_is_told_when_the_database_is_away(store: Store, settings: Settings, monkeypatch: Any):
    async def away(*_: Any, **__: Any) -> None:
        raise StoreUnavailable("away", sent=False)

    monkeypatch.setattr(store.bundles._session, "fetch", away)

    async with taking(store, settings) as (intake, _):
        with pytest.raises(StoreUnavailable):
            await intake.submit_bundle(several())


async def test_bundle_wakes_this_dispatcher_and_the_others(store: Store, settings: Settings):
    slots = Slots(5)
    async with taking(store, settings, births=slots) as (intake, notes):
        await intake.submit_bundle(several())

    assert (slots.waiting, slots.free, notes.sent) == (3, 5, 1)


async def test_task_that_is_not_plain_goes_as_a_bundle(store: Store, settings: Settings, connection: Connection):
    due_at = datetime(2031, 1, 1, tzinfo=UTC)

    async with taking(store, settings, births=Slots(5)) as (intake, _):
        task_id = await intake.submit(new(due_at=due_at))

    assert (await row(connection, task_id))["due_at"] == due_at


async def test_bundle_runs_at_once_although_nobody_polls(settings: Settings, connection: Connection, eventually: Any):
    async def work(_payload: dict[str, Any]) -> None:
        """Do nothing."""

    async with running(settings, kind("work", work), **NEVER) as parts:
        await eventually(says(lambda: not parts.dispatcher._backlog))
        await parts.intake.submit_bundle(several(count=20))
        await eventually(all_are(connection, {2: 20}))


async def test_bundle_runs_on_another_instance_although_it_does_not_poll(
    settings: Settings, connection: Connection, eventually: Any
):
    async def work(_payload: dict[str, Any]) -> None:
        """Do nothing."""

    async with (
        running(settings, kind("work", work), **NEVER),
        running(settings, kind("work", work), role="api") as api,
    ):
        await eventually(says(lambda: api.listener.peers == 1))
        await api.intake.submit_bundle(several())
        await eventually(all_are(connection, {2: 3}))
