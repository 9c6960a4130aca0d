"""The header of a GGUF file.

Source: the GGUF specification, version 3 (ggml-org/ggml, docs/gguf.md). PyPI's `gguf` package reads whole files into
numpy arrays and takes seconds for a vocabulary that we skip, so the header is read here.
"""

import struct
from pathlib import Path
from typing import BinaryIO

from pilotage.catalog.models import Attention, HeaderError, ModelFacts

MAGIC = b"GGUF"
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
LONGEST_STRING_BYTES = 64 * 1024 * 1024
MOST_PAIRS = 100_000

Scalar = int | float | bool | str
# Per-layer values (a list of KV heads, say) are kept; vocabularies are not.
Value = Scalar | list[Scalar] | None
LONGEST_KEPT_ARRAY = 4096


def read_gguf_header(path: Path) -> ModelFacts:
    """Facts of the model in `path`. Raises HeaderError when it is no sound GGUF file."""
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise HeaderError(f"{path.name} is no GGUF file: it does not begin with 'GGUF'")
        try:
            metadata = _metadata(file)
        except (struct.error, UnicodeDecodeError) as error:
            raise HeaderError(f"{path.name} is cut off or damaged: its header ends too soon") from error
    return _facts(metadata, weights_bytes=path.stat().st_size)


def _metadata(file: BinaryIO) -> dict[str, Value]:
    version = _scalar(file, 4)
    if version not in (2, 3):
        raise HeaderError(f"GGUF version {version} is not supported", hint="convert the file with a current llama.cpp")
    _tensors, pairs = _scalar(file, 10), int(_scalar(file, 10))
    if pairs > MOST_PAIRS:
        raise HeaderError(f"a GGUF header with {pairs} entries is damaged")
    return {_string(file): _value(file, int(_scalar(file, 4))) for _ in range(pairs)}


def _value(file: BinaryIO, kind: int) -> Value:
    if kind == STRING:
        return _string(file)
    if kind == ARRAY:
        return _array(file)
    return _scalar(file, kind)


def _array(file: BinaryIO) -> list[Scalar] | None:
    kind, length = int(_scalar(file, 4)), int(_scalar(file, 10))
    if kind == STRING:
        for _ in range(length):
            _skip(file, int(_scalar(file, 10)))
        return None
    if kind not in SCALARS:
        raise HeaderError("a GGUF header with nested arrays is not supported")
    if length > LONGEST_KEPT_ARRAY:
        _skip(file, length * struct.calcsize(SCALARS[kind]))
        return None
    return [_scalar(file, kind) for _ in range(length)]


def _scalar(file: BinaryIO, kind: int) -> int | float | bool:
    try:
        form = SCALARS[kind]
    except KeyError as error:
        raise HeaderError(f"a GGUF header with value type {kind} is damaged") from error
    value: int | float | bool = struct.unpack(form, file.read(struct.calcsize(form)))[0]
    return value


def _string(file: BinaryIO) -> str:
    length = int(_scalar(file, 10))
    if length > LONGEST_STRING_BYTES:
        raise HeaderError("a GGUF header with a string of more than 64 MiB is damaged")
    data = file.read(length)
    if len(data) != length:
        raise struct.error("string cut off")
    return data.decode("utf-8", errors="replace")


def _skip(file: BinaryIO, length: int) -> None:
    if length > LONGEST_STRING_BYTES:
        raise HeaderError("a GGUF header with an entry of more than 64 MiB is damaged")
    file.seek(length, 1)


def _facts(metadata: dict[str, Value], *, weights_bytes: int) -> ModelFacts:
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise HeaderError("the GGUF header names no architecture (general.architecture)")
    name = metadata.get("general.name")
    return ModelFacts(
        file_format="GGUF",
        weights_bytes=weights_bytes,
        architecture=architecture,
        name=name if isinstance(name, str) else None,
        trained_context_tokens=_number(metadata.get(f"{architecture}.context_length")),
        attention=_attention(architecture, metadata),
    )


def _attention(architecture: str, metadata: dict[str, Value]) -> Attention | None:
    layers = _number(metadata.get(f"{architecture}.block_count"))
    heads = _number(metadata.get(f"{architecture}.attention.head_count"))
    width = _number(metadata.get(f"{architecture}.embedding_length"))
    if not layers or not heads or not width:
        return None
    kv_heads = _number(metadata.get(f"{architecture}.attention.head_count_kv")) or heads
    key_dim = _number(metadata.get(f"{architecture}.attention.key_length")) or width // heads
    value_dim = _number(metadata.get(f"{architecture}.attention.value_length")) or key_dim
    return Attention(layers=layers, kv_heads=kv_heads, key_head_dim=key_dim, value_head_dim=value_dim)


def _number(value: Value) -> int | None:
    # Some architectures give a value per layer; the largest is the safe one for memory.
    if isinstance(value, list):
        numbers = [int(entry) for entry in value if isinstance(entry, int | float)]
        return max(numbers, default=None)
    return int(value) if isinstance(value, int | float) else None
