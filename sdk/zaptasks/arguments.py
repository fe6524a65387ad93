"""From the JSON that was delivered to the arguments that a handler is called with.

Parameters are read by their annotations: a handler that says `mail: Mail`, for a dataclass `Mail`, gets one, and
input of another shape is a `DecodeError` that is not retried. Where msgspec does not know the annotation, or there
is none, the parameter gets plain lists, dicts, strings and numbers.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any, Final

import msgspec

_POSITIONAL: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_array: Final = msgspec.json.Decoder(list[msgspec.Raw])
_plain: Final = msgspec.json.Decoder()


class ArgumentsError(Exception):
    """What was delivered does not fit the handler's parameters. It becomes a `DecodeError` failure."""


class Parameters:
    """The positional parameters of one function, past the first `skip`."""

    __slots__ = ("_count", "_decoders", "_defaults", "_rest", "required")

    def __init__(self, function: Callable[..., object], *, skip: int = 0) -> None:
        signature = inspect.signature(function)
        hints = _hints(function)
        self._decoders: list[msgspec.json.Decoder[Any]] = []
        self._defaults: list[object] = []
        self._rest: msgspec.json.Decoder[Any] | None = None
        self.required = 0
        """How many positional parameters have no default."""
        for parameter in list(signature.parameters.values())[skip:]:
            decoder = _decoder(hints.get(parameter.name, Any))
            if parameter.kind in _POSITIONAL:
                self._decoders.append(decoder)
                is_required = parameter.default is parameter.empty
                self._defaults.append(None if is_required else parameter.default)
                self.required += is_required
            elif parameter.kind is parameter.VAR_POSITIONAL:
                self._rest = decoder
            elif parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
                raise TypeError(
                    f"{function!r} needs the keyword-only argument {parameter.name!r}, and handlers are called with"
                    " positional arguments: give it a default, or make it positional"
                )
        self._count = len(self._decoders)

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
        return (_decode(self._decoders[0], payload, "the payload"),)

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
                return (_decode(self._decoders[0], input, "argument 1"),)
            raise ArgumentsError(f"the input is not a JSON array of arguments: {error}") from None
        values = [
            _decode(decoder, raw, f"argument {index}")
            for index, (decoder, raw) in enumerate(zip(self._decoders, items, strict=False), 1)
        ]
        if len(items) < self._count:
            values += self._defaults[len(items) :]
        elif self._rest is not None:
            rest = self._rest
            values += [
                _decode(rest, raw, f"argument {self._count + i}") for i, raw in enumerate(items[self._count :], 1)
            ]
        return tuple(values)


def result_decoder(function: Callable[..., object] | None) -> msgspec.json.Decoder[Any]:
    """Reads what `function` returns, as the type that it is annotated with; plain JSON where there is none."""
    if function is None:
        return _plain
    try:
        return _result_decoder(getattr(function, "__func__", function))
    except TypeError:  # one that cannot be hashed
        return _decoder(_hints(function).get("return", Any))


@functools.lru_cache(maxsize=1_000)
def _result_decoder(function: Callable[..., object]) -> msgspec.json.Decoder[Any]:
    """Kept: to look at annotations takes 35 us, as long as everything else that a workflow's step does."""
    return _decoder(_hints(function).get("return", Any))


def _decode(decoder: msgspec.json.Decoder[Any], raw: str | bytes | msgspec.Raw, what: str) -> object:
    try:
        return decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ArgumentsError(f"{what} does not fit: {error}") from None


def _hints(function: Callable[..., object]) -> dict[str, Any]:
    target = function if inspect.isroutine(function) else type(function).__call__
    try:
        return typing.get_type_hints(target)
    except (NameError, TypeError, AttributeError):
        return {}  # annotations that exist only for type checkers


def _decoder(hint: object) -> msgspec.json.Decoder[Any]:
    if hint is Any:
        return _plain
    try:
        if _is_foreign(msgspec.inspect.type_info(hint)):
            return _plain
        return msgspec.json.Decoder(hint)
    except (TypeError, NameError, RecursionError):
        return _plain


def _is_foreign(info: msgspec.inspect.Type) -> bool:
    """Whether a type, or a part of it, is a class that msgspec cannot build from JSON."""
    seen: set[int] = set()
    waiting: list[object] = [info]
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, msgspec.inspect.CustomType):
            return True
        if isinstance(item, tuple | list):
            waiting.extend(item)
        elif isinstance(item, msgspec.inspect.Type | msgspec.inspect.Field):
            waiting.extend(getattr(item, name) for name in item.__struct_fields__ if name != "default")
    return False
