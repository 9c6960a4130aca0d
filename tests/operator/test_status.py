"""A status explains: each condition has its reason, and Ready sums up."""

from collections.abc import Sequence

import pytest

from pilotage.api import LLMService
from pilotage.fleet import ReplicaRecord
from pilotage.operator.records import Resolved, ServiceRecord
from pilotage.operator.seams import GatewayState
from pilotage.operator.status import Condition, Trouble, conditions_of, view
from pilotage.rollout import Phase


def record(*, replicas: int = 1, resolved: bool = True, deleting: bool = False) -> ServiceRecord:
    service = LLMService.model_validate(
        {"metadata": {"name": "chat"}, "spec": {"model": {"source": "hf://a/b"}, "replicas": replicas}}
    )
    plan = Resolved(
        weights_path=None, weights_source="hf://a/b@c", weights_digest="d", store_entry=None, context_tokens=1024, slots=2,
        shared_bytes=1, replica_bytes=2, cache_tokens=2048, reason="it fits",
    )  # fmt: skip
    fresh = ServiceRecord(service=service, created_s=1.0, delete_within_s=0.0 if deleting else None)
    return fresh.model_copy(update={"resolved": plan, "resolved_for": fresh.planning_key}) if resolved else fresh


def replica(of: ServiceRecord, phase: Phase = Phase.READY) -> ReplicaRecord:
    return ReplicaRecord(
        service=of.key, name="chat-1", revision=of.revision, endpoint="127.0.0.1:1", created_s=1.0, phase=phase, since_s=2.0,
        phase_s={"Loading": 1.5},
    )  # fmt: skip


def gateway(*, up: bool = True, usable: Sequence[str] = ("chat-1",)) -> GatewayState:
    return GatewayState(
        listening=up, generation=1 if up else None, usable={"default/chat": list(usable)}, waiting={}, in_flight={}
    )


def conditions(of: ServiceRecord, *replicas: ReplicaRecord, state: GatewayState | None = None, fetching: bool = False,
               trouble: Trouble | None = None, lost: dict[str, str] | None = None) -> dict[str, Condition]:  # fmt: skip
    found = conditions_of(
        of, replicas=replicas, gateway=state or gateway(), fetching=fetching, trouble=trouble, names_lost=lost or {}
    )
    return {c.type: c for c in found}


def test_all_well_is_ready():
    seen = record()
    found = conditions(seen, replica(seen))
    assert found["Ready"] == Condition("Ready", "True", "Serving", "1 of 1 replicas answer")
    assert all(c.status == "True" for c in found.values())


@pytest.mark.parametrize(
    ("phase", "reason"), [(Phase.LOADING, "Starting"), (Phase.WARMING, "Starting"), (Phase.PLACED, "Starting")]
)
def test_a_replica_on_its_way_is_named_with_its_phase(phase: Phase, reason: str):
    seen = record()
    ready = conditions(seen, replica(seen, phase))["Ready"]
    assert (ready.status, ready.reason) == ("False", reason)
    assert f"chat-1 is {phase.value}" in ready.message


def test_fetching_comes_before_planning():
    ready = conditions(record(resolved=False), fetching=True)["Ready"]
    assert ready.reason == "Fetching"
    assert conditions(record(resolved=False))["Planned"].status == "Unknown"


def test_trouble_is_the_reason_with_its_remedy():
    trouble = Trouble(condition="WeightsAvailable", reason="TokenNeeded", message="... (name a token)", final=True)
    ready = conditions(record(resolved=False), trouble=trouble)["Ready"]
    assert (ready.reason, ready.message) == ("TokenNeeded", "... (name a token)")


def test_what_answers_is_ready_though_not_all_is_well():
    seen = record(replicas=2)
    assert conditions(seen, replica(seen))["Ready"].reason == "Progressing"
    trouble = Trouble(condition="ReplicasAvailable", reason="NoRoom", message="no memory", final=False)
    ready = conditions(seen, replica(seen), trouble=trouble)["Ready"]
    assert (ready.status, ready.reason) == ("True", "Degraded")
    assert "NoRoom: no memory" in ready.message


def test_a_gateway_that_is_not_up_and_a_name_that_is_taken_are_said():
    seen = record()
    assert conditions(seen, replica(seen), state=gateway(up=False))["GatewayProgrammed"].reason == "GatewayStarting"
    assert conditions(seen, replica(seen), state=gateway(usable=()))["Ready"].reason == "NoEndpoints"
    lost = conditions(seen, replica(seen), lost={"chat": "other/chat"})["GatewayProgrammed"]
    assert lost.reason == "NameConflict"
    assert "chat belongs to other/chat, which is older" in lost.message


def test_zero_and_going_are_states_of_their_own():
    assert conditions(record(replicas=0))["Ready"].reason == "ScaledToZero"
    assert conditions(record(deleting=True))["Ready"].reason == "Stopping"


def test_the_view_is_a_kubernetes_object_with_what_was_filled_in():
    seen = record()
    shown = view(
        seen,
        url="http://x/v1",
        conditions=list(conditions(seen, replica(seen)).values()),
        since={},
        replicas=[replica(seen)],
        waiting=3,
    )
    assert shown["kind"] == "LLMService"
    assert shown["status"]["plan"]["contextTokens"] == 1024
    assert shown["status"]["replicaStatuses"][0]["startupSeconds"] == {"Loading": 1.5}
    assert shown["status"]["waitingRequests"] == 3


def test_a_revision_changes_with_what_replicas_run_and_not_with_how_many_there_are():
    one = record()
    assert record(replicas=5).revision == one.revision
    changed = one.service.model_copy(
        update={
            "spec": one.service.spec.model_copy(
                update={"engine": one.service.spec.engine.model_copy(update={"args": ["--threads=1"]})}
            )
        }
    )
    assert one.model_copy(update={"service": changed}).revision != one.revision
