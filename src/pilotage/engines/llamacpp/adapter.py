"""llama.cpp's server: its flags, metrics and routes."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pilotage.engines.adapter import Launch, MetricNames, Route, WarmUp, at_least_one, parsed_args

DEFAULT_SLOTS = 4

# Flags of llama-server that a user may set, by the names it has there.
FLAGS: dict[str, type[int] | type[float] | type[str] | type[bool]] = {
    "--parallel": int,
    "--threads": int,
    "--threads-batch": int,
    "--batch-size": int,
    "--ubatch-size": int,
    "--gpu-layers": int,
    "--chat-template": str,
    "--cache-reuse": int,
    "--cache-ram": int,
    "--embeddings": bool,
}


class LlamaCpp:
    """llama.cpp as it is since 2025: continuous batching, a prompt cache, OpenAI's API."""

    needs_weights = True
    file_formats = ("GGUF",)
    health_path = "/health"
    # Its server closes idle connections after 5 s.
    keepalive_s = 4.0
    model_name = None
    metrics = MetricNames(
        running="llamacpp:requests_processing",
        waiting="llamacpp:requests_deferred",
        # Token counters move when a request ends, decode calls with every step.
        progress=("llamacpp:n_decode_total", "llamacpp:prompt_tokens_total", "llamacpp:tokens_predicted_total"),
    )
    warm_up = WarmUp(path="/v1/completions", body={"prompt": "Hello", "max_tokens": 2, "temperature": 0})
    # Each event then says how many tokens there were so far, whether or not the client asked for usage, and no event is
    # added that a client may not expect.
    stream_patch: Mapping[str, object] = {"timings_per_token": True}

    def routes(self, args: Sequence[str]) -> tuple[Route, ...]:
        # Its server answers embeddings only when it was started for them.
        embeds = bool(parsed_args(args, known=FLAGS, engine="llama.cpp").get("--embeddings"))
        return (
            Route("/v1/chat/completions", "messages"),
            Route("/v1/completions", "prompt"),
            *((Route("/v1/embeddings", "input"),) if embeds else ()),
        )

    def slots(self, args: Sequence[str]) -> int:
        flags = parsed_args(args, known=FLAGS, engine="llama.cpp")
        return at_least_one(int(flags.get("--parallel", DEFAULT_SLOTS)), flag="--parallel")

    def require_name(self, name: str) -> None:
        """Any name will do."""

    def launch(
        self, *, model: Path | None, args: Sequence[str], port: int, context_tokens: int, served_name: str
    ) -> Launch:
        assert model is not None
        parsed_args(args, known=FLAGS, engine="llama.cpp")
        own = (
            f"--model={model}",
            f"--port={port}",
            f"--ctx-per-request={context_tokens}",
            f"--alias={served_name}",
            f"--parallel={self.slots(args)}",
        )
        chosen = (arg for arg in args if not arg.startswith("--parallel"))
        return Launch(argv=(sys.executable, "-m", "pilotage.engines.llamacpp.server", *own, *chosen), env={})
