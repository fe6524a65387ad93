"""Real disks that are full, refuse writes, are slow or damaged, under a real server.

Calls fail with a clear status, nothing that was acknowledged is lost, finished work is kept by the workers, and the
server goes on by itself when the disk is well again.
"""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from tests.robustness.processes import ROOT, Broken, Process, environment, free_port, server_process
from tests.robustness.slow_server import SECONDS, SLOW

from zaptasks import AsyncClient, CallFailed, ServerBusy, TaskHandle, open_client, open_worker
from zapwire.client_link import Backoff

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

DISK_BYTES = 16 * 2**20
PAYLOAD = "x" * 4_000
TASKS_MAX = 20_000
RECOVERY_SECONDS_MAX = 12.0
"""The server looks at a sick disk every five seconds at least."""
QUICK = Backoff(0.02, 0.2)


@dataclass
class Disk:
    """A place for data, and how to make it sick and well again while a server runs on it."""

    folder: Path
    make_sick: Callable[[int], None]
    """Given the server's process id."""
    make_well: Callable[[int], None]


@contextmanager
def full_disk(folder: Path) -> Iterator[Disk]:
    """A file system of its own, filled by a file beside the data."""
    data, filler = folder / "data", folder / "data" / "filler"
    data.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(data)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")

    def fill(pid: int) -> None:
        with filler.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                return

    try:
        yield Disk(folder, fill, lambda pid: filler.unlink())
    finally:
        subprocess.run(["umount", "--lazy", str(data)], check=True)


@contextmanager
def failing_writes(folder: Path) -> Iterator[Disk]:
    """No file of the process may grow beyond its log: the kernel refuses the write, as a broken disk does."""

    def limit(pid: int, size: int) -> None:
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))

    log = folder / "data" / "_" / "default.db-wal"
    yield Disk(folder, lambda pid: limit(pid, log.stat().st_size), lambda pid: limit(pid, resource.RLIM_INFINITY))


@contextmanager
def read_only_files(folder: Path) -> Iterator[Disk]:
    """The database and its log become immutable under the server.

    Its shared memory does not: the kernel answers a write to that with SIGBUS, which no program of Python survives.
    """
    probe = folder / "probe"
    probe.touch()

    def change(sign: str, *paths: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["chattr", f"{sign}i", *map(str, paths)], capture_output=True, text=True)

    def apply(sign: str) -> None:
        store = folder / "data" / "_"
        changed = change(sign, store / "default.db", store / "default.db-wal")
        assert not changed.returncode, changed.stderr

    possible = change("+", probe)
    if possible.returncode:
        pytest.skip(f"files cannot be made immutable here: {possible.stderr.strip()}")
    change("-", probe)
    try:
        yield Disk(folder, lambda pid: apply("+"), lambda pid: apply("-"))
    finally:
        change("-", *(folder / "data" / "_").glob("*"))


@contextmanager
def running(server: Process) -> Iterator[Process]:
    server.start()
    try:
        yield server
    finally:
        server.destroy()


async def begin_until_refused(client: AsyncClient, taken: list[TaskHandle]) -> ServerBusy:
    """Start tasks until the server says no; appends those that it took."""
    refusals: list[ServerBusy] = []

    async def begin() -> None:
        while not refusals and len(taken) < TASKS_MAX:
            try:
                taken.append(await client.start_task("waits", PAYLOAD, task_queue="nobody"))
            except ServerBusy as error:
                refusals.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(begin)
    assert refusals, f"{len(taken)} tasks were taken by a disk that is sick"
    return refusals[0]


async def check_that_all_exist(client: AsyncClient, taken: list[TaskHandle]) -> None:
    there = {info.run_id async for info in client.list(page_size=500)}
    lost = [handle for handle in taken if handle.run_id not in there]
    assert not lost, f"{len(lost)} of {len(taken)} acknowledged tasks are lost"


