"""The namespaces of a server, each with an engine of its own."""

from __future__ import annotations

import re
import secrets
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from random import random

from zapserver.engine import Engine, Limits
from zapserver.engine.errors import Invalid, LimitReached, NotFound
from zapserver.limits import NAMESPACES_MAX

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
RETENTION_MS_DEFAULT = 720 * 3_600_000
ACTIONS_PER_SECOND_DEFAULT = 400
"""What Go's server reports as `apsLimit`."""


@dataclass(slots=True, eq=False)
class Namespace:
    name: str
    engine: Engine
    created_ms: int
    description: str = ""
    owner_email: str = ""
    retention_ms: int = RETENTION_MS_DEFAULT


class Namespaces:
    """By name. A namespace must be registered before anything happens in it; the default one always is."""

    def __init__(
        self,
        default: str = "default",
        *,
        now_ms: int,
        limits: Limits | None = None,
        namespaces_max: int = NAMESPACES_MAX,
    ) -> None:
        self._limits = limits or Limits()
        self._namespaces_max = namespaces_max
        self.refused: Counter[str] = Counter()
        """How often each limit refused something, in any namespace, since the start."""
        self._by_name: dict[str, Namespace] = {}
        self.default = default
        self.register(default, now_ms, description="Default namespace")

    def get(self, name: str) -> Namespace:
        """The namespace, or the default one for "". Raises `NotFound`."""
        namespace = self._by_name.get(name or self.default)
        if namespace is None:
            check_namespace_name(name)
            raise NotFound(f'namespace "{name}" not registered')
        return namespace

    def register(
        self, name: str, now_ms: int, *, description: str = "", owner_email: str = "", retention_ms: int = 0
    ) -> Namespace:
        """Create a namespace; one that exists keeps its work and takes the new description."""
        if not name:
            raise Invalid("namespace name required")
        check_namespace_name(name)
        namespace = self._by_name.get(name)
        if namespace is None:
            if len(self._by_name) >= self._namespaces_max:
                raise LimitReached(f"{len(self)} namespaces exist, as many as may", limit="namespaces")
            engine = Engine(new_id=_new_id, random=random, limits=self._limits)
            namespace = self._by_name[name] = Namespace(name=name, engine=engine, created_ms=now_ms)
        namespace.description = description or namespace.description
        namespace.owner_email = owner_email or namespace.owner_email
        namespace.retention_ms = retention_ms or namespace.retention_ms
        return namespace

    def count_refusal(self, error: Exception) -> None:
        """Take note of a refusal, if it is one of a limit."""
        if isinstance(error, LimitReached):
            self.refused[error.limit] += 1

    def __iter__(self) -> Iterator[Namespace]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)


def check_namespace_name(name: str) -> None:
    """Names become file names, so no path may hide in them."""
    if not NAME.fullmatch(name) or name in (".", ".."):
        raise Invalid(f"invalid namespace {name[:80]!r}: 1 to 64 of A-Z a-z 0-9 _ . - and not '.' or '..'")


def _new_id() -> str:
    return secrets.token_hex(16)
