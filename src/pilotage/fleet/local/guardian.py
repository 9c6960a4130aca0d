"""`python guardian.py RUN-FOLDER COMMAND...`: restarts the daemon when it dies. Nothing else.

It waits on the daemon's lock, which the kernel releases however the daemon ends, so nothing is polled and nothing can
be forgotten. It ends when the daemon is no longer wanted. The daemon, in turn, starts a guardian that is missing.
Imports nothing but the standard library: 10 MB.
"""

import fcntl
import subprocess
import sys
import time
from pathlib import Path

RESTART_AFTER_S = 0.2
LONGEST_RESTART_S = 30.0
HEALTHY_AFTER_S = 60.0


def main(run: Path, command: list[str]) -> int:
    """Guard until the daemon is no longer wanted."""
    own = (run / "guardian.lock").open("w")
    try:
        fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0
    delay_s = RESTART_AFTER_S
    child: subprocess.Popen[bytes] | None = None
    while True:
        began_s = time.monotonic()
        with (run / "daemon.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
        if child:
            child.poll()
        if not (run / "wanted").exists():
            return 0
        delay_s = (
            RESTART_AFTER_S if time.monotonic() - began_s > HEALTHY_AFTER_S else min(LONGEST_RESTART_S, delay_s * 2)
        )
        time.sleep(delay_s)
        log_path = run.parent / "logs" / "daemon.log"
        with log_path.open("ab") as out:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
        _until_held(run / "daemon.lock", child)


def _until_held(path: Path, child: subprocess.Popen[bytes]) -> None:
    """Wait until the new daemon holds its lock, or is gone."""
    while child.poll() is None:
        with path.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
