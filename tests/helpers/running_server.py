"""`zaptasks serve` in a process of its own, for tests that block or that kill it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

READY_SECONDS_MAX = 20.0


@dataclass
class RunningServer:
    """Where it listens, and its process."""

    zap: str
    http: str
    process: subprocess.Popen[str]

    @property
    def url(self) -> str:
        return f"http://{self.http}"

    def stop(self) -> None:
        """End it as an operator does."""
        self.process.terminate()
        self.process.wait(READY_SECONDS_MAX)

    def kill(self) -> None:
        """End it as a power cut does."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(READY_SECONDS_MAX)


@contextmanager
def running_server(*, zap: str = "0", http: str = "127.0.0.1:0", data: Path | None = None) -> Iterator[RunningServer]:
    """Start a server, in memory without `data`, and wait for its ready line; it is killed at the end of the block."""
    zaptasks = str(Path(sys.executable).with_name("zaptasks"))
    command = [zaptasks, "serve", "--zap-port", zap.rpartition(":")[2], "--http", http]
    command += ["--data", str(data or ":memory:")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        words = dict(word.split("=", 1) for word in line.split()[1:])
        assert line.startswith("ready "), (
            f"the server did not start: {line!r}, exit status {process.wait(READY_SECONDS_MAX)}"
        )
        yield RunningServer(words["zap"], words["http"], process)
    finally:
        process.kill()
        process.wait(READY_SECONDS_MAX)
        if process.stdout is not None:
            process.stdout.close()
