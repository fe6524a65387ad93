"""Black-box conformance for servers that speak ZAP tasks.

    python -m zapconform run --zap HOST:PORT

The kit has its own decoder, its own sockets and nothing else: it shares no code with any
implementation, so it can fail all of them, and it runs wherever Python 3.11 does.
"""

from __future__ import annotations

from zapconform.case import Case, Severity, Verdict
from zapconform.catalog import all_cases
from zapconform.runner import Outcome, Report, Target, run

__all__ = ["Case", "Outcome", "Report", "Severity", "Target", "Verdict", "all_cases", "run"]
__version__ = "1.0"
