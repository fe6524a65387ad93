"""`make robustness`: real processes under load, killed, stopped and cut off, and what became of the work.

    python -m tests.robustness --kills N [--minutes M] [--seed S] [--rate R] [--workers W] [--json] [--keep DIR]

The exit status is 1 if anything that was acknowledged is lost, or anything else that is promised did not hold.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import trio
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text
from tests.robustness.run import Plan, Progress, Report, perform

EXAMPLES_MAX = 5


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.robustness", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="how many kill -9, of the server and of workers")
    parser.add_argument("--minutes", type=float, default=60.0, help="end the disturbed part after so long")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**9), help="decides which faults come when")
    parser.add_argument("--rate", type=float, default=250.0, help="calls a second")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--keep", type=Path, help="keep the data, logs and journals in this directory, which is new")
    parser.add_argument("--launcher", default="zapserver.cli", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="robustness-") as temporary:
        folder = arguments.keep or Path(temporary)
        if arguments.keep:
            folder.mkdir(parents=True)
        plan = Plan(
            kills=arguments.kills,
            seed=arguments.seed,
            folder=folder,
            rate=arguments.rate,
            workers=arguments.workers,
            seconds_max=arguments.minutes * 60,
            launcher=arguments.launcher,
        )
        console.print(f"seed {plan.seed}")
        report = _performed(plan, console)
    if arguments.json:
        print(json.dumps(asdict(report) | {"good": report.is_good}, indent=2))
    else:
        _print(report, Console())
    return 0 if report.is_good else 1


def _performed(plan: Plan, console: Console) -> Report:
    if not console.is_terminal:
        return trio.run(perform, plan, lambda progress: None)
    with Live(console=console, refresh_per_second=4) as live:
        return trio.run(perform, plan, lambda progress: live.update(_line(progress)))


def _line(progress: Progress) -> Text:
    return Text(
        f"{progress.what}: {progress.kills}/{progress.kills_wanted} kills, {progress.submitted:,} submitted, "
        f"{progress.acknowledged:,} acknowledged, {progress.done:,} done ({progress.per_second:,.0f}/s), "
        f"{progress.duplicates:,} duplicates"
    )


def _print(report: Report, console: Console) -> None:
    counts = Table(title=f"seed {report.seed}, {report.seconds:g} s", show_header=False)
    counts.add_column()
    counts.add_column(justify="right")
    for section in (report.faults, report.load, report.findings.counts):
        for name, count in section.items():
            counts.add_row(name, f"{count:,}")
        counts.add_section()
    for reason, count in report.findings.lost_attempts.items():
        counts.add_row(f"duplicate because {reason}", f"{count:,}")
    counts.add_section()
    for reason, count in report.refusals.items():
        counts.add_row(f"refused: {reason}", f"{count:,}")
    console.print(counts)
    claims = Table("claim", "checked", "broken")
    for claim in report.findings.claims:
        style = "bold red" if claim.broken else ""
        claims.add_row(claim.text, f"{claim.checked:,}", f"{len(claim.broken):,}", style=style)
    console.print(claims)
    for claim in report.findings.claims:
        for problem in claim.broken[:EXAMPLES_MAX]:
            console.print(f"{claim.text}: {problem}", style="red", highlight=False)
    console.print("good" if report.is_good else "NOT good", style="bold")


if __name__ == "__main__":
    sys.exit(main())
