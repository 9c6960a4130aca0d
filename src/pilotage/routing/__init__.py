"""Which replica serves a request. Decides over values; reads no clock and no random source.

Knows nothing of HTTP, Envoy or processes: a request is a chain of prefix blocks, a replica is a number.
"""

from pilotage.routing.choice import Board, Pick, choose
from pilotage.routing.prefixes import PrefixIndex

__all__ = ["Board", "Pick", "PrefixIndex", "choose"]
