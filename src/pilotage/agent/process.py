"""The agent's process: it starts the engine, says when it is ready, and ends it when it hangs or isn't wanted."""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from typing import IO

import aiohttp
import orjson
import psutil
import structlog
from aiohttp import web

from pilotage.agent.progress import ProgressWatch
from pilotage.engines import KEY_VARIABLE
from pilotage.errors import PilotageError
from pilotage.fleet import AgentConfig, AgentStatus, serve_on_socket, until_orphaned
from pilotage.rollout import Phase
from pilotage.signals import EngineSample, parse_samples
from pilotage.weights import WeightsStore

log = structlog.get_logger()

POLL_S = 0.1
SAMPLE_S = 1.0
SAMPLE_DEADLINE_S = 3.0
# A first answer may compile kernels or page in weights; only a dead engine ends the wait.
WARM_UP_DEADLINE_S = 600.0
WARM_UP_TRIES = 3
TERM_GRACE_S = 5.0
PR_SET_PDEATHSIG = 1
LAST_WORDS_BYTES = 4_000


class EngineFailed(PilotageError):
    """The engine is of no use any more; the sentence says why."""

    condition_reason = "EngineFailed"


class Agent:
    """One replica's agent."""

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._phase = Phase.LOADING
        self._since_s = time.time()
        self._phase_s: dict[str, float] = {}
        self._sample: EngineSample | None = None
        self._failure = ""
        self._engine: asyncio.subprocess.Process | None = None
        self._stop_within_s: float | None = None
        self._stopping = asyncio.Event()

    async def run(self) -> int:
        """Run the replica to its end. Returns the exit code: 0 when it was told to stop, 1 when it failed."""
        structlog.contextvars.bind_contextvars(service=self._config.service, replica=self._config.replica)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_stop, 0.0)
        held = self._hold_weights()
        control = await self._serve_control()
        self._enter(Phase.LOADING)
        try:
            self._engine = await self._start_engine()
            await self._live(self._engine)
        except EngineFailed as error:
            self._failure = str(error)
            self._enter(Phase.FAILED)
            log.error("replica_failed", reason=self._failure)
        finally:
            await self._end_engine()
        if self._failure:
            # The control loop reads the reason, then stops this process; a reason that nobody reads must not stay.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), timeout=self._config.orphan_after_s)
        await control.cleanup()
        self._config.control_socket.unlink(missing_ok=True)
        if held:
            held.close()
        log.info("agent_ended", failed=bool(self._failure))
        return 1 if self._failure else 0

    async def _live(self, engine: asyncio.subprocess.Process) -> None:
        """Until the engine fails (raises EngineFailed) or the replica is told to stop."""
        life = asyncio.create_task(self._become_ready_and_watch())
        exit_ = asyncio.create_task(engine.wait())
        stop = asyncio.create_task(self._stopping.wait())
        orphan = asyncio.create_task(until_orphaned(self._config.alive_file, after_s=self._config.orphan_after_s))
        tasks = {life, exit_, stop, orphan}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if orphan.done():
                log.error("daemon_lost", waited_s=self._config.orphan_after_s)
            if stop.done() or orphan.done():
                await self._drain()
                return
            if exit_.done():
                raise EngineFailed(f"the engine ended with {_ended_with(exit_.result())}{self._last_words()}")
            life.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _become_ready_and_watch(self) -> None:
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        headers = {"authorization": f"Bearer {self._config.engine_key}"}
        async with aiohttp.ClientSession(
            f"http://{self._config.endpoint}", connector=connector, headers=headers
        ) as session:
            while not await self._is_healthy(session):
                await asyncio.sleep(POLL_S)
            self._enter(Phase.WARMING)
            await self._warm_up(session)
            self._enter(Phase.READY)
            watch = ProgressWatch(deadline_s=self._config.progress_deadline_s, now_s=time.monotonic())
            while True:
                self._sample = await self._measure(session)
                verdict = watch.see(self._sample, cpu_s=_cpu_s(self._engine), now_s=time.monotonic())
                if verdict.hung:
                    raise EngineFailed(f"the engine hangs: {verdict.reason}")
                await asyncio.sleep(SAMPLE_S)

    async def _is_healthy(self, session: aiohttp.ClientSession) -> bool:
        # However long a model loads, it is never killed for that: an engine that is stuck here shows in the status.
        try:
            timeout = aiohttp.ClientTimeout(total=SAMPLE_DEADLINE_S)
            async with session.get(self._config.health_path, timeout=timeout) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def _warm_up(self, session: aiohttp.ClientSession) -> None:
        """One whole generation: an open port says nothing of a model that can answer."""
        said = ""
        for _ in range(WARM_UP_TRIES):
            timeout = aiohttp.ClientTimeout(total=WARM_UP_DEADLINE_S)
            try:
                async with session.post(
                    self._config.warm_up_path, json=self._config.warm_up_body, timeout=timeout
                ) as response:
                    text = await response.text()
                    if response.status == 200 and orjson.loads(text).get("choices"):
                        return
                    said = f"{response.status}: {text[:200]}"
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                said = f"{type(error).__name__}: {error}"
            await asyncio.sleep(1)
        raise EngineFailed(f"the warm-up request failed {WARM_UP_TRIES} times: {said}")

    async def _measure(self, session: aiohttp.ClientSession) -> EngineSample | None:
        try:
            timeout = aiohttp.ClientTimeout(total=SAMPLE_DEADLINE_S)
            async with session.get("/metrics", timeout=timeout) as response:
                response.raise_for_status()
                return parse_samples(
                    await response.text(),
                    running=self._config.metric_running,
                    waiting=self._config.metric_waiting,
                    progress=self._config.metric_progress,
                )
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            # A page that can't be read says as little as none.
            return None

    async def _drain(self) -> None:
        """Wait until the engine is idle, for as long as was granted."""
        was_ready = self._phase is Phase.READY
        self._enter(Phase.DRAINING)
        if not was_ready:
            # It was never sent a request.
            return
        deadline_s = time.monotonic() + (self._stop_within_s or 0.0)
        headers = {"authorization": f"Bearer {self._config.engine_key}"}
        async with aiohttp.ClientSession(f"http://{self._config.endpoint}", headers=headers) as session:
            while time.monotonic() < deadline_s and self._engine and self._engine.returncode is None:
                self._sample = await self._measure(session)
                # No answer is not idleness: it may be busy with a long batch.
                if self._sample is not None and not self._sample.running:
                    return
                await asyncio.sleep(POLL_S)

    def _told_to_stop(self, within_s: float) -> None:
        self._stop_within_s = within_s
        self._stopping.set()

    async def _start_engine(self) -> asyncio.subprocess.Process:
        key = self._config.engine_key
        env = {**os.environ, **self._config.env, self._config.key_variable: key, "HF_HUB_OFFLINE": "1"}
        argv = [word.replace(f"$({KEY_VARIABLE})", key) for word in self._config.argv]
        with self._config.engine_log.open("ab") as out:
            try:
                return await asyncio.create_subprocess_exec(
                    *argv, stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=out, env=env,
                    preexec_fn=_die_with_parent,
                )  # fmt: skip
            except OSError as error:
                raise EngineFailed(f"{self._config.argv[0]} can't be started: {error.strerror}") from error

    async def _end_engine(self) -> None:
        engine = self._engine
        if engine is None or engine.returncode is not None:
            return
        # A stopped process can't act on SIGTERM; a hung one won't.
        with contextlib.suppress(ProcessLookupError):
            engine.kill() if self._failure else engine.terminate()
        try:
            await asyncio.wait_for(engine.wait(), timeout=TERM_GRACE_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                engine.kill()
            await engine.wait()

    def _hold_weights(self) -> IO[bytes] | None:
        if self._config.store_root is None or self._config.store_entry is None:
            return None
        return WeightsStore(self._config.store_root).hold(self._config.store_entry)

    def _enter(self, phase: Phase) -> None:
        if phase is self._phase and phase is not Phase.LOADING:
            return
        now_s = time.time()
        if phase is not self._phase:
            self._phase_s[self._phase.value] = round(now_s - self._since_s, 3)
            log.info(
                "phase_entered", phase=phase.value, before=self._phase.value, took_s=self._phase_s[self._phase.value]
            )
        self._phase, self._since_s = phase, now_s

    def _last_words(self) -> str:
        try:
            lines = self._config.engine_log.read_bytes()[-LAST_WORDS_BYTES:].decode("utf-8", "replace").splitlines()
        except OSError:
            return ""
        words = [line for line in lines if "error" in line.lower() or "failed" in line.lower()] or lines
        return f"; its log ends: {words[-1].strip()[:300]}" if words else ""

    async def _serve_control(self) -> web.AppRunner:
        app = web.Application()
        app.add_routes([web.get("/status", self._status), web.post("/stop", self._stop)])
        return await serve_on_socket(app, self._config.control_socket)

    async def _status(self, _: web.Request) -> web.Response:
        status = AgentStatus(
            replica=self._config.replica,
            phase=self._phase,
            since_s=self._since_s,
            phase_s=self._phase_s,
            engine_pid=self._engine.pid if self._engine else None,
            engine_memory_bytes=_memory_bytes(self._engine),
            running=self._sample.running if self._sample else None,
            waiting=self._sample.waiting if self._sample else None,
            failure=self._failure,
        )
        return web.Response(body=status.model_dump_json().encode(), content_type="application/json")

    async def _stop(self, request: web.Request) -> web.Response:
        self._told_to_stop(float((await request.json()).get("within_s", 0.0)))
        return web.json_response({})


def _memory_bytes(engine: asyncio.subprocess.Process | None) -> int | None:
    if engine is None or engine.returncode is not None:
        return None
    try:
        return int(psutil.Process(engine.pid).memory_info().rss)
    except psutil.Error:
        return None


def _cpu_s(engine: asyncio.subprocess.Process | None) -> float | None:
    if engine is None or engine.returncode is not None:
        return None
    try:
        times = psutil.Process(engine.pid).cpu_times()
    except psutil.Error:
        return None
    return float(times.user + times.system)


def _ended_with(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _die_with_parent() -> None:
    """Make the kernel end this process when its parent does. Linux only: on macOS a killed agent leaves its engine."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
