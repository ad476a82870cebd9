"""The suppression list in a real database: what stands on it, for how long, and what asking it costs."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from rig import Connection, put

from taskq import sql
from taskq import suppression as module
from taskq.database import PLANNER
from taskq.errors import StoreUnavailable, Suppressed
from taskq.store import Store
from taskq.suppression import Bounces, Suppressions

DAY_S = 86_400.0
LATER = datetime(2100, 1, 1, tzinfo=UTC)
NEWEST = 2**62


def made(store: Store, *, copied_max: int = 100, automatic_s: float = DAY_S) -> Suppressions:
    return Suppressions(store.reads, copied_max=copied_max, automatic_s=automatic_s)


async def answering(suppressions: Suppressions) -> AsyncIterator[Suppressions]:
    async with asyncio.TaskGroup() as group:
        running = group.create_task(suppressions.run())
        yield suppressions
        running.cancel()


@pytest.fixture
async def suppressions(store: Store) -> AsyncIterator[Suppressions]:
    """A list as one process sees it, its copy read."""
    mine = made(store)
    await mine.refresh()
    async for each in answering(mine):
        yield each


@pytest.fixture
async def elsewhere(store: Store) -> AsyncIterator[Suppressions]:
    """The same list as another process sees it, its copy read."""
    other = made(store)
    await other.refresh()
    async for each in answering(other):
        yield each


@pytest.fixture
def queries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements run since."""
    seen: list[str] = []
    fetch = module._fetch

    async def counting(reads: object, name: str, **values: object):
        seen.append(name)
        return await fetch(reads, name, **values)

    monkeypatch.setattr(module, "_fetch", counting)
    return seen


async def stands(suppressions: Suppressions, address: str) -> bool:
    return (await suppressions.find([address]))[0] is not None


# -- what stands on it


async def test_address_on_the_list_is_found_however_it_is_written(suppressions: Suppressions) -> None:
    await suppressions.add("Ada.Byron@Faß.example", reason="asked us", until=None)

    assert await stands(suppressions, "ada.byron@xn--fa-hia.example")
    assert not await stands(suppressions, "ada@xn--fa-hia.example")


async def test_list_holds_no_address(suppressions: Suppressions, connection: Connection) -> None:
    await suppressions.add("ada@ok.test", reason="asked us", until=None)

    (text,) = await connection.fetchrow("select string_agg(s::text, '') from taskq.suppression s")

    assert "ada" not in text
    assert "a***@ok.test" in text


async def test_many_addresses_are_found_in_their_order(suppressions: Suppressions) -> None:
    await suppressions.add("b@ok.test", reason="second", until=None)
    await suppressions.add("d@ok.test", reason="fourth", until=LATER)

    found = await suppressions.find([f"{letter}@ok.test" for letter in "abcdb"])

    assert [entry and entry.reason for entry in found] == [None, "second", None, "fourth", "second"]


async def test_entry_ends_by_itself(suppressions: Suppressions, connection: Connection) -> None:
    await suppressions.learn("ada@ok.test", reason="550 5.1.1", task_id=7)
    before = await stands(suppressions, "ada@ok.test")

    await connection.execute("update taskq.suppression set until = now() - interval '1 second'")

    assert before
    assert not await stands(suppressions, "ada@ok.test")
    assert await suppressions.entries(before=NEWEST, limit=10) == []
    assert not await suppressions.remove("ada@ok.test")


async def test_learned_entry_stays_as_long_as_set(suppressions: Suppressions) -> None:
    await suppressions.learn("ada@ok.test", reason="550 5.1.1", task_id=7)

    (entry,) = await suppressions.entries(before=NEWEST, limit=10)

    assert (entry.source, entry.reason, entry.task_id) == ("bounce", "550 5.1.1", 7)
    assert entry.until is not None
    assert entry.until - entry.added_at == timedelta(days=1)


async def test_nothing_is_learned_where_that_is_off(store: Store, connection: Connection) -> None:
    learned = await made(store, automatic_s=0).learn("ada@ok.test", reason="550 5.1.1", task_id=7)

    assert not learned
    assert await connection.fetchval("select count(*) from taskq.suppression") == 0


