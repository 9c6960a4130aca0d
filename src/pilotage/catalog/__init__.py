"""What is known before anything runs: where a model comes from and what its file's header says.

Knows nothing of engines, replicas or the machine at hand.
"""

from pilotage.catalog.folders import read_model_folder
from pilotage.catalog.gguf import read_gguf_header
from pilotage.catalog.models import Attention, HeaderError, ModelFacts
from pilotage.catalog.safetensors import read_safetensors_header
from pilotage.catalog.sources import (
    BucketSource,
    FileSource,
    HubSource,
    ModelSource,
    PackageSource,
    RegistrySource,
    SourceError,
    WebSource,
    parse_source,
)

__all__ = [
    "Attention",
    "BucketSource",
    "FileSource",
    "HeaderError",
    "HubSource",
    "ModelFacts",
    "ModelSource",
    "PackageSource",
    "RegistrySource",
    "SourceError",
    "WebSource",
    "parse_source",
    "read_gguf_header",
    "read_model_folder",
    "read_safetensors_header",
]
