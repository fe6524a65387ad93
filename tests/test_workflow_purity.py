"""The workflow runner has no loop, no thread and no clock of its own: its source says so."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import zaptasks.workflow

PACKAGE = Path(zaptasks.workflow.__file__).parent
MODULES = sorted(PACKAGE.glob("*.py"))

IMPURE = {"trio", "outcome", "anyio", "asyncio", "socket", "time", "os", "secrets", "select", "subprocess", "signal"}
ALLOWED = {"suspects": {"time", "os", "secrets"}}
"""`suspects` names the functions of these modules, to find them in the code of others."""


def test_there_are_modules_to_look_at() -> None:
    assert len(MODULES) > 15


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_of_the_runner_is_pure(path: Path) -> None:
    assert impure(path.read_text()) <= ALLOWED.get(path.stem, set())


@pytest.mark.parametrize(
    "source",
    ["import trio", "from time import time", "def f():\n import os.path", "x = datetime.now(UTC)", "uuid.uuid4()"],
)
def test_a_planted_fault_is_found(source: str) -> None:
    assert impure(source)


def impure(source: str) -> set[str]:
    """The modules and calls of a source that the runner must do without."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names} & IMPURE
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {(node.module or "").partition(".")[0]} & IMPURE
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name = ast.unparse(node.func)
            found |= {name} & {"datetime.now", "datetime.utcnow", "uuid.uuid4", "random.random", "threading.Thread"}
    return found