@pytest.mark.parametrize(
    ("disk_kind", "status", "advice"),
    [
        (full_disk, 507, "free space on its disk"),
        (failing_writes, 503, "the server goes on by itself when the disk does"),
        (read_only_files, 503, "the server goes on by itself when the disk does"),
    ],
)
async def test_a_sick_disk_is_told_and_survived(
    disk_kind: Callable[[Path], AbstractContextManager[Disk]],
    status: int,
    advice: str,
    tmp_path: Path,
) -> None:
    begun, finish = trio.Event(), trio.Event()
    attempts: list[int] = []

    async def held() -> str:
        attempts.append(1)
        begun.set()
        await finish.wait()
        return "done while the disk was sick"

    port = free_port()
    with disk_kind(tmp_path) as disk, running(server_process(tmp_path, port, free_port())) as server:
        await server.wait_ready()
        async with (
            open_client(f"127.0.0.1:{port}", backoff=QUICK) as client,
            open_worker(client, "work", tasks=[held]) as worker,
        ):
            handle = await client.start_task("held", task_queue="work")
            await begun.wait()
            taken = [handle]
            pid = server.pid
            disk.make_sick(pid)
            refusal = await begin_until_refused(client, taken)
            assert refusal.status == status
            assert advice in refusal.detail
            assert "default.db" in refusal.detail
            finish.set()
            await trio.sleep(1)
            assert worker.running == 1, "the outcome is with the worker until it is taken"
            assert (await client.health()).service
            disk.make_well(pid)
            with trio.fail_after(RECOVERY_SECONDS_MAX):
                taken.append(await started_again(client))
                assert await handle.result() == "done while the disk was sick"
            assert attempts == [1]
            await check_that_all_exist(client, taken)
            assert (server.pid, server.starts, server.is_running) == (pid, 1, True)
            await server.kill()
            server.start()
            await server.wait_ready()
            await check_that_all_exist(client, taken)
            assert await handle.result() == "done while the disk was sick"


async def started_again(client: AsyncClient) -> TaskHandle:
    while True:
        try:
            return await client.start_task("waits", PAYLOAD, task_queue="nobody")
        except ServerBusy:
            await trio.sleep(0.1)


async def test_a_server_that_starts_on_a_full_disk_says_so(tmp_path: Path) -> None:
    """Both on a directory that is new, and on one that is there already."""
    with full_disk(tmp_path) as disk:
        for _ in range(2):
            disk.make_sick(0)
            server = server_process(tmp_path, free_port(), free_port())
            with running(server), pytest.raises(Broken, match="free space on its disk"):
                await server.wait_ready()
            assert await server.ended() == 1
            disk.make_well(0)
            with running(server):
                await server.wait_ready()
                server.send(signal.SIGTERM)
                assert await server.ended() == 0


async def test_a_slow_disk_makes_only_its_own_namespace_slow(tmp_path: Path) -> None:
    port = free_port()
    with running(server_process(tmp_path, port, free_port(), launcher="tests.robustness.slow_server")) as server:
        await server.wait_ready()
        address = f"127.0.0.1:{port}"
        async with open_client(address) as client, open_client(address, namespace=SLOW, timeout=30) as slow:
            await client.register_namespace(SLOW)
            taken: list[TaskHandle] = []

            async def begin() -> None:
                began = trio.current_time()
                taken.append(await slow.start_task("waits", PAYLOAD))
                assert trio.current_time() - began > SECONDS * 0.9

            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(begin)
                await trio.sleep(0.2)
                while len(taken) < 20:
                    for call in (client.health, lambda: client.start_task("waits", PAYLOAD)):
                        began = trio.current_time()
                        await call()
                        assert trio.current_time() - began < SECONDS / 2
                    await trio.sleep(0.05)
            await server.kill()
            server.start()
            await server.wait_ready()
            await check_that_all_exist(slow, taken)


async def test_a_damaged_record_is_named_and_the_rest_is_served(tmp_path: Path) -> None:
    port = free_port()
    server = server_process(tmp_path, port, free_port())
    with running(server):
        await server.wait_ready()
        async with open_client(f"127.0.0.1:{port}", backoff=QUICK) as client:
            bad = await client.start_task("waits", "the record with a bad byte", task_queue="work")
            good = [await client.start_task("waits", number, task_queue="work") for number in range(20)]
            await server.kill()
            flip_a_byte(tmp_path / "data" / "_" / "default.db", b"bad byte")
            server.start()
            await server.wait_ready()
            assert "a record is damaged and not served" in server.log_end()
            await check_that_all_exist(client, good)
            with pytest.raises(CallFailed) as caught:
                await bad.describe()
            assert caught.value.status == 404

            async def waits(number: int) -> int:
                return number

            async with open_worker(client, "work", tasks=[waits]):
                with trio.fail_after(10):
                    assert [await handle.result() for handle in good] == list(range(20))
    command = [sys.executable, "-m", "zapserver.cli", "verify", str(tmp_path / "data")]
    verified = await trio.run_process(
        command, env=environment(), cwd=ROOT, capture_stdout=True, stderr=subprocess.STDOUT, check=False
    )
    assert verified.returncode == 1
    assert b"damaged" in verified.stdout


def flip_a_byte(path: Path, mark: bytes) -> None:
    """In the record of the open execution that holds `mark`, and not in its checksum."""
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT key, value FROM records WHERE name = 'open'").fetchall()
        ((key, value),) = [(key, value) for key, value in rows if mark in value]
        flipped = value.replace(mark, bytes([mark[0] ^ 1]) + mark[1:])
        connection.execute("UPDATE records SET value = ? WHERE name = 'open' AND key = ?", (flipped, key))
    connection.close()
