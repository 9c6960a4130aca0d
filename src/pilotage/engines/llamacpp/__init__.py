"""llama.cpp, by PyPI's `xllamacpp`."""

from pilotage.engines.llamacpp.adapter import LlamaCpp

__all__ = ["LlamaCpp"]
