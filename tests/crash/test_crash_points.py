"""Every crash point of one task: dead before its N-th read or write, for every N, then started again.

Nothing may be lost or stuck.  What can be sent twice is counted: only a death between the final dot
of a mail and the commit of its result may do that, and the number of such points is printed.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from campaign import SCALE, Campaign, mail
from points import CALLS, Tracer, why_impossible
from processes import Instance, pass_time, wait_until

pytestmark = [pytest.mark.crash, pytest.mark.timeout(150 * SCALE)]

QUIET = {"poll_s": 60, "sweep_s": 300, "beat_s": 60, "lease_s": 600, "probe_s": 300}
POINTS_MAX = 60  # of one system call; the longest path has fewer than half as many
DUPLICATING_MAX = 4
"""The reply to the dot and the settle; the client's hanging up and a wake-up may fall between them."""
LONG = pytest.mark.skipif(SCALE == 1, reason="two starts for each point: only with TASKQ_CRASH_SECONDS above 150")


@pytest.fixture(autouse=True)
def _figures(capsys: pytest.CaptureFixture[str]):
    """Show what a campaign prints, also when it passes."""
    if reason := why_impossible():
        pytest.skip(reason)
    yield
    with capsys.disabled():
        print("\n" + capsys.readouterr().out, end="")


@pytest.mark.parametrize(
    ("path", "warm"),
    [
        ("submit", True),
        ("claim", True),
        pytest.param("claim", False, marks=LONG),
        pytest.param("submit", False, marks=LONG),
    ],
    ids=["submit", "claim", "claim-after-start", "submit-after-start"],
)
def test_task_survives_a_death_before_any_read_or_write(path: str, *, warm: bool) -> None:
    with Campaign(seed=31) as campaign:
        service = campaign.instance("service", **QUIET)
        submit = (lambda: campaign.post(mail(campaign.history.recipient()))) if path == "submit" else campaign.enqueue
        points: list[tuple[str, int]] = []

        for call in CALLS:
            for number in range(1, POINTS_MAX):
                if warm:
                    _warm_up(campaign)
                point = _die_at(campaign, service, submit, call, number)
                if point is None:
                    break
                service.start()
                wait_until(lambda: campaign.unfinished() == 0, f"recovery after a death before {point}")
                if not warm:
                    service.kill()  # what was recovered has opened connections
                    service.start()
                points.append((point, _copies(campaign.sink.journal, campaign.history.latest)))
            else:
                pytest.fail(f"more than {POINTS_MAX} {call}s for one task")
        report = campaign.finish(
            f"{path}, {'warm' if warm else 'first task of its process'}: {len(points)} crash points"
        )

        duplicating = [point for point, copies in points if copies > 1]
        for point, copies in points:
            print(f"  {'twice' if copies > 1 else f'{copies}':<6} before {point}")
        print(f"  crash points {len(points)}, of which {len(duplicating)} send a mail twice")
        assert not report.violations
        assert len(points) >= 6
        assert len(duplicating) <= DUPLICATING_MAX


def _warm_up(campaign: Campaign) -> None:
    """Let connections be open and statements be prepared, as in a service that has run for a while."""
    campaign.post(mail(campaign.history.recipient()))
    campaign.enqueue()
    wait_until(lambda: campaign.unfinished() == 0, "the first tasks end")


def _die_at(campaign: Campaign, service: Instance, submit: Callable[[], object], call: str, number: int) -> str | None:
    """Submit one task to a process that dies before its N-th call; None: it needed fewer."""
    campaign.rest()
    tracer = Tracer(service, call, number, campaign.place / "trace")
    assert tracer.attached, tracer.said
    submit()
    wait_until(lambda: not service.alive or campaign.unfinished() == 0, "death, or the end of the task")
    pass_time(0.05)  # the reply to the settle is read after the task is final
    died = not service.alive
    point = tracer.close()
    return point if died else None


def _copies(journal: Path, recipient: str) -> int:
    return sum(json.loads(line)["recipient"] == recipient for line in journal.read_text().splitlines())
