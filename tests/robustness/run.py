"""One run from start to end: everything started, disturbed, left alone until it is settled, and checked."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio
from tests.robustness.check import Check, Claim, Findings
from tests.robustness.conductor import Conductor
from tests.robustness.journal import SIDE_EFFECTS, Journal
from tests.robustness.load import Load
from tests.robustness.processes import ROOT, Process, environment, free_port, server_process, worker_process
from tests.robustness.proxy import Proxy

import zaptasks
from zapwire.client_link import Backoff

SETTLE_SECONDS_MAX = 120.0
LOOK_SECONDS = 0.3
QUICK = Backoff(0.02, 0.3)


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    kills: int
    seed: int
    folder: Path
    rate: float = 250.0
    """Calls a second, while the server takes them."""
    workers: int = 3
    seconds_max: float = 3600.0
    """For the disturbed part."""
    launcher: str = "zapserver.cli"


@dataclass
class Report:
    """What a run was, and what it found."""

    seed: int
    seconds: float
    faults: dict[str, int]
    load: dict[str, int]
    refusals: dict[str, int]
    findings: Findings
    server_starts: int

    @property
    def is_good(self) -> bool:
        return self.findings.is_good


@dataclass
class Progress:
    """Where a run is, for whoever looks at it."""

    kills: int = 0
    kills_wanted: int = 0
    submitted: int = 0
    acknowledged: int = 0
    done: int = 0
    duplicates: int = 0
    per_second: float = 0.0
    what: str = ""


@dataclass
class Tail:
    """Counts the side effects while they are written."""

    path: Path
    offset: int = 0
    done: set[tuple[bytes, bytes]] = field(default_factory=set)
    duplicates: int = 0

    def look(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        for line in whole.splitlines():
            run, activity = line.split(b",", 2)[:2]
            if (run, activity) in self.done:
                self.duplicates += 1
            self.done.add((run, activity))


async def perform(plan: Plan, show: Callable[[Progress], None]) -> Report:
    """Run it. Raises `Broken` when a process ends that nobody killed."""
    began = time.monotonic()
    rng = random.Random(plan.seed)
    zap_port, http_port = free_port(), free_port()
    server = server_process(plan.folder, zap_port, http_port, launcher=plan.launcher)
    async with trio.open_nursery() as nursery:
        proxy = Proxy(zap_port, random.Random(rng.random()))
        await nursery.start(proxy.run)
        workers = [worker_process(plan.folder, proxy.address, number) for number in range(plan.workers)]
        conductor = Conductor(server, workers, proxy, random.Random(rng.random()), plan.kills)
        with _destroyed_at_the_end([server, *workers]):
            server.start()
            await server.wait_ready()
            async with _clients(proxy.address) as clients:
                load = Load(clients, Journal(plan.folder), random.Random(rng.random()), plan.rate)
                nursery.start_soon(_show, plan, conductor, load, show)
                for worker in workers:
                    worker.start()
                await _disturb(plan, conductor, load, clients)
                async with zaptasks.open_client(f"127.0.0.1:{zap_port}", backoff=QUICK) as direct:
                    await _settle(direct)
                    findings = await Check(direct, load, plan.folder).run()
            findings.claims.append(await _verified(plan.folder))
        nursery.cancel_scope.cancel()
    return Report(
        plan.seed,
        round(time.monotonic() - began, 1),
        dict(conductor.faults),
        dict(load.counts),
        dict(load.refusals),
        findings,
        server.starts,
    )


async def _disturb(plan: Plan, conductor: Conductor, load: Load, clients: list[zaptasks.AsyncClient]) -> None:
    """Load and faults together; then the load ends, undisturbed, and everybody who waits is told."""
    with trio.move_on_after(SETTLE_SECONDS_MAX + plan.seconds_max):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load.run)
            with trio.move_on_after(plan.seconds_max):
                await conductor.run()
            load.stop()
    await load.pause_schedules()


async def _settle(client: zaptasks.AsyncClient) -> None:
    """Until nothing is open, for a bounded time; the check says what is open then."""
    with trio.move_on_after(SETTLE_SECONDS_MAX):
        while True:
            async for _ in client.list("ExecutionStatus = 'Running'", page_size=1):
                break
            else:
                return
            await trio.sleep(LOOK_SECONDS)


async def _verified(folder: Path) -> Claim:
    """What `zaptasks verify` says about the files, with the server gone."""
    command = [sys.executable, "-m", "zapserver.cli", "verify", str(folder / "data")]
    ended = await trio.run_process(
        command, capture_stdout=True, stderr=subprocess.STDOUT, check=False, env=environment(), cwd=ROOT
    )
    claim = Claim("`zaptasks verify` finds every record whole")
    claim.check(ended.returncode == 0, ended.stdout.decode(errors="replace")[-500:])
    return claim


async def _show(plan: Plan, conductor: Conductor, load: Load, show: Callable[[Progress], None]) -> None:
    tail = Tail(plan.folder / f"{SIDE_EFFECTS}.jsonl")
    before, at = 0, trio.current_time()
    while True:
        tail.look()
        done, now = len(tail.done), trio.current_time()
        rate = (done - before) / (now - at) if now > at else 0.0
        before, at = done, now
        counts = load.counts
        what = "settling" if load.is_over else "disturbing"
        show(
            Progress(
                conductor.kills,
                plan.kills,
                counts["submitted"],
                counts["acknowledged"],
                done,
                tail.duplicates,
                rate,
                what,
            )
        )
        await trio.sleep(1.0)


@asynccontextmanager
async def _clients(address: str) -> AsyncIterator[list[zaptasks.AsyncClient]]:
    async with (
        zaptasks.open_client(address, backoff=QUICK, identity="load-1") as first,
        zaptasks.open_client(address, backoff=QUICK, identity="load-2") as second,
    ):
        yield [first, second]


def _destroyed_at_the_end(processes: list[Process]) -> ExitStack:
    stack = ExitStack()
    for process in processes:
        stack.callback(process.destroy)
    return stack
