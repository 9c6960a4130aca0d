import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotage.catalog import Attention, ModelFacts
from pilotage.planning import HostPlan, ModelDoesNotFit, kv_bytes_per_token, plan_for_host
from pilotage.units import GIB

SMOLLM2 = Attention(layers=30, kv_heads=3, key_head_dim=64, value_head_dim=64)


def model(weights_bytes: int = GIB, *, trained: int | None = 8192, attention: Attention | None = SMOLLM2) -> ModelFacts:
    return ModelFacts(
        file_format="GGUF", weights_bytes=weights_bytes, trained_context_tokens=trained, attention=attention
    )


def plan(
    available_bytes: int, *, replicas: int = 1, slots: int = 4, context: int | None = None, **more: object
) -> HostPlan:
    return plan_for_host(
        model(**more), name="M", replicas=replicas, slots=slots, context_tokens=context, available_bytes=available_bytes  # type: ignore[arg-type]
    )  # fmt: skip


def test_cache_bytes_count_kv_heads_keys_and_values():
    # Llama 3 8B: 32 layers, 8 KV heads of 128, 16 bits: 128 KiB a token, as its paper's successors state.
    assert kv_bytes_per_token(Attention(layers=32, kv_heads=8, key_head_dim=128, value_head_dim=128)) == 131_072


def test_the_context_is_what_the_model_was_trained_for_where_it_fits():
    assert plan(64 * GIB).context_tokens == 8192
    small = plan(int(1.6 * GIB))
    assert 128 <= small.context_tokens < 8192
    assert small.reason == f"{small.context_tokens} tokens of context fit the memory"


def test_what_does_not_fit_is_said_with_the_change_that_would_make_it_fit():
    with pytest.raises(ModelDoesNotFit) as raised:
        plan(GIB)
    assert "M does not fit" in str(raised.value)
    with pytest.raises(ModelDoesNotFit) as raised:
        plan(int(1.6 * GIB), context=100_000)
    fits = int(raised.value.hint.split(" to ")[1].split(" or ")[0])
    assert plan(int(1.6 * GIB), context=fits).context_tokens == fits


def test_an_unknown_architecture_is_planned_without_a_cache_estimate():
    assert plan(4 * GIB, attention=None, trained=None).context_tokens == 4096


@given(
    available=st.integers(0, 64 * GIB), replicas=st.integers(1, 8), slots=st.integers(1, 16),
    context=st.none() | st.integers(128, 200_000), weights=st.integers(1, 32 * GIB),
)  # fmt: skip
def test_a_plan_fits_the_memory_it_was_given(
    available: int, replicas: int, slots: int, context: int | None, weights: int
):
    try:
        found = plan(available, replicas=replicas, slots=slots, context=context, weights_bytes=weights)
    except ModelDoesNotFit as error:
        assert error.needed_bytes > available
        return
    assert found.shared_bytes + replicas * found.replica_bytes <= available
    assert context is None or found.context_tokens == context
