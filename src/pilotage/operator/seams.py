"""What the loop needs of the world. The command line puts real things behind these."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pilotage.api import LLMService, SecretKeyRef
from pilotage.catalog import ModelFacts
from pilotage.fleet import AgentConfig, ReplicaRecord
from pilotage.gateway import RoutingTable
from pilotage.weights import Fetched, Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayState:
    """What the gateway says of itself. `generation` is the picker's table; `failure` is why it does not come up."""

    listening: bool
    generation: int | None
    usable: Mapping[str, list[str]]
    waiting: Mapping[str, int]
    in_flight: Mapping[str, int]
    failure: str = ""


class Fleet(Protocol):
    """Where replicas run."""

    async def observe(self) -> list[ReplicaRecord]:
        """Every replica there is."""

    async def start(self, config: AgentConfig) -> None: ...

    async def stop(self, replica: str, *, within_s: float) -> None:
        """Let it end, at the latest after `within_s`. Safe to call again."""

    def mark_draining(self, replica: str) -> None: ...

    def forget_ended(self, records: Iterable[ReplicaRecord]) -> None: ...

    def socket_of(self, replica: str) -> Path: ...

    def log_of(self, replica: str) -> Path: ...


class Gateway(Protocol):
    """Where requests come in."""

    async def observe(self) -> GatewayState: ...

    def program(self, table: RoutingTable) -> None:
        """Make `table` what the gateway goes by."""


class Weights(Protocol):
    """Where models come from."""

    def ensure(self, source: str, *, token: str | None, progress: Callable[[Progress], None]) -> Fetched:
        """The weights of `source`, on this machine. Blocks."""

    def facts(self, path: Path) -> ModelFacts:
        """What the file's header says."""


class Machine(Protocol):
    """What there is to run on."""

    def available_memory_bytes(self) -> int: ...

    def free_port(self) -> int: ...

    def secret(self, ref: SecretKeyRef) -> str: ...

    def require_engine(self, service: LLMService) -> None:
        """Raises when the engine's program is missing."""
