"""The header of a safetensors file.

Source: the format's description (huggingface/safetensors, README): eight bytes of little-endian length, then JSON that
names each tensor's type, shape and place.
"""

import json
import struct
from pathlib import Path

from pilotage.catalog.models import HeaderError, ModelFacts

# The reference implementation refuses larger headers too.
LARGEST_HEADER_BYTES = 100_000_000


def read_safetensors_header(path: Path) -> ModelFacts:
    """Facts of the model in `path`. Raises HeaderError when it is no sound safetensors file."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        header_bytes = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= header_bytes <= min(LARGEST_HEADER_BYTES, size_bytes):
            raise HeaderError(f"{path.name} is no safetensors file: its header length is {header_bytes}")
        text = file.read(header_bytes)
    try:
        header = json.loads(text)
        ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise HeaderError(f"{path.name} has a damaged safetensors header") from error
    expected_bytes = 8 + header_bytes + max(ends, default=0)
    if size_bytes != expected_bytes:
        raise HeaderError(f"{path.name} is cut off: {size_bytes} bytes where its header says {expected_bytes}")
    return ModelFacts(file_format="safetensors", weights_bytes=size_bytes)