@pytest.mark.parametrize("until", [None, LATER])
async def test_learning_leaves_alone_what_lasts_longer(suppressions: Suppressions, until: datetime | None) -> None:
    await suppressions.add("ada@ok.test", reason="asked us", until=until)

    assert await suppressions.learn("ada@ok.test", reason="550 5.1.1", task_id=7)

    (entry,) = await suppressions.entries(before=NEWEST, limit=10)
    assert (entry.source, entry.until) == ("manual", until)


async def test_learning_again_lasts_from_then(suppressions: Suppressions, connection: Connection) -> None:
    await suppressions.learn("ada@ok.test", reason="550 5.1.1", task_id=7)
    await connection.execute("update taskq.suppression set until = now() + interval '1 minute'")

    await suppressions.learn("ada@ok.test", reason="5.1.1", task_id=8, source="report")

    (entry,) = await suppressions.entries(before=NEWEST, limit=10)
    assert (entry.source, entry.task_id) == ("report", 8)
    assert entry.until is not None
    assert entry.until - datetime.now(UTC) > timedelta(hours=23)


async def test_entry_by_hand_replaces_what_was_learned(suppressions: Suppressions) -> None:
    await suppressions.learn("ada@ok.test", reason="550 5.1.1", task_id=7)
    entry = await suppressions.add("ada@ok.test", reason="asked us", until=None)

    assert (entry.source, entry.until, entry.task_id) == ("manual", None, None)


async def test_pages_show_each_entry_once_newest_first(suppressions: Suppressions) -> None:
    for n in range(5):
        await suppressions.add(f"{n}@ok.test", reason=str(n), until=None)

    first = await suppressions.entries(before=NEWEST, limit=3)
    second = await suppressions.entries(before=first[-1].id, limit=3)

    assert [entry.reason for entry in first + second] == ["4", "3", "2", "1", "0"]


# -- what asking costs


async def test_lookups_at_the_same_time_share_a_query(suppressions: Suppressions, queries: list[str]) -> None:
    await suppressions.add("7@ok.test", reason="asked us", until=None)
    queries.clear()

    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(suppressions.lookup(f"{n}@ok.test")) for n in range(200)]

    assert [n for n, each in enumerate(asked) if each.result() is not None] == [7]
    assert queries.count("find") <= 2


@pytest.mark.parametrize(("name", "index"), [("find", "suppression_pkey"), ("prune", "suppression_ending")])
async def test_plan_uses_its_index(connection: Connection, name: str, index: str) -> None:
    statement = sql.load("suppression")[name]
    for setting, value in (PLANNER | {"plan_cache_mode": "force_generic_plan"}).items():
        await connection.execute(f"set {setting} = {value}")
    await connection.execute(f"prepare asked as {statement.text}")

    value = {"find": "array[]::bytea[]", "prune": "100"}[name]
    plan = [row[0] for row in await connection.fetch(f"explain execute asked({value})")]

    assert any(index in line for line in plan)
    assert not any("Seq Scan" in line for line in plan)


async def test_submission_to_nobody_on_the_list_asks_no_database(
    suppressions: Suppressions, queries: list[str]
) -> None:
    was_empty = suppressions.empty
    await suppressions.add("ada@ok.test", reason="asked us", until=None)
    queries.clear()

    await suppressions.check(["bob@ok.test", "eve@ok.test"])

    assert was_empty
    assert not suppressions.empty
    assert queries == []


async def test_submission_is_refused_at_once_where_the_address_was_added(suppressions: Suppressions) -> None:
    await suppressions.add("ada@ok.test", reason="asked us", until=None)

    with pytest.raises(Suppressed) as caught:
        await suppressions.check(["bob@ok.test", "ada@ok.test"])

    assert "ada@ok.test is on the suppression list" in str(caught.value)
    assert "manual: asked us" in str(caught.value)
    assert "DELETE /mail/suppressions/ada%40ok.test" in str(caught.value)


async def test_another_process_hears_of_an_entry_with_its_next_copy(
    suppressions: Suppressions, elsewhere: Suppressions
) -> None:
    await suppressions.add("ada@ok.test", reason="asked us", until=None)
    await elsewhere.check(["ada@ok.test"])  # its copy is old

    await elsewhere.refresh()

    with pytest.raises(Suppressed):
        await elsewhere.check(["ada@ok.test"])


async def test_entry_removed_elsewhere_refuses_nobody_though_the_copy_is_old(
    suppressions: Suppressions, elsewhere: Suppressions
) -> None:
    await suppressions.add("ada@ok.test", reason="asked us", until=None)

    await elsewhere.remove("ada@ok.test")

    await suppressions.check(["ada@ok.test"])


