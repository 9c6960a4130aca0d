"""`python -m pilotage.engines.llamacpp.server`: llama.cpp's own HTTP server, as Pilotage sets it."""

import os
import signal
import sys
import threading

from pilotage.engines.adapter import KEY_VARIABLE, parsed_args
from pilotage.engines.llamacpp.adapter import DEFAULT_SLOTS, FLAGS

OWN_FLAGS: dict[str, type[int] | type[float] | type[str] | type[bool]] = {
    "--model": str,
    "--port": int,
    "--ctx-per-request": int,
    "--alias": str,
}
BATCH_TOKENS = 512


def main(argv: list[str]) -> None:
    """Serve until SIGTERM."""
    import xllamacpp

    flags = parsed_args(argv, known={**FLAGS, **OWN_FLAGS}, engine="llama.cpp")
    slots = int(flags.get("--parallel", DEFAULT_SLOTS))
    params = xllamacpp.CommonParams()
    params.model.path = str(flags["--model"])
    params.model_alias = {str(flags["--alias"])}
    params.hostnames = ["127.0.0.1"]
    params.port = int(flags["--port"])
    params.api_keys = [os.environ[KEY_VARIABLE]]
    params.n_parallel = slots
    # The context is divided between the slots, so that one long request can't take another's.
    params.n_ctx = int(flags["--ctx-per-request"]) * slots
    params.endpoint_metrics = True
    params.endpoint_slots = False
    params.ui = False
    params.offline = True
    # Our own warm-up follows; a request of this server's own would only delay it.
    params.warmup = False
    threads = int(flags.get("--threads", 0)) or os.cpu_count() or 1
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = int(flags.get("--threads-batch", 0)) or threads
    params.cache_ram_mib = int(flags.get("--cache-ram", 0))
    params.n_cache_reuse = int(flags.get("--cache-reuse", 0))
    # A batch can't be interrupted, not even for a look at the metrics: short ones keep the server answering.
    params.n_batch = int(flags.get("--batch-size", BATCH_TOKENS))
    if "--ubatch-size" in flags:
        params.n_ubatch = int(flags["--ubatch-size"])
    if "--gpu-layers" in flags:
        params.n_gpu_layers = int(flags["--gpu-layers"])
    if "--chat-template" in flags:
        params.chat_template = str(flags["--chat-template"])
    if flags.get("--embeddings"):
        params.embedding = True
    # The server's threads hold the interpreter's main thread nowhere; the default action ends the process at once.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    server = xllamacpp.Server(params)
    print(f"listening on {server.listening_address}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1:])
