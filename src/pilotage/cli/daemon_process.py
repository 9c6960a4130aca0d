"""`python -m pilotage.cli.daemon_process`: one user's control loop on one machine, behind a control socket.

It owns nothing that runs: engines, agents, Envoy and the picker go on when it dies, and its successor finds them.
"""

import asyncio
import contextlib
import fcntl
import os
import signal
import sys
import time
from typing import IO, Any

import orjson
import structlog
import uvloop
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from pydantic import ValidationError

from pilotage.api import LLMGateway, LLMService
from pilotage.cli.client import daemon_command
from pilotage.cli.version import installed_version
from pilotage.cli.wiring import LocalGateway, LocalMachine, build_operator
from pilotage.errors import Invalid, PilotageError, Unavailable
from pilotage.fleet import serve_on_socket
from pilotage.fleet.local import guardian
from pilotage.fleet.local.directories import Directories
from pilotage.fleet.local.logs import trim_logs
from pilotage.fleet.local.machine import require_free_port
from pilotage.fleet.local.processes import reap, spawn
from pilotage.logs import log_as_json
from pilotage.operator import EventLog, ServiceRecords
from pilotage.signals import PlatformMetrics

log = structlog.get_logger()

ALIVE_EVERY_S = 1.0
WATCH_PAUSE_S = 0.1
# A guardian that looks at the lock holds it for a moment.
LOCK_TRIES = 60
LOCK_RETRY_S = 0.05
# The last service is gone: commands that watch it get this long to see it.
LINGER_S = 0.2
# A daemon that was started and never used ends after this long.
UNUSED_S = 10.0


class Ending(Unavailable):
    """The last service went down; the next daemon takes what comes now."""

    condition_reason = "Ending"


