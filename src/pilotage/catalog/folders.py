"""A folder as the hub's repositories are: a config.json, and safetensors files."""

import json
from pathlib import Path
from typing import Any

from pilotage.catalog.models import Attention, HeaderError, ModelFacts
from pilotage.catalog.safetensors import read_safetensors_header


def read_model_folder(folder: Path) -> ModelFacts:
    """Facts of the model in `folder`. Raises HeaderError when it holds none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise HeaderError(f"{folder.name} holds no safetensors files")
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise HeaderError(f"{folder.name} has no config.json that can be read") from error
    # Models that see or hear keep the language model's part apart.
    text = config.get("text_config") or config
    return ModelFacts(
        file_format="safetensors",
        weights_bytes=sum(read_safetensors_header(file).weights_bytes for file in files),
        architecture=text.get("model_type"),
        trained_context_tokens=text.get("max_position_embeddings"),
        attention=_attention(text),
    )


def _attention(config: dict[str, Any]) -> Attention | None:
    try:
        heads = int(config["num_attention_heads"])
        head_dim = int(config.get("head_dim") or config["hidden_size"] // heads)
        return Attention(
            layers=int(config["num_hidden_layers"]),
            kv_heads=int(config.get("num_key_value_heads") or heads),
            key_head_dim=head_dim,
            value_head_dim=head_dim,
        )
    except (KeyError, TypeError, ZeroDivisionError):
        return None
