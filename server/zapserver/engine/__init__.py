"""The engine: every rule of tasks, workflows and schedules, pure and synchronous."""

from zapserver.engine.engine import Engine as Engine
from zapserver.engine.errors import EngineError as EngineError
from zapserver.engine.limits import Limits as Limits
