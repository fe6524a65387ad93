"""Real processes of the command `zaptasks`, as a shell would start them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

END_SECONDS_MAX = 20
READY = re.compile(r"ready zap=(?P<zap>127\.0\.0\.1:[0-9]+) http=(?P<http>127\.0\.0\.1:[0-9]+)\n")
ANY_PORTS = ("--zap-port", "0", "--http", "127.0.0.1:0", "--data", ":memory:")


@dataclass(frozen=True)
class Ended:
    """What a process left behind."""

    status: int
    stdout: str
    stderr: str


class RunningServer:
    """`zaptasks serve`, ready."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.process = process
        self.ready_line = process.stdout.readline()
        match = READY.fullmatch(self.ready_line)
        if match is None:
            process.kill()
            raise AssertionError(f"no ready line but {self.ready_line!r}, and on stderr:\n{process.communicate()[1]}")
        self.zap = match["zap"]
        self.http = match["http"]

    def end(self, signal_number: int) -> Ended:
        """Send a signal and wait for the end."""
        self.process.send_signal(signal_number)
        return ended(self.process)


def ended(process: subprocess.Popen[str]) -> Ended:
    stdout, stderr = process.communicate(timeout=END_SECONDS_MAX)
    return Ended(process.returncode, stdout, stderr)


def zaptasks(*args: str, environment: Mapping[str, str] | None = None, cwd: Path | None = None) -> Ended:
    """Run the command to its end."""
    with started(*args, environment=environment, cwd=cwd) as process:
        return ended(process)


@contextmanager
def started(
    *args: str, environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A process of the command; killed at the end of the block if it still runs."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TASKS", "TASKSD"))}
    with subprocess.Popen(
        [sys.executable, "-m", "zapserver.cli", *args],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**clean, **(environment or {})},
        cwd=cwd,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


@contextmanager
def serving(*args: str, environment: Mapping[str, str] | None = None) -> Iterator[RunningServer]:
    """A server on any free ports of loopback, unless `args` say otherwise."""
    with started("serve", *(args or ANY_PORTS), environment=environment) as process:
        yield RunningServer(process)
