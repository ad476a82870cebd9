"""Whatever a handler does becomes a value."""

import asyncio
import json
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rig import kind

from taskq.context import Context
from taskq.errors import InvalidPayload, Snooze, TaskError
from taskq.facts import Privacy
from taskq.kinds.registry import Registry
from taskq.task import Change, Done, Expired, Failed, Outcome, Released, Run, Snoozed, Status
from taskq.worker import Execution, Worker

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def a_run(payload: str = "{}", name: str = "work") -> Run:
    return Run(7, 1, 9, name, 2, 3, NOW, payload)


async def outcome_of(raised: BaseException | None = None, payload: str = "{}") -> Outcome:
    async def work(_payload: dict[str, int]) -> None:
        if raised is not None:
            raise raised

    registry = Registry()
    registry.add(kind("work", work))
    worker = Worker(registry, uuid.uuid4())
    run = a_run(payload)
    return await worker.run(run, worker.kind(run), worker.context(run))


async def test_worker_reports_done_when_the_handler_returns():
    assert await outcome_of() == Done()


async def test_worker_hands_payload_and_context_to_the_handler():
    seen: list[Any] = []

    async def work(payload: dict[str, int], context: Context) -> None:
        seen.extend((payload, context.task_id, context.attempt))

    registry = Registry()
    registry.add(kind("work", work))
    worker = Worker(registry, uuid.uuid4())
    run = a_run('{"n": 5}')

    await worker.run(run, worker.kind(run), worker.context(run))

    assert seen == [{"n": 5}, 7, 2]


async def test_worker_fails_a_kind_that_it_does_not_know():
    worker = Worker(Registry(), uuid.uuid4())
    run = a_run(name="other")

    outcome = await worker.run(run, worker.kind(run), worker.context(run))

    assert outcome == Failed("the kind other is unknown to this process: import the module that declares it")


@pytest.mark.parametrize(
    "payload",
    ["null", "[]", '{"n": "five"}', '{"n": 1e999}', '{"n": ' + "9" * 5_000 + "}", '{"n":' * 7_000 + "1" + "}" * 7_000],
    ids=["null", "list", "text", "infinite", "huge", "deep"],
)
async def test_worker_fails_a_payload_for_good_when_it_does_not_fit(payload: str):
    outcome = await outcome_of(payload=payload)

    assert isinstance(outcome, Failed)
    assert (outcome.retryable, outcome.reason) == (False, "invalid_payload")
    assert outcome.error.startswith("the payload does not fit the kind work: ")


@pytest.mark.parametrize(
    ("raised", "outcome"),
    [
        (TaskError("no"), Failed("no")),
        (
            TaskError("no", retryable=False, reason="bounced", retry_after_s=4),
            Failed("no", retryable=False, reason="bounced", retry_after_s=4),
        ),
        (Snooze("busy", delay_s=5), Snoozed("busy", 5)),
        (
            InvalidPayload("odd"),
            Failed("the payload does not fit the kind work: odd", retryable=False, reason="invalid_payload"),
        ),
    ],
    ids=["retryable", "permanent", "snooze", "invalid"],
)
async def test_worker_understands_what_a_handler_raises_on_purpose(raised: Exception, outcome: Outcome):
    assert await outcome_of(raised) == outcome


@pytest.mark.parametrize(
    "raised",
    [ValueError("bang"), TimeoutError("slow"), RecursionError("deep"), ExceptionGroup("many", [ValueError("one")])],
    ids=lambda raised: type(raised).__name__,
)
async def test_worker_reports_a_crash_with_its_place_and_lets_it_be_retried(raised: Exception):
    outcome = await outcome_of(raised)

    assert isinstance(outcome, Failed)
    assert outcome.retryable
    assert outcome.error.startswith(f"{type(raised).__name__}: {raised} (at test_worker.py:")


async def test_worker_lets_a_cancellation_pass():
    async def work(_payload: dict[str, Any]) -> None:
        await asyncio.Event().wait()

    registry = Registry()
    registry.add(kind("work", work))
    worker = Worker(registry, uuid.uuid4())
    run = a_run()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(worker.run(run, worker.kind(run), worker.context(run)))
        await asyncio.sleep(0)
        task.cancel()

    assert task.cancelled()


