"""Envoy's configuration, the picker that answers it, and the usage that comes back.

Knows replicas by address and slots only: how they run, and why there are that many, is decided elsewhere.
"""

from pilotage.gateway.envoy import EnvoySettings, bootstrap
from pilotage.gateway.programming import GatewayFiles, program
from pilotage.gateway.table import (
    GatewayLimits,
    KeyEntry,
    KeyLimits,
    ReplicaEntry,
    RouteRule,
    RoutingTable,
    ServiceEntry,
    hash_of_key,
)

__all__ = [
    "EnvoySettings",
    "GatewayFiles",
    "GatewayLimits",
    "KeyEntry",
    "KeyLimits",
    "ReplicaEntry",
    "RouteRule",
    "RoutingTable",
    "ServiceEntry",
    "bootstrap",
    "hash_of_key",
    "program",
]
