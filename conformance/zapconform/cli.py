"""The command line: `run`, `list` and `vectors`."""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from zapconform import report as reports
from zapconform.case import Case
from zapconform.catalog import all_cases, select
from zapconform.runner import EXIT_FAILED, EXIT_PASSED, EXIT_USAGE, Target, run, silence
from zapconform.vector_files import cases_of, check_file


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    try:
        chosen = parser.parse_args(arguments)
    except SystemExit as usage:  # argparse exits with 2 for a mistake and 0 for --help
        return int(usage.code or 0)
    try:
        return int(chosen.action(chosen))
    except UsageError as mistake:
        print(f"zapconform: {mistake}", file=sys.stderr)
        return EXIT_USAGE


def _url(text: str) -> str:
    """A server's ready line says HOST:PORT, and that is taken too."""
    return (text if not text or "://" in text else f"http://{text}").rstrip("/")


class UsageError(Exception):
    """A mistake on the command line."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="zapconform", description="Black-box conformance for ZAP tasks servers.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    runs = commands.add_parser("run", help="run cases against a server")
    runs.add_argument("--zap", required=True, metavar="HOST:PORT", help="the server's ZAP address")
    runs.add_argument("--http", default="", metavar="URL", help="the server's HTTP address; without it, no http cases")
    runs.add_argument("--select", nargs="+", default=[], metavar="ID", help="case ids, areas or globs")
    runs.add_argument("--vectors", nargs="+", default=[], type=Path, metavar="PATH", help="add recordings or vectors")
    runs.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
    runs.add_argument("--junit", type=Path, metavar="FILE", help="write the report as JUnit XML")
    runs.add_argument("--strict", action="store_true", help="SHOULD failures and lenient verdicts fail the run too")
    runs.add_argument("--timeout", type=float, default=5.0, metavar="S", help="seconds for any one answer (5)")
    runs.add_argument("--seed", type=int, metavar="N", help="repeat the random bytes of an earlier run")
    runs.add_argument("--quiet", action="store_true", help="no line for each case")
    runs.set_defaults(action=_run)

    lists = commands.add_parser("list", help="print all cases")
    lists.add_argument("--json", action="store_true", help="as JSON")
    lists.add_argument("--select", nargs="+", default=[], metavar="ID", help="case ids, areas or globs")
    lists.set_defaults(action=_list)

    vectors = commands.add_parser("vectors", help="check this kit's own decoder against files of vectors")
    vectors.add_argument("files", nargs="+", type=Path, metavar="FILE")
    vectors.set_defaults(action=_vectors)
    return parser


def _run(chosen: argparse.Namespace) -> int:
    if chosen.timeout <= 0:
        raise UsageError(f"--timeout {chosen.timeout:g} must be more than 0 seconds")
    host, port = _address(chosen.zap)
    cases: list[Case] = all_cases()
    for path in chosen.vectors:
        try:
            cases += cases_of(path)
        except (OSError, ValueError) as reason:
            raise UsageError(f"--vectors {path}: {reason}") from reason
    picked = select(cases, chosen.select)
    if not picked:
        raise UsageError(f"no case matches {' '.join(chosen.select)}; `zapconform list` prints them all")
    target = Target(host, port, _url(chosen.http), chosen.timeout)
    seed = chosen.seed if chosen.seed is not None else random.SystemRandom().getrandbits(32)
    on_outcome = silence if chosen.quiet else reports.progress()
    report = run(target, picked, seed=seed, strict=chosen.strict, on_outcome=on_outcome)
    print(reports.table(report))
    if chosen.json:
        reports.write(chosen.json, reports.as_json(report))
    if chosen.junit:
        reports.write(chosen.junit, reports.as_junit(report))
    return report.exit_code


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"--zap {text!r} must be HOST:PORT with a port from 1 to 65535")
    return host.strip("[]") or "127.0.0.1", int(port)


def _list(chosen: argparse.Namespace) -> int:
    picked = select(all_cases(), chosen.select)
    if not picked:
        raise UsageError(f"no case matches {' '.join(chosen.select)}")
    if chosen.json:
        print(json.dumps([_listed(case) for case in picked], indent=1, ensure_ascii=False))
        return EXIT_PASSED
    for case in picked:
        print(f"{case.id:<48} {case.severity:<6} {case.requirement}")
    print(f"{len(picked)} cases")
    return EXIT_PASSED


def _listed(case: Case) -> dict[str, object]:
    return {
        "id": case.id,
        "area": case.area,
        "requirement": case.requirement,
        "severity": str(case.severity),
        "extension": case.extension,
        "http": case.http,
    }


def _vectors(chosen: argparse.Namespace) -> int:
    wrong = 0
    for path in chosen.files:
        try:
            checked, problems = check_file(path)
        except (OSError, ValueError) as reason:
            raise UsageError(f"{path}: {reason}") from reason
        if not checked:
            raise UsageError(f"{path}: no vectors that can be checked without a server")
        for problem in problems:
            print(f"{path.name}: {problem}")
        print(f"{path.name}: {checked} checked, {len(problems)} wrong")
        wrong += len(problems)
    return EXIT_FAILED if wrong else EXIT_PASSED
