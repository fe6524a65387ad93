"""Which types JSON is written from and read into: what msgspec knows, paths, and pydantic models where it is used.

pydantic is no dependency: its models are known by their methods, and it is imported when one is met.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Hashable
from pathlib import PurePath
from typing import Any, Final, TypeAlias, TypeGuard

import msgspec

from zapwire.body import has_non_finite

Reader: TypeAlias = Callable[[Any], Any]
"""Reads JSON (bytes, text or `msgspec.Raw`) as one type. Raises `msgspec.MsgspecError` for JSON of another shape."""

TYPE_DEPTH_MAX: Final = 20
"""How deep the part of a type is looked for that cannot be read: types may refer to themselves."""


class UnreadableType(TypeError):
    """A type that no JSON can be read as. `path` leads to the part that is to blame, such as `$.items[].owner`."""

    def __init__(self, hint: object, path: str, culprit: object, reason: str) -> None:
        super().__init__(f"JSON cannot be read as {type_text(hint)}: {path} is {type_text(culprit)}: {reason}")
        self.path = path


def is_model(kind: object) -> TypeGuard[type[Any]]:
    """Whether `kind` is a class of pydantic's, or one that does as they do."""
    return isinstance(kind, type) and hasattr(kind, "model_validate") and hasattr(kind, "model_dump")


def _is_path(kind: type[Any]) -> bool:
    return issubclass(kind, PurePath)


def _is_hooked(kind: type[Any]) -> bool:
    """Whether the hooks below write and read it."""
    return _is_path(kind) or is_model(kind)


def _to_json(value: Any) -> object:
    """The hook for values that msgspec cannot encode by itself."""
    if _is_path(type(value)):
        return str(value)
    if not is_model(type(value)):
        raise TypeError(f"Encoding objects of type {type(value).__name__} is unsupported")
    try:
        dumped = value.model_dump(mode="json", by_alias=True)
    except Exception as error:  # a model may have serializers of its own
        raise ValueError(f"{type(error).__name__}: {error}") from None
    if has_non_finite(dumped):
        raise ValueError("it contains NaN or an infinity")
    return dumped


encoder: Final = msgspec.json.Encoder(enc_hook=_to_json)


@functools.lru_cache(maxsize=1024)
def reader(hint: Any) -> Reader:
    """What reads JSON as `hint`. Raises `UnreadableType` for what can be read neither by msgspec nor by pydantic."""
    if is_model(hint):
        return _model_reader(hint)
    try:
        decoder = msgspec.json.Decoder(hint, dec_hook=_from_json)
        customs = _custom_types(msgspec.inspect.type_info(hint))
    except (TypeError, NameError, RecursionError) as error:
        if _nests_model(hint, 0):  # a union of two models, say
            return _model_reader(hint)
        raise _unreadable(hint, str(error)) from None
    if not customs:
        return decoder.decode
    if not all(map(_is_hooked, customs)):
        raise _unreadable(hint, "msgspec cannot build it")
    return functools.partial(_read_with_hook, decoder)


class _Mismatch(ValueError):
    """JSON that a model or a path does not take; msgspec adds where the model lies in the whole."""

    def __init__(self, text: str, path: str) -> None:
        super().__init__(text)
        self.path = path


def _from_json(kind: type[Any], value: object) -> object:
    """The hook for types that msgspec cannot build by itself. A model is given JSON, and its rules for JSON hold."""
    if _is_path(kind):
        if not isinstance(value, str):
            raise _Mismatch(f"Expected `str`, got `{type(value).__name__}`", "")
        return kind(value)
    return _validate(_adapter(typing.cast(Hashable, kind)), msgspec.json.encode(value))


def _read_with_hook(decoder: msgspec.json.Decoder[Any], data: Any) -> Any:
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        if not isinstance(error.__cause__, _Mismatch):
            raise
        where = str(error).rpartition(" - at `")[2].rstrip("`") if " - at `" in str(error) else "$"
        raise msgspec.ValidationError(f"{error.__cause__} - at `{where}{error.__cause__.path}`") from None


