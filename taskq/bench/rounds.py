"""The rounds: which measures there are, in which order, and that their counts are right.

A group is a family of measures that belong together, floors first, so that a ratio is of one minute.
Each measure gets its own database and processes.  What it stored is counted at the end: as many
tasks as were answered, all of them Ok where they ran.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from taskq.bench.figures import BenchFailed
from taskq.bench.load import BODY_MAIL, BODY_NOOP
from taskq.bench.place import Ground, Place, passable_folder
from taskq.bench.processes import Child, child, do, time_start
from taskq.bench.usage import busy_s, cpu_s, family_cpu_s, percentile, server_cpu_s

__all__ = ["FULL", "GROUPS", "QUICK", "Bench", "Group", "Scale", "run_rounds"]

Sample = dict[str, float]

CALLERS = 64
SQL_CONNECTIONS = 16
SETTLED_S = 120.0  # for what is still to be worked off after a load
POLL_S = 0.01
FAR_S = 0.02  # until an answer of a relay far away
STATS_S = 0.3  # until the server knows what ended connections did


@dataclass(frozen=True, slots=True)
class Scale:
    """How long and how much."""

    http_s: float
    warm_s: float
    submit_s: float
    steady_s: float
    bulk: int
    drain: int
    wakes: int
    pause_s: float
    million: int
    mails: int
    """Sent by taskq to a relay nearby; what is slower sends a share of it."""


FULL = Scale(3.0, 0.5, 3.0, 8.0, bulk=50_000, drain=50_000, wakes=200, pause_s=0.02, million=1_000_000, mails=20_000)
QUICK = Scale(0.4, 0.1, 0.4, 0.5, bulk=2_000, drain=2_000, wakes=20, pause_s=0.01, million=20_000, mails=1_000)


@dataclass(frozen=True, slots=True)
class Bench:
    """What a measure needs."""

    ground: Ground
    scale: Scale


@dataclass(frozen=True, slots=True)
class Group:
    """Measures that belong together."""

    text: str
    measures: tuple[tuple[str, Callable[[Bench], Awaitable[Sample]]], ...]


async def run_rounds(
    ground: Ground, scale: Scale, names: Sequence[str], rounds: int, tell: Callable[[str], None]
) -> list[Sample]:
    """Measure the groups `names`, one after the other, `rounds` times.

    Args:
        ground: Where.
        scale: How much.
        names: Of `GROUPS`.
        rounds: How often.
        tell: Told the name of each measure before it begins.

    Raises:
        BenchFailed: A count is wrong.
    """
    bench = Bench(ground, scale)
    samples: list[Sample] = []
    for _ in range(rounds):
        sample: Sample = {}
        for group in names:
            for name, measure in GROUPS[group].measures:
                tell(f"{group}.{name}" if name else group)
                found = await _watched(bench, measure)
                sample |= {".".join(part for part in (group, name, key) if part): value for key, value in found.items()}
        samples.append(sample)
    return samples


async def _watched(bench: Bench, measure: Callable[[Bench], Awaitable[Sample]]) -> Sample:
    """Measure, and note how many cores other programs used meanwhile."""
    began, before = time.perf_counter(), _foreign_s(bench)
    found = await measure(bench)
    after = _foreign_s(bench)
    if before is not None and after is not None:
        found["foreign_cores"] = max(0.0, after - before) / (time.perf_counter() - began)
    return found


def _foreign_s(bench: Bench) -> float | None:
    """Return the processor seconds of everything but the bench, its children and its server."""
    everything, server = busy_s(), server_cpu_s(bench.ground.postmaster)
    return None if everything is None or server is None else everything - server - family_cpu_s()


# -- HTTP


async def _hello(bench: Bench) -> Sample:
    async with child("serve_hello") as server:
        return await _load(bench, server, BODY_NOOP)


async def _hello_one(bench: Bench) -> Sample:
    async with child("serve_hello") as server:
        return await _load(bench, server, BODY_NOOP, connections=1)


async def _insert(bench: Bench) -> Sample:
    async with bench.ground.place() as place, child("serve_insert", dsn=place.dsn) as server:
        found = await _load(bench, server, BODY_NOOP)
        _same("rows", await place.floor_rows(), found["answers"])
        return found


async def _commit(bench: Bench) -> Sample:
    async with bench.ground.place() as place:
        found = await do("commit_alone", dsn=place.dsn, seconds=bench.scale.http_s / 2)
        _same("rows", await place.floor_rows(), found["rows"])
        return found


async def _idle(bench: Bench) -> Sample:
    return await _post(bench, "api", BODY_MAIL)


async def _one(bench: Bench) -> Sample:
    return await _post(bench, "api", BODY_MAIL, connections=1)


async def _noop(bench: Bench) -> Sample:
    return await _post(bench, "all", BODY_NOOP)


async def _mail(bench: Bench) -> Sample:
    return await _post(bench, "all", BODY_MAIL)


async def _post(bench: Bench, role: str, body: str, connections: int = CALLERS) -> Sample:
    async with bench.ground.place() as place, child("serve", dsn=place.dsn, role=role) as server:
        found = await _load(bench, server, body, connections=connections, place=None if role == "api" else place)
        stored, ok = await place.counts()
        _same("tasks stored", stored, found["answers"])
        _same("tasks Ok", ok, 0 if role == "api" else stored)
        return found


async def _load(
    bench: Bench, server: Child, body: str, *, connections: int = CALLERS, place: Place | None = None
) -> Sample:
    """Put a server under load; with a `place`, wait until the tasks there are worked off."""
    url = await server.url()
    before, server_before = cpu_s(server.pid), server_cpu_s(bench.ground.postmaster)
    began = time.perf_counter()
    scale = bench.scale
    found = await do("put_load", url=url, body=body, connections=connections, seconds=scale.http_s, warm_s=scale.warm_s)
    after, server_after = cpu_s(server.pid), server_cpu_s(bench.ground.postmaster)
    if found["refused"]:
        raise BenchFailed(f"{found['refused']:g} of {found['answers']:g} requests were not answered with 201")
    if before is not None and after is not None:
        found["app_us"] = (after - before) / found["answers"] * 1e6
    if server_before is not None and server_after is not None:
        found["server_us"] = (server_after - server_before) / found["answers"] * 1e6
    if place is not None:
        await _settled(place)
        found["settled"] = found["answers"] / (time.perf_counter() - began)
    found |= await server.result()
    return found


async def _settled(place: Place) -> None:
    try:
        async with asyncio.timeout(SETTLED_S):
            while await place.unfinished():  # noqa: ASYNC110 - another process brings it about
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        stored, ok = await place.counts()
        raise BenchFailed(f"of {stored} tasks only {ok} were Ok {SETTLED_S:g} s after the load") from None


# -- submitting


async def _grouped(bench: Bench) -> Sample:
    async with bench.ground.place() as place:
        found = await do("insert_grouped", dsn=place.dsn, callers=CALLERS, seconds=bench.scale.submit_s)
        _same("rows", await place.floor_rows(), found["rows"])
        return found


async def _submit(bench: Bench) -> Sample:
    async with bench.ground.place() as place:
        found = await do("submit", dsn=place.dsn, callers=CALLERS, seconds=bench.scale.submit_s)
        _same("tasks stored", (await place.counts())[0], found["tasks"])
        return found


async def _sql_one(bench: Bench) -> Sample:
    return await _enqueue(bench, "enqueue", connections=1, seconds=bench.scale.submit_s / 3)


async def _sql_many(bench: Bench) -> Sample:
    return await _enqueue(bench, "enqueue", connections=SQL_CONNECTIONS, seconds=bench.scale.submit_s / 3)


async def _sql_bulk(bench: Bench) -> Sample:
    return await _enqueue(bench, "bulk", tasks=bench.scale.bulk)


async def _enqueue(bench: Bench, job: str, **arguments: float) -> Sample:
    async with bench.ground.place() as place:
        found = await do(job, dsn=place.dsn, **arguments)
        _same("tasks stored", (await place.counts())[0], found["tasks"])
        return found


# -- working


async def _drain(bench: Bench) -> Sample:
    async with bench.ground.place() as place:
        found = await do("drain", dsn=place.dsn, tasks=bench.scale.drain, waiting=bench.scale.drain)
        await _all_ok(place, found)
        return found


async def _wake_here(bench: Bench) -> Sample:
    async with bench.ground.place() as place:
        found = await do("wake_here", dsn=place.dsn, tasks=bench.scale.wakes, pause_s=bench.scale.pause_s)
        await _all_ok(place, found)
        return found


async def _wake_there(bench: Bench) -> Sample:
    scale = bench.scale
    async with bench.ground.place() as place, child("wake_there", dsn=place.dsn, pause_s=scale.pause_s) as worker:
        await worker.url()
        submitted = await do("paced", dsn=place.dsn, tasks=scale.wakes, pause_s=scale.pause_s)
        await _settled(place)
        spans = sorted((await worker.result())["spans"])
        _same("runs", len(spans), submitted["tasks"])
        await _all_ok(place, submitted)
        return {"p50_ms": percentile(spans, 0.5) * 1e3, "p99_ms": percentile(spans, 0.99) * 1e3}


async def _steady_born(bench: Bench) -> Sample:
    return await _steady(bench, claimed=False)


async def _steady_claimed(bench: Bench) -> Sample:
    return await _steady(bench, claimed=True)


async def _steady(bench: Bench, *, claimed: bool) -> Sample:
    async with bench.ground.place() as place:
        before = await place.commits()
        found = await do("steady", dsn=place.dsn, callers=CALLERS, seconds=bench.scale.steady_s, claimed=claimed)
        await asyncio.sleep(STATS_S)
        found["commits"] = (await place.commits() - before) / found["tasks"]
        await _all_ok(place, found)
        return found


async def _all_ok(place: Place, found: Sample) -> None:
    stored, ok = await place.counts()
    _same("tasks stored", stored, found["tasks"])
    _same("tasks Ok", ok, stored)
    _same("runs", found.get("runs", ok), stored)


# -- sending mails


async def _send(bench: Bench, *, job: str, delay_s: float = 0.0, share: float = 1.0) -> Sample:
    """Send to a relay of our own, which must have taken every mail once."""
    mails = int(bench.scale.mails * share)
    async with bench.ground.place() as place, child("serve_sink", delay_s=delay_s) as relay:
        taskq = {"dsn": place.dsn} if job == "drain_mails" else {}
        found = await do(job, url=await relay.url(), mails=mails, **taskq)
        _same("mails taken by the relay", (await relay.result())["mails"], mails)
        if taskq:
            await _all_ok(place, found)
        return found


async def _compose(_bench: Bench) -> Sample:
    return await do("compose_mails")


# -- living


async def _start(bench: Bench) -> Sample:
    async with bench.ground.place() as place:
        again = await time_start(dsn=place.dsn)
    with passable_folder() as folder:
        first = await time_start("--data-dir", str(folder))
        embedded = await time_start("--data-dir", str(folder))
    return {"again": again, "first": first, "embedded": embedded}


async def _million(bench: Bench) -> Sample:
    few = await _crowded(bench, bench.scale.drain)
    many = await _crowded(bench, bench.scale.million)
    return many | {
        "claim_few": few["claim"],
        "submit_few": few["submit"],
        "read_few_ms": few["read_ms"],
        "memory_few_mib": few["memory_mib"],
    }


async def _crowded(bench: Bench, waiting: int) -> Sample:
    """Claim, submit and read where `waiting` tasks wait besides those claimed."""
    scale = bench.scale
    async with bench.ground.place() as place:
        total = scale.drain + waiting
        drained = await do("drain", dsn=place.dsn, tasks=scale.drain, waiting=total)
        submitted = await do("submit", dsn=place.dsn, callers=CALLERS, seconds=scale.submit_s)
        read = await do("read", dsn=place.dsn, reads=500, first=total // 2)
        stored, ok = await place.counts()
        _same("tasks stored", stored, total + submitted["tasks"])
        _same("tasks Ok", ok, drained["runs"])
    return {
        "claim": drained["rate"],
        "memory_mib": drained["memory_mib"],
        "submit": submitted["rate"],
        "read_ms": read["p50_ms"],
    }


def _same(what: str, found: float, wanted: float) -> None:
    if found != wanted:
        raise BenchFailed(f"{what}: {found:g}, but there should be {wanted:g}; this run is no measurement")


GROUPS: dict[str, Group] = {
    "http": Group(
        "POST /task/ beside a bare handler and an INSERT per request",
        (
            ("hello", _hello),
            ("idle", _idle),
            ("noop", _noop),
            ("mail", _mail),
            ("insert", _insert),
            ("hello_one", _hello_one),
            ("commit", _commit),
            ("one", _one),
        ),
    ),
    "submit": Group("submit in process beside a grouped INSERT", (("grouped", _grouped), ("tasks", _submit))),
    "sql": Group("submit by SQL", (("one", _sql_one), ("many", _sql_many), ("bulk", _sql_bulk))),
    "drain": Group("work off waiting tasks", (("", _drain),)),
    "wake": Group("from a submission to its handler", (("here", _wake_here), ("there", _wake_there))),
    "steady": Group("submit, run and settle at the same time", (("born", _steady_born), ("claimed", _steady_claimed))),
    "mail": Group(
        "send mails beside what most programs do",
        (
            ("alone", partial(_send, job="send_each_alone", share=0.1)),
            ("few", partial(_send, job="send_on_few", share=0.1)),
            ("taskq", partial(_send, job="drain_mails")),
            ("far_alone", partial(_send, job="send_each_alone", delay_s=FAR_S, share=0.015)),
            ("far_few", partial(_send, job="send_on_few", delay_s=FAR_S, share=0.03)),
            ("far_taskq", partial(_send, job="drain_mails", delay_s=FAR_S, share=0.05)),
            ("compose", _compose),
        ),
    ),
    "start": Group("start the service", (("", _start),)),
    "million": Group("claim, submit and read beside a million waiting tasks", (("", _million),)),
}
