"""The robustness run in small: it holds, and it finds a planted fault. `make robustness` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.robustness.recovery import fill, measure
from tests.robustness.run import Plan, Progress, Report, perform

SEED = 20_260


async def report_of(folder: Path, kills: int, launcher: str = "zapserver.cli") -> Report:
    shown: list[Progress] = []
    plan = Plan(kills=kills, seed=SEED, folder=folder, rate=120, workers=2, seconds_max=40, launcher=launcher)
    report = await perform(plan, shown.append)
    assert shown
    return report


@pytest.mark.slow
@pytest.mark.timeout(150)
async def test_kills_stops_and_cuts_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    report = await report_of(tmp_path, 8)
    broken = {claim.text: claim.broken[:5] for claim in report.findings.claims if claim.broken}
    assert not broken, f"seed {SEED}, {report.faults}"
    checked = {claim.text: claim.checked for claim in report.findings.claims}
    by_chance = {text for text in checked if "duplicate" in text or "heartbeat" in text}
    assert len(by_chance) == 2
    assert all(checked[text] for text in checked.keys() - by_chance), checked
    assert report.faults["kill -9 server"] + report.faults["kill -9 worker"] >= 8
    assert report.server_starts > report.faults["kill -9 server"] > 0


@pytest.mark.slow
@pytest.mark.timeout(150)
async def test_answers_that_leave_before_the_commit_are_found_out(tmp_path: Path) -> None:
    report = await report_of(tmp_path, 4, "tests.robustness.hasty_server")
    broken = {claim.text for claim in report.findings.claims if claim.broken}
    assert "every acknowledged start exists" in broken
    assert not report.is_good


@pytest.mark.slow
async def test_open_tasks_are_served_again_soon_and_in_little_memory(tmp_path: Path) -> None:
    """In small what `python -m tests.robustness.recovery` measures with 100,000."""
    executions = 5_000
    (tmp_path / "empty").mkdir()
    empty = await measure(tmp_path / "empty", 0, timers=False)
    fill(tmp_path, executions, timers=True)
    full = await measure(tmp_path, executions, timers=True)
    assert full.first_delivery_s - empty.first_answer_s < 5, "it takes 0.03 ms a task, and the machine may be busy"
    assert full.resident_bytes - empty.resident_bytes < executions * 6_000
