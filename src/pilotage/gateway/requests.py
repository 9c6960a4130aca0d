"""What the picker reads in a request: the model, whether it streams, its sizes, and the chain of its prefix blocks."""

from typing import Any, Literal

import msgspec
import xxhash

# Bytes of prompt that make one block: about 128 tokens of English, small enough that a short system prompt counts and
# large enough that 32 kB of prompt are 64 hashes.
BLOCK_BYTES = 512
BYTES_PER_TOKEN = 4
LONGEST_MODEL_CHARACTERS = 256
MOST_CHOICES = 128
MOST_OUTPUT_TOKENS = 2**31
# What lies further back than this megabyte tells replicas apart no better, and its blocks would fill their caches.
MOST_BLOCKS = 2_048

PromptField = Literal["messages", "prompt", "input"]


class Parsed(msgspec.Struct, frozen=True, tag=True):
    """A request's body, as far as it matters here. `max_output_tokens` is what the client allows, of all choices."""

    model: str
    streams: bool
    prompt_bytes: int
    chain: tuple[int, ...]
    digest: str = ""
    max_output_tokens: int | None = None

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, as estimated."""
        return self.prompt_bytes // BYTES_PER_TOKEN


class Unreadable(msgspec.Struct, frozen=True, tag=True):
    """A body that says no model, and what is wrong with it."""

    code: str
    message: str


class _Body(msgspec.Struct):
    # Raw: the prompt is checked to be JSON and not made into objects, which takes a sixth of the time. What types the
    # other fields have is for the engine to judge.
    model: Any = None
    stream: Any = None
    messages: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    max_tokens: Any = None
    max_completion_tokens: Any = None
    n: Any = None


_decoder = msgspec.json.Decoder(_Body)


def parse(body: bytes, prompt: PromptField) -> Parsed | Unreadable:
    """The parts of `body` that choose a replica. `prompt` names the field that holds the prompt."""
    try:
        if not body.isascii():
            body.decode()
        request = _decoder.decode(body)
    except UnicodeDecodeError:
        return Unreadable("invalid_json", "The body is not UTF-8.")
    except RecursionError:
        return Unreadable("invalid_json", "The body is nested too deep.")
    except msgspec.ValidationError:
        return Unreadable("invalid_json", "The body must be a JSON object.")
    except msgspec.DecodeError as error:
        return Unreadable("invalid_json", f"The body is not JSON: {error}.")
    model = request.model
    if not isinstance(model, str) or not model:
        return Unreadable("missing_model", "`model` is required and must be a string; GET /v1/models lists the names.")
    if len(model) > LONGEST_MODEL_CHARACTERS:
        return Unreadable("invalid_model", f"`model` is longer than {LONGEST_MODEL_CHARACTERS} characters.")
    text = bytes(getattr(request, prompt))
    return Parsed(
        model,
        request.stream is True,
        len(text),
        _chain(text),
        xxhash.xxh3_64_hexdigest(body),
        _max_output_tokens(request),
    )


def _max_output_tokens(request: _Body) -> int | None:
    # bool is an int in Python, and not in JSON.
    said = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
    if type(said) is not int or said < 0:
        return None
    choices = request.n if type(request.n) is int and 1 <= request.n <= MOST_CHOICES else 1
    return min(said * choices, MOST_OUTPUT_TOKENS)


def _chain(text: bytes) -> tuple[int, ...]:
    """Hashes of the full blocks, each over its block and everything before it."""
    digest = xxhash.xxh3_64_intdigest
    block = 0
    chain = []
    for start in range(0, min(len(text) - BLOCK_BYTES + 1, MOST_BLOCKS * BLOCK_BYTES), BLOCK_BYTES):
        # The hash of all before it is the seed of the next.
        block = digest(text[start : start + BLOCK_BYTES], block)
        chain.append(block)
    return tuple(chain)
