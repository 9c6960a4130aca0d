"""Where replicas run: as processes of one machine, or as objects of a cluster.

Knows how to start, watch and stop a replica; never why there are that many. What both kinds share comes from here; a
kind of fleet is a package of its own, whose modules the command line imports one by one, as it needs them.
"""

from pilotage.fleet.contract import AgentConfig, AgentStatus, ReplicaRecord
from pilotage.fleet.orphans import until_orphaned
from pilotage.fleet.sockets import serve_on_socket

__all__ = ["AgentConfig", "AgentStatus", "ReplicaRecord", "serve_on_socket", "until_orphaned"]
