"""`python -m zapserver.cli`: the command without its script, for processes that this package starts."""

from __future__ import annotations

from zapserver.cli import main

main(prog_name="zaptasks")
