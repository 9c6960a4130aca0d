"""How each engine is started, watched and asked. A file each; the rest of the code sees one `EngineAdapter`.

Knows command lines and metric names, not processes or replicas.
"""

from pilotage.engines.adapter import KEY_VARIABLE, EngineAdapter, InvalidEngineArgs, Launch, MetricNames, Route, WarmUp
from pilotage.engines.registry import adapter_for

__all__ = [
    "KEY_VARIABLE",
    "EngineAdapter",
    "InvalidEngineArgs",
    "Launch",
    "MetricNames",
    "Route",
    "WarmUp",
    "adapter_for",
]
