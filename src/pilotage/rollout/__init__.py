"""Which replica starts and which one goes next. Decides over values; touches nothing.

Knows revisions and phases of life, not processes or pods.
"""

from pilotage.rollout.backoff import restart_delay_s
from pilotage.rollout.replacement import Action, Drain, Phase, ReplicaView, Situation, Start, Stop, decide

__all__ = ["Action", "Drain", "Phase", "ReplicaView", "Situation", "Start", "Stop", "decide", "restart_delay_s"]
