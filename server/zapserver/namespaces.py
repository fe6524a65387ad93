"""The namespaces of a server, each with an engine of its own."""

from __future__ import annotations

import gc
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from random import random
from typing import TypeAlias, TypeVar

import msgspec

from zapserver.engine import Engine, Limits
from zapserver.engine.commands import Command, PeerKey
from zapserver.engine.errors import EngineError, Invalid, LimitReached, NotFound
from zapserver.engine.tables import Table
from zapserver.journal import Fail, Journal, Send, Writer
from zapserver.limits import NAMESPACES_MAX
from zapserver.outputs import Outputs
from zapserver.store import Batch, Damaged, Durability, MemoryStore, QueueFull, Store, StoreError
from zapserver.store.keys import encode_key

R = TypeVar("R")

SYNCED = Durability.SYNCED

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
RETENTION_MS_DEFAULT = 720 * 3_600_000
RETENTION_MS_FOREVER = 100 * 365 * 24 * 3_600_000
CLOSED_IN_MEMORY_MAX = 100_000
"""Closed executions of a namespace that is not on a disk; the oldest are forgotten first. About 1 KiB each."""
ACTIONS_PER_SECOND_DEFAULT = 400
"""What Go's server reports as `apsLimit`."""


OpenStore: TypeAlias = Callable[[str], tuple[Store, Writer | None]]
"""From a namespace's name to its store, and to the writer that commits to it unless the store does so at once."""

_ABOUT = "namespace"
"""In the table `meta`: what a namespace is called and may do."""


def new_id() -> str:
    """32 hex digits: the time in milliseconds, then 80 random bits.

    Ids that begin with the time land on the same few pages of the store's tree, random ones on a page each.
    """
    return f"{time.time_ns() // 1_000_000:012x}{os.urandom(10).hex()}"


class About(msgspec.Struct, omit_defaults=True):
    """What is kept of a namespace beside its work."""

    created_ms: int
    description: str = ""
    owner_email: str = ""
    retention_ms: int = RETENTION_MS_DEFAULT


