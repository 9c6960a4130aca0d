"""Where Pilotage keeps things on one machine."""

import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from pilotage.errors import Invalid

# A Unix socket's path has at most 107 bytes on Linux and 103 on macOS.
LONGEST_SOCKET_PATH = 103
LONGEST_SOCKET_NAME = len("run/replica-0123456789.sock")


@dataclass(frozen=True, slots=True)
class Directories:
    """The folders of one user. PILOTAGE_HOME puts all of them under one folder, PILOTAGE_CACHE moves the weights."""

    state: Path
    cache: Path
    config: Path

    @classmethod
    def of_this_user(cls) -> "Directories":
        """The folders that this system and the environment say. Raises Invalid where sockets can't have a path."""
        for name in ("PILOTAGE_HOME", "PILOTAGE_CACHE"):
            # The daemon runs in another folder; what it inherits must mean the same there.
            if os.environ.get(name):
                os.environ[name] = str(Path(os.environ[name]).expanduser().absolute())
        home, cache = os.environ.get("PILOTAGE_HOME"), os.environ.get("PILOTAGE_CACHE")
        root = Path(home) if home else None
        found = cls(
            state=root / "state" if root else platformdirs.user_state_path("pilotage", appauthor=False),
            cache=Path(cache)
            if cache
            else (root / "cache" if root else platformdirs.user_cache_path("pilotage", appauthor=False)),
            config=root / "config" if root else platformdirs.user_config_path("pilotage", appauthor=False),
        )
        if len(os.fsencode(found.state)) + 1 + LONGEST_SOCKET_NAME > LONGEST_SOCKET_PATH:
            raise Invalid(
                f"{found.state} is too long a path for the Unix sockets in it",
                hint="set PILOTAGE_HOME to a shorter path",
            )
        return found

    def create(self) -> None:
        """Make the folders, readable by their owner only."""
        for folder in (self.state, self.run, self.logs, self.services, self.replicas, self.gateway):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.state.chmod(0o700)

    @property
    def weights(self) -> Path:
        return self.cache / "weights"

    @property
    def secrets(self) -> Path:
        return self.config / "secrets"

    @property
    def run(self) -> Path:
        return self.state / "run"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def services(self) -> Path:
        return self.state / "services"

    @property
    def replicas(self) -> Path:
        return self.state / "replicas"

    @property
    def gateway(self) -> Path:
        # Its sockets lie directly in it, so the name is short.
        return self.state / "run" / "gw"

    @property
    def control_socket(self) -> Path:
        return self.run / "daemon.sock"

    @property
    def daemon_lock(self) -> Path:
        return self.run / "daemon.lock"

    @property
    def guardian_lock(self) -> Path:
        return self.run / "guardian.lock"

    @property
    def wanted_file(self) -> Path:
        """Exists while a daemon should run; its guardian restarts one that is gone."""
        return self.run / "wanted"

    @property
    def alive_file(self) -> Path:
        """Touched by the daemon every second or two; what it started ends when that stops for long."""
        return self.run / "alive"
