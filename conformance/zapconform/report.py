"""A run for eyes, as JSON and as JUnit XML. Reading any of them needs no source."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO
from xml.etree import ElementTree as Xml

from zapconform.case import AREAS, Verdict
from zapconform.runner import Outcome, Progress, Report

SHOWN = (Verdict.ERROR, Verdict.FAIL, Verdict.UNSUPPORTED, Verdict.LENIENT)
"""Verdicts that are printed with their details, the worst first."""


def progress(stream: TextIO | None = None) -> Progress:
    """A line for each case as it ends, on standard output."""

    def line(outcome: Outcome, done: int, total: int) -> None:
        width = len(str(total))
        print(
            f"[{done:{width}}/{total}] {outcome.verdict:<11} {outcome.case.id}  {outcome.seconds * 1000:.0f} ms",
            file=stream or sys.stdout,
            flush=True,
        )

    return line


def table(report: Report) -> str:
    """Everything that did not pass, then the counts."""
    lines: list[str] = []
    for verdict in SHOWN:
        for outcome in report.outcomes:
            if outcome.verdict is verdict and not (report.dead and outcome.actual.startswith("not run")):
                lines += _details(outcome)
    lines += ["", *_grid(report), ""]
    if report.dead:
        lines += [f"TARGET DEAD: {report.dead}", ""]
    kind = "announces the additions of zaptasks" if report.extension else "speaks v1 only"
    lines.append(
        f"{report.target}, node id {report.node_id!r}, {kind}; seed {report.seed}; {report.seconds:.1f} s; "
        + _verdict(report)
    )
    return "\n".join(lines)


def _details(outcome: Outcome) -> Iterable[str]:
    yield ""
    yield f"{outcome.verdict.upper()} {outcome.case.id} ({outcome.case.severity})"
    yield f"    requirement  {outcome.case.requirement}"
    if outcome.expected:
        yield f"    expected     {outcome.expected}"
    if outcome.actual:
        yield f"    actual       {outcome.actual}"
    for note in outcome.notes:
        yield f"    note         {note}"
    if outcome.verdict is Verdict.LENIENT:
        return
    for entry in outcome.traffic[-8:]:
        yield f"    {entry.at_ms:6} ms {entry.connection:<10} {entry.direction:<8} {entry.size:>8} B  {entry.reading}"


def _grid(report: Report) -> Iterable[str]:
    yield f"{'area':<12}" + "".join(f"{verdict:>13}" for verdict in Verdict)
    for area in AREAS:
        of_area = [o.verdict for o in report.outcomes if o.case.area == area]
        if of_area:
            yield f"{area:<12}" + "".join(f"{of_area.count(verdict) or '·':>13}" for verdict in Verdict)
    counts = report.counts()
    yield f"{'all':<12}" + "".join(f"{counts[verdict]:>13}" for verdict in Verdict)


def _verdict(report: Report) -> str:
    match report.exit_code:
        case 0:
            return "PASSED"
        case 1:
            failing = sum(outcome.fails(strict=report.strict) for outcome in report.outcomes)
            return f"FAILED ({failing} of {len(report.outcomes)})"
        case 2:
            return "NOTHING WAS JUDGED"
        case _:
            return "TARGET DEAD"


def as_json(report: Report) -> str:
    """The whole run, frames of everything that did not pass included."""
    counts = report.counts()
    document = {
        "tool": "zapconform",
        "target": str(report.target),
        "node_id": report.node_id,
        "extension": report.extension,
        "seed": report.seed,
        "strict": report.strict,
        "seconds": round(report.seconds, 3),
        "exit_code": report.exit_code,
        "dead": report.dead,
        "counts": {str(verdict): counts[verdict] for verdict in Verdict},
        "cases": [_as_object(outcome) for outcome in report.outcomes],
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _as_object(outcome: Outcome) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "id": outcome.case.id,
        "area": outcome.case.area,
        "requirement": outcome.case.requirement,
        "severity": str(outcome.case.severity),
        "verdict": str(outcome.verdict),
        "seconds": round(outcome.seconds, 4),
    }
    if outcome.expected or outcome.actual:
        entry |= {"expected": outcome.expected, "actual": outcome.actual}
    if outcome.notes:
        entry["notes"] = list(outcome.notes)
    if outcome.traffic:
        entry["frames"] = [asdict(frame) for frame in outcome.traffic]
        entry["frames_left_out"] = outcome.traffic_dropped
    return entry


def as_junit(report: Report) -> str:
    """JUnit XML: a test case for each case, with SHOULD failures as output unless the run is strict."""
    failing = [o for o in report.outcomes if o.fails(strict=report.strict)]
    errors = [o for o in failing if o.verdict is Verdict.ERROR]
    suite = Xml.Element(
        "testsuite",
        name="zapconform",
        tests=str(len(report.outcomes)),
        failures=str(len(failing) - len(errors)),
        errors=str(len(errors)),
        skipped=str(report.counts()[Verdict.SKIPPED]),
        time=f"{report.seconds:.3f}",
    )
    for outcome in report.outcomes:
        case = Xml.SubElement(
            suite, "testcase", classname=outcome.case.area, name=outcome.case.id, time=f"{outcome.seconds:.4f}"
        )
        if outcome.verdict is Verdict.PASS:
            continue
        if outcome.verdict is Verdict.SKIPPED:
            Xml.SubElement(case, "skipped", message=outcome.actual)
            continue
        words = _printable("\n".join([*_details(outcome), "", *_frames(outcome)]))
        if outcome in failing:
            tag = "error" if outcome.verdict is Verdict.ERROR else "failure"
            what = _printable(f"expected {outcome.expected}; got {outcome.actual}" if outcome.expected else words)
            Xml.SubElement(case, tag, type=str(outcome.verdict), message=what).text = words
        else:
            Xml.SubElement(case, "system-out").text = words
    return '<?xml version="1.0" encoding="utf-8"?>\n' + Xml.tostring(suite, encoding="unicode") + "\n"


def _frames(outcome: Outcome) -> Iterable[str]:
    for entry in outcome.traffic:
        yield f"{entry.at_ms} ms {entry.connection} {entry.direction} {entry.size} B: {entry.hex}"


def _printable(text: str) -> str:
    """XML knows no control characters."""
    return "".join(c if c in "\n\t" or (c >= " " and c not in "\x7f\ufffe\uffff") else "\ufffd" for c in text)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