async def test_worker_takes_a_cancellation_that_nobody_asked_for_as_a_crash():
    """As when a handler awaits a future that a library has cancelled."""
    outcome = await outcome_of(asyncio.CancelledError())

    assert isinstance(outcome, Failed)
    assert outcome.retryable
    assert outcome.error.startswith("CancelledError")


@pytest.mark.parametrize(("left_s", "outcome"), [(-1, Expired()), (60, Done())], ids=["late", "in time"])
async def test_worker_calls_no_handler_for_a_task_that_has_lost_its_use(left_s: float, outcome: Outcome):
    called: list[int] = []

    async def work(_payload: dict[str, int], context: Context) -> None:
        called.append(context.task_id)

    registry = Registry()
    registry.add(kind("work", work))
    worker = Worker(registry, uuid.uuid4())
    run = a_run()
    run.expires_at = datetime.now(UTC) + timedelta(seconds=left_s)

    assert await worker.run(run, worker.kind(run), worker.context(run)) == outcome
    assert bool(called) == (outcome == Done())


# -- what is kept of a run


FACTS = {"relay": "smtp://relay", "text": "550 <ada@example.com> unknown"}


def change_of(
    outcome: Outcome, *, privacy: Privacy | None = None, sealed: bool = False, sensitive: bool = False
) -> Change:
    async def work(_payload: dict[str, Any]) -> None:
        """Do nothing."""

    run = a_run()
    run.sensitive = sensitive
    context = Context(run, uuid.uuid4())
    context.note(FACTS)
    context.sealed = sealed
    return Execution(run, replace(kind("work", work), privacy=privacy), context, 0.0).change(outcome)


def test_change_holds_what_the_handler_noted():
    assert json.loads(change_of(Done()).detail or "") == FACTS
    assert json.loads(change_of(Failed("no")).detail or "") == FACTS


def test_change_of_a_run_that_is_handed_back_holds_nothing():
    assert change_of(Released()).detail is None


def test_change_of_a_private_kind_holds_no_address():
    change = change_of(Failed("550 <ada@example.com> unknown"), privacy=Privacy(("to",), 7))

    assert (change.error, json.loads(change.detail or "")["text"]) == ("550 <a***@example.com> unknown",) * 2
    assert change_of(Failed("no git@example.com")).error == "no git@example.com"


@pytest.mark.parametrize(
    ("outcome", "content_days", "sensitive", "keeps"),
    [
        (Done(), 7.0, False, None),
        (Done(), 0.0, False, '["to"]'),
        (Done(), 7.0, True, '["to"]'),
        (Failed("no", retryable=False), 0.0, False, '["to"]'),
        (Failed("not yet"), 0.0, True, None),
        (Snoozed("down", 5), 0.0, True, None),
        (Released(), 0.0, True, None),
    ],
)
def test_change_erases_the_content_of_what_is_final(
    outcome: Outcome, content_days: float, *, sensitive: bool, keeps: str | None
):
    assert change_of(outcome, privacy=Privacy(("to",), content_days), sensitive=sensitive).keeps == keeps


def test_sensitive_task_of_a_kind_without_privacy_is_left_whole():
    assert change_of(Done(), sensitive=True).keeps is None


def test_unexpected_exception_in_a_sealed_run_is_final():
    outcome = Failed("ConnectionResetError: lost", reason="outcome_unknown")

    assert change_of(outcome).status is Status.PENDING
    assert (change_of(outcome, sealed=True).status, change_of(outcome, sealed=True).reason) == (
        Status.FAILED,
        "outcome_unknown",
    )


def test_outcome_that_is_not_known_is_told(caplog: pytest.LogCaptureFixture):
    context = Context(a_run(), uuid.uuid4())
    execution = Execution(a_run(), None, context, 0.0)
    known = execution.outcome_unknown(execution.change(Failed("no")))
    context.note({"ambiguous": True})

    unknown = execution.outcome_unknown(execution.change(Failed("ambiguous")))

    assert (known, unknown) == (False, True)
    assert [record.__dict__["task_id"] for record in caplog.records] == [7]


async def test_log_of_a_handler_that_raised_holds_no_address(caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")

    await outcome_of(ValueError("no mailbox ada@example.com"))

    assert [record.__dict__["error"] for record in caplog.records] == ["ValueError('no mailbox a***@example.com')"]
