"""What a conformance case is, how it says its verdict, and the one registry of all cases."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zapconform.trial import Trial

AREAS = ("frame", "handshake", "call", "push", "errors", "tasks", "schedules", "workflow", "http", "vectors")


class Severity(enum.StrEnum):
    MUST = "MUST"
    SHOULD = "SHOULD"


class Verdict(enum.StrEnum):
    PASS = "pass"
    LENIENT = "lenient"
    """Acceptable, but not what the requirement prefers. Counts as a pass unless `--strict`."""
    FAIL = "fail"
    UNSUPPORTED = "unsupported"
    """The server answered 501 to a call that the case needs."""
    SKIPPED = "skipped"
    """The case does not apply to this target."""
    ERROR = "error"
    """No verdict: the target is dead, or this kit has a fault."""


class Failed(Exception):
    """The target did something else than the requirement says."""

    def __init__(self, *, expected: str, actual: str) -> None:
        super().__init__(f"expected {expected}; got {actual}")
        self.expected = expected
        self.actual = actual


class Unsupported(Exception):
    """The target answered 501: it does not serve what the case is about."""


class TargetUnreachable(Exception):
    """No connection to the target could be opened."""


def check(condition: bool, *, expected: str, actual: object) -> None:
    if not condition:
        raise Failed(expected=expected, actual=shown(actual))


def equal(what: str, *, expected: object, actual: object) -> None:
    if actual != expected:
        raise Failed(expected=f"{what}: {shown(expected)}", actual=shown(actual))


def shown(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 400 else f"{text[:400]}… ({len(text)} characters)"


Body = Callable[["Trial"], None]


@dataclass(frozen=True)
class Case:
    """One requirement and the code that judges it."""

    id: str
    """`area/name`. Stable: an id is never given to another requirement, and never numbered."""
    requirement: str
    severity: Severity
    body: Body
    hostile: bool = False
    """The case misbehaves: afterwards a bystander and a fresh connection must still be served."""
    extension: bool = False
    """The case needs the additions of zaptasks; skipped where the target does not announce them."""
    http: bool = False
    """The case needs `--http`."""
    exclusive: str = ""
    """Cases that name the same thing here never run at the same time."""
    seconds: float = 0.0
    """About how long it waits by design; long ones start first."""

    @property
    def area(self) -> str:
        return self.id.partition("/")[0]


REGISTRY: dict[str, Case] = {}


def case(
    case_id: str,
    requirement: str,
    *,
    severity: Severity = Severity.MUST,
    hostile: bool = False,
    extension: bool = False,
    http: bool = False,
    exclusive: str = "",
    seconds: float = 0.0,
) -> Callable[[Body], Body]:
    """Register the decorated function as a case."""

    def register(body: Body) -> Body:
        area, _, name = case_id.partition("/")
        if area not in AREAS or not name:
            raise ValueError(f"case id {case_id!r} must be area/name with an area of {', '.join(AREAS)}")
        if case_id in REGISTRY:
            raise ValueError(f"case id {case_id!r} is taken")
        REGISTRY[case_id] = Case(case_id, requirement, severity, body, hostile, extension, http, exclusive, seconds)
        return body

    return register


SHOULD = Severity.SHOULD