class DaemonProcess:
    """The loop, its control socket and its metrics page."""

    def __init__(self, directories: Directories) -> None:
        self._directories = directories
        self._registry = CollectorRegistry()
        self._events = EventLog(directories.state / "ledger.jsonl")
        self._gateway = LocalGateway(directories)
        self._machine = LocalMachine(directories)
        metrics = PlatformMetrics(self._registry)
        self._operator = build_operator(directories, self._machine, self._gateway, self._events, metrics)
        self._had_services = bool(self._operator.keys)
        self._metrics_runner: web.AppRunner | None = None
        self._ending = False

    async def run(self) -> None:
        """Serve until nothing is wanted any more, or SIGTERM (which leaves running what runs)."""
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        self._directories.wanted_file.touch()
        control = await self._serve_control()
        if self._had_services:
            await self._serve_metrics(self._operator.gateway_resource)
        log.info("daemon_started", version=installed_version(), services=self._operator.keys)
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(self._operator.run()),
            asyncio.create_task(self._keep_alive()),
            asyncio.create_task(self._until_done()),
            asyncio.create_task(self._watch_gateway()),
            asyncio.create_task(stop.wait()),
        ]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if error := task.exception():
                log.error("daemon_failed", exc_info=error)
        over = tasks[2] in done and tasks[2].exception() is None
        if over:
            self._ending = True
            # From here on a command that finds nobody at the socket knows that nobody will come.
            self._directories.wanted_file.unlink(missing_ok=True)
            await asyncio.sleep(LINGER_S)
            await control.cleanup()
            self._clear_away()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if stop.is_set():
            # Told to stop by a person or the system: its guardian must not bring it back.
            self._directories.wanted_file.unlink(missing_ok=True)
        await control.cleanup()
        if self._metrics_runner:
            await self._metrics_runner.cleanup()
        self._directories.control_socket.unlink(missing_ok=True)
        log.info("daemon_stopped", everything_down=over)
        # A download that nobody wants any more sits in a thread that can't be cancelled; its part is kept on disk, and
        # waiting for it would keep the lock from the next daemon.
        os._exit(0)

    async def _watch_gateway(self) -> None:
        """Nobody is served while Envoy or the picker is gone, so the next round does not wait for its time."""
        while True:
            if await self._gateway.until_one_ended(at_most_s=ALIVE_EVERY_S):
                self._operator.look()
                await asyncio.sleep(WATCH_PAUSE_S)

    async def _until_done(self) -> None:
        # Also when nothing came of the first request: a refused `up` leaves no daemon behind.
        began_s = time.monotonic()
        while not self._operator.is_empty or not (self._had_services or time.monotonic() - began_s > UNUSED_S):
            await asyncio.sleep(0.1)

    def _clear_away(self) -> None:
        self._gateway.stop()
        ServiceRecords(self._directories.services).delete_gateway()
        for name in ("engine-key", "alive"):
            (self._directories.run / name).unlink(missing_ok=True)

    async def _keep_alive(self) -> None:
        while True:
            self._directories.alive_file.touch()
            self._ensure_guardian()
            reap()
            with contextlib.suppress(OSError):
                # A full disk must not end the daemon.
                trim_logs(self._directories.logs, in_use=self._operator.replica_names)
            await asyncio.sleep(ALIVE_EVERY_S)

    def _ensure_guardian(self) -> None:
        with self._directories.guardian_lock.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
        # By its path: its package would bring in what it does without.
        argv = [sys.executable, guardian.__file__, str(self._directories.run), *daemon_command()]
        spawn(argv, log=self._directories.logs / "guardian.log")

    # The control socket --------------------------------------------------------------------------------------------

    async def _serve_control(self) -> web.AppRunner:
        app = web.Application(middlewares=[_with_errors], client_max_size=16 * 1024 * 1024)
        app.add_routes(
            [
                web.get("/v1/version", self._version),
                web.post("/v1/apply", self._apply),
                web.post("/v1/down", self._down),
                web.get("/v1/services", self._services),
                web.get("/v1/services/{namespace}/{name}/events", self._service_events),
                web.get("/v1/events", self._follow),
            ]
        )
        return await serve_on_socket(app, self._directories.control_socket)

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": installed_version()})

    async def _apply(self, request: web.Request) -> web.Response:
        said = await request.json()
        if self._ending:
            raise Ending("the daemon is ending", hint="try again")
        try:
            services = [LLMService.model_validate_json(orjson.dumps(entry)) for entry in said["services"]]
            gateway = LLMGateway.model_validate_json(orjson.dumps(said["gateway"])) if said["gateway"] else None
        except ValidationError as error:
            raise Invalid(
                f"this daemon does not know a field: {error.errors()[0]['loc']}",
                hint="`pilotage version` shows whether command and daemon differ; `pilotage down` ends the old one",
            ) from error
        self._machine.tell(said.get("secrets", {}))
        wanted = gateway or self._operator.gateway_resource
        self._require_keys(services, wanted)
        if self._gateway.is_configured:
            self._require_same(wanted)
        else:
            self._require_ports(wanted)
        outcomes = self._operator.apply(services)
        after = self._events.last_number
        if not self._gateway.is_configured and services:
            self._gateway.configure(wanted)
            await self._serve_metrics(wanted)
        self._operator.use_gateway(wanted)
        self._had_services = self._had_services or bool(services)
        return web.json_response({"outcomes": [{"service": k, "outcome": o} for k, o in outcomes], "after": after})

    def _require_keys(self, services: list[LLMService], gateway: LLMGateway) -> None:
        if gateway.spec.listener.is_loopback:
            return
        for service in services:
            if service.spec.access is None:
                raise Invalid(
                    f"the gateway listens on {gateway.spec.listener.address}, beyond this machine, and {service.key} "
                    "asks for no key",
                    hint="add spec.access.keysFrom, or listen on 127.0.0.1",
                )

    def _require_same(self, wanted: LLMGateway) -> None:
        running = self._operator.gateway_resource.spec
        spec = wanted.spec
        if (spec.listener, spec.metrics, spec.limits.max_body_bytes) != (
            running.listener,
            running.metrics,
            running.limits.max_body_bytes,
        ):
            raise Invalid(
                f"the gateway runs on {running.listener.address}:{running.listener.port}; its listeners and body limit "
                "can't change while it does, since that would cut running streams",
                hint="`pilotage down`, then `pilotage up` with the new gateway",
            )

    def _require_ports(self, gateway: LLMGateway) -> None:
        listener, metrics = gateway.spec.listener, gateway.spec.metrics
        require_free_port(listener.address, listener.port, field="spec.listener.port")
        require_free_port(metrics.address, metrics.port, field="spec.metrics.port")

    async def _down(self, request: web.Request) -> web.Response:
        said = await request.json()
        known = self._operator.keys
        keys = known if said["services"] is None else said["services"]
        unknown = [key for key in keys if key not in known]
        if unknown:
            raise Invalid(f"no service is called {unknown[0]}", hint=f"there are: {', '.join(known) or 'none'}")
        self._operator.delete(keys, now=bool(said["now"]))
        # Started for nothing, or everything was down already.
        self._had_services = self._had_services or not known
        return web.json_response({"services": keys})

    async def _services(self, _: web.Request) -> web.Response:
        return web.json_response({"items": [self._operator.view(key) for key in self._operator.keys]})

    async def _service_events(self, request: web.Request) -> web.Response:
        key = f"{request.match_info['namespace']}/{request.match_info['name']}"
        last = int(request.query.get("last", "50"))
        return web.json_response({"items": self._events.decisions(key, last=last)})

    async def _follow(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "application/x-ndjson"})
        await response.prepare(request)
        async for event in self._events.follow(int(request.query.get("after", "0"))):
            await response.write(orjson.dumps(event.to_dict()) + b"\n")
        return response

    # Metrics ---------------------------------------------------------------------------------------------------------

    async def _serve_metrics(self, gateway: LLMGateway) -> None:
        app = web.Application()
        app.add_routes([web.get("/metrics", self._metrics_page)])
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        listener = gateway.spec.metrics
        try:
            await web.TCPSite(runner, listener.address, listener.port, reuse_address=True).start()
        except OSError as error:
            # Requests are worth more than their metrics.
            log.error("metrics_not_served", address=listener.address, port=listener.port, error=error.strerror)
            await runner.cleanup()
            return
        self._metrics_runner = runner

    async def _metrics_page(self, _: web.Request) -> web.Response:
        page = generate_latest(self._registry) + await self._gateway.metrics()
        return web.Response(body=page, headers={"content-type": "text/plain; version=0.0.4; charset=utf-8"})


@web.middleware
async def _with_errors(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        answer: web.StreamResponse = await handler(request)
    except PilotageError as error:
        status = 400 if isinstance(error, Invalid) else 503
        said = {"message": str(error), "hint": error.hint, "reason": error.condition_reason}
        return web.json_response({"error": said}, status=status)
    except (OSError, ValueError) as error:
        # A full disk, say.
        log.exception("request_failed")
        said = {"message": f"{type(error).__name__}: {error}", "hint": "check the disk", "reason": "InternalError"}
        return web.json_response({"error": said}, status=503)
    return answer


def _locked(directories: Directories) -> IO[str] | None:
    """The daemon's lock, held until the process ends; None when another daemon has it."""
    lock = directories.daemon_lock.open("w")
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOCK_RETRY_S)
        else:
            return lock
    lock.close()
    return None


def main() -> int:
    """Run this user's daemon, unless it runs already."""
    log_as_json("daemon")
    directories = Directories.of_this_user()
    directories.create()
    lock = _locked(directories)
    if lock is None:
        log.info("daemon_runs_already")
        return 0
    uvloop.run(DaemonProcess(directories).run())
    lock.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