class Namespace:
    """One namespace: its engine, its store, and the journal between them."""

    def __init__(
        self,
        name: str,
        store: Store,
        writer: Writer | None,
        *,
        limits: Limits,
        now_ms: int,
        new_id: Callable[[], str] = new_id,
        random: Callable[[], float] = random,
    ) -> None:
        """Take up what `store` has. `new_id` and `random` are for the engine. Raises `StoreError`."""
        self.name = name
        self.store = store
        self.journal = Journal(store, writer)
        self._limits = limits
        self._new_id = new_id
        self._random = random
        self.engine = self._new_engine()
        with _collector_paused():
            self.damaged = self.engine.recover(now_ms)
        """What could not be read of the store, and is not served."""
        self.outputs = Outputs(limits, self.engine.now_ms)
        """What its activities emit. Of the process and not of the store, so that a new engine changes nothing."""
        about = self._read_about()
        self.about = About(now_ms) if about is None else about
        self._keep(SYNCED)
        if about is None:
            self.describe()
        self.journal.flush()

    def step(self, command: Command[R], now_ms: int, durability: Durability = SYNCED) -> R:
        """One step of the engine; what it changes is on its way to the store when this returns.

        Raises `EngineError`, and `StoreError` when the store takes nothing at present: then nothing happened. Anything
        else is a mistake in the engine: what it left is void, and it is built again from what was kept before.
        """
        if self.journal.failure is not None:
            raise self.journal.failure.with_traceback(None)
        try:
            answer = self.engine.step(command, now_ms)
        except (EngineError, Damaged):  # of the command nothing happened; but time has passed
            self._keep(durability)
            raise
        except Exception as error:
            self._void(error)
            raise
        self._keep(durability)
        return answer

    def send(self, send: Send, fail: Fail | None = None, level: Durability = SYNCED) -> None:
        """Call `send` once everything decided so far has reached `level`, which may be now; `fail` if it never does."""
        if self.journal.failure is None and not self.journal.reaches(level):
            # Others asked for less: a record that is there anyway goes again, and takes theirs along to the disk.
            self.journal.add(self._about_record(), level)
        self.journal.send(send, fail)

    def describe(self, *, description: str = "", owner_email: str = "", retention_ms: int = 0) -> None:
        """Change what is given and keep the rest."""
        self.journal.check_ready()
        about = self.about
        self.about = About(
            about.created_ms,
            description or about.description,
            owner_email or about.owner_email,
            retention_ms or about.retention_ms,
        )
        self.journal.add(self._about_record(), SYNCED)

    def rebuild(self, now_ms: int, live: Iterable[PeerKey]) -> None:
        """After a failed commit, once the store is well: the engine again, from what was kept.

        Raises what reading it raised; then the namespace has failed again, and `rebuild` can be tried again.
        """
        engine = self._new_engine()
        try:
            with _collector_paused():
                self.damaged = engine.recover(now_ms, old=self.engine, live=live)
        except Exception as error:
            self._void(error)
            raise
        self.engine = engine
        self._keep(SYNCED)

    def _new_engine(self) -> Engine:
        return Engine(new_id=self._new_id, random=self._random, limits=self._limits, reader=self.journal.reader)

    def _keep(self, durability: Durability) -> None:
        try:
            changes = self.engine.take_changes()
        except Exception as error:
            self._void(error)
            raise
        self.journal.add(changes, durability)

    def _void(self, error: Exception) -> None:
        if not isinstance(error, StoreError):
            error = StoreError(f"a step of the engine failed: {error!r}: this is a mistake in the server, report it")
        self.journal.void(error)

    def _read_about(self) -> About | None:
        """What was kept of it. Where that is damaged nothing is deleted before somebody names a retention again."""
        try:
            data = self.store.get(Table.META, (_ABOUT,))
            return None if data is None else msgspec.json.decode(data, type=About)
        except (Damaged, msgspec.MsgspecError) as error:
            if isinstance(error, Damaged) and not error.table:  # not a record: the file
                raise
            text = f"the description of namespace {self.name!r} is damaged, and its closed executions are kept: {error}"
            self.damaged.append(Damaged(text, table=Table.META, key=encode_key((_ABOUT,))))
            return About(created_ms=0, retention_ms=RETENTION_MS_FOREVER)

    def _about_record(self) -> Batch:
        batch = Batch()
        batch.put(Table.META, (_ABOUT,), msgspec.json.encode(self.about))
        return batch


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Recovery makes millions of objects and no garbage: looking through them again and again doubles its time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class Namespaces:
    """By name. A namespace must be registered before anything happens in it; the default one always is."""

    def __init__(
        self,
        default: str = "default",
        *,
        now_ms: int,
        limits: Limits | None = None,
        open_store: OpenStore | None = None,
        known: Iterable[str] = (),
        namespaces_max: int = NAMESPACES_MAX,
        new_id: Callable[[], str] = new_id,
        random: Callable[[], float] = random,
    ) -> None:
        """Open the default namespace and those that are `known` to have a store.

        One whose file cannot be read goes to `unreadable`, and the others are served. Raises `StoreError` for the
        default one, and for whatever else stands in the way.

        A simulation gives its own `new_id` and `random`, so that one seed decides everything.
        """
        self._limits = limits or Limits()
        self._open_store = open_store or _in_memory
        self._namespaces_max = namespaces_max
        self._new_id = new_id
        self.random = random
        self.refused: Counter[str] = Counter()
        """How often each limit refused something, in any namespace, since the start."""
        self._by_name: dict[str, Namespace] = {}
        self.on_open: Callable[[Namespace], None] = _nothing
        """Called with each namespace that is registered from now on."""
        self.default = default
        self.unreadable: dict[str, Damaged] = {}
        """Namespaces that exist and cannot be served, and why."""
        for name in sorted({default, *known}):
            try:
                self._open(name, now_ms)
            except Damaged as error:
                if name == default:
                    raise
                self.unreadable[name] = error
        if not self._by_name[default].about.description:
            self._by_name[default].describe(description="Default namespace")

    def get(self, name: str) -> Namespace:
        """The namespace, or the default one for "". Raises `NotFound`, and `Damaged` where it is `unreadable`."""
        namespace = self._by_name.get(name or self.default)
        if namespace is None:
            if name in self.unreadable:
                raise self.unreadable[name].with_traceback(None)
            check_namespace_name(name)
            raise NotFound(f'namespace "{name}" not registered')
        return namespace

    def register(
        self, name: str, now_ms: int, *, description: str = "", owner_email: str = "", retention_ms: int = 0
    ) -> Namespace:
        """Create a namespace; one that exists keeps its work and takes the new description. Raises `StoreError`."""
        if not name:
            raise Invalid("namespace name required")
        check_namespace_name(name)
        namespace = self._by_name.get(name)
        if namespace is None:
            if len(self._by_name) >= self._namespaces_max:
                raise LimitReached(f"{len(self)} namespaces exist, as many as may", limit="namespaces")
            namespace = self._open(name, now_ms)
        namespace.describe(description=description, owner_email=owner_email, retention_ms=retention_ms)
        return namespace

    def _open(self, name: str, now_ms: int) -> Namespace:
        store, writer = self._open_store(name)
        limits = self._limits
        if store.durability is Durability.MEMORY and not limits.closed_executions_max:
            limits = msgspec.structs.replace(limits, closed_executions_max=CLOSED_IN_MEMORY_MAX)
        try:
            namespace = Namespace(
                name, store, writer, limits=limits, now_ms=now_ms, new_id=self._new_id, random=self.random
            )
        except BaseException:
            store.close()  # or its lock would keep everybody out, also the next try
            raise
        self._by_name[name] = namespace
        self.unreadable.pop(name, None)
        self.on_open(namespace)
        return namespace

    def count_refusal(self, error: Exception) -> None:
        """Take note of a refusal, if it is one of a limit."""
        if isinstance(error, LimitReached):
            self.refused[error.limit] += 1
        elif isinstance(error, QueueFull):
            self.refused["store-queue"] += 1

    def __iter__(self) -> Iterator[Namespace]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)


def _nothing(namespace: Namespace) -> None:
    return None


def _in_memory(name: str) -> tuple[Store, Writer | None]:
    return MemoryStore(Table), None


def is_namespace_name(name: str) -> bool:
    return NAME.fullmatch(name) is not None and name not in (".", "..")


def check_namespace_name(name: str) -> None:
    """Names become file names, so no path may hide in them."""
    if not is_namespace_name(name):
        raise Invalid(f"invalid namespace {name[:80]!r}: 1 to 64 of A-Z a-z 0-9 _ . - and not '.' or '..'")
