"""What happens, as it happens, for a person who watches."""

import threading
import time
from collections.abc import Sequence
from typing import Any

import httpx
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from pilotage.cli.client import Daemon, key_of
from pilotage.cli.output import stderr
from pilotage.units import in_gb, in_seconds

RECONNECT_S = 0.5
# Follow only what is still to come.
FROM_NOW = -1

PHASES = {
    "Loading": "loading the model",
    "Warming": "warming up",
    "Ready": "ready",
    "Draining": "draining",
    "Failed": "failed",
}


class Narrator:
    """Prints the events of some services to stderr: a line each, and a bar while weights come."""

    def __init__(self, daemon: Daemon, services: Sequence[str]) -> None:
        self._daemon = daemon
        self._services = set(services)
        self._bars: dict[str, TaskID] = {}
        self._told_fraction: dict[str, int] = {}
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
            TimeRemainingColumn(), console=stderr, transient=True,
        )  # fmt: skip

    def __enter__(self) -> "Narrator":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def pause(self) -> None:
        """Leave the terminal to others; events go on as plain lines."""
        self._progress.stop()

    def follow(self, after: int) -> None:
        """Tell events from number `after` on, in a thread of its own that ends with the process."""
        threading.Thread(target=self._run, args=(after,), daemon=True).start()

    def _run(self, after: int) -> None:
        while True:
            try:
                for event in self._daemon.events(after):
                    after = event["number"]
                    if event["service"] in self._services:
                        self.tell(event)
                return
            except httpx.HTTPError:
                # A daemon that was restarted counts anew.
                if not self._daemon.is_running():
                    return
                time.sleep(RECONNECT_S)
                after = 0

    def tell(self, event: dict[str, Any]) -> None:
        """Print one event."""
        kind, reason, message = event["kind"], event.get("reason", ""), event.get("message", "")
        name = event["service"].partition("/")[2]
        facts = event.get("facts", {})
        if kind == "progress":
            self._bar(name, facts)
        elif reason == "Fetched":
            self._end_bar(name)
            self._line(name, "weights", message)
        elif kind == "phase" and reason in PHASES:
            self._line(event.get("replica") or name, reason.lower(), _phase(reason, message, facts))
        elif kind == "decision" and reason == "Planned":
            self._line(name, "planned", message)
        elif kind == "decision" and facts.get("final") is not None:
            self._end_bar(name)
            self._line(name, "trouble", f"{reason}: {message}")
        elif kind == "decision" and reason in ("Start", "Drain", "Stop"):
            self._line(event.get("replica") or name, reason.lower(), message)
        elif kind == "condition" and reason in ("Serving", "Degraded", "Gone"):
            self._line(name, reason.lower(), message)

    def _bar(self, name: str, facts: dict[str, Any]) -> None:
        done, size = facts["done_bytes"], facts.get("size_bytes")
        if not stderr.is_terminal:
            # Without a terminal, a line for each tenth.
            tenth = int(done * 10 / size) if size else 0
            if tenth > self._told_fraction.get(name, -1):
                self._told_fraction[name] = tenth
                self._line(name, "fetching", f"{in_gb(done)}" + (f" of {in_gb(size)}" if size else ""))
            return
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(f"{name:<28} fetching", total=size)
        self._progress.update(self._bars[name], completed=done, total=size)

    def _end_bar(self, name: str) -> None:
        bar = self._bars.pop(name, None)
        if bar is not None:
            self._progress.remove_task(bar)

    def _line(self, name: str, what: str, message: str) -> None:
        color = {"ready": "green", "serving": "green", "failed": "red", "trouble": "red"}.get(what, "")
        # One piece: a live bar redraws between prints.
        line = Text.assemble(f"{name:<28} ", (f"{what:<9}", color), f" {message}")
        self._progress.console.print(line, soft_wrap=True)


def _phase(reason: str, message: str, facts: dict[str, Any]) -> str:
    if reason == "Ready":
        took = facts.get("phase_s", {})
        parts = [f"{name.lower()} took {in_seconds(took[name])}" for name in ("Loading", "Warming") if name in took]
        return ", ".join(parts)
    return message or PHASES[reason]


def is_settled(service: dict[str, Any], *, generation: int | None = None) -> bool:
    """All its replicas are of the file's revision and answer; or none is wanted."""
    status = service["status"]
    if generation is not None and status["observedGeneration"] < generation:
        return False
    ready = next(c for c in status["conditions"] if c["type"] == "Ready")
    return ready["reason"] in ("Serving", "ScaledToZero")


def trouble_of(service: dict[str, Any]) -> str | None:
    """What keeps the service from ever being ready as things stand, as a sentence."""
    for condition in service["status"]["conditions"]:
        if condition["status"] == "False" and condition["reason"] not in WAITING:
            return f"{key_of(service)}: {condition['reason']}: {condition['message']}"
    return None


WAITING = {"Fetching", "Starting", "GatewayStarting", "NoEndpoints", "ScaledToZero", "Stopping", "NotLookedFor"}
WAITING |= {"WaitingForWeights", "RateLimited", "SourceUnreachable"}
