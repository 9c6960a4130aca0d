"""The declarative resources: schema, defaults, validation, and the CRDs generated from them.

Knows no engine, process or cluster. A resource is read with `load_documents`; everything after that gets values.
"""

from pilotage.api.llmgateway import Limits, Listener, LLMGateway, LLMGatewaySpec, MetricsListener
from pilotage.api.llmservice import (
    Access,
    Credentials,
    Engine,
    EngineType,
    EnvVar,
    KeySource,
    Lifecycle,
    LLMService,
    LLMServiceSpec,
    Model,
)
from pilotage.api.loading import Document, FileProblem, InvalidResources, load_documents, read_files
from pilotage.api.meta import GROUP, SECRET_PREFIX, VERSION, ObjectMeta, SecretKeyRef
from pilotage.api.schema import custom_resource_definition, json_schema
from pilotage.api.targets import Target, problems_on

__all__ = [
    "GROUP",
    "SECRET_PREFIX",
    "VERSION",
    "Access",
    "Credentials",
    "Document",
    "Engine",
    "EngineType",
    "EnvVar",
    "FileProblem",
    "InvalidResources",
    "KeySource",
    "LLMGateway",
    "LLMGatewaySpec",
    "LLMService",
    "LLMServiceSpec",
    "Lifecycle",
    "Limits",
    "Listener",
    "MetricsListener",
    "Model",
    "ObjectMeta",
    "SecretKeyRef",
    "Target",
    "custom_resource_definition",
    "json_schema",
    "load_documents",
    "problems_on",
    "read_files",
]
