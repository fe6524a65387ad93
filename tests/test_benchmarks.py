"""The benchmarks at their smallest sizes: that they run, and that their figures can be figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.__main__ import main, plan
from benchmarks.floors import Figures, figures
from benchmarks.loops import compare
from benchmarks.workflows import HUNDRED, REPLAY, SMALLEST, START, ours, suspended


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_every_measurement_runs_and_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "bench.json"
    monkeypatch.setattr("sys.argv", ["benchmarks", "--smallest", "--json", str(target)])
    main()
    document = json.loads(target.read_text())
    rows = {row["name"]: row for row in document["figures"]}
    assert len(document["figures"]) == len(plan(1.0))
    for name in (
        "bare blocking echo",
        "bare trio echo",
        "now to handler started, synced",
        "submit, 64 in flight, synced",
    ):
        assert rows[name]["calls"] > 0
    for row in document["figures"]:
        assert 0 < row["p50_us"] <= row["p99_us"]
        assert row["rate"] > 0
        assert row["ratio"] == pytest.approx(row["p50_us"] / document["floor_p50_us"])
    assert document["idle_connection_bytes"] > 0
    for row in document["recoveries"]:
        assert 0 < row["ready_s"] <= row["first_answer_s"] <= max(row["first_delivery_s"], row["first_answer_s"]) < 10
    assert [cost["step"]["p50_us"] > 0 for cost in document["step_costs"]] == [True] * 4


def test_figures_are_the_median_the_99th_percentile_and_the_rate() -> None:
    durations = [float(number) for number in range(1, 1001)]
    assert figures("x", durations[::-1], 0.5) == Figures("x", 1000, 501e6, 991e6, 2000.0)


@pytest.mark.slow
def test_calls_from_every_kind_of_loop_are_compared() -> None:
    rows = {row.name: row for row in compare(1)}
    assert len(rows) == 5
    assert all(row.p50_us > 0 and row.rate > 0 for row in rows.values())
    assert rows["health from asyncio"].calls == rows["health from trio"].calls == rows["health from a thread"].calls


@pytest.mark.slow
def test_every_workload_of_workflows_runs() -> None:
    rows = {row.name: row for row in ours(SMALLEST)}
    assert rows[START].calls == SMALLEST.one_by_one
    assert rows[f"{HUNDRED}, 2 at once"].calls == 2
    assert any(name.startswith(REPLAY) for name in rows)
    assert all(0 < row.p50_us <= row.p99_us and row.rate > 0 for row in rows.values())


@pytest.mark.slow
def test_what_a_waiting_run_costs_is_a_figure() -> None:
    waiting = suspended(200)
    assert 0 < waiting.worker_bytes < 100_000
    assert 0 < waiting.server_bytes < 100_000
