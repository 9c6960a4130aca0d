"""The gateway's two processes on this machine: Envoy and the picker, adopted when they run and restarted when not."""

import signal
import sys
import time
from collections import Counter
from pathlib import Path

import aiohttp
import orjson
import structlog

from pilotage.fleet.local.binaries import envoy_binary
from pilotage.fleet.local.logs import last_line
from pilotage.fleet.local.processes import saved_process, spawn, until_one_ended

log = structlog.get_logger()

DEADLINE_S = 2.0
ENVOY_FLAGS = (
    "--disable-hot-restart",
    # The end of a request frees its place, so the log is written out soon.
    "--file-flush-interval-msec",
    "20",
    "--log-level",
    "warning",
)
MOST_VAIN_STARTS = 3
# A gateway process that keeps ending is not restarted faster than this.
RESTART_EVERY_S = 1.0


class GatewayHost:
    """Keeps Envoy and the picker running in one folder."""

    def __init__(
        self, folder: Path, *, logs: Path, bootstrap: Path, control_socket: Path, admin_socket: Path, alive_file: Path
    ) -> None:
        self._folder = folder
        self._alive_file = alive_file
        self._logs = logs
        self._bootstrap = bootstrap
        self._control_socket = control_socket
        self._admin_socket = admin_socket
        self._started_s: dict[str, float] = {}
        # How often each was started in a row without ever answering.
        self._vain_starts: Counter[str] = Counter()

    def ensure_running(self, *, concurrency: int) -> list[str]:
        """Start what does not run. Returns the names of what was started."""
        commands = {
            "envoy": [
                str(envoy_binary()),
                "-c",
                str(self._bootstrap),
                "--concurrency",
                str(concurrency),
                *ENVOY_FLAGS,
            ],
            "picker": [sys.executable, "-m", "pilotage.gateway", str(self._folder), str(self._alive_file)],
        }
        started = []
        for name, argv in commands.items():
            process = saved_process(self._identity(name))
            if process and process.is_alive():
                continue
            if time.monotonic() - self._started_s.get(name, -RESTART_EVERY_S) < RESTART_EVERY_S:
                continue
            self._started_s[name] = time.monotonic()
            spawn(argv, log=self._logs / f"{name}.log").save(self._identity(name))
            self._vain_starts[name] += 1
            log.info("gateway_process_started", process=name)
            started.append(name)
        return started

    async def until_one_ended(self, *, at_most_s: float) -> bool:
        """Wait until Envoy or the picker has ended; false when neither did in time."""
        saved = [saved_process(self._identity(name)) for name in ("envoy", "picker")]
        return await until_one_ended([one for one in saved if one and one.is_alive()], at_most_s=at_most_s)

    @property
    def failure(self) -> str:
        """Why it does not come up, as a sentence with its remedy; empty while it may."""
        failing = [name for name, count in self._vain_starts.items() if count > MOST_VAIN_STARTS]
        if not failing:
            return ""
        words = last_line(self._logs / f"{failing[0]}.log")
        return f"{failing[0]} keeps ending: {words} (`pilotage logs --part gateway` has more)"

    def stop(self) -> None:
        """End both processes; streams that still run are cut."""
        for name in ("envoy", "picker"):
            process = saved_process(self._identity(name))
            if process is None:
                continue
            process.signal(signal.SIGTERM)
            deadline_s = time.monotonic() + 5
            while process.is_alive() and time.monotonic() < deadline_s:
                time.sleep(0.02)
            process.signal(signal.SIGKILL)
            self._identity(name).unlink(missing_ok=True)

    async def picker_status(self) -> dict[str, object] | None:
        """What the picker says of itself, or None when it does not answer."""
        body = await self._get(self._control_socket, "/status")
        try:
            said = dict(orjson.loads(body)) if body else None
        except ValueError:
            return None
        if said:
            del self._vain_starts["picker"]
        return said

    async def picker_metrics(self) -> bytes:
        """The picker's metrics page, empty when it does not answer."""
        return await self._get(self._control_socket, "/metrics") or b""

    async def listens(self) -> bool:
        """Envoy has opened its listener."""
        body = await self._get(self._admin_socket, "/ready")
        live = body is not None and body.strip() == b"LIVE"
        if live:
            del self._vain_starts["envoy"]
        return live

    def _identity(self, name: str) -> Path:
        return self._folder / f"{name}.process.json"

    @staticmethod
    async def _get(socket: Path, path: str) -> bytes | None:
        try:
            async with (
                aiohttp.ClientSession(
                    connector=aiohttp.UnixConnector(str(socket)), timeout=aiohttp.ClientTimeout(total=DEADLINE_S)
                ) as session,
                session.get(f"http://gateway{path}") as response,
            ):
                return await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None
