"""A user's machine: a home of its own, ports of its own, and the real commands."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.cluster.build import cache_folder
from tests.with_envoy.harness import free_port

PILOTAGE = [sys.executable, "-c", "from pilotage.cli import main; main()"]

SIMULATED = """
apiVersion: pilotage.io/v1alpha1
kind: LLMService
metadata: {{name: {name}}}
spec:
  model: {{source: "hf://example/simulated"}}
  engine:
    type: Simulated
    args: [{args}]
  replicas: {replicas}
  lifecycle: {{drainSeconds: {drain_s}, maxWaitSeconds: {wait_s}}}
"""


def simulated(name: str = "sim", *args: str, replicas: int = 2, drain_s: int = 60, wait_s: int = 60) -> str:
    """A service without weights."""
    quoted = ", ".join(f'"{arg}"' for arg in args)
    return SIMULATED.format(name=name, args=quoted, replicas=replicas, drain_s=drain_s, wait_s=wait_s)


class Laptop:
    """One user's Pilotage."""

    def __init__(self, home: Path, **environment: str) -> None:
        self.home = home
        self.port, self.metrics_port = free_port(), free_port()
        self.env = {
            **os.environ,
            "PILOTAGE_HOME": str(home),
            "PILOTAGE_CACHE": str(cache_folder()),
            "PILOTAGE_ORPHAN_SECONDS": "8",
            "NO_COLOR": "1",
            **environment,
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def file(self, *documents: str, gateway: str = "") -> Path:
        """A file with these documents and this laptop's gateway."""
        listener = gateway or (
            "apiVersion: pilotage.io/v1alpha1\nkind: LLMGateway\nspec:\n"
            f"  listener: {{port: {self.port}}}\n  metrics: {{port: {self.metrics_port}}}\n"
        )
        path = self.home / "file.yaml"
        path.write_text("\n---\n".join([*documents, listener]))
        return path

    def run(self, *args: str, timeout_s: float = 120, **more: Any) -> subprocess.CompletedProcess[str]:
        """A command to its end."""
        return subprocess.run([*PILOTAGE, *args], env=self.env, capture_output=True, text=True, timeout=timeout_s,
                              check=False, **more)  # fmt: skip

    def begin(self, *args: str) -> subprocess.Popen[str]:
        """A command that goes on."""
        return subprocess.Popen(
            [*PILOTAGE, *args], env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def up(self, *documents: str, detach: bool = True) -> subprocess.CompletedProcess[str]:
        """`up -d` of these documents; must succeed."""
        done = self.run("up", *(["-d"] if detach else []), str(self.file(*documents)))
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{self.logs()}"
        return done

    def services(self) -> list[dict[str, Any]]:
        done = self.run("ps", "--output", "json")
        assert done.returncode == 0, done.stderr
        return list(json.loads(done.stdout))

    def service(self, name: str = "sim") -> dict[str, Any]:
        return next(s for s in self.services() if s["metadata"]["name"] == name)

    def replicas(self, name: str = "sim", phase: str | None = None) -> list[dict[str, Any]]:
        found = self.service(name)["status"]["replicaStatuses"]
        return [r for r in found if phase is None or r["phase"] == phase]

    def condition(self, name: str, of: str = "sim") -> dict[str, Any]:
        return next(c for c in self.service(of)["status"]["conditions"] if c["type"] == name)

    def until(self, holds: Callable[[], bool], *, within_s: float = 60) -> None:
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if holds():
                return
            time.sleep(0.1)
        raise AssertionError(f"not within {within_s} s\n{self.logs()}")

    def processes(self) -> list[psutil.Process]:
        """Everything of this laptop that runs, by its home in the environment or the command line."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid != os.getpid() and process.environ().get("PILOTAGE_HOME") == str(self.home):
                    found.append(process)
        return found

    def named(self, part: str) -> list[psutil.Process]:
        """Processes with `part` in their command line."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if any(part in word for word in process.cmdline()):
                    found.append(process)
        return found

    def daemons(self) -> list[psutil.Process]:
        """The daemon, or nothing while there is none. (The guardian's command line holds the daemon's.)"""
        return [p for p in self.named("daemon_process") if p not in self.named("guardian.py")]

    def kill(self, part: str) -> None:
        for process in self.named(part):
            process.send_signal(signal.SIGKILL)

    def metrics(self) -> str:
        return httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics").text

    def logs(self) -> str:
        folder = self.home / "state" / "logs"
        return "\n".join(f"--- {p.name}\n{p.read_text(errors='replace')[-2500:]}" for p in sorted(folder.glob("*.log")))

    def end(self) -> None:
        self.run("down", "--now", timeout_s=60)
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()


@contextlib.contextmanager
def laptop(**environment: str) -> Iterator[Laptop]:
    """A laptop that is cleared away afterwards."""
    with tempfile.TemporaryDirectory(prefix="plt-") as folder:
        running = Laptop(Path(folder), **environment)
        try:
            yield running
        finally:
            running.end()
