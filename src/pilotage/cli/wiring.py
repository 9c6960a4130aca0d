"""The real things behind the loop's seams, on one machine."""

import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from pilotage.api import EngineType, LLMGateway, LLMService, SecretKeyRef
from pilotage.catalog import ModelFacts, parse_source, read_gguf_header, read_model_folder, read_safetensors_header
from pilotage.clock import Clock, SystemClock
from pilotage.errors import Invalid
from pilotage.files import write_atomically
from pilotage.fleet.local.binaries import envoy_binary, require_llama_cpp, require_module_of, require_program
from pilotage.fleet.local.directories import Directories
from pilotage.fleet.local.gateway_host import GatewayHost
from pilotage.fleet.local.machine import available_memory_bytes, free_port
from pilotage.fleet.local.replicas import LocalReplicas
from pilotage.fleet.local.secrets import ToldSecret, secret
from pilotage.gateway import EnvoySettings, GatewayFiles, GatewayLimits, RoutingTable, bootstrap, program
from pilotage.operator import EventLog, Operator, ServiceRecords
from pilotage.operator.seams import GatewayState
from pilotage.signals import PlatformMetrics
from pilotage.weights import Fetched, Progress, WeightsStore, ensure

MOST_ENVOY_THREADS = 4


class LocalGateway:
    """The gateway of one machine: files, and two processes that are kept running."""

    def __init__(self, directories: Directories) -> None:
        self._files = GatewayFiles(directories.gateway)
        self._host = GatewayHost(
            directories.gateway,
            logs=directories.logs,
            bootstrap=self._files.bootstrap,
            control_socket=self._files.control_socket,
            admin_socket=self._files.admin_socket,
            alive_file=directories.alive_file,
        )
        self._programmed = self._files.table.exists()

    def configure(self, gateway: LLMGateway) -> None:
        """Fix what can't change while Envoy runs."""
        limits = gateway.spec.limits
        settings = EnvoySettings(
            address=gateway.spec.listener.address,
            port=gateway.spec.listener.port,
            xds=self._files.xds,
            picker_socket=self._files.picker_socket,
            admin_socket=self._files.admin_socket,
            access_log=self._files.access_log,
            limits=GatewayLimits(
                max_body_bytes=limits.max_body_bytes,
                max_held_requests=limits.max_held_requests,
                max_held_bytes=limits.max_held_bytes,
            ),
        )
        write_atomically(self._files.bootstrap, orjson.dumps(bootstrap(settings)))

    @property
    def is_configured(self) -> bool:
        """`configure` has been called, in this run or one before."""
        return self._files.bootstrap.exists()

    async def observe(self) -> GatewayState:
        """What it says; what does not run is started."""
        if self._programmed and self.is_configured:
            self._host.ensure_running(concurrency=max(1, min(MOST_ENVOY_THREADS, (os.cpu_count() or 1) // 2)))
        said = await self._host.picker_status()
        listening = await self._host.listens()
        failure = self._host.failure
        if said is None:
            return GatewayState(
                listening=listening, generation=None, usable={}, waiting={}, in_flight={}, failure=failure
            )
        return GatewayState(
            failure=failure,
            listening=listening,
            generation=said["generation"],  # type: ignore[arg-type]
            usable=said["usable"],  # type: ignore[arg-type]
            waiting=said["waiting"],  # type: ignore[arg-type]
            in_flight=said["in_flight"],  # type: ignore[arg-type]
        )

    def program(self, table: RoutingTable) -> None:
        """Make `table` what it goes by."""
        program(table, self._files)
        self._programmed = True

    async def metrics(self) -> bytes:
        """The picker's metrics page."""
        return await self._host.picker_metrics()

    async def until_one_ended(self, *, at_most_s: float) -> bool:
        """Wait until one of its processes has ended; false when none did in time."""
        return await self._host.until_one_ended(at_most_s=at_most_s)

    def stop(self) -> None:
        """End it, and forget how it was configured."""
        self._host.stop()
        self._files.bootstrap.unlink(missing_ok=True)
        self._files.table.unlink(missing_ok=True)
        self._programmed = False


@dataclass(frozen=True, slots=True)
class LocalWeights:
    """The machine's store."""

    store: WeightsStore
    clock: Clock
    budget_bytes: int | None

    def ensure(self, source: str, *, token: str | None, progress: Callable[[Progress], None]) -> Fetched:
        """The weights of `source`. Blocks."""
        return ensure(
            parse_source(source),
            store=self.store,
            clock=self.clock,
            token=token,
            budget_bytes=self.budget_bytes,
            progress=progress,
        )

    def facts(self, path: Path) -> ModelFacts:
        """What the file's header says."""
        if path.is_dir():
            return read_model_folder(path)
        return read_safetensors_header(path) if path.suffix == ".safetensors" else read_gguf_header(path)


@dataclass(frozen=True, slots=True)
class LocalMachine:
    """This machine."""

    directories: Directories
    # Secrets of the commands that were run, with the time of each, beside those of this process; in memory only.
    told: dict[str, ToldSecret] = field(default_factory=dict)

    def available_memory_bytes(self) -> int:
        return available_memory_bytes()

    def free_port(self) -> int:
        return free_port()

    def secret(self, ref: SecretKeyRef) -> str:
        return secret(ref, folder=self.directories.secrets, environment=os.environ, told=self.told)

    def tell(self, secrets: Mapping[str, str]) -> None:
        """A command's environment holds these."""
        now_s = time.time()
        self.told.update({name: ToldSecret(value, now_s) for name, value in secrets.items()})

    def require_engine(self, service: LLMService) -> None:
        envoy_binary()
        match service.spec.engine.type:
            case EngineType.LLAMA_CPP:
                require_llama_cpp()
            case EngineType.VLLM:
                require_program("vllm", hint="pip install vllm, on a machine with a GPU that it supports")
            case EngineType.SGLANG:
                require_module_of("python3", "sglang", hint="pip install sglang, on a machine with a GPU")
            case EngineType.SIMULATED:
                pass


def store_of(directories: Directories) -> WeightsStore:
    """The weights store of this machine, for this user."""
    return WeightsStore(directories.weights)


def cache_budget_bytes() -> int | None:
    """PILOTAGE_CACHE_BUDGET_GB in bytes; None is no budget. Raises Invalid."""
    text = os.environ.get("PILOTAGE_CACHE_BUDGET_GB")
    if not text:
        return None
    try:
        budget_gb = float(text)
    except ValueError:
        budget_gb = -1.0
    if budget_gb <= 0:
        raise Invalid(f"PILOTAGE_CACHE_BUDGET_GB is {text!r}", hint="write a number of gigabytes, such as 50")
    return int(budget_gb * 1e9)


def run_key(directories: Directories) -> str:
    """The key that this user's engines ask for: random, kept over the daemon's restarts, gone with the last service."""
    path = directories.run / "engine-key"
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        key = secrets.token_urlsafe(32)
        write_atomically(path, key.encode())
        return key


def seconds_from_environment(name: str, default_s: float) -> float:
    """A duration in seconds that the environment may change. Raises Invalid."""
    text = os.environ.get(name)
    if not text:
        return default_s
    try:
        return float(text)
    except ValueError as error:
        raise Invalid(f"{name} is {text!r}", hint="write a number of seconds") from error


def build_operator(
    directories: Directories, machine: LocalMachine, gateway: LocalGateway, events: EventLog, metrics: PlatformMetrics
) -> Operator:
    """The loop over this machine."""
    clock = SystemClock()
    return Operator(
        clock=clock,
        fleet=LocalReplicas(directories),
        gateway=gateway,
        weights=LocalWeights(store_of(directories), clock, cache_budget_bytes()),
        machine=machine,
        records=ServiceRecords(directories.services),
        events=events,
        metrics=metrics,
        run_key=run_key(directories),
        agent_defaults={
            "alive_file": directories.alive_file,
            "store_root": directories.weights,
            "progress_deadline_s": seconds_from_environment("PILOTAGE_PROGRESS_DEADLINE_SECONDS", 60.0),
            "orphan_after_s": seconds_from_environment("PILOTAGE_ORPHAN_SECONDS", 60.0),
        },
    )