@pytest.mark.parametrize("copied_max", [0, 2])
async def test_list_beyond_the_copy_is_asked_in_the_database(
    store: Store, suppressions: Suppressions, queries: list[str], copied_max: int
) -> None:
    for n in range(3):
        await suppressions.add(f"{n}@ok.test", reason="asked us", until=None)
    small = made(store, copied_max=copied_max)
    await small.refresh()

    async for each in answering(small):
        queries.clear()
        await each.check(["bob@ok.test"])
        with pytest.raises(Suppressed):
            await each.check(["2@ok.test"])

    assert queries == ["find", "find"]


async def test_copy_that_outgrows_its_bound_is_given_up(store: Store) -> None:
    small = made(store, copied_max=2)
    await small.refresh()
    async for each in answering(small):
        for n in range(3):
            await each.add(f"{n}@ok.test", reason="asked us", until=None)

        for n in range(3):
            with pytest.raises(Suppressed):
                await each.check([f"{n}@ok.test"])


async def test_lookup_fails_alone_when_the_database_is_away(
    suppressions: Suppressions, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_args: object, **_values: object):
        raise StoreUnavailable("gone")

    with monkeypatch.context() as patched:
        patched.setattr(module, "_fetch", away)
        with pytest.raises(StoreUnavailable):
            await suppressions.lookup("ada@ok.test")

    assert await suppressions.lookup("ada@ok.test") is None


# -- reports and old things


async def test_same_report_counts_once(store: Store) -> None:
    bounces = Bounces(store.reads, retention_s=DAY_S)

    for diagnostic in ("550 gone", "550 gone, said again"):
        await bounces.record(7, "ada@ok.test", action="failed", status="5.1.1", diagnostic=diagnostic)

    (bounce,) = await bounces.of(7)
    assert bounce | {"reported_at": None} == {
        "reported_at": None,
        "recipient": "a***@ok.test",
        "action": "failed",
        "status": "5.1.1",
        "diagnostic": "550 gone",
    }


async def test_task_keeps_only_so_many_reports(store: Store) -> None:
    bounces = Bounces(store.reads, retention_s=DAY_S)

    for n in range(module.BOUNCES_PER_TASK_MAX + 5):
        await bounces.record(7, "ada@ok.test", action="delayed", status=f"4.4.{n}", diagnostic="x" * 10_000)

    kept = await bounces.of(7)
    assert len(kept) == module.BOUNCES_PER_TASK_MAX
    assert {len(each["diagnostic"]) for each in kept} == {module.DIAGNOSTIC_CHARS_MAX}


async def test_recipients_are_read_from_mails_only(store: Store, connection: Connection) -> None:
    bounces = Bounces(store.reads, retention_s=DAY_S)
    mail = await put(connection, "email", payload='{"to": "ada@ok.test", "subject": "s", "body": "b"}')
    work = await put(connection, "work", payload='{"to": "ada@ok.test"}')

    assert await bounces.recipients(mail) == '{"cc": null, "to": "ada@ok.test", "recipient": null}'
    assert await bounces.recipients(work) is None
    assert await bounces.recipients(work + 1) is None


async def test_pruning_deletes_what_is_over_and_nothing_else(
    store: Store, suppressions: Suppressions, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PRUNE_BATCH", 2)
    bounces = Bounces(store.reads, retention_s=DAY_S)
    for n in range(4):
        await suppressions.add(f"{n}@ok.test", reason=str(n), until=LATER if n else None)
        await bounces.record(n, "ada@ok.test", action="failed", status="5.1.1", diagnostic="")
    await connection.execute("update taskq.suppression set until = now() - interval '1 second' where until is not null")
    await connection.execute("update taskq.bounce set reported_at = now() - interval '2 days' where task_id > 0")

    left: list[tuple[int, int]] = []
    for _ in range(3):
        await suppressions.prune()
        await bounces.prune()
        counts = "select (select count(*) from taskq.suppression), (select count(*) from taskq.bounce)"
        left.append(tuple(await connection.fetchrow(counts)))

    assert left == [(2, 2), (1, 1), (1, 1)]  # three are over, two at a time
    assert await stands(suppressions, "0@ok.test")
    assert len(await bounces.of(0)) == 1