def _model_reader(hint: Any) -> Reader:
    try:
        adapter = _adapter(hint)
    except Exception as error:  # pydantic's own, and those of the hooks that a model may define
        raise _unreadable(hint, str(error).partition("\n")[0]) from None

    def read(data: Any) -> Any:
        try:
            return _validate(adapter, data if isinstance(data, str) else bytes(data))
        except _Mismatch as error:
            raise msgspec.ValidationError(f"{error} - at `${error.path}`") from None

    return read


@functools.lru_cache(maxsize=1024)
def _adapter(hint: Hashable) -> Any:
    import pydantic  # half a second that a program without models need not wait

    adapter: Any = pydantic.TypeAdapter  # it takes any hint, and its types say so in some versions only
    if is_model(hint):
        return adapter(hint)
    return adapter(hint, config=pydantic.ConfigDict(val_json_bytes="base64"))  # outside of models


def _validate(adapter: Any, data: str | bytes) -> Any:
    import pydantic

    try:
        return adapter.validate_json(data)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
        raise _Mismatch(first["msg"], path) from None
    except Exception as error:  # a model may have validators of its own
        raise _Mismatch(f"{type(error).__name__}: {error}", "") from None


def _custom_types(info: msgspec.inspect.Type) -> list[type]:
    """The classes in a type that msgspec leaves to the hook."""
    seen: set[int] = set()
    waiting: list[object] = [info]
    found: list[type] = []
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, msgspec.inspect.CustomType):
            found.append(item.cls)
        elif isinstance(item, tuple | list):
            waiting.extend(item)
        elif isinstance(item, msgspec.inspect.Type | msgspec.inspect.Field):
            waiting.extend(getattr(item, name) for name in item.__struct_fields__ if name != "default")
    return found


def _nests_model(hint: object, depth: int) -> bool:
    if depth > TYPE_DEPTH_MAX:
        return False
    return is_model(hint) or any(_nests_model(part, depth + 1) for part in typing.get_args(hint))


# --- what is wrong with a type ----------------------------------------------------------------------------


def _unreadable(hint: object, reason: str) -> UnreadableType:
    path, culprit = _find_culprit(hint, "$", 0) or ("$", hint)
    return UnreadableType(hint, path, culprit, reason)


def _find_culprit(hint: object, path: str, depth: int) -> tuple[str, object] | None:
    """The innermost part of a type that cannot be read; None if this one can."""
    if depth > TYPE_DEPTH_MAX or _is_readable(hint):
        return None
    for name, part in _parts(hint):
        found = _find_culprit(part, path + name, depth + 1)
        if found is not None:
            return found
    return path, hint


def _is_readable(hint: Any) -> bool:
    try:
        msgspec.json.Decoder(hint)
        return all(map(_is_hooked, _custom_types(msgspec.inspect.type_info(hint))))
    except (TypeError, NameError, RecursionError):
        return False


def _parts(hint: Any) -> list[tuple[str, object]]:
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if arguments and isinstance(origin, type) and origin.__name__ not in ("Union", "UnionType"):
        return [("[]", part) for part in arguments if part is not Ellipsis]
    if arguments:
        return [("", part) for part in arguments]
    if not _has_fields(hint):
        return []
    try:
        return [(f".{name}", part) for name, part in typing.get_type_hints(hint).items()]
    except (TypeError, NameError):
        return []


def _has_fields(hint: Any) -> bool:
    return isinstance(hint, type) and (
        dataclasses.is_dataclass(hint)
        or issubclass(hint, msgspec.Struct | tuple)
        or hasattr(hint, "__attrs_attrs__")
        or typing.is_typeddict(hint)
    )


def type_text(hint: object) -> str:
    """A type as its author wrote it, about."""
    if isinstance(hint, type) and not typing.get_args(hint):
        return hint.__qualname__ if hint.__module__ == "builtins" else f"{hint.__module__}.{hint.__qualname__}"
    return str(hint)
