"""Runs cases against a target, a few at a time, and tells a bad target from a dead one.

Cases mostly wait, so a small pool of threads is enough to keep a whole run short. Each case has its
own connections and names; those that cannot share something with another say so (`exclusive`).
"""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field

from zapconform import opcodes as op
from zapconform import wire
from zapconform.case import Case, Failed, Severity, TargetUnreachable, Unsupported, Verdict
from zapconform.connection import Connection, Traffic, TrafficLog
from zapconform.peer import Peer, open_peer
from zapconform.trial import Trial

THREADS = 16
LIVENESS_SECONDS = 3.0
"""A target that does not shake hands within this time is dead."""

EXIT_PASSED = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_DEAD = 3


@dataclass(frozen=True)
class Target:
    """Where to connect, and how long to wait for anything."""

    host: str
    port: int
    http_url: str = ""
    timeout: float = 5.0

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" + (f" and {self.http_url}" if self.http_url else "")


@dataclass(frozen=True)
class Outcome:
    """What became of one case."""

    case: Case
    verdict: Verdict
    seconds: float = 0.0
    expected: str = ""
    actual: str = ""
    notes: tuple[str, ...] = ()
    traffic: tuple[Traffic, ...] = ()
    traffic_dropped: int = 0

    def fails(self, *, strict: bool) -> bool:
        """Whether this outcome makes the run fail."""
        match self.verdict:
            case Verdict.ERROR:
                return True
            case Verdict.FAIL | Verdict.UNSUPPORTED:
                return strict or self.case.severity is Severity.MUST
            case Verdict.LENIENT:
                return strict
            case _:
                return False


@dataclass
class Report:
    """A whole run."""

    target: Target
    seed: int
    strict: bool
    node_id: str = ""
    extension: bool = False
    namespace: str = ""
    seconds: float = 0.0
    dead: str = ""
    """Why the target counts as dead, and what was going on then."""
    outcomes: list[Outcome] = field(default_factory=list)

    def counts(self) -> Counter[Verdict]:
        return Counter(outcome.verdict for outcome in self.outcomes)

    @property
    def exit_code(self) -> int:
        if self.dead:
            return EXIT_DEAD
        judged = [o for o in self.outcomes if o.verdict is not Verdict.SKIPPED]
        if not judged:
            return EXIT_USAGE
        return EXIT_FAILED if any(o.fails(strict=self.strict) for o in judged) else EXIT_PASSED


Progress = Callable[[Outcome, int, int], None]
"""Called as each case ends, with how many have ended and how many there are."""


def silence(outcome: Outcome, done: int, total: int) -> None:
    """Progress for nobody."""


def run(
    target: Target,
    cases: Sequence[Case],
    *,
    seed: int,
    strict: bool = False,
    threads: int = THREADS,
    on_outcome: Progress = silence,
) -> Report:
    """Run these cases; `on_outcome` is called in this thread as each one ends."""
    report = Report(target, seed, strict)
    started = time.monotonic()
    try:
        _look_at(target, report)
    except (Failed, TargetUnreachable) as reason:
        report.dead = f"no handshake with {target}: {reason}"
        report.outcomes = [Outcome(case, Verdict.ERROR, actual="not run: the target is dead") for case in cases]
        return report
    session = _Session(target, report)
    with ThreadPoolExecutor(threads, thread_name_prefix="case") as pool:
        # The longest first, so that the run does not end waiting for one that began last.
        ordered = sorted(cases, key=lambda case: -case.seconds)
        futures = [pool.submit(session.run, case) for case in ordered]
        for done, future in enumerate(as_completed(futures), 1):
            outcome = future.result()
            report.outcomes.append(outcome)
            on_outcome(outcome, done, len(cases))
    position = {case.id: index for index, case in enumerate(cases)}
    report.outcomes.sort(key=lambda outcome: position[outcome.case.id])
    report.seconds = time.monotonic() - started
    return report


def _look_at(target: Target, report: Report) -> None:
    """Learn what the target is: its node id, its default namespace, and whether it has our additions."""
    log = TrafficLog()
    peer, hello = open_peer(target.address, log, "probe", LIVENESS_SECONDS, f"zapconform-probe-{report.seed:x}")
    report.node_id = hello.node_id.decode("ascii", "backslashreplace")
    report.namespace = _default_namespace(peer, min(target.timeout, LIVENESS_SECONDS))
    peer.close()
    extended = wire.extended_hello(
        f"zapconform-probe-x-{report.seed:x}".encode(),
        capabilities=wire.CAPABILITY_BITS_KNOWN,
        details=b"\xa0",  # an empty CBOR map
    )
    peer = Peer(Connection(target.address, log, "probe", LIVENESS_SECONDS))
    try:
        report.extension = peer.shake_hands(extended).capabilities != 0
    except Failed:
        report.extension = False  # it refuses the longer hello; a case says so
    finally:
        peer.close()


