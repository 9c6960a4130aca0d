"""What the picker reads in a request: the model, whether it streams, and the chain of its prefix blocks."""

from dataclasses import dataclass
from typing import Any, Literal

import orjson
import xxhash

# Bytes of prompt that make one block: about 128 tokens of English, small enough that a short system prompt counts and
# large enough that 32 kB of prompt are 64 hashes.
BLOCK_BYTES = 512
BYTES_PER_TOKEN = 4
LONGEST_MODEL_CHARACTERS = 256


@dataclass(frozen=True, slots=True)
class Parsed:
    """A request's body, as far as it matters here."""

    model: str
    streams: bool
    prompt_bytes: int
    chain: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A body that says no model, and what is wrong with it."""

    code: str
    message: str


def parse(body: bytes, prompt: Literal["messages", "prompt", "input"]) -> Parsed | Unreadable:
    """The parts of `body` that choose a replica. `prompt` names the field that holds the prompt."""
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        return Unreadable(
            "invalid_json", f"The body is not JSON: {error.msg} (line {error.lineno}, column {error.colno})."
        )
    if not isinstance(request, dict):
        return Unreadable("invalid_json", "The body must be a JSON object.")
    model = request.get("model")
    if not isinstance(model, str) or not model:
        return Unreadable("missing_model", "`model` is required and must be a string; GET /v1/models lists the names.")
    if len(model) > LONGEST_MODEL_CHARACTERS:
        return Unreadable("invalid_model", f"`model` is longer than {LONGEST_MODEL_CHARACTERS} characters.")
    try:
        text = _text(request.get(prompt))
    except orjson.JSONEncodeError:
        # What is read can be nested too deep to be written again; an engine's parser may recurse too.
        return Unreadable("invalid_json", f"`{prompt}` is nested too deep.")
    return Parsed(model, request.get("stream") is True, len(text), _chain(text))


def _text(prompt: Any) -> bytes:
    if isinstance(prompt, str):
        return prompt.encode("utf-8", "surrogatepass")
    return b"" if prompt is None else orjson.dumps(prompt)


def _chain(text: bytes) -> tuple[int, ...]:
    """Hashes of the full blocks, each over its block and everything before it."""
    hasher = xxhash.xxh3_64()
    chain = []
    for start in range(0, len(text) - BLOCK_BYTES + 1, BLOCK_BYTES):
        hasher.update(text[start : start + BLOCK_BYTES])
        chain.append(hasher.intdigest())
    return tuple(chain)
