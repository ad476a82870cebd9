import heapq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.mail.rate import HORIZON_S, PATIENCE_S, Rate


def sent_by(rate: Rate, mails: int, until: float) -> list[float]:
    """When each of so many mails goes, all of them there at 0 and coming back when told to."""
    waiting, sent = [0.0] * mails, []
    while waiting:
        now = heapq.heappop(waiting)
        if now > until:
            break
        wait_s = rate.take(now)
        if wait_s > PATIENCE_S:
            heapq.heappush(waiting, now + wait_s)
        else:
            sent.append(now + wait_s)
    return sorted(sent)


def test_without_a_limit_nobody_waits() -> None:
    rate = Rate()

    assert {rate.take(number / 1_000) for number in range(10_000)} == {0.0}
    assert rate.per_s is None


@pytest.mark.parametrize("per_s", [0.5, 2.0, 14.0, 100.0])
def test_mails_go_evenly_and_none_is_forgotten(per_s: float) -> None:
    mails = int(per_s * 100)

    sent = sent_by(Rate(per_s), mails, 150.0)

    assert len(sent) == mails
    assert sent[-1] < 115.0
    for start in range(100):
        assert sum(start <= at < start + 1 for at in sent) <= per_s + 1


def test_those_who_must_come_back_come_one_after_the_other() -> None:
    rate = Rate(2.0)

    waits = [rate.take(0.0) for _ in range(100)]

    assert waits[:3] == [0.0, 0.5, 1.0]
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(50.0)


def test_nobody_is_told_to_come_back_later_than_the_horizon() -> None:
    rate = Rate(0.1)

    assert max(rate.take(0.0) for _ in range(1_000)) <= HORIZON_S


def test_a_refusal_halves_the_rate_and_those_that_come_with_it_are_the_same() -> None:
    rate = Rate(16.0)

    assert [rate.slow_down(0.0), rate.slow_down(0.3), rate.slow_down(1.5)] == [True, False, True]
    assert rate.per_s == 4.0


def test_a_halved_rate_recovers_slowly_and_never_beyond_its_limit() -> None:
    rate = Rate(16.0)
    rate.slow_down(0.0)

    seen = []
    for now in range(0, 200, 5):
        rate.take(float(now))
        seen.append(rate.per_s)

    assert seen[1] == 8.0  # not before ten seconds
    assert seen[2] == pytest.approx(8.8)
    assert seen == sorted(seen, key=float)
    assert seen[-1] == 16.0


def test_without_a_limit_the_rate_just_seen_is_halved_and_forgotten_once_it_is_reached_again() -> None:
    rate = Rate()
    for number in range(200):
        rate.take(number / 100)

    rate.slow_down(2.0)
    assert rate.per_s == pytest.approx(50.0, rel=0.1)
    assert rate.take(50.0) == 0.0
    assert rate.per_s is not None
    rate.take(102.1)
    assert rate.per_s is None


def test_a_slow_hour_does_not_make_the_rate_slow() -> None:
    rate = Rate()
    rate.take(0.0)

    rate.slow_down(3_600.0)

    assert rate.per_s == 5.0


def test_a_limit_that_nobody_set_keeps_nobody_longer_than_it_may_last() -> None:
    rate = Rate()
    rate.slow_down(0.0)

    assert 90.0 < max(rate.take(0.0) for _ in range(1_000)) <= 100.0


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 30)), max_size=200), st.sampled_from([None, 0.01, 1.0, 1e6]))
def test_whatever_happens_the_rate_stays_within_its_bounds(
    steps: list[tuple[bool, float]], limit: float | None
) -> None:
    rate, now = Rate(limit), 0.0
    for refused, passed in steps:
        now += passed
        if refused:
            rate.slow_down(now)
        assert 0.0 <= rate.take(now) <= HORIZON_S
        assert rate.per_s is None or 0.0 < rate.per_s <= (limit or 1e6)
    rate.take(now + 1e4)
    assert rate.per_s == limit
