"""Whether a model fits a machine's memory, and how much context then does."""

from dataclasses import dataclass

from pilotage.catalog import Attention, ModelFacts
from pilotage.errors import Invalid
from pilotage.units import MIB, in_gb

# What a model without a stated context gets where its file doesn't say what it was trained for.
DEFAULT_CONTEXT_TOKENS = 4_096
SMALLEST_CONTEXT_TOKENS = 128
# llama.cpp's buffers for one step, its tokenizer and its server: 149 MB beside weights and cache with SmolLM2-135M
# (247 MB resident, 98 MB of it the mapped file); larger vocabularies take more, hence the margin.
ENGINE_BYTES = 256 * MIB
# llama.cpp keeps keys and values as 16-bit floats unless told otherwise.
CACHE_BYTES_PER_VALUE = 2
CONTEXT_STEP_TOKENS = 256


class PlanningError(Invalid):
    """Nothing that is allowed serves the model."""

    condition_reason = "PlanningFailed"


class ModelDoesNotFit(PlanningError):
    """The machine's memory holds too little."""

    condition_reason = "ModelDoesNotFit"

    def __init__(self, name: str, *, needed_bytes: int, available_bytes: int, what: str, hint: str) -> None:
        self.needed_bytes, self.available_bytes = needed_bytes, available_bytes
        super().__init__(
            f"{name} does not fit: {what} take {in_gb(needed_bytes)}, and {in_gb(available_bytes)} of memory is free",
            hint=hint,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPlan:
    """How a model is served on one machine. `shared_bytes` are taken once, `replica_bytes` by each replica."""

    context_tokens: int
    slots: int
    shared_bytes: int
    replica_bytes: int
    reason: str


def kv_bytes_per_token(attention: Attention, *, bytes_per_value: int = CACHE_BYTES_PER_VALUE) -> int:
    """Cache memory one token takes, over all layers.

    Counts KV heads, not query heads: with grouped queries there are fewer, often by a factor of eight.

    Source: Ainslie et al. 2023, arXiv:2305.13245.
    """
    per_head = attention.key_head_dim + attention.value_head_dim
    return attention.layers * attention.kv_heads * per_head * bytes_per_value


def plan_for_host(
    model: ModelFacts,
    *,
    name: str,
    replicas: int,
    slots: int,
    context_tokens: int | None,
    available_bytes: int,
) -> HostPlan:
    """The plan for `replicas` on a machine with `available_bytes` free, each taking `slots` requests at once.

    Without `context_tokens`, the longest context that fits, up to what the model was trained for. The weights count
    once: engines map the same file. Raises ModelDoesNotFit.
    """
    replicas = max(1, replicas)
    fixed_bytes = model.weights_bytes + replicas * ENGINE_BYTES
    if fixed_bytes > available_bytes:
        raise ModelDoesNotFit(
            name,
            needed_bytes=fixed_bytes,
            available_bytes=available_bytes,
            what=f"its weights and {replicas} replica{'s' if replicas > 1 else ''} of the engine",
            hint="free memory, choose a smaller or more quantized model, or run fewer replicas",
        )
    per_token_bytes = kv_bytes_per_token(model.attention) if model.attention else 0
    fits_tokens = _context_that_fits(per_token_bytes, available_bytes - fixed_bytes, sequences=replicas * slots)
    trained_tokens = model.trained_context_tokens or DEFAULT_CONTEXT_TOKENS
    wanted_tokens = context_tokens or trained_tokens
    tokens = wanted_tokens if fits_tokens is None else min(wanted_tokens, fits_tokens)
    if tokens < (context_tokens or SMALLEST_CONTEXT_TOKENS):
        smaller = f"set spec.model.contextTokens to {fits_tokens} or less, " if fits_tokens else ""
        raise ModelDoesNotFit(
            name,
            needed_bytes=fixed_bytes + wanted_tokens * per_token_bytes * replicas * slots,
            available_bytes=available_bytes,
            what=f"{replicas} x {slots} requests of {wanted_tokens} tokens",
            hint=f"{smaller}lower --parallel in spec.engine.args, or run fewer replicas",
        )
    return HostPlan(
        context_tokens=tokens,
        slots=slots,
        shared_bytes=model.weights_bytes,
        replica_bytes=ENGINE_BYTES + tokens * per_token_bytes * slots,
        reason=_reason(model, tokens, context_tokens, fits_tokens),
    )


def _context_that_fits(per_token_bytes: int, left_bytes: int, *, sequences: int) -> int | None:
    if not per_token_bytes:
        return None
    tokens = left_bytes // (per_token_bytes * sequences)
    return tokens - tokens % CONTEXT_STEP_TOKENS if tokens >= CONTEXT_STEP_TOKENS else tokens


def _reason(model: ModelFacts, tokens: int, asked_tokens: int | None, fits_tokens: int | None) -> str:
    if asked_tokens:
        return f"{tokens} tokens of context, as asked"
    if fits_tokens is not None and tokens == fits_tokens and tokens != model.trained_context_tokens:
        return f"{tokens} tokens of context fit the memory"
    if model.trained_context_tokens:
        return f"{tokens} tokens of context, as the model was trained for"
    return f"{tokens} tokens of context; the file does not say what the model was trained for"
