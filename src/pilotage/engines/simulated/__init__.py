"""An engine without a model: it answers OpenAI's API in the time that a described GPU would take."""

from pilotage.engines.simulated.adapter import Simulated
from pilotage.engines.simulated.timing import Batch, Request, Step, Timing

__all__ = ["Batch", "Request", "Simulated", "Step", "Timing"]
