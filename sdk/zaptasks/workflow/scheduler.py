"""Steps the tasks of one run, one coroutine each, until all of them wait. No loop, no thread, no clock.

Tasks run first come, first served, so that the same inputs give the same steps in the same order. A task is named by
its place in the tree: `0` is the workflow's own, `0.1` and `0.2` are the first and second that it starts. A command
is named by the task that makes it and a count within that task, `0.1/3`; so what one task does never renames what
another does.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, copy_context
from random import Random
from typing import TYPE_CHECKING, Any, Final, Protocol

from .errors import Broken, Evicted, ForeignAwait, NotInWorkflow, ReadOnlyError, WorkflowTaskError
from .places import Place, awaiting, suspended

if TYPE_CHECKING:
    from .scopes import CancelStatus, Nursery
    from .sync import Lot

FOREIGN: Final = ("trio", "asyncio", "anyio", "curio", "httpx", "aiohttp", "sniffio", "outcome")
"""Packages whose frames are not the user's line, when a foreign await is reported."""

AWAITS_WHILE_CLOSING_MAX: Final = 100
"""Code that catches everything and awaits again, in a loop, is left after so many turns."""

STEPS_MAX: Final = 1_000_000
"""Turns of tasks between two waits of the whole run: 1.5 s of nothing but turns. Code that needs more is in a loop that
awaits and never waits, and would hold its worker for ever."""

PATH_CHARACTERS_MAX: Final = 900
"""Of the name of a task, which the ids of its commands begin with; a server takes ids of up to 1,000."""

AsyncFunction = Callable[..., Coroutine[Any, Any, object]]


class _Active(threading.local):
    task: Task | None = None


_active = _Active()

_open: set[Scheduler] = set()
"""Schedulers with tasks. Were one collected unclosed, Python would run the `finally` blocks of its tasks at any time,
perhaps in the middle of another run, whose commands their calls would then make. So it stays until it is closed."""

_stuck: list[object] = []
"""Coroutines that did not let themselves be closed. Kept, for being collected would mean being closed again."""


def current_task() -> Task:
    """The task whose code runs now. Raises `NotInWorkflow` outside of one."""
    task = _active.task
    if task is None:
        raise NotInWorkflow("this works only in the code of a workflow, its handlers and what they call")
    return task


def task_or_none() -> Task | None:
    return _active.task


class Suspend:
    """The only thing that a task of ours may yield: it waits, and `abort` says whether a cancel may end that.

    `abort` undoes the waiting and returns True; or it returns False, and the task waits on. None is a wait that no
    cancel ends.
    """

    __slots__ = ("abort",)

    def __init__(self, abort: Callable[[], bool] | None) -> None:
        self.abort = abort

    def __await__(self) -> Generator[Suspend, Any, Any]:
        task = current_task()
        if task.scheduler.is_closed and task.awaits_while_closing < AWAITS_WHILE_CLOSING_MAX:
            task.awaits_while_closing += 1
            raise Evicted("the run was evicted from this worker: nothing can be awaited here any more")
        if task.is_looking:
            raise ReadOnlyError(f"{task.name} must not wait")
        return (yield self)


def gone() -> bool:
    """The abort of a wait that leaves nothing behind."""
    return True


async def wait(abort: Callable[[], bool] | None = gone) -> Any:
    """Wait until somebody calls `reschedule` for this task."""
    return await Suspend(abort)


async def yield_to_others() -> None:
    """Let every task run that is ready; no cancel ends it."""
    task = current_task()
    task.scheduler.reschedule(task)
    await Suspend(None)


async def checkpoint_if_cancelled() -> None:
    task = current_task()
    if task.is_cancelled or task.scheduler.is_closed:
        await Suspend(gone)


async def checkpoint() -> None:
    """Let other tasks run, and notice a cancel."""
    await yield_to_others()
    await checkpoint_if_cancelled()


