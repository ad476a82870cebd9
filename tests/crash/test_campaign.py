"""Murder under load: processes, servers, connections; what was acknowledged must survive all of it.

The history checker decides: nothing acknowledged is lost, everything ends once, and a second copy of
a mail has a lost or ambiguous run to explain it.  `TASKQ_CRASH_SECONDS=1800` runs more rounds.
"""

import os
import signal
import time

import pytest
from campaign import SCALE, SHORT_LIVES, Campaign, every, mail, pass_time, rounds, spread, wait_until

pytestmark = [pytest.mark.crash, pytest.mark.timeout(120 * SCALE)]


@pytest.fixture(autouse=True)
def _figures(capsys: pytest.CaptureFixture[str]):
    """Show what a campaign prints, also when it passes."""
    yield
    with capsys.disabled():
        print("\n" + capsys.readouterr().out, end="")


def test_service_loses_nothing_when_killed_again_and_again() -> None:
    with Campaign(seed=11) as campaign:
        service = campaign.instance("service")
        kills: list[float] = []

        with campaign.load(rate_per_s=120):
            for _ in every(1.5, campaign.chance, rounds(7)):
                kills.append(service.kill())
                service.start()
        report = campaign.finish(f"{len(kills)} kills of the only process, restarted on the same host")

        delays = campaign.rescue_delays(kills)
        print(f"  rescue delay             {spread(delays)}")
        assert not report.violations
        assert report.lost == report.duplicates_unexplained == 0
        assert report.runs_lost > 0
        assert max(delays) <= 3


def test_other_instances_rescue_within_lease_sweep_and_poll() -> None:
    with Campaign(seed=12, dot_s=0.05) as campaign:
        for name in ("first", "second", "third"):
            campaign.seem_elsewhere(campaign.instance(name, **SHORT_LIVES))
        kills: list[float] = []

        with campaign.load(rate_per_s=100):
            for _ in every(1.5, campaign.chance, rounds(5)):
                victim = campaign.chance.choice(campaign.instances)
                kills.append(victim.kill())
                pass_time(campaign.chance.uniform(0.0, 2.0))
                victim.start()
                campaign.seem_elsewhere(victim)
        report = campaign.finish(f"{len(kills)} kills among three instances, told by the lease alone")

        owners = campaign.ask(
            "select a.owner, min(extract(epoch from a.ended_at - l.at))::float8 from taskq.attempt a"
            " cross join lateral (select to_timestamp(0) as at) l where a.outcome = 'lost' group by a.owner"
        )
        delays = campaign.rescue_delays(kills)
        print(f"  rescue delay             {spread(delays)} of {len(owners)} leases")
        assert not report.violations
        assert report.runs_lost > 0
        assert max(delays) <= SHORT_LIVES["lease_s"] + SHORT_LIVES["sweep_s"] + SHORT_LIVES["poll_s"] + 1
