"""The pure rules: what an outcome makes of its task."""

import math
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.context import Context
from taskq.errors import Snooze
from taskq.task import (
    DELAY_S_MAX,
    ERROR_CHARS_MAX,
    Blob,
    Cancelled,
    Change,
    Done,
    Expired,
    Failed,
    Outcome,
    Released,
    RetryPolicy,
    Run,
    Snoozed,
    Status,
    of_sealed,
    settle,
)

POLICY = RetryPolicy(base_s=10, cap_s=100, floor_s=1)
NOW = datetime(2026, 1, 1, tzinfo=UTC)

texts = st.text(alphabet=st.characters(exclude_categories=()), max_size=50)
seconds = st.floats(allow_nan=True, allow_infinity=True)
outcomes: st.SearchStrategy[Outcome] = st.one_of(
    st.just(Done()),
    st.just(Released()),
    st.just(Expired()),
    st.builds(Failed, texts, st.booleans(), texts, st.none() | seconds),
    st.builds(Snoozed, texts, seconds),
)
draws = st.floats(0, 1, exclude_max=True)


def a_run(attempt: int = 1, max_attempts: int = 3) -> Run:
    return Run(7, 5, 9, "work", attempt, max_attempts, NOW, "{}")


@given(outcomes, st.integers(1, 100), st.integers(1, 100), draws)
def test_settle_guards_by_the_run_it_was_given(outcome: Outcome, attempt: int, max_attempts: int, draw: float):
    change = settle(a_run(attempt, max_attempts), outcome, POLICY, draw)

    assert (change.id, change.run, change.owner) == (7, 5, 9)


@given(outcomes, st.integers(1, 100), st.integers(1, 100), draws)
def test_settle_gives_a_delay_exactly_to_what_stays_pending(
    outcome: Outcome, attempt: int, max_attempts: int, draw: float
):
    change = settle(a_run(attempt, max_attempts), outcome, POLICY, draw)

    assert change.status in (Status.PENDING, Status.OK, Status.FAILED)
    assert (change.delay_s is not None) == (change.status is Status.PENDING)
    assert (change.reason is not None) == (change.status is Status.FAILED)


@given(outcomes, st.floats(-100, 1e9), draws)
def test_settle_lets_nothing_wait_beyond_its_expiry(outcome: Outcome, left_s: float, draw: float):
    run = a_run()
    run.expires_at = expires_at = datetime.now(UTC) + timedelta(seconds=left_s)

    change, without = settle(run, outcome, POLICY, draw), settle(a_run(), outcome, POLICY, draw)

    if change.delay_s:
        assert datetime.now(UTC) - timedelta(minutes=5) + timedelta(seconds=change.delay_s) < expires_at
    if change.status is not without.status:
        assert (change.status, change.reason, change.delay_s) == (Status.FAILED, "expired", None)
        assert (change.error, change.attempt_back) == (without.error, without.attempt_back)


def test_settle_counts_no_attempt_for_a_run_that_came_too_late():
    change = settle(a_run(), Expired(), POLICY)

    assert (change.status, change.reason, change.error) == (Status.FAILED, "expired", None)
    assert change.attempt_back == 1


@given(outcomes, draws)
def test_settle_writes_only_what_postgresql_can_store(outcome: Outcome, draw: float):
    change = settle(a_run(), outcome, POLICY, draw)

    for text in (change.error, change.reason):
        assert text is None or "\0" not in text
        assert text is None or text.encode().decode() == text
    assert change.delay_s is None or (math.isfinite(change.delay_s) and 0 <= change.delay_s <= DELAY_S_MAX)


@given(st.integers(1, 100), st.integers(1, 100), draws)
def test_settle_never_runs_a_task_more_often_than_allowed(attempt: int, max_attempts: int, draw: float):
    change = settle(a_run(attempt, max_attempts), Failed("no"), POLICY, draw)

    assert (change.status is Status.PENDING) == (attempt < max_attempts)


def test_settle_finishes_when_the_handler_is_done():
    assert settle(a_run(), Done(), POLICY) == Change(7, 5, 9, Status.OK)


def test_settle_retries_by_the_policy_when_attempts_are_left():
    change = settle(a_run(attempt=2), Failed("no"), POLICY, 0.5)

    assert change == Change(7, 5, 9, Status.PENDING, 10.0, "no")


def test_settle_retries_when_the_other_side_said():
    change = settle(a_run(), Failed("no", retry_after_s=33.0), POLICY, 0.5)

    assert change.delay_s == 33.0


def test_settle_draws_its_own_jitter_when_none_is_given():
    delays = {settle(a_run(), Failed("no"), POLICY).delay_s for _ in range(20)}

    assert len(delays) > 1


@pytest.mark.parametrize(
    ("outcome", "attempt", "reason"),
    [
        (Failed("no", retryable=False), 1, "permanent"),
        (Failed("no", retryable=False, reason="invalid_payload"), 1, "invalid_payload"),
        (Failed("no"), 3, "attempts_exhausted"),
        (Failed("no", retry_after_s=5.0), 3, "attempts_exhausted"),
    ],
)
def test_settle_fails_with_a_reason_when_it_is_final(outcome: Failed, attempt: int, reason: str):
    change = settle(a_run(attempt), outcome, POLICY)

    assert change == Change(7, 5, 9, Status.FAILED, None, "no", reason)


