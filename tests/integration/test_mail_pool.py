"""The pool's promises: bounded, fair, reused, and never leaking."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext

import pytest
from smtp_script import Action, Drop, Hang, Hold, relay_of, scripted

from taskq.errors import Snooze, TaskError
from taskq.mail.breaker import Breaker
from taskq.mail.envelope import Envelope
from taskq.mail.relay import Relay
from taskq.mail.server import parse_server

Eventually = Callable[[Callable[[], Awaitable[object]]], Awaitable[None]]

MESSAGE = b"From: a@x.test\r\n\r\ntext\r\n"


async def send(relay: Relay, number: int = 1) -> None:
    await relay.send(Envelope("a@x.test", f"b{number}@x.test", MESSAGE, False, number), nullcontext)


async def send_all(relay: Relay, count: int) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(send(relay, number))


async def test_pool_never_opens_more_than_its_bound() -> None:
    async with scripted() as server:
        relay = relay_of(server, connections_max=4)
        await send_all(relay, 200)
        await relay.close()
        await server.settled()

    assert len(server.mails) == 200
    assert server.connections_peak <= 4
    assert server.connections_total <= 4


async def test_pool_reuses_the_connection_that_was_used_last() -> None:
    async with scripted() as server:
        relay = relay_of(server)
        await send_all(relay, 2)
        for number in range(10, 20):
            await send(relay, number)
        await relay.close()

    assert server.connections_total <= 2
    assert len({mail.connection for mail in server.mails[-10:]}) == 1


async def test_pool_serves_those_who_wait_in_the_order_of_asking() -> None:
    async with scripted() as server:
        relay = relay_of(server, connections_max=1)
        await send_all(relay, 20)
        await relay.close()

    assert [mail.recipient for mail in server.mails] == [f"b{number}@x.test" for number in range(20)]


async def test_pool_opens_two_connections_at_once_at_most() -> None:
    gate = asyncio.Event()
    async with scripted({"banner": Hold(gate, "220 hello")}) as server:
        relay = relay_of(server)
        async with asyncio.TaskGroup() as group:
            for number in range(10):
                group.create_task(send(relay, number))
            await server.reached("banner", 2)
            for _ in range(20):
                await asyncio.sleep(0)
            waiting = server.connections
            gate.set()
        await relay.close()

    assert waiting == 2
    assert len(server.mails) == 10


async def test_pool_replaces_a_connection_after_its_messages_without_exceeding_the_bound() -> None:
    async with scripted() as server:
        relay = relay_of(server, connections_max=1, messages_max=5)
        await send_all(relay, 12)
        await relay.close()
        await server.settled()

    assert len(server.mails) == 12
    assert server.connections_total == 3
    assert server.connections_peak == 1
    assert server.counts["quit"] == 3


async def test_pool_survives_a_relay_that_hangs_up_after_some_messages() -> None:
    script: dict[str, Action | list[Action]] = {"mail": [*["250 ok"] * 7, "421 4.3.0 enough"] * 3 + ["250 ok"]}
    async with scripted(script) as server:
        relay = relay_of(server, connections_max=1)
        await send_all(relay, 30)
        await relay.close()

    assert len(server.mails) == 30
    assert server.connections_total == 4


async def test_pool_lets_idle_connections_go_with_a_quit(eventually: Eventually) -> None:
    async with scripted() as server:
        relay = relay_of(server, idle_s=0.05)
        await send_all(relay, 3)

        async def empty() -> bool:
            return relay._pool.connections == 0

        await eventually(empty)
        await send(relay)
        await relay.close()

    assert server.counts["quit"] == server.connections_total


async def test_pool_lets_idle_connections_go_one_after_the_other(eventually: Eventually) -> None:
    gate = asyncio.Event()
    async with scripted({"dot": [Hold(gate, "250 ok"), Hold(gate, "250 ok")]}) as server:
        relay = relay_of(server, idle_s=0.05)
        async with asyncio.TaskGroup() as group:
            group.create_task(send(relay, 1))
            group.create_task(send(relay, 2))
            await server.reached("dot", 2)
            gate.set()
        relay._pool._idle[1].idle_since += 1.0  # as if it had been used a second longer

        async def one_is_left() -> bool:
            return relay._pool.connections == 1

        await eventually(one_is_left)
        await server.settled(0)
        await relay.close()


async def test_pool_does_not_use_a_connection_beyond_its_age() -> None:
    async with scripted() as server:
        relay = relay_of(server, age_s=0.0)
        for number in range(3):
            await send(relay, number)
        await relay.close()

    assert server.connections_total == 3


async def test_pool_does_not_use_a_connection_that_was_idle_too_long() -> None:
    async with scripted() as server:
        relay = relay_of(server)
        await send(relay)
        (connection,) = relay._pool._idle
        connection.idle_since -= 8.0
        await send(relay)
        await relay.close()

    assert server.connections_total == 2


@pytest.mark.parametrize("served", [1, 2, 3])
async def test_a_relay_that_allows_few_connections_is_no_visible_failure(served: int) -> None:
    """Microsoft 365 serves three connections; the fourth is refused."""
    async with scripted(served_max=served) as server:
        relay = relay_of(server)
        await send_all(relay, 200)
        refused = server.refused
        await send_all(relay, 200)
        assert not relay._breaker.open
        await relay.close()

    assert len(server.mails) == 400
    assert server.served_peak <= served
    assert refused <= 2  # as many as are opened at once
    assert server.refused == refused  # what was learnt is kept


async def test_pool_grows_back_after_the_relay_refused_a_connection() -> None:
    gate = asyncio.Event()
    script: dict[str, Action | list[Action]] = {"dot": [Hold(gate, "250 ok"), "250 ok"]}
    async with scripted(script, served_max=1) as server:
        relay = relay_of(server, connections_max=2, connects_max=1, regrow_s=0.0)
        async with asyncio.TaskGroup() as group:
            group.create_task(send(relay, 1))
            await server.reached("dot")
            group.create_task(send(relay, 2))
            await server.reached("disconnected")
            gate.set()
        server.served_max = 2
        await send_all(relay, 4)
        assert relay._pool._slots_max == 2
        await relay.close()

    assert len(server.mails) == 6


async def test_a_relay_that_goes_down_with_many_connections_is_used_with_as_many_afterwards() -> None:
    gate = asyncio.Event()
    async with scripted({"dot": Hold(gate, "250 ok")}) as server:
        relay = Relay(parse_server(server.url), breaker=Breaker(floor_s=0.0, cap_s=0.0))
        sending = [asyncio.ensure_future(send(relay, number)) for number in range(10)]
        await server.reached("dot", 10)
        await server.stop()
        await asyncio.wait(sending, timeout=10)
        with pytest.raises(Snooze):
            await send(relay)
        await relay.close()

    assert all(isinstance(task.exception(), TaskError) for task in sending)
    assert relay._pool._slots_max == 10


async def test_pool_does_not_wait_for_a_slot_for_ever() -> None:
    gate = asyncio.Event()
    async with scripted({"dot": Hold(gate, "250 ok")}) as server:
        relay = relay_of(server, connections_max=1, slot_wait_s=0.05)
        async with asyncio.TaskGroup() as group:
            group.create_task(send(relay, 1))
            await server.reached("dot")
            with pytest.raises(Snooze, match="busy"):
                await send(relay, 2)
            gate.set()
        await relay.close()

    assert len(server.mails) == 1


async def test_those_who_wait_for_a_slot_turn_back_when_the_relay_fails() -> None:
    gate = asyncio.Event()
    async with scripted({"mail": Hold(gate, "421 4.3.2 shutting down")}) as server:
        relay = relay_of(server, connections_max=1)
        sending = [asyncio.ensure_future(send(relay, number)) for number in range(50)]
        await server.reached("mail")
        gate.set()
        await asyncio.wait(sending, timeout=10)
        await relay.close()

    assert all(isinstance(task.exception(), Snooze) for task in sending)
    assert server.counts["mail"] == 1


async def test_a_cancelled_connect_leaves_nothing_open() -> None:
    gate = asyncio.Event()
    async with scripted({"banner": Hold(gate, "220 late")}) as server:
        relay = relay_of(server)
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(send(relay))
            await server.reached("banner")
            sending.cancel()
        gate.set()
        await server.settled()
        assert relay._pool.connections == 0
        await relay.close()


async def test_pool_waits_for_quit_but_not_for_ever() -> None:
    async with scripted({"quit": Hang()}) as server:
        relay = relay_of(server, quit_s=0.05)
        await send_all(relay, 5)
        async with asyncio.timeout(5):
            await relay.close()
        await server.settled()

    assert relay._pool.connections == 0


async def test_a_connection_in_use_closes_when_it_comes_back_after_close() -> None:
    gate = asyncio.Event()
    async with scripted({"dot": Hold(gate, "250 ok")}) as server:
        relay = relay_of(server)
        async with asyncio.TaskGroup() as group:
            group.create_task(send(relay))
            await server.reached("dot")
            await relay.close()
            gate.set()
        await server.settled()

    assert len(server.mails) == 1
    assert server.counts["quit"] == 1


@pytest.mark.parametrize("extensions", [("PIPELINING",), ()], ids=["pipelined", "one-by-one"])
@pytest.mark.parametrize(("seed", "served_max"), [(0, 3), (1, 3), (2, 3), (3, 2), (4, 1)])
async def test_pool_never_leaks_under_random_cancels(seed: int, served_max: int, extensions: tuple[str, ...]) -> None:
    chance = random.Random(seed)
    script: Mapping[str, Action | list[Action]] = {
        "rcpt": ["250 ok"] * 40 + ["550 5.1.1 nobody"] + ["250 ok"] * 40 + [Drop()] + ["250 ok"]
    }
    async with scripted(script, extensions=extensions, served_max=served_max) as server:
        relay = relay_of(server, connections_max=3, messages_max=7)
        pool = relay._pool
        most = 0
        done = {"sent": 0, "cancelled": 0, "failed": 0}

        async def one(number: int) -> None:
            nonlocal most
            try:
                await send(relay, number)
                done["sent"] += 1
            except asyncio.CancelledError:
                done["cancelled"] += 1
                raise
            except (Snooze, TaskError):
                done["failed"] += 1
            finally:
                most = max(most, pool.connections)

        running: list[asyncio.Task[None]] = []
        for number in range(400):
            running.append(asyncio.ensure_future(one(number)))
            for _ in range(chance.randrange(12)):
                await asyncio.sleep(0)
            if chance.random() < 0.5:
                chance.choice(running[-8:]).cancel()
        await asyncio.wait(running, timeout=30)

        assert all(task.done() for task in running)
        assert done["sent"] > (50 if served_max == 3 else 0)  # a cut connection may still count at the relay
        assert most <= 3
        assert pool._slots_used == 0
        assert not pool._waiters
        assert pool._leased == set()
        await relay.close()
        await server.settled()
        assert pool.connections == 0

    # No mail went to another mail's recipient, and none arrived more often than it was sent.
    assert len(server.mails) >= done["sent"]
    assert len({mail.recipient for mail in server.mails}) == len(server.mails)
