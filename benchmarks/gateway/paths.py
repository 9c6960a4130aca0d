"""What stands between load and backends: our gateway, a bare Envoy, and other people's routers. One at a time, on one core."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from tests.cluster.build import cache_folder

from pilotage.fleet.local.binaries import envoy_binary
from pilotage.fleet.local.gateway_host import ENVOY_FLAGS
from pilotage.gateway import (
    EnvoySettings,
    GatewayFiles,
    GatewayLimits,
    KeyEntry,
    KeyLimits,
    ReplicaEntry,
    RouteRule,
    RoutingTable,
    ServiceEntry,
    bootstrap,
    hash_of_key,
    program,
)

HERE = Path(__file__).resolve().parent
LOAD_CORE, PRODUCT_CORE = 0, 1
KEY = "sk-benchmark-0123456789abcdef0123456789"
# Read from the wheels that were run; both want no more than what pip brings along.
PEERS = {"vllm-router": ("0.1.16", "vllm_router", "error"), "sglang-router": ("0.3.2", "sglang_router", "warn")}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Running:
    """A path that runs: where it listens, and its processes."""

    port: int
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    gateway: GatewayFiles | None = None

    def cpu_s(self) -> float:
        """CPU seconds of all its processes so far, user and system."""
        total = 0.0
        for process in self.processes:
            for one in (found := psutil.Process(process.pid), *found.children(recursive=True)):
                times = one.cpu_times()
                total += times.user + times.system
        return total

    def rss_bytes(self) -> int:
        """Resident memory of all its processes."""
        return sum(psutil.Process(process.pid).memory_info().rss for process in self.processes)


def on_core(core: int, argv: Sequence[str], log: Path, **env: str) -> subprocess.Popen[bytes]:
    """Start `argv` on one core."""
    with log.open("ab") as out:
        return subprocess.Popen(["taskset", "-c", str(core), *argv], stdout=out, stderr=out, env={**os.environ, **env})


def until_up(url: str, log: Path, *, within_s: float = 60) -> None:
    """Wait for a 200."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, timeout=2).status_code == 200:
                return
        time.sleep(0.1)
    sys.exit(f"{url} did not come up:\n{log.read_text(errors='replace')[-2000:]}")


@contextlib.contextmanager
def ended(running: Running) -> Iterator[Running]:
    """`running`, whose processes are ended afterwards, by their ids."""
    try:
        yield running
    finally:
        for process in running.processes:
            process.terminate()
        for process in running.processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def pilotage(ports: Sequence[int]) -> Iterator[Running]:
    """Our gateway as it ships: keys, limits, holding, usage and access log on."""
    with tempfile.TemporaryDirectory(prefix="pltb-") as name:
        files = GatewayFiles(Path(name))
        replicas = tuple(
            ReplicaEntry(name=f"r{n}", endpoint=f"127.0.0.1:{port}", slots=10_000, cache_blocks=4_000)
            for n, port in enumerate(ports)
        )
        limits = KeyLimits(concurrent_requests=100_000, requests_per_minute=10**7, tokens_per_minute=10**9)
        service = ServiceEntry(
            key="default/bench", names=("bench",), created_s=1.0, engine_key="engine-key", replicas=replicas,
            routes=(RouteRule(path="/v1/completions", prompt="prompt"),), wanted_replicas=len(ports),
            keys=(KeyEntry(hash=hash_of_key(KEY), limits=limits),), keepalive_s=60,
        )  # fmt: skip
        port = free_port()
        settings = EnvoySettings(
            address="127.0.0.1", port=port, xds=files.xds, picker_socket=files.picker_socket,
            admin_socket=files.admin_socket, access_log=files.access_log, limits=GatewayLimits(),
        )  # fmt: skip
        program(RoutingTable(generation=1, services=(service,)), files)
        files.bootstrap.write_text(json.dumps(bootstrap(settings)))
        envoy = [str(envoy_binary()), "-c", str(files.bootstrap), "--concurrency", "1", *ENVOY_FLAGS]
        picker = [sys.executable, "-m", "pilotage.gateway", name]
        log = files.folder / "gateway.log"
        running = Running(port, [on_core(PRODUCT_CORE, argv, log) for argv in (envoy, picker)], files)
        with ended(running):
            until_up_with_key(f"http://127.0.0.1:{port}/v1/models", log)
            time.sleep(1)
            yield running


def until_up_with_key(url: str, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, headers={"authorization": f"Bearer {KEY}"}, timeout=2).status_code == 200:
                return
        time.sleep(0.1)
    sys.exit(f"{url} did not come up:\n{log.read_text(errors='replace')[-2000:]}")


@contextlib.contextmanager
def bare_envoy(ports: Sequence[int]) -> Iterator[Running]:
    """The same listener, worker and pools, without filters and log."""
    with tempfile.TemporaryDirectory(prefix="pltb-") as name:
        port = free_port()
        config: dict[str, Any] = json.loads((HERE / "bare_envoy.json").read_text())
        resources = config["static_resources"]
        resources["listeners"][0]["address"]["socket_address"]["port_value"] = port
        resources["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"] = [
            {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": p}}}} for p in ports
        ]
        path = Path(name) / "envoy.json"
        path.write_text(json.dumps(config))
        log = Path(name) / "log"
        argv = [
            str(envoy_binary()),
            "-c",
            str(path),
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "warning",
        ]
        with ended(Running(port, [on_core(PRODUCT_CORE, argv, log)])) as running:
            until_up(f"http://127.0.0.1:{port}/health", log)
            yield running


def installed(peer: str) -> Path:
    """The peer's Python, in an environment of its own that is kept."""
    version, _, _ = PEERS[peer]
    venv = cache_folder() / "peers" / f"{peer}-{version}"
    python = venv / "bin" / "python"
    if not (venv / "installed").exists():
        print(f"installing {peer} {version}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run(
            [str(python), "-m", "pip", "install", "-q", "--only-binary", ":all:", f"{peer}=={version}"], check=True
        )
        (venv / "installed").touch()
    return python


@contextlib.contextmanager
def router(peer: str, ports: Sequence[int]) -> Iterator[Running]:
    """A router of others, with prefix awareness, without keys, limits or a log of requests."""
    _, module, level = PEERS[peer]
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="pltb-") as name:
        log = Path(name) / "log"
        argv = [
            str(installed(peer)), "-m", f"{module}.launch_router", "--host", "127.0.0.1", "--port", str(port),
            "--worker-urls", *(f"http://127.0.0.1:{p}" for p in ports), "--policy", "cache_aware",
            "--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port()),
            "--worker-startup-check-interval", "1", "--request-timeout-secs", "600",
            "--health-check-interval-secs", "3600", "--disable-retries", "--disable-circuit-breaker",
            "--log-level", level,
        ]  # fmt: skip
        started = on_core(PRODUCT_CORE, argv, log, TOKIO_WORKER_THREADS="1", RAYON_NUM_THREADS="1")
        with ended(Running(port, [started])) as running:
            until_up(f"http://127.0.0.1:{port}/readiness", log)
            yield running


def open_path(name: str, ports: Sequence[int]) -> contextlib.AbstractContextManager[Running]:
    """The path called `name`."""
    if name == "pilotage":
        return pilotage(ports)
    return bare_envoy(ports) if name == "bare Envoy" else router(name, ports)
