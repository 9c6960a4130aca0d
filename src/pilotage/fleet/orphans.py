"""Noticing that nobody looks after a process any more."""

import asyncio
import time
from pathlib import Path

CHECK_EVERY_S = 2.0


async def until_orphaned(alive_file: Path | None, *, after_s: float) -> None:
    """Returns when `alive_file` has not been touched for `after_s`; never without such a file.

    Counts looks, not the clock's difference: a laptop that slept is not one without a daemon.
    """
    misses = 0
    while alive_file is None or misses * CHECK_EVERY_S < after_s:
        await asyncio.sleep(CHECK_EVERY_S)
        misses = 0 if alive_file is None or _is_fresh(alive_file) else misses + 1


def _is_fresh(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime < 3 * CHECK_EVERY_S
    except OSError:
        return False
