"""A service's status, as the resource shows it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pilotage.fleet import ReplicaRecord
from pilotage.operator.records import ServiceRecord
from pilotage.operator.seams import GatewayState
from pilotage.rollout import Phase

# Reasons that pass by themselves.
ON_THE_WAY = frozenset({"Starting", "Fetching", "Planning"})


@dataclass(frozen=True, slots=True)
class Condition:
    """A Kubernetes condition. `status` is True, False or Unknown."""

    type: str
    status: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """What stands in a service's way, and the condition that it makes false."""

    condition: str
    reason: str
    message: str
    final: bool


def conditions_of(
    record: ServiceRecord,
    *,
    replicas: Sequence[ReplicaRecord],
    gateway: GatewayState,
    fetching: bool,
    trouble: Trouble | None,
    names_lost: Mapping[str, str],
) -> list[Condition]:
    """What holds of the service, most specific first; `Ready` sums up and comes first."""
    parts = [
        _weights(record, fetching, trouble),
        _planned(record, trouble),
        _replicas(record, replicas, trouble),
        _gateway(record, gateway, names_lost),
    ]
    # What is known to be wrong says more than what is not known yet.
    first_false = next((c for status in ("False", "Unknown") for c in parts if c.status == status), None)
    wanted = record.service.replicas
    if record.delete_within_s is not None:
        ready = Condition("Ready", "False", "Stopping", "it is being taken down")
    elif wanted == 0:
        ready = Condition("Ready", "False", "ScaledToZero", "no replica is wanted; set spec.replicas to run some")
    elif first_false is None:
        ready = Condition("Ready", "True", "Serving", f"{wanted} of {wanted} replicas answer")
    elif any(r.phase is Phase.READY for r in replicas) and gateway.usable.get(record.key):
        # It answers, though not all is as it should be.
        word = "Progressing" if first_false.reason in ON_THE_WAY else "Degraded"
        ready = Condition("Ready", "True", word, f"{first_false.reason}: {first_false.message}")
    else:
        ready = Condition("Ready", first_false.status, first_false.reason, first_false.message)
    return [ready, *parts]


def _of_trouble(name: str, trouble: Trouble | None) -> Condition | None:
    return Condition(name, "False", trouble.reason, trouble.message) if trouble and trouble.condition == name else None


def _weights(record: ServiceRecord, fetching: bool, trouble: Trouble | None) -> Condition:
    name = "WeightsAvailable"
    if found := _of_trouble(name, trouble):
        return found
    if fetching:
        return Condition(name, "False", "Fetching", f"{record.service.spec.model.source} is being fetched")
    if record.resolved:
        return Condition(name, "True", "Available", "the weights are on this machine")
    return Condition(name, "Unknown", "NotLookedFor", "the weights have not been looked for yet")


def _planned(record: ServiceRecord, trouble: Trouble | None) -> Condition:
    name = "Planned"
    if found := _of_trouble(name, trouble):
        return found
    if record.resolved and record.is_planned:
        return Condition(name, "True", "Fits", record.resolved.reason)
    if record.resolved:
        return Condition(name, "Unknown", "Planning", "the file was changed, or its weights went away, since the plan")
    return Condition(name, "Unknown", "WaitingForWeights", "planning needs the weights' header")


def _replicas(record: ServiceRecord, replicas: Sequence[ReplicaRecord], trouble: Trouble | None) -> Condition:
    name = "ReplicasAvailable"
    wanted = record.service.replicas
    current = [r for r in replicas if r.revision == record.revision]
    ready = sum(r.phase is Phase.READY for r in current)
    if found := _of_trouble(name, trouble):
        return found
    if ready >= wanted:
        return Condition(name, "True", "AllReady", f"{ready} of {wanted} replicas are ready")
    phases = ", ".join(f"{r.name} is {r.phase.value}" for r in current if r.phase is not Phase.READY)
    return Condition(
        name, "False", "Starting", f"{ready} of {wanted} replicas are ready" + (f"; {phases}" if phases else "")
    )


def _gateway(record: ServiceRecord, gateway: GatewayState, names_lost: Mapping[str, str]) -> Condition:
    name = "GatewayProgrammed"
    if names_lost:
        said = "; ".join(f"{lost} belongs to {holder}, which is older" for lost, holder in names_lost.items())
        return Condition(name, "False", "NameConflict", f"{said}: choose other spec.model.servedNames")
    if gateway.failure:
        return Condition(name, "False", "GatewayFailing", gateway.failure)
    if not gateway.listening or gateway.generation is None:
        return Condition(name, "False", "GatewayStarting", "the gateway is not up yet")
    if not gateway.usable.get(record.key) and record.service.replicas:
        return Condition(name, "False", "NoEndpoints", "no replica can be sent requests yet")
    return Condition(name, "True", "Programmed", "requests reach the service")


def view(
    record: ServiceRecord,
    *,
    url: str,
    conditions: Sequence[Condition],
    since: Mapping[str, float],
    replicas: Sequence[ReplicaRecord],
    waiting: int,
) -> dict[str, Any]:
    """The resource with its status, in the shape of a Kubernetes object."""
    resolved = record.resolved
    ready = [r for r in replicas if r.phase is Phase.READY]
    return {
        **record.service.model_dump(mode="json", by_alias=True, exclude_none=True),
        "status": {
            "observedGeneration": record.generation,
            "url": url,
            "replicas": len(replicas),
            "readyReplicas": len(ready),
            "waitingRequests": waiting,
            "revision": record.revision if resolved else None,
            "plan": {
                "contextTokens": resolved.context_tokens,
                "requestsPerReplica": resolved.slots,
                "cacheTokens": resolved.cache_tokens,
                "memoryBytesPerReplica": resolved.replica_bytes,
                "weights": resolved.weights_source,
            }
            if resolved
            else None,
            "conditions": [
                {
                    "type": c.type,
                    "status": c.status,
                    "reason": c.reason,
                    "message": c.message,
                    "observedGeneration": record.generation,
                    "lastTransitionTime": _time(since.get(c.type, record.created_s)),
                }
                for c in conditions
            ],
            "replicaStatuses": [_replica(r) for r in replicas],
        },
    }


def _replica(replica: ReplicaRecord) -> dict[str, Any]:
    return {
        "name": replica.name,
        "revision": replica.revision,
        "phase": replica.phase.value,
        "since": _time(replica.since_s),
        "startupSeconds": {
            name: duration for name, duration in replica.phase_s.items() if name in ("Loading", "Warming")
        },
        "endpoint": replica.endpoint,
        "pid": replica.engine_pid,
        "memoryBytes": replica.engine_memory_bytes,
        "running": replica.running,
        "waiting": replica.waiting,
        "failure": replica.failure,
    }


def _time(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
