"""The conformance kit against our own server: every MUST and every SHOULD, over real sockets."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from zapconform.case import Verdict
from zapconform.catalog import all_cases
from zapconform.report import table
from zapconform.runner import Target, run
from zapconform.vector_files import BUILT_IN, cases_of

READY_SECONDS_MAX = 20
STOP_SECONDS_MAX = 10


@contextlib.contextmanager
def serving() -> Iterator[Target]:
    """A server of our own in a process of its own; its addresses come from the line that it prints."""
    command = [
        sys.executable,
        "-m",
        "zapserver.cli",
        "serve",
        "--zap-port",
        "0",
        "--http",
        "127.0.0.1:0",
        "--data",
        ":memory:",
    ]
    with subprocess.Popen([*command], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            words = process.stdout.readline().split()
            assert words[:1] == ["ready"], words
            addresses = dict(word.split("=", 1) for word in words[1:])
            host, _, port = addresses["zap"].rpartition(":")
            yield Target(host, int(port), f"http://{addresses['http']}", timeout=10.0)
            assert process.poll() is None, "the server ended during the run"
        finally:
            process.terminate()
            process.wait(STOP_SECONDS_MAX)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_our_server_conforms() -> None:
    with serving() as target:
        cases = [*all_cases(), *cases_of(BUILT_IN / "spec.json"), *cases_of(BUILT_IN / "message.json")]
        report = run(target, cases, seed=20_240, strict=True)
    assert report.exit_code == 0, table(report)
    assert report.extension
    assert report.counts()[Verdict.SKIPPED] == 0
    assert report.counts()[Verdict.PASS] == len(cases) > 400
