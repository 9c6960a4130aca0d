"""The loop: observe, decide, apply, report. One for every fleet.

Decides nothing itself: what to do is asked of planning and rollout, and done by a fleet and a gateway behind seams.
"""

from pilotage.operator.events import Event, EventLog
from pilotage.operator.loop import Operator
from pilotage.operator.records import ServiceRecord, ServiceRecords
from pilotage.operator.seams import Fleet, Gateway, Machine, Weights

__all__ = [
    "Event",
    "EventLog",
    "Fleet",
    "Gateway",
    "Machine",
    "Operator",
    "ServiceRecord",
    "ServiceRecords",
    "Weights",
]
