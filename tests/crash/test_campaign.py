"""Murder under load: processes, servers, connections; what was acknowledged must survive all of it.

The history checker decides: nothing acknowledged is lost, everything ends once, and a second copy of
a mail has a lost or ambiguous run to explain it.  `TASKQ_CRASH_SECONDS=1800` runs more rounds.
"""

import os
import signal
import time

import pytest
from campaign import BUSY_S, SCALE, SHORT_LIVES, Campaign, every, mail, rounds, spread
from processes import Instance, pass_time, wait_until

from taskq.config import Settings

pytestmark = [pytest.mark.crash, pytest.mark.timeout(240 * SCALE)]

HANDLERS = "crash_handlers"
BUSY = {"smtp_connections_max": 20}
LEASE_S = Settings.model_fields["lease_s"].default
SWEEP_S = Settings.model_fields["sweep_s"].default
POLL_S = Settings.model_fields["poll_s"].default


@pytest.fixture(autouse=True)
def _figures(capsys: pytest.CaptureFixture[str]):
    """Show what a campaign prints, also when it passes."""
    yield
    with capsys.disabled():
        print("\n" + capsys.readouterr().out, end="")


def test_service_loses_nothing_when_killed_again_and_again() -> None:
    with Campaign(seed=11, text_s=0.05, dot_s=0.05) as campaign:
        service = campaign.instance("service", **BUSY)
        kills: list[float] = []

        with campaign.load(rate_per_s=130):
            for _ in every(1.0, campaign.chance, rounds(5)):
                campaign.spare_suspects(kills)
                kills.append(service.kill())
                service.start()
        report = campaign.finish(f"{len(kills)} kills of the only process, restarted on the same host")

        delays = campaign.rescue_delays(kills)
        print(f"  rescue delay             {spread(delays)}")
        assert not report.violations
        assert report.lost == report.duplicates_unexplained == 0
        assert report.runs_lost > 0
        assert max(delays) <= LEASE_S / 2  # told by the process that is gone, not by a lease that ran out


def test_other_instances_rescue_within_lease_sweep_and_poll() -> None:
    with Campaign(seed=12, text_s=0.05, dot_s=0.05) as campaign:
        for name in ("first", "second", "third"):
            campaign.seem_elsewhere(campaign.instance(name, **SHORT_LIVES, **BUSY))
        kills: list[float] = []

        with campaign.load(rate_per_s=130):
            for _ in every(1.2, campaign.chance, rounds(3)):
                campaign.spare_suspects(kills)
                victim = campaign.chance.choice(campaign.instances)
                kills.append(victim.kill())
                pass_time(campaign.chance.uniform(0.0, 1.5))
                victim.start()
                campaign.seem_elsewhere(victim)
        report = campaign.finish(f"{len(kills)} kills among three instances, told by the lease alone")

        delays = campaign.lease_delays(kills)
        print(f"  rescue delay             {spread(delays)}")
        assert not report.violations
        assert report.runs_lost > 0
        assert max(delays) <= SHORT_LIVES["lease_s"] + SHORT_LIVES["sweep_s"] + SHORT_LIVES["poll_s"] + BUSY_S


def test_other_instance_rescues_within_30_s_at_default_settings() -> None:
    with Campaign(seed=13, text_s=0.1, dot_s=0.1) as campaign:
        victim = campaign.instance("victim")
        campaign.instance("survivor")
        campaign.seem_elsewhere(victim)

        with campaign.load(rate_per_s=60):
            pass_time(1.0)
            kills = [victim.kill()]
        report = campaign.finish("one of two instances killed, default settings")

        delays = campaign.rescue_delays(kills)
        print(f"  rescue delay             {spread(delays)}")
        assert not report.violations
        assert report.runs_lost > 0
        assert max(delays) <= LEASE_S + SWEEP_S + POLL_S + BUSY_S


def test_server_killed_under_load_costs_503s_and_no_task() -> None:
    with Campaign(seed=14, embedded=True) as campaign:
        service = campaign.instance("service")
        pid = service.pid
        outages: dict[str, list[float]] = {"postmaster": [], "backend": []}
        resumes: list[float] = []

        with campaign.load(rate_per_s=150):
            for number in every(0.7, campaign.chance, 2 * rounds(2)):
                victim = "backend" if number % 2 else "postmaster"
                killed_at = time.monotonic()
                os.kill(campaign.backend() if victim == "backend" else campaign.postmaster, signal.SIGKILL)
                refused_at = campaign.wait_refused(killed_at)
                wait_until(campaign.answers, "PostgreSQL has recovered")
                answered_at = time.monotonic()
                stored_at = refused_at + campaign.history.first_stored_after(refused_at)
                outages[victim].append(stored_at - killed_at)
                resumes.append(max(0.0, stored_at - answered_at))
        report = campaign.finish(f"{2 * rounds(2)} kills of PostgreSQL")

        for victim, seconds in outages.items():
            print(f"  {victim + ' to first 201':<24} {spread(seconds)}")
        print(f"  recovery to first 201    {spread(resumes)}")
        assert service.alive
        assert service.pid == pid
        assert not report.violations
        assert report.duplicates_explained == report.duplicates_unexplained == 0
        assert max(resumes) <= BUSY_S


