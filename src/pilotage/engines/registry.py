"""The engine of each type."""

from pilotage.api import EngineType
from pilotage.engines.adapter import EngineAdapter
from pilotage.engines.llamacpp import LlamaCpp
from pilotage.engines.sglang import SGLANG
from pilotage.engines.simulated import Simulated
from pilotage.engines.vllm import VLLM


def adapter_for(kind: EngineType) -> EngineAdapter:
    """What is known of engines of this type."""
    match kind:
        case EngineType.LLAMA_CPP:
            return LlamaCpp()
        case EngineType.VLLM:
            return VLLM
        case EngineType.SGLANG:
            return SGLANG
        case EngineType.SIMULATED:
            return Simulated()
