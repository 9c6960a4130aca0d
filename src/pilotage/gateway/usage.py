"""What Envoy's access log says of requests: that they run, that they ended, and what they used."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from pilotage.gateway.leases import Lease, lease_from_text

READ_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one answer. `None` is "the engine didn't say"."""

    prompt_tokens: int | None
    cached_tokens: int | None
    output_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """One line of the access log: a request that still runs (`ended` is false) or has ended."""

    ended: bool
    lease: Lease | None
    host: str | None
    code: int
    details: str
    flags: str
    start_s: float
    duration_s: float
    first_body_s: float | None
    usage: Usage
    request_id: str | None
    traceparent: str | None
    attempts: int

    @property
    def reason(self) -> str:
        """What became of the request, as one of a few words."""
        if "DC" in self.flags or self.details.startswith("downstream"):
            return "client_left"
        if any(flag in self.flags for flag in ("UC", "UF", "UPE", "UR", "UH")):
            return "engine_failed"
        if any(flag in self.flags for flag in ("SI", "UT")):
            return "timeout"
        return "ok" if self.code < 400 else "refused"


def read_entry(line: bytes) -> LogEntry | None:
    """The entry in `line`, or None where it is none of ours (cut off by a crash, say)."""
    try:
        raw = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(raw, dict) or "type" not in raw:
        return None
    lease = raw.get("lease")
    first_body_ms = raw.get("first_body_ms")
    return LogEntry(
        ended=raw["type"] == "DownstreamEnd",
        lease=lease_from_text(lease) if isinstance(lease, str) else None,
        host=raw.get("host"),
        code=int(raw.get("code") or 0),
        details=raw.get("details") or "",
        flags=raw.get("flags") or "",
        start_s=float(raw.get("start_s") or 0.0),
        duration_s=float(raw.get("duration_ms") or 0) / 1000,
        first_body_s=float(first_body_ms) / 1000 if first_body_ms is not None else None,
        usage=_usage(raw.get("usage")),
        request_id=raw.get("request_id"),
        traceparent=raw.get("traceparent"),
        attempts=int(raw.get("attempts") or 0),
    )


def _usage(raw: Any) -> Usage:
    if not isinstance(raw, dict):
        return Usage(prompt_tokens=None, cached_tokens=None, output_tokens=None)
    # OpenAI's object is final; llama.cpp's timings run along, with the cached part of the prompt counted apart.
    if "completion_tokens" in raw:
        prompt, output = raw.get("prompt_tokens"), raw.get("completion_tokens")
        cached = raw.get("cached_tokens", raw.get("timings_cached"))
    elif "timings_predicted" in raw:
        cached, output = raw.get("timings_cached"), raw.get("timings_predicted")
        prompt = (raw.get("timings_prompt") or 0) + (cached or 0)
    else:
        prompt, cached, output = (
            raw.get("prompt_tokens"),
            raw.get("cached_tokens"),
            0 if "prompt_tokens" in raw else None,
        )
    return Usage(prompt_tokens=_whole(prompt), cached_tokens=_whole(cached), output_tokens=_whole(output))


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and value >= 0 else None


class LogTail:
    """Follows the access log over its rotations, and remembers on disk how far it came.

    The log outlives the picker, so a restarted one goes on where the last one was: no end is missed or counted twice.
    `rotate` is called once the file has grown past `largest_bytes` and been moved away: Envoy must open it anew.
    """

    def __init__(self, path: Path, *, largest_bytes: int, rotate: Callable[[], None]) -> None:
        self._path = path
        self._largest_bytes = largest_bytes
        self._rotate = rotate
        self._moved = False
        place = path.with_suffix(".place")
        place.touch(mode=0o600, exist_ok=True)
        self._place = place.open("r+b", buffering=0)
        self._file = self._open()
        self._used_bytes = self._file.seek(self._remembered())

    def newest_s(self) -> float | None:
        """When the log was last written to, in seconds since 1970; None when nothing was."""
        stat = self._path.stat()
        return stat.st_mtime if stat.st_size else None

    def read(self) -> Iterator[LogEntry]:
        """The entries written since the last call."""
        yield from self._rest()
        if self._moved and self._path.exists():
            # Envoy writes to the new file; what it wrote to the old one meanwhile is the last of it.
            yield from self._rest()
            self._file.close()
            self._file = self._open()
            self._used_bytes = 0
            self._moved = False
            self._remember()
        elif not self._moved and self._used_bytes > self._largest_bytes:
            self._path.rename(self._path.with_suffix(".old"))
            self._moved = True
            self._rotate()

    def _rest(self) -> Iterator[LogEntry]:
        while data := self._file.read(READ_BYTES):
            whole = data.rfind(b"\n") + 1
            for line in data[:whole].splitlines():
                entry = read_entry(line)
                if entry:
                    yield entry
            self._used_bytes += whole
            self._remember()
            if whole < len(data):
                # A line that is still being written is read again as a whole.
                self._file.seek(self._used_bytes)
                if not whole:
                    break

    def close(self) -> None:
        """Let go of the files."""
        self._file.close()
        self._place.close()

    def _remember(self) -> None:
        inode = os.fstat(self._file.fileno()).st_ino
        with contextlib.suppress(OSError):
            # On a full disk the place is forgotten, and requests are still served.
            os.pwrite(self._place.fileno(), f"{inode:020d} {self._used_bytes:020d}".encode(), 0)

    def _remembered(self) -> int:
        """How far this very file was read; 0 for a file that is new."""
        stat = os.fstat(self._file.fileno())
        try:
            inode, used_bytes = map(int, os.pread(self._place.fileno(), 41, 0).split())
        except ValueError:
            return 0
        return used_bytes if inode == stat.st_ino and used_bytes <= stat.st_size else 0

    def _open(self) -> Any:
        self._path.touch(mode=0o600, exist_ok=True)
        return self._path.open("rb", buffering=0)
