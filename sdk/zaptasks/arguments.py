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

    __slots__ = ("_count", "_defaults", "_missing", "_names", "_readers", "_rest", "required")

    def __init__(self, function: Callable[..., object], *, skip: int = 0) -> None:
        signature = inspect.signature(function)
        hints = _hints(function)
        self._readers: list[Reader] = []
        self._missing: list[bool] = []
        """For each, whether a call without it is an error: it has no default, and its annotation no place for None."""
        self._names: list[str] = []
        self._defaults: list[object] = []
        self._rest: Reader | None = None
        self.required = 0
        """How many positional parameters have no default."""
        for parameter in list(signature.parameters.values())[skip:]:
            read = _reader(hints.get(parameter.name, Any))
            if parameter.kind in _POSITIONAL:
                self._readers.append(read)
                self._names.append(parameter.name)
                is_required = parameter.default is parameter.empty
                self._defaults.append(None if is_required else parameter.default)
                self._missing.append(is_required and not _takes_null(read))
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

        No payload is the parameter's default, or None where its annotation allows that.
        """
        if self._count == 0:
            if self._rest is None or payload is None:
                return ()
            return (_decode(self._rest, payload, "the payload"),)
        if payload is None:
            return tuple(self._left_out(0)[:1])
        return (_decode(self._readers[0], payload, "the payload"),)

    def from_array(self, input: str | bytes | None) -> tuple[object, ...]:
        """The arguments of an activity or workflow, by the rules of Go's worker.

        The input is a JSON array. What is missing gets the parameter's default, or None where its annotation allows
        that; what is left over is ignored. Input that is not an array is the argument of a function that takes exactly
        one.
        """
        if input is None:
            return tuple(self._left_out(0))
        try:
            items = _array.decode(input)
        except (msgspec.MsgspecError, RecursionError) as error:
            if self._count == 1:
                return (_decode(self._readers[0], input, f"argument 1 ({self._names[0]!r})"),)
            raise ArgumentsError(f"the input is not a JSON array of arguments: {error}") from None
        values = [
            _decode(read, raw, f"argument {index} ({name!r})")
            for index, (read, name, raw) in enumerate(zip(self._readers, self._names, items, strict=False), 1)
        ]
        if len(items) < self._count:
            values += self._left_out(len(items))
        elif self._rest is not None:
            rest = self._rest
            values += [
                _decode(rest, raw, f"argument {self._count + i}") for i, raw in enumerate(items[self._count :], 1)
            ]
        return tuple(values)

    def _left_out(self, count: int) -> list[object]:
        """What parameters from number `count` on get when nothing was given for them."""
        for index in range(count, self._count):
            if self._missing[index]:
                raise ArgumentsError(f"argument {index + 1} ({self._names[index]!r}) is missing")
        return self._defaults[count:]


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


def _takes_null(read: Reader) -> bool:
    try:
        read(b"null")
    except Exception:  # whatever a class of the application's raises when it is made from None
        return False
    return True


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
