"""SGLang's server, as data.

Source: the code of SGLang 0.5.23 (srt/arg_groups, srt/entrypoints/http_server.py, srt/observability/
metrics_collector.py); what differs in older versions is said beside it.
"""

from pilotage.engines.adapter import MetricNames
from pilotage.engines.described import OFFLINE, Described

SGLANG = Described(
    title="SGLang",
    version="0.5.23",
    program="python3",
    command=("python3", "-m", "sglang.launch_server", "--model-path={model}"),
    own_flags=(
        "--served-model-name={name}",
        "--host=127.0.0.1",
        "--port={port}",
        "--context-length={context}",
        "--enable-metrics",
        "--enable-cache-report",
        # Since 0.5.10; a last chunk with usage, whatever the client asks.
        "--stream-response-default-include-usage",
    ),
    flags={
        "--tp-size": int,
        "--pp-size": int,
        "--dp-size": int,
        "--ep-size": int,
        "--mem-fraction-static": float,
        "--max-running-requests": int,
        "--max-total-tokens": int,
        "--chunked-prefill-size": int,
        "--max-prefill-tokens": int,
        "--kv-cache-dtype": str,
        "--page-size": int,
        "--dtype": str,
        "--quantization": str,
        "--load-format": str,
        "--attention-backend": str,
        "--disable-cuda-graph": bool,
        "--disable-radix-cache": bool,
        "--speculative-algorithm": str,
        "--speculative-num-steps": int,
        "--chat-template": str,
        "--tool-call-parser": str,
        "--reasoning-parser": str,
        "--trust-remote-code": bool,
        "--is-embedding": bool,
        "--random-seed": int,
    },
    slots_flag="--max-running-requests",
    default_slots=256,
    metrics=MetricNames(
        running="sglang:num_running_reqs",
        waiting="sglang:num_queue_reqs",
        # The token counters move when a request ends; realtime_tokens with the decode log interval (since 0.5.10).
        progress=("sglang:realtime_tokens_total", "sglang:prompt_tokens_total", "sglang:generation_tokens_total"),
    ),
    env={
        **OFFLINE,
        "SGLANG_TIMEOUT_KEEP_ALIVE": "65",
        # By default each health check is a generation of its own, which waits a second at least.
        "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "false",
    },
    # It has no variable for its key.
    key_variable=None,
    refused_in_names=":",
)
