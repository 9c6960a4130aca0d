"""A world in memory behind the loop's seams: replicas that are ready at once, weights that come when a test says so."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from prometheus_client import CollectorRegistry

from pilotage.api import LLMService, SecretKeyRef
from pilotage.catalog import ModelFacts
from pilotage.clock import ManualClock
from pilotage.fleet import AgentConfig, ReplicaRecord
from pilotage.gateway import RoutingTable
from pilotage.operator import EventLog, Operator, ServiceRecords
from pilotage.operator.seams import GatewayState
from pilotage.rollout import Phase
from pilotage.signals import PlatformMetrics
from pilotage.weights import Fetched, Progress

FACTS = ModelFacts(file_format="GGUF", weights_bytes=1_000_000, name="tiny", trained_context_tokens=2_048)


class World:
    """Fleet, gateway, weights and machine in one, as the loop sees them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.replicas: dict[str, ReplicaRecord] = {}
        self.table = RoutingTable(generation=0)
        # What a fetch of a source ends with, once it may go on.
        self.fetches: dict[str, Callable[[str | None], Fetched]] = {}
        self.may_fetch = threading.Event()
        self.may_fetch.set()
        self.fetched: list[str] = []
        self.secrets: dict[str, str] = {}
        self.clock = ManualClock(1_000.0)
        self.operator = Operator(
            clock=self.clock, fleet=self, gateway=Gateway(self), weights=self, machine=self,
            records=ServiceRecords(folder), events=EventLog(folder / "ledger.jsonl"),
            metrics=PlatformMetrics(CollectorRegistry()), run_key="key", agent_defaults={},
        )  # fmt: skip

    def file(self, name: str) -> Path:
        """A file of weights."""
        path = self.folder / name
        path.write_bytes(b"weights")
        return path

    async def rounds(self, count: int = 4) -> None:
        """Some rounds of the loop, each with time for its threads."""
        for _ in range(count):
            await self.operator.reconcile()
            await asyncio.sleep(0.01)

    def condition(self, name: str = "Ready", key: str = "default/chat") -> tuple[str, str]:
        found = next(c for c in self.operator.view(key)["status"]["conditions"] if c["type"] == name)
        return found["status"], found["reason"]

    # Fleet

    async def observe(self) -> list[ReplicaRecord]:
        return list(self.replicas.values())

    async def start(self, config: AgentConfig) -> None:
        self.replicas[config.replica] = ReplicaRecord(
            service=config.service, name=config.replica, revision=config.revision, endpoint=config.endpoint,
            created_s=self.clock.wall_s(), phase=Phase.READY, since_s=self.clock.wall_s(), phase_s={},
        )  # fmt: skip

    async def stop(self, replica: str, *, within_s: float) -> None:
        self.replicas.pop(replica, None)

    def mark_draining(self, replica: str) -> None:
        self.replicas[replica] = replace(self.replicas[replica], phase=Phase.DRAINING, since_s=self.clock.wall_s())

    def forget_ended(self, records: Iterable[ReplicaRecord]) -> None: ...

    def socket_of(self, replica: str) -> Path:
        return self.folder / f"{replica}.sock"

    def log_of(self, replica: str) -> Path:
        return self.folder / f"{replica}.log"

    # Weights

    def ensure(self, source: str, *, token: str | None, progress: Callable[[Progress], None]) -> Fetched:
        self.fetched.append(source)
        assert self.may_fetch.wait(timeout=20)
        return self.fetches[source](token)

    def facts(self, path: Path) -> ModelFacts:
        return FACTS

    # Machine

    def available_memory_bytes(self) -> int:
        return 10**10

    def free_port(self) -> int:
        return 20_000 + len(self.replicas)

    def secret(self, ref: SecretKeyRef) -> str:
        return self.secrets[ref.name]

    def require_engine(self, service: LLMService) -> None: ...


class Gateway:
    """A gateway that goes by each table at once."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def observe(self) -> GatewayState:
        table = self._world.table
        return GatewayState(
            listening=True, generation=table.generation, waiting={}, in_flight={},
            usable={s.key: [r.name for r in s.replicas if not r.draining] for s in table.services},
        )  # fmt: skip

    def program(self, table: RoutingTable) -> None:
        self._world.table = table


def here(path: Path) -> Callable[[str | None], Fetched]:
    """A fetch that finds `path`."""
    digest = path.name
    return lambda _: Fetched(path=path, resolved=str(path), digest=digest, entry_id=None, was_cached=False)


def service(source: str, *, secret: str | None = None, replicas: int = 1) -> LLMService:
    """A service of llama.cpp."""
    model: dict[str, object] = {"source": source}
    if secret:
        model["credentials"] = {"secretRef": {"name": secret, "key": "token"}}
    spec = {"model": model, "engine": {"type": "LlamaCpp"}, "replicas": replicas}
    return LLMService.model_validate_json(json.dumps({"metadata": {"name": "chat"}, "spec": spec}))
