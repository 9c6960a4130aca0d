"""Logs that don't fill the disk. Every writer appends, so a file can be cut under it."""

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


def trim_logs(folder: Path) -> None:
    """Cut logs that grew large to their end, kept as `.old`, and remove the oldest of too many."""
    logs = sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in logs[MOST_LOGS:]:
        path.unlink(missing_ok=True)
    for path in logs[:MOST_LOGS]:
        if path.stat().st_size > LARGEST_LOG_BYTES:
            with path.open("r+b") as file:
                file.seek(-KEPT_BYTES, 2)
                path.with_suffix(".old").write_bytes(file.read())
                file.truncate(0)
