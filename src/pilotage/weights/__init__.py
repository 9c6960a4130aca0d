"""Model weights: where they come from, fetched once a machine, verified, cached.

Knows files and sources, not engines: an engine gets a path, and nothing reaches for the network after that.
"""

from pilotage.weights.fetching import Fetched, Progress, ensure
from pilotage.weights.problems import (
    AccessDenied,
    DigestMismatch,
    NotEnoughDisk,
    NotFound,
    RateLimited,
    SourceUnreachable,
    TokenNeeded,
    WeightsError,
)
from pilotage.weights.store import CacheEntry, WeightsStore

__all__ = [
    "AccessDenied",
    "CacheEntry",
    "DigestMismatch",
    "Fetched",
    "NotEnoughDisk",
    "NotFound",
    "Progress",
    "RateLimited",
    "SourceUnreachable",
    "TokenNeeded",
    "WeightsError",
    "WeightsStore",
    "ensure",
]