def test_frozen_instance_can_not_settle_what_others_rescued() -> None:
    with Campaign(seed=15, text_s=0.1, dot_s=0.2) as campaign:
        frozen = campaign.instance("frozen", **SHORT_LIVES)
        campaign.instance("living", **SHORT_LIVES)

        with campaign.load(rate_per_s=60):
            for _ in every(1.0, campaign.chance, rounds(1)):
                url, frozen.url = frozen.url, None
                frozen.freeze()
                pass_time(SHORT_LIVES["lease_s"] + 2 * SHORT_LIVES["sweep_s"])
                frozen.thaw()
                frozen.url = url
        report = campaign.finish("an instance frozen past its lease")

        print(f"  stale results refused    {_refused(frozen)}")
        print(f"  leases lost              {len(frozen.events('our lease was ended by another instance'))}")
        assert frozen.terminate() == 0
        assert not report.violations
        assert report.runs_lost > 0
        assert _refused(frozen) > 0


def test_late_result_is_refused_while_another_instance_runs_the_task() -> None:
    """The frozen runs are over the moment they thaw; by then each task belongs to a run elsewhere."""
    with Campaign(seed=23) as campaign:
        frozen = campaign.instance("frozen", **SHORT_LIVES, handlers=HANDLERS)
        for _ in range(5):
            campaign.post(errand(campaign.history.recipient(), held=True))
        wait_until(lambda: campaign.running(run=1) == 5, "the first instance runs all of them")
        living = campaign.instance("living", **SHORT_LIVES, handlers=HANDLERS)

        frozen.freeze()
        wait_until(lambda: campaign.running(run=2) == 5, "the other instance runs all of them")
        campaign.let_go(run=1)
        frozen.thaw()
        wait_until(lambda: _refused(frozen), "late results are refused")
        campaign.let_go(run=2)
        report = campaign.finish("late results of a thawed instance")

        print(f"  late results refused     {_refused(frozen)}")
        assert not report.violations
        assert _refused(frozen) == 5
        assert _refused(living) == 0
        assert report.copies == 10


def test_thawed_instance_runs_its_own_rescued_tasks_again() -> None:
    """The other instance is full, so the thawed one claims what was taken from it while it still ends the old runs."""
    with Campaign(seed=16) as campaign:
        frozen = campaign.instance("frozen", **SHORT_LIVES, handlers=HANDLERS, concurrency=20)
        living = campaign.instance("living", **SHORT_LIVES, handlers=HANDLERS, concurrency=5)
        for number, instance in enumerate((living, frozen), 1):
            for _ in range(5):
                campaign.post(errand(campaign.history.recipient(), held=True), instance)
            wait_until(lambda: campaign.running(run=1) == 5 * number, f"{instance.name} runs its own")  # noqa: B023 - waited for here

        frozen.freeze()
        wait_until(lambda: len(campaign.rescues()) == 5, "the frozen instance loses its lease")
        with campaign.hold("lock table taskq.minute_count"):  # no result can be written
            frozen.thaw()
            wait_until(lambda: campaign.running(run=2) == 5, "the thawed instance runs all of them again")
            campaign.let_go(run=1)
            campaign.let_go(run=2)
        report = campaign.finish("an instance that takes its own tasks again")

        assert frozen.terminate() == living.terminate() == 0
        assert not report.violations
        assert report.runs_lost == 5


def _refused(instance: Instance) -> int:
    return sum(event["runs"] for event in instance.events("results of superseded runs were discarded"))


