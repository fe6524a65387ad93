"""The fixtures for pytest, in runs of pytest of their own: with pytest-trio and without."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

COMMON = """
import pytest
import zaptasks
from zaptasks import testing, workflow

@workflow.defn
async def nap(days: float) -> str:
    await workflow.sleep(days * 86_400)
    return await workflow.execute_activity("wake", start_to_close=30)

pytestmark = pytest.mark.zaptasks(workflows=[nap], activities=[testing.mock("wake", returns="rested")])
"""
BLOCKING = """
def test_plain(blocking_workflow_env):
    env = blocking_workflow_env
    assert isinstance(env.client, zaptasks.ServerCalls)     # what application code takes, Client or this
    assert issubclass(zaptasks.Client, zaptasks.ServerCalls)
    handle = env.client.start_workflow(nap, 100)
    assert handle.result() == "rested"
    assert env.now() == testing.START.replace(month=4, day=11)

@pytest.mark.zaptasks(activities=[testing.mock("wake", returns="other")])
def test_the_closer_marker_counts(blocking_workflow_env):
    assert blocking_workflow_env.client.execute_workflow(nap, 1) == "other"
"""
TRIO = """
async def test_async(workflow_env):
    assert await workflow_env.client.execute_workflow(nap, 100) == "rested"
"""


def run_pytest(folder: Path, test: str, *options: str) -> str:
    """The output of a run in which nothing is loaded but what is named."""
    (folder / "test_it.py").write_text(COMMON + test)
    (folder / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "--strict-markers", "-p", "zaptasks_pytest", *options],
        cwd=folder,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    return done.stdout + done.stderr


def test_the_async_fixture_works_with_pytest_trio(tmp_path: Path) -> None:
    assert "3 passed" in run_pytest(tmp_path, BLOCKING + TRIO, "-p", "trio", "-o", "trio_mode=true")
    marked = TRIO.replace("async def", "@pytest.mark.trio\nasync def")
    assert "1 passed" in run_pytest(tmp_path, marked, "-p", "trio")


def test_the_blocking_fixture_needs_no_plugin(tmp_path: Path) -> None:
    assert "2 passed" in run_pytest(tmp_path, BLOCKING, "-p", "no:trio")


def test_a_test_that_hangs_on_something_fails_and_says_on_what(tmp_path: Path) -> None:
    hangs = """
def test_hangs(blocking_workflow_env):
    blocking_workflow_env.client.execute_workflow("nobody's")
"""
    assert "none of the 1 worker(s) on task queue" in run_pytest(tmp_path, hangs, "-p", "no:trio")


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ("@pytest.mark.zaptasks([nap])\ndef test_x(blocking_workflow_env): ...", "takes keyword arguments only"),
        ("@pytest.mark.zaptasks(workflow=nap)\ndef test_x(blocking_workflow_env): ...", "keyword argument 'workflow'"),
        (TRIO, "async"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, test: str, message: str) -> None:
    output = run_pytest(tmp_path, test, "-p", "no:trio")
    assert message in output
    assert "passed" not in output


def test_pytest_finds_the_plugin_where_zaptasks_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["pytest11"] == {"zaptasks": "zaptasks_pytest"}
    assert "sdk/zaptasks_pytest" in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


def test_loading_the_plugin_loads_nothing_else() -> None:
    program = "import sys, zaptasks_pytest; print([m for m in sys.modules if m.startswith(('zaptasks.', 'trio'))])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"
