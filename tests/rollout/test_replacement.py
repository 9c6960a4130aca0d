"""Replicas are started, drained and stopped so that no request is lost; played against a small world."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from pilotage.rollout import Drain, Phase, ReplicaView, Situation, Start, Stop, decide, restart_delay_s


def replica(name: str, revision: str = "new", phase: Phase = Phase.READY, **more: object) -> ReplicaView:
    return ReplicaView(name=name, revision=revision, phase=phase, **more)  # type: ignore[arg-type]


def situation(
    *replicas: ReplicaView, wanted: int = 2, room: int = 9, drain_s: float = 600, allowed: bool = True
) -> Situation:
    return Situation(
        wanted=wanted, revision="new", replicas=replicas, room=room, drain_s=drain_s, start_allowed=allowed
    )


def test_missing_replicas_are_started_as_far_as_there_is_room():
    assert decide(situation(wanted=3, room=2)) == [Start(2, "3 replicas are wanted, 0 there")]
    assert decide(situation(wanted=3, room=0)) == []


def test_what_is_as_wanted_is_left_alone():
    assert decide(situation(replica("a"), replica("b"))) == []


def test_an_old_replica_stays_until_a_new_one_is_ready():
    loading = replica("c", phase=Phase.LOADING)
    assert not [a for a in decide(situation(replica("a", "old"), replica("b", "old"), loading)) if isinstance(a, Drain)]
    drained = [
        a for a in decide(situation(replica("a", "old"), replica("b", "old"), replica("c"))) if isinstance(a, Drain)
    ]
    assert len(drained) == 1


def test_without_room_one_old_replica_makes_way_and_only_one():
    actions = decide(situation(replica("a", "old"), replica("b", "old"), room=0))
    assert [type(a) for a in actions] == [Drain]
    draining = replica("a", "old", Phase.DRAINING, in_flight=3, drained_for_s=1.0)
    assert decide(situation(draining, replica("b", "old"), room=0)) == []


def test_a_draining_replica_stops_when_idle_or_out_of_time_and_not_while_its_count_is_unknown():
    def stops(in_flight: int | None, drained_for_s: float) -> bool:
        draining = replica("x", phase=Phase.DRAINING, in_flight=in_flight, drained_for_s=drained_for_s)
        return any(isinstance(a, Stop) for a in decide(situation(replica("a"), replica("b"), draining)))

    assert stops(0, 1)
    assert not stops(1, 599)
    assert stops(1, 600)
    assert not stops(None, 1)


def test_the_least_busy_and_least_ready_go_first():
    seen = situation(replica("a", in_flight=3), replica("b", in_flight=1), replica("c", phase=Phase.LOADING), wanted=1)
    assert {a.name for a in decide(seen) if isinstance(a, Drain)} == {"b", "c"}


def test_a_failed_replica_is_cleared_and_replaced_once_that_is_allowed():
    failed = replica("a", phase=Phase.FAILED, failure="it crashed")
    assert decide(situation(failed, replica("b"), allowed=False)) == [Stop("a", "it failed: it crashed")]
    assert any(isinstance(a, Start) for a in decide(situation(failed, replica("b"))))


def test_the_first_failure_is_repaired_at_once_and_later_ones_ever_more_slowly():
    delays = [restart_delay_s(failures) for failures in range(12)]
    assert delays[:5] == [0, 0, 1, 2, 4]
    assert delays == sorted(delays)
    assert max(delays) == 60


@dataclass
class World:
    """Replicas that load, crash and drain, on a machine with so many places."""

    places: int
    replicas: dict[str, ReplicaView] = field(default_factory=dict)
    born: int = 0

    def situation(self, wanted: int, revision: str) -> Situation:
        room = self.places - len(self.replicas)
        return Situation(
            wanted=wanted, revision=revision, replicas=list(self.replicas.values()), room=room, drain_s=600
        )

    def apply(self, actions: list[Start | Drain | Stop], revision: str) -> None:
        for action in actions:
            match action:
                case Start(count=count):
                    for _ in range(count):
                        self.born += 1
                        name = f"r{self.born}"
                        self.replicas[name] = replica(name, revision, Phase.LOADING)
                case Drain(name=name):
                    old = self.replicas[name]
                    self.replicas[name] = replica(name, old.revision, Phase.DRAINING, in_flight=2, drained_for_s=1.0)
                case Stop(name=name):
                    del self.replicas[name]

    def go_on(self) -> None:
        for name, old in list(self.replicas.items()):
            if old.phase is Phase.LOADING:
                self.replicas[name] = replica(name, old.revision, Phase.READY, in_flight=0)
            elif old.phase is Phase.DRAINING:
                self.replicas[name] = replica(name, old.revision, Phase.DRAINING, in_flight=0, drained_for_s=2.0)


@given(
    wanted=st.integers(0, 5),
    places=st.integers(1, 8),
    start=st.lists(st.sampled_from([Phase.READY, Phase.LOADING, Phase.FAILED, Phase.DRAINING]), max_size=5),
)
def test_every_start_leads_to_what_is_wanted_without_going_below_what_there_was(
    wanted: int, places: int, start: list[Phase]
):
    world = World(places=max(places, len(start)))
    for number, phase in enumerate(start):
        world.replicas[f"old{number}"] = replica(f"old{number}", "old", phase, in_flight=0, drained_for_s=1.0)
    ready_at_first = sum(r.is_ready for r in world.replicas.values())
    tight = world.places <= max(wanted, len(start))
    for _ in range(60):
        actions = decide(world.situation(wanted, "new"))
        world.apply(actions, "new")
        assert len(world.replicas) <= world.places
        ready = sum(r.is_ready for r in world.replicas.values())
        # One may make way where there is no room beside; never more than one at a time.
        floor = min(wanted, ready_at_first) - (1 if tight else 0)
        assert ready >= min(floor, ready_at_first)
        world.go_on()
    expected = min(wanted, world.places)
    assert [r.phase for r in world.replicas.values()] == [Phase.READY] * expected
    assert all(r.revision == "new" for r in world.replicas.values())
    assert decide(world.situation(wanted, "new")) == []
