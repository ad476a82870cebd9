"""What is written down about a try, before it and after it, and what the relay is asked to report."""

import asyncio
import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from smtp_script import Action, Drop, Hold, envelope, outcome, relay_of, scripted

from taskq.errors import Snooze, StoreUnavailable

Notes = list[Mapping[str, object]]


async def test_a_try_is_written_down_with_all_that_is_known() -> None:
    notes: Notes = []
    before = datetime.now(UTC)
    async with scripted() as server:
        relay = relay_of(server)
        mail = replace(envelope(), note=notes.append)
        for _ in range(2):
            await relay.send(mail, nullcontext)
        await relay.close()

    first, second = json.loads(json.dumps(notes))  # what the store can keep
    assert first | {"connection": 0, "ms": {}, "started_at": "", "ended_at": ""} == {
        "relay": "127.0.0.1", "connection": 0, "connection_mails": 1, "peer": f"127.0.0.1:{server.port}",
        "tls": None, "cipher": None, "bytes": len(mail.message), "started_at": "", "ended_at": "", "ms": {},
        "phase": "dot", "ruling": "accepted", "scope": None, "code": 250, "enhanced": "2.0.0",
        "text": "2.0.0 Ok: queued as SCRIPT1", "remote_id": "SCRIPT1", "ambiguous": False,
    }  # fmt: skip
    started_at, ended_at = (datetime.fromisoformat(first[name]) for name in ("started_at", "ended_at"))
    assert before <= ended_at <= datetime.now(UTC)
    assert sum(first["ms"].values()) == pytest.approx((ended_at - started_at).total_seconds() * 1_000, abs=5)
    assert first["ms"].keys() == {"connect", "envelope", "data"}
    assert second["ms"].keys() == {"envelope", "data"}
    assert (second["connection"], second["connection_mails"]) == (first["connection"], 2)
    assert "ada@" not in json.dumps(notes)


async def test_a_stale_connection_is_a_try_of_its_own() -> None:
    notes: Notes = []
    async with scripted({"mail": ["250 ok", "421 4.3.0 enough", "250 ok"]}) as server:
        relay = relay_of(server)
        await outcome(relay)
        assert await outcome(relay, replace(envelope(), note=notes.append)) is None
        await relay.close()

    assert [note["ruling"] for note in notes] == ["stale", "accepted"]
    assert notes[0]["connection"] != notes[1]["connection"]
    assert (notes[0]["code"], notes[0]["enhanced"]) == (421, "4.3.0")


@pytest.mark.parametrize(("phase", "ambiguous"), [("rcpt", False), ("dot", True)])
async def test_a_try_that_is_cut_short_is_written_down(phase: str, *, ambiguous: bool) -> None:
    notes: Notes = []
    async with scripted({phase: Hold(asyncio.Event(), "")}, extensions=()) as server:
        relay = relay_of(server)
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(relay.send(replace(envelope(), note=notes.append), nullcontext))
            await server.reached(phase)
            sending.cancel()
        await relay.close()

    (note,) = notes
    assert (note["phase"], note["ambiguous"], note["code"]) == (phase, ambiguous, None)


@pytest.mark.parametrize("extensions", [("PIPELINING",), ()], ids=["pipelined", "one by one"])
async def test_a_mail_is_sealed_after_354_and_before_its_content(extensions: tuple[str, ...]) -> None:
    seen: list[dict[str, int]] = []
    async with scripted(extensions=extensions) as server:
        relay = relay_of(server)

        async def seal() -> None:
            seen.append({phase: server.counts[phase] for phase in ("data", "dot")})

        assert await outcome(relay, replace(envelope(), seal=seal)) is None
        await relay.close()

    assert seen == [{"data": 1, "dot": 0}]
    assert len(server.mails) == 1


@pytest.mark.parametrize("phase", ["mail", "rcpt", "data"])
async def test_a_mail_that_is_refused_before_354_is_not_sealed(phase: str) -> None:
    async def seal() -> None:
        raise AssertionError("sealed")

    async with scripted({phase: "450 4.2.0 later"}) as server:
        relay = relay_of(server)
        assert await outcome(relay, replace(envelope(), seal=seal)) is not None
        await relay.close()


