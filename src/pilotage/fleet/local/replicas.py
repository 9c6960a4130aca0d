"""Replicas as processes: an agent each, which is its engine's parent. They outlive the daemon."""

import asyncio
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import aiohttp
import structlog

from pilotage.fleet.contract import AgentConfig, AgentStatus, ReplicaRecord
from pilotage.fleet.local.directories import Directories
from pilotage.fleet.local.processes import saved_process, spawn
from pilotage.rollout import Phase

log = structlog.get_logger()

STATUS_DEADLINE_S = 2.0
# An agent that was told to stop has this long on top of what it was granted.
STOP_GRACE_S = 10.0
# An agent that is silent for less than this is only busy, or still being born.
SILENCE_S = 20.0


class LocalReplicas:
    """All replicas of this user on this machine. The state of the world is the folder of each and its process."""

    def __init__(self, directories: Directories) -> None:
        self._directories = directories
        # The last status of each agent, and when it came (monotonic seconds): a busy machine answers late.
        self._known: dict[str, tuple[AgentStatus, float]] = {}
        self._began_s = time.monotonic()
        # When a replica was told to stop, and by when it has to be gone (monotonic seconds).
        self._stop_by_s: dict[str, float] = {}

    def socket_of(self, replica: str) -> Path:
        """The control socket of a replica's agent."""
        return self._directories.run / f"replica-{replica.rpartition('-')[2]}.sock"

    def log_of(self, replica: str) -> Path:
        """The engine's log."""
        return self._directories.logs / f"{replica}.log"

    async def start(self, config: AgentConfig) -> None:
        """Start the agent of a new replica."""
        folder = self._directories.replicas / config.replica
        folder.mkdir(parents=True, mode=0o700)
        path = folder / "agent.json"
        path.touch(mode=0o600)
        path.write_text(config.model_dump_json())
        process = spawn(
            [sys.executable, "-m", "pilotage.agent", str(path)],
            log=self._directories.logs / f"{config.replica}.agent.log",
        )
        process.save(folder / "process.json")
        log.info("replica_started", service=config.service, replica=config.replica, pid=process.pid)

    async def observe(self) -> list[ReplicaRecord]:
        """Every replica there is, each asked for its status; a dead agent is a failed replica."""
        folders = sorted(p for p in self._directories.replicas.iterdir() if (p / "agent.json").exists())
        found = await asyncio.gather(*(self._observe(folder) for folder in folders))
        return [record for record in found if record]

    async def stop(self, replica: str, *, within_s: float) -> None:
        """Let the replica end: its engine once it is idle, at the latest after `within_s`. Safe to call again."""
        folder = self._directories.replicas / replica
        process = saved_process(folder / "process.json")
        if process is None or not process.is_alive():
            self._clear(replica)
            return
        now_s = time.monotonic()
        deadline_s = self._stop_by_s.get(replica)
        if deadline_s is not None and now_s > deadline_s:
            log.warning("agent_killed", replica=replica)
            process.signal(signal.SIGKILL)
        elif deadline_s is None or now_s + within_s + STOP_GRACE_S < deadline_s:
            self._stop_by_s[replica] = now_s + within_s + STOP_GRACE_S
            try:
                async with self._session(replica) as session:
                    await session.post("http://agent/stop", json={"within_s": within_s})
            except (aiohttp.ClientError, TimeoutError, OSError):
                process.signal(signal.SIGTERM)

    def forget_ended(self, records: Iterable[ReplicaRecord]) -> None:
        """Clear what replicas left that have ended as they were told to."""
        for record in records:
            if record.phase is Phase.GONE:
                self._clear(record.name)

    def mark_draining(self, replica: str) -> None:
        """Remember, over restarts of the daemon, that this replica gets no more requests."""
        marker = self._directories.replicas / replica / "draining"
        if not marker.exists():
            marker.touch()

    async def _observe(self, folder: Path) -> ReplicaRecord | None:
        try:
            config = AgentConfig.model_validate_json((folder / "agent.json").read_bytes())
        except (OSError, ValueError):
            return None
        process = saved_process(folder / "process.json")
        record = ReplicaRecord(
            service=config.service,
            name=config.replica,
            revision=config.revision,
            endpoint=config.endpoint,
            created_s=config.created_s,
            phase=Phase.PLACED,
            since_s=config.created_s,
            phase_s={},
            pid=process.pid if process else None,
        )
        if process is None or not process.is_alive():
            if time.time() - config.created_s < 1 and process is None:
                return record
            if config.replica in self._stop_by_s or (folder / "draining").exists():
                return replace(record, phase=Phase.GONE)
            return replace(record, phase=Phase.FAILED, failure="its agent ended unexpectedly")
        status = await self._status(config.replica)
        now_s = time.monotonic()
        if status is not None:
            self._known[config.replica] = (status, now_s)
            return self._with_status(record, status, folder)
        known, heard_s = self._known.get(config.replica, (None, self._began_s))
        if now_s - heard_s > SILENCE_S and time.time() - config.created_s > SILENCE_S:
            return replace(record, phase=Phase.FAILED, failure=f"its agent has not answered for {SILENCE_S:.0f} s")
        if known:
            return self._with_status(record, known, folder)
        draining = (folder / "draining").exists()
        return replace(record, phase=Phase.DRAINING) if draining else record

    @staticmethod
    def _with_status(record: ReplicaRecord, status: AgentStatus, folder: Path) -> ReplicaRecord:
        draining = folder / "draining"
        phase, since_s = status.phase, status.since_s
        if phase is not Phase.FAILED and draining.exists():
            phase, since_s = Phase.DRAINING, draining.stat().st_mtime
        return replace(
            record,
            phase=phase,
            since_s=since_s,
            phase_s=status.phase_s,
            engine_pid=status.engine_pid,
            engine_memory_bytes=status.engine_memory_bytes,
            running=status.running,
            waiting=status.waiting,
            failure=status.failure,
        )

    async def _status(self, replica: str) -> AgentStatus | None:
        try:
            async with self._session(replica) as session, session.get("http://agent/status") as response:
                return AgentStatus.model_validate_json(await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None

    def _session(self, replica: str) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(self.socket_of(replica))),
            timeout=aiohttp.ClientTimeout(total=STATUS_DEADLINE_S),
        )

    def _clear(self, replica: str) -> None:
        self._stop_by_s.pop(replica, None)
        self._known.pop(replica, None)
        self.socket_of(replica).unlink(missing_ok=True)
        shutil.rmtree(self._directories.replicas / replica, ignore_errors=True)