class Task:
    """One coroutine and what the runner knows of it."""

    __slots__ = (
        "abort",
        "awaits_while_closing",
        "children_made",
        "commands_made",
        "context",
        "coroutine",
        "eventual_nursery",
        "is_looking",
        "is_ready",
        "lot",
        "name",
        "next_error",
        "next_value",
        "nurseries",
        "nursery",
        "path",
        "random",
        "scheduler",
        "status",
    )

    def __init__(self, scheduler: Scheduler, path: str, name: str, *, is_looking: bool = False) -> None:
        self.scheduler = scheduler
        self.path = path
        self.name = name
        self.is_looking = is_looking
        """Whether it may only look: a query, a validator, a condition."""
        self.coroutine: Coroutine[Any, Any, object] | None = None
        self.context: Context | None = None
        self.status: CancelStatus | None = None
        self.nursery: Nursery | None = None
        self.eventual_nursery: Nursery | None = None
        self.nurseries: list[Nursery] = []
        self.abort: Callable[[], bool] | None = None
        self.is_ready = False
        self.lot: Lot | None = None
        """The line of a lock or an event that it waits in."""
        self.next_value: object = None
        self.next_error: BaseException | None = None
        self.children_made = 0
        self.commands_made = 0
        self.awaits_while_closing = 0
        self.random: Random | None = None

    def __repr__(self) -> str:
        return f"<workflow task {self.path} {self.name}>"

    def next_child_path(self) -> str:
        self.children_made += 1
        return f"{self.path}.{self.children_made}"

    def next_command_id(self) -> str:
        self.check_may_change("make a command")
        self.commands_made += 1
        return f"{self.path}/{self.commands_made}"

    def check_may_change(self, what: str) -> None:
        """Raise for code that must not change the run, and for code that runs while its run is dropped."""
        if self.scheduler.is_closed:
            raise Evicted("the run was evicted from this worker: its code can do nothing any more")
        if self.is_looking:
            raise ReadOnlyError(f"{self.name} tried to {what}: it may only look")

    # --- cancelling --------------------------------------------------------------------------------------

    @property
    def is_cancelled(self) -> bool:
        return self.status is not None and self.status.is_cancelled

    def activate(self, status: CancelStatus | None) -> None:
        """Be under another cancel status from now on."""
        if self.status is not None:
            del self.status.tasks[self]
        self.status = status
        if status is not None:
            status.tasks[self] = None
            if status.is_cancelled:
                self.deliver_cancel()

    def deliver_cancel(self) -> None:
        """End the wait of this task, if it waits, if it is cancelled, and if the wait lets itself be ended."""
        if self.abort is None or self.status is None or not self.status.is_cancelled:
            return
        abort, self.abort = self.abort, None
        if abort():
            self.scheduler.reschedule(self, error=self.status.cancelled())
        # else: the wait goes on, and is not asked again


class Host(Protocol):
    """What the tasks need of the world: its time, and timers."""

    @property
    def time(self) -> float: ...
    def start_timer(self, seconds: float, fire: Callable[[], None]) -> str: ...
    def cancel_timer(self, timer_id: str) -> None: ...


