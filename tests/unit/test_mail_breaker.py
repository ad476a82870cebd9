from hypothesis import given
from hypothesis import strategies as st

from taskq.mail.breaker import Breaker, Ticket


def entered(breaker: Breaker, now: float) -> Ticket:
    ticket = breaker.enter(now)
    assert ticket is not None
    return ticket


def test_breaker_lets_everybody_in_while_closed() -> None:
    breaker = Breaker()

    assert all(breaker.enter(0.0) for _ in range(100))
    assert breaker.wait_s(0.0) == 0.0
    assert not breaker.open


def test_breaker_opens_for_twice_as_long_after_each_failure_up_to_its_cap() -> None:
    breaker = Breaker(floor_s=1.0, cap_s=60.0)
    now, spans = 0.0, []

    for _ in range(8):
        now += breaker.wait_s(now)
        spans.append(breaker.fail(entered(breaker, now), now))

    assert spans == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


def test_breaker_admits_one_probe_when_its_time_has_passed() -> None:
    breaker = Breaker()
    breaker.fail(entered(breaker, 0.0), 0.0)

    assert breaker.enter(0.999) is None
    assert breaker.wait_s(0.25) == 0.75
    probe = entered(breaker, 1.0)
    assert breaker.enter(1.0) is None
    assert breaker.wait_s(1.0) == 5.0

    assert breaker.succeed(probe) is True
    assert breaker.enter(1.0) is not None
    assert breaker.fail(entered(breaker, 2.0), 2.0) == 1.0


def test_breaker_counts_those_who_fail_together_once() -> None:
    breaker = Breaker()
    tickets = [entered(breaker, 0.0) for _ in range(10)]

    spans = [breaker.fail(ticket, 0.0) for ticket in tickets]

    assert spans == [1.0] + [None] * 9


def test_breaker_ignores_a_success_from_before_it_opened() -> None:
    breaker = Breaker()
    early = entered(breaker, 0.0)
    breaker.fail(entered(breaker, 0.0), 0.0)

    assert breaker.succeed(early) is False
    assert breaker.open


def test_breaker_stays_open_as_long_as_the_failure_asks() -> None:
    breaker = Breaker()

    assert breaker.fail(entered(breaker, 0.0), 0.0, pause_s=300.0) == 300.0
    assert breaker.wait_s(100.0) == 200.0


def test_breaker_gives_the_place_of_an_abandoned_probe_to_the_next() -> None:
    breaker = Breaker()
    breaker.fail(entered(breaker, 0.0), 0.0)
    probe = entered(breaker, 1.0)

    breaker.abandon(probe)

    assert breaker.wait_s(1.0) == 0.0
    assert breaker.enter(1.0) is not None


def test_breaker_keeps_its_probe_when_an_older_try_is_abandoned() -> None:
    breaker = Breaker()
    early = entered(breaker, 0.0)
    breaker.fail(entered(breaker, 0.0), 0.0)
    entered(breaker, 1.0)

    breaker.abandon(early)

    assert breaker.enter(1.0) is None


@given(st.lists(st.tuples(st.sampled_from(["enter", "fail", "succeed", "abandon"]), st.floats(0, 30)), max_size=60))
def test_breaker_never_has_two_probes_and_never_stays_shut(steps: list[tuple[str, float]]) -> None:
    breaker, now, tickets = Breaker(), 0.0, []
    probes = 0

    for step, passed in steps:
        now += passed
        if step == "enter":
            was_open = breaker.open
            ticket = breaker.enter(now)
            if ticket:
                tickets.append((ticket, was_open))
                probes += was_open
            assert probes <= 1
        elif tickets:
            ticket, probe = tickets.pop()
            if step == "fail":
                breaker.fail(ticket, now)
            elif step == "succeed":
                breaker.succeed(ticket)
            else:
                breaker.abandon(ticket)
            probes -= probe

    for ticket, _ in tickets:
        breaker.abandon(ticket)
    assert breaker.enter(now + 61.0) is not None
