"""Logs that don't fill the disk. Every writer appends, so a file can be cut under it."""

import contextlib
from collections.abc import Collection
from pathlib import Path

LARGEST_LOG_BYTES = 32 * 1024 * 1024
KEPT_BYTES = 1024 * 1024
# Logs of replicas that are gone are worth something for a while.
MOST_LOGS = 200


def last_line(path: Path) -> str:
    """The last words in the log, short enough for a status."""
    try:
        lines = path.read_bytes()[-4_000:].decode("utf-8", "replace").split("\n")
    except OSError:
        return "its log can't be read"
    words = [line.strip() for line in lines if line.strip()]
    return words[-1][:300] if words else "it said nothing"


def trim_logs(folder: Path, *, in_use: Collection[str]) -> None:
    """Cut logs that grew large to their end, kept as `.old`, and remove the oldest of too many.

    Logs of the replicas in `in_use` and of the machine's own processes stay, however long they have been silent.
    """
    stats = []
    for path in folder.glob("*.log"):
        with contextlib.suppress(OSError):
            stats.append((path.stat(), path))
    of_replicas = sorted((stat.st_mtime, path) for stat, path in stats if "-" in path.stem)
    for _, path in of_replicas[: max(0, len(of_replicas) - MOST_LOGS)]:
        if path.stem.removesuffix(".agent") not in in_use:
            path.unlink(missing_ok=True)
    for stat, path in stats:
        if stat.st_size > LARGEST_LOG_BYTES:
            # A full disk stops one of them, not the others.
            with contextlib.suppress(OSError), path.open("r+b") as file:
                file.seek(-KEPT_BYTES, 2)
                path.with_suffix(".old").write_bytes(file.read())
                file.truncate(0)
