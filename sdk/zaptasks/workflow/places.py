"""Where in the user's code something happens, as `file:line in function`."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from types import CodeType, CoroutineType, FrameType
from typing import Any, Final, NamedTuple

_OURS: Final = str(Path(__file__).parent)
_PLUMBING: Final = frozenset({contextlib.__file__})


class Place(NamedTuple):
    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} in {self.function}"


UNKNOWN: Final = Place("<unknown>", 0, "<unknown>")


def caller() -> Place:
    """The line of the user's code that called into this package."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not _is_users(frame.f_code):
        frame = frame.f_back
    return UNKNOWN if frame is None else Place(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_qualname)


def suspended(coroutine: object, foreign: tuple[str, ...] = ()) -> Place:
    """The user's line at which a coroutine waits: the innermost that is not of ours or of the packages named."""
    place = UNKNOWN
    for frame in _frames(coroutine):
        module = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if _is_users(frame.f_code) and module not in foreign:
            place = Place(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_qualname)
    return place


def stack(coroutine: object) -> list[Place]:
    """The user's lines in which a coroutine waits, outermost first."""
    return [
        Place(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_qualname)
        for frame in _frames(coroutine)
        if _is_users(frame.f_code)
    ]


def innermost_module(error: BaseException) -> str:
    """The top-level package in which an exception was raised."""
    traceback = error.__traceback__
    if traceback is None:
        return ""
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return str(traceback.tb_frame.f_globals.get("__name__", "")).partition(".")[0]


def raised_at(error: BaseException, foreign: tuple[str, ...] = ()) -> Place:
    """The innermost line of the user's in the traceback of an exception."""
    place = UNKNOWN
    traceback = error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        module = str(traceback.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        if _is_users(code) and module not in foreign:
            place = Place(code.co_filename, traceback.tb_lineno, code.co_qualname)
        traceback = traceback.tb_next
    return place


def awaiting(coroutine: object) -> list[CoroutineType[Any, Any, Any]]:
    """A coroutine, the one that it awaits, and so on."""
    chain: list[CoroutineType[Any, Any, Any]] = []
    while isinstance(coroutine, CoroutineType):
        chain.append(coroutine)
        coroutine = coroutine.cr_await
    return chain


def _frames(coroutine: object) -> list[FrameType]:
    return [frame for part in awaiting(coroutine) if (frame := part.cr_frame) is not None]


def _is_users(code: CodeType) -> bool:
    return not code.co_filename.startswith(_OURS) and code.co_filename not in _PLUMBING