def _default_namespace(peer: Peer, seconds: float) -> str:
    try:
        namespace = peer.call(op.HEALTH, {}, seconds).ok().get("namespace")
    except (Failed, Unsupported):
        return "default"  # cases about health say what is wrong
    return namespace if isinstance(namespace, str) and namespace else "default"


class _Session:
    """What the threads of one run share."""

    def __init__(self, target: Target, report: Report) -> None:
        self._target = target
        self._report = report
        self._lock = threading.Lock()
        self._running: set[str] = set()
        self._exclusive: dict[str, threading.Lock] = {}

    def run(self, case: Case) -> Outcome:
        if reason := self._not_applicable(case):
            return Outcome(case, Verdict.SKIPPED, actual=reason)
        if not case.exclusive:
            return self._run(case)
        with self._lock:
            turn = self._exclusive.setdefault(case.exclusive, threading.Lock())
        with turn:
            return self._run(case)

    def _not_applicable(self, case: Case) -> str:
        if case.http and not self._target.http_url:
            return "needs --http"
        if case.extension and not self._report.extension:
            return "the target does not announce the additions of zaptasks"
        return ""

    def _run(self, case: Case) -> Outcome:
        if self._report.dead:
            return Outcome(case, Verdict.ERROR, actual="not run: the target is dead")
        with self._lock:
            self._running.add(case.id)
        started = time.monotonic()
        trial = self._trial(case)
        try:
            verdict, expected, actual = self._judge(case, trial)
        finally:
            with self._lock:
                self._running.discard(case.id)
        return Outcome(
            case,
            verdict,
            time.monotonic() - started,
            expected,
            actual,
            tuple(trial.notes),
            tuple(trial.log.entries) if verdict is not Verdict.PASS else (),
            trial.log.dropped,
        )

    def _trial(self, case: Case) -> Trial:
        chance = random.Random(f"{self._report.seed}/{case.id}")
        return Trial(
            address=self._target.address,
            http_url=self._target.http_url,
            namespace=self._report.namespace,
            timeout=self._target.timeout,
            # Names are new in every run, also when a run is repeated with its seed.
            suffix=f"{time.time_ns() // 1000 % 16**10:x}{random.getrandbits(16):04x}",
            random=chance,
        )

    def _judge(self, case: Case, trial: Trial) -> tuple[Verdict, str, str]:
        try:
            bystander = trial.is_served("bystander") if case.hostile else None
            case.body(trial)
            if bystander is not None:
                _still_served(trial, bystander)
        except Unsupported as reason:
            return Verdict.UNSUPPORTED, "a server that serves this", str(reason)
        except Failed as reason:
            if self._is_dead(case, str(reason)):
                return Verdict.ERROR, reason.expected, f"{reason.actual} (and then the target was dead)"
            return Verdict.FAIL, reason.expected, reason.actual
        except TargetUnreachable as reason:
            if self._is_dead(case, str(reason)):
                return Verdict.ERROR, "a connection to the target", str(reason)
            return Verdict.FAIL, "a connection to the target", str(reason)
        except Exception:
            return Verdict.ERROR, "a case without faults of its own", traceback.format_exc(limit=-3)
        finally:
            trial.close()
        return (Verdict.LENIENT if trial.notes else Verdict.PASS), "", ""

    def _is_dead(self, case: Case, why: str) -> bool:
        """Whether the target is gone; asked after each failure, so that a crash is not a list of failures."""
        with self._lock:
            if self._report.dead:
                return True
            for _ in range(2):
                try:
                    peer, _hello = open_peer(
                        self._target.address, TrafficLog(), "liveness", LIVENESS_SECONDS, f"zc-live-{time.time_ns():x}"
                    )
                except (TargetUnreachable, Failed) as reason:
                    last = str(reason)
                    continue
                peer.close()
                return False
            others = ", ".join(sorted(self._running - {case.id})) or "nothing else"
            self._report.dead = f"{last}; noticed by {case.id} ({why}); also running: {others}"
            return True


def _still_served(trial: Trial, bystander: Peer) -> None:
    try:
        bystander.settle()
    except Failed as reason:
        raise Failed(expected="the bystander's connection to be served as before", actual=str(reason)) from None
    trial.is_served("afterwards")
