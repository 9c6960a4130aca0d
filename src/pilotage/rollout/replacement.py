"""From the replicas there are to the replicas there should be, without losing a request."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """Where a replica is in its life."""

    PLANNED = "Planned"
    PLACED = "Placed"
    FETCHING = "Fetching"
    LOADING = "Loading"
    WARMING = "Warming"
    READY = "Ready"
    DRAINING = "Draining"
    FAILED = "Failed"
    GONE = "Gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaView:
    """A replica, as far as this decision needs it. `in_flight` is None while the gateway's count is unknown."""

    name: str
    revision: str
    phase: Phase
    in_flight: int | None = None
    drained_for_s: float | None = None
    failure: str = ""

    @property
    def is_ready(self) -> bool:
        return self.phase is Phase.READY


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """One service at one moment. `room` is how many more replicas the machine holds now."""

    wanted: int
    revision: str
    replicas: Sequence[ReplicaView]
    room: int
    drain_s: float
    start_allowed: bool = True


@dataclass(frozen=True, slots=True)
class Start:
    """Start this many replicas of the wanted revision."""

    count: int
    reason: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Send this replica no more requests."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """End this replica."""

    name: str
    reason: str


Action = Start | Drain | Stop


def decide(seen: Situation) -> list[Action]:
    """What to do now. Calling it again after each change leads to `wanted` replicas of `revision`, and then to nothing.

    New replicas start beside the old ones, and an old one drains only when a new one is ready for it. Where there is no
    room beside them, one old replica makes way first: a rollout never waits for room that it itself takes.
    """
    failed = [r for r in seen.replicas if r.phase is Phase.FAILED]
    draining = [r for r in seen.replicas if r.phase is Phase.DRAINING]
    serving = [r for r in seen.replicas if r.phase not in (Phase.FAILED, Phase.DRAINING, Phase.GONE)]
    current = [r for r in serving if r.revision == seen.revision]
    old = [r for r in serving if r.revision != seen.revision]

    actions: list[Action] = [Stop(r.name, f"it failed: {r.failure}") for r in failed]
    actions += [stop for r in draining if (stop := _stopped(r, seen.drain_s))]
    actions += _surplus(current, seen.wanted)
    missing = seen.wanted - len(current)
    if missing > 0 and seen.start_allowed:
        count = min(missing, seen.room)
        if count > 0:
            actions.append(Start(count, _why_start(seen, current, old)))
        elif old and not draining and not failed:
            actions.append(Drain(_least_busy(old).name, "there is no room for a new replica beside the old ones"))
            return actions
    actions += _replaced(current, old, seen.wanted)
    return actions


def _stopped(replica: ReplicaView, drain_s: float) -> Stop | None:
    if replica.in_flight == 0:
        return Stop(replica.name, "its last request ended")
    if replica.drained_for_s is not None and replica.drained_for_s >= drain_s:
        return Stop(replica.name, f"requests still ran after {drain_s:.0f} s of draining")
    return None


def _surplus(current: Sequence[ReplicaView], wanted: int) -> list[Action]:
    surplus = len(current) - wanted
    by_worth = sorted(current, key=lambda r: (r.is_ready, r.in_flight or 0, r.name))
    return [Drain(r.name, f"{wanted} replicas are wanted") for r in by_worth[: max(0, surplus)]]


def _replaced(current: Sequence[ReplicaView], old: Sequence[ReplicaView], wanted: int) -> list[Action]:
    """Old replicas for which a new one is ready. One that isn't ready itself is no loss at all."""
    kept = max(0, wanted - sum(r.is_ready for r in current))
    by_worth = sorted(old, key=lambda r: (r.is_ready, r.in_flight or 0, r.name))
    going = by_worth[: max(0, len(old) - kept)]
    return [Drain(r.name, "a replica of the new revision took its place") for r in going]


def _least_busy(replicas: Sequence[ReplicaView]) -> ReplicaView:
    return min(replicas, key=lambda r: (r.is_ready, r.in_flight or 0, r.name))


def _why_start(seen: Situation, current: Sequence[ReplicaView], old: Sequence[ReplicaView]) -> str:
    if old:
        return f"revision {seen.revision} replaces {old[0].revision}"
    return f"{seen.wanted} replicas are wanted, {len(current)} there"
