"""The picker's process: Envoy's checks in, the control loop's table in, the access log in, metrics out."""

import asyncio
import contextlib
import os
import signal
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import aiohttp
import msgspec
import orjson
import structlog
import uvloop
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest

from pilotage.clock import SystemClock
from pilotage.fleet import serve_on_socket, until_orphaned
from pilotage.gateway.accounts import Ledger
from pilotage.gateway.answers import Answer
from pilotage.gateway.large_bodies import LargeBodies
from pilotage.gateway.leases import LEASE_S, Lease, lease_from_text
from pilotage.gateway.picker import Picker
from pilotage.gateway.programming import GatewayFiles
from pilotage.gateway.table import read_table
from pilotage.gateway.usage import LogEntry, LogTail, Usage
from pilotage.gateway.wire import protocol_factory
from pilotage.signals import GatewayMetrics

log = structlog.get_logger()

LOG_POLL_S = 0.02
TABLE_POLL_S = 0.05
TICK_S = 0.1
# Envoy's admin is asked often while it has yet to apply something, and now and then otherwise.
APPLIED_POLL_S = 0.05
APPLIED_RECHECK_S = 2.0
REOPEN_RETRY_S = 1.0
LARGEST_LOG_BYTES = 64 * 1024 * 1024
# After a crash, what runs is known again once every stream has logged once (each does every second).
SETTLE_S = 1.2
# Without a control loop for this long, the gateway ends itself and Envoy: nothing is left behind.
ORPHAN_AFTER_S = 60.0

_encode_lines = msgspec.json.Encoder().encode_lines


class _Line(msgspec.Struct, omit_defaults=True):
    """A request in the picker's log, with the names that structlog gives. A struct: one is made for every request."""

    event: str
    timestamp: str
    code: int
    duration_s: float
    request_id: str | None = None
    traceparent: str | None = None
    details: str | None = None
    service: str | None = None
    account: str | None = None
    endpoint: str | None = None
    reason: str | None = None
    attempts: int | None = None
    hold_s: float | None = None
    first_token_s: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    level: str = msgspec.field(default_factory=lambda: "info")
    process: str = msgspec.field(default_factory=lambda: "picker")


class Recorder:
    """Turns what the picker does and the access log says into metrics and log lines. No prompt and no key is logged."""

    def __init__(self, metrics: GatewayMetrics) -> None:
        self._metrics = metrics
        self._lines: list[_Line] = []
        self._now = ""

    def answered(self, service: str, answer: Answer) -> None:
        self._metrics.count(service, str(answer.status), answer.code)

    def admitted(self, lease: Lease, *, chain_blocks: int, cached_blocks: int) -> None:
        tally = self._metrics.of(lease.service)
        tally.held.observe(lease.hold_s)
        tally.prefix_blocks += chain_blocks
        tally.prefix_hits += cached_blocks

    def left(self, service: str) -> None:
        self._metrics.count(service, "0", "client_left_waiting")

    def answered_here(self, entry: LogEntry) -> None:
        """A request that no engine saw is over: the picker answered it, or Envoy refused it by itself."""
        answered = entry.details in ("ext_authz_denied", "lua_response")
        if not answered and entry.reason != "client_left":
            # Envoy's own word: too large, no HTTP, the picker out of reach.
            self._metrics.count("", str(entry.code), "refused")
        self._lines.append(
            _Line(
                "request_answered_here", self._time(), entry.code, entry.duration_s, entry.request_id,
                entry.traceparent, entry.details,
            )
        )  # fmt: skip

    def ended(self, entry: LogEntry, lease: Lease, usage: Usage) -> None:
        """A request that was sent to an engine is over."""
        tally, reason, duration_s, first_body_s = (
            self._metrics.of(lease.service), entry.reason, entry.duration_s, entry.first_body_s,
        )  # fmt: skip
        self._metrics.count(lease.service, str(entry.code), reason)
        tally.duration.observe(duration_s)
        if entry.code == 200 and lease.streams and first_body_s is not None:
            tally.first_token.observe(first_body_s)
            if usage.output_tokens is not None and usage.output_tokens > 1:
                tally.per_token.observe((duration_s - first_body_s) / (usage.output_tokens - 1))
        if usage.prompt_tokens is None and entry.code == 200:
            # The engine told nothing, or the client left before it did: the prompt is estimated, and marked so.
            tally.estimated += 1
            tally.input_tokens += lease.prompt_tokens
        tally.input_tokens += usage.prompt_tokens or 0
        tally.cached_tokens += usage.cached_tokens or 0
        tally.output_tokens += usage.output_tokens or 0
        self._lines.append(
            _Line(
                "request_ended", self._time(), entry.code, duration_s, entry.request_id, entry.traceparent, None,
                lease.service, lease.account or None, entry.host, reason, entry.attempts, round(lease.hold_s, 4),
                first_body_s if lease.streams else None, usage.prompt_tokens, usage.cached_tokens, usage.output_tokens,
            )
        )  # fmt: skip

    def _time(self) -> str:
        # One look at the clock for all lines that are written together.
        if not self._lines:
            self._now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        return self._now

    def flush(self) -> None:
        """Write the lines of requests out: many at once, since each write is a call to the system."""
        if self._lines:
            lines, self._lines = _encode_lines(self._lines), []
            with contextlib.suppress(OSError):
                # On a full disk a line is lost, and requests are still served.
                os.write(2, lines)