class Scheduler:
    """The tasks of one run."""

    def __init__(self, host: Host) -> None:
        self.host: Final = host
        self.tasks: dict[Task, None] = {}
        self.conditions: list[tuple[Callable[[], object], Task]] = []
        self.broken: BaseException | None = None
        self.is_closed = False
        self._ready: deque[Task] = deque()

    # --- what tasks do -----------------------------------------------------------------------------------

    def spawn(
        self,
        function: AsyncFunction,
        args: tuple[object, ...],
        nursery: Nursery,
        *,
        path: str = "",
        name: object = None,
        context: Context | None = None,
    ) -> Task:
        """Make a task that runs `function(*args)` under `nursery`; it begins when its turn comes."""
        maker = _active.task
        if maker is not None:
            maker.check_may_change("start a task")
        if nursery.is_closed:
            raise RuntimeError("the nursery is closed to new tasks")
        coroutine = _call(function, args)
        if not path:
            assert maker is not None
            path = maker.next_child_path()
        if len(path) > PATH_CHARACTERS_MAX:
            coroutine.close()
            raise RuntimeError(
                f"tasks are nested too deep: {path[:40]}... has more than {PATH_CHARACTERS_MAX} characters"
            )
        task = Task(self, path, str(name or getattr(function, "__qualname__", repr(function))))
        task.coroutine = coroutine
        task.context = copy_context() if context is None else context
        task.nursery = nursery
        nursery.children[task] = None
        task.activate(nursery.status)
        self.tasks[task] = None
        _open.add(self)
        self.reschedule(task)
        return task

    def reschedule(self, task: Task, value: object = None, error: BaseException | None = None) -> None:
        """Let a task go on that waits, with the value or the error that its wait gives."""
        assert not task.is_ready, f"{task!r} is ready already"
        if _active.task is not None:
            _active.task.check_may_change("wake a task")
        task.is_ready = True
        task.abort = None
        task.next_value, task.next_error = value, error
        self._ready.append(task)

    # --- running -----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Step whoever is ready, until everybody waits. Raises what broke the run, and an endless loop does."""
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(None, None)  # the host's loop has no business with the generators of a workflow
        try:
            steps = 0
            while True:
                while self._ready:
                    steps += 1
                    if steps > STEPS_MAX:
                        raise _endless(self._ready[0])
                    self._step(self._ready.popleft())
                    if self.broken is not None:
                        raise self.broken
                if not self._wake_a_condition():
                    break
        finally:
            sys.set_asyncgen_hooks(*hooks)
        if not self.tasks:
            _open.discard(self)

    def _wake_a_condition(self) -> bool:
        """Wake one task whose condition holds: nothing else runs before it, so that it still holds then."""
        for position, (predicate, task) in enumerate(self.conditions):
            try:
                holds = self.look(f"the condition of {task.name}", predicate)
            except Exception as error:
                del self.conditions[position]
                self.reschedule(task, error=error)
                return True
            if holds:
                del self.conditions[position]
                self.reschedule(task)
                return True
        return False

    def look(self, name: str, function: Callable[..., object], *args: object) -> object:
        """Call a function of the user's that must not change anything."""
        previous, _active.task = _active.task, Task(self, "?", name, is_looking=True)
        try:
            return function(*args)
        finally:
            _active.task = previous

    def _step(self, task: Task) -> None:
        assert task.coroutine is not None
        assert task.context is not None
        task.is_ready = False
        value, error = task.next_value, task.next_error
        task.next_value = task.next_error = None
        previous, _active.task = _active.task, task
        try:
            if error is None:
                yielded = task.context.run(task.coroutine.send, value)
            else:
                yielded = task.context.run(task.coroutine.throw, error)
        except StopIteration as stop:
            self._exited(task, stop.value, None)
        except (Broken, KeyboardInterrupt, SystemExit) as reason:
            self.broken = self.broken or reason
        except BaseException as raised:
            self._exited(task, None, raised)
        else:
            if type(yielded) is not Suspend:
                self._refuse(task, yielded)
            elif not task.is_ready:
                task.abort = yielded.abort
                task.deliver_cancel()
        finally:
            _active.task = previous

    def _exited(self, task: Task, value: object, error: BaseException | None) -> None:
        if task.nurseries:
            for nursery in task.nurseries:
                nursery.cancel_scope.cancel()
                nursery.is_closed = True
            misnested = RuntimeError(f"{task!r} ended inside of a nursery that it had opened and not left")
            misnested.__context__ = error
            error = misnested
        task.activate(None)
        del self.tasks[task]
        assert task.nursery is not None
        task.nursery.child_finished(task, value, error)

    def _refuse(self, task: Task, yielded: object) -> None:
        """A foreign await: unwind the task, so that the other library's scopes close, and give the run up."""
        place = suspended(task.coroutine, FOREIGN)
        self.broken = foreign_await(place, _library_of(yielded, task))
        assert task.coroutine is not None
        assert task.context is not None
        self.is_closed = True  # what the unwinding code asks of the workflow is refused
        try:
            task.context.run(task.coroutine.throw, Broken("a foreign await"))
            task.coroutine.close()
        except BaseException:
            pass  # whatever it makes of that: the run is broken

    # --- the end -------------------------------------------------------------------------------------------

    def close(self) -> list[Place]:
        """Drop every task. Returns the lines of those that did not let themselves be dropped.

        Python runs the `finally` blocks and `with` exits of a coroutine that is dropped, whoever drops it and however.
        They run here and now, and not when the garbage collector comes by; nothing that they ask of the
        workflow is done, and nothing that they await is waited for.
        """
        self.is_closed = True
        self._ready.clear()
        self.conditions.clear()
        stuck: list[Place] = []
        previous = _active.task
        for task in reversed(list(self.tasks)):  # the newest first: children before their parents
            assert task.coroutine is not None
            assert task.context is not None
            place, chain = suspended(task.coroutine), awaiting(task.coroutine)
            _active.task = task
            try:
                task.context.run(task.coroutine.close)
            except RuntimeError as error:
                if "GeneratorExit" in str(error):
                    stuck.append(place)
                    _stuck.extend(chain)
            except BaseException:
                pass  # what an evicted run says of itself is of no use to anybody
            finally:
                _active.task = previous
        self.tasks.clear()
        _open.discard(self)
        return stuck


def _endless(task: Task) -> WorkflowTaskError:
    return WorkflowTaskError(
        f"{suspended(task.coroutine)}: the workflow took {STEPS_MAX:,} steps and waited for nothing: this is a loop"
        " that awaits only what is there already. After a cancel every wait ends at once, so do not go on when you"
        " catch Cancelled; what has to be done then belongs under `CancelScope(shield=True)`"
    )


def foreign_await(place: Place, library: str) -> ForeignAwait:
    instead = (
        "await what `zaptasks.workflow` has instead (workflow.sleep, workflow.Event, workflow.open_nursery,"
        " workflow.open_memory_channel...), and do everything that reaches outside in an activity"
    )
    return ForeignAwait(f"{place}: a workflow cannot await something of {library}: {instead}")


def _call(function: AsyncFunction, args: tuple[object, ...]) -> Coroutine[Any, Any, object]:
    made = function(*args)
    if not isinstance(made, Coroutine):
        raise TypeError(f"{function!r} gave {made!r}: a task needs an `async def` function, not called yet")
    return made


def _library_of(yielded: object, task: Task) -> str:
    """Whose await it is, as far as it can be told."""
    module = type(yielded).__module__.partition(".")[0]
    if yielded is None:
        return "asyncio (a bare `yield`)"
    if module in ("_asyncio", "asyncio"):
        return "asyncio"
    return f"{module} ({type(yielded).__name__})" if module != "builtins" else f"another library ({yielded!r})"
