"""All cases, in the order in which they are listed. Importing this registers them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from zapconform.case import AREAS, REGISTRY, Case
from zapconform.cases import (
    call,
    errors,
    frame,
    handshake,
    http,
    messages,
    namespaces,
    push,
    receipts,
    schedules,
    tasks,
    tasks_extension,
    tasks_timing,
    workflow,
    workflow_activities,
    workflow_cancel,
    workflow_reading,
    workflow_replay,
    workflow_starts,
)
from zapconform.vector_files import built_in_cases

MODULES = (
    *(frame, messages, handshake, call, namespaces, push, errors, tasks, tasks_timing, tasks_extension, receipts),
    *(schedules, workflow, workflow_activities, workflow_cancel, workflow_reading),
    *(workflow_replay, workflow_starts, http),
)
"""Named so that nobody takes the imports for unused; importing them is what registers the cases."""


def all_cases() -> list[Case]:
    """Every case of the kit, by area and then in the order of its module."""
    order = {area: index for index, area in enumerate(AREAS)}
    return sorted([*REGISTRY.values(), *built_in_cases()], key=lambda case: order[case.area])


def select(cases: Iterable[Case], patterns: Sequence[str]) -> list[Case]:
    """The cases that any pattern names: an id, an area, or a glob. No patterns select everything."""
    if not patterns:
        return list(cases)
    return [case for case in cases if any(_matches(case, pattern) for pattern in patterns)]


def _matches(case: Case, pattern: str) -> bool:
    return case.id == pattern or case.area == pattern.rstrip("/") or fnmatchcase(case.id, pattern)