class PickerProcess:
    """Wires a picker to the files and sockets of one gateway."""

    def __init__(self, files: GatewayFiles, *, alive_file: Path | None) -> None:
        self._files = files
        self._alive_file = alive_file
        self._clock = SystemClock()
        self._registry = CollectorRegistry()
        self._metrics = GatewayMetrics(self._registry)
        self._recorder = Recorder(self._metrics)
        # Ties between equal replicas need no secrecy.
        self._picker = Picker(
            clock=self._clock,
            random=Random(),  # noqa: S311
            observer=self._recorder,
            ledger=Ledger(files.ledger),
        )
        self._large = LargeBodies()
        self._table_stamp: tuple[int, int] | None = None
        self._reopen = asyncio.Event()
        self._tail = LogTail(files.access_log, largest_bytes=LARGEST_LOG_BYTES, rotate=self._reopen.set)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        self._read_table()
        self._take_up_what_runs()
        # The one before may have ended between moving the log away and telling Envoy.
        self._reopen.set()
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self._files.admin_socket))) as admin:
            await self._read_applied(admin)
            control = await self._serve_control()
            self._files.picker_socket.unlink(missing_ok=True)
            checks = await loop.create_unix_server(
                protocol_factory(self._picker, self._clock, self._large), str(self._files.picker_socket), backlog=4096
            )
            self._files.picker_socket.chmod(0o600)
            await self._large.start()
            log.info("picker_started", generation=self._picker.table.generation)
            async with asyncio.TaskGroup() as tasks:
                running: list[asyncio.Task[object]] = [
                    tasks.create_task(self._follow_log()),
                    tasks.create_task(self._follow_table()),
                    tasks.create_task(self._follow_envoy(admin)),
                    tasks.create_task(self._rotate_log(admin)),
                    tasks.create_task(self._tick()),
                ]
                orphaned: asyncio.Task[object] = tasks.create_task(
                    until_orphaned(self._alive_file, after_s=ORPHAN_AFTER_S)
                )
                stopped: asyncio.Task[object] = tasks.create_task(stop.wait())
                await asyncio.wait({orphaned, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if orphaned.done():
                    await self._end_envoy(admin)
                running += [orphaned, stopped]
                checks.close()
                for task in running:
                    task.cancel()
            await control.cleanup()
        await self._large.stop()
        self._recorder.flush()
        log.info("picker_stopped")

    def _take_up_what_runs(self) -> None:
        """What the access log says since the last picker ended: ends are counted, running leases taken up."""
        newest_s = self._tail.newest_s()
        for entry in self._tail.read():
            self._use_entry(entry)
        if newest_s is not None and newest_s >= self._clock.wall_s() - LEASE_S:
            self._picker.admit_after(self._clock.monotonic_s() + SETTLE_S)

    def _use_entry(self, entry: LogEntry) -> None:
        # The text is read only where its lease is not known any more.
        text = entry.lease or ""
        lease = self._picker.leases.known(text.partition(";")[0]) or lease_from_text(text)
        if lease is None:
            if entry.ended:
                self._recorder.answered_here(entry)
            return
        if not entry.ended:
            self._picker.renewed(lease, entry.host)
            return
        usage = entry.usage
        prompt_tokens = lease.prompt_tokens if usage.prompt_tokens is None else usage.prompt_tokens
        # What failed before an engine worked on it has used nothing; a client that leaves has had its prompt read.
        was_worked_on = entry.code == 200 or (entry.host is not None and entry.reason in ("client_left", "timeout"))
        used_tokens = prompt_tokens + (usage.output_tokens or 0) if was_worked_on else 0
        # By the text, which names where it was sent first: a retry has moved the lease since.
        self._picker.ended(lease, used_tokens=used_tokens, broke_on=entry.broke_on(text.split(";")[2]))
        self._recorder.ended(entry, lease, usage)

    async def _follow_log(self) -> None:
        while True:
            for entry in self._tail.read():
                self._use_entry(entry)
            self._recorder.flush()
            await asyncio.sleep(LOG_POLL_S)

    async def _rotate_log(self, admin: aiohttp.ClientSession) -> None:
        while True:
            await self._reopen.wait()
            self._reopen.clear()
            try:
                async with admin.post("http://envoy/reopen_logs", timeout=aiohttp.ClientTimeout(total=5)) as response:
                    response.raise_for_status()
                    log.info("access_log_rotated")
            except (aiohttp.ClientError, TimeoutError, OSError):
                # An Envoy that is not there opens the new file when it starts; a busy one is told again.
                log.warning("access_log_not_reopened")
                self._reopen.set()
                await asyncio.sleep(REOPEN_RETRY_S)

    async def _end_envoy(self, admin: aiohttp.ClientSession) -> None:
        log.error("daemon_lost", waited_s=ORPHAN_AFTER_S)
        try:
            async with admin.post("http://envoy/quitquitquit", timeout=aiohttp.ClientTimeout(total=5)):
                pass
        except (aiohttp.ClientError, TimeoutError, OSError):
            log.warning("envoy_not_told")

    async def _follow_table(self) -> None:
        while True:
            self._read_table()
            await asyncio.sleep(TABLE_POLL_S)

    def _read_table(self) -> None:
        try:
            stat = self._files.table.stat()
            stamp = (stat.st_ino, stat.st_mtime_ns)
            if stamp == self._table_stamp:
                return
            self._table_stamp = stamp
            table = read_table(self._files.table)
        except FileNotFoundError:
            return
        except ValueError:
            log.exception("table_unreadable")
            return
        before = {service.key for service in self._picker.table.services}
        self._picker.use(table)
        for gone in before - {service.key for service in table.services}:
            self._metrics.forget(gone)
        log.info("table_used", generation=table.generation, services=len(table.services))

    async def _follow_envoy(self, admin: aiohttp.ClientSession) -> None:
        waited_s = 0.0
        while True:
            await asyncio.sleep(APPLIED_POLL_S)
            waited_s += APPLIED_POLL_S
            if self._picker.waits_for_envoy or waited_s >= APPLIED_RECHECK_S:
                waited_s = 0.0
                await self._read_applied(admin)

    async def _read_applied(self, admin: aiohttp.ClientSession) -> None:
        try:
            async with admin.get(
                "http://envoy/clusters?format=json", timeout=aiohttp.ClientTimeout(total=5)
            ) as response:
                said = orjson.loads(await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            # An Envoy that doesn't answer keeps what it had; so does the picker.
            return
        self._picker.envoy_applied(frozenset(_hosts(said)))

    async def _tick(self) -> None:
        while True:
            self._picker.tick()
            await asyncio.sleep(TICK_S)

    async def _serve_control(self) -> web.AppRunner:
        app = web.Application()
        app.add_routes([web.get("/status", self._status), web.get("/metrics", self._metrics_page)])
        return await serve_on_socket(app, self._files.control_socket)

    async def _status(self, _: web.Request) -> web.Response:
        status = {
            "pid": os.getpid(),
            "generation": self._picker.table.generation,
            "usable": self._picker.usable(),
            "waiting": self._picker.waiting(),
            "in_flight": dict(self._picker.leases.in_flight),
        }
        return web.Response(body=orjson.dumps(status), content_type="application/json")

    async def _metrics_page(self, _: web.Request) -> web.Response:
        for service, waiting in self._picker.waiting().items():
            self._metrics.waiting.labels(service).set(waiting)
        for entry in self._picker.table.services:
            self._metrics.running.remove_by_labels({"service": entry.key})
            for replica in entry.replicas:
                running = self._picker.leases.in_flight[replica.endpoint]
                self._metrics.running.labels(entry.key, replica.name).set(running)
        return web.Response(body=generate_latest(self._registry), content_type="text/plain")


def _hosts(said: dict[str, list[dict[str, object]]]) -> list[tuple[str, str]]:
    """Pairs of cluster and address in the answer of Envoy's `/clusters?format=json`."""
    hosts = []
    for cluster in said.get("cluster_statuses", []):
        for host in cluster.get("host_statuses", []):  # type: ignore[attr-defined]
            socket = host.get("address", {}).get("socket_address")
            if socket:
                hosts.append((str(cluster["name"]), f"{socket['address']}:{socket['port_value']}"))
    return hosts


def run(folder: Path, alive_file: Path | None) -> None:
    """Run the picker of the gateway in `folder` until it is told to stop, or nobody looks after it any more."""
    uvloop.run(PickerProcess(GatewayFiles(folder), alive_file=alive_file).run())
