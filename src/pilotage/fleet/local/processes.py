"""Processes that outlive whoever started them, and are known again by pid and start time."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
import psutil

from pilotage.api import SECRET_PREFIX

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process that can't be mistaken for a later one with the same pid; `started` is `start_mark` of it."""

    pid: int
    started: str

    def is_alive(self) -> bool:
        """It runs, and is no zombie."""
        try:
            alive = psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False
        return alive and start_mark(self.pid) == self.started

    def signal(self, number: signal.Signals) -> None:
        """Send `number`, if it is still that process."""
        if self.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def save(self, path: Path) -> None:
        """Remember the process in `path`."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_bytes(orjson.dumps({"pid": self.pid, "started": self.started}))
        temporary.replace(path)


def start_mark(pid: int) -> str | None:
    """When the process started, as text that is the same whenever it is asked; None when there is no such process.

    On Linux the boot and the kernel's ticks since then: the wall clock may step under a process's feet.
    """
    try:
        if BOOT_ID.exists():
            # The name in parentheses may hold anything; the 20th field after it is the start (proc(5)).
            after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return f"{BOOT_ID.read_text().strip()}:{after_name[19]}"
        return f"{psutil.Process(pid).create_time():.0f}"
    except (OSError, IndexError, psutil.Error):
        return None


def saved_process(path: Path) -> ProcessIdentity | None:
    """The process that `path` remembers."""
    try:
        said = orjson.loads(path.read_bytes())
        return ProcessIdentity(int(said["pid"]), str(said["started"]))
    except (OSError, ValueError, KeyError):
        return None


async def until_one_ended(processes: Iterable[ProcessIdentity], *, at_most_s: float) -> bool:
    """Wait until one of these has ended; false when none did in time.

    Linux only: elsewhere the time passes, and whoever looks then sees.
    """
    ended, loop, watched = asyncio.Event(), asyncio.get_running_loop(), []
    if sys.platform == "linux":
        for process in processes:
            try:
                handle = os.pidfd_open(process.pid)
            except OSError:
                continue
            watched.append(handle)
            loop.add_reader(handle, ended.set)
    try:
        await asyncio.wait_for(ended.wait(), timeout=at_most_s)
    except TimeoutError:
        return False
    finally:
        for handle in watched:
            loop.remove_reader(handle)
            os.close(handle)
    return True


def spawn(argv: Sequence[str], *, log: Path) -> ProcessIdentity:
    """A process in a session of its own, which no Ctrl-C of a terminal and no end of its parent reaches."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, close_fds=True,
            env=_without_secrets(), cwd="/",
        )  # fmt: skip
    CHILDREN.append(child)
    return ProcessIdentity(child.pid, start_mark(child.pid) or "")


def _without_secrets() -> dict[str, str]:
    """The environment for what is started: secrets are for the control loop alone."""
    return {name: value for name, value in os.environ.items() if not name.startswith(SECRET_PREFIX)}


CHILDREN: list[subprocess.Popen[bytes]] = []


def reap() -> None:
    """Take leave of children that ended, so that none stays as a zombie."""
    CHILDREN[:] = [child for child in CHILDREN if child.poll() is None]