@pytest.mark.parametrize(("outcome", "delay_s"), [(Snoozed("busy", 4.0), 4.0), (Released(), 0.0)])
def test_settle_gives_the_attempt_back_when_the_task_is_not_to_blame(outcome: Outcome, delay_s: float):
    change = settle(a_run(attempt=3), outcome, POLICY)

    assert (change.status, change.delay_s, change.attempt_back) == (Status.PENDING, delay_s, 1)


@pytest.mark.parametrize("outcome", [Failed("x" * 9_999), Snoozed("x" * 9_999, 1.0)])
def test_settle_shortens_an_error_that_is_too_long(outcome: Outcome):
    change = settle(a_run(), outcome, POLICY)

    assert change.error is not None
    assert len(change.error) == ERROR_CHARS_MAX


@given(st.integers(1, 10_000), draws)
def test_delay_stays_between_floor_and_cap(attempt: int, draw: float):
    assert POLICY.floor_s <= POLICY.delay_s(attempt, draw) <= POLICY.cap_s


@pytest.mark.parametrize(("attempt", "span_s"), [(1, 10), (2, 20), (3, 40), (4, 80), (5, 100), (99, 100)])
def test_delay_span_doubles_up_to_the_cap(attempt: int, span_s: float):
    assert POLICY.delay_s(attempt, 0.5) == span_s / 2


@pytest.mark.parametrize(
    ("status", "label"),
    [
        (Status.PENDING, "pending"),
        (Status.IN_PROGRESS, "in-progress"),
        (Status.OK, "Ok"),
        (Status.FAILED, "failed"),
        (Status.CANCELLED, "cancelled"),
    ],
)
def test_status_is_called_as_the_contract_says(status: Status, label: str):
    assert status.label == label


def test_uninterruptible_counts_nested_spans_also_when_they_raise():
    context = Context(a_run(), uuid.uuid4())

    with context.uninterruptible():
        with pytest.raises(ValueError, match="inner"), context.uninterruptible():
            raise ValueError("inner")
        assert not context.interruptible

    assert context.interruptible


def test_context_names_the_task_equally_on_every_attempt():
    installation = uuid.uuid4()

    first, second = Context(a_run(attempt=1), installation), Context(a_run(attempt=2), installation)

    assert first.uid == second.uid
    assert (second.task_id, second.attempt, second.max_attempts, second.created_at) == (7, 2, 3, NOW)


def test_context_names_the_task_differently_in_another_installation():
    assert Context(a_run(), uuid.uuid4()).uid != Context(a_run(), uuid.uuid4()).uid


async def test_context_reads_what_stands_beside_the_task_by_its_digest():
    kept = {blob.digest: blob.content for blob in (Blob(b"a"), Blob(b""))}

    async def read(digest: str) -> bytes:
        return kept[digest]

    context = Context(a_run(), uuid.uuid4(), None, read)

    assert len(kept) == 2
    assert [await context.blob(Blob(content).digest) for content in (b"a", b"")] == [b"a", b""]
    with pytest.raises(LookupError, match="no store"):
        await Context(a_run(), uuid.uuid4()).blob(Blob(b"a").digest)


UNKNOWN = Failed("?", retryable=False, reason="outcome_unknown")


@pytest.mark.parametrize(
    ("outcome", "meant"),
    [
        (Done(), Done()),
        (Failed("450 later", retry_after_s=5), Failed("450 later", retry_after_s=5)),
        (Failed("550 no", retryable=False), Failed("550 no", retryable=False)),
        (Snoozed("down", 5), Snoozed("down", 5)),
        (Cancelled(), Failed("it was called off after the content may have left", False, "outcome_unknown")),
        (Failed("?", reason="outcome_unknown", retry_after_s=300), UNKNOWN),
    ],
)
def test_sealed_run_is_repeated_only_when_nothing_happened(outcome: Outcome, meant: Outcome):
    assert of_sealed(outcome) == meant


def test_sealed_run_that_a_stop_cuts_off_is_failed():
    change = settle(a_run(attempt=1), of_sealed(Released()), POLICY)

    assert (change.status, change.reason, change.attempt_back) == (Status.FAILED, "outcome_unknown", 0)


async def test_context_is_sealed_once_it_is_stored():
    stored: list[Run] = []

    async def seal(run: Run) -> None:
        stored.append(run)

    context = Context(a_run(), uuid.uuid4(), seal)
    before = context.sealed
    await context.seal()
    await context.seal()

    assert (before, context.sealed, stored) == (False, True, [a_run()])


async def test_context_is_not_sealed_when_it_could_not_be_stored():
    async def seal(_run: Run) -> None:
        raise Snooze("away", delay_s=1)

    context = Context(a_run(), uuid.uuid4(), seal)

    with pytest.raises(Snooze):
        await context.seal()
    assert not context.sealed
