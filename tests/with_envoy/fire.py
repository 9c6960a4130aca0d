"""Load that goes on while things break, and simulated engines to break. Clients retry nothing."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from pilotage.engines.adapter import KEY_VARIABLE
from pilotage.gateway import ReplicaEntry, ServiceEntry
from tests.with_envoy.harness import CHAT, Gateway, chat, free_port

# Requests a fault lasts: what CI has time for, or what `make soak` asks for.
REQUESTS = int(os.environ.get("PILOTAGE_FIRE_REQUESTS", "1000"))
STREAMS = 50
TOKENS = 12


@dataclass(frozen=True)
class Shot:
    """One request. `fate` is whole, broken (a protocol error after it began), lost (an error before), refused (a status),
    or short: an end that looks right and is not, which must never be."""

    fate: str
    said: str = ""


@dataclass
class Fire:
    """What became of all requests."""

    shots: list[Shot] = field(default_factory=list)

    def fates(self) -> Counter[str]:
        return Counter(shot.fate for shot in self.shots)

    def not_whole(self) -> list[Shot]:
        return [shot for shot in self.shots if shot.fate != "whole"]

    async def more(self, count: int, *, within_s: float = 300) -> None:
        """Wait for `count` more shots."""
        wanted = len(self.shots) + count
        async with asyncio.timeout(within_s):
            while len(self.shots) < wanted:
                await asyncio.sleep(0.02)


async def shoot(client: httpx.AsyncClient, url: str, body: dict[str, object]) -> Shot:
    """One request, read to its end."""
    begun, text = False, b""
    try:
        async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
            begun = True
            async for part in response.aiter_raw():
                text += part
    except httpx.HTTPError as error:
        return Shot("broken" if begun else "lost", f"{type(error).__name__}: {error}")
    if response.status_code != 200:
        return Shot("refused", f"{response.status_code}: {text[:300]!r}")
    whole = text.endswith(b"data: [DONE]\n\n") if body.get("stream") else text.rstrip().endswith(b"}")
    return Shot("whole") if whole else Shot("short", repr(text[-200:]))


@contextlib.asynccontextmanager
async def clients() -> AsyncIterator[list[httpx.AsyncClient]]:
    """One that keeps HTTP/1.1 connections and one of HTTP/2, each with all its streams on few connections."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=STREAMS, keepalive_expiry=30)
    async with (
        httpx.AsyncClient(timeout=120, limits=limits) as one,
        httpx.AsyncClient(timeout=120, http1=False, http2=True) as two,
    ):
        yield [one, two]


@contextlib.asynccontextmanager
async def burning(url: str, *, streams: int = STREAMS, tokens: int = TOKENS) -> AsyncIterator[Fire]:
    """Keeps `streams` requests running, two of three streamed, half of them by HTTP/2, until the block ends."""
    fire, stop = Fire(), asyncio.Event()
    async with clients() as (one, two):

        async def keep_on(number: int) -> None:
            turn = number
            while not stop.is_set():
                body = chat(f"{number} {turn}", stream=bool(turn % 3), max_tokens=tokens)
                shot = await shoot(two if number % 2 else one, url, body)
                fire.shots.append(shot)
                if shot.fate == "lost":
                    # Nobody listens: a client without a pause would count the same gap a thousand times.
                    await asyncio.sleep(1)
                turn += 1

        tasks = [asyncio.create_task(keep_on(number)) for number in range(streams)]
        try:
            yield fire
        finally:
            stop.set()
            await asyncio.gather(*tasks)


class Simulated:
    """A simulated engine's process."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.port = free_port()
        with (folder / "engines.log").open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pilotage.engines.simulated.server", f"--port={self.port}", "--served-name=chat",
                 "--max-model-len=100000", *flags],
                stdout=out, stderr=out, env={**os.environ, KEY_VARIABLE: "engine-key"},
            )  # fmt: skip

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def running(self) -> int:
        """Requests that run in it, by its own count."""
        page = httpx.get(f"http://{self.endpoint}/metrics", headers={"authorization": "Bearer engine-key"}).text
        return int(
            float(next(line for line in page.splitlines() if line.startswith("vllm:num_requests_running ")).split()[1])
        )

    async def until_up(self) -> None:
        async with httpx.AsyncClient() as client:
            for _ in range(600):
                with contextlib.suppress(httpx.HTTPError):
                    if (await client.get(f"http://{self.endpoint}/health")).status_code == 200:
                        return
                await asyncio.sleep(0.05)
        raise AssertionError("the simulated engine did not start")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Fleet:
    """Simulated engines behind a gateway; the test is their control loop."""

    def __init__(self, gateway: Gateway, slots: int, flags: Sequence[str]) -> None:
        self.gateway = gateway
        self.slots = slots
        self.flags = flags
        self.engines: list[Simulated] = []
        self.more: dict[str, object] = {}

    async def start(self, count: int) -> list[Simulated]:
        new = [Simulated(self.gateway.files.folder, *self.flags) for _ in range(count)]
        self.engines += new
        await asyncio.gather(*(engine.until_up() for engine in new))
        return new

    def entry(self, *, draining: Sequence[Simulated] = (), **more: object) -> ServiceEntry:
        replicas = tuple(
            ReplicaEntry(name=f"r{e.port}", endpoint=e.endpoint, slots=self.slots, draining=e in draining)
            for e in self.engines
        )
        said: dict[str, object] = {
            "key": "default/chat", "names": ("chat",), "created_s": 1.0, "engine_key": "engine-key", "routes": (CHAT,),
            "wanted_replicas": len(replicas), "replicas": replicas, "keepalive_s": 60, **self.more, **more,
        }  # fmt: skip
        return ServiceEntry.model_validate(said)

    async def replace(self, dead: Simulated) -> None:
        """What the control loop does about an engine that ended: take it out, put another in."""
        self.engines.remove(dead)
        await self.gateway.use_applied(self.entry())
        await self.start(1)
        await self.gateway.use_applied(self.entry())

    def in_flight(self) -> dict[str, int]:
        """Requests of each engine, as it counts."""
        return {engine.endpoint: count for engine in self.engines if (count := engine.running())}


@contextlib.asynccontextmanager
async def fleet(gateway: Gateway, count: int, *flags: str, slots: int = 64, **more: object) -> AsyncIterator[Fleet]:
    """`count` simulated engines that the gateway knows."""
    made = Fleet(gateway, slots, (f"--max-num-seqs={slots}", *flags))
    made.more = more
    try:
        await made.start(count)
        await gateway.use_applied(made.entry())
        yield made
    finally:
        for engine in made.engines:
            engine.kill()


def memory_bytes(pid: int) -> int:
    """What the process holds: proportional for shared pages where the system says so."""
    return int(psutil.Process(pid).memory_info().rss)
