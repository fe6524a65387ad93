"""The engine is a pure function of what goes in: its source says so.

Time, randomness, ids and the outside world come as arguments; nothing here may fetch them itself.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import zapserver.engine

ENGINE = Path(zapserver.engine.__file__).parent
MODULES = sorted(ENGINE.glob("*.py"))

STANDARD = {
    "contextlib",
    "itertools",
    "operator",
    "re",
    "__future__",
    "collections",
    "collections.abc",
    "dataclasses",
    "datetime",
    "enum",
    "functools",
    "heapq",
    "typing",
}
THIRD_PARTY = {"msgspec"}
FIRST_PARTY = {
    "zapwire.body",
    "zapwire.failure",
    "zaptasks.spec",
    "zapserver.store.interface",
    "zapserver.store.errors",
    "zapserver.store.keys",
}
"""Pure modules: what bodies and the failure JSON are, when a spec is due, and what a batch and a reader are."""

IMPURE = {"trio", "socket", "time", "random", "os", "uuid", "logging", "threading", "asyncio", "secrets", "pathlib"}
CLOCKS = {"now", "today", "utcnow", "time", "monotonic"}
OUTSIDE = {"open", "print", "input", "exec", "eval", "__import__"}


def test_there_are_modules_to_look_at() -> None:
    assert len(MODULES) > 15


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_of_the_engine_imports_nothing_impure(path: Path) -> None:
    impure = sorted(name for name in _imports(path.read_text()) if not _is_pure(name))
    assert not impure, f"{path.name} imports {', '.join(impure)}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_of_the_engine_reads_no_clock_and_touches_nothing_outside(path: Path) -> None:
    assert _calls(path.read_text()) == []


def test_what_the_engine_imports_of_ours_is_pure_as_well() -> None:
    root = ENGINE.parents[2]
    for file in (
        "zap/zapwire/body.py",
        "zap/zapwire/failure.py",
        "sdk/zaptasks/spec.py",
        "sdk/zaptasks/duration.py",
        "server/zapserver/store/interface.py",
        "server/zapserver/store/errors.py",
        "server/zapserver/store/keys.py",
    ):
        source = (root / file).read_text()
        banned = _imports(source) & {
            "trio",
            "socket",
            "time",
            "random",
            "os",
            "uuid",
            "logging",
            "threading",
            "asyncio",
        }
        assert not banned, f"{file} imports {', '.join(banned)}"
        assert _calls(source) == []


@pytest.mark.parametrize(
    "source",
    [
        "import trio",
        "import os.path",
        "from time import monotonic",
        "from zapserver import shapes",
        "from zapserver.namespaces import Namespaces",
        "from zapwire import link",
        "def f():\n    import random",
        "if TYPE_CHECKING:\n    import socket",
        "from . import clock",
    ],
)
def test_the_check_of_imports_catches_a_planted_fault(source: str) -> None:
    assert not all(_is_pure(name) for name in _imports(source))


@pytest.mark.parametrize("source", ["datetime.now()", "date.today()", "open('x')", "x = dt.datetime.now(tz=UTC)"])
def test_the_check_of_calls_catches_a_planted_fault(source: str) -> None:
    assert _calls(source)


def _is_pure(name: str) -> bool:
    return name in STANDARD | THIRD_PARTY | FIRST_PARTY or f"{name}.".startswith("zapserver.engine.")


def _imports(source: str) -> set[str]:
    """The modules that a source names, wherever in it; a relative import counts as one of its own dots."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or ""))
    return names


def _calls(source: str) -> list[str]:
    """Calls that reach outside: a clock by any name, or a builtin that does."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [ast.unparse(call) for call in calls if _reaches_outside(call.func)]


def _reaches_outside(function: ast.expr) -> bool:
    if isinstance(function, ast.Attribute):
        return function.attr in CLOCKS
    return isinstance(function, ast.Name) and function.id in OUTSIDE
