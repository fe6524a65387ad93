"""`python -m tests.sim --seeds N`: run seeds, and print how to repeat one that fails."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter

from tests.sim.simulation import Report, run_seed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument(
        "--seeds", type=int, default=None, help="how many seeds to run (default: 100, or 1 with --seed)"
    )
    parser.add_argument("--seed", type=int, default=None, help="the first of them (default: 0)")
    parser.add_argument("--trace", action="store_true", help="print everything that happens")
    parser.add_argument("--counts", action="store_true", help="print how often everything happened")
    arguments = parser.parse_args()
    first = arguments.seed or 0
    seeds = arguments.seeds or (100 if arguments.seed is None else 1)
    counts: Counter[str] = Counter()
    failed = 0
    began = time.perf_counter()
    for number, seed in enumerate(range(first, first + seeds), start=1):
        report = _run(seed, is_traced=arguments.trace)
        counts.update({} if report is None else report.counts)
        failed += report is None or report.violation is not None
        if sys.stderr.isatty() and not arguments.trace:
            rate = number / (time.perf_counter() - began)
            print(f"\r{number} of {seeds} seeds, {failed} failed, {rate:.1f}/s ", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    if arguments.counts:
        for name, count in sorted(counts.items()):
            print(f"{count:9} {name}")
    seconds = time.perf_counter() - began
    print(f"{seeds} seeds from {first}, {failed} failed, {seconds:.1f} s, {seeds / seconds:.1f} seeds/s")
    return 1 if failed else 0


def _run(seed: int, *, is_traced: bool) -> Report | None:
    try:
        report = run_seed(seed, is_traced=is_traced)
    except Exception:
        traceback.print_exc(file=sys.stdout)
        report = None
    if report is None:
        print(f"seed {seed} raised\n  repeat: python -m tests.sim --seed {seed}")
    elif report.violation is not None:
        found = report.violation
        print(f"seed {seed} at {found.at_ms} ms: promise {found.promise!r}: {found.text}")
        print(f"  repeat: python -m tests.sim --seed {seed}")
    elif is_traced:
        print(f"seed {seed} kept its promises: {report.events} events, trace {report.trace_hash}")
    return report


if __name__ == "__main__":
    sys.exit(main())
