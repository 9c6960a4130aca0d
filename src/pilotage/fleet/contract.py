"""What a fleet tells a replica's agent, and what the agent tells back. The same on one machine and in a pod."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from pilotage.engines import KEY_VARIABLE
from pilotage.rollout import Phase


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AgentConfig(_Message):
    """All that an agent needs to run one replica; written before it starts."""

    service: str
    replica: str
    revision: str
    created_s: float
    argv: tuple[str, ...]
    env: dict[str, str]
    engine_key: str
    key_variable: str = KEY_VARIABLE
    port: int
    health_path: str
    warm_up_path: str
    warm_up_body: dict[str, object]
    metric_running: str
    metric_waiting: str
    metric_progress: tuple[str, ...]
    control_socket: Path
    engine_log: Path
    store_root: Path | None = None
    store_entry: str | None = None
    alive_file: Path | None = None
    progress_deadline_s: float = 60.0
    orphan_after_s: float = 60.0

    @property
    def endpoint(self) -> str:
        """Where the engine listens."""
        return f"127.0.0.1:{self.port}"


class AgentStatus(_Message):
    """What an agent says of its replica. `phase_s` holds the duration of each phase that is over, in seconds."""

    replica: str
    phase: Phase
    since_s: float
    phase_s: dict[str, float] = {}
    engine_pid: int | None = None
    engine_memory_bytes: int | None = None
    running: int | None = None
    waiting: int | None = None
    failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaRecord:
    """A replica as a fleet sees it."""

    service: str
    name: str
    revision: str
    endpoint: str
    created_s: float
    phase: Phase
    since_s: float
    phase_s: Mapping[str, float]
    pid: int | None = None
    engine_pid: int | None = None
    engine_memory_bytes: int | None = None
    running: int | None = None
    waiting: int | None = None
    failure: str = ""
