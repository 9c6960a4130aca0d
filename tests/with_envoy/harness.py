"""A real Envoy, the real picker as its own process, and engines that do exactly what a test says."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson

from pilotage.fleet.local.binaries import envoy_binary
from pilotage.gateway import (
    EnvoySettings,
    GatewayFiles,
    GatewayLimits,
    ReplicaEntry,
    RouteRule,
    RoutingTable,
    ServiceEntry,
    bootstrap,
    program,
)

CHAT = RouteRule(path="/v1/chat/completions", prompt="messages")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def chat(content: str = "hi", **more: Any) -> dict[str, Any]:
    return {"model": "chat", "messages": [{"role": "user", "content": content}], **more}


@dataclass
class Seen:
    """One request as an engine saw it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    client_left: asyncio.Event = field(default_factory=asyncio.Event)


Script = Callable[["Seen", asyncio.StreamWriter], Awaitable[None]]


class ScriptedEngine:
    """An HTTP/1.1 server whose answers are written by a script, byte by byte."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.seen: list[Seen] = []
        self.port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def crash(self) -> None:
        """Reset every connection and refuse new ones."""
        if self._server:
            self._server.close()
        for writer in list(self._writers):
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, path, _ = head[0].split(" ")
                headers = {n.lower(): v for n, _, v in (line.partition(": ") for line in head[1:] if line)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                seen = Seen(method, path, headers, body)
                self.seen.append(seen)
                script = asyncio.ensure_future(self.script(seen, writer))
                # A closed connection shows as an end of the input.
                ended = asyncio.ensure_future(self._end_of(reader))
                await asyncio.wait([script, ended], return_when=asyncio.FIRST_COMPLETED)
                if not script.done():
                    seen.client_left.set()
                    script.cancel()
                    return
                ended.cancel()
                await asyncio.wait([ended])
                script.result()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    @staticmethod
    async def _end_of(reader: asyncio.StreamReader) -> None:
        while not reader.at_eof():
            if reader._buffer:  # type: ignore[attr-defined]
                await asyncio.Event().wait()
            await reader._wait_for_data("end")  # type: ignore[attr-defined]


async def answer_plain(writer: asyncio.StreamWriter, body: dict[str, Any], status: int = 200) -> None:
    data = orjson.dumps(body)
    writer.write(
        f"HTTP/1.1 {status} OK\r\ncontent-type: application/json; charset=utf-8\r\n"
        f"content-length: {len(data)}\r\n\r\n".encode()
        + data
    )
    await writer.drain()


async def begin_stream(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    await writer.drain()


async def send_event(writer: asyncio.StreamWriter, event: dict[str, Any] | str) -> None:
    data = f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode()
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
    await writer.drain()


async def end_stream(writer: asyncio.StreamWriter) -> None:
    writer.write(b"0\r\n\r\n")
    await writer.drain()


async def quick(seen: Seen, writer: asyncio.StreamWriter) -> None:
    """Answers at once."""
    await answer_plain(writer, {"ok": True, "usage": {"prompt_tokens": 7, "completion_tokens": 3}})


class Gateway:
    """Envoy and picker over one folder, with a table that tests change."""

    def __init__(self, folder: Path, *, limits: GatewayLimits) -> None:
        self.files = GatewayFiles(folder)
        self.port = free_port()
        self.limits = limits
        self.generation = 0
        self.envoy: subprocess.Popen[bytes] | None = None
        self.picker: subprocess.Popen[bytes] | None = None
        self.services: tuple[ServiceEntry, ...] = ()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self.use()
        settings = EnvoySettings(
            address="127.0.0.1",
            port=self.port,
            xds=self.files.xds,
            picker_socket=self.files.picker_socket,
            admin_socket=self.files.admin_socket,
            access_log=self.files.access_log,
            limits=self.limits,
        )
        self.files.bootstrap.write_bytes(orjson.dumps(bootstrap(settings)))
        self.start_envoy()
        self.start_picker()
        await self.until_ready()

    def start_envoy(self) -> None:
        with (self.files.folder / "envoy.log").open("ab") as out:
            self.envoy = subprocess.Popen(
                [str(envoy_binary()), "-c", str(self.files.bootstrap), "--disable-hot-restart", "--concurrency", "1",
                 "--file-flush-interval-msec", "20", "--log-level", "warning"],
                stdout=out, stderr=out,
            )  # fmt: skip

    def start_picker(self) -> None:
        with (self.files.folder / "picker.log").open("ab") as out:
            self.picker = subprocess.Popen(
                [sys.executable, "-m", "pilotage.gateway", str(self.files.folder)],
                stdout=out, stderr=out, env={**os.environ, "PILOTAGE_LOG_LEVEL": "debug"},
            )  # fmt: skip

    def kill_picker(self) -> None:
        assert self.picker
        self.picker.send_signal(signal.SIGKILL)
        self.picker.wait()

    def stop(self) -> None:
        for process in (self.picker, self.envoy):
            if process and process.poll() is None:
                process.kill()
                process.wait()

    def use(self, *services: ServiceEntry) -> None:
        """Make these the services, under a new generation."""
        self.generation += 1
        self.services = services
        program(RoutingTable(generation=self.generation, limits=self.limits, services=services), self.files)

    async def use_applied(self, *services: ServiceEntry) -> None:
        """`use`, and wait until both Envoy and the picker go by it."""
        self.use(*services)
        wanted = {s.key: [r.name for r in s.replicas if not r.draining] for s in services}
        await self.until(lambda status: status["generation"] == self.generation and status["usable"] == wanted)

    async def status(self) -> dict[str, Any]:
        transport = httpx.AsyncHTTPTransport(uds=str(self.files.control_socket))
        async with httpx.AsyncClient(transport=transport) as client:
            return dict((await client.get("http://picker/status")).json())

    async def metrics(self) -> str:
        transport = httpx.AsyncHTTPTransport(uds=str(self.files.control_socket))
        async with httpx.AsyncClient(transport=transport) as client:
            return (await client.get("http://picker/metrics")).text

    async def until(self, holds: Callable[[dict[str, Any]], bool], *, within_s: float = 20.0) -> dict[str, Any]:
        """The picker's status once `holds` of it."""
        deadline = time.monotonic() + within_s
        status: dict[str, Any] = {}
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                status = await self.status()
                if holds(status):
                    return status
            await asyncio.sleep(0.03)
        raise AssertionError(f"not within {within_s} s; the picker says {status}\n{self.logs()}")

    async def until_ready(self) -> None:
        deadline = time.monotonic() + 20
        async with httpx.AsyncClient() as client:
            while time.monotonic() < deadline:
                with contextlib.suppress(httpx.HTTPError):
                    if (await client.get(f"{self.url}/v1/models")).status_code == 200:
                        return
                await asyncio.sleep(0.05)
        raise AssertionError(f"the gateway did not start\n{self.logs()}")

    def access_log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.files.access_log.read_text().splitlines() if line.endswith("}")]

    async def logged(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first access-log entry of which `holds`."""
        for _ in range(200):
            for entry in self.access_log():
                if holds(entry):
                    return entry
            await asyncio.sleep(0.05)
        raise AssertionError(f"no such entry in {self.access_log()}")

    def logs(self) -> str:
        texts = [path.read_text()[-3000:] for path in self.files.folder.glob("*.log")]
        return "\n---\n".join(texts)


def service(*engines: ScriptedEngine, **more: Any) -> ServiceEntry:
    """An open service named `chat` over these engines."""
    replicas = tuple(
        ReplicaEntry(name=f"r{number}", endpoint=engine.endpoint, slots=8) for number, engine in enumerate(engines)
    )
    defaults: dict[str, Any] = {
        "key": "default/chat", "names": ("chat",), "created_s": 1.0, "engine_key": "engine-key", "routes": (CHAT,),
        "wanted_replicas": len(engines),
    }  # fmt: skip
    return ServiceEntry(**{**defaults, "replicas": replicas, **more})


def with_slots(entry: ServiceEntry, slots: int) -> ServiceEntry:
    return entry.model_copy(update={"replicas": tuple(r.model_copy(update={"slots": slots}) for r in entry.replicas)})


@contextlib.asynccontextmanager
async def engines(*scripts: Script) -> AsyncIterator[list[ScriptedEngine]]:
    """A running engine for each script."""
    started = [ScriptedEngine(script) for script in scripts]
    for engine in started:
        await engine.start()
    try:
        yield started
    finally:
        for engine in started:
            engine.crash()
