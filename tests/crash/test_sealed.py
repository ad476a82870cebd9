"""Mails that may get lost but must not arrive twice, beside those of which the opposite holds.

Both travel together through the same murders.  A sealed mail has at most one copy in the sink, whatever
died when, and its task says so where nobody can know.  An ordinary one is never lost; its copies carry
the same Message-ID and the same bytes.  `TASKQ_CRASH_SECONDS=2500` kills two hundred times.
"""

import json
from collections import Counter
from pathlib import Path

import pytest
from campaign import SCALE, SHORT_LIVES, Campaign, every, mail, rounds
from points import CALLS, Tracer, why_impossible
from processes import pass_time, wait_until

pytestmark = [pytest.mark.crash, pytest.mark.timeout(240 * SCALE)]

SEALED = "sealed"
BUSY = {"smtp_connections_max": 20}
QUIET = {"poll_s": 60, "sweep_s": 300, "beat_s": 60, "lease_s": 600, "probe_s": 300}
POINTS_MAX = 80  # of one system call: a sealed mail opens its own connection to the relay


@pytest.fixture(autouse=True)
def _figures(capsys: pytest.CaptureFixture[str]):
    """Show what a campaign prints, also when it passes."""
    yield
    with capsys.disabled():
        print("\n" + capsys.readouterr().out, end="")


def once(to: str) -> dict[str, object]:
    return mail(to) | {"on_ambiguous": "fail"}


def test_sealed_mail_never_arrives_twice_however_often_its_process_is_killed() -> None:
    with Campaign(seed=41, text_s=0.05, dot_s=0.05) as campaign:
        service = campaign.instance("service", **BUSY)
        kills: list[float] = []

        with campaign.load(rate_per_s=60), campaign.load(rate_per_s=60, document=once, name=SEALED):
            for _ in every(0.5, campaign.chance, rounds(12)):
                campaign.spare_suspects(kills)
                kills.append(service.kill())
                service.start()
        report = campaign.finish(f"{len(kills)} kills with sealed mails under way", sealed=SEALED)

        print(f"  copies of sealed mails   {_copies(campaign.sink.journal)}")
        assert not report.violations
        assert report.lost == report.duplicates_unexplained == 0
        assert report.outcomes_unknown > 0
        assert report.runs_lost > report.outcomes_unknown  # the others were run again
        assert max(_copies(campaign.sink.journal)) == 1


def test_sealed_mail_never_arrives_twice_when_its_instance_freezes() -> None:
    """The frozen one thaws past its lease: what it had sealed is failed by then, and sent at most by itself."""
    with Campaign(seed=42, text_s=0.2, dot_s=0.2) as campaign:
        frozen = campaign.instance("frozen", **SHORT_LIVES, **BUSY)
        campaign.instance("living", **SHORT_LIVES, **BUSY)

        with campaign.load(rate_per_s=60, document=once, name=SEALED):
            for _ in every(1.0, campaign.chance, rounds(1)):
                url, frozen.url = frozen.url, None
                frozen.freeze()
                pass_time(SHORT_LIVES["lease_s"] + 2 * SHORT_LIVES["sweep_s"])
                frozen.thaw()
                frozen.url = url
        report = campaign.finish("an instance frozen past its lease with sealed mails", sealed=SEALED)

        assert frozen.terminate() == 0
        assert not report.violations
        assert report.outcomes_unknown > 0
        assert max(_copies(campaign.sink.journal)) == 1


def test_sealed_mail_survives_a_death_before_any_read_or_write_without_a_second_copy() -> None:
    if reason := why_impossible():
        pytest.skip(reason)
    with Campaign(seed=43) as campaign:
        service = campaign.instance("service", **QUIET, **BUSY)
        points: list[str] = []

        for call in CALLS:
            for number in range(1, POINTS_MAX):
                point = _die_at(campaign, call, number)
                if point is None:
                    break
                points.append(point)
                service.start()
                wait_until(lambda: campaign.unfinished() == 0, f"recovery after a death before {point}")
            else:
                pytest.fail(f"more than {POINTS_MAX} {call}s for one task")
        report = campaign.finish(f"sealed mail: {len(points)} crash points", sealed=SEALED)

        assert not report.violations
        assert len(points) >= 6
        assert report.outcomes_unknown > 0
        assert max(_copies(campaign.sink.journal)) == 1


def _die_at(campaign: Campaign, call: str, number: int) -> str | None:
    """Submit one sealed mail to a warm process that dies before its N-th call; None: it needed fewer."""
    service = campaign.instances[0]
    campaign.post(once(campaign.history.recipient(SEALED)))
    campaign.enqueue()
    wait_until(lambda: campaign.unfinished() == 0, "the first tasks end")
    campaign.rest()
    tracer = Tracer(service, call, number, campaign.place / "trace")
    assert tracer.attached, tracer.said
    campaign.post(once(campaign.history.recipient(SEALED)))
    wait_until(lambda: not service.alive or campaign.unfinished() == 0, "death, or the end of the task")
    pass_time(0.05)  # the reply to the settle is read after the task is final
    died = not service.alive
    point = tracer.close()
    return point if died else None


def _copies(journal: Path) -> dict[int, int]:
    """Return how many sealed mails arrived how often."""
    lines = [json.loads(line)["recipient"] for line in journal.read_text(encoding="utf-8").splitlines()]
    return dict(Counter(Counter(each for each in lines if each.startswith(SEALED)).values()))
