"""vLLM's server, as data.

Source: `vllm serve --help=all` and the code of vLLM 0.32 (entrypoints/launchers/cli_args.py, engine/arg_utils.py,
serve/middleware, v1/metrics/loggers.py); what differs in older versions is said beside it.
"""

from pilotage.engines.adapter import MetricNames
from pilotage.engines.described import OFFLINE, Described

VLLM = Described(
    title="vLLM",
    version="0.32",
    program="vllm",
    command=("vllm", "serve", "{model}"),
    own_flags=(
        "--served-model-name={name}",
        "--host=127.0.0.1",
        "--port={port}",
        "--max-model-len={context}",
        # Usage in every chunk since 0.20, whatever the client asks; before, in a last one.
        "--enable-force-include-usage",
        "--enable-prompt-tokens-details",
        # What runs when SIGTERM comes is ended as a short answer without this; our agent drains before it.
        "--shutdown-timeout=30",
        "--disable-fastapi-docs",
    ),
    flags={
        "--tensor-parallel-size": int,
        "--pipeline-parallel-size": int,
        "--data-parallel-size": int,
        "--enable-expert-parallel": bool,
        "--gpu-memory-utilization": float,
        "--kv-cache-memory-bytes": int,
        "--kv-cache-dtype": str,
        "--max-num-seqs": int,
        "--max-num-batched-tokens": int,
        "--block-size": int,
        "--dtype": str,
        "--quantization": str,
        "--load-format": str,
        "--enforce-eager": bool,
        "--enable-prefix-caching": bool,
        "--enable-chunked-prefill": bool,
        "--swap-space": float,
        "--speculative-config": str,
        "--chat-template": str,
        "--enable-auto-tool-choice": bool,
        "--tool-call-parser": str,
        "--reasoning-parser": str,
        "--limit-mm-per-prompt": str,
        "--hf-overrides": str,
        "--tokenizer": str,
        "--tokenizer-mode": str,
        "--trust-remote-code": bool,
        "--runner": str,
        "--seed": int,
        "--generation-config": str,
    },
    slots_flag="--max-num-seqs",
    default_slots=256,
    metrics=MetricNames(
        running="vllm:num_requests_running",
        waiting="vllm:num_requests_waiting",
        # Both move with every step (vllm:iteration_tokens_total is a histogram, in spite of its name).
        progress=("vllm:prompt_tokens_total", "vllm:generation_tokens_total"),
    ),
    env={
        **OFFLINE,
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # Opens sleep, collective_rpc and more.
        "VLLM_SERVER_DEV_MODE": "0",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0",
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "65",
    },
    key_variable="VLLM_API_KEY",
    negates=True,
)
