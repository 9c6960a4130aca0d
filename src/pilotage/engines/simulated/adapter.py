"""The simulated engine: its flags, and the metric names of vLLM that it speaks."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pilotage.engines.adapter import Launch, MetricNames, Route, WarmUp, at_least_one, parsed_args
from pilotage.engines.simulated.timing import Timing

FLAGS: dict[str, type[int] | type[float] | type[str] | type[bool]] = {
    "--prefill-tokens-per-second": float,
    "--step-seconds": float,
    "--step-seconds-per-sequence": float,
    "--max-num-seqs": int,
    "--max-num-batched-tokens": int,
    "--cache-tokens": int,
    "--block-tokens": int,
    "--startup-seconds": float,
    "--output-tokens": int,
    "--fail-to-load": bool,
    "--crash-on": str,
}


def timing_from(flags: Mapping[str, int | float | str | bool]) -> Timing:
    """The engine that these flags describe."""
    default = Timing()
    return Timing(
        prefill_tokens_per_s=float(flags.get("--prefill-tokens-per-second", default.prefill_tokens_per_s)),
        step_s=float(flags.get("--step-seconds", default.step_s)),
        step_s_per_sequence=float(flags.get("--step-seconds-per-sequence", default.step_s_per_sequence)),
        most_sequences=int(flags.get("--max-num-seqs", default.most_sequences)),
        step_tokens=int(flags.get("--max-num-batched-tokens", default.step_tokens)),
        cache_tokens=int(flags.get("--cache-tokens", default.cache_tokens)),
        block_tokens=int(flags.get("--block-tokens", default.block_tokens)),
    )


class Simulated:
    """Behaves by parameters; stands in for engines on GPUs."""

    needs_weights = False
    file_formats: tuple[str, ...] = ()
    health_path = "/health"
    keepalive_s = 60.0
    model_name = None
    metrics = MetricNames(
        running="vllm:num_requests_running",
        waiting="vllm:num_requests_waiting",
        progress=("vllm:prompt_tokens_total", "vllm:generation_tokens_total"),
    )
    warm_up = WarmUp(path="/v1/completions", body={"model": "any", "prompt": "Hello", "max_tokens": 2})
    # As with vLLM: usage in each event, and once more in a last event without choices.
    stream_patch: Mapping[str, object] = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}

    def routes(self, args: Sequence[str]) -> tuple[Route, ...]:
        return (Route("/v1/chat/completions", "messages"), Route("/v1/completions", "prompt"))

    def slots(self, args: Sequence[str]) -> int:
        timing = timing_from(parsed_args(args, known=FLAGS, engine="the simulated engine"))
        return at_least_one(timing.most_sequences, flag="--max-num-seqs")

    def require_name(self, name: str) -> None:
        """Any name will do."""

    def launch(
        self, *, model: Path | None, args: Sequence[str], port: int, context_tokens: int, served_name: str
    ) -> Launch:
        parsed_args(args, known=FLAGS, engine="the simulated engine")
        own = (f"--port={port}", f"--served-name={served_name}", f"--max-model-len={context_tokens}")
        return Launch(argv=(sys.executable, "-m", "pilotage.engines.simulated.server", *own, *args), env={})
