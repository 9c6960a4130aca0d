"""Weights files in miniature, with sound headers."""

import json
import struct
from pathlib import Path


def gguf(path: Path, *, architecture: str = "llama", payload_bytes: int = 64, **values: int | str) -> Path:
    """A GGUF file with these metadata values (dots written as two underscores)."""
    pairs: dict[str, int | str] = {
        "general.architecture": architecture,
        "general.name": "Tiny",
        f"{architecture}.context_length": 2048,
        f"{architecture}.block_count": 4,
        f"{architecture}.embedding_length": 64,
        f"{architecture}.attention.head_count": 4,
        f"{architecture}.attention.head_count_kv": 2,
        **{name.replace("__", "."): value for name, value in values.items()},
    }
    data = b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs) + 1)
    for name, value in pairs.items():
        data += _string(name)
        data += struct.pack("<I", 8) + _string(value) if isinstance(value, str) else struct.pack("<II", 4, value)
    # A vocabulary, which readers skip.
    data += _string("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 3) + b"".join(map(_string, ("a", "b", "c")))
    path.write_bytes(data + b"\0" * payload_bytes)
    return path


def safetensors(path: Path, *, sizes: tuple[int, ...] = (8, 16)) -> Path:
    """A safetensors file with a tensor of each size in bytes."""
    header, start = {}, 0
    for number, size in enumerate(sizes):
        header[f"t{number}"] = {"dtype": "U8", "shape": [size], "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * start)
    return path


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()
