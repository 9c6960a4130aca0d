"""What a model is, as far as serving it is concerned."""

from dataclasses import dataclass

from pilotage.errors import Invalid


class HeaderError(Invalid):
    """A weights file whose header can't be read or contradicts itself."""

    condition_reason = "InvalidWeights"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """The attention layers, as far as the cache of keys and values depends on them."""

    layers: int
    kv_heads: int
    key_head_dim: int
    value_head_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What a weights file says of its model. `None` is "the file doesn't say"."""

    file_format: str
    weights_bytes: int
    architecture: str | None = None
    name: str | None = None
    trained_context_tokens: int | None = None
    attention: Attention | None = None
