"""LLMGateway: where requests come in. One is implied on a machine without Kubernetes."""

import ipaddress
from typing import Annotated, Literal

from pydantic import Field, field_validator

from pilotage.api.meta import ObjectMeta, Part

Port = Annotated[int, Field(ge=1, le=65_535)]


def _address(text: str) -> str:
    try:
        ipaddress.ip_address(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is no IP address") from error
    return text


class Listener(Part):
    """Where clients connect."""

    address: str = "127.0.0.1"
    """IP address to listen on. Beyond loopback every service needs `spec.access`. Default: 127.0.0.1."""
    port: Port = 8080
    """TCP port. Default: 8080."""

    _is_an_address = field_validator("address")(_address)

    @property
    def is_loopback(self) -> bool:
        """Only this machine can connect."""
        return ipaddress.ip_address(self.address).is_loopback


class MetricsListener(Part):
    """Where Prometheus scrapes."""

    address: str = "127.0.0.1"
    """IP address to listen on. Default: 127.0.0.1."""
    port: Port = 9464
    """TCP port. Default: 9464."""

    _is_an_address = field_validator("address")(_address)


class Limits(Part):
    """What one gateway holds in memory at most."""

    max_body_bytes: Annotated[int, Field(ge=1_024, le=64 * 1024 * 1024)] = 16 * 1024 * 1024
    """Largest request body; a larger one is answered 413. Default: 16777216."""
    max_held_requests: Annotated[int, Field(ge=1, le=100_000)] = 2_000
    """Requests waiting for a place, over all services; more are answered 429. Default: 2000."""
    max_held_bytes: Annotated[int, Field(ge=1_048_576)] = 256 * 1024 * 1024
    """Bodies of waiting requests, together; more are answered 429. Default: 268435456."""


class LLMGatewaySpec(Part):
    """What is wanted."""

    listener: Listener = Field(default_factory=Listener)
    """Where clients connect."""
    metrics: MetricsListener = Field(default_factory=MetricsListener)
    """Where Prometheus scrapes."""
    limits: Limits = Field(default_factory=Limits)
    """What the gateway holds in memory at most."""


class LLMGateway(Part):
    """The place where requests for LLMServices come in."""

    api_version: Literal["pilotage.io/v1alpha1"] = "pilotage.io/v1alpha1"
    """pilotage.io/v1alpha1"""
    kind: Literal["LLMGateway"] = "LLMGateway"
    """LLMGateway"""
    metadata: ObjectMeta = ObjectMeta(name="default")
    """What identifies the gateway."""
    spec: LLMGatewaySpec = Field(default_factory=LLMGatewaySpec)
    """What is wanted."""
