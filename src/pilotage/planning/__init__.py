"""Which machine serves a model, and with how much context. Decides over values; touches nothing.

Knows models and memory, not engines' command lines or processes.
"""

from pilotage.planning.memory import (
    DEFAULT_CONTEXT_TOKENS,
    HostPlan,
    ModelDoesNotFit,
    PlanningError,
    kv_bytes_per_token,
    plan_for_host,
)

__all__ = [
    "DEFAULT_CONTEXT_TOKENS",
    "HostPlan",
    "ModelDoesNotFit",
    "PlanningError",
    "kv_bytes_per_token",
    "plan_for_host",
]