def test_cut_listener_costs_at_most_the_poll() -> None:
    with Campaign(seed=17) as campaign:
        campaign.instance("service", probe_s=0.5)
        cuts = 0

        for _ in every(0.1, campaign.chance, rounds(30)):
            campaign.enqueue()
            cuts += campaign.cut_listener()
        wait_until(lambda: campaign.unfinished() == 0, "everything ends")
        during = campaign.start_delays()
        recovered_s = wait_until(lambda: _starts_soon(campaign), "notifications arrive again")
        report = campaign.finish(f"the LISTEN connection cut {cuts} times")

        print(f"  start delay              {spread(during)}")
        print(f"  heard again after        {recovered_s:.1f} s")
        assert not report.violations
        assert cuts > 0
        assert max(during) <= POLL_S + BUSY_S


def _starts_soon(campaign: Campaign) -> bool:
    """Tell whether a task starts sooner than a poll would find it, five times in a row."""
    for _ in range(5):
        campaign.enqueue()
        wait_until(lambda: campaign.unfinished() == 0, "it ends")
        if campaign.start_delays()[-1] > POLL_S / 5:
            return False
    return True


def test_poison_is_failed_and_innocents_are_not() -> None:
    with Campaign(seed=18) as campaign:
        service = campaign.instance("service", handlers=HANDLERS, sweep_s=0.5)
        innocents = 12
        deaths = 0

        for _ in range(innocents):
            campaign.post(errand(campaign.history.recipient(), work_s=0.4))
        campaign.post(errand(campaign.history.recipient(), kind="crash.poison"))

        def ended() -> bool:
            nonlocal deaths
            if not service.alive:
                deaths += 1
                service.start(wait=False)
            return campaign.unfinished() == 0

        seconds = wait_until(ended, "poison and innocents end")
        report = campaign.finish("poison among innocents", poison="crash.poison")

        print(f"  crashes until poisoned   {deaths} in {seconds:.1f} s")
        assert not report.violations
        assert len(report.poisoned) == 1
        assert report.ok == innocents
        assert deaths == 3


def test_error_that_can_not_be_stored_stops_nobody() -> None:
    with Campaign(seed=19) as campaign:
        campaign.instance("service", handlers=HANDLERS)

        campaign.post(errand(campaign.history.recipient(), kind="crash.unprintable"))
        for _ in range(10):
            campaign.post(mail(campaign.history.recipient()))
        report = campaign.finish("an error text that PostgreSQL refuses", doomed="crash.unprintable")

        assert not report.violations
        assert report.ok == 10


def test_rolling_restart_loses_nothing_and_burns_no_attempt() -> None:
    with Campaign(seed=20, text_s=0.05, dot_s=0.1) as campaign:
        campaign.instance("first", **BUSY)
        campaign.instance("second", **BUSY)
        took: list[float] = []

        with campaign.load(rate_per_s=100):
            for number in every(0.5, campaign.chance, rounds(4)):
                instance = campaign.instances[number % 2]
                took.append(_stopped_in(instance))
                instance.start()
        report = campaign.finish(f"{len(took)} graceful restarts of two instances")

        print(f"  stop                     {spread(took)}")
        print(f"  attempts burnt           {report.attempts_burnt}")
        assert not report.violations
        assert report.attempts_burnt == report.runs_lost == 0
        assert report.duplicates_explained == report.duplicates_unexplained == 0


def test_short_grace_hands_back_and_burns_no_attempt() -> None:
    """Mails that wait for a connection, or for the relay's leave to send their text, are handed back."""
    with Campaign(seed=22, text_s=0.2, dot_s=0.2) as campaign:
        service = campaign.instance("service", grace_s=0.1)
        stops = rounds(2)

        for _ in range(stops):
            for _ in range(40):
                campaign.post(mail(campaign.history.recipient()))
            _stopped_in(service)
            service.start()
        report = campaign.finish(f"{stops} stops with too little grace")

        print(f"  attempts burnt           {report.attempts_burnt}")
        assert not report.violations
        assert report.attempts_burnt == report.runs_lost == report.duplicates_explained == 0
        assert report.runs_handed_back > 0


def test_service_stops_when_asked_right_after_its_start() -> None:
    with Campaign(seed=21) as campaign:
        service = campaign.instance("service")
        took = []

        for _ in range(rounds(4)):
            took.append(_stopped_in(service))
            service.start()
            pass_time(campaign.chance.uniform(0.0, 0.02))

        print(f"== asked to stop at once (seed {campaign.seed})\n  stop                     {spread(took)}")
        assert max(took) <= BUSY_S


def _stopped_in(instance: Instance) -> float:
    began = time.monotonic()
    assert instance.terminate() == 0
    return time.monotonic() - began


def errand(to: str, *, kind: str = "crash.innocent", work_s: float = 0.0, held: bool = False) -> dict[str, object]:
    return {"kind": kind, "payload": {"to": to, "work_s": work_s, "held": held}}
