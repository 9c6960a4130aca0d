"""Engine and gateway measurements, and the metrics made of them.

Knows what is measured, not who asks or why; a measurement is a value, stale or absent, never a guessed zero.
"""

from pilotage.signals.metrics import GatewayMetrics, PlatformMetrics
from pilotage.signals.scrape import EngineSample, parse_samples

__all__ = ["EngineSample", "GatewayMetrics", "PlatformMetrics", "parse_samples"]
