"""What a call knows about itself while it is handled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from zapserver.engine.commands import Command, PeerKey, Waiter
from zapserver.namespaces import Namespace, Namespaces
from zapserver.requests import Request

R = TypeVar("R")


class _Deferred:
    def __repr__(self) -> str:
        return "DEFERRED"


DEFERRED: Final = _Deferred()
"""Returned instead of an answer when an effect of the engine will bring it."""


class Call(Protocol):
    """One call of one connection."""

    @property
    def namespaces(self) -> Namespaces: ...

    @property
    def namespace(self) -> Namespace:
        """The one that the call names. Raises `NotFound` when nobody registered it."""

    @property
    def peer(self) -> PeerKey: ...

    @property
    def peer_name(self) -> str: ...

    @property
    def now_ms(self) -> int: ...

    @property
    def waiter(self) -> Waiter:
        """What finds this call again when its answer comes later."""

    def step(self, command: Command[R]) -> R:
        """One step of the namespace's engine at this call's time; its effects are performed afterwards."""

    def ask_for(self, durability: str) -> None:
        """Answer once this level is reached. Raises `Invalid`."""

    def changes(self, namespace: Namespace) -> None:
        """This call changes `namespace` otherwise than by a step."""


class Handler(NamedTuple):
    request: type[Request]
    answer: Callable[[Call, Any], object]


BinaryCall = Callable[["CallOpener", bytes], bytes]
"""From a whole message to a whole answer."""


class CallOpener(Protocol):
    """Gives a call its namespace, for layouts that carry the name inside or not at all."""

    def __call__(self, namespace: str = "") -> Call: ...