async def test_a_mail_that_cannot_be_sealed_is_not_sent_and_its_connection_is_not_used_again() -> None:
    notes: Notes = []

    async def seal() -> None:
        raise StoreUnavailable("the connection broke")

    async with scripted() as server:
        relay = relay_of(server)
        error = await outcome(relay, replace(envelope(), seal=seal, note=notes.append))
        assert await outcome(relay) is None
        assert not relay._breaker.open
        await relay.close()

    assert isinstance(error, Snooze)
    assert "the connection broke" in str(error)
    assert server.connections_total == 2
    assert len(server.mails) == 1
    assert (notes[0]["phase"], notes[0]["ambiguous"]) == ("data", False)


async def commands(recipient: str, envid: str, *extensions: str) -> list[str]:
    """What was said of sender and recipient."""
    async with scripted(extensions=extensions) as server:
        relay = relay_of(server)
        assert await outcome(relay, replace(envelope(recipient=recipient), envid=envid)) is None
        await relay.close()
    return [command for command in server.commands if command.startswith(("MAIL", "RCPT"))]


async def test_a_relay_that_reports_is_asked_to_by_the_name_of_the_mail() -> None:
    assert await commands("a+b=c@ok.test", "id=7+1", "DSN") == [
        "MAIL FROM:<taskq@example.com> RET=HDRS ENVID=id+3D7+2B1",
        "RCPT TO:<a+b=c@ok.test> NOTIFY=FAILURE,DELAY ORCPT=rfc822;a+2Bb+3Dc@ok.test",
    ]


async def test_a_report_names_an_international_recipient() -> None:
    assert await commands("grüße@ok.test", "7", "DSN", "SMTPUTF8", "8BITMIME") == [
        "MAIL FROM:<taskq@example.com> BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=7",
        r"RCPT TO:<grüße@ok.test> NOTIFY=FAILURE,DELAY ORCPT=utf-8;gr\x{FC}\x{DF}e@ok.test",
    ]


@pytest.mark.parametrize(("envid", "extensions"), [("", ("DSN",)), ("7", ())], ids=["no name", "not offered"])
async def test_no_report_is_asked_for_without_a_name_or_an_offer(envid: str, extensions: tuple[str, ...]) -> None:
    assert await commands("ada@ok.test", envid, *extensions) == [
        "MAIL FROM:<taskq@example.com>",
        "RCPT TO:<ada@ok.test>",
    ]


async def test_a_relay_that_throttles_gets_mails_at_half_the_rate_and_the_others_go_on() -> None:
    script: dict[str, Action | list[Action]] = {"mail": ["250 ok", "454 4.7.0 Maximum sending rate exceeded", "250 ok"]}
    async with scripted(script) as server:
        relay = relay_of(server)
        outcomes = [await outcome(relay) for _ in range(3)]
        await relay.close()

    assert [error is None for error in outcomes] == [True, False, True]
    assert isinstance(outcomes[1], Snooze)
    assert 30.0 <= outcomes[1].delay_s <= 45.0
    assert relay._rate.per_s == 5.0


@pytest.mark.parametrize(
    ("text", "least"), [("try again in 90 seconds", 100.0), ("too many mails, wait 5 minutes", 310.0)]
)
async def test_a_delay_that_the_reply_names_is_kept_by_all(text: str, least: float) -> None:
    async with scripted({"mail": f"450 4.7.1 {text}"}) as server:
        relay = relay_of(server)
        errors = [await outcome(relay) for _ in range(5)]
        await relay.close()

    assert all(isinstance(error, Snooze) and error.delay_s >= least - 1 for error in errors)
    assert server.counts["mail"] == 1


async def test_a_mail_whose_turn_is_far_comes_back_for_it_and_holds_nothing() -> None:
    async with scripted() as server:
        relay = relay_of(server)
        relay._rate.per_s = relay._rate._limit_per_s = relay._rate._full_per_s = 0.1
        outcomes = [await outcome(relay) for _ in range(4)]
        assert relay._pool._slots_used == 0
        await relay.close()

    delays = [error.delay_s for error in outcomes if isinstance(error, Snooze)]
    assert delays == [pytest.approx(20, abs=1), pytest.approx(30, abs=1), pytest.approx(40, abs=1)]
    assert len(server.mails) == 1


async def test_a_relay_that_ends_connections_after_100_mails_is_no_visible_failure() -> None:
    replies: list[Action] = ([*["250 ok"] * 100, Drop("421 4.7.0 Maximum message count per session reached")]) * 3
    async with scripted({"mail": replies}) as server:
        relay = relay_of(server, connections_max=1, messages_max=1_000)
        outcomes = [await outcome(relay) for _ in range(250)]
        await relay.close()

    assert outcomes == [None] * 250
    assert server.connections_total == 3
