"""Addresses with bad days: what docs/inbox.md says of them is what the task meets."""

import re
from collections.abc import Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from taskq.errors import Snooze, TaskError
from taskq.mail import simulator
from taskq.mail.classify import Event, Phase
from taskq.mail.envelope import Envelope, Receipt
from taskq.mail.inbox import Inbox
from taskq.mail.simulator import ACTS, act_for
from taskq.mailstore import CapturedMail

MAIL = b"Subject: Hi\r\n\r\ntext\r\n"
PAGE = (Path(__file__).parents[2] / "docs" / "inbox.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\w+)@` \| (\w+) \| `([^`]+)` \| (.+) \|$", PAGE, re.MULTILINE)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow one takes no time."""
    fast = {name: act if not act.delay_s else type(act)(**fields(act) | {"delay_s": 0.0}) for name, act in ACTS.items()}
    monkeypatch.setattr(simulator, "ACTS", fast)


def fields(act: simulator.Act) -> dict[str, Any]:
    return {name: getattr(act, name) for name in act.__slots__}


async def send(
    recipient: str, run: int = 1, **options: Any
) -> tuple[Receipt | Exception, list[CapturedMail], list[Mapping[str, object]]]:
    """What one try comes to, what lies in the inbox afterwards, what was noted."""
    captured: list[CapturedMail] = []
    noted: list[Mapping[str, object]] = []

    async def capture(mail: CapturedMail) -> None:
        captured.append(mail)

    envelope = Envelope("a@x.test", recipient, MAIL, False, 7, run=run, subject="Hi", note=noted.append, **options)
    try:
        return await Inbox(capture).send(envelope, nullcontext), captured, noted
    except (Snooze, TaskError) as error:
        return error, captured, noted


def said(outcome: Receipt | Exception, *, captured: bool, run: int) -> str:
    """The outcome in the words of the page."""
    match outcome:
        case Receipt():
            return "Ok"
        case TaskError(retryable=False):
            return "failed at once"
        case Snooze(delay_s=delay_s):
            return f"tried again after {delay_s:g} s without using up an attempt"
        case TaskError(reason="outcome_unknown", retry_after_s=delay_s) if captured:
            return f"captured, but nobody knows: sent again after {delay_s:g} s with the same Message-ID"
        case TaskError(retry_after_s=None):
            return "tried again, an attempt is used up"
        case TaskError(retry_after_s=delay_s):
            return f"tried again after {delay_s:g} s"
        case _:
            raise AssertionError(outcome, run)


def test_page_shows_every_address() -> None:
    assert {row[0] for row in ROWS} == set(ACTS)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("name", "phase", "reply", "becomes"), ROWS, ids=[row[0] for row in ROWS])
async def test_address_does_what_the_page_says(name: str, phase: str, reply: str, becomes: str) -> None:
    first, captured, noted = await send(f"{name.upper()}+1@shop.x.test")
    second, _, _ = await send(f"{name}@x.test", run=2)

    words = said(first, captured=bool(captured), run=1)
    if type(second) is not type(first):
        words += f", then {said(second, captured=True, run=2)}"
    assert words == (becomes.partition(" after 3 s")[0] if name == "slow" else becomes)
    if isinstance(first, Receipt):
        assert f"250 {first.text}" == reply
        return
    assert reply in str(first)
    assert (noted[0]["relay"], noted[0]["phase"], noted[0]["text"]) == (
        "inbox",
        phase,
        reply.lstrip("0123456789 "),
    ) or (str(noted[0]["text"]) in reply)
    assert bool(captured) == (name == "drop")


@pytest.mark.parametrize(
    "recipient", ["bounce@x.example", "bounce@test", "bounce@xtest", "bounced@x.test", "x+bounce@x.test", "ada@x.test"]
)
async def test_other_addresses_have_no_bad_days(recipient: str) -> None:
    outcome, captured, noted = await send(recipient)

    assert isinstance(outcome, Receipt)
    assert captured == [CapturedMail(7, "a@x.test", recipient, "Hi", MAIL)]
    assert noted == []


def test_bad_day_is_what_a_relay_would_report() -> None:
    act = act_for("drop@x.test", 1)

    assert act is not None
    assert (act.phase, act.code, act.reply) == (Phase.DOT, Event.LOST, "the connection was lost")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("name", "sealed"), [("ada", True), ("drop", True), ("spam", True), ("bounce", False), ("rate", False)]
)
async def test_mail_is_sealed_before_its_content_leaves(*, name: str, sealed: bool) -> None:
    events: list[str] = []

    async def seal() -> None:
        events.append("sealed")

    async def capture(_mail: CapturedMail) -> None:
        events.append("captured")

    @contextmanager
    def span():
        events.append("span")
        yield

    try:
        await Inbox(capture).send(Envelope("a@x.test", f"{name}@x.test", MAIL, False, 7, seal=seal), span)
    except (Snooze, TaskError):
        events.append("refused")

    assert (events[:2] == ["sealed", "span"]) == sealed
    assert sealed or events == ["refused"]
