"""From the JSON that was delivered to the arguments that a handler is called with.

Parameters are read by their annotations: a handler that says `mail: Mail`, for a dataclass `Mail`, gets one, and
input of another shape is a `DecodeError` that is not retried. Where nothing can be built for the annotation, or there
is none, the parameter gets plain lists, dicts, strings and numbers.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any, Final

import msgspec

from .json_types import Reader, reader

_POSITIONAL: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_array: Final = msgspec.json.Decoder(list[msgspec.Raw])
_plain: Final = msgspec.json.Decoder().decode


class ArgumentsError(Exception):
    """What was delivered does not fit the handler's parameters. It becomes a `DecodeError` failure."""


class Parameters:
    """The positional parameters of one function, past the first `skip`."""

    __slots__ = ("_count", "_defaults", "_readers", "_rest", "required")

    def __init__(self, function: Callable[..., object], *, skip: int = 0) -> None:
        signature = inspect.signature(function)
        hints = _hints(function)
        self._readers: list[Reader] = []
        self._defaults: list[object] = []
        self._rest: Reader | None = None
        self.required = 0
        """How many positional parameters have no default."""
        for parameter in list(signature.parameters.values())[skip:]:
            read = _reader(hints.get(parameter.name, Any))
            if parameter.kind in _POSITIONAL:
                self._readers.append(read)
                is_required = parameter.default is parameter.empty
                self._defaults.append(None if is_required else parameter.default)
                self.required += is_required
            elif parameter.kind is parameter.VAR_POSITIONAL:
                self._rest = read
            elif parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
                raise TypeError(
                    f"{function!r} needs the keyword-only argument {parameter.name!r}, and handlers are called with"
                    " positional arguments: give it a default, or make it positional"
                )
        self._count = len(self._readers)

    def from_payload(self, payload: str | bytes | None) -> tuple[object, ...]:
        """The arguments of a task handler: the payload, or nothing for a function without parameters.

        No payload is the parameter's default, or None.
        """
        if self._count == 0:
            if self._rest is None or payload is None:
                return ()
            return (_decode(self._rest, payload, "the payload"),)
        if payload is None:
            return (self._defaults[0],)
        return (_decode(self._readers[0], payload, "the payload"),)

    def from_array(self, input: str | bytes | None) -> tuple[object, ...]:
        """The arguments of an activity or workflow, by the rules of Go's worker.

        The input is a JSON array. What is missing gets the parameter's default, or None; what is left over is
        ignored. Input that is not an array is the argument of a function that takes exactly one.
        """
        if input is None:
            return tuple(self._defaults)
        try:
            items = _array.decode(input)
        except (msgspec.MsgspecError, RecursionError) as error:
            if self._count == 1:
                return (_decode(self._readers[0], input, "argument 1"),)
            raise ArgumentsError(f"the input is not a JSON array of arguments: {error}") from None
        values = [
            _decode(read, raw, f"argument {index}")
            for index, (read, raw) in enumerate(zip(self._readers, items, strict=False), 1)
        ]
        if len(items) < self._count:
            values += self._defaults[len(items) :]
        elif self._rest is not None:
            rest = self._rest
            values += [
                _decode(rest, raw, f"argument {self._count + i}") for i, raw in enumerate(items[self._count :], 1)
            ]
        return tuple(values)


def result_reader(function: Callable[..., object] | None) -> Reader:
    """Reads what `function` returns, as the type that it is annotated with; plain JSON where there is none."""
    if function is None:
        return _plain
    try:
        return _result_reader(getattr(function, "__func__", function))
    except TypeError:  # one that cannot be hashed
        return _reader(_hints(function).get("return", Any))


@functools.lru_cache(maxsize=1_000)
def _result_reader(function: Callable[..., object]) -> Reader:
    """Kept: to look at annotations takes 35 us, as long as everything else that a workflow's step does."""
    return _reader(_hints(function).get("return", Any))


def result_type(function: Callable[..., object] | None) -> Any:
    """What `function` is annotated to return; `Any` where it is not, or where JSON cannot be read as that."""
    hint = Any if function is None else _hints(function).get("return", Any)
    try:
        reader(hint)
    except TypeError:  # `UnreadableType`, and annotations that have no hash
        return Any
    return hint


def _decode(read: Reader, raw: str | bytes | msgspec.Raw, what: str) -> object:
    try:
        return read(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ArgumentsError(f"{what} does not fit: {error}") from None
    except Exception as error:  # a class may check what it is made from, in its `__post_init__`
        raise ArgumentsError(f"{what} does not fit: {type(error).__name__}: {error}") from None


def _hints(function: Callable[..., object]) -> dict[str, Any]:
    target = function if inspect.isroutine(function) else type(function).__call__
    try:
        return typing.get_type_hints(target)
    except (NameError, TypeError, AttributeError):
        return {}  # annotations that exist only for type checkers


def _reader(hint: object) -> Reader:
    if hint is Any:
        return _plain
    try:
        return reader(hint)
    except TypeError:  # `UnreadableType`, and annotations that have no hash
        return _plain
