"""What the gateway knows of services and replicas: written by the control loop, read by the picker.

It travels as one JSON file, replaced by rename, so that each side can restart alone.
"""

import hashlib
from pathlib import Path
from typing import Literal

import orjson
from pydantic import BaseModel, ConfigDict


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RouteRule(_Entry):
    """A path that a service's engine may be asked, and where the request says its prompt."""

    path: str
    prompt: Literal["messages", "prompt", "input"]


class ReplicaEntry(_Entry):
    """One replica: where it is and how many requests it takes at once."""

    name: str
    endpoint: str
    slots: int
    draining: bool = False
    cache_blocks: int = 1_000


class KeyLimits(_Entry):
    """What one key may do. None is "no limit"."""

    concurrent_requests: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


class KeyEntry(_Entry):
    """An API key, known by its hash."""

    hash: str
    limits: KeyLimits = KeyLimits()


class ServiceEntry(_Entry):
    """One service as the picker sees it."""

    key: str
    names: tuple[str, ...]
    created_s: float
    engine_key: str = ""
    engine_model: str | None = None
    routes: tuple[RouteRule, ...] = ()
    keys: tuple[KeyEntry, ...] | None = None
    max_wait_s: float = 120.0
    first_byte_timeout_s: float = 600.0
    replicas: tuple[ReplicaEntry, ...] = ()
    wanted_replicas: int = 0
    stream_patch: dict[str, object] = {}
    keepalive_s: float = 4.0

    @property
    def cluster(self) -> str:
        """Name of its Envoy cluster."""
        return f"service/{self.key}"


class GatewayLimits(_Entry):
    """What one gateway holds in memory at most."""

    max_body_bytes: int = 16 * 1024 * 1024
    max_held_requests: int = 2_000
    max_held_bytes: int = 256 * 1024 * 1024


class RoutingTable(_Entry):
    """All services, at one generation."""

    generation: int
    limits: GatewayLimits = GatewayLimits()
    services: tuple[ServiceEntry, ...] = ()

    def to_json(self) -> bytes:
        """The bytes that `read_table` reads."""
        return orjson.dumps(self.model_dump(mode="json"))


def read_table(path: Path) -> RoutingTable:
    """The table in `path`. Raises OSError or pydantic's ValidationError."""
    return RoutingTable.model_validate_json(path.read_bytes())


def hash_of_key(key: str) -> str:
    """What is kept of an API key: its SHA-256, in hex. Keys are long and random, so no salt or stretching is needed."""
    return hashlib.sha256(key.encode()).hexdigest()
