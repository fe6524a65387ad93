"""A server and workers as processes of their own, to be killed, stopped, continued and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import trio

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("zap", "sdk", "server", "conformance", "")
READY_SECONDS_MAX = 60.0
END_SECONDS_MAX = 30.0


class Broken(Exception):
    """A process of the run is not what it has to be: it did not start, or ended by itself."""


def free_port() -> int:
    """A port of loopback that nobody has at the moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def environment() -> dict[str, str]:
    """Ours, with the sources of this tree first and without settings of zaptasks."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TASKS", "TASKSD"))}
    return clean | {"PYTHONPATH": os.pathsep.join(str(ROOT / source) for source in SOURCES)}


class Process:
    """One process that comes again and again under the same command line; its stderr goes to one file."""

    def __init__(self, name: str, command: list[str], log: Path) -> None:
        self.name = name
        self._command = [sys.executable, *command]
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it; `wait_ready` says when it is of use."""
        assert not self.is_running
        self.starts += 1
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment(),
                cwd=ROOT,
                start_new_session=True,  # an interrupt from the terminal is for the conductor alone
            )

    async def wait_ready(self) -> str:
        """Its first line on stdout. Raises `Broken` when it ends without one."""
        process = self._process
        assert process is not None
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        line = b""
        with trio.move_on_after(READY_SECONDS_MAX):
            while not line.endswith(b"\n"):
                await trio.lowlevel.wait_readable(process.stdout.fileno())
                read = os.read(process.stdout.fileno(), 4096)
                if not read:
                    break
                line += read
        if not line.endswith(b"\n"):
            raise Broken(f"{self.name} printed no ready line but {line!r}; its log ends in:\n{self.log_end()}")
        return line.decode()

    def send(self, number: signal.Signals) -> None:
        if self.is_running:
            os.kill(self.pid, number)

    async def ended(self) -> int:
        """Wait for its end; the exit status."""
        process = self._process
        assert process is not None
        try:
            await trio.to_thread.run_sync(process.wait, END_SECONDS_MAX, abandon_on_cancel=True)
        except subprocess.TimeoutExpired:
            raise Broken(f"{self.name} does not end; its log ends in:\n{self.log_end()}") from None
        if process.stdout is not None:
            process.stdout.close()
        return process.returncode

    async def kill(self) -> None:
        """`kill -9`, and wait until the kernel has taken it away."""
        self.send(signal.SIGKILL)
        await self.ended()

    def destroy(self) -> None:
        """The same without waiting for anything else: for the end of a run, however it comes."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()

    def log_end(self, lines: int = 15) -> str:
        try:
            return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return "(nothing)"


def server_process(folder: Path, zap_port: int, http_port: int, *, launcher: str = "zapserver.cli") -> Process:
    """`zaptasks serve` with its data in `folder`; `launcher` is a module that plants something and does the same."""
    command = ["-m", launcher, "serve", "--zap-port", str(zap_port), "--http", f"127.0.0.1:{http_port}"]
    command += ["--data", str(folder / "data"), "--log-format", "json", "--log-level", "warning"]
    return Process("server", command, folder / "server.log")


def worker_process(folder: Path, address: str, number: int) -> Process:
    name = f"worker-{number}"
    command = ["-m", "tests.robustness.worker", address, str(folder), name]
    return Process(name, command, folder / f"{name}.log")
