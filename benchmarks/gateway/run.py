"""The gateway beside a bare Envoy and other routers: throughput, added latency, large bodies, streams, a thousand replicas.

    python benchmarks/gateway/run.py [--rounds 5] [--seconds 4] [--only throughput,latency,mixed,streams,pick]

Load and backends run on core 0, everything of the product on core 1. Every round takes all paths in turn. Peers run
without keys and limits; ours with keys, limits, holding, usage and access log. Needs wrk and nginx (Debian: wrk,
nginx-light); the peers install themselves.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import psutil

from benchmarks.gateway.backends import CHUNK_EVERY_S, nginx, require, streams
from benchmarks.gateway.paths import HERE, KEY, LOAD_CORE, Running, open_path
from pilotage.clock import SystemClock
from pilotage.gateway import ReplicaEntry, RouteRule, RoutingTable, ServiceEntry
from pilotage.gateway.picker import Picker, Request

PATHS = ("bare Envoy", "pilotage", "sglang-router", "vllm-router")
REPLICAS = 4
STREAMS = 200


def bodies(size: int, count: int, folder: Path) -> Path:
    """A file of requests with prompts of `size` bytes, sixteen to a shared first half."""
    path, random = folder / f"bodies-{size}", Random(size)
    words = ["light", "house", "ships", "the", "coast", "of", "a", "keeper", "lamp", "night", "fog", "bell"]

    def text(length: int) -> str:
        said = " ".join(random.choice(words) for _ in range(length // 4))
        return said[:length]

    with path.open("w") as out:
        for number in range(count):
            if number % 16 == 0:
                shared = text(size // 2)
            out.write(json.dumps({"model": "bench", "prompt": shared + text(size // 2), "max_tokens": 16}) + "\n")
    return path


def wrk(running: Running, file: Path, *, connections: int, seconds: float) -> tuple[float, float, float]:
    """Requests a second, and the latency's p50 and p99 in ms. Exits when an answer was wrong."""
    done = subprocess.run(
        ["taskset", "-c", str(LOAD_CORE), "wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--timeout", "20s", "-s",
         str(HERE / "load.lua"), f"http://127.0.0.1:{running.port}"],
        env={**os.environ, "BENCH_KEY": KEY, "BENCH_BODIES": str(file)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    said = next(line for line in done.stdout.splitlines() if line.startswith("RESULT")).split()[1:]
    requests, duration_us, *errors = (float(word) for word in said[:7])
    if any(errors):
        sys.exit(f"wrong answers: connect, read, write, status, timeout = {errors}")
    return requests / duration_us * 1e6, float(said[7]) / 1000, float(said[8]) / 1000


def checked(running: Running) -> None:
    """Every request of ours went to one of the backends, by the picker's word, and its usage is known."""
    if running.gateway is None:
        return
    time.sleep(0.5)
    wrong = entries = 0
    for line in running.gateway.access_log.read_bytes().splitlines():
        if b"v1/completions" in line or b'"lease"' in line:
            said = json.loads(line)
            if said.get("lease"):
                entries += 1
                # wrk leaves its last requests when its time is over.
                over = said["type"] == "DownstreamEnd" and "DC" not in said.get("flags", "")
                wrong += over and not (said["code"] == 200 and said["host"] == said["lease"].split(";")[2])
    if wrong or not entries:
        sys.exit(f"{wrong} of {entries} requests were not where the picker said")


def spread(values: Sequence[float], form: str = "{:.2f}") -> str:
    return f"{form.format(statistics.median(values))} [{form.format(min(values))} to {form.format(max(values))}]"


def throughput(rounds: int, seconds: float, folder: Path) -> None:
    """Requests a second over 32 connections, 1.5 kB prompts."""
    file = bodies(1_500, 1_024, folder)
    rates: dict[str, list[float]] = {path: [] for path in PATHS}
    with nginx(REPLICAS) as ports:
        for _ in range(rounds):
            for path in PATHS:
                with open_path(path, ports) as running:
                    wrk(running, file, connections=32, seconds=1)
                    rates[path].append(wrk(running, file, connections=32, seconds=seconds)[0])
                    checked(running)
    print(
        "\n## Throughput, 32 connections, 1.5 kB prompts\n\n| path | requests/s | ours to it, by round | target |\n|---|---|---|---|"
    )
    targets = {"bare Envoy": "0.45", "sglang-router": "1.0", "vllm-router": "1.5", "pilotage": ""}
    for path in PATHS:
        ratios = [ours / other for ours, other in zip(rates["pilotage"], rates[path], strict=True)]
        print(f"| {path} | {spread(rates[path], '{:.0f}')} | {spread(ratios)} | {targets[path]} |", flush=True)


def latency(rounds: int, seconds: float, folder: Path) -> None:
    """What one connection waits longer than with a bare Envoy."""
    print(
        "\n## Latency of one connection, ms\n\n| prompt | path | p50 | p99 | over bare Envoy, p50 | p99 | target p50, p99 |\n|---|---|---|---|---|---|---|"
    )
    targets = {1_500: "0.25, 1.5", 32_000: "0.5", 400_000: "2"}
    with nginx(REPLICAS) as ports:
        for size, target in targets.items():
            file = bodies(size, 256 if size < 100_000 else 32, folder)
            seen: dict[str, list[tuple[float, float]]] = {path: [] for path in PATHS}
            for _ in range(rounds):
                for path in PATHS:
                    with open_path(path, ports) as running:
                        wrk(running, file, connections=1, seconds=1)
                        seen[path].append(wrk(running, file, connections=1, seconds=seconds)[1:])
            for path in PATHS:
                p50, p99 = ([pair[part] for pair in seen[path]] for part in (0, 1))
                over = [
                    [ours[part] - bare[part] for ours, bare in zip(seen[path], seen["bare Envoy"], strict=True)]
                    for part in (0, 1)
                ]
                print(
                    f"| {size / 1000:g} kB | {path} | {spread(p50)} | {spread(p99)} | {spread(over[0])} | "
                    f"{spread(over[1])} | {target if path == 'pilotage' else ''} |",
                    flush=True,
                )


async def _paced(port: int, *, rate: float, seconds: float, large_share: float) -> list[float]:
    """Latencies in ms of small requests sent at `rate` a second, while a share of all has 4 to 10 MB."""
    random, took, tasks = Random(7), [], []
    small = [line.encode() for line in _small_bodies()]
    large = [
        json.dumps({"model": "bench", "prompt": "night " * (size // 6)}).encode() for size in (4_000_000, 10_000_000)
    ]

    async def ask(body: bytes, *, counts: bool) -> None:
        began = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: b\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n"
            f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        answer = await reader.read()
        if not answer.startswith(b"HTTP/1.1 200"):
            sys.exit(f"a wrong answer: {answer[:200]!r}")
        if counts:
            took.append((time.perf_counter() - began) * 1000)
        writer.close()

    # The large ones come from another process, so that sending them does not delay the small ones here.
    code = (
        "import asyncio, sys; sys.path.insert(0, sys.argv[1]); from benchmarks.gateway.run import _large; "
        "asyncio.run(_large(int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])))"
    )
    argv = [sys.executable, "-c", code, str(HERE.parents[1]), str(port), str(rate * large_share), str(seconds)]
    sender = subprocess.Popen(["taskset", "-c", str(LOAD_CORE), "nice", "-n", "5", *argv])
    del large
    end = time.perf_counter() + seconds
    next_at = time.perf_counter()
    while time.perf_counter() < end:
        tasks.append(asyncio.create_task(ask(random.choice(small), counts=True)))
        next_at += 1 / rate
        await asyncio.sleep(max(0.0, next_at - time.perf_counter()))
    await asyncio.gather(*tasks)
    if sender.wait(timeout=60):
        sys.exit("the large requests failed")
    return took


async def _large(port: int, rate: float, seconds: float) -> None:
    random, end = Random(11), time.perf_counter() + seconds
    while time.perf_counter() < end:
        body = json.dumps(
            {"model": "bench", "prompt": "night " * (random.randrange(4_000_000, 10_000_000) // 6)}
        ).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
        writer.write(
            f"POST /v1/completions HTTP/1.1\r\nhost: b\r\nauthorization: Bearer {KEY}\r\nconnection: close\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        answer = await reader.read()
        if not answer.startswith(b"HTTP/1.1 200"):
            sys.exit(f"a wrong answer to a large request: {answer[:300]!r}")
        writer.close()
        await asyncio.sleep(1 / rate)


def _small_bodies() -> list[str]:
    return [json.dumps({"model": "bench", "prompt": f"{number} " + "light " * 250}) for number in range(64)]


def mixed(rounds: int, seconds: float, _: Path) -> None:
    """Small requests, 100 a second on new connections, while 1% of all have 4 to 10 MB."""
    print(
        "\n## Small requests while 1% of bodies have 4 to 10 MB, ms\n\n| path | p50 | p99 | target p99 |\n|---|---|---|---|"
    )
    psutil.Process().cpu_affinity([LOAD_CORE])
    seen: dict[str, list[tuple[float, float]]] = {path: [] for path in ("bare Envoy", "pilotage")}
    with streams(REPLICAS) as ports:
        for _round in range(rounds):
            for path, found in seen.items():
                with open_path(path, ports) as running:
                    took = sorted(asyncio.run(_paced(running.port, rate=100, seconds=4 * seconds, large_share=0.01)))
                    found.append((took[len(took) // 2], took[int(0.99 * len(took))]))
    for path, found in seen.items():
        p50, p99 = ([pair[part] for pair in found] for part in (0, 1))
        print(f"| {path} | {spread(p50)} | {spread(p99)} | {'5' if path == 'pilotage' else ''} |", flush=True)


async def _read_streams(port: int, count: int, seconds: float, running: Running) -> tuple[float, int]:
    """CPU seconds of the product and chunks that came, over `seconds` of `count` streams."""
    chunks = 0

    async def read() -> None:
        nonlocal chunks
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = json.dumps({"model": "bench", "prompt": "light " * 250, "stream": True}).encode()
        writer.write(
            f"POST /v1/completions HTTP/1.1\r\nhost: b\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        while data := await reader.read(65536):
            chunks += data.count(b"data: ")

    # What the product takes while nothing runs is no part of a chunk.
    idle_s = running.cpu_s()
    await asyncio.sleep(3)
    idle_s = (running.cpu_s() - idle_s) / 3
    tasks = [asyncio.create_task(read()) for _ in range(count)]
    await asyncio.sleep(3)
    cpu_s, before = running.cpu_s(), chunks
    await asyncio.sleep(seconds)
    used_s, came = running.cpu_s() - cpu_s - idle_s * seconds, chunks - before
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    if came < 0.5 * count * seconds / CHUNK_EVERY_S:
        sys.exit(f"only {came} chunks came")
    return used_s, came


def streamed(rounds: int, seconds: float, _: Path) -> None:
    """CPU of a relayed chunk: usage in every chunk, read on the way; the periodic log on."""
    used: dict[str, list[float]] = {path: [] for path in ("bare Envoy", "pilotage")}
    psutil.Process().cpu_affinity([LOAD_CORE])
    with streams(REPLICAS) as ports:
        for _round in range(rounds):
            for path in used:
                with open_path(path, ports) as running:
                    cpu_s, chunks = asyncio.run(_read_streams(running.port, STREAMS, 2 * seconds, running))
                    used[path].append(cpu_s / chunks * 1e6)
    print(
        f"\n## CPU of a streamed chunk, {STREAMS} streams of 20 chunks/s, microseconds\n\n| path | CPU | to bare Envoy, by round | target |\n|---|---|---|---|"
    )
    for path in used:
        ratios = [ours / bare for ours, bare in zip(used[path], used["bare Envoy"], strict=True)]
        print(
            f"| {path} | {spread(used[path], '{:.1f}')} | {spread(ratios)} | {'1.10' if path == 'pilotage' else ''} |",
            flush=True,
        )


class _Nobody:
    def answered(self, *_: object) -> None: ...

    def admitted(self, *_: object, **__: object) -> None: ...

    def left(self, *_: object) -> None: ...


def pick(rounds: int, seconds: float, _: Path) -> None:
    """1,000 replicas, 100,000 blocks known: how long one decision takes, and the process's memory."""
    replicas = tuple(
        ReplicaEntry(name=f"r{n}", endpoint=f"10.0.{n // 250}.{n % 250}:8000", slots=64, cache_blocks=1_000)
        for n in range(1_000)
    )
    service = ServiceEntry(
        key="default/bench", names=("bench",), created_s=1.0, replicas=replicas,
        routes=(RouteRule(path="/v1/completions", prompt="prompt"),),
    )  # fmt: skip
    picker = Picker(clock=SystemClock(), random=Random(1), observer=_Nobody())  # type: ignore[arg-type]
    picker.use(RoutingTable(generation=1, services=(service,)))
    picker.envoy_applied(frozenset((service.cluster, replica.endpoint) for replica in replicas))
    random, system = Random(3), "You are the keeper of a lighthouse. " * 60
    leases, took = [], []

    def ask() -> float:
        # A system prompt that all share, one of 8,000 documents, and a question: 25 blocks.
        document = f"document {random.randrange(8_000)} "
        prompt = system + document * 700 + f"question {random.random()}"
        body = json.dumps({"model": "bench", "prompt": prompt}).encode()
        request = Request("POST", "/v1/completions", None, body, time.time(), None)
        said: list[object] = []
        began = time.perf_counter()
        picker.decide(request, said.append)
        spent = time.perf_counter() - began
        leases.append(said[0].lease)  # type: ignore[attr-defined]
        if len(leases) > 5_000:
            picker.ended(leases.pop(random.randrange(len(leases))), used_tokens=0)
        return spent

    index = picker._services["default/bench"].index
    for _request in range(12_000):
        ask()
    if len(index._holders) < 100_000:
        sys.exit(f"only {len(index._holders)} blocks are known")
    for _round in range(rounds):
        for _request in range(int(1_000 * seconds / 4)):
            took.append(ask() * 1000)
    took.sort()
    rss = psutil.Process().memory_info().rss / 1e6
    print(
        f"\n## A decision among 1,000 replicas with {len(index._holders):,} blocks known, 10 kB prompts\n\n"
        f"p50 {took[len(took) // 2]:.2f} ms, p99 {took[int(0.99 * len(took))]:.2f} ms (target 1 ms), "
        f"{rss:.0f} MB (target 400 MB)",
        flush=True,
    )


PARTS = {"throughput": throughput, "latency": latency, "mixed": mixed, "streams": streamed, "pick": pick}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=float, default=4)
    options.add_argument("--only", default=",".join(PARTS))
    said = options.parse_args()
    require("wrk", "wrk")
    require("nginx", "nginx-light")
    wanted = said.only.split(",")
    if unknown := [part for part in wanted if part not in PARTS]:
        sys.exit(f"no part is called {unknown[0]}; there are: {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory(prefix="pltb-") as name:
        for part in wanted:
            PARTS[part](said.rounds, said.seconds, Path(name))


if __name__ == "__main__":
    main()
